// SPDX-License-Identifier: GPL-2.0

//! Scenarios with the same processors and VMBus version. They share guests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use host::guest::Error;
use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::machine::Config;
use host::service::Version;
use host::snapshot::Snapshot;

use super::attempt::run_scenario;
use super::attempt::wait_open;
use super::attempt::Ran;
use super::options::Options;
use super::place::shown;
use super::place::with_suffix;
use super::place::Place;
use super::verdict::is_failure;
use super::verdict::verdict;
use super::VERDICT;
use crate::compare;
use crate::report;
use crate::report::Report;
use crate::scenario::skip;
use crate::scenario::skip_reason;
use crate::scenario::Scenario;

/// The emulation of processors failed: the run says nothing about the module.
struct Breakdown(String);

/// A guest that scenarios share.
struct Shared {
    /// See [`Group::key`].
    key: &'static str,
    guest: Guest,
    /// Taken right after the boot. `None` for a guest of a single scenario.
    snapshot: Option<Snapshot>,
    /// Whether the next scenario can use the guest as it is.
    usable: bool,
}

/// The scenarios with the same processors and VMBus version.
pub(super) struct Group<'a> {
    options: &'a Options,
    config: Config,
    shared: Option<Shared>,
    report: &'a mut Report,
    transcripts: BTreeMap<(&'static str, bool), String>,
}

impl<'a> Group<'a> {
    /// Runs the scenarios that the options select for `vcpus` and `vmbus`.
    pub(super) fn run(
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

    /// Scenarios with the same key can share a guest.
    fn key(scenario: &Scenario) -> &'static str {
        scenario
            .other_machine()
            .map_or("shared", |machine| machine.name)
    }

    /// A guest for the scenario: the current guest as it is, the current guest restored from its snapshot, or a new
    /// guest. `more` is true if further scenarios will use the guest.
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
        if config.built_in {
            // The driver has bound to its devices during the boot. Scenarios begin without it, as without a module.
            wait_open(&guest, Module::Rust)?;
            guest.rmmod()?;
        }
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

    /// The file that keeps C's result. `None` unless results are kept: see [`Options::peer`].
    fn kept(&self, scenario: &Scenario, place: Place) -> Option<PathBuf> {
        let keeps = place.module == Module::C && self.options.peer.is_some();
        keeps.then(|| with_suffix(&place.file(scenario.name(), &self.options.kernel()), "kept"))
    }

    /// Takes C's result from a former run that passed with the same [`Options::peer`]. Returns false if there is none.
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

    /// Keeps the transcript of C's run for later runs.
    fn keep(&self, scenario: &Scenario, place: Place) -> Result<()> {
        let (Some(file), Some(peer)) = (self.kept(scenario, place), &self.options.peer) else {
            return Ok(());
        };
        let said = self.transcripts.get(&(scenario.name(), false));
        let said = said.map_or("", String::as_str);
        Ok(std::fs::write(file, format!("{peer}\n{said}"))?)
    }

    /// Runs a scenario, and reports its result. Runs the scenario once more if the emulation of processors broke down, or
    /// if the C module failed: its faults that show by chance say nothing about this module.
    fn one(&mut self, scenario: &'static Scenario, place: Place, more: bool) {
        if self.take_kept(scenario, place) {
            return;
        }
        let result = self.report.begins(scenario.name());
        if result.is_err() {
            return self.judge(scenario, place, &result);
        }
        let mut has_failed = !self.is_control(place);
        loop {
            match self.attempt(scenario, place, more) {
                Ok(Err(error)) if !has_failed && skip_reason(&error).is_none() => {
                    println!("# {}", error.0.replace('\n', "\n# "));
                    println!("# the C module failed: {} runs again", scenario.name());
                    has_failed = true;
                }
                Ok(result) => return self.judge(scenario, place, &result),
                Err(Breakdown(what)) if self.report.broke(scenario.name()) => {
                    println!("# {what}: {} runs again", scenario.name());
                }
                Err(Breakdown(what)) => {
                    let result = Err(Error(format!("for the second time: {what}")));
                    return self.judge(scenario, place, &result);
                }
            }
        }
    }

    /// Returns whether the C module runs only to show that a scenario is right.
    fn is_control(&self, place: Place) -> bool {
        place.module == Module::C && !self.options.faults && !self.options.mainline
    }

    /// Runs a scenario once. Returns its result, unless the emulation of processors broke down.
    fn attempt(
        &mut self,
        scenario: &'static Scenario,
        place: Place,
        more: bool,
    ) -> std::result::Result<Result<()>, Breakdown> {
        if scenario.needs_daemons() && !self.options.daemons().exists() {
            let reason = format!("there is no {}", shown(&self.options.daemons()));
            return Ok(Err(skip(&reason)));
        }
        let mut shared = match self.guest(scenario, more) {
            Ok(shared) => shared,
            Err(error) => return Ok(Err(Error(format!("cannot boot: {error}")))),
        };
        let guest = &shared.guest;
        let file = place.file(scenario.name(), &self.options.kernel());
        let from = guest.transcript_length();
        let console_from = guest.console().len();
        let Ran {
            mut result,
            is_conclusive,
        } = run_scenario(scenario, guest, place.module);
        let failed = is_failure(&result);
        let console = guest.console();
        // The console is empty at each boot.
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
        Ok(result)
    }

    /// Reports a result, and writes its verdict for the table of faults. If C only runs for the table, a failure is not
    /// reported.
    fn judge(&mut self, scenario: &Scenario, place: Place, result: &Result<()>) {
        let verdict = verdict(result);
        let file = place.file(scenario.name(), &self.options.kernel());
        if let Err(error) = std::fs::write(with_suffix(&file, VERDICT), &verdict) {
            println!("# {}: {error}", shown(&file));
        }
        let stock_for_mainline = self.options.mainline && self.options.patched.is_none();
        match (self.options.faults, place.module) {
            (_, Module::C) if stock_for_mainline => {
                // The stock module has to have the fault that the patch fixes.
                let shown = match is_failure(result) {
                    true => Ok(()),
                    false => Err(Error(format!("the stock module: {verdict}"))),
                };
                println!("# {} with C: {verdict}", scenario.name());
                let label = format!("{} fails without the patches", place.label());
                self.report.line(scenario.name(), &label, &shown);
            }
            (true, Module::C) => {
                println!("# {} with C: {verdict}", scenario.name());
                self.report.begin_timing();
            }
            _ => self.report.line(scenario.name(), &place.label(), result),
        }
    }

    /// Compares the transcripts of both modules, if both have run.
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
