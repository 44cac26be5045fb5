// SPDX-License-Identifier: GPL-2.0

//! `make bench`: the cost of this module and of its peers to the guest, in instructions, side by side.
//!
//! The benchmark runs in a QEMU guest that counts instructions ([`host::nested::ensure_counted`]). The same program
//! executes the same instructions, however fast or busy the machine is. [`Meter`] counts only those of the inner guest.
//!
//! A measurement begins when the host acts, and ends when the guest has replied and is idle again. The host acts when
//! the guest is idle right after a timer tick: so the next tick comes after the measurement, or at the same place in
//! it. If the host acts several times, it waits for a tick before each. The guest's work during these waits does not
//! count.

use std::cell::Cell;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::ic::fcopy;
use host::ic::heartbeat;
use host::ic::kvp;
use host::ic::shutdown;
use host::ic::timesync;
use host::ic::vss;
use host::ic::S_OK;
use host::images::build_folder;
use host::meter::Count;
use host::meter::Meter;
use host::service::Service;
use host::vmbus::packet::Packet;

use crate::baseline;
use crate::baseline::Pair;
use crate::baseline::BASELINE;
use crate::daemon;
use crate::daemon::Talk;
use crate::elf::Elf;
use crate::fcopy::copy_watched;
use crate::figures::memory_table;
use crate::figures::Figures;
use crate::figures::ECHO;
use crate::figures::FLOOR;
use crate::figures::ROWS;
use crate::memory::Memory;
use crate::plot;
use crate::profile::Prepare;
use crate::profile::Profile;
use crate::profile::Symbols;
use crate::runner::Options;
use crate::scenario::Context;
use crate::statistics::Sample;
use crate::statistics::Statistics;
use crate::timesync::ptp_device;
use crate::timesync::ptp_offset;

/// Number of guests for each module.
const BOOTS: u32 = 2;

/// The rows that `make check` measures: the quick ones.
const GUARDED: &[&str] = &[
    "heartbeat",
    "heartbeat in a flood",
    "time sample",
    "PTP read",
    "KVP set",
    "KVP get",
    "VSS hot backup",
    "shutdown",
];

/// Numbers of measurements. A row has more if its measurements differ more, and fewer if they take long.
const MANY: usize = 200;
const SOME: usize = 100;
const FEW: usize = 9;
const FILES: usize = 3;

/// Number of programs that read the PTP clock.
const READERS: usize = 10;
/// Number of reads of each program. It is large, as the start of a program takes long.
const READS: usize = 10_000;

/// Number of heartbeats of a flood at once. The ring has room for all of them, and for the replies.
const BURST: usize = 100;

/// Number of shutdowns in a measurement. Each starts a process. For some, the kernel's allocator gets or returns pages.
const SHUTDOWNS: usize = 10;

/// A guest is idle if it was not entered for this time.
const REST: Duration = Duration::from_micros(300);

/// Maximum time between two timer ticks of a guest.
const TICK: Duration = Duration::from_secs(1);

/// Pause between a thaw and the next freeze. Until an RCU grace period has passed, the locks of the file system are on
/// their slow path, and a freeze would take fewer instructions.
const AFTER_THAW: Duration = Duration::from_millis(200);

/// Size of the copied file, in bytes.
const FILE: usize = 10_000_000;

/// Options that let the guests always execute the same instructions. Addresses are fixed. RCU grace periods do not wait
/// for timer ticks. The timer also ticks in idle: otherwise the instructions to enter and leave idle would depend on
/// how long the guest was idle.
const COMMAND_LINE: &str = " nokaslr norandmaps rcupdate.rcu_expedited=1 nohz=off";

/// Number of keys that are enumerated.
const KEYS: usize = 100;

/// Number of commands that give the [`Meter`] enough stays in the guest. The shortest possible stay is among them.
const COMMANDS: usize = 100;

/// The services that both modules serve. C has no file copy: its daemon uses uio.
pub const SERVICES: [Service; 5] = [
    Service::Heartbeat,
    Service::Shutdown,
    Service::TimeSync,
    Service::Kvp,
    Service::Vss,
];

/// Measures all rows, prints the tables, and writes the figures and a plot to `build/results`. Fails if a row cannot be
/// measured.
pub fn run(options: &Options) -> ExitCode {
    let measured = measure(options, BOOTS, everything)
        .and_then(|figures| Ok((figures, Memory::measure(options)?)));
    let (figures, memory) = match measured {
        Ok(measured) => measured,
        Err(error) => {
            println!("FAILED: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("\n{}\n{}", figures.table(), memory_table(&memory));
    let instructions = figures
        .pairs()
        .map(|(row, pair)| (row, pair.rust.amount, pair.c.amount));
    let bytes = memory
        .rows()
        .map(|(row, rust, c)| (row, rust as f64, c as f64));
    let plot = plot::bars(&[
        ("instructions of the guest", instructions.collect()),
        ("bytes of memory", bytes.collect()),
    ]);
    let mut text = baseline::HEAD.to_owned() + &figures.text();
    for (row, rust, c) in memory.rows() {
        text.push_str(&baseline::line(row, rust, c));
    }
    let folder = build_folder().join("results");
    let kept = std::fs::write(folder.join("bench.txt"), text)
        .and_then(|()| std::fs::write(folder.join("bench.svg"), plot));
    match kept {
        Ok(()) => {
            println!("build/results/bench.svg is a plot; if the changes are intended:");
            println!("cp build/results/bench.txt tests/scenarios/baseline.txt");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

/// Measures all rows. For one of the [`ROWS`], prints the kernel's functions in which the guest spends its time.
pub fn profile(options: &Options) -> ExitCode {
    if !ROWS.contains(&options.filter.as_str()) {
        println!("FAILED: there is no row \"{}\", but:", options.filter);
        println!("{}", ROWS.join("\n"));
        return ExitCode::FAILURE;
    }
    match measure(options, 1, everything) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures the [`GUARDED`] rows, and compares them with the baseline. Prints a line of TAP for each.
pub fn check(options: &Options) -> ExitCode {
    let figures = match measure(options, 1, guarded) {
        Ok(figures) => figures,
        Err(error) => {
            println!("# {error}");
            println!("not ok - bench: measures");
            return ExitCode::FAILURE;
        }
    };
    let mut passed = true;
    for row in GUARDED {
        let (Some(now), Some(before)) = (figures.pair(row), Pair::find(BASELINE, row)) else {
            println!("not ok - bench: {row} has no baseline");
            passed = false;
            continue;
        };
        let limit = before.limit(now.c);
        let within = now.rust.within(&limit);
        passed &= within;
        println!(
            "{} - bench: {row}: {:.0} instructions (at most {:.0}; C: {:.0}), {} exits (at most {}; C: {})",
            if within { "ok" } else { "not ok" },
            now.rust.amount,
            limit.amount,
            now.c.amount,
            now.rust.exits,
            limit.exits,
            now.c.exits
        );
    }
    match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Boots guests for both modules, and calls `take` to measure each.
fn measure(
    options: &Options,
    boots: u32,
    take: impl Fn(&mut Bench<'_>, &Context<'_>) -> Result<()>,
) -> Result<Figures> {
    let mut figures = Figures::default();
    let modules = (0..boots).flat_map(|boot| [(boot, Module::Rust), (boot, Module::C)]);
    for (boot, module) in modules {
        let mut config = options.config();
        config.services.push(Service::Echo);
        config
            .initrds
            .push(build_folder().join(format!("guest/bench-{}.cpio", options.flavour)));
        config.command_line.push_str(COMMAND_LINE);
        let guest = Guest::boot(&config)?;
        println!("# booted in {:.1} s", guest.boot_time().as_secs_f64());
        let mut bench = Bench::new(
            options,
            &guest,
            module,
            boots > 1 && boot == 0,
            &mut figures,
        )?;
        if (boot, module) == (0, Module::Rust) {
            let elf = |module| Elf::read(&guest, &file(module));
            elf(Module::Rust)?.same_kind(&elf(Module::C)?)?;
        }
        println!("# not counted at each stay: {}", bench.meter.overhead());
        take(&mut bench, &Context::new(&guest, module))?;
    }
    Ok(figures)
}

/// The module's file, stripped for both modules. Debian's file has a signature and BTF, which take longer to read than
/// all else.
fn file(module: Module) -> String {
    format!("/modules/bare/{}/hv_utils.ko", module.name())
}

/// Waits until the guest is idle, between two acts of the host.
type Rest<'a> = &'a dyn Fn() -> Result<()>;

/// Measures one guest.
struct Bench<'a> {
    guest: &'a Guest,
    module: Module,
    meter: Meter,
    /// The row to profile, or an empty text.
    profiled: &'a str,
    /// Whether to measure the kernel's share. It takes long, so only the first guest does it.
    shares: bool,
    figures: &'a mut Figures,
}

impl<'a> Bench<'a> {
    fn new(
        options: &'a Options,
        guest: &'a Guest,
        module: Module,
        shares: bool,
        figures: &'a mut Figures,
    ) -> Result<Self> {
        for &service in &guest.config().services {
            let channel = guest.channel(service);
            channel.reset()?;
            channel.script()?;
        }
        let meter = Meter::new(|| (0..COMMANDS).try_for_each(|_| guest.sh_ok("true").map(|_| ())))?;
        Ok(Self {
            guest,
            module,
            meter,
            profiled: &options.filter,
            shares,
            figures,
        })
    }

    /// Inserts the module.
    fn insmod(&self) -> Result<()> {
        let line = format!("insmod {} {}", file(self.module), self.module.parameters());
        self.guest.sh_ok(&line).map(|_| ())
    }

    /// Waits until the guest is idle, and returns the count so far. The guest is idle if it was not entered for
    /// [`REST`]. It does not run while this function does: the machine below has one processor.
    fn settle(&self) -> Result<Count> {
        let mut last = self.meter.read()?;
        loop {
            std::thread::sleep(REST);
            let now = self.meter.read()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Waits until the guest's timer has ticked, and the guest is idle again.
    fn after_tick(&self) -> Result<Count> {
        let last = self.settle()?;
        let start = Instant::now();
        while start.elapsed() < TICK {
            std::thread::sleep(Duration::from_micros(50));
            if self.meter.read()? != last {
                return self.settle();
            }
        }
        Err("the guest's timer does not tick".into())
    }

    /// Counts what the guest executes during `act` and until it is idle. Does not count its work while `act` waits.
    fn once(&self, act: impl FnOnce(Rest<'_>) -> Result<()>) -> Result<Sample> {
        let (sum, before) = (Cell::new(Count::default()), Cell::new(self.after_tick()?));
        let add = || -> Result<()> {
            sum.set(sum.get() + (self.settle()? - before.get()));
            Ok(())
        };
        act(&|| {
            add()?;
            before.set(self.after_tick()?);
            Ok(())
        })?;
        add()?;
        Ok(sum.get().into())
    }

    /// Takes a profile of `act`, which takes about `instructions`. Waits for a fixed time instead of checking whether
    /// the guest is idle: the check takes long during a profile.
    fn profile(
        &self,
        instructions: u64,
        prepare: Prepare<'_>,
        mut act: impl FnMut(Rest<'_>) -> Result<()>,
    ) -> Result<Profile> {
        let rest = || {
            std::thread::sleep(Duration::from_micros(100));
            Ok(())
        };
        Profile::take(&self.meter, instructions, prepare, || {
            act(&rest)?;
            rest()
        })
    }

    /// Measures `act` of the host `count` times. Calls `prepare` before each, which does not count.
    fn times(
        &self,
        row: &str,
        count: usize,
        prepare: Prepare<'_>,
        mut act: impl FnMut(Rest<'_>) -> Result<()>,
    ) -> Result<Vec<Sample>> {
        let ready = || prepare.map_or(Ok(()), |prepare| prepare());
        let mut samples = Vec::new();
        for _ in 0..count {
            ready()?;
            samples.push(self.once(&mut act)?);
        }
        if self.profiled == row {
            let profile = self.profile(instructions(&samples), prepare, &mut act)?;
            // A module's functions have names only while it is inserted, which may be before or after `act`.
            let mut symbols = Symbols::read(self.guest)?;
            ready()?;
            symbols.extend(self.guest)?;
            profile.print(&symbols);
            // Restore the state from before.
            act(&|| Ok(()))?;
        }
        Ok(samples)
    }

    /// Measures a row of the table.
    fn row(
        &mut self,
        name: &'static str,
        count: usize,
        prepare: Prepare<'_>,
        act: impl FnMut(Rest<'_>) -> Result<()>,
    ) -> Result<()> {
        let samples = self.times(name, count, prepare, act)?;
        self.figures.add(name, self.module.name(), &samples);
        Ok(())
    }

    /// Adds a row. Each sample has the measured act `times` times.
    fn add_each(&mut self, name: &'static str, samples: &[Sample], times: usize) {
        let none = Count::default().into();
        let each: Vec<_> = samples.iter().map(|all| all.each(none, times)).collect();
        self.figures.add(name, self.module.name(), &each);
    }

    /// As [`Bench::row`], for a row in which programs of the guest take part. Measures the kernel's share, too.
    fn row_with_programs(
        &mut self,
        name: &'static str,
        count: usize,
        prepare: Prepare<'_>,
        mut act: impl FnMut(Rest<'_>) -> Result<()>,
    ) -> Result<()> {
        let whose = self.module.name();
        let samples = self.times(name, count, prepare, &mut act)?;
        self.figures.add(name, whose, &samples);
        if self.shares {
            let profile = self.profile(instructions(&samples), prepare, act)?;
            self.figures.add_share(name, whose, profile.kernel_share());
        }
        Ok(())
    }
}

/// The median of the instructions.
fn instructions(samples: &[Sample]) -> u64 {
    Statistics::of(samples).map_or(0, |of| of.median.instructions as u64)
}

/// Measures the [`GUARDED`] rows, in the order of [`everything`].
fn guarded(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    bench.insmod()?;
    beats(bench)?;
    flood(bench)?;
    clock(bench)?;
    key_values(bench, context)?;
    hot_backup(bench, context)?;
    power_off(bench)
}

/// Measures all rows, in an order in which no row disturbs a later one.
fn everything(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    if bench.module == Module::Rust {
        floor(bench)?;
    }
    load(bench)?;
    bench.insmod()?;
    beats(bench)?;
    flood(bench)?;
    clock(bench)?;
    key_values(bench, context)?;
    enumeration(bench, context)?;
    hot_backup(bench, context)?;
    freeze_and_thaw(bench, context)?;
    copy(bench, context)?;
    power_off(bench)
}

/// The cheapest possible round trip: the driver sends every packet back.
fn floor(bench: &mut Bench<'_>) -> Result<()> {
    let guest = bench.guest;
    guest.sh_ok("insmod /modules/samples/vmbus_echo.ko")?;
    let echo = guest.channel(Service::Echo);
    echo.wait_open()?;
    let samples = bench.times(FLOOR, MANY, None, |_| {
        echo.send_packet(Packet::inband(vec![0; 100]))?;
        echo.receive_packet().map(|_| ())
    })?;
    bench.figures.add(FLOOR, ECHO, &samples);
    guest.sh_ok("rmmod vmbus_echo")?;
    echo.wait_closed()
}

/// Insertion, until the services without daemons have negotiated. Removal. The device of file copy has no driver: the
/// module leaves it to `uio_hv_generic`, which is not inserted.
fn load(bench: &mut Bench<'_>) -> Result<()> {
    let guest = bench.guest;
    let line = format!("insmod {}", file(bench.module));
    let insert = || {
        guest.sh_ok(&line)?;
        for service in SERVICES {
            guest.channel(service).wait_open()?;
        }
        for service in [Service::Heartbeat, Service::Shutdown, Service::TimeSync] {
            guest.channel(service).negotiate_all()?;
        }
        Ok(())
    };
    let remove = || guest.rmmod();
    insert()?;
    bench.row("insmod", FEW, Some(&remove), |_| insert())?;
    remove()?;
    bench.row("rmmod", FEW, Some(&insert), |_| remove())
}

/// One heartbeat.
fn beats(bench: &mut Bench<'_>) -> Result<()> {
    let guest = bench.guest;
    let channel = guest.channel(Service::Heartbeat);
    channel.wait_open()?;
    channel.negotiate_all()?;
    bench.row("heartbeat", MANY, None, |_| {
        let body = heartbeat::body(0, heartbeat::RESERVED);
        channel.transact(&channel.request(body)?).map(|_| ())
    })
}

/// [`BURST`] heartbeats at once. The host reads the replies between two measurements.
fn flood(bench: &mut Bench<'_>) -> Result<()> {
    let channel = bench.guest.channel(Service::Heartbeat);
    let beat = channel.request(heartbeat::body(0, heartbeat::RESERVED))?;
    let packet = Packet::inband(beat.encode());
    let unread = Cell::new(0);
    let read = || {
        channel.set_reading(true)?;
        (0..unread.take()).try_for_each(|_| channel.receive_packet().map(|_| ()))
    };
    let prepare = || {
        read()?;
        channel.set_reading(false)
    };
    let bursts = bench.times("heartbeat in a flood", SOME, Some(&prepare), |_| {
        unread.set(BURST);
        channel.send_packets(vec![packet.clone(); BURST])
    })?;
    read()?;
    bench.add_each("heartbeat in a flood", &bursts, BURST);
    Ok(())
}

/// Time samples, and reads of the PTP clock.
fn clock(bench: &mut Bench<'_>) -> Result<()> {
    let guest = bench.guest;
    let channel = guest.channel(Service::TimeSync);
    channel.wait_open()?;
    let versions = channel.negotiate_all()?;
    bench.row("time sample", MANY, None, |_| {
        let body = timesync::body(versions.message, &guest.moment(), timesync::SAMPLE);
        channel.transact(&channel.request(body)?).map(|_| ())
    })?;
    let whose = bench.module.name();
    bench.figures.add_offset(whose, ptp_offset(guest)?);
    let device = ptp_device(guest)?;
    let read = |row: &str, times: usize| {
        let line = format!("ptp-reads {device} {times}");
        bench.times(row, READERS, None, |_| guest.sh_ok(&line).map(|_| ()))
    };
    // Subtract the start of the program, and its first read.
    let (one, all) = (read("one PTP read", 1)?, read("PTP read", READS)?);
    let start = Statistics::of(&one).ok_or("nothing was read")?.median;
    let reads: Vec<_> = all.iter().map(|all| all.each(start, READS - 1)).collect();
    bench.figures.add("PTP read", whose, &reads);
    Ok(())
}

/// A key is set and read. The daemon's instructions count.
fn key_values(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    daemon::prepare(bench.guest)?;
    let talk = Talk::begin(context, Service::Kvp, daemon::KVP)?;
    let set = kvp::set(kvp::EXTERNAL, "Key0", "Value");
    bench.row_with_programs("KVP set", SOME, None, |_| {
        talk.expect("SET", set.clone(), S_OK).map(|_| ())
    })?;
    let get = kvp::get(kvp::EXTERNAL, "Key0");
    bench.row_with_programs("KVP get", SOME, None, |_| {
        talk.expect("GET", get.clone(), S_OK).map(|_| ())
    })
}

/// All keys of a pool, one after another.
fn enumeration(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    let talk = Talk::with(context, Service::Kvp);
    for number in 0..KEYS {
        let set = kvp::set(kvp::EXTERNAL, &format!("Key{number}"), "Value");
        talk.expect("SET", set, S_OK)?;
    }
    bench.row_with_programs("KVP 100 keys", FEW, None, |rest| {
        for index in 0..KEYS {
            let next = kvp::enumerate(kvp::EXTERNAL, index as u32);
            talk.expect("ENUMERATE", next, S_OK)?;
            rest()?;
        }
        Ok(())
    })
}

/// HOT_BACKUP, which precedes a backup. Nobody writes to the file system, an ext4.
fn hot_backup(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    let guest = bench.guest;
    // Without noinit_itable, ext4 initializes its inodes for half a minute. A freeze would wait for that.
    guest.sh_ok("mkfs.ext4 -q -F /dev/ram0 4M && mkdir -p /mnt && mount -o noinit_itable -t ext4 /dev/ram0 /mnt")?;
    let talk = Talk::begin(context, Service::Vss, daemon::VSS)?;
    bench.row_with_programs("VSS hot backup", SOME, None, |_| {
        talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)
            .map(|_| ())
    })
}

/// FREEZE and THAW of that file system.
fn freeze_and_thaw(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    let talk = Talk::with(context, Service::Vss);
    let wait = || {
        std::thread::sleep(AFTER_THAW);
        Ok(())
    };
    bench.row_with_programs("VSS freeze and thaw", SOME, Some(&wait), |rest| {
        talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
        rest()?;
        talk.expect("THAW", vss::body(vss::THAW), S_OK).map(|_| ())
    })
}

/// A file is copied. The peer is the kernel's daemon over uio.
fn copy(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    let guest = bench.guest;
    guest.sh_ok("mkdir -p /tmp/in")?;
    let daemon = match bench.module {
        Module::Rust => daemon::FCOPY,
        Module::C => {
            guest.sh_ok(
                "insmod /modules/daemons/uio.ko && insmod /modules/daemons/uio_hv_generic.ko",
            )?;
            daemon::FCOPY_UIO
        }
    };
    daemon.start(guest)?;
    let talk = Talk::with(context, Service::FCopy);
    talk.channel.wait_open()?;
    talk.channel.negotiate_all()?;
    let bytes = crate::fcopy::content(FILE);
    let remove = || guest.sh_ok("rm -f /tmp/in/file").map(|_| ());
    bench.row_with_programs("file of 10 MB", FILES, Some(&remove), |rest| {
        let mut rested = Ok(());
        let copied = copy_watched(talk, "/tmp/in/", "file", fcopy::OVERWRITE, &bytes, |_| {
            if rested.is_ok() {
                rested = rest();
            }
        });
        copied.and(rested)
    })
}

/// From the request until the kernel has run its poweroff command, which is `/bin/true` here.
fn power_off(bench: &mut Bench<'_>) -> Result<()> {
    let guest = bench.guest;
    guest.sh_ok("echo /bin/true >/proc/sys/kernel/poweroff_cmd")?;
    let channel = guest.channel(Service::Shutdown);
    channel.negotiate_all()?;
    let shutdowns = bench.times("shutdown", SOME / SHUTDOWNS, None, |rest| {
        for _ in 0..SHUTDOWNS {
            let body = shutdown::body(shutdown::FORCE, "the end");
            channel.transact(&channel.request(body)?)?;
            rest()?;
        }
        Ok(())
    })?;
    bench.add_each("shutdown", &shutdowns, SHUTDOWNS);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_has_what_is_checked() {
        for row in ROWS.iter().chain(&crate::memory::ROWS) {
            assert!(Pair::find(BASELINE, row).is_some(), "{row}");
        }
        assert!(GUARDED.iter().all(|row| ROWS.contains(row)));
    }
}
