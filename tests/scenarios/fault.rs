// SPDX-License-Identifier: GPL-2.0

//! Hosts that misbehave, or do rare things.

use std::time::Duration;

use host::guest::Module;
use host::guest::Result;
use host::guid::Guid;
use host::ic::kvp;
use host::ic::timesync;
use host::ic::vss;
use host::ic::S_OK;
use host::ic::UNIX_EPOCH_1601;
use host::service::Service;
use host::vmbus::bus::STATUS_UNSUCCESSFUL;

use crate::daemon;
use crate::daemon::Daemon;
use crate::daemon::ShellDaemon;
use crate::daemon::Talk;
use crate::daemon::QUIET;
use crate::framing;
use crate::removal;
use crate::scenario::Context;
use crate::scenario::Scenario;
use crate::timesync::wait_clock;

/// An instance that no device of the emulated host has.
const OTHER_INSTANCE: Guid = Guid::parse("6d2f1c80-9b3e-4a57-8e14-c05a7f93d2b6");

/// The module's log text about a second device.
const REFUSAL: &str = "a second device of its class";

const SERVICES: [Service; 3] = [Service::Heartbeat, Service::Shutdown, Service::TimeSync];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("open_refused", open_refused)
        .daemons()
        .unloaded()
        .rust_only()
        .expects_log(&[
            "probe failed for device",
            "probe with driver hv_utils failed with error -11",
            "probe with driver hv_utils_fcopy failed with error -11",
        ])
        .versions(),
    Scenario::new("open_refused_of_a_former_device", open_refused_later)
        .daemons()
        .rust_only()
        .expects_log(&[
            "probe failed for device",
            "probe with driver hv_utils failed with error -11",
            "probe with driver hv_utils_fcopy failed with error -11",
        ]),
    Scenario::new("open_after_a_failed_open_of_c", open_after_c)
        .unloaded()
        .expects_log(&[
            "probe failed for device",
            "probe with driver hv_utils failed",
        ])
        .versions(),
    Scenario::new("second_device_of_a_class", second_device)
        .daemons()
        .scripted(&[Service::TimeSync])
        .rust_only()
        .expects_log(&["probe failed for device", REFUSAL]),
    Scenario::new("next_device_before_the_last_is_unbound", next_device)
        .daemons()
        .scripted(&[Service::TimeSync])
        .rust_only()
        .versions(),
    Scenario::new("silent_host", silent_host)
        .daemons()
        .scripted(&SERVICES)
        .versions(),
    Scenario::new("host_says_it_twice", says_it_twice).daemons(),
    Scenario::new("clock_jumps", clock_jumps)
        .daemons()
        .scripted(&[Service::TimeSync]),
    Scenario::new("daemon_and_host_at_once", daemon_and_host_at_once)
        .daemons()
        .race(),
];

/// The host refuses to open the channels. No driver is bound, and a later bind works.
fn open_refused(t: &Context<'_>) -> Result<()> {
    let services = [&SERVICES, removal::services(t)].concat();
    for &service in &services {
        t.channel(service).fail_opens(1, STATUS_UNSUCCESSFUL);
    }
    t.load()?;
    for &service in &services {
        t.check(!t.channel(service).is_open(), "the channel is not open")?;
        daemon::rebind(t, "bind", service)?;
        t.channel(service).wait_open()?;
    }
    t.channel(Service::Heartbeat).wait_negotiated()?;
    for &service in removal::services(t) {
        removal::serves(t, service)?;
    }
    Ok(())
}

/// The host refuses to open the channel of a device that was bound before. The module uses nothing of the old binding.
fn open_refused_later(t: &Context<'_>) -> Result<()> {
    for &service in removal::services(t) {
        let channel = t.channel(service);
        removal::serves(t, service)?;
        daemon::rebind(t, "unbind", service)?;
        channel.fail_opens(1, STATUS_UNSUCCESSFUL);
        let refused = daemon::rebind(t, "bind", service);
        t.check(refused.is_err(), "the bind fails")?;
        t.check(!channel.is_open(), "the channel is not open")?;
        daemon::rebind(t, "bind", service)?;
        channel.wait_open()?;
        removal::serves(t, service)?;
    }
    Ok(())
}

/// The host refuses to open a channel for the C module. C leaves its callback in the channel, and is removed. This
/// module opens the channel nevertheless.
fn open_after_c(t: &Context<'_>) -> Result<()> {
    // C crashes if the host refuses to open the channel of another service.
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.fail_opens(1, STATUS_UNSUCCESSFUL);
    t.insmod(Module::C)?;
    let id = Service::Heartbeat.instance();
    daemon::wait_for(
        t,
        &format!("dmesg | grep -q 'probe failed for device {id}'"),
    )?;
    t.check(!heartbeat.is_open(), "C has not opened the channel")?;
    t.unload()?;
    t.load()?;
    heartbeat.wait_open()?;
    heartbeat.wait_negotiated()?;
    heartbeat.wait_replies(1).map(|_| ())
}

/// The host offers a second device of a class while the first one works. The module refuses the second device, never
/// opens it, and logs one line about it. The first device still works. When both are gone, the module serves a new
/// device of the class.
fn second_device(t: &Context<'_>) -> Result<()> {
    let services = [removal::services(t), &[Service::TimeSync]].concat();
    for service in services {
        second_of(t, service).map_err(|error| format!("{service}: {error}"))?;
    }
    Ok(())
}

fn second_of(t: &Context<'_>, service: Service) -> Result<()> {
    let channel = t.channel(service);
    let daemon = (service != Service::TimeSync).then(|| Daemon::of(service));
    let serves = || match daemon {
        Some(_) => Talk::with(t, service)
            .expect("a request", removal::request(service), S_OK)
            .map(|_| ()),
        None => framing::works(t, service),
    };
    if let Some(daemon) = daemon {
        Talk::begin(t, service, daemon)?;
    }
    serves()?;

    let before = t.kernel_log()?.lines().count();
    channel.offer_second(OTHER_INSTANCE);
    let failed = format!("probe failed for device {OTHER_INSTANCE} (-19)");
    let probed = daemon::wait_for(
        t,
        &format!(
            "dmesg | tail -n +{} | grep -qE 'probe failed for device {OTHER_INSTANCE}'",
            before + 1
        ),
    );
    t.equal("times the second was opened", channel.second_opens()?, 0)?;
    probed?;
    serves()?;
    let log = t.kernel_log()?;
    let since = || log.lines().skip(before);
    let said: Vec<&str> = since()
        .filter(|line| line.contains("hv_utils"))
        .filter(|line| !line.contains("hv_vmbus"))
        .filter(|line| !line.contains("TimeSync IC version"))
        .collect();
    t.check(
        matches!(*said, [line] if line.contains(REFUSAL)),
        &format!("the module says {REFUSAL:?}, and no more: {said:?}"),
    )?;
    t.check(
        since().any(|line| line.contains(&failed)),
        &format!("the log has {failed:?}"),
    )?;
    t.equal("times the second was opened", channel.second_opens()?, 0)?;

    channel.rescind_second()?;
    channel.wait_released()?;
    t.sh_ok(&format!("[ ! -e /sys/bus/vmbus/devices/{OTHER_INSTANCE} ]"))?;
    serves()?;

    // The daemon exits when its device goes away.
    another_of(t, service, OTHER_INSTANCE)?;
    another_of(t, service, service.instance())
}

/// The host offers the next device of a class, and then rescinds the current one. The next device waits until the
/// current one is unbound, and is served then.
fn next_device(t: &Context<'_>) -> Result<()> {
    let services = [removal::services(t), &[Service::TimeSync]].concat();
    for service in services {
        next_of(t, service).map_err(|error| format!("{service}: {error}"))?;
    }
    Ok(())
}

fn next_of(t: &Context<'_>, service: Service) -> Result<()> {
    let channel = t.channel(service);
    channel.wait_open()?;
    channel.offer_second(OTHER_INSTANCE);
    // The driver is probed as soon as the device exists.
    let device = format!("/sys/bus/vmbus/devices/{OTHER_INSTANCE}");
    daemon::wait_for(t, &format!("[ -e {device} ]"))?;
    t.equal("times it was opened by then", channel.second_opens()?, 0)?;
    channel.rescind()?;
    channel.swap_second()?;
    channel.wait_released()?;
    channel.wait_open()?;
    match service {
        Service::TimeSync => framing::works(t, service)?,
        _ => removal::serves(t, service)?,
    }
    t.equal("times it was opened", channel.opens()?, 1)?;
    another_of(t, service, service.instance())
}

/// The host rescinds the device, and offers another one of its class. The module serves it.
fn another_of(t: &Context<'_>, service: Service, instance: Guid) -> Result<()> {
    let channel = t.channel(service);
    channel.rescind()?;
    channel.wait_released()?;
    if service != Service::TimeSync {
        Daemon::of(service).wait_gone(t)?;
    }
    channel.set_instance(instance);
    channel.reoffer()?;
    channel.wait_open()?;
    match service {
        Service::TimeSync => framing::works(t, service),
        _ => removal::serves(t, service),
    }
}

/// The host sends nothing at all. Daemons can still register, devices can be unbound, and the module can be removed.
fn silent_host(t: &Context<'_>) -> Result<()> {
    for daemon in [daemon::KVP, daemon::VSS] {
        daemon.start(t)?;
    }
    for service in [&SERVICES, removal::services(t)].concat() {
        daemon::rebind(t, "unbind", service)?;
        daemon::rebind(t, "bind", service)?;
        t.channel(service).wait_open()?;
        t.channel(service).expect_silence(Duration::ZERO)?;
    }
    daemon::KVP.wait_gone(t)?;
    daemon::VSS.wait_gone(t)?;
    t.unload()
}

/// The host sends each message twice. Both get an answer, even if the second comes while a daemon works on the first.
fn says_it_twice(t: &Context<'_>) -> Result<()> {
    for (service, daemon) in [(Service::Kvp, daemon::KVP), (Service::Vss, daemon::VSS)] {
        let talk = Talk::begin(t, service, daemon)?;
        for _ in 0..10 {
            let request = talk.channel.request(removal::request(service))?;
            talk.channel.send_together(&[&request, &request])?;
            talk.promptly("the request", &request, S_OK)?;
            talk.promptly("the same again", &request, S_OK)?;
        }
        talk.finish()?;
    }
    Ok(())
}

/// The host's clock jumps, and the guest's clock follows. No time-out of the module depends on the clock.
fn clock_jumps(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    channel.negotiate_all()?;
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    daemon::KVP.stop(t)?;
    let request = talk.pend(kvp::enumerate(kvp::AUTO, 1))?;
    const HOUR: i64 = 3600;
    for ahead in [
        HOUR,
        -HOUR,
        24 * HOUR,
        365 * 24 * HOUR,
        70 * 365 * 24 * HOUR,
        0,
    ] {
        let mut moment = t.moment();
        moment.wall = moment.wall.wrapping_add_signed(ahead * 10_000_000);
        let sync = channel.request(timesync::body((4, 0), &moment, timesync::SYNC))?;
        t.equal("status", channel.transact(&sync)?.status, S_OK)?;
        wait_clock(t, ((moment.wall - UNIX_EPOCH_1601) / 10_000_000) as i64)?;
    }
    talk.channel.expect_silence(QUIET)?;
    daemon::KVP.resume(t)?;
    talk.promptly("the request", &request, S_OK)?;
    talk.finish()
}

/// A daemon writes answers to no question, all the time, while the host sends requests and negotiates anew. Each
/// request has one reply, and none waits.
fn daemon_and_host_at_once(t: &Context<'_>) -> Result<()> {
    let write = ShellDaemon::write("/tmp/success");
    let script = format!(
        "while :; do {write}; done & while :; do {}; done",
        ShellDaemon::answers("/tmp/success")
    );
    let daemon = ShellDaemon::registered(t, Service::Vss, &script)?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    for number in 0..200 {
        if number % 20 == 0 {
            talk.channel.negotiate_all()?;
        }
        talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    }
    daemon.kill(t)?;
    talk.finish()
}
