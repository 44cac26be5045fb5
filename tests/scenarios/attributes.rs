// SPDX-License-Identifier: GPL-2.0

//! What user space reads in `hv_utils/`, in the directory of each device in sysfs.

use host::guest::Result;
use host::ic::frame::Message;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon;
use crate::daemon::Talk;
use crate::daemon::QUIET;
use crate::heartbeat::marked;
use crate::heartbeat::tells;
use crate::heartbeat::MARK;
use crate::scenario::Context;
use crate::scenario::Scenario;

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
    Scenario::new("attributes_end_with_the_driver", end)
        .rust_only()
        .scripted(&[Service::Heartbeat])
        .versions(),
];

/// The attribute's file.
pub fn file(service: Service, name: &str) -> String {
    format!(
        "/sys/bus/vmbus/devices/{}/hv_utils/{name}",
        service.instance()
    )
}

/// Checks what the attribute says.
pub fn reads(t: &Context<'_>, service: Service, name: &str, text: &str) -> Result<()> {
    // What comes last keeps the newline before it.
    let read = t.sh_ok(&format!("cat {}; echo end", file(service, name)))?;
    t.equal(
        &format!("{name} of {service}"),
        read.as_str(),
        &format!("{text}\nend"),
    )
}

/// What was agreed on last. It is for reading only.
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

/// As long as an offer waits for a daemon nothing is agreed on, whatever was before.
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

/// What is written is what the host gets with the next beat, and nothing else is taken. It ends with the binding.
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
                &format!("{other} is refused (it says {:?})", wrote.text),
            )?;
            reads(t, Service::Heartbeat, NAME, "stopped")?;
        }
        daemon::rebind(t, "unbind", Service::Heartbeat)?;
        daemon::rebind(t, "bind", Service::Heartbeat)?;
    }
    let devices = t.sh_ok("ls -d /sys/bus/vmbus/devices/*/hv_utils/application_state | wc -l")?;
    t.equal("devices that have it", devices.as_str(), "1")
}

/// Reading goes on while the device is unbound and bound: each read gives the version, or that there is no file.
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
