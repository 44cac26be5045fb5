// SPDX-License-Identifier: GPL-2.0

//! `scenarios explain`: where a scenario runs, and why. Asks the code that selects the scenarios of a run.

use std::fmt::Write;

use host::machine::Config;

use super::options::Options;
use crate::scenario::Scenario;

/// The scenarios of a run.
#[derive(Clone, Copy)]
enum Selected {
    /// As the options select.
    All,
    /// Each with a name that begins so, by its whole name.
    Named(&'static str),
    /// The table of faults.
    Faults,
    /// The table of patches for C.
    Mainline,
}

/// A run of scenarios that a target of `make` begins.
struct Run {
    target: &'static str,
    /// The kernel and the options that select scenarios, as the target's script has them.
    options: &'static str,
    selected: Selected,
    why: &'static str,
}

const fn run(target: &'static str, options: &'static str, why: &'static str) -> Run {
    Run {
        target,
        options,
        selected: Selected::All,
        why,
    }
}

impl Run {
    const fn of(mut self, selected: Selected) -> Self {
        self.selected = selected;
        self
    }
}

/// All runs of scenarios.
const RUNS: &[Run] = &[
    run(
        "check",
        "amd64 --vcpus 1 --vmbus 6.0",
        "The stock kernel, with both modules.",
    ),
    run(
        "check",
        "amd64 --whole no --vcpus 2 --vmbus 4.0",
        "The stock kernel with more processors and the oldest VMBus version.",
    ),
    run(
        "check",
        "cloud-amd64 --whole no --vcpus 2 --vmbus 5.3",
        "Debian's cloud kernel, with another VMBus version.",
    ),
    run(
        "check",
        "debug --whole no --module rust --vcpus 2 --vmbus 6.0",
        "The debug kernel, for faults that the stock kernel does not notice.",
    ),
    run(
        "check",
        "amd64 --time emulated --vcpus 1 --vmbus 6.0",
        "Emulated time, for scenarios that wait for minutes.",
    ),
    run(
        "check-more",
        "amd64 --more yes --vcpus 1 --vmbus 6.0",
        "The stock kernel, with both modules: make check has no time for the scenario.",
    ),
    run(
        "check-debug",
        "debug --module rust --vcpus 2 --vmbus 6.0",
        "The debug kernel, for all scenarios of this module.",
    ),
    run(
        "check-debug",
        "debug --time emulated --module rust --vcpus 1 --vmbus 6.0",
        "The debug kernel, for scenarios that wait for minutes.",
    ),
    run(
        "kernels",
        "$1 --module rust --vcpus 2 --vmbus 6.0",
        "Each other kernel of this module. make check runs those that are built.",
    ),
    run(
        "check-series",
        "series --module rust --vcpus 2 --vmbus 6.0",
        "The kernel of make series, with the driver built in.",
    ),
    run(
        "soak",
        "debug --module rust --vcpus 2 --vmbus 6.0",
        "As long as SOAK= says, with new seeds.",
    )
    .of(Selected::Named("fuzz")),
    run(
        "check-systemd",
        "amd64 --module rust --vcpus 2 --vmbus 6.0",
        "Debian with systemd: this target makes the images.",
    )
    .of(Selected::Named("systemd")),
    run(
        "check-packages",
        "cloud-amd64 --module rust --vcpus 2 --vmbus 6.0",
        "Debian with the packages: this target makes the image.",
    )
    .of(Selected::Named("packaged")),
    run(
        "faults",
        "amd64 --time emulated",
        "Documentation/faults.rst has the results of both modules.",
    )
    .of(Selected::Faults),
    run(
        "faults",
        "debug",
        "Documentation/faults.rst has the results of both modules.",
    )
    .of(Selected::Faults),
    run(
        "mainline",
        "amd64 --time emulated",
        "A patch of Documentation/mainline lets C pass: without the patch.",
    )
    .of(Selected::Mainline),
    run(
        "mainline",
        "debug",
        "A patch of Documentation/mainline lets C pass: without the patch.",
    )
    .of(Selected::Mainline),
    run(
        "mainline",
        "amd64 --time emulated --patched $work/c-amd64.cpio",
        "A patch of Documentation/mainline lets C pass: with the patch.",
    )
    .of(Selected::Mainline),
    run(
        "mainline",
        "debug --patched $work/c-debug.cpio",
        "A patch of Documentation/mainline lets C pass: with the patch.",
    )
    .of(Selected::Mainline),
    run(
        "mainline",
        "amd64 --module c --vcpus 1 --vmbus 6.0 --patched $work/c-amd64.cpio",
        "C passes: so does C with the patches.",
    ),
    run(
        "mainline",
        "amd64 --time emulated --module c --vcpus 1 --vmbus 6.0 --patched $work/c-amd64.cpio",
        "C passes: so does C with the patches.",
    ),
];

impl Run {
    /// The program's options; `None` if the target does not name the scenario.
    fn options(&self, scenario: &Scenario) -> Result<Option<Options>, String> {
        let mut options = Options::default();
        let mut words = self.options.split(' ');
        options.set("--flavour", words.next().unwrap_or_default())?;
        while let Some(name) = words.next() {
            options.set(name, words.next().unwrap_or_default())?;
        }
        match self.selected {
            Selected::All => {}
            Selected::Named(start) if scenario.name().starts_with(start) => {
                options.filter = scenario.name().to_owned();
            }
            Selected::Named(_) => return Ok(None),
            Selected::Faults => options.faults = true,
            Selected::Mainline => options.for_mainline(),
        }
        if options.faults || options.mainline {
            options.for_table();
        }
        Ok(Some(options))
    }

    /// The lines about the scenario in this run, if the run has it. `is_asked_for`: the run gets the scenario's whole
    /// name.
    fn line(
        &self,
        scenario: &'static Scenario,
        is_asked_for: bool,
    ) -> Result<Option<String>, String> {
        let Some(mut options) = self.options(scenario)? else {
            return Ok(None);
        };
        let mut target = format!("make {}", self.target);
        if is_asked_for {
            options.filter = scenario.name().to_owned();
            let _ = write!(target, " T={}", scenario.name());
        }
        if target.len() > 20 {
            let _ = write!(target, "\n  {:<20}", "");
        }
        Ok(place(scenario, &options)
            .map(|place| format!("  {target:<20} {place}\n  {:<20} {}\n", "", self.why)))
    }
}

/// The modules, kernel and machine with which these options run the scenario, if they do.
fn place(scenario: &'static Scenario, options: &Options) -> Option<String> {
    let (vcpus, vmbus) = (options.vcpus[0], options.versions[0]);
    let jobs = options.jobs(&[scenario], vcpus, vmbus, options.whole);
    let modules: Vec<&str> = jobs.iter().map(|(_, place)| place.module.name()).collect();
    if modules.is_empty() {
        return None;
    }
    let mut config = Config {
        vcpus,
        vmbus_max: vmbus,
        ..Config::default()
    };
    if let Some(machine) = scenario.other_machine() {
        (machine.change)(&mut config);
    }
    let kernel = match options.flavour.as_str() {
        "$1" => "other kernels",
        flavour => flavour,
    };
    let (major, minor) = config.vmbus_max;
    let processors = match config.vcpus {
        1 => "1 processor".to_owned(),
        count => format!("{count} processors"),
    };
    let time = match options.is_emulated() {
        true => ", emulated time",
        false => "",
    };
    let modules = modules.join(" and ");
    Some(format!(
        "{modules} on {kernel}, {processors}, VMBus {major}.{minor}{time}"
    ))
}

/// Where a scenario runs and why, and the meaning of its flags. The error lists similar names.
pub fn explain(scenarios: &[&'static Scenario], name: &str) -> Result<String, String> {
    let Some(scenario) = scenarios.iter().find(|scenario| scenario.name() == name) else {
        let names = scenarios.iter().map(|scenario| scenario.name());
        let similar: Vec<&str> = names.filter(|other| other.contains(name)).collect();
        return Err(match similar.as_slice() {
            [] => format!("no scenario has {name:?} in its name"),
            similar => format!("no scenario is {name:?}, but: {}", similar.join(", ")),
        });
    };
    let mut text = format!("{name}\n\nFlags\n");
    let flags = scenario.flags();
    if flags.is_empty() {
        text.push_str("  None: the scenario runs once, with each module.\n");
    }
    for (flag, meaning) in flags {
        let _ = writeln!(text, "  {flag}\n      {meaning}");
    }
    let _ = write!(text, "\nGuest\n{}\nRuns\n", guest(scenarios, scenario));
    let heading = text.len();
    for run in RUNS {
        text.push_str(&run.line(scenario, false)?.unwrap_or_default());
    }
    if text.len() == heading {
        for run in RUNS.iter().filter(|run| run.target == "check") {
            text.push_str(&run.line(scenario, true)?.unwrap_or_default());
        }
    }
    Ok(text)
}

/// The guest that the scenario runs in.
fn guest(scenarios: &[&'static Scenario], scenario: &Scenario) -> String {
    let key = |scenario: &Scenario| scenario.other_machine().map(|machine| machine.name);
    let others = scenarios
        .iter()
        .filter(|other| key(other) == key(scenario) && other.name() != scenario.name());
    let others: Vec<&str> = others.map(|other| other.name()).collect();
    let mut text = match (key(scenario), others.as_slice()) {
        (None, _) => "  The shared machine.\n".to_owned(),
        (Some(_), []) => "  A machine of its own.\n".to_owned(),
        (Some(name), others) => format!("  The machine {name:?}, with {}.\n", others.join(", ")),
    };
    text.push_str(match scenario.starts_unloaded() {
        true => "  The module is not inserted.\n",
        false => "  The module has just been inserted, all channels are open, and the kernel's log is empty.\n",
    });
    text.push_str(match scenario.is_last() {
        true => "  The next scenario restores the snapshot of the boot.\n",
        false => "  The runner removes the module afterwards.\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use host::guest::Module;

    use super::*;
    use crate::scenario::Runs;

    const CHECK: &str = include_str!("../../check.sh");
    const MAINLINE: &str = include_str!("../../mainline.sh");
    const KERNELS: &str = include_str!("../../kernels.sh");
    const SERIES: &str = include_str!("../../check-series.sh");
    const MAKEFILE: &str = include_str!("../../../Makefile");

    /// The calls of the program in a script that run scenarios: kernel and options, but for those that select nothing.
    fn calls(script: &str) -> Vec<String> {
        let script = script
            .replace("\\\n", " ")
            .replace('"', "")
            .replace("${FLAVOUR:-amd64}", "amd64")
            .replace("${FLAVOUR:-cloud-amd64}", "cloud-amd64")
            .replace("scenarios --flavour ", "scenarios ");
        let lines = script.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(call).collect()
    }

    /// The call in a line, if there is one.
    fn call(line: &str) -> Option<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_program = |word: &&str| word.rsplit('/').next() == Some("scenarios");
        let mut rest = words[words.iter().position(is_program)? + 1..].iter();
        let mut call = match *rest.clone().next()? {
            "list" => return None,
            word if word.starts_with("--") => "amd64".to_owned(),
            flavour => {
                rest.next();
                flavour.to_owned()
            }
        };
        let flavour = call.len();
        let mut command = rest.next();
        while let Some(name) = command.filter(|word| word.starts_with("--")) {
            let value = rest.next()?;
            if !matches!(*name, "--peer" | "--repeat") {
                Options::default().set(name, value).ok()?;
                call.push_str(&format!(" {name} {value}"));
            }
            command = rest.next();
        }
        let is_table = matches!(command, Some(&"faults" | &"mainline"));
        (call.len() > flavour || is_table).then_some(call)
    }

    #[test]
    fn the_runs_are_those_of_the_scripts() {
        let mut called = [CHECK, MAINLINE, KERNELS, SERIES, MAKEFILE]
            .map(calls)
            .concat();
        let mut known: Vec<&str> = RUNS.iter().map(|run| run.options).collect();
        called.sort();
        known.sort();
        assert_eq!(known, called);
    }

    #[test]
    fn the_targets_are_the_makefiles() {
        for run in RUNS {
            let is_there = MAKEFILE
                .lines()
                .any(|line| line.starts_with(&format!("{}:", run.target)));
            assert!(is_there, "{}", run.target);
        }
    }

    #[test]
    fn each_scenario_runs_in_make_check() {
        let idle: Vec<&str> = crate::all()
            .into_iter()
            .filter(|scenario| !matches!(scenario.place(), Runs::Apart | Runs::More))
            .filter(|scenario| {
                let check = RUNS.iter().filter(|run| run.target == "check");
                let mut lines = check.filter_map(|run| run.line(scenario, false).unwrap());
                !lines.any(|line| line.contains(Module::Rust.name()))
            })
            .map(|scenario| scenario.name())
            .collect();
        assert_eq!(idle, [""; 0]);
    }

    #[test]
    fn a_scenario_of_make_check_more_runs_there_only() {
        for scenario in crate::all() {
            let targets: Vec<&str> = RUNS
                .iter()
                .filter(|run| run.line(scenario, false).unwrap().is_some())
                .map(|run| run.target)
                .collect();
            match scenario.place() {
                Runs::More => assert_eq!(targets, ["check-more"], "{}", scenario.name()),
                _ => assert!(!targets.contains(&"check-more"), "{}", scenario.name()),
            }
        }
    }

    #[test]
    fn each_explanation_names_a_target_and_each_flag() {
        let all = crate::all();
        for scenario in &all {
            let text = explain(&all, scenario.name()).unwrap();
            let (_, runs) = text.split_once("\nRuns\n").unwrap();
            assert!(runs.starts_with("  make "), "{text}");
            let is_for_c = runs
                .lines()
                .any(|line| line.starts_with("  make check ") && line.contains("c on "));
            assert!(!is_for_c || scenario.is_for(Module::C), "{text}");
            assert_eq!(
                text.contains("\n  rust_only\n"),
                !scenario.is_for(Module::C),
                "{text}"
            );
        }
    }

    #[test]
    fn names_that_are_no_scenarios_are_told_from_those_that_are() {
        let all = crate::all();
        let error = explain(&all, "heartbeat_fl").unwrap_err();
        assert!(error.contains("heartbeat_flood"), "{error}");
        let error = explain(&all, "nothing of the kind").unwrap_err();
        assert_eq!(error, "no scenario has \"nothing of the kind\" in its name");
    }
}
