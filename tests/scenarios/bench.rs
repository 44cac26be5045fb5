// SPDX-License-Identifier: GPL-2.0

//! `make bench`: what this module and its peers cost the guest, in instructions, side by side.
//!
//! It runs in a QEMU guest that counts ([`host::nested::ensure_counted`]): the same program executes the same
//! instructions, however fast or busy the machine is. [`Meter`] counts those of the inner guest only. One measurement
//! lasts from when the host acts until the guest rests again, after its reply. Where the host acts several times, it
//! waits for the guest to rest in between, too: else it would be chance whether the next request meets a guest that is
//! awake. Each figure is a percentile of many, see [`PERCENTILE`].

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::time::Duration;

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

use crate::daemon;
use crate::daemon::Talk;
use crate::fcopy::copy_watched;
use crate::memory::Memory;
use crate::plot;
use crate::profile::Prepare;
use crate::profile::Profile;
use crate::profile::Symbols;
use crate::runner::Options;
use crate::scenario::Context;
use crate::timesync::ptp_device;
use crate::timesync::ptp_offset;

/// The figures of a former run, in the form of [`Figures::text`].
const BASELINE: &str = include_str!("baseline.txt");

/// The lines of the table.
pub const ROWS: &[&str] = &[
    "insmod",
    "rmmod",
    "heartbeat",
    "heartbeat in a flood",
    "time sample",
    "PTP read",
    "KVP set",
    "KVP get",
    "KVP 100 keys",
    "VSS hot backup",
    "VSS freeze and thaw",
    "file of 10 MB",
    "shutdown",
];

/// How many guests are measured for each module: where timer ticks and the like fall differs a little between them, so
/// that the one in the middle counts.
const BOOTS: u32 = 3;

/// Which percentile of many measurements of the same is the figure. What comes in by chance, such as ticks of the
/// timer, adds to many of them; in some rows up to a quarter find something done that the others wait for. Between
/// these, runs agree. Of very few it is the least.
const PERCENTILE: usize = 35;

/// What `make check` looks at, and by how many percent it may grow.
const KEPT: &[&str] = &["heartbeat", "KVP get", "KVP set"];
const TOLERANCE: u64 = 5;

/// How often something is measured: more often what differs more from time to time, less often what takes long.
const MANY: usize = 200;
const SOME: usize = 100;
const FEW: usize = 9;
const FILES: usize = 3;

/// How many programs read the PTP clock, and how often each does: to start takes long.
const READERS: usize = 10;
const READS: usize = 10_000;

/// How many beats make a flood, so many of them at once: the ring has room for these, and for the replies.
const FLOOD: usize = 10_000;
const BURST: usize = 100;
/// How many floods there are.
const FLOODS: usize = 3;

/// How long a guest is left alone after a thaw, until RCU lets its file systems' locks go: a freeze before that would
/// find part of its work done.
const AFTER_THAW: Duration = Duration::from_millis(200);

/// The file that is copied, in bytes.
const FILE: usize = 10_000_000;

/// What has the bench's guests always execute the same: addresses, and that nothing waits for ticks of the timer until
/// RCU has come round.
const COMMAND_LINE: &str = " nokaslr norandmaps rcupdate.rcu_expedited=1";

/// As many keys as are enumerated.
const KEYS: usize = 100;

/// So many commands give the [`Meter`] enough stays to look at for the shortest that there is to be among them.
const COMMANDS: usize = 30;

/// What both modules serve in the same way when they are inserted: in C, file copy has moved to a daemon over uio.
pub const SERVICES: [Service; 5] = [
    Service::Heartbeat,
    Service::Shutdown,
    Service::TimeSync,
    Service::Kvp,
    Service::Vss,
];

/// A name for whose instructions they are.
const ECHO: &str = "echo";

/// One line of the table for one module: a percentile of many, and how far they lie apart.
#[derive(Clone, Copy)]
struct Figure {
    /// The [`PERCENTILE`]th percentile.
    count: Count,
    /// From the 10th to the 90th percentile of the instructions.
    spread: (u64, u64),
    /// The part of the instructions, of 1, that was the kernel's, where it was looked at: by samples, so about.
    kernel: Option<f64>,
}

/// Those of all guests.
#[derive(Default)]
struct Figures {
    /// By row and whose they are.
    rows: BTreeMap<(&'static str, &'static str), Vec<Figure>>,
    /// By whose PTP clock it is, how far that was ahead of the host's in each guest, in nanoseconds: at least, and at
    /// most.
    offsets: BTreeMap<&'static str, Vec<RangeInclusive<i128>>>,
}

impl Figures {
    /// Adds one of a guest.
    fn add(&mut self, row: &'static str, whose: &'static str, figure: Figure) {
        self.rows.entry((row, whose)).or_default().push(figure);
        let Count {
            instructions,
            exits,
        } = figure.count;
        println!("# {row}, {whose}: {instructions} instructions, {exits} exits");
    }

    /// The one in the middle, if it was measured.
    fn of(&self, row: &'static str, whose: &'static str) -> Option<Figure> {
        let mut guests = self.rows.get(&(row, whose))?.clone();
        let kernel = guests.iter().find_map(|figure| figure.kernel);
        guests.sort_unstable_by_key(|figure| figure.count.instructions);
        let middle = guests.get(guests.len() / 2)?;
        Some(Figure { kernel, ..*middle })
    }

    /// Those of this module and of its peer, if both were measured.
    fn both(&self, row: &'static str) -> Option<(Figure, Figure)> {
        let of = |module: Module| self.of(row, module.name());
        Some((of(Module::Rust)?, of(Module::C)?))
    }

    /// How many instructions those are.
    fn pair(&self, row: &'static str) -> Option<(u64, u64)> {
        let (rust, c) = self.both(row)?;
        Some((rust.count.instructions, c.count.instructions))
    }

    /// One line a row: its name, what this module needs, and what its peer does.
    fn text(&self) -> String {
        let mut text = String::new();
        for row in ROWS {
            if let Some((rust, c)) = self.pair(row) {
                let _ = writeln!(text, "{row}: {rust} {c}");
            }
        }
        text
    }

    fn table(&self) -> String {
        let mut text = format!(
            "{:<24}{:>12}{:>12}{:>8}{:>12}{:>12}{:>8}{:>9}{:>10}\n",
            "instructions of the guest",
            "this module",
            "in C",
            "ratio",
            "kernel only",
            "in C",
            "ratio",
            "spread",
            "baseline"
        );
        let part = |all: u64, share: f64| (all as f64 * share) as u64;
        for row in ROWS {
            let Some((rust, c)) = self.both(row) else {
                continue;
            };
            let (all, all_of_c) = (rust.count.instructions, c.count.instructions);
            let kernel = match (rust.kernel, c.kernel) {
                (Some(share), Some(share_of_c)) => {
                    let (rust, c) = (part(all, share), part(all_of_c, share_of_c));
                    format!("{rust:>12}{c:>12}{:>8}", ratio(rust, c))
                }
                _ => format!("{:>32}", ""),
            };
            let spread = (rust.spread.1 - rust.spread.0) as f64 / all.max(1) as f64;
            let change = change(row, all);
            let _ = writeln!(
                text,
                "{row:<25}{all:>11}{all_of_c:>12}{:>8}{kernel}{:>8.1}%{change:>10}",
                ratio(all, all_of_c),
                100.0 * spread
            );
        }
        if let Some(echo) = self.of("round trip", ECHO) {
            let _ = writeln!(
                text,
                "the cheapest round trip (samples/vmbus_echo.rs): {}",
                echo.count.instructions
            );
        }
        for (whose, offsets) in &self.offsets {
            let offsets: Vec<_> = offsets
                .iter()
                .map(|off| format!("{} to {}", off.start(), off.end()))
                .collect();
            let _ = writeln!(
                text,
                "nanoseconds that the PTP clock is ahead of the host's, {whose}: {}",
                offsets.join(", ")
            );
        }
        text
    }
}

/// This module's part of what its peer needs, if that needs any.
fn ratio(rust: u64, c: u64) -> String {
    match c {
        0 => "-".to_owned(),
        _ => format!("{:.3}", rust as f64 / c as f64),
    }
}

/// By how much a row of this module differs from the baseline.
fn change(row: &str, now: u64) -> String {
    match baseline(BASELINE, row) {
        Some((0, _)) if now == 0 => "-".to_owned(),
        Some((before, _)) => format!("{:+.1} %", 100.0 * (now as f64 / before as f64 - 1.0)),
        None => "new".to_owned(),
    }
}

/// The table of what both modules take of the guest's memory.
fn memory_table(memory: &Memory) -> String {
    let mut text = format!(
        "{:<24}{:>12}{:>12}{:>8}{:>10}\n",
        "bytes of memory", "this module", "in C", "ratio", "baseline"
    );
    for (row, rust, c) in memory.rows() {
        let (ratio, change) = (ratio(rust, c), change(row, rust));
        let _ = writeln!(text, "{row:<24}{rust:>12}{c:>12}{ratio:>8}{change:>10}");
    }
    let _ = writeln!(
        text,
        "file copy, which is in none of these, adds to this module's slab at rest: {}",
        memory.file_copy
    );
    text
}

/// What the baseline has for a row: this module's, and its peer's.
fn baseline(text: &str, row: &str) -> Option<(u64, u64)> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(row)?.strip_prefix(": "))?;
    let (rust, c) = line.split_once(' ')?;
    Some((rust.parse().ok()?, c.parse().ok()?))
}

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
    let instructions = ROWS.iter().filter_map(|row| {
        let (rust, c) = figures.pair(row)?;
        Some((*row, rust, c))
    });
    let plot = plot::bars(&[
        ("instructions of the guest", instructions.collect()),
        ("bytes of memory", memory.rows().collect()),
    ]);
    let mut text = figures.text();
    for (row, rust, c) in memory.rows() {
        let _ = writeln!(text, "{row}: {rust} {c}");
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

/// Measures what `make check` looks at, and compares it with the baseline: one line of TAP each. Where the kernel below
/// has changed, what C needs has changed with it.
pub fn check(options: &Options) -> ExitCode {
    let figures = match measure(options, 1, kept) {
        Ok(figures) => figures,
        Err(error) => {
            println!("# {error}");
            println!("not ok - bench: measures");
            return ExitCode::FAILURE;
        }
    };
    let mut passed = true;
    for row in KEPT {
        let (Some((rust, c)), Some((rust_before, c_before))) =
            (figures.pair(row), baseline(BASELINE, row))
        else {
            println!("not ok - bench: {row} has no baseline");
            passed = false;
            continue;
        };
        let allowed = rust_before * c / c_before * (100 + TOLERANCE) / 100;
        let verdict = if rust <= allowed { "ok" } else { "not ok" };
        passed &= rust <= allowed;
        println!("{verdict} - bench: {row}: {rust} instructions, at most {allowed} (C: {c})");
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
        println!("# not counted at each stay: {}", bench.meter.overhead());
        take(&mut bench, &Context::new(&guest, module))?;
    }
    Ok(figures)
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

    /// Waits until the guest has nothing more to do, and gives what it has executed until then: so it is if it has not
    /// been entered for a while. It does not run while this does, as the machine below has one processor.
    fn settle(&self) -> Result<Count> {
        let mut last = self.meter.read()?;
        loop {
            std::thread::sleep(Duration::from_micros(300));
            let now = self.meter.read()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
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
    ) -> Result<Vec<Count>> {
        let ready = || prepare.map_or(Ok(()), |prepare| prepare());
        let mut counts = Vec::new();
        for _ in 0..count {
            ready()?;
            let before = self.settle()?;
            act(&|| self.settle().map(|_| ()))?;
            counts.push(self.settle()? - before);
        }
        if self.profiled == row {
            let instructions = figure(counts.clone()).count.instructions;
            let profile = self.profile(instructions, prepare, &mut act)?;
            // The functions of a module have names while it is there: after the act, or before it.
            let mut symbols = Symbols::read(self.guest)?;
            ready()?;
            symbols.extend(self.guest)?;
            profile.print(&symbols);
            // So all is as it was before.
            act(&|| Ok(()))?;
        }
        Ok(counts)
    }

    /// Adds a row to the table.
    fn row(
        &mut self,
        name: &'static str,
        count: usize,
        prepare: Prepare<'_>,
        act: impl FnMut(Rest<'_>) -> Result<()>,
    ) -> Result<()> {
        let figure = figure(self.times(name, count, prepare, act)?);
        self.figures.add(name, self.module.name(), figure);
        Ok(())
    }

    /// The same of what programs of the guest take part in.
    fn row_with_programs(
        &mut self,
        name: &'static str,
        count: usize,
        prepare: Prepare<'_>,
        mut act: impl FnMut(Rest<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut figure = figure(self.times(name, count, prepare, &mut act)?);
        if self.shares {
            let profile = self.profile(figure.count.instructions, prepare, act)?;
            figure.kernel = Some(profile.kernel_share());
        }
        self.figures.add(name, self.module.name(), figure);
        Ok(())
    }
}

/// Leaves the guest alone for that long, and for a bit longer each time, so that the ticks of the timer come at all
/// places of what is measured: for what is long enough to have them matter.
fn longer_each_time(pause: Duration) -> impl Fn() -> Result<()> {
    let pause = Cell::new(pause);
    move || {
        std::thread::sleep(pause.replace(pause.get() + Duration::from_micros(100)));
        Ok(())
    }
}

fn figure(mut counts: Vec<Count>) -> Figure {
    counts.sort_unstable_by_key(|count| count.instructions);
    let at = |percent: usize| counts[(counts.len() - 1) * percent / 100];
    Figure {
        count: at(PERCENTILE),
        spread: (at(10).instructions, at(90).instructions),
        kernel: None,
    }
}

/// What `make check` looks at.
fn kept(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    bench.guest.insmod(bench.module)?;
    beats(bench)?;
    key_values(bench, context)
}

/// Everything, in an order in which nothing disturbs what comes later.
fn everything(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    if bench.module == Module::Rust {
        floor(bench)?;
    }
    load(bench)?;
    bench.guest.insmod(bench.module)?;
    beats(bench)?;
    flood(bench)?;
    clock(bench)?;
    key_values(bench, context)?;
    enumeration(bench, context)?;
    backup(bench, context)?;
    copy(bench, context)?;
    power_off(bench)
}

/// The cheapest that a round trip can be: a driver that sends back what it gets.
fn floor(bench: &mut Bench<'_>) -> Result<()> {
    let guest = bench.guest;
    guest.sh_ok("insmod /modules/samples/vmbus_echo.ko")?;
    let echo = guest.channel(Service::Echo);
    echo.wait_open()?;
    let counts = bench.times("round trip", MANY, None, |_| {
        echo.send_packet(Packet::inband(vec![0; 100]))?;
        echo.receive_packet().map(|_| ())
    })?;
    bench.figures.add("round trip", ECHO, figure(counts));
    guest.sh_ok("rmmod vmbus_echo")?;
    echo.wait_closed()
}

/// Insertion, until what needs no daemon is negotiated; removal.
fn load(bench: &mut Bench<'_>) -> Result<()> {
    let (guest, module) = (bench.guest, bench.module);
    let parameters = match module {
        Module::Rust => "fcopy_chardev=0",
        Module::C => "",
    };
    let insert = || {
        guest.insmod_with(module, parameters)?;
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

/// Ten thousand, as many at once as the ring takes. The host reads the replies when the guest rests.
fn flood(bench: &mut Bench<'_>) -> Result<()> {
    let channel = bench.guest.channel(Service::Heartbeat);
    let beat = channel.request(heartbeat::body(0, heartbeat::RESERVED))?;
    let packet = Packet::inband(beat.encode());
    let flood = bench.times("heartbeat in a flood", FLOODS, None, |rest| {
        for _ in 0..FLOOD / BURST {
            channel.set_reading(false)?;
            channel.send_packets(vec![packet.clone(); BURST])?;
            rest()?;
            channel.set_reading(true)?;
            for _ in 0..BURST {
                channel.receive_packet()?;
            }
        }
        Ok(())
    })?;
    let each = flood.into_iter().map(|count| Count {
        instructions: count.instructions / FLOOD as u64,
        exits: count.exits / FLOOD as u64,
    });
    let whose = bench.module.name();
    bench
        .figures
        .add("heartbeat in a flood", whose, figure(each.collect()));
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
    let offsets = bench.figures.offsets.entry(whose).or_default();
    offsets.push(ptp_offset(guest)?);
    let device = ptp_device(guest)?;
    let read = |row: &str, times: usize| {
        let line = format!("ptp-reads {device} {times}");
        let counts = bench.times(row, READERS, None, |_| guest.sh_ok(&line).map(|_| ()))?;
        Ok::<_, host::guest::Error>(figure(counts))
    };
    let (one, all) = (read("one PTP read", 1)?, read("PTP read", READS)?);
    let each = |last: u64, first: u64| last.saturating_sub(first) / (READS as u64 - 1);
    let figure = Figure {
        count: Count {
            instructions: each(all.count.instructions, one.count.instructions),
            exits: each(all.count.exits, one.count.exits),
        },
        spread: (
            each(all.spread.0, one.count.instructions),
            each(all.spread.1, one.count.instructions),
        ),
        kernel: None,
    };
    bench.figures.add("PTP read", whose, figure);
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

/// The question that comes before a backup, and a freeze with its thaw, of an ext4 that nobody writes to.
fn backup(bench: &mut Bench<'_>, context: &Context<'_>) -> Result<()> {
    let guest = bench.guest;
    guest.sh_ok("mkfs.ext4 -q -F /dev/ram0 4M && mkdir -p /mnt && mount -t ext4 /dev/ram0 /mnt")?;
    let talk = Talk::begin(context, Service::Vss, daemon::VSS)?;
    bench.row_with_programs("VSS hot backup", SOME, None, |_| {
        talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)
            .map(|_| ())
    })?;
    let wait = longer_each_time(AFTER_THAW);
    bench.row_with_programs("VSS freeze and thaw", MANY, Some(&wait), |rest| {
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
    bench.row_with_programs("file of 10 MB", FILES, None, |rest| {
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
    let wait = longer_each_time(Duration::ZERO);
    bench.row("shutdown", MANY, Some(&wait), |_| {
        let body = shutdown::body(shutdown::FORCE, "the end");
        channel.transact(&channel.request(body)?).map(|_| ())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_has_what_is_checked() {
        for row in ROWS.iter().chain(&crate::memory::ROWS) {
            assert!(baseline(BASELINE, row).is_some(), "{row}");
        }
        assert!(KEPT.iter().all(|row| ROWS.contains(row)));
        assert_eq!(baseline("KVP get: 7 9\n", "KVP get"), Some((7, 9)));
        assert_eq!(baseline("KVP getter: 7 9\n", "KVP get"), None);
    }
}
