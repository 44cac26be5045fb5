// SPDX-License-Identifier: GPL-2.0

//! One run of a scenario in a guest: preparation, the scenario, and checks for leftovers.

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

/// How a run of a scenario ended.
pub(super) struct Ran {
    pub(super) result: Result<()>,
    /// The scenario failed while the guest still ran. That is the result, even if the guest broke down afterwards.
    pub(super) is_conclusive: bool,
}

/// Prepares the guest, runs the scenario, and checks for leftovers.
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
    wait_open(context, context.module())
}

/// Waits until the module has opened the channels of all its services.
pub(super) fn wait_open(guest: &Guest, module: Module) -> Result<()> {
    for &service in &guest.config().services {
        // C has no file copy: its daemon uses uio. The echo device is the sample's.
        if service != Service::Echo && (service, module) != (Service::FCopy, Module::C) {
            guest.channel(service).wait_open()?;
        }
    }
    Ok(())
}

/// The result of a scenario that stopped the guest. Bytes of the console before `from` are of earlier scenarios.
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
    // The console is empty at each boot.
    let since = console.get(from..).unwrap_or(&console);
    let mut splats = since.lines().filter(|line| log::is_splat(line));
    let result = match scenario.is_last() || *exit == Exit::Stopped {
        true => result,
        false => and_also(result, Err(Error(format!("the machine stopped: {exit:?}")))),
    };
    and_said(result, "the console", splats.find(|line| !expected(line)))
}

/// Removes the module, and checks for leftovers. Returns `result`. If that is no failure, returns the first problem.
fn clean(
    scenario: &Scenario,
    context: &Context<'_>,
    console: usize,
    result: Result<()>,
) -> Result<()> {
    let result = match is_failure(&result) || scenario.is_last() {
        true => result,
        // The removal closes all channels, so all packets of the guest are in the rings.
        false => and_also(
            result,
            context.unload().and_then(|()| nothing_left(context)),
        ),
    };
    match context.sh_ok("dmesg -r") {
        // The log often has the reason.
        Ok(log) => {
            let bad = log::first_bad_line(&log, scenario.expected_log());
            and_said(result, "the kernel's log", bad)
        }
        // The guest runs no commands any more. The console has the beginning of a splat.
        Err(error) => {
            let said = context.console();
            let mut said = said.get(console..).unwrap_or_default().lines();
            let splat = said.find(|line| log::is_splat(line));
            and_said(and_also(result, Err(error)), "the console", splat)
        }
    }
}

/// An error if a channel has a packet of the guest that nobody received.
fn nothing_left(guest: &Guest) -> Result<()> {
    let mut services = guest.config().services.iter();
    services.try_for_each(|&service| guest.channel(service).expect_nothing_left())
}
