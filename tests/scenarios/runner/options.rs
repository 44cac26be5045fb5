// SPDX-License-Identifier: GPL-2.0

//! The options of the command line, and the scenarios that they select.

use std::collections::VecDeque;
use std::path::PathBuf;

use host::guest::Module;
use host::images;
use host::images::build_folder;
use host::machine::Config;
use host::service::Version;

use super::place::Place;
use super::KERNELS;
use crate::daemon;
use crate::faults;
use crate::faults::Kernel;
use crate::scenario::Runs;
use crate::scenario::Scenario;

/// The stock kernel that most guests run.
pub(super) const FLAVOUR: &str = "amd64";

/// The debug kernel.
pub(super) const DEBUG: &str = "debug";

/// The kernel with the patches of `make series`. It has this project's driver built in.
const SERIES: &str = "series";

/// The options of the command line.
pub struct Options {
    /// Selects the scenarios whose name, label or flavour contains this text.
    pub filter: String,
    /// The kernel: a folder of `build/kernel`.
    pub flavour: String,
    modules: Vec<Module>,
    pub(super) vcpus: Vec<u32>,
    pub(super) versions: Vec<Version>,
    /// Runs all scenarios in all configurations.
    pub(super) full: bool,
    /// Also runs C, and scenarios that depend on neither processors nor VMBus version.
    pub(super) whole: bool,
    /// Runs only the scenarios that wait for minutes, in emulated time. If false, runs the others.
    emulated: bool,
    /// Runs only the scenarios of `make check-more`.
    more: bool,
    pub(super) repeat: u32,
    /// Stands for all that C's results depend on. Results of a former run with the same key are kept.
    pub(super) peer: Option<String>,
    /// Runs the scenarios of the table of faults, with both modules. C may fail.
    pub(super) faults: bool,
    /// Runs the scenarios that are not for C, with C.
    control: bool,
    /// Runs the scenarios that a patch for mainline lets C pass, with C.
    pub(super) mainline: bool,
    /// The initramfs with C's patched module, which replaces the kernel's module.
    pub(super) patched: Option<PathBuf>,
}

/// The name of a kernel with C's patched module, in the names of result files.
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
            more: false,
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
    /// Sets an option of the command line. An error names the option and the value.
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
            "--more" => self.more = value == "yes",
            "--control" => self.control = value == "yes",
            "--patched" => self.patched = Some(value.into()),
            "--peer" => self.peer = Some(value.to_owned()),
            "--repeat" => self.repeat = value.parse().map_err(|_| wrong())?,
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Selects the scenarios of the table of patches, with C.
    pub(super) fn for_mainline(&mut self) {
        self.mainline = true;
        self.modules = vec![Module::C];
    }

    /// Selects the processors and the VMBus version of the tables of faults and patches. Returns the number of
    /// processors; `None` if the tables do not have the kernel.
    pub(super) fn for_table(&mut self) -> Option<u32> {
        let (_, vcpus) = KERNELS
            .into_iter()
            .find(|(flavour, ..)| *flavour == self.flavour)?;
        self.vcpus = vec![vcpus];
        self.versions = vec![(6, 0)];
        Some(vcpus)
    }

    /// The name of the kernel in the names of result files. It says whether C's module is patched.
    pub(super) fn kernel(&self) -> String {
        match self.patched {
            Some(_) => patched(&self.flavour),
            None => self.flavour.clone(),
        }
    }

    /// Whether time is emulated: it counts instructions, and skips idle time.
    pub fn is_emulated(&self) -> bool {
        self.emulated
    }

    /// The scenarios to run, with their places. First those that leave the guest usable, then those that end it, then
    /// those with a machine of their own.
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
        // Whether scenarios other than `Everywhere` run on this kernel.
        let is_usual = match self.flavour.as_str() {
            DEBUG => whole,
            FLAVOUR | SERIES => true,
            _ => self.full,
        };
        let built_in = self.flavour == SERIES;
        sorted.retain(|scenario| match scenario.place() {
            Runs::Apart => scenario.name() == self.filter,
            Runs::More => {
                whole && is_usual && !self.emulated && (self.more || scenario.name() == self.filter)
            }
            _ if self.more => false,
            Runs::Waits => whole && (self.emulated || any_time),
            _ if self.emulated && !any_time => false,
            _ if built_in && scenario.starts_unloaded() => false,
            Runs::DebugKernel => debug || (built_in && scenario.name() == "kunit"),
            _ if scenario.other_machine().is_some() => whole && is_usual,
            Runs::Once => whole && is_usual,
            Runs::Versions => is_usual,
            Runs::Race => is_usual && (vcpus > 1 || asked_for),
            Runs::Everywhere => true,
        });
        let kernel = if debug { Kernel::Debug } else { Kernel::Stock };
        sorted.retain(|scenario| !self.faults || faults::names(scenario.name(), kernel));
        // On the debug kernel, the patched module also runs the scenarios that show their fault on the stock kernel.
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
            // C's file copy has no character device any more.
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

    /// The machine for this kernel, with all services. Its initramfs has both modules, and the daemons if available.
    pub fn config(&self) -> Config {
        let mut config = Config {
            kernel: images::kernel(&self.flavour),
            initrds: images::initrds(&self.flavour),
            ..Config::default()
        };
        config
            .initrds
            .extend(Some(self.daemons()).filter(|image| image.exists()));
        // A later image replaces files of the same name.
        config.initrds.extend(self.patched.clone());
        config.services.extend(daemon::SERVICES);
        if self.flavour == DEBUG {
            // The debug kernel needs memory for its bookkeeping.
            config.memory *= 2;
            config.command_line = "kunit.autorun=0".to_owned();
        }
        if self.flavour == SERIES {
            config.built_in = true;
            let parameters = Module::Rust.parameters();
            config.command_line = format!("kunit.autorun=0 hv_utils.{parameters}");
        }
        config
    }
}
