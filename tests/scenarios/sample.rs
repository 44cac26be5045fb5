// SPDX-License-Identifier: GPL-2.0

//! The sample driver, `samples/vmbus_echo.rs`.

use std::time::Duration;

use host::guest::Result;
use host::service::Service;
use host::vmbus::packet::Packet;

use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario::new("sample_echo", echo)
    .machine(Machine::OTHER)
    .unloaded()
    .rust_only()
    .expects_log(&["probe failed for device"])];

/// Packets of all sizes come back as they were, also after the device was unplugged.
fn echo(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::Echo);
    not_for_hv_utils(t)?;
    t.sh_ok("insmod /modules/samples/vmbus_echo.ko")?;
    for _ in 0..2 {
        channel.wait_open()?;
        for (number, len) in [0, 8, 64, 4096, 8192, 12_000].into_iter().enumerate() {
            let packet = Packet {
                transaction_id: number as u64,
                ..Packet::inband((0..len).map(|byte| byte as u8).collect())
            };
            channel.send_packet(packet.clone())?;
            t.equal("packet", channel.receive_packet()?, packet)?;
        }
        // More than the ring holds.
        channel.flood(300, |number| Packet::inband(vec![number as u8; 256]))?;
        for number in 0..300 {
            let payload = channel.receive_packet()?.payload;
            t.equal("payload", payload, vec![number as u8; 256])?;
        }
        channel.expect_silence(Duration::from_millis(30))?;
        channel.rescind()?;
        channel.wait_released()?;
        channel.reoffer()?;
    }
    channel.wait_open()?;
    t.sh_ok("rmmod vmbus_echo")?;
    channel.wait_closed()
}

/// A device of another class that is bound to hv_utils by force is refused. (C goes on with no service, and faults.)
fn not_for_hv_utils(t: &Context<'_>) -> Result<()> {
    let id = Service::Echo.instance();
    let device = format!("/sys/bus/vmbus/devices/{id}");
    t.load()?;
    t.sh_ok(&format!("echo hv_utils >{device}/driver_override"))?;
    let bound = t.sh(&format!("echo {id} >/sys/bus/vmbus/drivers/hv_utils/bind"))?;
    t.check(
        bound.status != 0 && bound.text.contains("No such device"),
        &format!("binding it fails with ENODEV (it says {:?})", bound.text),
    )?;
    t.sh_ok(&format!(
        "[ ! -e {device}/driver ] && echo >{device}/driver_override"
    ))?;
    t.unload()
}
