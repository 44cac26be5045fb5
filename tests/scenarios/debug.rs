// SPDX-License-Identifier: GPL-2.0

//! What only a kernel that looks for faults can tell (`rust/kdir/debug-kernel.config`). Its reports are splats in the
//! log, which fail any scenario.

use host::guest::Result;
use host::service::Service;

use crate::daemon;
use crate::daemon::Talk;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// The scenarios of this file. The leaks come last, after all that could have left one.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("kunit", kunit).rust_only().debug_kernel(),
    Scenario::new("allocations_fail", allocations_fail)
        .daemons()
        .rust_only()
        .debug_kernel()
        .expects_log(&["FAULT_INJECTION", "Call Trace", "failed"]),
    Scenario::new("leaks", leaks).debug_kernel(),
    Scenario::new("leaks_with_daemons", leaks_with_daemons)
        .daemons()
        .debug_kernel(),
];

/// The module's KUnit suites, run by hand: with each insertion would take too long. Each test is a result of its own.
fn kunit(t: &Context<'_>) -> Result<()> {
    let suites = t.sh_ok("cd /sys/kernel/debug/kunit && ls -1d hv_utils*")?;
    let (mut passed, mut failed) = (0, 0);
    for suite in suites.lines() {
        let folder = format!("/sys/kernel/debug/kunit/{suite}");
        let results = t.sh_ok(&format!("echo 1 >{folder}/run; cat {folder}/results"))?;
        // What is indented once is a test, what is not is the suite.
        for said in results.lines().filter_map(|line| line.strip_prefix("    ")) {
            let name = said.rsplit(' ').next().unwrap_or_default();
            if said.starts_with("ok ") && !said.contains("# SKIP") {
                println!("ok - kunit: {suite}: {name}");
                passed += 1;
            } else if said.starts_with("ok ") || said.starts_with("not ok ") {
                println!("not ok - kunit: {suite}: {name}");
                failed += 1;
            }
        }
    }
    t.equal("tests that failed", failed, 0)?;
    t.check(passed > 0, "there are tests")
}

/// Each allocation of a probe fails once: the device stays without a driver, or does with what it has, and works
/// when there is memory again.
fn allocations_fail(t: &Context<'_>) -> Result<()> {
    t.sh_ok("echo N >/sys/kernel/debug/failslab/ignore-gfp-wait")?;
    // One with a clock, and one with a character device.
    for service in [Service::TimeSync, Service::Kvp] {
        let channel = t.channel(service);
        let (mut failed, mut succeeded) = (0, 0);
        for number in 1.. {
            daemon::rebind(t, "unbind", service)?;
            channel.wait_closed()?;
            let bound = t.sh(&format!(
                "sh -c 'echo {number} >/proc/self/fail-nth; echo {} >/sys/bus/vmbus/drivers/hv_utils/bind'",
                service.instance()
            ))?;
            if bound.status == 0 {
                succeeded += 1;
                channel.wait_open()?;
            } else {
                failed += 1;
                succeeded = 0;
                t.check(!channel.is_open(), "the channel is not open")?;
                daemon::rebind(t, "bind", service)?;
            }
            channel.wait_open()?;
            // Some allocations can be done without, so one success is not the end.
            if succeeded == 10 {
                break;
            }
        }
        println!("# {service}: {failed} allocations failed");
        t.check(failed > 0, "allocations have failed")?;
    }
    t.unload()?;
    finds_nothing(t)
}

/// Nothing that was allocated has been forgotten.
fn finds_nothing(t: &Context<'_>) -> Result<()> {
    // What is younger than five seconds is left out; the second scan sees what the first took for reachable.
    t.sh_ok(
        "sleep 6; echo scan >/sys/kernel/debug/kmemleak; echo scan >/sys/kernel/debug/kmemleak",
    )?;
    let found = t.sh_ok("cat /sys/kernel/debug/kmemleak")?;
    t.equal("what kmemleak found", found.as_str(), "")
}

fn leaks(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.wait_replies(1)?;
    t.unload()?;
    finds_nothing(t)
}

fn leaks_with_daemons(t: &Context<'_>) -> Result<()> {
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    talk.finish()?;
    daemon::end(t)?;
    t.unload()?;
    finds_nothing(t)
}
