// SPDX-License-Identifier: GPL-2.0

//! Runs scenarios: boots as few guests as possible, reports one line each, keeps what was said.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use host::guest::Error;
use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::images;
use host::images::build_folder;
use host::machine::Config;
use host::machine::Exit;
use host::service::Service;
use host::service::Version;
use host::snapshot::Snapshot;

use crate::compare;
use crate::daemon;
use crate::faults;
use crate::faults::Kernel;
use crate::log;
use crate::report;
use crate::report::Report;
use crate::scenario::skip;
use crate::scenario::skip_reason;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// The kernel that most guests have.
const FLAVOUR: &str = "amd64";

/// The one that differs from it in what scenarios say of themselves.
const CLOUD: &str = "cloud-amd64";

/// The one that looks for faults.
const DEBUG: &str = "debug";

/// The kernels that the table of faults is from, with how many processors.
const KERNELS: [(&str, u32); 2] = [(FLAVOUR, 1), (DEBUG, 2)];

/// What the command line says.
pub struct Options {
    /// Only scenarios with this in their line.
    pub filter: String,
    /// The kernel.
    pub flavour: String,
    modules: Vec<Module>,
    vcpus: Vec<u32>,
    versions: Vec<Version>,
    /// Everything with everything, instead of what differs from it once.
    full: bool,
    /// Also what does not depend on the place.
    whole: bool,
    /// What waits, where waiting takes no time; else what does not wait.
    emulated: bool,
    repeat: u32,
    /// Stands for all that C's results depend on: those that a former run got with the same are kept.
    peer: Option<String>,
    /// What the table of faults names, with both modules; C may fail.
    faults: bool,
    /// With C, what is not for it.
    control: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            filter: String::new(),
            flavour: FLAVOUR.to_owned(),
            modules: vec![Module::Rust, Module::C],
            vcpus: vec![1, 2],
            versions: vec![(6, 0), (4, 0)],
            full: false,
            whole: true,
            emulated: false,
            repeat: 1,
            peer: None,
            faults: false,
            control: false,
        }
    }
}

impl Options {
    /// Sets an option of the command line; an error says what is wrong with it.
    pub fn set(&mut self, name: &str, value: &str) -> std::result::Result<(), String> {
        let wrong = || format!("{name} {value}: not understood");
        match name {
            "--flavour" => self.flavour = value.to_owned(),
            "--module" => {
                self.modules = match value {
                    "rust" => vec![Module::Rust],
                    "c" => vec![Module::C],
                    _ => return Err(wrong()),
                }
            }
            "--vcpus" => self.vcpus = vec![value.parse().map_err(|_| wrong())?],
            "--vmbus" => {
                let (major, minor) = value.split_once('.').ok_or_else(wrong)?;
                self.versions = vec![(
                    major.parse().map_err(|_| wrong())?,
                    minor.parse().map_err(|_| wrong())?,
                )];
            }
            "--full" => self.full = value == "yes",
            "--whole" => self.whole = value != "no",
            "--time" => self.emulated = value == "emulated",
            "--control" => self.control = value == "yes",
            "--peer" => self.peer = Some(value.to_owned()),
            "--repeat" => self.repeat = value.parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Whether guest time counts instructions, and waiting takes none.
    pub fn is_emulated(&self) -> bool {
        self.emulated
    }

    /// What is to be run here. What leaves the guest usable comes first, then what ends it, then what has a machine of
    /// its own.
    fn jobs(
        &self,
        scenarios: &[&'static Scenario],
        vcpus: u32,
        vmbus: Version,
        whole: bool,
    ) -> VecDeque<(&'static Scenario, Place)> {
        let order = |scenario: &Scenario| match scenario.other_machine() {
            Some(machine) => (2, machine.name),
            None => (u32::from(scenario.is_last()), ""),
        };
        let mut sorted = scenarios.to_vec();
        sorted.sort_by_key(|scenario| order(scenario));
        let debug = self.flavour == DEBUG;
        let all = match self.flavour.as_str() {
            DEBUG => whole,
            CLOUD => self.full,
            _ => true,
        };
        sorted.retain(|scenario| all || scenario.is_everywhere() || scenario.needs_debug_kernel());
        let emulated = self.emulated;
        let any_time = self.faults || self.control;
        sorted.retain(|scenario| scenario.is_waiting() == emulated || any_time);
        sorted.retain(|scenario| !scenario.is_apart() || scenario.name() == self.filter);
        let kernel = if debug { Kernel::Debug } else { Kernel::Stock };
        sorted.retain(|scenario| !self.faults || faults::names(scenario.name(), kernel));
        sorted.retain(|scenario| debug || !scenario.needs_debug_kernel());
        sorted.retain(|scenario| whole || scenario.depends_on_place());
        let asked_for = self.full || any_time || !self.filter.is_empty();
        sorted.retain(|scenario| vcpus > 1 || asked_for || !scenario.is_race());
        let places = |scenario: &'static Scenario| {
            self.modules.iter().map(move |&module| {
                let place = Place {
                    module,
                    vcpus,
                    vmbus,
                };
                (scenario, place)
            })
        };
        let mut jobs: VecDeque<_> = sorted.into_iter().flat_map(places).collect();
        jobs.retain(|(scenario, place)| {
            let line = format!("{} {} {}", scenario.name(), place.label(), self.flavour);
            let here = whole || place.module == Module::Rust;
            // File copy has no character device in C any more.
            let could_be = place.module == Module::C && !scenario.name().starts_with("fcopy_");
            let for_module = match (self.faults, self.control) {
                (true, _) => could_be || scenario.is_for(place.module),
                (_, true) => could_be && !scenario.is_for(place.module),
                _ => scenario.is_for(place.module),
            };
            here && for_module && line.contains(&self.filter)
        });
        jobs
    }

    /// The initramfs with the daemons.
    pub fn daemons(&self) -> PathBuf {
        build_folder().join(format!("guest/daemons-{}.cpio", self.flavour))
    }

    /// The machine for this kernel, with all services, and with both modules and the daemons in its initramfs (as far as
    /// they are there).
    pub fn config(&self) -> Config {
        let mut config = Config {
            kernel: images::kernel(&self.flavour),
            initrds: images::initrds(&self.flavour),
            ..Config::default()
        };
        config
            .initrds
            .extend(Some(self.daemons()).filter(|image| image.exists()));
        config.services.extend(daemon::SERVICES);
        if self.flavour == DEBUG {
            // What looks for faults has notes to take.
            config.memory *= 2;
            config.command_line = "kunit.autorun=0".to_owned();
        }
        config
    }
}

/// What the results are about: everything that one boot can serve, and the module.
#[derive(Clone, Copy)]
struct Place {
    module: Module,
    vcpus: u32,
    vmbus: Version,
}

impl Place {
    fn label(&self) -> String {
        let (major, minor) = self.vmbus;
        format!(
            "[{}, {} vcpu, vmbus {major}.{minor}]",
            self.module.name(),
            self.vcpus
        )
    }

    fn file(&self, scenario: &str, flavour: &str) -> PathBuf {
        let (major, minor) = self.vmbus;
        let name = format!(
            "{scenario}-{}-{flavour}-{}cpu-{major}.{minor}",
            self.module.name(),
            self.vcpus
        );
        build_folder().join("results").join(name)
    }
}

/// Runs all scenarios that the options select; the exit status says whether all of them passed.
pub fn check(scenarios: &[&'static Scenario], options: &Options) -> ExitCode {
    let start = Instant::now();
    let mut report = Report::resumed();
    for _ in 0..options.repeat {
        for (row, &vcpus) in options.vcpus.iter().enumerate() {
            for (column, &vmbus) in options.versions.iter().enumerate() {
                // The diagonal has each value once. What does not depend on them runs in its first place only.
                let first = (row, column) == (0, 0);
                let whole = options.full || (options.whole && first);
                if options.full || row == column {
                    Group::run(scenarios, options, vcpus, vmbus, whole, &mut report);
                }
            }
        }
    }
    match report.end(start) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Runs the scenarios that the table of faults names for the options' kernel, with both modules, and writes the table.
pub fn check_faults(scenarios: &[&'static Scenario], options: Options) -> ExitCode {
    let kernel = KERNELS
        .into_iter()
        .find(|(flavour, ..)| *flavour == options.flavour);
    let Some((_, vcpus)) = kernel else {
        println!("# the table of faults is not from {}", options.flavour);
        return ExitCode::FAILURE;
    };
    let options = Options {
        faults: true,
        vcpus: vec![vcpus],
        versions: vec![(6, 0)],
        ..options
    };
    // None of a former run is told.
    for (scenario, place) in options.jobs(scenarios, vcpus, (6, 0), true) {
        let file = place.file(scenario.name(), &options.flavour);
        let _ = std::fs::remove_file(with_suffix(&file, VERDICT));
    }
    let status = check(scenarios, &options);
    let document = faults::document(last_verdict);
    let file = build_folder().join("results/faults.rst");
    match std::fs::write(&file, document) {
        Ok(()) => status,
        Err(error) => {
            println!("# {}: {error}", shown(&file));
            ExitCode::FAILURE
        }
    }
}

/// The suffix of files with verdicts.
const VERDICT: &str = "verdict";

/// A result in one line of the documentation.
fn verdict(result: &Result<()>) -> String {
    let Err(error) = result else {
        return faults::PASSES.to_owned();
    };
    if let Some(reason) = skip_reason(error) {
        return format!("skipped: {reason}");
    }
    let mut lines = error.0.lines();
    let first = lines.next().unwrap_or_default();
    let mut what = said(first).unwrap_or_else(|| first.to_owned());
    if let Some(said) = lines.find_map(said) {
        what.push_str(&format!("; {said}"));
    }
    format!("fails: ``{}``", what.replace('`', "'"))
}

/// What a log says, if that is what the line is about, without level and time: these are others each time.
fn said(line: &str) -> Option<String> {
    let (log, said) = line.split_once(" says: ")?;
    let said = said.split_once("] ").map_or(said, |(_, said)| said);
    let said = said.trim_start_matches(|c| "<0123456789>".contains(c));
    Some(format!("{log} says: {said}"))
}

/// What a scenario came to when it ran last, on the kernel that the table has it on.
fn last_verdict(scenario: &str, module: Module, kernel: Kernel) -> Option<String> {
    if module == Module::C && scenario.starts_with("fcopy_") {
        return Some("has no such device".to_owned());
    }
    let (flavour, vcpus) = KERNELS[kernel as usize];
    let place = Place {
        module,
        vcpus,
        vmbus: (6, 0),
    };
    std::fs::read_to_string(with_suffix(&place.file(scenario, flavour), VERDICT)).ok()
}

/// What went wrong in a run that says nothing about the module.
struct Breakdown(String);

/// A guest that scenarios share.
struct Shared {
    /// Which: see [`Group::key`].
    key: &'static str,
    guest: Guest,
    /// Right after the boot; not taken for a guest that serves one scenario.
    snapshot: Option<Snapshot>,
    /// Whether it can serve the next scenario as it is.
    usable: bool,
}

/// The scenarios that one kind of machine serves.
struct Group<'a> {
    options: &'a Options,
    config: Config,
    shared: Option<Shared>,
    report: &'a mut Report,
    transcripts: BTreeMap<(&'static str, bool), String>,
}

impl<'a> Group<'a> {
    fn run(
        scenarios: &[&'static Scenario],
        options: &'a Options,
        vcpus: u32,
        vmbus: Version,
        whole: bool,
        report: &'a mut Report,
    ) {
        let config = Config {
            vcpus,
            vmbus_max: vmbus,
            ..options.config()
        };
        let mut group = Self {
            options,
            config,
            shared: None,
            report,
            transcripts: BTreeMap::new(),
        };
        let mut jobs = options.jobs(scenarios, vcpus, vmbus, whole);
        while let Some((scenario, place)) = jobs.pop_front() {
            if group.report.was_done() {
                continue;
            }
            let more = jobs
                .iter()
                .any(|(next, _)| Self::key(next) == Self::key(scenario));
            group.one(scenario, place, more);
            if jobs
                .front()
                .is_none_or(|(next, _)| next.name() != scenario.name())
            {
                group.compare(scenario, vcpus, vmbus);
                group.report.settle();
            }
        }
    }

    /// Scenarios with the same key can have the same guest.
    fn key(scenario: &Scenario) -> &'static str {
        scenario
            .other_machine()
            .map_or("shared", |machine| machine.name)
    }

    /// A guest for the scenario: the one there is, as it is or from its snapshot, or a new one. `more` says whether
    /// others will want the same.
    fn guest(&mut self, scenario: &Scenario, more: bool) -> Result<Shared> {
        let key = Self::key(scenario);
        if let Some(mut shared) = self.shared.take().filter(|shared| shared.key == key) {
            if shared.usable {
                return Ok(shared);
            }
            if let Some(snapshot) = &shared.snapshot {
                match shared.guest.restore(snapshot) {
                    Ok(()) => return Ok(shared),
                    Err(error) => println!("# cannot go on from the snapshot: {error}"),
                }
            }
        }
        let mut config = self.config.clone();
        if let Some(machine) = scenario.other_machine() {
            (machine.change)(&mut config);
        }
        self.report.booted();
        let mut guest = Guest::boot(&config)?;
        println!("# booted in {:.1} s", guest.boot_time().as_secs_f64());
        let snapshot = match more {
            true => Some(guest.save()?),
            false => None,
        };
        Ok(Shared {
            key,
            guest,
            snapshot,
            usable: true,
        })
    }

    /// Where C's result is kept, if it is: see [`Options::peer`].
    fn kept(&self, scenario: &Scenario, place: Place) -> Option<PathBuf> {
        let keeps = place.module == Module::C && self.options.peer.is_some();
        keeps.then(|| with_suffix(&place.file(scenario.name(), &self.options.flavour), "kept"))
    }

    /// Takes C's result from a former run, if that passed with all as it is now.
    fn take_kept(&mut self, scenario: &'static Scenario, place: Place) -> bool {
        let Some(text) = self
            .kept(scenario, place)
            .and_then(|file| std::fs::read_to_string(file).ok())
        else {
            return false;
        };
        let Some((peer, said)) = text.split_once('\n') else {
            return false;
        };
        if Some(peer) != self.options.peer.as_deref() {
            return false;
        }
        self.transcripts
            .insert((scenario.name(), false), said.to_owned());
        self.report.kept(scenario.name(), &place.label());
        true
    }

    /// Keeps what C's run gave.
    fn keep(&self, scenario: &Scenario, place: Place) -> Result<()> {
        let (Some(file), Some(peer)) = (self.kept(scenario, place), &self.options.peer) else {
            return Ok(());
        };
        let said = self.transcripts.get(&(scenario.name(), false));
        let said = said.map_or("", String::as_str);
        Ok(std::fs::write(file, format!("{peer}\n{said}"))?)
    }

    /// Runs a scenario; once more if it failed because the emulation of processors did, about which it says nothing.
    fn one(&mut self, scenario: &'static Scenario, place: Place, more: bool) {
        if self.take_kept(scenario, place) {
            return;
        }
        let result = self.report.begins(scenario.name());
        if result.is_err() {
            return self.judge(scenario, place, &result);
        }
        while let Err(Breakdown(what)) = self.attempt(scenario, place, more) {
            if !self.report.broke(scenario.name()) {
                let result = Err(Error(format!("for the second time: {what}")));
                return self.judge(scenario, place, &result);
            }
            println!("# {what}: {} runs again", scenario.name());
        }
    }

    /// Runs a scenario once, and reports how it went.
    fn attempt(
        &mut self,
        scenario: &'static Scenario,
        place: Place,
        more: bool,
    ) -> std::result::Result<(), Breakdown> {
        let label = place.label();
        if scenario.needs_daemons() && !self.options.daemons().exists() {
            let reason = format!("there is no {}", shown(&self.options.daemons()));
            self.report
                .line(scenario.name(), &label, &Err(skip(&reason)));
            return Ok(());
        }
        let mut shared = match self.guest(scenario, more) {
            Ok(shared) => shared,
            Err(error) => {
                let result = Err(Error(format!("cannot boot: {error}")));
                self.report.line(scenario.name(), &label, &result);
                return Ok(());
            }
        };
        let guest = &shared.guest;
        let file = place.file(scenario.name(), &self.options.flavour);
        let from = guest.transcript_length();
        let console_from = guest.console().len();
        let Ran {
            mut result,
            is_conclusive,
        } = run_scenario(scenario, guest, place.module);
        let failed = is_failure(&result);
        let console = guest.console();
        // The console begins anew with each boot.
        let since = console.get(console_from..).unwrap_or(&console);
        let breakdown = match guest.exit() {
            Some(exit) if failed && !is_conclusive => report::breakdown(&exit, since),
            _ => None,
        };
        let saved = guest.save_transcript(&with_suffix(&file, "transcript"), from);
        let written = std::fs::write(with_suffix(&file, "console"), &console).map_err(Error::from);
        if let (Ok(()), Err(error)) = (&result, saved.and(written)) {
            result = Err(error);
        }
        match &mut result {
            Ok(()) => {
                let key = (scenario.name(), place.module == Module::Rust);
                let said = guest.normalised_transcript(from);
                self.transcripts.insert(key, said);
            }
            Err(error) if skip_reason(error).is_some() => {}
            Err(error) => error
                .0
                .push_str(&format!("\nsee {}.transcript and .console", shown(&file))),
        }
        if result.is_ok() {
            result = self.keep(scenario, place);
        }
        shared.usable = !failed && !scenario.is_last();
        self.shared = Some(shared);
        if let (Some(what), Err(error)) = (breakdown, &result) {
            println!("# {}", error.0.replace('\n', "\n# "));
            return Err(Breakdown(what));
        }
        self.judge(scenario, place, &result);
        Ok(())
    }

    /// Reports a result, and keeps it for the table of faults. Where that is all that C runs for, it may fail.
    fn judge(&mut self, scenario: &Scenario, place: Place, result: &Result<()>) {
        let verdict = verdict(result);
        let file = place.file(scenario.name(), &self.options.flavour);
        if let Err(error) = std::fs::write(with_suffix(&file, VERDICT), &verdict) {
            println!("# {}: {error}", shown(&file));
        }
        match (self.options.faults, place.module) {
            (true, Module::C) => {
                println!("# {} with C: {verdict}", scenario.name());
                self.report.begin_timing();
            }
            _ => self.report.line(scenario.name(), &place.label(), result),
        }
    }

    /// Compares what was said with both modules, if both have run.
    fn compare(&mut self, scenario: &Scenario, vcpus: u32, vmbus: Version) {
        let [rust, c] = [true, false].map(|rust| self.transcripts.remove(&(scenario.name(), rust)));
        let (Some(rust), Some(c)) = (rust, c) else {
            return;
        };
        if scenario.is_by_chance() || self.options.faults {
            return;
        }
        let result = compare::compare(scenario, &rust, &c);
        for reason in result.iter().flatten() {
            println!("# {}: the modules differ: {reason}", scenario.name());
        }
        let (major, minor) = vmbus;
        let label = format!("[rust and c say the same, {vcpus} vcpu, vmbus {major}.{minor}]");
        let result = result.map(|_| ()).map_err(Error);
        self.report.line(scenario.name(), &label, &result);
    }
}

/// The file with `.suffix` added to its name (which has dots of its own).
fn with_suffix(file: &std::path::Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The path below the project, which is what a reader has.
fn shown(path: &std::path::Path) -> String {
    let build = build_folder();
    let below = path.strip_prefix(&build).unwrap_or(path);
    format!("build/{}", below.display())
}

/// An error if there are packets of the guest's that nobody took.
fn nothing_left(guest: &Guest) -> Result<()> {
    let mut services = guest.config().services.iter();
    services.try_for_each(|&service| guest.channel(service).expect_nothing_left())
}

/// A result, unless it is no failure and `other` is one.
fn and_also(result: Result<()>, other: Result<()>) -> Result<()> {
    match other {
        Err(error) if !is_failure(&result) => Err(error),
        _ => result,
    }
}

fn is_failure(result: &Result<()>) -> bool {
    matches!(result, Err(error) if skip_reason(error).is_none())
}

/// Adds a line to what went wrong, or has it be that.
fn and_said(result: Result<()>, who: &str, line: Option<&str>) -> Result<()> {
    match (result, line) {
        (result, None) => result,
        (Err(error), Some(line)) if skip_reason(&error).is_none() => {
            Err(Error(format!("{error}\n{who} says: {line}")))
        }
        (_, Some(line)) => Err(Error(format!("{who} says: {line}"))),
    }
}

/// Prepares the guest for a scenario.
fn prepare(scenario: &Scenario, context: &Context<'_>) -> Result<()> {
    for &service in &context.config().services {
        let channel = context.channel(service);
        channel.reset()?;
        let daemons = scenario.needs_daemons() && daemon::SERVICES.contains(&service);
        if daemons || scenario.scripted_services().contains(&service) {
            channel.script()?;
        }
    }
    context.note(&format!(
        "{} with {}",
        scenario.name(),
        context.module().name()
    ));
    if scenario.needs_daemons() {
        daemon::prepare(context)?;
    }
    context.clear_kernel_log()?;
    if scenario.starts_unloaded() {
        return Ok(());
    }
    context.load()?;
    for &service in &context.config().services {
        // In C, file copy has moved to a daemon over uio; the echo is the sample's.
        if service != Service::Echo && (service, context.module()) != (Service::FCopy, Module::C) {
            context.channel(service).wait_open()?;
        }
    }
    Ok(())
}

/// What a scenario came to.
struct Ran {
    result: Result<()>,
    /// It failed while the guest ran: whatever became of the guest afterwards, that is the result.
    is_conclusive: bool,
}

/// Prepares the guest, runs the scenario, and looks at what it left behind.
fn run_scenario(scenario: &Scenario, guest: &Guest, module: Module) -> Ran {
    let context = Context::new(guest, module);
    let console = guest.console().len();
    let mut result = prepare(scenario, &context).and_then(|()| scenario.run(&context));
    let is_conclusive = is_failure(&result) && guest.exit().is_none();
    if scenario.needs_daemons() && guest.exit().is_none() {
        if let Err(error) = &mut result {
            error.0.push_str(&daemon::said(guest));
        }
        result = and_also(result, daemon::end(guest));
    }
    let result = match guest.exit() {
        Some(exit) => stopped(scenario, guest, &exit, console, result),
        None => clean(scenario, &context, console, result),
    };
    Ran {
        result,
        is_conclusive,
    }
}

/// The result of a scenario that has ended the guest. Bytes of the console before `from` are of earlier scenarios.
fn stopped(
    scenario: &Scenario,
    guest: &Guest,
    exit: &Exit,
    from: usize,
    result: Result<()>,
) -> Result<()> {
    let expected = |line: &&str| {
        let mut texts = scenario.expected_log().iter();
        texts.any(|text| line.contains(text))
    };
    let console = guest.console();
    // The console begins anew with each boot.
    let since = console.get(from..).unwrap_or(&console);
    let mut splats = since.lines().filter(|line| log::is_splat(line));
    let result = match scenario.is_last() || *exit == Exit::Stopped {
        true => result,
        false => and_also(result, Err(Error(format!("the machine stopped: {exit:?}")))),
    };
    and_said(result, "the console", splats.find(|line| !expected(line)))
}

/// Removes the module, and looks at what is left: `result`, or what is wrong.
fn clean(
    scenario: &Scenario,
    context: &Context<'_>,
    console: usize,
    result: Result<()>,
) -> Result<()> {
    let result = match is_failure(&result) || scenario.is_last() {
        true => result,
        // All channels are closed then: whatever the guest had to say is in the rings.
        false => and_also(
            result,
            context.unload().and_then(|()| nothing_left(context)),
        ),
    };
    match context.sh_ok("dmesg -r") {
        // What is in the log is often the reason.
        Ok(log) => {
            let bad = log::first_bad_line(&log, scenario.expected_log());
            and_said(result, "the kernel's log", bad)
        }
        // Where nothing can be asked any more, its beginning is on the console.
        Err(error) => {
            let said = context.console();
            let mut said = said.get(console..).unwrap_or_default().lines();
            let splat = said.find(|line| log::is_splat(line));
            and_said(and_also(result, Err(error)), "the console", splat)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The options of a run of `make check`, as in `tests/check.sh`.
    fn options(texts: &[(&str, &str)]) -> Options {
        let mut options = Options::default();
        for (name, value) in texts {
            options.set(name, value).unwrap();
        }
        options
    }

    #[test]
    fn each_scenario_runs_in_make_check() {
        let runs = [
            options(&[("--flavour", FLAVOUR), ("--vcpus", "1"), ("--vmbus", "6.0")]),
            options(&[
                ("--flavour", FLAVOUR),
                ("--whole", "no"),
                ("--vcpus", "2"),
                ("--vmbus", "4.0"),
            ]),
            options(&[
                ("--flavour", DEBUG),
                ("--whole", "no"),
                ("--module", "rust"),
                ("--vcpus", "2"),
                ("--vmbus", "6.0"),
            ]),
            options(&[
                ("--flavour", FLAVOUR),
                ("--time", "emulated"),
                ("--vcpus", "1"),
                ("--vmbus", "6.0"),
            ]),
        ];
        let all = crate::all();
        let run: Vec<&str> = runs
            .iter()
            .flat_map(|run| run.jobs(&all, run.vcpus[0], run.versions[0], run.whole))
            .filter(|(_, place)| place.module == Module::Rust)
            .map(|(scenario, _)| scenario.name())
            .collect();
        let idle = all
            .iter()
            .filter(|scenario| !scenario.is_apart() && !run.contains(&scenario.name()));
        let idle: Vec<&str> = idle.map(|scenario| scenario.name()).collect();
        assert_eq!(idle, [""; 0]);
    }

    #[test]
    fn a_skip_hides_nothing() {
        let skipped = || Err(skip("why"));
        let failed = || Err(Error("it failed".to_owned()));
        assert!(!is_failure(&and_also(skipped(), Ok(()))));
        assert!(is_failure(&and_also(skipped(), failed())));
        assert!(is_failure(&and_said(skipped(), "the log", Some("BUG:"))));
        assert!(is_failure(&and_said(Ok(()), "the log", Some("BUG:"))));
        let both = and_said(failed(), "the log", Some("BUG:")).unwrap_err();
        assert_eq!(both.0, "it failed\nthe log says: BUG:");
    }
}
