// SPDX-License-Identifier: GPL-2.0

//! Guest shutdown.

use std::time::Duration;

use host::guest::Result;
use host::guest::TIMEOUT;
use host::ic::shutdown;
use host::ic::shutdown::FORCE;
use host::ic::shutdown::HIBERNATE;
use host::ic::shutdown::RESTART;
use host::ic::E_FAIL;
use host::ic::S_OK;
use host::machine::Exit;
use host::service::Service;

use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("shutdown_versions", versions).scripted(&[Service::Shutdown]),
    Scenario::new("shutdown_hibernate", hibernate).versions(),
    Scenario::new("shutdown_power_off", power_off)
        .everywhere()
        .ends_guest(),
    Scenario::new("shutdown_restart", restart)
        .ends_guest()
        .versions(),
    Scenario::new("shutdown_no_s4", hibernate_refused).machine(Machine::OTHER),
];

/// The host offers each message version alone.
fn versions(t: &Context<'_>) -> Result<()> {
    let shutdown = t.channel(Service::Shutdown);
    for message in [(1, 0), (3, 0), (3, 1), (3, 2)] {
        let chosen = shutdown.negotiate(&[(1, 0), (3, 0)], &[message])?;
        t.equal(
            "versions",
            (chosen.framework, chosen.message),
            ((3, 0), message),
        )?;
    }
    shutdown.expect_silence(Duration::from_millis(50))
}

/// Sends a shutdown request with `flags`. Fails unless the reply has `status`.
pub fn request(t: &Context<'_>, flags: u32, status: u32) -> Result<()> {
    let channel = t.channel(Service::Shutdown);
    channel.wait_negotiated()?;
    let reply = channel.ask(shutdown::body(flags, "asked by a test"))?;
    t.equal("status", reply.status, status)
}

/// Stop-VM: the reply comes, then the guest powers off.
fn power_off(t: &Context<'_>) -> Result<()> {
    request(t, FORCE, S_OK)?;
    t.equal("end", t.wait_exit(TIMEOUT)?, Exit::PowerOff)
}

/// Restart-VM: the reply comes, then the guest resets.
fn restart(t: &Context<'_>) -> Result<()> {
    request(t, RESTART | FORCE, S_OK)?;
    t.equal("end", t.wait_exit(TIMEOUT)?, Exit::Reset)
}

/// The host asks for hibernation on a machine with S4. The module accepts, and sends a uevent to user space.
fn hibernate(t: &Context<'_>) -> Result<()> {
    request(t, HIBERNATE, S_OK)?;
    for _ in 0..100 {
        if t.kernel_log()?.contains("Sent hibernation uevent") {
            return t.log_has("Hibernation request received");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    t.log_has("Sent hibernation uevent")
}

/// The host asks for hibernation on a machine without S4. The module refuses.
fn hibernate_refused(t: &Context<'_>) -> Result<()> {
    request(t, HIBERNATE, E_FAIL)?;
    t.check(
        !t.kernel_log()?.contains("Sent hibernation uevent"),
        "no uevent is sent",
    )
}
