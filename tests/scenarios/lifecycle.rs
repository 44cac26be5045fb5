// SPDX-License-Identifier: GPL-2.0

//! Life cycle: boot with each VMBus version, insertion and removal, rescinding.

use host::guest::Result;
use host::service::Service;

use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;

const SERVICES: [Service; 3] = [Service::Heartbeat, Service::Shutdown, Service::TimeSync];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("connects", connects).everywhere(),
    Scenario::new("insert_and_remove", insert_and_remove)
        .everywhere()
        .unloaded(),
    Scenario::new("rescind_and_reoffer", rescind_and_reoffer).everywhere(),
    // The version concerns hv_vmbus, not the modules: one module will do.
    Scenario::new("vmbus_5_0", connects)
        .machine(Machine::OTHER)
        .rust_only(),
];

/// The guest detects Hyper-V, and speaks the newest VMBus version that the host knows. All services work.
fn connects(t: &Context<'_>) -> Result<()> {
    t.equal(
        "VMBus version",
        t.vmbus_version(),
        Some(t.config().vmbus_max),
    )?;
    for service in SERVICES {
        t.channel(service).wait_negotiated()?;
    }
    t.channel(Service::Heartbeat).wait_replies(1).map(|_| ())
}

/// Insertion opens the channels, and removal closes them. Three times.
fn insert_and_remove(t: &Context<'_>) -> Result<()> {
    for _ in 0..3 {
        t.load()?;
        for service in SERVICES {
            t.channel(service).wait_open()?;
        }
        t.channel(Service::Heartbeat).wait_negotiated()?;
        t.unload()?;
        for service in SERVICES {
            t.check(!t.channel(service).is_open(), "the channel is closed")?;
        }
    }
    t.log_has("Registering HyperV Utility Driver")?;
    t.log_has("De-Registered HyperV Utility Driver")
}

/// The host rescinds each device, and offers it again. The service works again.
fn rescind_and_reoffer(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.wait_negotiated()?;
        channel.rescind()?;
        channel.wait_released()?;
        channel.reoffer()?;
        channel.wait_open()?;
        channel.wait_negotiated()?;
    }
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat
        .wait_replies(heartbeat.statistics()?.replies + 1)
        .map(|_| ())
}
