// SPDX-License-Identifier: GPL-2.0

//! Each attribute and each tracepoint shows the host's last action, in a Debian with packages that apt has installed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;
use std::time::Instant;

use host::guest::Result;
use host::ic::heartbeat;
use host::ic::kvp;
use host::ic::timesync;
use host::ic::vss;
use host::ic::E_FAIL;
use host::ic::S_OK;
use host::images::build_folder;
use host::service::Service;

use crate::attributes::file;
use crate::daemon::wait_for;
use crate::daemon::Talk;
use crate::framing;
use crate::scenario::Context;
use crate::systemd;
use crate::systemd::wait;
use crate::systemd::LONG;

/// Texts that [`everything`] leaves in the log.
pub const LOG: &[&str] = &[
    "no version that is known",
    "unexpected message of type 9",
    "packet ignored",
    "fails, status",
    "TimeSync: samples ahead of the reference time",
];

const TRACING: &str = "/sys/kernel/tracing";

/// The services whose devices are bound to this project's module, with their names in the log.
const SERVICES: [(Service, &str); 5] = [
    (Service::Heartbeat, "Heartbeat"),
    (Service::TimeSync, "TimeSync"),
    (Service::Shutdown, "Shutdown"),
    (Service::Kvp, "KVP"),
    (Service::Vss, "VSS"),
];

/// The services that have a daemon, with the daemon's unit.
const DAEMONS: [(Service, &str); 2] = [
    (Service::Kvp, "hv-kvp-daemon"),
    (Service::Vss, "hv-vss-daemon"),
];

/// An hour, in units of 100 ns.
const HOUR: u64 = 3600 * 10_000_000;

/// The attributes and tracepoints that were seen.
struct Seen<'a> {
    t: &'a Context<'a>,
    attributes: RefCell<BTreeSet<&'static str>>,
    events: RefCell<BTreeSet<&'static str>>,
}

impl Seen<'_> {
    /// Waits until the attribute's whole text matches the pattern.
    fn attribute(&self, service: Service, name: &'static str, pattern: &str) -> Result<()> {
        self.attributes.borrow_mut().insert(name);
        let file = file(service, name);
        wait_for(self.t, &format!("grep -qxE '{pattern}' {file}")).map_err(|error| {
            let is = self.t.sh(&format!("cat {file}"));
            let is = is.map(|output| output.text);
            format!("{name} of {service} is {is:?}: {error}").into()
        })
    }

    /// Returns the number in the attribute.
    fn number(&self, service: Service, name: &'static str) -> Result<i64> {
        self.attributes.borrow_mut().insert(name);
        let text = self.t.sh_ok(&format!("cat {}", file(service, name)))?;
        text.parse()
            .map_err(|error| format!("{name} of {service}: {text:?}: {error}").into())
    }

    /// Checks that `act` increases these attributes by one.
    fn grow(
        &self,
        service: Service,
        names: &[&'static str],
        act: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let before: Result<Vec<i64>> = names
            .iter()
            .map(|&name| self.number(service, name))
            .collect();
        act()?;
        for (&name, before) in names.iter().zip(before?) {
            self.attribute(service, name, &(before + 1).to_string())?;
        }
        Ok(())
    }

    /// Checks that the milliseconds in the attribute grow with time, and do not exceed the time since `since`.
    fn age(&self, service: Service, name: &'static str, since: Instant) -> Result<()> {
        let before = self.number(service, name)?;
        self.t.sh_ok("sleep 1")?;
        let after = self.number(service, name)?;
        // The guest's clock can run faster than the host's.
        let most = 2 * since.elapsed().as_millis() as i64;
        self.t.check(
            before >= 0 && after >= before + 900 && after <= most,
            &format!("{name} of {service} grows as time does: {before} ms, {after} ms of {most}"),
        )
    }

    /// Waits until the trace has an event with these fields. [`Seen::forget`] clears the trace.
    fn event(&self, name: &'static str, fields: &str) -> Result<()> {
        self.events.borrow_mut().insert(name);
        wait_for(
            self.t,
            &format!("grep -qE ' {name}: {fields}$' {TRACING}/trace"),
        )
        .map_err(|error| {
            let is = self.t.sh(&format!("grep hv_utils_ {TRACING}/trace"));
            let is = is.map(|output| output.text);
            format!("{name}: {fields} is not in {is:?}: {error}").into()
        })
    }

    /// Clears the trace.
    fn forget(&self) -> Result<()> {
        self.t.sh_ok(&format!("echo >{TRACING}/trace")).map(|_| ())
    }
}

/// The body of a plain request.
fn plain(t: &Context<'_>, service: Service) -> Result<Vec<u8>> {
    Ok(match service {
        Service::Kvp => kvp::enumerate(kvp::AUTO, 0),
        Service::Vss => vss::body(vss::HOT_BACKUP),
        _ => framing::request(t, service)?.body,
    })
}

/// The host does something of each kind, and each attribute and each tracepoint shows it. An attribute or a tracepoint
/// that no step looks at fails the scenario.
pub fn everything(t: &Context<'_>) -> Result<()> {
    let seen = Seen {
        t,
        attributes: RefCell::default(),
        events: RefCell::default(),
    };
    wait(t, "systemctl is-system-running >/dev/null")?;
    for (_, unit) in DAEMONS {
        wait(t, &format!("systemctl --quiet is-active {unit}"))?;
    }
    for (service, _) in SERVICES {
        let channel = t.channel(service);
        let (major, minor) = channel.wait_negotiated()?.message;
        channel.script()?;
        seen.attribute(service, "version", &format!("{major}.{minor}"))?;
    }
    t.sh_ok(&format!("echo 1 >{TRACING}/events/hv_utils/enable"))?;
    for (service, name) in SERVICES {
        requests(&seen, service, name)?;
    }
    for (service, unit) in DAEMONS {
        daemons(&seen, service, unit)?;
    }
    too_late(&seen)?;
    backup(&seen)?;
    health(&seen)?;
    clock(&seen)?;
    t.sh_ok(&format!("echo 0 >{TRACING}/events/hv_utils/enable"))?;

    let all = |list: &str| -> Result<BTreeSet<String>> {
        Ok(t.sh_ok(list)?.lines().map(str::to_owned).collect())
    };
    let own = |names: &RefCell<BTreeSet<&'static str>>| -> BTreeSet<String> {
        names.borrow().iter().map(|&name| name.to_owned()).collect()
    };
    t.equal(
        "attributes that were seen",
        own(&seen.attributes),
        all("ls -d /sys/bus/vmbus/devices/*/hv_utils/* | sed 's,.*/,,'")?,
    )?;
    t.equal(
        "tracepoints that were seen",
        own(&seen.events),
        all(&format!(
            "ls -d {TRACING}/events/hv_utils/*/ | sed 's,/$,,; s,.*/,,'"
        ))?,
    )?;
    t.sh_ok("systemctl stop hv-kvp-daemon hv-vss-daemon hv-fcopy-uio-daemon")
        .map(|_| ())
}

/// The host sends a negotiation, a request, a request that fails, and a malformed packet.
fn requests(seen: &Seen<'_>, service: Service, name: &str) -> Result<()> {
    let t = seen.t;
    let channel = t.channel(service);
    let answered = ["requests", "replies"];
    let failed = ["requests", "replies", "refused"];
    seen.forget()?;
    seen.grow(service, &failed, || {
        channel.negotiate_in_vain(&[(3, 0)], &[(9, 9)])
    })?;
    seen.attribute(service, "version", "none")?;
    seen.event(
        "hv_utils_negotiation",
        &format!("service={name} version=0.0"),
    )?;
    t.log_has(&format!("{name}: the host offers no version that is known"))?;
    seen.grow(service, &answered, || channel.negotiate_all().map(|_| ()))?;
    let versions = channel.versions()?.ok_or("no versions")?;
    let (major, minor) = versions.message;
    seen.attribute(service, "version", &format!("{major}.{minor}"))?;
    seen.event(
        "hv_utils_negotiation",
        &format!("service={name} version={major}.{minor}"),
    )?;

    // The request to shut down fails.
    let (numbers, status) = match service {
        Service::Shutdown => (&failed[..], E_FAIL),
        _ => (&answered[..], S_OK),
    };
    let request = channel.request(plain(t, service)?)?;
    let kind = request.kind;
    seen.grow(service, numbers, || {
        let reply = channel.transact(&request)?;
        t.equal("status", reply.status, status)
    })?;
    seen.event(
        "hv_utils_request",
        &format!("service={name} transaction=[0-9]+ type={kind} len=[0-9]+"),
    )?;
    seen.event(
        "hv_utils_reply",
        &format!("service={name} transaction=[0-9]+ status={status:#x} latency=[1-9][0-9]* sent=1"),
    )?;
    if DAEMONS.iter().any(|(other, _)| *other == service) {
        seen.event("hv_utils_asked", &format!("service={name} len=[0-9]+"))?;
        seen.event(
            "hv_utils_answered",
            &format!("service={name} outcome=answered"),
        )?;
    }

    let mut other = request.clone();
    other.kind = 9;
    seen.grow(service, &failed, || {
        let reply = channel.transact(&other)?;
        t.equal("status", reply.status, E_FAIL)
    })?;
    seen.event(
        "hv_utils_reply",
        &format!("service={name} .* status={E_FAIL:#x} .*"),
    )?;
    t.log_has(&format!("{name}: unexpected message of type 9"))?;
    seen.grow(service, &["ignored"], || channel.send_bytes(&[0xff; 16]))?;
    seen.event("hv_utils_ignored", &format!("service={name} reason=short"))
}

/// The daemon is stopped, and started again.
fn daemons(seen: &Seen<'_>, service: Service, unit: &str) -> Result<()> {
    let t = seen.t;
    seen.attribute(service, "daemon", "registered")?;
    seen.attribute(service, "daemon_age", "[0-9]+")?;
    t.sh_ok(&format!("systemctl stop {unit}"))?;
    seen.attribute(service, "daemon", "absent")?;
    seen.attribute(service, "daemon_age", "none")?;
    let since = Instant::now();
    t.sh_ok(&format!("systemctl start {unit}"))?;
    seen.attribute(service, "daemon", "registered")?;
    seen.age(service, "daemon_age", since)
}

/// The daemon hangs.
fn too_late(seen: &Seen<'_>) -> Result<()> {
    let t = seen.t;
    let talk = Talk::with(t, Service::Kvp);
    let signal = |name: &str| {
        t.sh_ok(&format!(
            "kill -{name} $(systemctl show --property=MainPID --value hv-kvp-daemon)"
        ))
    };
    seen.attribute(Service::Kvp, "state", "host")?;
    seen.grow(Service::Kvp, &["late", "refused"], || {
        signal("STOP")?;
        let since = Instant::now();
        let request = talk.channel.request(plain(t, Service::Kvp)?)?;
        talk.channel.send(&request)?;
        seen.attribute(Service::Kvp, "state", "answer")?;
        seen.age(Service::Kvp, "state_age", since)?;
        talk.within("too late", &request, E_FAIL, Duration::from_secs(LONG))?;
        signal("CONT").map(|_| ())
    })?;
    seen.attribute(Service::Kvp, "state", "host")?;
    seen.event("hv_utils_answered", "service=KVP outcome=timed out")?;
    t.log_has("KVP: no answer from the daemon, time-out: ENUMERATE fails, status 0x80004005")
}

/// The host backs up a file system on a RAM disk.
fn backup(seen: &Seen<'_>) -> Result<()> {
    let t = seen.t;
    t.sh_ok(
        "modprobe brd && mkfs.ext4 -q -F /dev/ram0 && mkdir -p /mnt && mount -t ext4 /dev/ram0 /mnt",
    )?;
    let talk = Talk::with(t, Service::Vss);
    seen.attribute(Service::Vss, "frozen", "none")?;
    seen.attribute(Service::Vss, "frozen_age", "none")?;
    let since = Instant::now();
    talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    seen.attribute(Service::Vss, "frozen", "ram0")?;
    seen.age(Service::Vss, "frozen_age", since)?;
    seen.event("hv_utils_frozen", "device=ram0")?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    seen.attribute(Service::Vss, "frozen", "none")?;
    seen.attribute(Service::Vss, "frozen_age", "none")?;
    seen.event(
        "hv_utils_thawed",
        "device=ram0 error=0 cause=the daemon, or somebody else",
    )?;
    t.sh_ok("umount /mnt && rmmod brd").map(|_| ())
}

/// The host receives the state of the guest's applications.
fn health(seen: &Seen<'_>) -> Result<()> {
    let t = seen.t;
    let talk = Talk::with(t, Service::Heartbeat);
    let file = file(Service::Heartbeat, "application_state");
    for (number, state) in (0..).zip(["unknown", "healthy", "critical", "stopped"]) {
        t.sh_ok(&format!("echo {state} >{file}"))?;
        seen.attribute(Service::Heartbeat, "application_state", state)?;
        let beat = heartbeat::body(1, heartbeat::RESERVED);
        let reply = talk.expect("a beat", beat, S_OK)?;
        t.equal(
            state,
            heartbeat::application_state(&reply.body),
            Some(number),
        )?;
    }
    t.sh_ok(&format!("echo healthy >{file}")).map(|_| ())
}

/// The host sends the quality of its clock, and its time.
fn clock(seen: &Seen<'_>) -> Result<()> {
    const AHEAD: i64 = 1000;
    let t = seen.t;
    let talk = Talk::with(t, Service::TimeSync);
    let mut moment = t.moment();
    moment.wall += AHEAD as u64 * 10_000_000;
    let since = Instant::now();
    let body = timesync::body((4, 0), &moment, timesync::SAMPLE);
    talk.expect("a sample", timesync::with_quality(body, 1, 3), S_OK)?;
    seen.attribute(Service::TimeSync, "leap", "1")?;
    seen.attribute(Service::TimeSync, "stratum", "3")?;
    seen.age(Service::TimeSync, "age", since)?;
    let offset = seen.number(Service::TimeSync, "offset")? / 1_000_000_000;
    t.check(
        (AHEAD - 60..AHEAD + 60).contains(&offset),
        &format!("the offset is {offset} s, some {AHEAD} s"),
    )?;
    seen.grow(Service::TimeSync, &["samples_ahead"], || {
        let mut moment = t.moment();
        moment.reference += HOUR;
        let body = timesync::body((4, 0), &moment, timesync::SAMPLE);
        talk.expect("a sample that is ahead", body, S_OK)
            .map(|_| ())
    })?;
    t.log_has("TimeSync: samples ahead of the reference time: 1, the last one by 3")
}

/// The example for bpftrace in `administration.rst`.
fn example() -> Result<String> {
    let page = build_folder().with_file_name("Documentation/administration.rst");
    let text =
        std::fs::read_to_string(&page).map_err(|error| format!("{}: {error}", page.display()))?;
    let script = text
        .split_once("# bpftrace -e '")
        .and_then(|(_, rest)| rest.split_once('\''))
        .ok_or("the page has no example of bpftrace")?;
    Ok(script.0.to_owned())
}

/// Debian's bpftrace runs the example. The output has the failed request and the latency of all requests.
pub fn by_bpftrace(t: &Context<'_>) -> Result<()> {
    systemd::has_driver(t, "uio_hv_generic")?;
    for (service, _) in SERVICES {
        let channel = t.channel(service);
        channel.wait_negotiated()?;
        channel.script()?;
    }
    t.sh_ok(&format!(
        "cat >/tmp/script <<'EOF'\n{}\nEOF\n\
         cd /tmp && {{ setsid sh -c 'exec bpftrace -e \"$(cat script)\"' >traced 2>&1 & echo $! >tracer; }}",
        example()?
    ))?;
    let said = |error| -> host::guest::Error {
        let said = t.sh("cat /tmp/traced").map(|output| output.text);
        format!("{error}; bpftrace says {said:?}").into()
    };
    wait(
        t,
        "grep -q ^Attach /tmp/traced || ! kill -0 $(cat /tmp/tracer)",
    )
    .map_err(said)?;
    let begin = Instant::now();
    let has = |text: &str| -> Result<bool> {
        Ok(t.sh(&format!("grep -q '{text}' /tmp/traced"))?.status == 0)
    };
    // bpftrace does not print when its probes are attached.
    while !has("Shutdown fails: 80004005")? {
        if begin.elapsed() > Duration::from_secs(LONG) {
            return Err(said("no request is seen to fail".into()));
        }
        let channel = t.channel(Service::Shutdown);
        channel.transact(&framing::request(t, Service::Shutdown)?)?;
        // The log has a line for each request, and is rate limited.
        std::thread::sleep(Duration::from_secs(1));
    }
    for service in [Service::Heartbeat, Service::Kvp, Service::Vss] {
        let channel = t.channel(service);
        channel.transact(&channel.request(plain(t, service)?)?)?;
    }
    t.sh_ok("kill -INT $(cat /tmp/tracer)")?;
    wait(t, "! kill -0 $(cat /tmp/tracer) 2>/dev/null").map_err(said)?;
    for service in ["Heartbeat", "Shutdown", "KVP", "VSS"] {
        t.check(has(&format!("^@us\\[{service}\\]:"))?, "a histogram")
            .map_err(|_| said(format!("no histogram of {service}").into()))?;
    }
    println!("# bpftrace says:");
    for line in t.sh_ok("cat /tmp/traced")?.lines() {
        println!("# {line}");
    }
    t.sh_ok("systemctl stop hv-kvp-daemon hv-vss-daemon hv-fcopy-uio-daemon")
        .map(|_| ())
}
