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

/// A driver leaks its channel, character device and PTP clock, with the channel's job pending. Whatever ends the
/// binding of its device ends them all the same, with a file open or not. Nothing runs once the module is gone.
fn leaked_registrations(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::Echo);
    let driver = "/sys/bus/vmbus/drivers/vmbus_leak";
    let id = Service::Echo.instance();
    t.sh_ok("insmod /modules/samples/vmbus_leak.ko")?;
    // A leaked registration keeps the device for ever: after the rescind the host cannot offer it again.
    for way in ["unbind", "rmmod", "rescind"] {
        channel.wait_open()?;
        leaked_are(t, "1")?;
        let packet = Packet::inband(vec![1; 64]);
        channel.send_packet(packet.clone())?;
        t.equal("packet", channel.receive_packet()?, packet)?;
        wait_for(t, "dmesg | grep -q 'vmbus_leak: the job runs'")?;
        // An open file keeps the module.
        let is_read = way != "rmmod";
        if is_read {
            t.sh_ok(
                "rm -f /tmp/status /tmp/go; mkfifo /tmp/go; \
                 setsid sh -c 'read go </tmp/go; head -c 1 >/dev/null; echo $? >/tmp/status' \
                 </dev/vmbus_leak >/dev/null 2>&1 &",
            )?;
        }
        // The job is pending while all ends.
        channel.flood(20, |number| Packet::inband(vec![number as u8; 64]))?;
        match way {
            "unbind" => t
                .sh_ok(&format!("echo {id} >{driver}/unbind"))
                .map(|_| ())?,
            "rmmod" => t.sh_ok("rmmod vmbus_leak").map(|_| ())?,
            _ => channel.rescind()?,
        }
        channel.wait_closed()?;
        wait_for(t, &format!("[ ! -e {driver}/{id} ]"))?;
        leaked_are(t, "0")?;
        let runs = runs_of_the_job(t)?;
        if is_read {
            t.sh_ok("echo go >/tmp/go")?;
            wait_for(t, "[ -s /tmp/status ]")?;
            t.equal(
                "status of a read",
                t.sh_ok("cat /tmp/status")?.as_str(),
                "1",
            )?;
        }
        // Longer than the job waits.
        std::thread::sleep(Duration::from_millis(500));
        t.equal("runs of the job", runs_of_the_job(t)?, runs)?;
        match way {
            "unbind" => t.sh_ok(&format!("echo {id} >{driver}/bind"))?,
            "rmmod" => t.sh_ok("insmod /modules/samples/vmbus_leak.ko")?,
            _ => t.sh_ok("rmmod vmbus_leak")?,
        };
    }
    Ok(())
}

/// Checks how many character devices and PTP clocks of the leaking driver there are.
fn leaked_are(t: &Context<'_>, expected: &str) -> Result<()> {
    for (what, command) in [
        ("character devices", "ls /dev/vmbus_leak"),
        (
            "PTP clocks",
            "cat /sys/class/ptp/*/clock_name | grep vmbus_leak",
        ),
    ] {
        let count = t.sh_ok(&format!("{{ {command}; }} 2>/dev/null | wc -l"))?;
        t.equal(what, count.as_str(), expected)?;
    }
    Ok(())
}

/// How often the leaking driver's job has run.
fn runs_of_the_job(t: &Context<'_>) -> Result<String> {
    t.sh_ok("dmesg | grep 'vmbus_leak: the job runs' | wc -l")
}
