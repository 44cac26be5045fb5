// SPDX-License-Identifier: GPL-2.0

//! Scenarios: the emulated host and a guest, checked from both sides.
//!
//! # Adding a scenario
//!
//! `Documentation/scenarios.rst` has three complete examples.
//!
//! Write a function in the file of its service or fault, and a line in that file's `SCENARIOS`:
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
//! By default a scenario runs once for each module: one processor, the newest VMBus version. The module has just been
//! inserted, all services act as on Windows, and the kernel's log is empty. The runner removes the module afterwards.
//! The methods of [`scenario::Scenario`] change this: the scenario acts for services of the host (`scripted`), inserts
//! the module itself (`unloaded`), needs another machine (`machine`), ends the guest (`ends_guest`), waits for minutes
//! (`waits`), needs the distribution's daemons (`daemons`), runs on each kernel (`everywhere`) or with other VMBus
//! versions (`versions`), needs two processors (`race`), runs in `make check-more` only (`more`), is not for C
//! (`rust_only`), expects warnings in the log (`expects_log`), or has messages that depend on chance, so that the modules
//! cannot be compared (`by_chance`).
//!
//! A scenario fails if it returns an error, or if the kernel's log has an unexpected splat or warning. The line of the
//! result then names a file in `build/results`, which has the transcript.
//!
//! [`host::guest`] has all operations on a guest and its channels.

mod addresses;
mod attributes;
mod baseline;
mod bench;
mod chardev;
mod chrony;
mod compare;
mod compat;
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
mod processors;
mod profile;
mod pushed;
#[cfg(test)]
mod quoted;
mod reload;
mod removal;
mod report;
mod runner;
mod said;
mod sample;
mod scenario;
mod selftests;
mod shown;
mod shutdown;
mod sockets;
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
       scenarios [OPTION]... faults [WORD]  runs the scenarios of the table of faults with both modules, and writes it
       scenarios [OPTION]... mainline [WORD] runs the scenarios that a patch lets C pass, with C, stock or --patched
       scenarios [OPTION]... demo           shows the module at work
       scenarios [OPTION]... bench [check]  measures both modules; check: only the cheap rows, against the baseline
       scenarios [OPTION]... bench profile ROW   prints the functions that a row of the benchmark spends its time in
       scenarios list [debug|waits|more]    lists all scenarios, or those for the debug kernel, or those for emulated
                                            time, or those of make check-more
       scenarios explain NAME               prints where a scenario runs and why, and what its flags mean
       scenarios list faults <DOCUMENT      prints the table of faults with the document's verdicts
  --flavour F      kernel, a folder of build/kernel (amd64)
  --module M       only rust or c
  --vcpus N        only 1 or 2
  --vmbus X.Y      newest VMBus version of the host (4.0 and 6.0)
  --full yes       all scenarios in all configurations; without it, kernels other than amd64 run few scenarios
  --whole no       only this module, and only scenarios that depend on processors and VMBus version
  --time emulated  only scenarios that wait for minutes, in a QEMU guest whose clock skips idle time
  --more yes       only the scenarios of make check-more
  --control yes    only C, with the scenarios that are not for C; prints which pass (--time emulated is quicker)
  --patched FILE   initramfs with a C module that replaces the kernel's
  --peer KEY       keep C's results that passed with the same KEY; KEY stands for all that they depend on
  --repeat N       run all N times (1)
HV_SLOW=1 in the environment raises all repetitions: reloads, daemons, failing allocations.
";

/// All scenarios, in the order in which they run. In each configuration those that end the guest come last.
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
        processors::SCENARIOS,
        compat::SCENARIOS,
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
        sockets::SCENARIOS,
        systemd::SCENARIOS,
        packaged::SCENARIOS,
        debug::SCENARIOS,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Prints the text, or why there is none.
fn print(text: Result<String, impl std::fmt::Display>) -> ExitCode {
    match text {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("scenarios: {error}");
            ExitCode::FAILURE
        }
    }
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
        ["list", "faults"] => {
            let written = std::io::read_to_string(std::io::stdin());
            print(written.map(|written| faults::rewritten(&written)))
        }
        ["list", which @ ..] if matches!(which, [] | ["debug" | "waits" | "more"]) => {
            let mut listed = all();
            listed.retain(|scenario| match which {
                ["debug"] => scenario.place() == Runs::DebugKernel,
                ["waits"] => scenario.place() == Runs::Waits,
                ["more"] => scenario.place() == Runs::More,
                _ => true,
            });
            for scenario in listed {
                println!("{}", scenario.name());
            }
            ExitCode::SUCCESS
        }
        ["explain", name] => print(runner::explain(&all(), name)),
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
