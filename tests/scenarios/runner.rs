// SPDX-License-Identifier: GPL-2.0

//! Runs scenarios. Boots as few guests as possible, prints a line for each result, and writes the transcripts.

mod attempt;
mod explain;
mod group;
mod options;
mod place;
mod verdict;

use std::process::ExitCode;
use std::time::Instant;

use host::guest::Module;
use host::images::build_folder;

use self::group::Group;
use self::options::patched;
use self::options::DEBUG;
use self::options::FLAVOUR;
use self::place::shown;
use self::place::with_suffix;
use self::place::Place;
use crate::faults;
use crate::faults::Kernel;
use crate::report::Report;
use crate::scenario::Scenario;

pub use self::explain::explain;
pub use self::options::Options;

/// The kernels of the table of faults, each with its number of processors.
const KERNELS: [(&str, u32); 2] = [(FLAVOUR, 1), (DEBUG, 2)];

/// The suffix of files with verdicts.
const VERDICT: &str = "verdict";

/// Runs all scenarios that the options select. Returns success if all of them passed.
pub fn check(scenarios: &[&'static Scenario], options: &Options) -> ExitCode {
    let start = Instant::now();
    let mut report = Report::resumed();
    for _ in 0..options.repeat {
        for (row, &vcpus) in options.vcpus.iter().enumerate() {
            for (column, &vmbus) in options.versions.iter().enumerate() {
                // The diagonal has each value once. Scenarios that depend on neither value run in its first place only.
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
pub fn check_faults(scenarios: &[&'static Scenario], mut options: Options) -> ExitCode {
    options.faults = true;
    check_table(scenarios, options, "faults.rst", || {
        faults::document(last_verdict)
    })
}

/// Runs the scenarios that a patch for mainline lets C pass, with C alone, stock or patched. Writes the table of the
/// patches.
pub fn check_mainline(scenarios: &[&'static Scenario], mut options: Options) -> ExitCode {
    options.for_mainline();
    check_table(scenarios, options, "mainline.txt", || {
        faults::patches(|scenario, kernel, is_patched| {
            let (flavour, vcpus) = KERNELS[kernel as usize];
            match is_patched {
                true => verdict_of(scenario, Module::C, &patched(flavour), vcpus),
                false => verdict_of(scenario, Module::C, flavour, vcpus),
            }
        })
    })
}

/// Runs the scenarios that the options select, with the processors of [`KERNELS`], and writes `document` to `name`.
fn check_table(
    scenarios: &[&'static Scenario],
    mut options: Options,
    name: &str,
    document: impl Fn() -> String,
) -> ExitCode {
    let Some(vcpus) = options.for_table() else {
        println!("# the table of faults is not from {}", options.flavour);
        return ExitCode::FAILURE;
    };
    // Remove the verdicts of former runs.
    for (scenario, place) in options.jobs(scenarios, vcpus, (6, 0), true) {
        let file = place.file(scenario.name(), &options.kernel());
        let _ = std::fs::remove_file(with_suffix(&file, VERDICT));
    }
    let status = check(scenarios, &options);
    let file = build_folder().join("results").join(name);
    match std::fs::write(&file, document()) {
        Ok(()) => status,
        Err(error) => {
            println!("# {}: {error}", shown(&file));
            ExitCode::FAILURE
        }
    }
}

/// The verdict of a scenario's last run, on the kernel that the table of faults names.
fn last_verdict(scenario: &str, module: Module, kernel: Kernel) -> Option<String> {
    if module == Module::C && scenario.starts_with("fcopy_") {
        return Some("has no such device".to_owned());
    }
    let (flavour, vcpus) = KERNELS[kernel as usize];
    verdict_of(scenario, module, flavour, vcpus)
}

/// The verdict of a scenario's last run on `kernel`, which is a name of [`Options::kernel`].
fn verdict_of(scenario: &str, module: Module, kernel: &str, vcpus: u32) -> Option<String> {
    let place = Place {
        module,
        vcpus,
        vmbus: (6, 0),
    };
    std::fs::read_to_string(with_suffix(&place.file(scenario, kernel), VERDICT)).ok()
}
