// SPDX-License-Identifier: GPL-2.0

//! `make bench`: what this module and its peers cost the guest, in instructions, side by side.
//!
//! It runs in a QEMU guest that counts ([`host::nested::ensure_counted`]): the same program executes the same
//! instructions, however fast or busy the machine is. [`Meter`] counts those of the inner guest only. One measurement
//! lasts from when the host acts until the guest rests again, after its reply. The host acts right after a tick of the
//! guest's timer, when the guest rests again: so the next tick comes after the measurement, or at the same place in it.
//! Where the host acts several times, it waits in the same way in between, and what the guest does then does not count.

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

/// How many guests are measured for each module.
const BOOTS: u32 = 2;

/// What `make check` looks at: what is measured in little time.
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

/// How often something is measured: more often what differs more from time to time, less often what takes long.
const MANY: usize = 200;
const SOME: usize = 100;
const FEW: usize = 9;
const FILES: usize = 3;

/// How many programs read the PTP clock, and how often each does: to start takes long.
const READERS: usize = 10;
const READS: usize = 10_000;

/// How many beats of a flood there are at once: the ring has room for these, and for the replies.
const BURST: usize = 100;

/// How many shutdowns are one measurement: each starts a process, for which the kernel's allocator fetches or returns
/// pages in some of them.
const SHUTDOWNS: usize = 10;

/// A guest that was not entered for so long rests.
const REST: Duration = Duration::from_micros(300);

/// Within so long a guest's timer ticks.
const TICK: Duration = Duration::from_secs(1);

/// How long a guest is left alone after a thaw, until RCU lets its file systems' locks go: a freeze before that would
/// find part of its work done.
const AFTER_THAW: Duration = Duration::from_millis(200);

/// The file that is copied, in bytes.
const FILE: usize = 10_000_000;

/// What has the bench's guests always execute the same: addresses, that nothing waits for ticks of the timer until
/// RCU has come round, and that the timer ticks while the guest rests, too: else what it takes to wake up and to rest
/// depends on for how long it has rested.
const COMMAND_LINE: &str = " nokaslr norandmaps rcupdate.rcu_expedited=1 nohz=off";

/// As many keys as are enumerated.
const KEYS: usize = 100;

/// So many commands give the [`Meter`] enough stays to look at for the shortest that there is to be among them.
const COMMANDS: usize = 100;

/// What both modules serve in the same way when they are inserted: in C, file copy has moved to a daemon over uio.
pub const SERVICES: [Service; 5] = [
    Service::Heartbeat,
    Service::Shutdown,
    Service::TimeSync,
    Service::Kvp,
    Service::Vss,
];

/// Measures everything, prints the table, and leaves it and a plot in `build/results`; the exit status says whether all
/// could be measured.
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
            println!("build/results/bench.svg shows it; if what has changed is meant:");
            println!("cp build/results/bench.txt tests/scenarios/baseline.txt");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

/// Measures everything, and prints in which functions of its kernel a guest is in one of the [`ROWS`].
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

/// Measures what `make check` looks at, and compares it with the baseline: one line of TAP each.
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

/// Boots guests for each of both modules and takes figures of them.
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

/// A module's file, which is of the same kind for both. Debian's own has a signature and types (BTF), which take longer
/// to read than all else.
fn file(module: Module) -> String {
    format!("/modules/bare/{}/hv_utils.ko", module.name())
}

/// Has the host wait for the guest to rest between two of its acts.
type Rest<'a> = &'a dyn Fn() -> Result<()>;

/// Measures one guest.
struct Bench<'a> {
    guest: &'a Guest,
    module: Module,
    meter: Meter,
    /// The row of which a profile is wanted, if any.
    profiled: &'a str,
    /// Whether to look what part of the figures is the kernel's: it takes long, so in one guest of several.
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

    /// Waits until the guest has nothing more to do, and gives what it has executed until then: so it is if it has not
    /// been entered for a while. It does not run while this does, as the machine below has one processor.
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

    /// Waits until the guest's timer has ticked and it rests again.
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

    /// What the guest executes from now until `act` is over and it rests, without what it does while that waits.
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

    /// Takes a profile of what takes so many `instructions`. To look whether the guest rests takes long meanwhile: the
    /// host takes that for granted after some time.
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

    /// What the guest executes when the host acts, several times; before each time `prepare`, which does not count.
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
            // The functions of a module have names while it is there: after the act, or before it.
            let mut symbols = Symbols::read(self.guest)?;
            ready()?;
            symbols.extend(self.guest)?;
            profile.print(&symbols);
            // So all is as it was before.
            act(&|| Ok(()))?;
        }
        Ok(samples)
    }

    /// Adds a row to the table.
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

    /// The same of what is in each of these so many times.
    fn add_each(&mut self, name: &'static str, samples: &[Sample], times: usize) {
        let none = Count::default().into();
        let each: Vec<_> = samples.iter().map(|all| all.each(none, times)).collect();
        self.figures.add(name, self.module.name(), &each);
    }

    /// The same of what programs of the guest take part in.
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

/// How many instructions there are about in each of these.
fn instructions(samples: &[Sample]) -> u64 {
    Statistics::of(samples).map_or(0, |of| of.median.instructions as u64)
}

/// What `make check` looks at, in the order of [`everything`].
fn guarded(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    bench.insmod()?;
    beats(bench)?;
    flood(bench)?;
    clock(bench)?;
    key_values(bench, context)?;
    hot_backup(bench, context)?;
    power_off(bench)
}

/// Everything, in an order in which nothing disturbs what comes later.
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

/// The cheapest that a round trip can be: a driver that sends back what it gets.
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

/// Insertion, until what needs no daemon is negotiated; removal. File copy is left to `uio_hv_generic`, which is not there.
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

/// One beat.
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

/// As many at once as the ring takes. The host reads the replies between two measurements.
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

/// Samples of the host's time, and the clock that they feed.
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
    // Without what it takes to start the program, and its first read.
    let (one, all) = (read("one PTP read", 1)?, read("PTP read", READS)?);
    let start = Statistics::of(&one).ok_or("nothing was read")?.median;
    let reads: Vec<_> = all.iter().map(|all| all.each(start, READS - 1)).collect();
    bench.figures.add("PTP read", whose, &reads);
    Ok(())
}

/// One key is set and got, through the daemon, whose instructions are in it.
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

/// The question that comes before a backup of an ext4 that nobody writes to.
fn hot_backup(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    let guest = bench.guest;
    // For half a minute ext4 would initialize its inodes otherwise, which a freeze has to wait for.
    guest.sh_ok("mkfs.ext4 -q -F /dev/ram0 4M && mkdir -p /mnt && mount -o noinit_itable -t ext4 /dev/ram0 /mnt")?;
    let talk = Talk::begin(context, Service::Vss, daemon::VSS)?;
    bench.row_with_programs("VSS hot backup", SOME, None, |_| {
        talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)
            .map(|_| ())
    })
}

/// A freeze of it, with its thaw.
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

/// A file, piece by piece; the peer is the kernel's own daemon over uio.
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

/// From the request until the kernel has run the command that powers the guest off; that is another one here.
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
