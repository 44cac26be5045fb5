// SPDX-License-Identifier: GPL-2.0

//! The module's log. Each failure that the host sees causes one line. Without a failure there is no such line.

use std::time::Duration;

use host::guest::Result;
use host::ic::fcopy;
use host::ic::kvp;
use host::ic::vss;
use host::ic::E_FAIL;
use host::ic::E_INVALID_ARGUMENT;
use host::ic::E_NOT_SUPPORTED;
use host::service::Service;

use crate::daemon;
use crate::daemon::wait_for;
use crate::daemon::Daemon;
use crate::daemon::ShellDaemon;
use crate::daemon::Talk;
use crate::framing;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// The services that answer at once.
const AT_ONCE: [Service; 3] = [Service::Heartbeat, Service::TimeSync, Service::Shutdown];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("log_when_all_is_well", all_is_well)
        .everywhere()
        .rust_only()
        .daemons(),
    Scenario::new("log_of_what_fails_at_once", fails_at_once)
        .rust_only()
        .scripted(&AT_ONCE),
    Scenario::new("log_of_what_fails_with_a_daemon", fails_with_a_daemon)
        .rust_only()
        .daemons()
        .expects_log(&["VSS: the daemon failed: HOT_BACKUP fails"]),
    Scenario::new("log_of_what_takes_too_long", takes_too_long)
        .waits()
        .rust_only()
        .daemons()
        .expects_log(&["VSS: no answer from the daemon"]),
];

/// Checks that no line of the log has a word that image tests look for in the log of a boot.
fn has_no_bad_word(t: &Context<'_>, when: &str) -> Result<()> {
    let log = t.kernel_log()?;
    let bad = log.lines().find(|line| {
        let line = line.to_lowercase();
        (line.contains("hv_utils: ") || line.contains("hyperv: "))
            && ["fail", "error", "warning"]
                .iter()
                .any(|word| line.contains(word))
    });
    t.equal(when, bad, None)
}

/// Insertion, requests, rescinds, bindings and removal, with and without daemons.
fn all_is_well(t: &Context<'_>) -> Result<()> {
    const SERVICES: [Service; 5] = [
        Service::Heartbeat,
        Service::TimeSync,
        Service::Shutdown,
        Service::Kvp,
        Service::Vss,
    ];
    t.unload()?;
    t.load()?;
    for its_daemon in [daemon::KVP, daemon::VSS] {
        its_daemon.start(t)?;
    }
    for service in SERVICES {
        t.channel(service).wait_open()?;
        if !daemon::SERVICES.contains(&service) {
            t.channel(service).wait_negotiated()?;
        }
    }
    for service in [Service::Kvp, Service::Vss] {
        t.channel(service).negotiate_all()?;
    }
    t.channel(Service::Heartbeat).wait_replies(2)?;
    has_no_bad_word(t, "when all work")?;
    for service in SERVICES {
        let channel = t.channel(service);
        channel.rescind()?;
        channel.wait_released()?;
        channel.reoffer()?;
        channel.wait_open()?;
    }
    has_no_bad_word(t, "after rescinds")?;
    for service in SERVICES {
        daemon::rebind(t, "unbind", service)?;
        daemon::rebind(t, "bind", service)?;
        t.channel(service).wait_open()?;
    }
    has_no_bad_word(t, "after bindings")?;
    daemon::end(t)?;
    t.unload()?;
    has_no_bad_word(t, "after the removal")?;
    t.load()
}

/// Waits until the log has the line, and checks that it has the line once.
fn says(t: &Context<'_>, line: &str) -> Result<()> {
    wait_for(t, &format!("dmesg | grep -qF '{line}'"))?;
    let times = t.kernel_log()?.matches(line).count();
    t.equal(line, times, 1)
}

/// A request that fails has its line, whether the packet was handled in the interrupt or in the tasklet.
fn fails_at_once(t: &Context<'_>) -> Result<()> {
    for (service, line) in [
        (
            Service::Heartbeat,
            "Heartbeat: the host's request is malformed, or unknown: the request fails, status 0x80004005",
        ),
        (
            Service::TimeSync,
            "TimeSync: the host's request is malformed, or unknown: the request fails, status 0x80004005",
        ),
        (
            Service::Shutdown,
            "Shutdown request received - Invalid request, status 0x80004005",
        ),
    ] {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        let mut short = framing::request(t, service)?;
        short.body.truncate(1);
        let reply = channel.transact(&short)?;
        t.equal("status", reply.status, E_FAIL)?;
        let dots = line.replace('\'', ".");
        wait_for(t, &format!("dmesg | grep -q '{dots}'"))?;
        t.equal(line, t.kernel_log()?.matches(line).count(), 1)?;
    }
    Ok(())
}

/// Each request that fails has a line which says whose fault it is.
fn fails_with_a_daemon(t: &Context<'_>) -> Result<()> {
    let talk = |service| {
        let talk = Talk::with(t, service);
        talk.channel.negotiate_all().map(|_| talk)
    };
    // There is no daemon.
    talk(Service::Vss)?.expect("VSS", vss::body(vss::HOT_BACKUP), E_FAIL)?;
    says(
        t,
        "VSS: no daemon that can be asked: HOT_BACKUP fails, status 0x80004005",
    )?;
    talk(Service::Vss)?.expect("VSS", vss::body(99), E_NOT_SUPPORTED)?;
    t.log_has(
        "VSS: the host's request is malformed, or unknown: the request fails, status 0x80070032",
    )?;
    let copy = fcopy::start("/tmp", "copied", fcopy::CREATE_PATH, 1);
    talk(Service::FCopy)?.expect("FCopy", copy.clone(), E_FAIL)?;
    says(
        t,
        "FCopy: no daemon that can be asked: START_FILE_COPY fails, status 0x80004005",
    )?;
    // The daemon fails.
    for (service, body, line) in [
        (
            Service::Vss,
            vss::body(vss::HOT_BACKUP),
            "VSS: the daemon failed: HOT_BACKUP fails, status 0x1",
        ),
        (
            Service::FCopy,
            copy.clone(),
            "FCopy: the daemon failed: START_FILE_COPY fails, status 0x1",
        ),
        (
            Service::Kvp,
            kvp::enumerate(kvp::AUTO, 0),
            "KVP: the daemon failed: ENUMERATE fails, status 0x1",
        ),
    ] {
        let its_daemon =
            ShellDaemon::registered(t, service, &ShellDaemon::answers("/tmp/failure"))?;
        t.sh_ok("{ printf '\\001\\000\\000\\000'; tail -c +5 /tmp/success; } >/tmp/failure")?;
        talk(service)?.expect("the daemon fails", body, 1)?;
        says(t, line)?;
        its_daemon.kill(t)?;
    }
    // The host's request is malformed.
    daemon::KVP.start(t)?;
    let kvp = talk(Service::Kvp)?;
    let mut body = kvp::enumerate(kvp::AUTO, 0);
    body.truncate(2);
    kvp.expect("a short request", body, E_INVALID_ARGUMENT)?;
    t.log_has(
        "KVP: the host's request is malformed, or unknown: ENUMERATE fails, status 0x80070057",
    )
}

/// A daemon that does not answer in time is at fault: the log says so.
fn takes_too_long(t: &Context<'_>) -> Result<()> {
    for (service, body, name) in [
        (Service::Kvp, kvp::enumerate(kvp::AUTO, 0), "KVP"),
        (Service::Vss, vss::body(vss::HOT_BACKUP), "VSS"),
        (
            Service::FCopy,
            fcopy::start("/tmp", "copied", fcopy::CREATE_PATH, 1),
            "FCopy",
        ),
    ] {
        let its_daemon = Daemon::of(service);
        let talk = Talk::begin(t, service, its_daemon)?;
        its_daemon.stop(t)?;
        let request = talk.channel.request(body)?;
        talk.channel.send(&request)?;
        talk.within("too late", &request, E_FAIL, Duration::from_secs(40))?;
        let log = t.kernel_log()?;
        let lines = log
            .lines()
            .filter(|line| {
                line.contains(&format!("{name}: no answer from the daemon, time-out: "))
                    && line.contains(" fails, status 0x80004005")
            })
            .count();
        t.equal(&format!("lines of {name}"), lines, 1)?;
        its_daemon.kill(t)?;
    }
    Ok(())
}
