// SPDX-License-Identifier: GPL-2.0

//! `make demo`: a stock kernel on the emulated host with this module, one line a fact.

use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::guest::TIMEOUT;
use host::ic::shutdown::FORCE;
use host::ic::UNIX_EPOCH_1601;
use host::machine::Exit;
use host::service::Service;

use crate::log;
use crate::runner::Options;

/// How wrong the guest's clock is when it boots.
const WRONG_BY: i64 = -3600;

/// Runs it; the exit status says whether all of it worked.
pub fn run(options: &Options) -> ExitCode {
    match show(options) {
        Ok(()) => {
            println!("all of it worked");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn fact(name: &str, text: &str) {
    println!("{name:<12} {text}");
}

fn version((major, minor): (u16, u16)) -> String {
    format!("{major}.{minor}")
}

/// The guest's wall clock less the host's, in seconds.
fn clock_error(guest: &Guest) -> Result<f64> {
    let text = guest.sh_ok("date +%s.%N")?;
    let guests: f64 = text
        .trim()
        .trim_end_matches(".%N")
        .parse()
        .map_err(|_| format!("date says {text:?}"))?;
    Ok(guests - (guest.moment().wall - UNIX_EPOCH_1601) as f64 / 1e7)
}

fn show(options: &Options) -> Result<()> {
    let config = host::machine::Config {
        rtc_offset: WRONG_BY,
        vcpus: 2,
        ..options.config()
    };
    let guest = Guest::boot(&config)?;
    let release = guest.sh_ok("uname -r")?;
    let vmbus = guest.vmbus_version().map_or("none".to_owned(), version);
    fact(
        "guest",
        &format!(
            "stock Linux {release}, booted in {:.1} s",
            guest.boot_time().as_secs_f64()
        ),
    );
    fact(
        "VMBus",
        &format!(
            "version {vmbus}, {} services offered",
            config.services.len()
        ),
    );
    let before = clock_error(&guest)?;

    guest.insmod(Module::Rust)?;
    fact("module", "hv_utils.ko of this project inserted");
    for service in [Service::Heartbeat, Service::Shutdown, Service::TimeSync] {
        let versions = guest.channel(service).wait_negotiated()?;
        fact(
            service.name(),
            &format!(
                "negotiated {}, framework {}",
                version(versions.message),
                version(versions.framework)
            ),
        );
    }
    guest.channel(Service::TimeSync).wait_replies(1)?;
    std::thread::sleep(Duration::from_millis(200));
    fact(
        "clock",
        &format!(
            "{before:+.3} s from the host's before, {:+.3} s after",
            clock_error(&guest)?
        ),
    );

    let heartbeat = guest.channel(Service::Heartbeat);
    let statistics = heartbeat.wait_replies(3)?;
    let fastest = statistics
        .latencies
        .iter()
        .min()
        .copied()
        .unwrap_or_default();
    fact(
        "heartbeat",
        &format!(
            "{} of {} beats answered, the fastest in {:.2} ms, applications' state {}",
            statistics.replies,
            statistics.requests,
            fastest.as_secs_f64() * 1e3,
            statistics.application_state.unwrap_or(0)
        ),
    );
    // A sample feeds the PTP clock.
    guest.channel(Service::TimeSync).wait_replies(2)?;
    fact("PTP", &ptp(&guest)?);

    let log = guest.sh_ok("dmesg -r")?;
    if let Some(line) = log::first_bad_line(&log, &[]) {
        return Err(format!("the kernel's log says: {line}").into());
    }
    fact("log", "no warning");

    let asked = Instant::now();
    guest
        .channel(Service::Shutdown)
        .request_shutdown(FORCE, "the demonstration is over")?;
    match guest.wait_exit(TIMEOUT)? {
        Exit::PowerOff => {
            fact(
                "shutdown",
                &format!(
                    "powered off {:.2} s after the request",
                    asked.elapsed().as_secs_f64()
                ),
            );
            Ok(())
        }
        exit => Err(format!("the guest ended with {exit:?}").into()),
    }
}

/// What the PTP clock says, by a real client.
fn ptp(guest: &Guest) -> Result<String> {
    let name =
        guest.sh_ok("for c in /sys/class/ptp/ptp*; do grep -l hyperv $c/clock_name; done")?;
    let device = name
        .split('/')
        .nth(4)
        .ok_or("there is no PTP clock named hyperv")?
        .to_owned();
    let text = guest.sh_ok(&format!("phc_ctl /dev/{device} cmp"))?;
    let offset = text.rsplit("is ").next().unwrap_or(&text).trim();
    Ok(format!(
        "/dev/{device} (hyperv), from the guest's clock: {offset}"
    ))
}
