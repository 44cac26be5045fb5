// SPDX-License-Identifier: GPL-2.0

//! The distribution's chrony with the configuration of `Documentation/administration.rst`: chrony sets the guest's
//! clock from the PTP clock.

use std::time::Duration;

use host::guest::Result;
use host::ic::timesync;
use host::ic::S_OK;
use host::ic::UNIX_EPOCH_1601;
use host::service::Service;

use crate::daemon;
use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;
use crate::timesync::ptp_device;

/// A guest with chrony.
const CHRONY: Machine = Machine {
    name: "chrony",
    change: |config| {
        let folder = config.initrds.first().and_then(|archive| archive.parent());
        let archive = folder.map(|folder| folder.join("chrony.cpio"));
        config
            .initrds
            .extend(archive.filter(|archive| archive.exists()));
        config.memory = 512;
    },
};

/// The services that the scenarios act for.
const QUIET: [Service; 2] = [Service::Heartbeat, Service::TimeSync];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    // C keeps the sample from before a negotiation: chrony selects the clock before the new host's first sample.
    Scenario::new("chrony_host_was_suspended", host_was_suspended)
        .waits()
        .machine(CHRONY)
        .scripted(&QUIET)
        .unloaded()
        .rust_only(),
    Scenario::new("chrony_samples_that_jitter", samples_that_jitter)
        .waits()
        .machine(CHRONY)
        .scripted(&QUIET)
        .unloaded(),
];

/// A second, in units of 100 ns.
const SECOND: i64 = 10_000_000;

/// The options of chrony's `refclock` line, behind the device.
const LINE: &str = "poll -1 dpoll -2 filter 1 offset 0 stratum 2";

/// Starts chrony with the PTP clock `device`. `options` follow the path.
fn start(t: &Context<'_>, device: &str, options: &str) -> Result<()> {
    t.check(
        t.sh("command -v chronyd")?.status == 0,
        "there is chrony: make build/guest/chrony.cpio",
    )?;
    t.sh_ok(&format!(
        "mkdir -p /var/log/chrony /run/chrony; rm -f /var/log/chrony/*; \
         printf '%s\\n' 'refclock PHC {device}{options} {LINE}' 'makestep 1 -1' \
         'log refclocks' 'logdir /var/log/chrony' 'cmdport 323' >/etc/chrony.conf; \
         chronyd -u root -f /etc/chrony.conf -L 0 2>&1"
    ))
    .map(|_| ())
}

/// Ends chrony.
fn end(t: &Context<'_>) -> Result<()> {
    t.sh_ok("kill $(pidof chronyd)")?;
    daemon::wait_for(t, "! pidof chronyd")
}

/// Sends a sample of a host whose clock is `ahead` of this machine's, in units of 100 ns.
fn sample(t: &Context<'_>, ahead: i64, flags: u8) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    let mut moment = t.moment();
    moment.wall = moment.wall.wrapping_add_signed(ahead);
    let request = channel.request(timesync::body((4, 0), &moment, flags))?;
    t.equal("status", channel.transact(&request)?.status, S_OK)
}

/// Sleeps in the guest.
fn sleep(t: &Context<'_>, seconds: f64) -> Result<()> {
    let limit = Duration::from_secs_f64(seconds + 60.0);
    t.sh_within(&format!("sleep {seconds}"), limit).map(|_| ())
}

/// Waits until a command succeeds in the guest, `seconds` of its uptime at most.
fn within(t: &Context<'_>, seconds: u64, what: &str, command: &str) -> Result<()> {
    let output = t.sh_within(
        &format!(
            "i=0; until {command}; do i=$((i + 1)); [ $i -lt {seconds} ] || exit 1; sleep 1; done"
        ),
        Duration::from_secs(4 * seconds + 60),
    )?;
    if output.status == 0 {
        return Ok(());
    }
    let says = t.sh("date; chronyc -n sources; tail -n 6 /var/log/chrony/refclocks.log")?;
    Err(format!("not within {seconds} s: {what}; {}", says.text).into())
}

/// A command that succeeds if chrony has selected the clock.
const IS_SELECTED: &str = "chronyc -n sources | grep -q '^#\\*'";

/// Waits until the system's clock is right to two seconds. The host's clock is `ahead` of this machine's.
fn is_stepped(t: &Context<'_>, ahead: i64) -> Result<()> {
    let since_1601 = t.moment().wall.wrapping_add_signed(ahead);
    let now = (since_1601 - UNIX_EPOCH_1601) / SECOND as u64;
    // The time since `now` is the difference of the uptime.
    within(
        t,
        30,
        "the clock is stepped",
        &format!(
            "[ ${{u:=$(cut -d. -f1 /proc/uptime)}} ] && d=$(($(date +%s) - {now} - $(cut -d. -f1 /proc/uptime) + u)) && [ $d -ge -2 ] && [ $d -le 2 ]"
        ),
    )
}

/// The host was suspended, several times, and sends no SYNC. After its first sample, chrony steps the clock, with cross
/// timestamps and without. chrony starts before the first sample, when the PTP clock cannot be read.
fn host_was_suspended(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    t.load()?;
    channel.wait_open()?;
    let device = ptp_device(t)?;
    for options in ["", ":nocrossts"] {
        channel.negotiate_all()?;
        start(t, &device, options)?;
        sleep(t, 5.0)?;
        t.sh_ok(&format!("! {IS_SELECTED}"))?;
        let mut ahead = 0;
        sample(t, ahead, timesync::SAMPLE)?;
        within(t, 20, "the source is selected", IS_SELECTED)?;
        // Send the sample at various points between two readings.
        for number in 0..8 {
            ahead += 9 * 3600 * SECOND;
            sleep(t, 20.0 + f64::from(number) * 0.0625)?;
            sample(t, ahead, timesync::SAMPLE)?;
            is_stepped(t, ahead)?;
        }
        within(t, 20, "the source is selected", IS_SELECTED)?;
        // No samples come until the last one is too old.
        sleep(t, 1230.0)?;
        ahead += 1200 * SECOND;
        sample(t, ahead, timesync::SAMPLE)?;
        is_stepped(t, ahead)?;
        within(t, 20, "the source is selected", IS_SELECTED)?;
        end(t)?;
        sample(t, 0, timesync::SYNC)?;
        is_stepped(t, 0)?;
    }
    Ok(())
}

/// For ten minutes the host sends samples that are up to 2 ms off, either way. chrony keeps the source selected. The
/// offsets that it reads never exceed the difference between two samples.
fn samples_that_jitter(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    t.load()?;
    channel.wait_open()?;
    channel.negotiate_all()?;
    sample(t, 0, timesync::SYNC)?;
    is_stepped(t, 0)?;
    start(t, &ptp_device(t)?, "")?;
    within(t, 20, "the source is selected", IS_SELECTED)?;
    for number in 0..120 {
        let off = [0, 2, -2, 1, -1, 2, -1, -2][number % 8] * SECOND / 1000;
        sample(t, off, timesync::SAMPLE)?;
        sleep(t, 5.0)?;
        t.sh_ok(IS_SELECTED)?;
    }
    let log = t.sh_ok("cat /var/log/chrony/refclocks.log")?;
    // Date, time, name, number (- for a filtered one), leap, pulse, and the offset.
    let offsets: Vec<f64> = log
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() > 8 && words[3] != "-")
        .filter_map(|words| words[6].parse().ok())
        .collect();
    t.check(
        offsets.len() > 4 * 500,
        &format!(
            "the clock was read four times a second ({} times in all)",
            offsets.len()
        ),
    )?;
    let furthest = offsets
        .iter()
        .fold(0.0, |most: f64, off| most.max(off.abs()));
    println!("# {}: the furthest: {furthest:.6} s", t.module().name());
    // At most, chrony has followed a sample that was 2 ms off one way, and the next is 2 ms off the other way. In
    // emulated time, samples and readings are a few microseconds off.
    t.check(
        furthest < 0.0041,
        &format!("no reading is further off than two samples differ ({furthest} s)"),
    )?;
    end(t)
}
