// SPDX-License-Identifier: GPL-2.0

//! Removal of devices and of the module during requests.

use std::time::Duration;

use host::guest::Module;
use host::guest::Result;
use host::ic::fcopy;
use host::ic::frame::Message;
use host::ic::kvp;
use host::ic::shutdown;
use host::ic::shutdown::HIBERNATE;
use host::ic::vss;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon;
use crate::daemon::wait_for;
use crate::daemon::Daemon;
use crate::daemon::ShellDaemon;
use crate::daemon::Talk;
use crate::daemon::PROMPT;
use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("removal_at_every_step", at_every_step)
        .daemons()
        .race()
        .rust_only()
        .expects_log(&["VSS: no answer from the daemon"]),
    Scenario::new("vss_unbound_under_packets", unbound_under_packets)
        .by_chance()
        .daemons()
        .race()
        .expects_log(&[
            "VSS: no answer from the daemon",
            "VSS: failed to communicate to the daemon",
            "callbacks suppressed",
        ]),
    Scenario::new("work_left_at_removal", work_left)
        .machine(Machine::TWO_PROCESSORS)
        .daemons()
        .rust_only(),
];

/// The steps of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The daemon can read the request.
    Asked,
    /// The daemon has read the request.
    Read,
    /// The host has the answer.
    Answered,
}

impl Step {
    /// All steps.
    pub const ALL: [Self; 3] = [Self::Asked, Self::Read, Self::Answered];

    /// Starts a daemon, and sends a request that reaches this step and goes no further.
    pub fn reach(self, t: &Context<'_>, service: Service) -> Result<ShellDaemon> {
        let answers = ShellDaemon::answers("/tmp/success");
        let script = match self {
            Self::Asked => ShellDaemon::READS_NOTHING,
            Self::Read => ShellDaemon::ANSWERS_NOTHING,
            Self::Answered => &answers,
        };
        let daemon = ShellDaemon::registered(t, service, script)?;
        let talk = Talk::with(t, service);
        talk.channel.negotiate_all()?;
        let request = talk.channel.request(request(service))?;
        talk.channel.send(&request)?;
        talk.channel.wait_read()?;
        match self {
            Self::Asked => {}
            Self::Read => wait_for(t, "[ -e /tmp/read ]")?,
            Self::Answered => talk.promptly("the request", &request, S_OK).map(|_| ())?,
        }
        Ok(daemon)
    }
}

/// A request for the daemon of the service.
pub fn request(service: Service) -> Vec<u8> {
    match service {
        Service::Vss => vss::body(vss::HOT_BACKUP),
        Service::FCopy => fcopy::start("/tmp", "file", fcopy::OVERWRITE, 1),
        _ => kvp::enumerate(kvp::AUTO, 1),
    }
}

/// The services that have daemons with this module, or with C.
pub fn services(t: &Context<'_>) -> &'static [Service] {
    match t.module() {
        Module::Rust => &daemon::SERVICES,
        Module::C => &[Service::Kvp, Service::Vss],
    }
}

/// Checks that the distribution's daemon serves the service. The channel must be open.
pub fn serves(t: &Context<'_>, service: Service) -> Result<()> {
    let daemon = Daemon::of(service);
    let talk = Talk::begin(t, service, daemon)?;
    talk.expect("a request", request(service), S_OK)?;
    daemon.kill(t)?;
    talk.finish()
}

/// At each step of a request, the device is unbound, or rescinded, or the module is removed once its daemon has died.
/// Afterwards the service works as after insertion.
fn at_every_step(t: &Context<'_>) -> Result<()> {
    let ways: [(&str, fn(&Context<'_>, Service, ShellDaemon) -> Result<()>); 3] = [
        ("unbind", unbind),
        ("rescind", rescind),
        ("rmmod", remove_module),
    ];
    for &service in services(t) {
        for step in Step::ALL {
            for (way, remove) in ways {
                let run = || -> Result<()> {
                    let daemon = step.reach(t, service)?;
                    remove(t, service, daemon)?;
                    // The request may have been answered before the removal.
                    t.channel(service).forget_surplus();
                    t.channel(service).wait_open()
                };
                run().map_err(|error| format!("{way} of {service}, {step:?}: {error}"))?;
            }
        }
        serves(t, service)?;
    }
    Ok(())
}

fn unbind(t: &Context<'_>, service: Service, daemon: ShellDaemon) -> Result<()> {
    let took = daemon::rebind(t, "unbind", service)?;
    t.check(took < PROMPT, &format!("unbinding took {took:?}"))?;
    daemon.kill(t)?;
    daemon::rebind(t, "bind", service).map(|_| ())
}

fn rescind(t: &Context<'_>, service: Service, daemon: ShellDaemon) -> Result<()> {
    let channel = t.channel(service);
    channel.rescind()?;
    channel.wait_released()?;
    channel.reoffer()?;
    daemon.kill(t)
}

fn remove_module(t: &Context<'_>, _: Service, daemon: ShellDaemon) -> Result<()> {
    let output = t.sh("rmmod hv_utils")?;
    t.check(output.status != 0, "rmmod is refused")?;
    daemon.kill(t)?;
    t.rmmod()?;
    t.load()
}

/// Writes to the driver's `unbind`. Repeats `act` of the host until the channel is closed.
fn unbind_meanwhile(t: &Context<'_>, mut act: impl FnMut() -> Result<()>) -> Result<()> {
    let id = Service::Vss.instance();
    t.sh_ok(&format!(
        "rm -f /tmp/unbound; {{ echo {id} >/sys/bus/vmbus/drivers/hv_utils/unbind; : >/tmp/unbound; }} \
         >/dev/null 2>&1 &"
    ))?;
    while t.channel(Service::Vss).is_open() {
        act()?;
    }
    wait_for(t, "[ -e /tmp/unbound ]")
}

/// Requests and negotiations come until the channel is closed.
fn unbound_under_packets(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::Vss);
    for _ in 0..20 {
        Talk::begin(t, Service::Vss, daemon::VSS)?;
        let offer = Message::negotiation(&[(3, 0)], &[(5, 0)], 99);
        let backup = channel.request(vss::body(vss::HOT_BACKUP))?;
        let info = channel.request(vss::body(vss::GET_DM_INFO))?;
        unbind_meanwhile(t, || {
            for message in [&info, &backup, &offer] {
                // The channel may be closed by now.
                if channel.send(message).is_err() {
                    break;
                }
            }
            std::thread::sleep(Duration::from_micros(500));
            Ok(())
        })?;
        daemon::VSS.wait_gone(t)?;
        daemon::rebind(t, "bind", Service::Vss)?;
        channel.wait_open()?;
    }
    // Chance decides which messages were answered.
    channel.forget_surplus();
    serves(t, Service::Vss)
}

/// A request schedules work on a processor that is busy with a real-time task. The module is removed on the other
/// processor. No work runs after the removal.
fn work_left(t: &Context<'_>) -> Result<()> {
    let hog = "until [ -e /tmp/go ]; do :; done";
    for _ in 0..3 {
        let shutdown = t.channel(Service::Shutdown);
        shutdown.wait_negotiated()?;
        t.sh_ok(&format!(
            "echo 1 | tee /sys/bus/vmbus/devices/{}/channels/*/cpu && \
             echo -1 >/proc/sys/kernel/sched_rt_runtime_us && rm -f /tmp/go && \
             {{ setsid taskset 2 chrt -f 50 sh -c ': >/tmp/hog; {hog}' >/dev/null 2>&1 & }}",
            Service::Shutdown.instance()
        ))?;
        wait_for(t, "[ -e /tmp/hog ]")?;
        shutdown.ask(shutdown::body(HIBERNATE, "asked by a test"))?;
        t.rmmod()?;
        t.sh_ok("rm /tmp/hog; : >/tmp/go; sleep 0.1")?;
        t.load()?;
    }
    Ok(())
}
