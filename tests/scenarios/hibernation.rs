// SPDX-License-Identifier: GPL-2.0

//! Hibernation, as far as the kernel's own test levels (`/sys/power/pm_test`) take it: devices are
//! suspended and resumed, and with them the channels.

use std::time::Duration;

use host::guest::Result;
use host::service::Service;

use crate::scenario::Context;
use crate::scenario::Scenario;

const SERVICES: [Service; 3] = [Service::Heartbeat, Service::Shutdown, Service::TimeSync];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("hibernation_devices", |t| {
        levels(t, &["freezer", "devices"])
    })
    .once(),
    Scenario::new("hibernation_core", |t| {
        levels(t, &["platform", "processors", "core"])
    })
    .expects_log(KERNELS_OWN),
];

/// With interrupts off, `hv_suspend()` updates a static call, for which a kernel that looks for faults has a splat.
const KERNELS_OWN: &[&str] = &["WARNING: kernel/smp.c", "Call Trace"];

/// Each level closes the channels and opens them again; the services negotiate anew and go on.
fn levels(t: &Context<'_>, levels: &[&str]) -> Result<()> {
    if t.sh("[ -e /sys/power/pm_test ]")?.status != 0 {
        return t.skip("this kernel has no pm_test (CONFIG_PM_DEBUG)");
    }
    for service in SERVICES {
        let channel = t.channel(service);
        channel.wait_negotiated()?;
        channel.configure(|device| device.set_interval(Duration::from_millis(200)))?;
    }
    t.sh_ok("echo 0 >/sys/module/hibernate/parameters/pm_test_delay")?;
    for level in levels {
        let opens = t.channel(Service::Heartbeat).opens()?;
        t.sh_ok(&format!("echo {level} >/sys/power/pm_test"))?;
        let output = t.sh_within("echo disk >/sys/power/state", Duration::from_secs(120))?;
        t.equal(
            &format!("status of a hibernation up to {level}"),
            output.status,
            0,
        )?;
        // The VMBus suspends its devices in the last phase, with interrupts off.
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
