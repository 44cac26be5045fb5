// SPDX-License-Identifier: GPL-2.0

//! `make demo`: boots a stock kernel with this module on the emulated host, and prints a line for each fact.

use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::guest::TIMEOUT;
use host::ic::device::Versions;
use host::ic::shutdown;
use host::ic::shutdown::FORCE;
use host::ic::S_OK;
use host::machine::Exit;
use host::service::Service;

use crate::attributes;
use crate::daemon;
use crate::daemon::Talk;
use crate::fcopy;
use crate::kvp;
use crate::log;
use crate::runner::Options;
use crate::scenario::Context;
use crate::timesync;
use crate::vss;

/// Size of the copied file, in bytes.
const FILE: usize = 10_000_000;

/// The error of the guest's clock at boot, in seconds.
const WRONG_BY: i64 = -3600;

/// Runs the demo. Returns success if all of it worked.
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

fn negotiated(service: Service, versions: Versions) {
    fact(
        service.name(),
        &format!(
            "negotiated {}, framework {}",
            version(versions.message),
            version(versions.framework)
        ),
    );
}

/// Starts a daemon, and negotiates with its service.
fn begin<'a>(t: &'a Context<'_>, service: Service, daemon: daemon::Daemon) -> Result<Talk<'a>> {
    daemon.start(t)?;
    let talk = Talk::with(t, service);
    negotiated(service, talk.channel.negotiate_all()?);
    Ok(talk)
}

/// Boots a guest, and shows each service in it.
fn show(options: &Options) -> Result<()> {
    let config = host::machine::Config {
        rtc_offset: WRONG_BY,
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
    insertion(&guest)?;
    heartbeat(&guest)?;
    // The PTP clock needs a sample.
    guest.channel(Service::TimeSync).wait_replies(2)?;
    fact("ptp", &ptp(&guest)?);

    let context = Context::new(&guest, Module::Rust);
    data_exchange(&context)?;
    backup(&context)?;
    file_copy(&context)?;

    let log = guest.sh_ok("dmesg -r")?;
    if let Some(line) = log::first_bad_line(&log, &[]) {
        return Err(format!("the kernel's log says: {line}").into());
    }
    fact("log", "no warning");
    power_off(&guest)
}

/// Inserts the module. Services negotiate, and the clock gets right.
fn insertion(guest: &Guest) -> Result<()> {
    let before = guest.clock_error()?;
    guest.clear_kernel_log()?;
    for service in daemon::SERVICES {
        guest.channel(service).script()?;
    }
    guest.insmod(Module::Rust)?;
    fact("module", "hv_utils.ko of this project inserted");
    for service in [Service::Heartbeat, Service::Shutdown, Service::TimeSync] {
        negotiated(service, guest.channel(service).wait_negotiated()?);
    }
    guest.channel(Service::TimeSync).wait_replies(1)?;
    std::thread::sleep(Duration::from_millis(200));
    fact(
        "clock",
        &format!(
            "{before:+.3} s from the host's before, {:+.3} s after",
            guest.clock_error()?
        ),
    );
    Ok(())
}

/// The guest answers heartbeats, and reports the state of its applications.
fn heartbeat(guest: &Guest) -> Result<()> {
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
            "{} of {} beats answered, the fastest in {:.2} ms",
            statistics.replies,
            statistics.requests,
            fastest.as_secs_f64() * 1e3
        ),
    );
    let file = attributes::file(Service::Heartbeat, "application_state");
    guest.sh_ok(&format!("echo healthy >{file}"))?;
    let statistics = heartbeat.wait_replies(statistics.replies + 2)?;
    if statistics.application_state != Some(1) {
        return Err("the host does not see that applications are healthy".into());
    }
    fact(
        "heartbeat",
        "the guest says that its applications are healthy, and the host sees it",
    );
    Ok(())
}

/// Reads the PTP clock with `phc_ctl`.
fn ptp(guest: &Guest) -> Result<String> {
    let device = timesync::ptp_device(guest)?;
    // The guest's clock minus the PTP clock, such as "offset from CLOCK_REALTIME is -91015ns".
    let text = guest.sh_ok(&format!("phc_ctl {device} cmp"))?;
    let behind = text.rsplit("is ").next().unwrap_or(&text).trim();
    let behind: i128 = behind
        .trim_end_matches("ns")
        .parse()
        .map_err(|_| format!("phc_ctl says {text:?}"))?;
    let ahead = timesync::ptp_offset(guest)?;
    let doubt = (ahead.end() - ahead.start()) / 2;
    Ok(format!(
        "{device} (hyperv) is {} us ahead of the guest's clock, {} of the host's, give or take {}",
        -behind / 1000,
        (ahead.start() + doubt) / 1000,
        doubt / 1000 + 1
    ))
}

/// The host reads facts about the guest, and sets a value.
fn data_exchange(t: &Context<'_>) -> Result<()> {
    daemon::prepare(t)?;
    t.sh_ok("ip addr add 10.9.8.7/24 dev dummy0; ip link set dummy0 up")?;
    let talk = begin(t, Service::Kvp, daemon::KVP)?;
    let pairs = kvp::pairs(talk, host::ic::kvp::AUTO)?;
    for name in ["OSName", "OSBuildNumber", "NetworkAddressIPv4"] {
        let (_, value) = pairs
            .iter()
            .find(|(key, _)| key == name)
            .ok_or_else(|| format!("the guest does not tell its {name}"))?;
        fact("kvp", &format!("the host reads {name}: {value}"));
    }
    let pool = host::ic::kvp::EXTERNAL;
    let set = host::ic::kvp::set(pool, "Greeting", "grüße");
    talk.expect("SET", set, S_OK)?;
    kvp::file_has(t, pool, "Greeting", "grüße")?;
    fact(
        "kvp",
        "the host sets Greeting = grüße: found in the guest's /var/lib/hyperv/.kvp_pool_0",
    );
    Ok(())
}

/// The host makes a backup of a file system to which a program writes all the time.
fn backup(t: &Context<'_>) -> Result<()> {
    let disk = vss::Disk::new(t)?;
    let talk = begin(t, Service::Vss, daemon::VSS)?;
    let frozen = Instant::now();
    vss::freeze(talk, &disk)?;
    talk.expect("THAW", host::ic::vss::body(host::ic::vss::THAW), S_OK)?;
    let frozen = frozen.elapsed();
    disk.is_written()?;
    disk.finish()?;
    fact(
        "vss",
        &format!(
            "an ext4 under load frozen for {:.1} s: nothing written then, nothing lost",
            frozen.as_secs_f64()
        ),
    );
    Ok(())
}

/// The host copies a file into the guest.
fn file_copy(t: &Context<'_>) -> Result<()> {
    let talk = begin(t, Service::FCopy, daemon::FCOPY)?;
    let bytes = fcopy::content(FILE);
    let start = Instant::now();
    let mut told = 0;
    fcopy::copy_watched(talk, "/tmp/", "file", 0, &bytes, |copied| {
        let quarter = copied * 4 / FILE;
        if quarter > told {
            told = quarter;
            fact("fcopy", &format!("{} %", quarter * 25));
        }
    })?;
    let seconds = start.elapsed().as_secs_f64();
    fcopy::is_there(t, "/tmp/file", &bytes)?;
    fact(
        "fcopy",
        &format!(
            "{} MB in {seconds:.1} s, {:.1} MB/s: the checksums agree",
            FILE / 1_000_000,
            FILE as f64 / 1e6 / seconds
        ),
    );
    Ok(())
}

/// The host shuts the guest down.
fn power_off(guest: &Guest) -> Result<()> {
    let asked = Instant::now();
    guest
        .channel(Service::Shutdown)
        .start_request(shutdown::body(FORCE, "the demonstration is over"))?;
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
