// SPDX-License-Identifier: GPL-2.0

//! Drivers other than hv_utils that use the same abstractions: the sample (`samples/vmbus_echo.rs`), a driver that
//! leaks its registrations (`tests/modules/vmbus_leak.rs`), and a driver with all kinds of attributes
//! (`tests/modules/vmbus_sysfs.rs`).

use std::time::Duration;
use std::time::Instant;

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
    Scenario::new("attributes", attributes)
        .machine(Machine::OTHER)
        .unloaded()
        .rust_only(),
    // The guest ends, so that its leaked memory does not count as a leak of a later scenario.
    Scenario::new("leaked_registrations", leaked_registrations)
        .machine(Machine::TWO_PROCESSORS)
        .unloaded()
        .rust_only()
        .ends_guest(),
];

/// Packets of all sizes come back unchanged, also after a rescind. The driver's attribute counts them.
fn echo(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::Echo);
    not_for_hv_utils(t)?;
    t.sh_ok("insmod /modules/samples/vmbus_echo.ko")?;
    let packets = format!("{}/vmbus_echo/packets", device());
    for _ in 0..2 {
        channel.wait_open()?;
        wait_for(t, &format!("[ -e {packets} ]"))?;
        t.equal("packets", t.sh_ok(&format!("cat {packets}"))?.as_str(), "0")?;
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
        t.equal(
            "packets",
            t.sh_ok(&format!("cat {packets}"))?.as_str(),
            "306",
        )?;
        channel.rescind()?;
        channel.wait_released()?;
        channel.reoffer()?;
    }
    channel.wait_open()?;
    t.sh_ok("rmmod vmbus_echo")?;
    channel.wait_closed()
}

/// The device in sysfs.
fn device() -> String {
    format!("/sys/bus/vmbus/devices/{}", Service::Echo.instance())
}

/// Somebody binds a device of another class to hv_utils, with `driver_override` and with `new_id`. The driver refuses
/// it. (C has no service for the device then, and crashes.)
fn not_for_hv_utils(t: &Context<'_>) -> Result<()> {
    const DRIVER: &str = "/sys/bus/vmbus/drivers/hv_utils";
    let (class, id) = (Service::Echo.class(), Service::Echo.instance());
    let device = device();
    t.load()?;
    for (force, undo) in [
        (
            format!("echo hv_utils >{device}/driver_override"),
            format!("echo >{device}/driver_override"),
        ),
        (
            format!("echo {class} >{DRIVER}/new_id"),
            format!("echo {class} >{DRIVER}/remove_id"),
        ),
    ] {
        t.sh_ok(&force)?;
        let bound = t.sh(&format!("echo {id} >{DRIVER}/bind"))?;
        t.check(
            bound.status != 0 && bound.text.contains("No such device"),
            &format!(
                "the bind after {force:?} fails with ENODEV ({:?})",
                bound.text
            ),
        )?;
        t.sh_ok(&format!("[ ! -e {device}/driver ] && {undo}"))?;
    }
    t.unload()
}

/// The driver with the attributes.
const ATTRIBUTES: &str = "/sys/bus/vmbus/drivers/vmbus_sysfs";

/// How long a read or a write of its slow attribute takes.
const SLOW: Duration = Duration::from_secs(1);

/// How often the device is unbound while its attributes are in use. The second number is for `HV_SLOW=1`.
const UNBINDINGS: (u64, u64) = (20, 200);

/// Attributes are read and written as text. They exist while the device is bound. Their removal waits for a reader and
/// for a writer, whatever unbinds the device.
fn attributes(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::Echo);
    let id = Service::Echo.instance();
    let folder = format!("{}/vmbus_sysfs", device());
    t.sh_ok("insmod /modules/samples/vmbus_sysfs.ko")?;
    wait_for(t, &format!("[ -e {folder}/slow ]"))?;
    read_and_written(t, &folder)?;
    let ways = ["unbind", "rmmod", "rescind"].map(|way| [(way, "reader"), (way, "writer")]);
    for (way, user) in ways.into_iter().flatten() {
        in_use_at(t, way, user, &folder).map_err(|error| format!("{way}, {user}: {error}"))?;
        match way {
            "unbind" => t
                .sh_ok(&format!("echo {id} >{ATTRIBUTES}/bind"))
                .map(|_| ())?,
            "rmmod" => t
                .sh_ok("insmod /modules/samples/vmbus_sysfs.ko")
                .map(|_| ())?,
            _ => channel.reoffer()?,
        }
        wait_for(t, &format!("[ -e {folder}/slow ]"))?;
    }
    used_at_any_time(t, &folder)?;
    // A device without attributes has no directory for them.
    t.sh_ok(&format!(
        "echo {id} >{ATTRIBUTES}/unbind; echo 1 >/sys/module/vmbus_sysfs/parameters/bare; \
         echo {id} >{ATTRIBUTES}/bind; [ -e {ATTRIBUTES}/{id} ] && [ ! -e {folder} ]"
    ))?;
    t.sh_ok("rmmod vmbus_sysfs").map(|_| ())
}

/// Programs that read and write all the time while the device is unbound and bound: a name, a command, and a pattern of
/// the lines that it prints while the device is bound.
const USERS: [(&str, &str, &str); 2] = [
    ("reader", "cat level longest", "^[79]$|^x{4094}$"),
    ("writer", "echo 9 | tee level", "^9$"),
];

/// A pattern of their lines while the device, its directory or a file is gone. sysfs does not allow creating files.
const HAS_GONE: &str = "(No such (file or directory|device)|Permission denied)$";

/// Programs read and write at any time. They print the device's values, or that the device is gone.
fn used_at_any_time(t: &Context<'_>, folder: &str) -> Result<()> {
    let id = Service::Echo.instance();
    t.sh_ok("rm -f /tmp/enough")?;
    for (name, command, _) in USERS {
        t.sh_ok(&format!(
            "rm -f /tmp/{name}.*; {{ until [ -e /tmp/enough ]; do cd {folder} && {command}; cd /; done \
             >/tmp/{name}.said 2>&1; : >/tmp/{name}.ended; }} &"
        ))?;
    }
    t.sh_ok(&format!(
        "for i in $(seq {}); do echo {id} >{ATTRIBUTES}/unbind; echo {id} >{ATTRIBUTES}/bind; done",
        t.often(UNBINDINGS)
    ))?;
    for (name, _, _) in USERS {
        wait_for(t, &format!(": >/tmp/enough; [ -e /tmp/{name}.ended ]"))
            .map_err(|error| format!("the {name} does not end: {error}"))?;
    }
    for (name, _, says) in USERS {
        let said = format!("/tmp/{name}.said");
        let others = t.sh(&format!(
            "grep -vE '{says}|{HAS_GONE}' {said} | cut -c 1-80 | head -n 5"
        ))?;
        t.equal(
            &format!("other texts of the {name}"),
            others.text.as_str(),
            "",
        )?;
        t.sh_ok(&format!("grep -qE '{says}' {said}"))?;
    }
    Ok(())
}

/// Reads and writes each attribute.
fn read_and_written(t: &Context<'_>, folder: &str) -> Result<()> {
    let said = t.sh(&format!(
        "cd {folder}; stat -c '%n %a' *; wc -c <longest; cat level; echo 9 >level; cat level; \
         printf 10 >level; cat level; cd /"
    ))?;
    t.equal(
        "modes and values",
        said.text
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .as_str(),
        "fails 444 level 644 longest 444 slow 644 too_long 444 4095 7 9 10",
    )?;
    for (command, error) in [
        ("cat too_long", "File too large"),
        ("cat fails", "resource busy"),
        ("echo x >level", "Invalid argument"),
        (
            "printf '\\377' >/tmp/byte; cat /tmp/byte >level",
            "Invalid argument",
        ),
        ("echo >fails", "Permission denied"),
    ] {
        let said = t.sh(&format!("cd {folder}; {command}; cd /"))?.text;
        t.check(
            said.contains(error) && !said.contains("not to be seen"),
            &format!("`{command}` fails with {error} ({said:?})"),
        )?;
    }
    t.equal(
        "level",
        t.sh_ok(&format!("cat {folder}/level"))?.as_str(),
        "10",
    )
}

/// The device is unbound while a program reads or writes its slow attribute, and another file is open.
fn in_use_at(t: &Context<'_>, way: &str, user: &str, folder: &str) -> Result<()> {
    let use_it = match user {
        "reader" => format!("cat {folder}/slow >/tmp/read"),
        _ => format!("echo 3 >{folder}/slow"),
    };
    t.sh_ok(&format!(
        "rm -f /tmp/read /tmp/opened /tmp/late /tmp/go /tmp/used; mkfifo /tmp/go; echo 3 >{folder}/level; \
         setsid sh -c 'exec 3<{folder}/level; : >/tmp/opened; read go </tmp/go; cat <&3 2>/tmp/late' >/dev/null 2>&1 & \
         until [ -e /tmp/opened ]; do sleep 0.02; done; cat /proc/uptime >/tmp/began; \
         setsid sh -c '{use_it}; echo $? >/tmp/used' >/dev/null 2>&1 & \
         sleep 0.3"
    ))?;
    t.sh_ok("[ ! -e /tmp/used ]")
        .map_err(|_| format!("the {user} has ended too early"))?;
    match way {
        "unbind" => t.sh_ok(&format!(
            "echo {} >{ATTRIBUTES}/unbind",
            Service::Echo.instance()
        )),
        "rmmod" => t.sh_ok("rmmod vmbus_sysfs"),
        _ => {
            t.channel(Service::Echo).rescind()?;
            // The files disappear when their removal begins. Wait until it has ended.
            t.channel(Service::Echo).wait_released()?;
            Ok(String::new())
        }
    }?;
    let uptimes = t.sh_ok("cat /tmp/began /proc/uptime | cut -d ' ' -f 1")?;
    let took = match uptimes.lines().map(str::parse::<f64>).collect::<Vec<_>>()[..] {
        [Ok(began), Ok(now)] => Duration::from_secs_f64(f64::max(now - began, 0.0)),
        _ => return Err(format!("uptimes {uptimes:?}").into()),
    };
    // The uptime is in hundredths of a second.
    t.check(
        took >= SLOW - Duration::from_millis(10),
        &format!("the removal waits for the {user} (it took {took:?})"),
    )?;
    wait_for(t, "[ -s /tmp/used ]")?;
    // The reader's read succeeds. Its next read, for the end of the file, finds no device.
    match user {
        "reader" => t.equal("the text read", t.sh_ok("cat /tmp/read")?.as_str(), "3"),
        _ => t.equal("writer's status", t.sh_ok("cat /tmp/used")?.as_str(), "0"),
    }?;
    t.sh_ok("echo go >/tmp/go")?;
    wait_for(t, "[ -s /tmp/late ]")?;
    let late = t.sh_ok("cat /tmp/late")?;
    t.check(
        late.contains("No such device"),
        &format!("a later read fails with ENODEV ({late:?})"),
    )
}

/// The leaking driver's folder in sysfs.
const LEAK: &str = "/sys/bus/vmbus/drivers/vmbus_leak";

/// The delay of the leaking driver's job.
const DELAY: Duration = Duration::from_secs(2);

/// A driver leaks its channel, character device and PTP clock, with the channel's job pending. The end of the device's
/// binding removes all of them, whatever causes it, with or without an open file. No code runs once the module is gone.
fn leaked_registrations(t: &Context<'_>) -> Result<()> {
    t.sh_ok("insmod /modules/samples/vmbus_leak.ko")?;
    // The rescind comes last: a leaked registration keeps the device forever, so the host cannot offer it again.
    for way in ["unbind", "rmmod", "rescind"] {
        leaked_at(t, way).map_err(|error| format!("{way}: {error}"))?;
    }
    t.sh_ok("rmmod vmbus_leak").map(|_| ())
}

fn leaked_at(t: &Context<'_>, way: &str) -> Result<()> {
    let channel = t.channel(Service::Echo);
    let id = Service::Echo.instance();
    channel.wait_open()?;
    wait_for(t, &format!("[ -e {LEAK}/{id} ] && {}", leaked_are(1)))?;
    let packet = Packet::inband(vec![1; 64]);
    let runs = runs_of_the_job(t)?;
    channel.send_packet(packet.clone())?;
    t.equal("packet", channel.receive_packet()?, packet)?;
    wait_for(t, &format!("[ $({RUNS}) -gt {runs} ]"))?;
    // An open file would keep the module from being removed.
    let is_read = way != "rmmod";
    if is_read {
        t.sh_ok(
            "rm -f /tmp/opened /tmp/status /tmp/go; mkfifo /tmp/go; \
             setsid sh -c ': >/tmp/opened; read go </tmp/go; head -c 1 >/dev/null; echo $? >/tmp/status' \
             </dev/vmbus_leak >/dev/null 2>&1 &",
        )?;
        wait_for(t, "[ -e /tmp/opened ]")?;
    }
    // The echoes arm the job. It is pending while the binding ends.
    let runs = runs_of_the_job(t)?;
    let start = Instant::now();
    channel.flood(20, |number| Packet::inband(vec![number as u8; 64]))?;
    for number in 0..20 {
        let payload = channel.receive_packet()?.payload;
        t.equal("payload", payload, vec![number; 64])?;
    }
    match way {
        "unbind" => t.sh_ok(&format!("echo {id} >{LEAK}/unbind")).map(|_| ())?,
        "rmmod" => t.sh_ok("rmmod vmbus_leak").map(|_| ())?,
        _ => channel.rescind()?,
    }
    // The link to the driver is removed first: also wait for the registrations.
    wait_for(t, &format!("[ ! -e {LEAK}/{id} ] && {}", leaked_are(0)))?;
    t.check(!channel.is_open(), "the channel is closed")?;
    let took = start.elapsed();
    if is_read {
        t.sh_ok("echo go >/tmp/go")?;
        wait_for(t, "[ -s /tmp/status ]")?;
        t.equal(
            "status of a read",
            t.sh_ok("cat /tmp/status")?.as_str(),
            "1",
        )?;
    }
    std::thread::sleep(DELAY + Duration::from_millis(500));
    let now = runs_of_the_job(t)?;
    t.check(
        now == runs,
        &format!("the job never runs again (runs: {runs}, then {now}; the end took {took:?})"),
    )?;
    match way {
        "unbind" => t.sh_ok(&format!("echo {id} >{LEAK}/bind")).map(|_| ()),
        "rmmod" => t.sh_ok("insmod /modules/samples/vmbus_leak.ko").map(|_| ()),
        _ => Ok(()),
    }
}

/// A command that tests whether the leaking driver has `count` character devices and PTP clocks.
fn leaked_are(count: u32) -> String {
    format!(
        "[ $(ls /dev/vmbus_leak 2>/dev/null | wc -l) -eq {count} ] && \
         [ $(cat /sys/class/ptp/*/clock_name 2>/dev/null | grep -c vmbus_leak) -eq {count} ]"
    )
}

/// A command that prints the number of runs of the leaking driver's job.
const RUNS: &str = "dmesg | grep -c 'vmbus_leak: the job runs'";

fn runs_of_the_job(t: &Context<'_>) -> Result<u64> {
    let runs = t.sh(RUNS)?.text;
    runs.parse()
        .map_err(|error| format!("runs of the job {runs:?}: {error}").into())
}
