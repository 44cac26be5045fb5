// SPDX-License-Identifier: GPL-2.0

//! Hosts that do what they should not, or what is rare.

use host::guest::Result;
use host::service::Service;
use host::vmbus::bus::STATUS_UNSUCCESSFUL;

use crate::scenario::Context;
use crate::scenario::Scenario;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario::new("open_refused", open_refused)
    .unloaded()
    .rust_only()
    .expects_log(&["probe failed for device", "hv_utils"])];

/// The host refuses the open: the driver is not bound, and a rebind works.
fn open_refused(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.fail_opens(1, STATUS_UNSUCCESSFUL);
    t.load()?;
    t.check(!heartbeat.is_open(), "the channel is not open")?;
    let id = Service::Heartbeat.instance();
    t.sh_ok(&format!("echo {id} >/sys/bus/vmbus/drivers/hv_utils/bind"))?;
    heartbeat.wait_negotiated().map(|_| ())
}
