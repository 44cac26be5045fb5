// SPDX-License-Identifier: GPL-2.0

//! Hibernation up to the kernel's test levels (`/sys/power/pm_test`). Devices and channels are suspended and resumed.

use std::time::Duration;

use host::guest::Module;
use host::guest::Result;
use host::ic::frame::Message;
use host::ic::vss;
use host::ic::E_FAIL;
use host::ic::S_OK;
use host::ports;
use host::service::Service;

use crate::daemon::Talk;
use crate::daemon::QUIET;
use crate::framing;
use crate::removal;
use crate::removal::Step;
use crate::scenario::Context;
use crate::scenario::Scenario;

const SERVICES: [Service; 3] = [Service::Heartbeat, Service::Shutdown, Service::TimeSync];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("hibernation_devices", |t| {
        levels(t, &["freezer", "devices"])
    }),
    Scenario::new("hibernation_core", |t| {
        levels(t, &["platform", "processors", "core"])
    })
    .expects_log(EXPECTED)
    .versions(),
    Scenario::new("hibernation_without_a_daemon", without_a_daemon)
        .daemons()
        .rust_only()
        .expects_log(EXPECTED)
        .versions(),
    Scenario::new("hibernation_at_every_step", at_every_step)
        .daemons()
        .race()
        .scripted(&SERVICES)
        .expects_log(EXPECTED),
    Scenario::new("hibernation_rescinded_amid", rescinded_amid)
        .daemons()
        .race(),
];

/// Log texts during hibernation. `hv_suspend()` updates a static call with interrupts off, which causes a splat on the
/// debug kernel. The module logs requests that were not finished.
pub const EXPECTED: &[&str] = &[
    "WARNING: kernel/smp.c",
    "VSS: no answer from the daemon",
    "VSS: the backup is not consistent",
];

/// Prepares hibernation: no delay at the test level, and memory for the threads that the kernel starts on resume. The
/// kernel takes twice that from the memory for the image, so free what other scenarios have left in caches. Skips the
/// scenario if the kernel has no test levels.
fn prepare(t: &Context<'_>) -> Result<()> {
    if t.sh("[ -e /sys/power/pm_test ]")?.status != 0 {
        return t.skip("this kernel has no pm_test (CONFIG_PM_DEBUG)");
    }
    t.sh_ok(
        "echo 0 >/sys/module/hibernate/parameters/pm_test_delay && echo $((24 << 20)) >/sys/power/reserved_size && \
         sync && echo 3 >/proc/sys/vm/drop_caches",
    )
    .map(|_| ())
}

/// Hibernates and resumes. Channels are suspended, too.
pub fn hibernate(t: &Context<'_>) -> Result<()> {
    prepare(t)?;
    t.sh_ok("echo core >/sys/power/pm_test")?;
    t.sh_ok("echo disk >/sys/power/state")?;
    t.sh_ok("echo none >/sys/power/pm_test").map(|_| ())
}

/// The guest hibernates while a service waits for its daemon. The service waits again afterwards. It has forgotten the
/// host's earlier messages.
fn without_a_daemon(t: &Context<'_>) -> Result<()> {
    let kvp = t.channel(Service::Kvp);
    kvp.send(&Message::negotiation(&[(3, 0)], &[(4, 0)], 9))?;
    kvp.expect_silence(QUIET)?;
    hibernate(t)?;
    let services = removal::services(t);
    services
        .iter()
        .try_for_each(|&service| removal::serves(t, service))
}

/// How often the guest tries to send a message that the host has no room for.
const TRIES: u32 = 100;

/// The host rescinds a device while the guest hibernates: after the `freeze` phase of the device, and before
/// `freeze_noirq`, in which `hv_vmbus` suspends the device. The unbinding lasts longer, as the host has no room for the
/// guest's message that closes the channel. The guest hibernates and resumes, and serves the device when it comes back.
///
/// This is a race, which `make check` runs with this module only. It can be run by hand with C.
fn rescinded_amid(t: &Context<'_>) -> Result<()> {
    prepare(t)?;
    if t.config().vcpus < 2 {
        return t.skip("the race needs two processors");
    }
    if t.sh("uname -v | grep -q PREEMPT_RT")?.status == 0 {
        return t.skip("with PREEMPT_RT a thread prints to the console: the host reads the phases of the hibernation too late");
    }
    let kvp = t.channel(Service::Kvp);
    // Devices are frozen one by one, the newest first. This makes the device the newest: it is frozen long before the
    // serial ports.
    kvp.rescind()?;
    kvp.wait_released()?;
    kvp.reoffer()?;
    kvp.wait_open()?;
    // One processor hibernates, and the other does all else. The console has the phases of the hibernation. At this
    // level all processors stay on.
    t.sh_ok(
        "echo platform >/sys/power/pm_test; \
         echo 0 >/sys/power/pm_async; echo 1 >/sys/power/pm_debug_messages; \
         echo N >/sys/module/printk/parameters/console_suspend; dmesg -n 8; \
         taskset -p 1 $(pidof kdevtmpfs)",
    )?;
    let console = t.console_length();
    t.hold_at(ports::AGENT_MODEM_CONTROL, 0);
    let result = std::thread::scope(|scope| {
        let host = scope.spawn(|| rescind_amid(t, console));
        let hibernated = t.sh_within(
            "taskset 2 sh -c 'echo disk >/sys/power/state'",
            Duration::from_secs(120),
        );
        let rescinded = host.join().map_err(|_| "the host's part ended early")?;
        rescinded?;
        t.equal("status of the hibernation", hibernated?.status, 0)
    });
    result?;
    t.sh_ok(
        "taskset -p 3 $(pidof kdevtmpfs); dmesg -n 5; echo Y >/sys/module/printk/parameters/console_suspend; \
         echo 0 >/sys/power/pm_debug_messages; echo 1 >/sys/power/pm_async; echo none >/sys/power/pm_test",
    )?;
    kvp.reoffer()?;
    kvp.wait_open()?;
    removal::serves(t, Service::Kvp)
}

/// The host's part of [`rescinded_amid`].
fn rescind_amid(t: &Context<'_>, console: usize) -> Result<()> {
    let kvp = t.channel(Service::Kvp);
    let open = || {
        let mut services = t.config().services.clone();
        services.retain(|&service| service != Service::Kvp && t.channel(service).is_open());
        services
    };
    let others = open();
    let held = t.wait_held();
    kvp.refuse_closes(TRIES);
    let closing = held
        .and_then(|()| kvp.rescind())
        .and_then(|()| t.wait_refused(1));
    // Let the hibernation go on once the guest tries to close the channel.
    t.let_go();
    let late =
        closing.and_then(|()| t.wait_console("PM: late freeze of devices complete", console));
    // The guest's pauses between its tries double: the next try takes longer than all earlier ones.
    let noirq = late.and_then(|()| t.wait_refused(2));
    // The newest device is suspended first. Its suspend function in this module waits for the end of the unbinding.
    let waits = match t.module() {
        Module::Rust => t
            .equal("other channels that are open", open(), others)
            .and(t.check(
                !t.console_says("noirq freeze of devices complete", console),
                "the guest waits for the end of the unbinding",
            )),
        Module::C => Ok(()),
    };
    kvp.refuse_closes(0);
    noirq.and(waits)
}

/// The guest hibernates at each step of a request. The host negotiates anew. The daemon is still registered.
fn at_every_step(t: &Context<'_>) -> Result<()> {
    for &service in removal::services(t) {
        for step in Step::ALL {
            answered_by_a_daemon(t, service, step)
                .map_err(|error| format!("{service}, {step:?}: {error}"))?;
        }
        removal::serves(t, service)?;
    }
    for service in SERVICES {
        answered_at_once(t, service).map_err(|error| format!("{service}: {error}"))?;
    }
    Ok(())
}

/// For a service without a daemon. Some requests are answered, but the host has not read the replies. Others are still
/// in the ring, as there is no room for their replies.
fn answered_at_once(t: &Context<'_>, service: Service) -> Result<()> {
    let channel = t.channel(service);
    channel.negotiate_all()?;
    framing::fill_unread(t, service)?;
    hibernate(t)?;
    channel.wait_open()?;
    channel.set_reading(true)?;
    framing::works(t, service)
}

fn answered_by_a_daemon(t: &Context<'_>, service: Service, step: Step) -> Result<()> {
    let daemon = step.reach(t, service)?;
    let talk = Talk::with(t, service);
    let is_over = step == Step::Answered;
    let is_frozen = is_over && service == Service::Vss;
    if is_frozen {
        talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    }
    if !is_over {
        // The next request waits in the ring.
        talk.pend(removal::request(service))?;
    }
    hibernate(t)?;
    talk.channel.wait_open()?;
    // A request may have been answered before the hibernation.
    talk.channel.forget_surplus();
    talk.channel.negotiate_all()?;
    if is_frozen {
        talk.expect("THAW", vss::body(vss::THAW), E_FAIL)?;
    }
    if is_over {
        talk.expect("the next request", removal::request(service), S_OK)?;
    }
    talk.finish()?;
    daemon.kill(t)
}

/// The guest hibernates up to each level. The services work afterwards. The last levels close and reopen the channels.
fn levels(t: &Context<'_>, levels: &[&str]) -> Result<()> {
    prepare(t)?;
    for service in SERVICES {
        let channel = t.channel(service);
        channel.wait_negotiated()?;
        channel.configure(|device| device.set_interval(Duration::from_millis(200)))?;
    }
    for level in levels {
        let opens = t.channel(Service::Heartbeat).opens()?;
        t.sh_ok(&format!("echo {level} >/sys/power/pm_test"))?;
        let output = t.sh_within("echo disk >/sys/power/state", Duration::from_secs(120))?;
        t.equal(
            &format!("status of a hibernation up to {level}"),
            output.status,
            0,
        )?;
        // hv_vmbus suspends its devices in the `noirq` phase.
        let reopened = match *level {
            "freezer" | "devices" => 0,
            _ => 1,
        };
        t.equal(
            "times the channel was opened",
            t.channel(Service::Heartbeat).opens()?,
            opens + reopened,
        )?;
        for service in SERVICES {
            let channel = t.channel(service);
            channel.wait_negotiated()?;
            if service != Service::Shutdown {
                channel.wait_replies(channel.statistics()?.replies + 1)?;
            }
        }
    }
    t.sh_ok("echo none >/sys/power/pm_test").map(|_| ())
}
