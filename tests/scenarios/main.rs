// SPDX-License-Identifier: GPL-2.0

//! What host and guest do together, as seen from both sides.
//!
//! # Adding a scenario
//!
//! Write one function in the file of the service (or fault) that it is about, and one line in that file's `SCENARIOS`:
//!
//! ```ignore
//! Scenario::new("heartbeat_beats", beats),
//!
//! fn beats(t: &Context) -> Result<()> {
//!     let heartbeat = t.channel(Service::Heartbeat);
//!     heartbeat.wait_replies(2)?;
//!     t.check(heartbeat.statistics()?.wrong_sequence == 0, "every answer is the beat's number plus one")
//! }
//! ```
//!
//! It is called in every configuration (module, processors, VMBus version) with the module freshly inserted, all
//! services acting as on Windows, the kernel's log empty; afterwards the module is removed. What the scenario needs
//! otherwise is said in the table, see [`scenario::Scenario`]: services led by the scenario from the start
//! (`scripted`), a module not yet inserted (`unloaded`), another machine (`machine`), a guest that is gone afterwards
//! (`ends_guest`), minutes to wait for (`waits`), the distribution's daemons (`daemons`), each kernel (`everywhere`), one processor and
//! version only (`once`), two processors (`race`), not for C (`rust_only`), log lines that belong to the case
//! (`expects_log`), and whether what is said depends on chance, so that the modules cannot be compared (`by_chance`).
//!
//! A scenario fails if it returns an error, and also if the kernel's log has a splat or a warning that it does not
//! expect. What was said is then in `build/results`, in a file that the result's line names.
//!
//! [`host::guest`] has all that can be done with a guest and a channel.

mod addresses;
mod attributes;
mod baseline;
mod bench;
mod chardev;
mod chrony;
mod compare;
mod daemon;
mod debug;
mod demo;
mod elf;
mod fault;
mod faults;
mod fcopy;
mod figures;
mod framing;
mod freeze;
mod fuzz;
mod heartbeat;
mod hibernation;
mod kvp;
mod lifecycle;
mod log;
mod memory;
mod packaged;
mod plot;
mod profile;
mod pushed;
mod reload;
mod removal;
mod report;
mod runner;
mod said;
mod sample;
mod scenario;
mod selftests;
mod shutdown;
mod statistics;
mod systemd;
mod timeouts;
mod timesync;
mod trace;
mod vss;

use std::process::ExitCode;

use scenario::Runs;
use scenario::Scenario;

const USAGE: &str = "\
usage: scenarios [OPTION]... check [WORD]   runs the scenarios with WORD (or $T) in their names or configurations
       scenarios [OPTION]... faults [WORD]  runs those of the table of faults with both modules, and writes it
       scenarios [OPTION]... mainline [WORD] runs those that a patch for C is about with C, as it is or --patched
       scenarios [OPTION]... demo           shows the module at work
       scenarios [OPTION]... bench [check]  measures it, and the kernel's own; or what may not grow, only
       scenarios [OPTION]... bench profile ROW   says in which functions a row of its table spends them
       scenarios list [debug|waits]         lists the scenarios, or those for the kernel that looks for faults, or
                                            those for emulated time
       scenarios list faults <DOCUMENT      prints that table as it would be written with the document's verdicts
  --flavour F      kernel, a folder of build/kernel (amd64)
  --module M       only rust or c
  --vcpus N        only 1 or 2
  --vmbus X.Y      only this newest version (4.0 and 6.0)
  --full yes       all scenarios in all configurations, on any kernel: else those for each kernel, if it is not amd64
  --whole no       only this module, and only what processors and version matter to
  --time emulated  what waits for minutes, in a QEMU guest in which waiting takes no time; else what does not
  --control yes    only C, with what is not for it: what it passes all the same could be (--time emulated is quicker)
  --patched FILE   this initramfs has C's module, in place of the kernel's own
  --peer KEY       C's results that passed with the same KEY, which stands for all they depend on, are kept
  --repeat N       all of it N times (1)
HV_SLOW=1 in the environment has all that is repeated repeated more often: reloads, daemons, failing allocations.
";

/// All scenarios, in the order in which they run. Those that end the guest come last in each configuration anyway.
fn all() -> Vec<&'static Scenario> {
    [
        lifecycle::SCENARIOS,
        attributes::SCENARIOS,
        heartbeat::SCENARIOS,
        timesync::SCENARIOS,
        chrony::SCENARIOS,
        framing::SCENARIOS,
        hibernation::SCENARIOS,
        selftests::SCENARIOS,
        sample::SCENARIOS,
        reload::SCENARIOS,
        removal::SCENARIOS,
        chardev::SCENARIOS,
        kvp::SCENARIOS,
        addresses::SCENARIOS,
        pushed::SCENARIOS,
        vss::SCENARIOS,
        freeze::SCENARIOS,
        fcopy::SCENARIOS,
        timeouts::SCENARIOS,
        trace::SCENARIOS,
        said::SCENARIOS,
        fault::SCENARIOS,
        fuzz::SCENARIOS,
        shutdown::SCENARIOS,
        systemd::SCENARIOS,
        packaged::SCENARIOS,
        debug::SCENARIOS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut options = runner::Options::default();
    let mut words = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if !argument.starts_with("--") {
            words.push(argument.as_str());
            continue;
        }
        let value = rest.next().map_or("", String::as_str);
        if let Err(error) = options.set(argument, value) {
            eprintln!("scenarios: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    }
    match words.as_slice() {
        ["list", "faults"] => match std::io::read_to_string(std::io::stdin()) {
            Ok(written) => {
                print!("{}", faults::rewritten(&written));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("scenarios: {error}");
                ExitCode::FAILURE
            }
        },
        ["list", which @ ..] if matches!(which, [] | ["debug" | "waits"]) => {
            let mut listed = all();
            listed.retain(|scenario| match which {
                ["debug"] => scenario.place() == Runs::DebugKernel,
                ["waits"] => scenario.place() == Runs::Waits,
                _ => true,
            });
            for scenario in listed {
                println!("{}", scenario.name());
            }
            ExitCode::SUCCESS
        }
        [command @ ("check" | "faults" | "mainline"), word @ ..] if word.len() < 2 => {
            let filter = word.first().map(|word| (*word).to_owned());
            options.filter = filter
                .or_else(|| std::env::var("T").ok())
                .unwrap_or_default();
            match options.is_emulated() {
                true => host::nested::ensure_counted(),
                false => host::nested::ensure_synic(),
            }
            match *command {
                "faults" => runner::check_faults(&all(), options),
                "mainline" => runner::check_mainline(&all(), options),
                _ => runner::check(&all(), &options),
            }
        }
        ["demo"] => {
            host::nested::ensure_synic();
            demo::run(&options)
        }
        ["bench", "profile", row] => {
            options.filter = (*row).to_owned();
            host::nested::ensure_counted();
            bench::profile(&options)
        }
        ["bench"] => {
            host::nested::ensure_counted();
            bench::run(&options)
        }
        ["bench", "check"] => {
            host::nested::ensure_counted();
            bench::check(&options)
        }
        _ => {
            eprint!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
