// SPDX-License-Identifier: GPL-2.0

//! Time synchronisation.

use std::ops::RangeInclusive;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use host::cpuid::Clock;
use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::ic::device::Restore;
use host::ic::frame::Message;
use host::ic::timesync;
use host::ic::Moment;
use host::ic::S_OK;
use host::ic::UNIX_EPOCH_1601;
use host::service::Service;

use crate::attributes;
use crate::hibernation;
use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("timesync_syncs_and_samples", syncs_and_samples).everywhere(),
    Scenario::new("timesync_steps_the_clock", steps_the_clock).scripted(&[Service::TimeSync]),
    Scenario::new("timesync_log_is_limited", log_is_limited)
        .scripted(&[Service::TimeSync])
        .rust_only()
        .expects_log(&[NOT_SET, "callbacks suppressed"]),
    Scenario::new("timesync_restore", restore).versions(),
    Scenario::new("timesync_implicit", implicit)
        .scripted(&[Service::TimeSync])
        .unloaded(),
    Scenario::new("timesync_ptp", ptp),
    Scenario::new("timesync_ptp_cross_timestamps", ptp_cross_timestamps).rust_only(),
    Scenario::new("timesync_ptp_with_a_page", |t| {
        no_cross_timestamps(t, "hyperv_clocksource_tsc_page")
    })
    .machine(WITH_A_PAGE)
    .rust_only(),
    Scenario::new("timesync_ptp_with_a_register", |t| {
        no_cross_timestamps(t, "hyperv_clocksource_msr")
    })
    .machine(WITH_A_REGISTER)
    .rust_only(),
    Scenario::new("timesync_samples_ahead", samples_ahead)
        .scripted(&[Service::TimeSync])
        .rust_only()
        .expects_log(&[AHEAD]),
    Scenario::new(
        "timesync_step_ends_with_its_sample",
        step_ends_with_its_sample,
    )
    .scripted(&[Service::TimeSync])
    .rust_only()
    .expects_log(&["callbacks suppressed"]),
    Scenario::new("timesync_samples_ahead_for_an_hour", ahead_for_an_hour)
        .waits()
        .scripted(&QUIET)
        .rust_only()
        .expects_log(&[AHEAD]),
    Scenario::new("timesync_attributes", clock_attributes)
        .scripted(&[Service::TimeSync])
        .rust_only(),
    Scenario::new("timesync_host_was_suspended", host_was_suspended)
        .waits()
        .scripted(&QUIET)
        .unloaded()
        .expects_log(&[STALE_IN_C]),
    Scenario::new("timesync_after_hibernation", after_hibernation)
        .expects_log(hibernation::EXPECTED),
    Scenario::new("timesync_unanswered", unanswered).unloaded(),
    Scenario::new("timesync_ptp_of_a_host_that_starts_over", ptp_starts_over)
        .scripted(&[Service::TimeSync])
        .rust_only(),
];

/// The log text about a time that the kernel rejects.
const NOT_SET: &str = "TimeSync: clock not set";

/// The log text about samples whose reference time is ahead.
const AHEAD: &str = "TimeSync: samples ahead of the reference time";

/// C's log text about a sample that is too old. C logs it once.
pub const STALE_IN_C: &str = "TIMESYNC IC: Stale time stamp";

/// A machine whose TSC is not invariant. The guest's clock source is the TSC page.
const WITH_A_PAGE: Machine = Machine {
    name: "clock: a page",
    change: |config| config.clock = Clock::Page,
};

/// A machine whose only reference time is the register.
const WITH_A_REGISTER: Machine = Machine {
    name: "clock: a register",
    change: |config| config.clock = Clock::Register,
};

/// Services that stay silent for hours. This lets emulated time pass faster.
const QUIET: [Service; 2] = [Service::Heartbeat, Service::TimeSync];

/// An hour, in units of 100 ns.
const HOUR: i64 = 3600 * 10_000_000;

/// The host sends a SYNC after the negotiation, and samples after the SYNC, as on Windows. The log has the version.
fn syncs_and_samples(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    channel.configure(|device| device.set_interval(Duration::from_millis(200)))?;
    let versions = channel.wait_negotiated()?;
    t.equal(
        "versions",
        (versions.framework, versions.message),
        ((3, 0), (4, 0)),
    )?;
    channel.wait_replies(3)?;
    t.log_has("TimeSync IC version 4.0")
}

/// The guest's wall clock in seconds since 1970.
fn clock(t: &Context<'_>) -> Result<i64> {
    let text = t.sh_ok("date +%s")?;
    text.trim()
        .parse()
        .map_err(|_| format!("`date +%s` in the guest says {text:?}").into())
}

/// The host sends times that the kernel rejects: they are before the boot. The module limits its log lines.
fn log_is_limited(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    channel.negotiate_all()?;
    let mut moment = t.moment();
    moment.wall = UNIX_EPOCH_1601 + 10_000_000;
    for _ in 0..100 {
        let request = channel.request(timesync::body((4, 0), &moment, timesync::SYNC))?;
        channel.transact(&request)?;
        // Wait until the job has run. It would handle several requests as one.
        std::thread::sleep(Duration::from_millis(5));
    }
    let lines = t.sh_ok(&format!("dmesg | grep -c '{NOT_SET}'"))?;
    let lines: u32 = lines.trim().parse().unwrap_or(u32::MAX);
    t.check(
        (1..30).contains(&lines),
        &format!("{lines} lines are fewer than 30"),
    )
}

/// A SYNC that is an hour ahead steps the clock, in each layout of the message.
fn steps_the_clock(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    let mut ahead = 0;
    for message in [(1, 0), (3, 0), (4, 0)] {
        channel.negotiate(&[(1, 0), (3, 0)], &[message])?;
        ahead += 3600;
        let mut moment = t.moment();
        moment.wall += ahead * 10_000_000;
        let request = channel.request(timesync::body(message, &moment, timesync::SYNC))?;
        let reply = channel.transact(&request)?;
        t.equal("status", reply.status, 0)?;
        let target = ((moment.wall - UNIX_EPOCH_1601) / 10_000_000) as i64;
        wait_clock(t, target)?;
    }
    channel.expect_silence(Duration::from_millis(50))?;
    // Set the right time for the scenarios that follow in this guest.
    channel.auto()?;
    wait_clock(t, ((t.moment().wall - UNIX_EPOCH_1601) / 10_000_000) as i64)
}

/// Waits until the guest's clock is right, to two seconds. `target` is the right time at the call, as seconds since
/// 1970.
pub fn wait_clock(t: &Context<'_>, target: i64) -> Result<()> {
    let start = Instant::now();
    let mut off = 0;
    for _ in 0..100 {
        off = clock(t)? - target - start.elapsed().as_secs() as i64;
        if off.abs() <= 2 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("the guest's clock is {off} s ahead of {target}").into())
}

/// After a restore the host negotiates anew, and sends a new SYNC.
fn restore(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    channel.wait_replies(1)?;
    let from = t.transcript_length();
    channel.restore()?;
    channel.wait_replies(2)?;
    let said = t.normalised_transcript(from);
    t.check(said.contains("timesync request SYNC"), "a new SYNC follows")
}

/// With `timesync_implicit=1`, a sample steps a clock that is behind.
fn implicit(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    t.load_with("timesync_implicit=1")?;
    channel.wait_open()?;
    channel.negotiate_all()?;
    let mut moment = t.moment();
    moment.wall += 3600 * 10_000_000;
    let request = channel.request(timesync::body((4, 0), &moment, timesync::SAMPLE))?;
    channel.transact(&request)?;
    wait_clock(t, ((moment.wall - UNIX_EPOCH_1601) / 10_000_000) as i64)?;
    channel.auto()?;
    wait_clock(t, ((t.moment().wall - UNIX_EPOCH_1601) / 10_000_000) as i64)
}

/// The host requests no replies, and reads none. The replies fill the ring. The host's SYNC still sets the clock.
fn unanswered(t: &Context<'_>) -> Result<()> {
    // More than the ring has room for.
    const SAMPLES: u64 = 400;
    let channel = t.channel(Service::TimeSync);
    channel.configure(|device| {
        device.set_unanswered();
        device.set_interval(Duration::from_millis(10));
    })?;
    t.load()?;
    channel.wait_requests(SAMPLES)?;
    channel.configure(|device| device.set_wall_offset(3600 * 10_000_000))?;
    // The restore makes the host send a SYNC.
    channel.configure(|device| device.set_restore(Restore::Resume))?;
    t.save_restore();
    let now = || ((t.moment().wall - UNIX_EPOCH_1601) / 10_000_000) as i64;
    wait_clock(t, now() + 3600)?;
    channel.configure(|device| device.set_wall_offset(0))?;
    t.save_restore();
    wait_clock(t, now())?;
    channel.wait_read()
}

/// The PTP clock is named hyperv, and `phc_ctl` reads the host's time from it.
fn ptp(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    channel.configure(|device| device.set_interval(Duration::from_millis(200)))?;
    channel.wait_replies(2)?;
    if t.sh("command -v phc_ctl")?.status != 0 {
        return t.skip("the initramfs has no phc_ctl");
    }
    let text = t.sh_ok(&format!("phc_ctl {} get", ptp_device(t)?))?;
    let host = (t.moment().wall - UNIX_EPOCH_1601) as f64 / 1e7;
    // "phc_ctl[6.1]: clock time is 1795405369.123456789 or Mon ..."
    let words = text
        .split("clock time is ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let clock: f64 = words
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| format!("phc_ctl says {text:?}"))?;
    t.check(
        (host - clock).abs() < 2.0,
        &format!("the PTP clock ({clock}) shows the host's time ({host})"),
    )?;
    let off = ptp_offset(t)?;
    // The host's clock may have been slewed since the last sample.
    t.check(
        *off.start() > -10_000_000 && *off.end() < 10_000_000,
        &format!("the PTP clock is right to 10 ms: it is {off:?} ns ahead"),
    )
}

/// The system's clock source.
const SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// If the system's clock source is the TSC, the PTP clock has cross timestamps: both clocks' times at one moment.
fn ptp_cross_timestamps(t: &Context<'_>) -> Result<()> {
    let source = t.sh_ok(&format!("cat {SOURCE}"))?;
    if source.trim() != "tsc" {
        return t.skip(&format!("the guest's clock source is {}", source.trim()));
    }
    t.channel(Service::TimeSync).wait_replies(1)?;
    t.check(says_cross_timestamps(t)?, "the clock has the capability")?;
    let device = ptp_device(t)?;
    let stamp = || -> Result<(i128, i128)> {
        let text = t.sh_ok(&format!("testptp -d {device} -X"))?;
        Ok((
            nanoseconds(&text, "device time: ")?,
            nanoseconds(&text, "monoraw time: ")?,
        ))
    };
    let (first, second) = (stamp()?, stamp()?);
    let (device_time, system_time) = (second.0 - first.0, second.1 - first.1);
    t.check(device_time > 0, "the clock runs")?;
    // The clocks may run at slightly different rates.
    t.check(
        (device_time - system_time).abs() < 1_000 + device_time / 1_000,
        &format!("{device_time} ns of the PTP clock are {system_time} ns of the system's"),
    )?;

    t.sh_ok(&format!("echo hyperv_clocksource_tsc_page >{SOURCE}"))?;
    let text = t.sh_ok(&format!(
        "testptp -d {device} -X 2>&1; phc_ctl {device} get"
    ));
    t.sh_ok(&format!("echo tsc >{SOURCE}"))?;
    let text = text?;
    t.check(
        text.contains("No such device") && text.contains("clock time is"),
        &format!("with another clock source only the PTP clock's time is read: {text}"),
    )
}

/// If the TSC is not the system's clock source, the PTP clock has no cross timestamps. It can still be read.
fn no_cross_timestamps(t: &Context<'_>, source: &str) -> Result<()> {
    let current = t.sh_ok(&format!("cat {SOURCE}"))?;
    t.equal("the clock source", current.as_str(), source)?;
    t.channel(Service::TimeSync).wait_replies(1)?;
    t.check(
        !says_cross_timestamps(t)?,
        "the PTP clock lacks the capability",
    )?;
    let device = ptp_device(t)?;
    let text = t.sh_ok(&format!(
        "testptp -d {device} -X 2>&1; testptp -d {device} -x 1"
    ))?;
    t.check(
        text.contains("Operation not supported") && text.contains("phc time"),
        &format!("only the PTP clock's time is read: {text}"),
    )?;
    is_right(t, 0)
}

/// Whether the PTP clock has the capability of cross timestamps.
fn says_cross_timestamps(t: &Context<'_>) -> Result<bool> {
    let said = t.sh_ok(&format!("testptp -d {} -c", ptp_device(t)?))?;
    Ok(said.contains("1 cross timestamping"))
}

/// Checks that the PTP clock is `ahead` of this machine's clock, in units of 100 ns. A sample that is delayed on a busy
/// machine sets the PTP clock back by the delay. Half a second is allowed: any fault of these scenarios is larger.
fn is_right(t: &Context<'_>, ahead: i64) -> Result<()> {
    let off = ptp_offset(t)?;
    let ahead = i128::from(ahead) * 100;
    t.check(
        *off.start() - ahead > -500_000_000 && *off.end() - ahead < 10_000_000,
        &format!("the PTP clock is {ahead} ns ahead (it is {off:?} ns)"),
    )
}

/// The current moment of a host whose wall clock is `ahead` of this machine's, in units of 100 ns.
fn moment(t: &Context<'_>, ahead: i64) -> Moment {
    let mut moment = t.moment();
    moment.wall = moment.wall.wrapping_add_signed(ahead);
    moment
}

/// The host's wall clock at `moment`, in seconds since 1970.
fn seconds(moment: &Moment) -> i64 {
    ((moment.wall - UNIX_EPOCH_1601) / 10_000_000) as i64
}

/// Sends a sample of version 4.
fn sample(t: &Context<'_>, moment: &Moment, flags: u8) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    let request = channel.request(timesync::body((4, 0), moment, flags))?;
    t.equal("status", channel.transact(&request)?.status, S_OK)
}

/// Reads an attribute of the device.
fn attribute(t: &Context<'_>, name: &str) -> Result<String> {
    t.sh_ok(&format!(
        "cat {}",
        attributes::file(Service::TimeSync, name)
    ))
}

/// Reads an attribute of the device that is a number.
fn number(t: &Context<'_>, name: &str) -> Result<i64> {
    let text = attribute(t, name)?;
    text.trim()
        .parse()
        .map_err(|_| format!("{name} says {text:?}").into())
}

/// The host sends samples whose reference time is ahead of the guest's. The offset grows, and the host's clock jumps.
/// The module treats each sample as taken now. It counts samples that are 10 ms or more ahead, and logs one line.
fn samples_ahead(t: &Context<'_>) -> Result<()> {
    t.channel(Service::TimeSync).negotiate_all()?;
    let mut counted = 0;
    for (reference, wall) in [
        (HOUR, 0),
        (HOUR, HOUR),
        (HOUR + 100_000, -HOUR),
        (24 * HOUR, HOUR / 2),
        (24 * HOUR + 1_000_000, 0),
    ] {
        for flags in [timesync::SAMPLE, timesync::SYNC] {
            let mut sent = moment(t, wall);
            sent.reference = sent.reference.wrapping_add_signed(reference);
            sample(t, &sent, flags)?;
            is_right(t, wall)?;
            t.check(number(t, "age")? < 60_000, "the sample was taken now")?;
            if flags == timesync::SYNC {
                wait_clock(t, seconds(&moment(t, wall)))?;
            }
            counted += 1;
            t.equal("samples ahead", number(t, "samples_ahead")?, counted)?;
        }
    }
    // A sample that is not ahead does not count.
    sample(t, &t.moment(), timesync::SAMPLE)?;
    t.equal("samples ahead", number(t, "samples_ahead")?, counted)?;
    said_times(t, 1)?;
    t.log_has(&format!("{AHEAD}: 1, the last one by 3"))
}

/// Checks how many log lines are about samples that are ahead.
fn said_times(t: &Context<'_>, times: usize) -> Result<()> {
    let log = t.kernel_log()?;
    t.equal("lines in the log", log.matches(AHEAD).count(), times)
}

/// The host's reference time runs 1 % faster than the guest's. The PTP clock keeps following. The module logs at most
/// one line an hour, and none if no further sample was ahead.
fn ahead_for_an_hour(t: &Context<'_>) -> Result<()> {
    t.channel(Service::TimeSync).negotiate_all()?;
    // The host also slews its wall clock, by a second a minute.
    let ahead = |minute: i64| {
        let wall = minute * 10_000_000;
        let mut moment = moment(t, wall);
        moment.reference = moment.reference.wrapping_add_signed(minute * HOUR / 6000);
        sample(t, &moment, timesync::SAMPLE)?;
        is_right(t, wall)
    };
    ahead(5)?;
    said_times(t, 1)?;
    t.sh_within("sleep 3660", Duration::from_secs(4000))?;
    sample(t, &moment(t, 0), timesync::SYNC)?;
    is_right(t, 0)?;
    said_times(t, 1)?;
    for minute in 66..=70 {
        ahead(minute)?;
        t.sh_within("sleep 60", Duration::from_secs(120))?;
    }
    t.equal("samples ahead", number(t, "samples_ahead")?, 6)?;
    said_times(t, 2)
}

/// The host negotiates anew right behind a SYNC. The negotiation discards the SYNC: the clock is not stepped, and the
/// module logs nothing.
fn step_ends_with_its_sample(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    channel.negotiate_all()?;
    for number in 0..20 {
        let sample = channel.request(timesync::body((4, 0), &moment(t, HOUR), timesync::SYNC))?;
        let offer = Message::negotiation(&[(3, 0)], &[(4, 0)], 100 + number);
        channel.send_together(&[&sample, &offer])?;
        for sent in [&sample, &offer] {
            let reply = channel.receive()?;
            t.equal("transaction", reply.transaction_id, sent.transaction_id)?;
        }
        // The job would have run by now.
        t.sh_ok("usleep 20000")?;
    }
    t.equal("the clock's offset", attribute(t, "offset")?.trim(), "none")?;
    let log = t.kernel_log()?;
    t.check(!log.contains("clock not set"), "the log says nothing")
}

/// The attributes about the host's clock read `none` before the first sample, after a negotiation, and where the
/// message version lacks the value.
fn clock_attributes(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    let says = |expected: [&str; 4]| {
        ["leap", "stratum", "offset", "age"]
            .iter()
            .zip(expected)
            .try_for_each(|(name, text)| match text {
                "a number" => number(t, name).map(|_| ()),
                text => t.equal(name, attribute(t, name)?.trim(), text),
            })
    };
    for service in [Service::Heartbeat, Service::Shutdown, Service::TimeSync] {
        let directory = attributes::file(service, "");
        let names = t.sh_ok(&format!("ls {directory} | tr '\\n' ' '"))?;
        let expected = match service {
            Service::TimeSync => {
                "age ignored leap offset refused replies requests samples_ahead stratum version"
            }
            Service::Heartbeat => "application_state ignored refused replies requests version",
            _ => "ignored refused replies requests version",
        };
        t.equal("attributes", names.trim(), expected)?;
    }
    says(["none"; 4])?;
    for (leap, stratum) in [(0, 0), (0, 2), (1, 1), (3, 16), (255, 255)] {
        channel.negotiate_all()?;
        says(["none"; 4])?;
        let body = timesync::body((4, 0), &moment(t, 0), timesync::SYNC);
        channel.transact(&channel.request(timesync::with_quality(body, leap, stratum))?)?;
        says([
            &leap.to_string(),
            &stratum.to_string(),
            "a number",
            "a number",
        ])?;
    }
    wait_clock(t, seconds(&t.moment()))?;
    for ahead in [100 * 10_000_000, -100 * 10_000_000] {
        sample(t, &moment(t, ahead), timesync::SAMPLE)?;
        // The clock is not stepped.
        let off = number(t, "offset")? - ahead * 100;
        t.check(
            off.abs() < 1_000_000_000,
            &format!("offset tells how far the host's clock is ahead ({off} ns off)"),
        )?;
    }
    let age = number(t, "age")?;
    t.sh_ok("sleep 2")?;
    let later = number(t, "age")?;
    t.check(
        age >= 0 && (age + 1_900..age + 60_000).contains(&later),
        &format!("age tells milliseconds ({age}, and {later} two seconds later)"),
    )?;
    channel.negotiate(&[(3, 0)], &[(3, 0)])?;
    let body = timesync::body((3, 0), &t.moment(), timesync::SAMPLE);
    channel.transact(&channel.request(body)?)?;
    says(["none", "none", "a number", "a number"])?;
    number(t, "offset")?;
    number(t, "age").map(|_| ())
}

/// The host was suspended. The guest's reference time stood still, or went on without samples. The host does not
/// negotiate, and sends no SYNC. Its first sample sets the clocks.
fn host_was_suspended(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    t.load_with("timesync_implicit=1")?;
    channel.wait_open()?;
    channel.negotiate_all()?;
    sample(t, &t.moment(), timesync::SYNC)?;
    wait_clock(t, seconds(&t.moment()))?;
    let mut ahead = 0;
    for (goes_on, missing) in [
        (0, HOUR / 6),
        (0, 9 * HOUR),
        (1230, HOUR / 3),
        (570, 20 * HOUR),
    ] {
        is_right(t, ahead)?;
        if goes_on > 0 {
            t.sh_within(
                &format!("sleep {goes_on}"),
                Duration::from_secs(goes_on + 60),
            )?;
            let get = t.sh(&format!("phc_ctl {} get", ptp_device(t)?))?;
            t.equal(
                "whether the PTP clock is readable",
                get.status == 0,
                goes_on < 600,
            )?;
            if t.module() == Module::Rust {
                t.equal(
                    "whether offset is a number",
                    attribute(t, "offset")?.trim() != "none",
                    goes_on < 600,
                )?;
                let age = number(t, "age")?;
                t.check(
                    age >= goes_on as i64 * 1000 - 1000,
                    &format!("age grows ({age} ms after {goes_on} s)"),
                )?;
            }
        }
        ahead += missing;
        sample(t, &moment(t, ahead), timesync::SAMPLE)?;
        is_right(t, ahead)?;
        wait_clock(t, seconds(&moment(t, ahead)))?;
    }
    Ok(())
}

/// The host's clock advances by two hours while the guest hibernates. The SYNC after the hibernation sets both clocks.
fn after_hibernation(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::TimeSync);
    channel.wait_replies(1)?;
    wait_clock(t, seconds(&t.moment()))?;
    for ahead in [2 * HOUR, 0] {
        channel.configure(|device| device.set_wall_offset(ahead))?;
        hibernation::hibernate(t)?;
        channel.wait_negotiated()?;
        wait_clock(t, seconds(&moment(t, ahead)))?;
        is_right(t, ahead)?;
    }
    Ok(())
}

/// The number of seconds that follows `name` in a text, such as 12.000000345, in nanoseconds.
fn nanoseconds(text: &str, name: &str) -> Result<i128> {
    let digits = text.split(name).nth(1).and_then(|rest| rest.lines().next());
    let digits = digits.map(|digits| digits.replace('.', ""));
    let number = digits.and_then(|digits| digits.trim().parse().ok());
    number.ok_or_else(|| format!("there is no \"{name}\" in {text:?}").into())
}

/// The path of the PTP clock.
pub fn ptp_device(guest: &Guest) -> Result<String> {
    let name = guest.sh_ok("grep -l hyperv /sys/class/ptp/*/clock_name")?;
    let name = name.split('/').nth(4);
    let name = name.ok_or("there is no PTP clock named hyperv")?;
    Ok(format!("/dev/{name}"))
}

/// How far the PTP clock is ahead of the host's clock, in nanoseconds, as a range. The host reads its clock right
/// before and after the guest reads the PTP clock. Returns the narrowest range of three.
pub fn ptp_offset(guest: &Guest) -> Result<RangeInclusive<i128>> {
    let read = format!("ptp-now {}", ptp_device(guest)?);
    let mut offsets = Vec::new();
    for _ in 0..3 {
        let text = guest.sh_ok(&read)?;
        let ptp: i128 = text
            .trim()
            .parse()
            .map_err(|_| format!("ptp-now says {text:?}"))?;
        let [before, after] = guest.looks().map(|look| {
            let since = look.duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_nanos() as i128
        });
        offsets.push(ptp - after..=ptp - before);
    }
    let narrowest = offsets
        .into_iter()
        .min_by_key(|off| off.end() - off.start());
    narrowest.ok_or_else(|| "the PTP clock was not read".into())
}

/// Between a negotiation and the first sample after it, the PTP clock cannot be read: the former time may be of another
/// host.
fn ptp_starts_over(t: &Context<'_>) -> Result<()> {
    if t.sh("command -v phc_ctl")?.status != 0 {
        return t.skip("the initramfs has no phc_ctl");
    }
    let channel = t.channel(Service::TimeSync);
    let get = format!("phc_ctl {} get", ptp_device(t)?);
    for _ in 0..2 {
        channel.negotiate_all()?;
        t.check(t.sh(&get)?.status != 0, "there is no time")?;
        let body = timesync::body((4, 0), &t.moment(), timesync::SAMPLE);
        channel.transact(&channel.request(body)?)?;
        t.sh_ok(&get)?;
    }
    Ok(())
}
