// SPDX-License-Identifier: GPL-2.0

//! One scenario in a guest: it is prepared, runs, and is looked at for what it left behind.

use host::guest::Error;
use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::machine::Exit;
use host::service::Service;

use super::verdict::and_also;
use super::verdict::and_said;
use super::verdict::is_failure;
use crate::daemon;
use crate::log;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// What a scenario came to.
pub(super) struct Ran {
    pub(super) result: Result<()>,
    /// It failed while the guest ran: whatever became of the guest afterwards, that is the result.
    pub(super) is_conclusive: bool,
}

/// Prepares the guest, runs the scenario, and looks at what it left behind.
pub(super) fn run_scenario(scenario: &Scenario, guest: &Guest, module: Module) -> Ran {
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

/// An error if there are packets of the guest's that nobody took.
fn nothing_left(guest: &Guest) -> Result<()> {
    let mut services = guest.config().services.iter();
    services.try_for_each(|&service| guest.channel(service).expect_nothing_left())
}
