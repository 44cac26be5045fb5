// SPDX-License-Identifier: GPL-2.0

//! The module's tracepoints, read from tracefs.

use std::time::Duration;

use host::guest::Guest;
use host::guest::Result;
use host::ic::frame::Message;
use host::ic::frame::RESPONSE;
use host::ic::frame::TRANSACTION;
use host::ic::kvp;
use host::ic::vss;
use host::ic::E_FAIL;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon;
use crate::daemon::wait_for;
use crate::daemon::Talk;
use crate::framing;
use crate::scenario::Context;
use crate::scenario::Scenario;
use crate::vss::freeze;
use crate::vss::Disk;

/// The services that answer at once.
const AT_ONCE: [Service; 3] = [Service::Heartbeat, Service::TimeSync, Service::Shutdown];

/// All tracepoints of the module.
const EVENTS: [&str; 8] = [
    "hv_utils_answered",
    "hv_utils_asked",
    "hv_utils_frozen",
    "hv_utils_ignored",
    "hv_utils_negotiation",
    "hv_utils_reply",
    "hv_utils_request",
    "hv_utils_thawed",
];

const TRACING: &str = "/sys/kernel/tracing";

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("trace_events", events)
        .everywhere()
        .rust_only(),
    Scenario::new("trace_requests", requests)
        .rust_only()
        .scripted(&AT_ONCE)
        .expects_log(&[
            "no version that is known",
            "unexpected message of type",
            "packet ignored",
            "fails, status",
        ]),
    Scenario::new("trace_one_of_them", one)
        .rust_only()
        .scripted(&[Service::Heartbeat]),
    Scenario::new("trace_daemon", of_a_daemon)
        .rust_only()
        .daemons(),
    Scenario::new("trace_daemon_times_out", times_out)
        .waits()
        .rust_only()
        .daemons()
        .expects_log(&["fails, status"]),
    Scenario::new("trace_backup", backup)
        .rust_only()
        .daemons()
        .expects_log(&["fsfreeze --unfreeze MOUNTPOINT"]),
    Scenario::new("trace_removal_under_a_reader", removal)
        .rust_only()
        .scripted(&[Service::Heartbeat]),
];

/// Traces events until this is dropped. The names of events lack their prefix `hv_utils_`.
#[must_use]
struct Tracing<'a>(&'a Guest);

impl<'a> Tracing<'a> {
    /// Enables the events that match `events`: `*` for all.
    fn begin(t: &'a Context<'_>, events: &str) -> Result<Self> {
        t.sh_ok(&format!(
            "cd {TRACING} && echo >trace && for file in events/hv_utils/hv_utils_{events}/enable; do \
             echo 1 >$file || exit; done"
        ))?;
        Ok(Self(t))
    }

    /// The lines traced since the last call, each from the event's name on.
    fn take(&self) -> Result<Vec<String>> {
        let text = self.0.sh_ok(&format!(
            "cd {TRACING} && sed -n 's/^[^#].*[0-9]: hv_utils_\\([a-z]*: \\)/\\1/p' trace && echo >trace"
        ))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// As [`Tracing::take`], but only the lines of one service.
    fn take_of(&self, service: &str) -> Result<Vec<String>> {
        let mut lines = self.take()?;
        lines.retain(|line| line.contains(&format!("service={service} ")));
        Ok(lines)
    }
}

impl Drop for Tracing<'_> {
    fn drop(&mut self) {
        // Ignore errors: the module may be gone, and its events with it.
        drop(self.0.sh(&format!(
            "cd {TRACING} && echo 0 >events/hv_utils/enable; echo >trace"
        )));
    }
}

/// The number in a field of a line.
fn field(line: &str, name: &str) -> Result<u64> {
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("{name} in {line:?}").into())
}

/// Checks the lines without the fields `transaction` and `latency`, which differ in each run.
fn are(t: &Context<'_>, lines: &[String], expected: &[&str]) -> Result<()> {
    let stripped: Vec<String> = lines
        .iter()
        .map(|line| {
            let words = line
                .split(' ')
                .filter(|word| !word.starts_with("transaction=") && !word.starts_with("latency="));
            words.collect::<Vec<_>>().join(" ")
        })
        .collect();
    t.equal("traced", stripped.join("\n"), expected.join("\n"))
}

/// The module is out of tree and unsigned. It has its tracepoints nevertheless, until it is removed.
fn events(t: &Context<'_>) -> Result<()> {
    if !t.config().built_in {
        let taints = t.sh_ok("cat /sys/module/hv_utils/taint")?;
        t.check(taints.contains('O'), &format!("out of tree ({taints})"))?;
    }
    let names = t.sh_ok(&format!(
        "cd {TRACING}/events/hv_utils && for name in */; do echo ${{name%/}}; done"
    ))?;
    t.equal("events", names, EVENTS.join("\n"))?;
    let enabled = t.sh_ok(&format!("cat {TRACING}/events/hv_utils/enable"))?;
    t.equal("enabled at first", enabled.as_str(), "0")?;
    if t.config().built_in {
        return Ok(());
    }
    t.unload()?;
    t.sh_ok(&format!("[ ! -e {TRACING}/events/hv_utils ]"))?;
    t.load()
}

/// A request that fails is traced with its status. A packet that gets no answer is traced with the reason.
fn refused(t: &Context<'_>, tracing: &Tracing<'_>, service: Service, name: &str) -> Result<()> {
    let channel = t.channel(service);
    let request = framing::request(t, service)?;
    let kind = request.kind;
    let len = request.encode().len().next_multiple_of(8);
    let mut other = request.clone();
    other.kind = 9;
    channel.transact(&other)?;
    let mut short = request.clone();
    short.body.truncate(1);
    channel.transact(&short)?;
    are(
        t,
        &tracing.take()?,
        &[
            &format!("request: service={name} type=9 len={len}"),
            &format!("reply: service={name} status={E_FAIL:#x} sent=1"),
            &format!("request: service={name} type={kind} len=32"),
            &format!("reply: service={name} status={E_FAIL:#x} sent=1"),
        ],
    )?;
    let mut response = request.clone();
    response.flags = TRANSACTION | RESPONSE;
    channel.send(&response)?;
    channel.send_bytes(&[0xff; 16])?;
    wait_for(
        t,
        &format!("[ $(grep -c ' hv_utils_ignored: ' {TRACING}/trace) = 2 ]"),
    )?;
    are(
        t,
        &tracing.take()?,
        &[
            &format!("ignored: service={name} reason=response"),
            &format!("ignored: service={name} reason=short"),
        ],
    )
}

/// Each message of the host and each answer is traced, in order.
fn requests(t: &Context<'_>) -> Result<()> {
    let tracing = Tracing::begin(t, "*")?;
    for (service, name, version) in [
        (Service::Heartbeat, "Heartbeat", "3.0"),
        (Service::TimeSync, "TimeSync", "4.0"),
        (Service::Shutdown, "Shutdown", "3.2"),
    ] {
        let channel = t.channel(service);
        channel.negotiate_in_vain(&[(3, 0)], &[(9, 9)])?;
        are(
            t,
            &tracing.take()?,
            &[
                &format!("request: service={name} type=0 len=48"),
                &format!("negotiation: service={name} version=0.0"),
                &format!("reply: service={name} status=0x0 sent=1"),
            ],
        )?;
        channel.negotiate_all()?;
        let lines = tracing.take()?;
        t.equal("lines of a negotiation", lines.len(), 3)?;
        are(
            t,
            &lines[1..],
            &[
                &format!("negotiation: service={name} version={version}"),
                &format!("reply: service={name} status=0x0 sent=1"),
            ],
        )?;

        let request = framing::request(t, service)?;
        let kind = request.kind;
        let len = request.encode().len().next_multiple_of(8);
        let status = channel.transact(&request)?.status;
        let lines = tracing.take()?;
        are(
            t,
            &lines,
            &[
                &format!("request: service={name} type={kind} len={len}"),
                &format!("reply: service={name} status={status:#x} sent=1"),
            ],
        )?;
        t.equal(
            "transactions",
            field(&lines[0], "transaction")?,
            field(&lines[1], "transaction")?,
        )?;
        t.check(
            (1..10_000_000_000).contains(&field(&lines[1], "latency")?),
            &format!("latency in {:?}", lines[1]),
        )?;
        refused(t, &tracing, service, name)?;
    }
    drop(tracing);
    t.channel(Service::Heartbeat).negotiate_all()?;
    let lines = t.sh_ok(&format!("grep -vc '^#' {TRACING}/trace || true"))?;
    t.equal("lines while nobody traces", lines.as_str(), "0")
}

/// Events can be enabled one by one, and filtered by their fields.
fn one(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.negotiate_all()?;
    for (event, fields) in [
        ("request", "service=Heartbeat type=1 len=48"),
        ("reply", "service=Heartbeat status=0x0 sent=1"),
    ] {
        let tracing = Tracing::begin(t, event)?;
        let filter = format!("{TRACING}/events/hv_utils/hv_utils_{event}/filter");
        for (service, expected) in [
            ("Heartbeat", vec![format!("{event}: {fields}")]),
            ("KVP", Vec::new()),
        ] {
            t.sh_ok(&format!("echo 'service == \"{service}\"' >{filter}"))?;
            heartbeat.transact(&framing::request(t, Service::Heartbeat)?)?;
            let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            are(t, &tracing.take()?, &expected)?;
        }
        t.sh_ok(&format!("echo 0 >{filter}"))?;
    }
    Ok(())
}

/// The questions to a daemon are traced, with the latency of the host's request.
fn of_a_daemon(t: &Context<'_>) -> Result<()> {
    let tracing = Tracing::begin(t, "*")?;
    let talk = Talk::with(t, Service::Kvp);
    let offer = Message::negotiation(&[(3, 0)], &[(5, 0)], 1);
    talk.channel.send(&offer)?;
    wait_for(t, &format!("grep -q ' hv_utils_request: ' {TRACING}/trace"))?;
    are(
        t,
        &tracing.take_of("KVP")?,
        &["request: service=KVP type=0 len=48"],
    )?;
    daemon::KVP.start(t)?;
    talk.promptly("the negotiation", &offer, S_OK)?;
    are(
        t,
        &tracing.take_of("KVP")?,
        &[
            "negotiation: service=KVP version=5.0",
            "reply: service=KVP status=0x0 sent=1",
        ],
    )?;
    daemon::KVP.stop(t)?;
    let request = talk.pend(kvp::enumerate(kvp::AUTO, 0))?;
    t.sh_ok("sleep 1")?;
    daemon::KVP.resume(t)?;
    talk.promptly("the resumed daemon", &request, S_OK)?;
    let lines = tracing.take_of("KVP")?;
    let len = request.encode().len().next_multiple_of(8);
    are(
        t,
        &lines,
        &[
            &format!("request: service=KVP type=2 len={len}"),
            "asked: service=KVP len=7432",
            "answered: service=KVP outcome=answered",
            "reply: service=KVP status=0x0 sent=1",
        ],
    )?;
    let latency = field(&lines[3], "latency")?;
    t.check(
        (1_000_000_000..20_000_000_000).contains(&latency),
        &format!("the latency is a second ({latency} ns)"),
    )?;
    daemon::KVP.stop(t)?;
    let gone = talk.pend(kvp::enumerate(kvp::AUTO, 0))?;
    daemon::KVP.kill(t)?;
    daemon::KVP.start(t)?;
    talk.promptly("another daemon", &gone, S_OK)?;
    are(
        t,
        &tracing.take_of("KVP")?,
        &[
            &format!("request: service=KVP type=2 len={len}"),
            "asked: service=KVP len=7432",
            "answered: service=KVP outcome=gone",
            "asked: service=KVP len=7432",
            "answered: service=KVP outcome=answered",
            "reply: service=KVP status=0x0 sent=1",
        ],
    )?;
    drop(tracing);
    talk.finish()
}

/// The outcomes of a time-out, and of a host that negotiates anew, are traced.
fn times_out(t: &Context<'_>) -> Result<()> {
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    daemon::KVP.stop(t)?;
    let tracing = Tracing::begin(t, "*")?;
    let request = talk.pend(kvp::enumerate(kvp::AUTO, 0))?;
    talk.within("too late", &request, E_FAIL, Duration::from_secs(40))?;
    let lines = tracing.take_of("KVP")?;
    are(
        t,
        &lines[1..],
        &[
            "asked: service=KVP len=7432",
            "answered: service=KVP outcome=timed out",
            &format!("reply: service=KVP status={E_FAIL:#x} sent=1"),
        ],
    )?;
    let latency = field(&lines[3], "latency")?;
    t.check(
        (29_000_000_000..40_000_000_000).contains(&latency),
        &format!("the latency is 30 s ({latency} ns)"),
    )?;
    daemon::KVP.resume(t)?;
    talk.expect("the next", kvp::enumerate(kvp::AUTO, 0), S_OK)?;
    daemon::KVP.stop(t)?;
    talk.pend(kvp::enumerate(kvp::AUTO, 0))?;
    tracing.take_of("KVP")?;
    talk.channel.negotiate_all()?;
    let lines = tracing.take_of("KVP")?;
    t.check(
        lines
            .iter()
            .any(|line| line == "answered: service=KVP outcome=given up"),
        &format!("given up: {lines:?}"),
    )?;
    drop(tracing);
    daemon::KVP.resume(t)
}

/// The frozen file systems are traced, and who thaws them.
fn backup(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = Talk::begin(t, Service::Vss, daemon::VSS)?;
    let tracing = Tracing::begin(t, "[ft]*")?;
    freeze(talk, &disk)?;
    are(t, &tracing.take()?, &["frozen: device=ram0"])?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    are(
        t,
        &tracing.take()?,
        &["thawed: device=ram0 error=0 cause=the daemon, or somebody else"],
    )?;
    disk.is_written()?;
    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    are(
        t,
        &tracing.take()?,
        &[
            "frozen: device=ram0",
            "thawed: device=ram0 error=0 cause=the host asks for it",
        ],
    )?;
    drop(tracing);
    disk.finish()
}

/// Devices are bound and unbound, and the module is removed, while events are enabled and a program reads the trace.
fn removal(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    t.sh_ok(&format!(
        "cd {TRACING} && rm -f /tmp/traced && {{ setsid cat trace_pipe >/tmp/traced 2>/dev/null & }} && \
         echo $! >/tmp/reader"
    ))?;
    for _ in 0..t.often((5, 50)) {
        let tracing = Tracing::begin(t, "*")?;
        for _ in 0..3 {
            heartbeat.negotiate_all()?;
            heartbeat.transact(&framing::request(t, Service::Heartbeat)?)?;
            daemon::rebind(t, "unbind", Service::Heartbeat)?;
            daemon::rebind(t, "bind", Service::Heartbeat)?;
        }
        // The events are still enabled.
        t.unload()?;
        drop(tracing);
        t.load()?;
        heartbeat.wait_open()?;
    }
    t.sh_ok("kill $(cat /tmp/reader); grep -q 'service=Heartbeat' /tmp/traced")
        .map(|_| ())
}
