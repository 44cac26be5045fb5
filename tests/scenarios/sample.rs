// SPDX-License-Identifier: GPL-2.0

//! Drivers other than hv_utils on the same abstractions: the sample (`samples/vmbus_echo.rs`), and one that leaks
//! whatever it registers (`tests/modules/vmbus_leak.rs`).

use std::time::Duration;

use host::guest::Result;
use host::service::Service;
use host::vmbus::packet::Packet;

use crate::daemon::wait_for;
use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("sample_echo", echo)
        .machine(Machine::OTHER)
        .unloaded()
        .rust_only()
        .expects_log(&["probe failed for device"]),
    // The memory that it leaks must not count as a leak of another scenario.
    Scenario::new("leaked_registrations", leaked_registrations)
        .machine(Machine::OTHER)
        .unloaded()
        .rust_only()
        .ends_guest(),
];

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

/// A driver leaks its channel, character device and PTP clock, with the channel's job pending. The unbinding of its
/// device ends them all the same, with a file open or not. Nothing runs once the module is gone.
fn leaked_registrations(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::Echo);
    let driver = "/sys/bus/vmbus/drivers/vmbus_leak";
    let id = Service::Echo.instance();
    let count = |what: &str, command: &str, expected: &str| -> Result<()> {
        t.equal(what, t.sh_ok(command)?.as_str(), expected)
    };
    let registered = |expected: &str| -> Result<()> {
        count(
            "character devices",
            "ls /dev/vmbus_leak 2>/dev/null | wc -l",
            expected,
        )?;
        count(
            "PTP clocks",
            "cat /sys/class/ptp/*/clock_name 2>/dev/null | grep vmbus_leak | wc -l",
            expected,
        )
    };
    t.sh_ok("insmod /modules/samples/vmbus_leak.ko")?;
    for way in ["unbind", "rescind"] {
        channel.wait_open()?;
        registered("1")?;
        let packet = Packet::inband(vec![1; 64]);
        channel.send_packet(packet.clone())?;
        t.equal("packet", channel.receive_packet()?, packet)?;
        wait_for(t, "dmesg | grep -q 'vmbus_leak: the job runs'")?;
        t.sh_ok(
            "rm -f /tmp/reads; mkfifo /tmp/reads; \
             setsid sh -c 'read go </tmp/reads; head -c 1; echo $? >/tmp/status; exec sleep 1000' \
             </dev/vmbus_leak >/dev/null 2>&1 & echo $! >/tmp/reader",
        )?;
        // The job is pending while all ends.
        channel.flood(20, |number| Packet::inband(vec![number as u8; 64]))?;
        match way {
            "unbind" => t
                .sh_ok(&format!("echo {id} >{driver}/unbind"))
                .map(|_| ())?,
            _ => channel.rescind()?,
        }
        channel.wait_closed()?;
        wait_for(t, &format!("[ ! -e {driver}/{id} ]"))?;
        registered("0")?;
        let runs = t.sh_ok("dmesg | grep -c 'vmbus_leak: the job runs'")?;
        t.sh_ok("rm -f /tmp/status; echo go >/tmp/reads")?;
        wait_for(t, "[ -s /tmp/status ]")?;
        count("status of a read", "cat /tmp/status", "1")?;
        t.sh_ok("kill -KILL $(cat /tmp/reader)")?;
        // Longer than the job waits.
        std::thread::sleep(Duration::from_millis(500));
        count(
            "runs of the job",
            "dmesg | grep -c 'vmbus_leak: the job runs'",
            &runs,
        )?;
        match way {
            "unbind" => t.sh_ok(&format!("echo {id} >{driver}/bind")).map(|_| ())?,
            _ => {
                channel.wait_released()?;
                channel.reoffer()?;
            }
        }
    }
    channel.wait_open()?;
    channel.flood(20, |number| Packet::inband(vec![number as u8; 64]))?;
    t.sh_ok("rmmod vmbus_leak")?;
    channel.wait_closed()?;
    std::thread::sleep(Duration::from_millis(500));
    registered("0")
}
