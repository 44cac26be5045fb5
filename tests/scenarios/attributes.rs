// SPDX-License-Identifier: GPL-2.0

//! The attributes in `hv_utils/`, in the sysfs directory of each device.

use std::time::Duration;
use std::time::Instant;

use host::guest::Result;
use host::ic::frame::Message;
use host::ic::frame::RESPONSE;
use host::ic::frame::TRANSACTION;
use host::ic::kvp;
use host::ic::vss;
use host::ic::E_FAIL;
use host::ic::E_NO_MORE_ITEMS;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon;
use crate::daemon::wait_for;
use crate::daemon::Daemon;
use crate::daemon::Talk;
use crate::daemon::QUIET;
use crate::framing;
use crate::heartbeat::marked;
use crate::heartbeat::tells;
use crate::heartbeat::MARK;
use crate::removal;
use crate::scenario::Context;
use crate::scenario::Scenario;
use crate::vss::freeze;
use crate::vss::Disk;

const SERVICES: [Service; 5] = [
    Service::Heartbeat,
    Service::TimeSync,
    Service::Shutdown,
    Service::Vss,
    Service::FCopy,
];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("attributes_version", version)
        .rust_only()
        .expects_log(&["no version that is known"])
        .scripted(&SERVICES),
    Scenario::new("attributes_version_waits_for_the_daemon", version_waits)
        .rust_only()
        .daemons()
        .scripted(&[Service::Kvp]),
    Scenario::new("attributes_application_state", application_state)
        .rust_only()
        .scripted(&[Service::Heartbeat]),
    Scenario::new("attributes_numbers", numbers)
        .rust_only()
        .expects_log(&[
            "no version that is known",
            "unexpected message of type",
            "packet ignored",
            "fails, status",
        ])
        .scripted(&AT_ONCE),
    Scenario::new("attributes_numbers_of_a_daemon", numbers_of_a_daemon)
        .rust_only()
        .daemons()
        .expects_log(&["fails, status"]),
    Scenario::new("attributes_daemon", daemon_comes_and_goes)
        .rust_only()
        .daemons()
        .scripted(&daemon::SERVICES),
    Scenario::new("attributes_state", state)
        .waits()
        .rust_only()
        .daemons()
        .expects_log(&["fails, status"]),
    Scenario::new("attributes_frozen", frozen)
        .rust_only()
        .daemons()
        .expects_log(&["fsfreeze --unfreeze MOUNTPOINT"]),
    Scenario::new("attributes_are_for_reading", for_reading)
        .rust_only()
        .daemons(),
    Scenario::new("attributes_removal_under_readers", removal_under_readers)
        .rust_only()
        .scripted(&daemon::SERVICES),
    Scenario::new("attributes_end_with_the_driver", end)
        .rust_only()
        .scripted(&[Service::Heartbeat])
        .versions(),
];

/// The services that answer at once.
const AT_ONCE: [Service; 3] = [Service::Heartbeat, Service::TimeSync, Service::Shutdown];

/// The file of an attribute.
pub fn file(service: Service, name: &str) -> String {
    format!(
        "/sys/bus/vmbus/devices/{}/hv_utils/{name}",
        service.instance()
    )
}

/// Checks that the attribute reads `text`.
pub fn reads(t: &Context<'_>, service: Service, name: &str, text: &str) -> Result<()> {
    // `sh_ok()` cuts newlines off the end. The last line keeps the attribute's newline.
    let read = t.sh_ok(&format!("cat {}; echo end", file(service, name)))?;
    t.equal(
        &format!("{name} of {service}"),
        read.as_str(),
        &format!("{text}\nend"),
    )
}

/// The attributes that are read-only.
const NAMES: [&str; 17] = [
    "version",
    "requests",
    "replies",
    "refused",
    "ignored",
    "late",
    "daemon",
    "daemon_age",
    "state",
    "state_age",
    "frozen",
    "frozen_age",
    "leap",
    "stratum",
    "offset",
    "age",
    "samples_ahead",
];

/// `version` is the version that was agreed on last. It is read-only.
fn version(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        reads(t, service, "version", "none")?;
        let (major, minor) = channel.negotiate_all()?.message;
        reads(t, service, "version", &format!("{major}.{minor}"))?;
        channel.negotiate_in_vain(&[(3, 0)], &[(9, 9)])?;
        reads(t, service, "version", "none")?;
        let file = file(service, "version");
        t.sh_ok(&format!(
            "[ $(stat -c %a {file}) = 444 ] && ! echo 1.0 >{file}"
        ))?;
    }
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.negotiate(&[(3, 0)], &[(1, 0)])?;
    reads(t, Service::Heartbeat, "version", "1.0")
}

/// `version` is `none` while an offer waits for a daemon, whatever was agreed on before.
fn version_waits(t: &Context<'_>) -> Result<()> {
    let talk = Talk::with(t, Service::Kvp);
    for (version, text) in [((4, 0), "4.0"), ((3, 0), "3.0")] {
        let offer = Message::negotiation(&[(3, 0)], &[version], 1);
        talk.channel.send(&offer)?;
        talk.channel.expect_silence(QUIET)?;
        reads(t, Service::Kvp, "version", "none")?;
        daemon::KVP.start(t)?;
        talk.promptly("the negotiation", &offer, S_OK)?;
        reads(t, Service::Kvp, "version", text)?;
        daemon::KVP.kill(t)?;
    }
    Ok(())
}

/// The state that is written to `application_state` goes to the host with the next heartbeat. Other texts are rejected.
/// A new binding starts with `unknown`.
fn application_state(t: &Context<'_>) -> Result<()> {
    const NAME: &str = "application_state";
    let (heartbeat, file) = (
        t.channel(Service::Heartbeat),
        file(Service::Heartbeat, NAME),
    );
    for (version, is_told) in [((1, 0), false), ((3, 0), true)] {
        heartbeat.negotiate(&[(3, 0)], &[version])?;
        reads(t, Service::Heartbeat, NAME, "unknown")?;
        for (number, state) in (0..).zip(["unknown", "healthy", "critical", "stopped"]) {
            t.sh_ok(&format!("echo {state} >{file}"))?;
            reads(t, Service::Heartbeat, NAME, state)?;
            let reply = heartbeat.transact(&heartbeat.request(marked(1))?)?;
            tells(t, &reply, if is_told { number } else { MARK })
                .map_err(|error| format!("{state}: {error}"))?;
        }
        for other in ["Healthy", "1", "'healthy '", "''"] {
            let wrote = t.sh(&format!("echo {other} >{file}"))?;
            t.check(
                wrote.status != 0 && wrote.text.contains("Invalid argument"),
                &format!("{other} is rejected ({:?})", wrote.text),
            )?;
            reads(t, Service::Heartbeat, NAME, "stopped")?;
        }
        daemon::rebind(t, "unbind", Service::Heartbeat)?;
        daemon::rebind(t, "bind", Service::Heartbeat)?;
    }
    let devices = t.sh_ok("ls -d /sys/bus/vmbus/devices/*/hv_utils/application_state | wc -l")?;
    t.equal("devices that have it", devices.as_str(), "1")
}

/// Reads an attribute. Cuts the newline off.
fn value(t: &Context<'_>, service: Service, name: &str) -> Result<String> {
    t.sh_ok(&format!("cat {}", file(service, name)))
}

/// Reads an attribute that is a number.
fn number(t: &Context<'_>, service: Service, name: &str) -> Result<u64> {
    let text = value(t, service, name)?;
    text.parse()
        .map_err(|error| format!("{name} of {service}: {text:?}: {error}").into())
}

/// Checks the numbers of a service: requests, replies, refused and ignored.
fn are(t: &Context<'_>, service: Service, numbers: [u64; 4]) -> Result<()> {
    let mut read = [0; 4];
    for (name, number_of) in ["requests", "replies", "refused", "ignored"]
        .into_iter()
        .zip(&mut read)
    {
        *number_of = number(t, service, name)?;
    }
    t.equal(
        &format!("requests, replies, refused and ignored of {service}"),
        read,
        numbers,
    )
}

/// Each message of the host counts once, whether it is handled in the host's interrupt or in the tasklet.
fn numbers(t: &Context<'_>) -> Result<()> {
    for service in AT_ONCE {
        let channel = t.channel(service);
        are(t, service, [0, 0, 0, 0])?;
        channel.negotiate_all()?;
        are(t, service, [1, 1, 0, 0])?;
        channel.negotiate_in_vain(&[(3, 0)], &[(9, 9)])?;
        are(t, service, [2, 2, 1, 0])?;
        channel.negotiate_all()?;
        let request = framing::request(t, service)?;
        channel.transact(&request)?;
        // The module refuses this shutdown request.
        let refused = if service == Service::Shutdown { 2 } else { 1 };
        are(t, service, [4, 4, refused, 0])?;
        let mut unknown = request.clone();
        unknown.kind = 9;
        channel.transact(&unknown)?;
        are(t, service, [5, 5, refused + 1, 0])?;
        let mut short = request.clone();
        short.body.truncate(1);
        channel.transact(&short)?;
        are(t, service, [6, 6, refused + 2, 0])?;
        let mut response = request.clone();
        response.flags = TRANSACTION | RESPONSE;
        channel.send(&response)?;
        channel.send_bytes(&[0xff; 16])?;
        channel.transact(&request)?;
        let refused = refused + if service == Service::Shutdown { 3 } else { 2 };
        are(t, service, [7, 7, refused, 2])?;
        let absent = ["late", "daemon", "state", "frozen"]
            .map(|name| format!("[ ! -e {} ]", file(service, name)));
        t.sh_ok(&absent.join(" && "))?;
        // A new binding counts anew.
        daemon::rebind(t, "unbind", service)?;
        daemon::rebind(t, "bind", service)?;
        are(t, service, [0, 0, 0, 0])?;
    }
    Ok(())
}

/// A request counts when it arrives. Its reply counts when it is sent. The end of an enumeration is no refusal.
fn numbers_of_a_daemon(t: &Context<'_>) -> Result<()> {
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    are(t, Service::Kvp, [1, 1, 0, 0])?;
    talk.expect("a key", kvp::enumerate(kvp::AUTO, 0), S_OK)?;
    are(t, Service::Kvp, [2, 2, 0, 0])?;
    talk.expect("the end", kvp::enumerate(kvp::AUTO, 99), E_NO_MORE_ITEMS)?;
    are(t, Service::Kvp, [3, 3, 0, 0])?;
    daemon::KVP.stop(t)?;
    let request = talk.pend(kvp::enumerate(kvp::AUTO, 1))?;
    are(t, Service::Kvp, [4, 3, 0, 0])?;
    daemon::KVP.resume(t)?;
    talk.promptly("the resumed daemon", &request, S_OK)?;
    are(t, Service::Kvp, [4, 4, 0, 0])?;

    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    talk.expect("without a daemon", vss::body(vss::FREEZE), E_FAIL)?;
    are(t, Service::Vss, [2, 2, 1, 0])?;
    reads(t, Service::Vss, "late", "0")
}

/// `daemon` is `registered` from the daemon's registration until its exit.
fn daemon_comes_and_goes(t: &Context<'_>) -> Result<()> {
    for &service in removal::services(t) {
        let its_daemon = Daemon::of(service);
        for _ in 0..2 {
            reads(t, service, "daemon", "absent")?;
            reads(t, service, "daemon_age", "none")?;
            its_daemon.start(t)?;
            wait_for(
                t,
                &format!("grep -q '^registered$' {}", file(service, "daemon")),
            )?;
            let since = Instant::now();
            let age = number(t, service, "daemon_age")?;
            t.sh_ok("sleep 1")?;
            let later = number(t, service, "daemon_age")?;
            t.check(
                later >= age + 1000 && Duration::from_millis(later - age) <= since.elapsed() * 2,
                &format!("daemon_age grows as time does: {age} ms, {later} ms"),
            )?;
            its_daemon.kill(t)?;
            wait_for(
                t,
                &format!("grep -q '^absent$' {}", file(service, "daemon")),
            )?;
        }
    }
    Ok(())
}

/// `state` says what the module waits for, `state_age` for how long. `late` counts time-outs.
fn state(t: &Context<'_>) -> Result<()> {
    let is = |service, text| wait_for(t, &format!("grep -q '^{text}$' {}", file(service, "state")));
    let kvp = Talk::with(t, Service::Kvp);
    is(Service::Kvp, "host")?;
    // The offer waits for a daemon.
    let offer = Message::negotiation(&[(3, 0)], &[(5, 0)], 1);
    kvp.channel.send(&offer)?;
    is(Service::Kvp, "daemon")?;
    daemon::KVP.start(t)?;
    kvp.promptly("the negotiation", &offer, S_OK)?;
    is(Service::Kvp, "host")?;
    reads(t, Service::Kvp, "late", "0")?;
    // The daemon does not answer the request in time.
    daemon::KVP.stop(t)?;
    let request = kvp.channel.request(kvp::enumerate(kvp::AUTO, 0))?;
    kvp.channel.send(&request)?;
    is(Service::Kvp, "answer")?;
    t.sh_ok("sleep 10")?;
    let age = number(t, Service::Kvp, "state_age")?;
    t.check(
        (9_000..20_000).contains(&age),
        &format!("state_age is 10 s ({age} ms)"),
    )?;
    kvp.within("too late", &request, E_FAIL, Duration::from_secs(40))?;
    is(Service::Kvp, "host")?;
    reads(t, Service::Kvp, "late", "1")?;
    let age = number(t, Service::Kvp, "state_age")?;
    t.check(age < 9_000, &format!("state_age restarts ({age} ms)"))?;
    daemon::KVP.resume(t)?;
    // The daemon answers the next question in time.
    kvp.expect("the next", kvp::enumerate(kvp::AUTO, 0), S_OK)?;
    reads(t, Service::Kvp, "late", "1")?;
    kvp.finish()
}

/// `frozen` names the frozen file systems, and `frozen_age` says for how long, until somebody thaws them.
fn frozen(t: &Context<'_>) -> Result<()> {
    let is = |text: &str| {
        let read = value(t, Service::Vss, "frozen")?;
        let mut names: Vec<&str> = read.split(' ').collect();
        names.sort_unstable();
        t.equal("frozen", names.join(" ").as_str(), text)
    };
    let since = || number(t, Service::Vss, "frozen_age");
    let (disk, other) = (Disk::new(t)?, Disk::numbered(t, 1)?);
    let talk = Talk::begin(t, Service::Vss, daemon::VSS)?;
    is("none")?;
    reads(t, Service::Vss, "frozen_age", "none")?;
    let start = Instant::now();
    freeze(talk, &disk)?;
    other.is_frozen()?;
    is("ram0 ram1")?;
    let before = since()?;
    t.sh_ok("sleep 1")?;
    let after = since()?;
    t.check(
        after >= before + 1000 && Duration::from_millis(after) <= start.elapsed() * 2,
        &format!("frozen_age grows as time does: {before} ms, {after} ms"),
    )?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    is("none")?;
    reads(t, Service::Vss, "frozen_age", "none")?;
    disk.is_written()?;
    // Somebody thaws one file system, and the module the other one.
    freeze(talk, &disk)?;
    t.sh_ok("fsfreeze --unfreeze /mnt1")?;
    is("ram0")?;
    reads(t, Service::Vss, "frozen_age", "none")?;
    daemon::VSS.kill(t)?;
    is("ram0")?;
    talk.channel.negotiate_all()?;
    wait_for(
        t,
        &format!("grep -q '^none$' {}", file(Service::Vss, "frozen")),
    )?;
    disk.finish()?;
    other.finish()
}

/// All attributes but `application_state` are read-only, even for root. All but `frozen` are readable by everybody.
fn for_reading(t: &Context<'_>) -> Result<()> {
    let folder = "/sys/bus/vmbus/devices/*/hv_utils";
    let modes = t.sh_ok(&format!(
        "stat -c '%a %n' {folder}/* | sed 's,/.*/,,' | sort -u"
    ))?;
    let mode = |name: &&str| match *name {
        "frozen" => "400",
        _ => "444",
    };
    let mut expected: Vec<String> = NAMES
        .iter()
        .map(|name| format!("{} {name}", mode(name)))
        .collect();
    expected.push("644 application_state".to_owned());
    expected.sort();
    t.equal("modes", modes, expected.join("\n"))?;
    let wrote = t.sh(&format!(
        "for file in {folder}/*; do \
             case $file in */application_state) continue ;; esac; \
             for text in 0 1 none x; do echo $text 2>&1 >$file; done; \
         done"
    ))?;
    let others = wrote
        .text
        .lines()
        .find(|line| !line.contains("Permission denied"));
    t.equal("a write that is not refused", others, None)?;
    let files = t.sh_ok(&format!("ls {folder}/* | grep -vc application_state"))?;
    let files: usize = files.parse().map_err(|_| "no number of files".to_owned())?;
    t.equal("refusals", wrote.text.lines().count(), 4 * files)
}

/// Programs read all attributes while devices are unbound and bound, and while the module is removed and inserted.
fn removal_under_readers(t: &Context<'_>) -> Result<()> {
    t.sh_ok(
        "cd /tmp && rm -f over ended.*; for i in 1 2; do \
             { until [ -e over ]; do cat /sys/bus/vmbus/devices/*/hv_utils/*; done >/dev/null 2>&1; \
             : >ended.$i; } & done",
    )?;
    let services = [
        Service::Heartbeat,
        Service::TimeSync,
        Service::Kvp,
        Service::Vss,
    ];
    for _ in 0..t.often((5, 50)) {
        for service in services {
            daemon::rebind(t, "unbind", service)?;
            daemon::rebind(t, "bind", service)?;
        }
        t.unload()?;
        t.load()?;
    }
    wait_for(t, "cd /tmp && : >over && [ -e ended.1 ] && [ -e ended.2 ]")
}

/// A program reads `version` while the device is unbound and bound. Each read returns the version, or fails as the file
/// does not exist.
fn end(t: &Context<'_>) -> Result<()> {
    let version = file(Service::Heartbeat, "version");
    t.sh_ok(&format!(
        "cd /tmp && rm -f over && {{ until [ -e over ]; do cat {version}; done >read 2>&1; : >ended; }} &"
    ))?;
    for _ in 0..t.often((10, 100)) {
        daemon::rebind(t, "unbind", Service::Heartbeat)?;
        t.sh_ok(&format!("[ ! -e {version} ]"))?;
        daemon::rebind(t, "bind", Service::Heartbeat)?;
        t.channel(Service::Heartbeat).negotiate_all()?;
    }
    daemon::wait_for(t, "cd /tmp && : >over && [ -e ended ]")?;
    let other = t.sh("grep -vE '^(none|3.0)$|No such (file or directory|device)' /tmp/read")?;
    t.equal("other texts", other.text.as_str(), "")?;
    t.sh_ok("grep -q '^3.0$' /tmp/read").map(|_| ())
}
