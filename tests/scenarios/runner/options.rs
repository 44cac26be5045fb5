// SPDX-License-Identifier: GPL-2.0

//! What the command line says, and what is to be run by that.

use std::collections::VecDeque;
use std::path::PathBuf;

use host::guest::Module;
use host::images;
use host::images::build_folder;
use host::machine::Config;
use host::service::Version;

use super::place::Place;
use crate::daemon;
use crate::faults;
use crate::faults::Kernel;
use crate::scenario::Runs;
use crate::scenario::Scenario;

/// The kernel that most guests have.
pub(super) const FLAVOUR: &str = "amd64";

/// The one that looks for faults.
pub(super) const DEBUG: &str = "debug";

/// What the command line says.
pub struct Options {
    /// Only scenarios with this in their line.
    pub filter: String,
    /// The kernel.
    pub flavour: String,
    modules: Vec<Module>,
    pub(super) vcpus: Vec<u32>,
    pub(super) versions: Vec<Version>,
    /// Everything with everything, instead of what differs from it once.
    pub(super) full: bool,
    /// Also what does not depend on the place.
    pub(super) whole: bool,
    /// What waits, where waiting takes no time; else what does not wait.
    emulated: bool,
    pub(super) repeat: u32,
    /// Stands for all that C's results depend on: those that a former run got with the same are kept.
    pub(super) peer: Option<String>,
    /// What the table of faults names, with both modules; C may fail.
    pub(super) faults: bool,
    /// With C, what is not for it.
    control: bool,
    /// What the patches for mainline's C driver are about, with that.
    pub(super) mainline: bool,
    /// The initramfs with C's patched module, which takes the place of the kernel's own.
    pub(super) patched: Option<PathBuf>,
}

/// What the files of results call a kernel on which C's module is the patched one.
pub(super) fn patched(flavour: &str) -> String {
    format!("{flavour}-patched")
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
            mainline: false,
            patched: None,
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
            "--patched" => self.patched = Some(value.into()),
            "--peer" => self.peer = Some(value.to_owned()),
            "--repeat" => self.repeat = value.parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// The kernel, as the files of results call it: those of the patched module are others.
    pub(super) fn kernel(&self) -> String {
        match self.patched {
            Some(_) => patched(&self.flavour),
            None => self.flavour.clone(),
        }
    }

    /// Whether guest time counts instructions, and waiting takes none.
    pub fn is_emulated(&self) -> bool {
        self.emulated
    }

    /// What is to be run here. What leaves the guest usable comes first, then what ends it, then what has a machine of
    /// its own.
    pub(super) fn jobs(
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
        let any_time = self.faults || self.control || self.mainline;
        let asked_for = self.full || any_time || !self.filter.is_empty();
        // What the kernels and places differ in does not matter to the others.
        let is_usual = match self.flavour.as_str() {
            DEBUG => whole,
            FLAVOUR => true,
            _ => self.full,
        };
        sorted.retain(|scenario| match scenario.place() {
            Runs::Apart => scenario.name() == self.filter,
            Runs::Waits => whole && (self.emulated || any_time),
            _ if self.emulated && !any_time => false,
            Runs::DebugKernel => debug,
            _ if scenario.other_machine().is_some() => whole && is_usual,
            Runs::Once => whole && is_usual,
            Runs::Versions => is_usual,
            Runs::Race => is_usual && (vcpus > 1 || asked_for),
            Runs::Everywhere => true,
        });
        let kernel = if debug { Kernel::Debug } else { Kernel::Stock };
        sorted.retain(|scenario| !self.faults || faults::names(scenario.name(), kernel));
        // What the stock kernel shows, the patched module passes on the other one as well.
        let fixed = |name, on| faults::patch(name, on).is_some();
        let also = debug && self.patched.is_some();
        sorted.retain(|scenario| {
            !self.mainline
                || fixed(scenario.name(), kernel)
                || (also && fixed(scenario.name(), Kernel::Stock))
        });
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
            let for_module = match (self.faults || self.mainline, self.control) {
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
        // What comes later replaces files of the same name.
        config.initrds.extend(self.patched.clone());
        config.services.extend(daemon::SERVICES);
        if self.flavour == DEBUG {
            // What looks for faults has notes to take.
            config.memory *= 2;
            config.command_line = "kunit.autorun=0".to_owned();
        }
        config
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
            .filter(|scenario| scenario.place() != Runs::Apart && !run.contains(&scenario.name()));
        let idle: Vec<&str> = idle.map(|scenario| scenario.name()).collect();
        assert_eq!(idle, [""; 0]);
    }
}
