// SPDX-License-Identifier: GPL-2.0

//! What only a kernel that looks for faults can tell (`rust/kdir/debug-kernel.config`). Its reports are splats in the
//! log, which fail any scenario.

use host::guest::Result;
use host::ic::kvp;
use host::ic::vss;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon;
use crate::daemon::ShellDaemon;
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
        .expects_log(&[
            "FAULT_INJECTION",
            "failed",
            "cannot register PTP clock",
            "kmemleak: Cannot allocate",
        ]),
    Scenario::new("allocations_fail_at_work", allocations_fail_at_work)
        .daemons()
        .rust_only()
        .debug_kernel()
        .expects_log(&["FAULT_INJECTION"]),
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

/// Has allocations fail that may sleep, too, where they are to fail, and only say so.
fn fail_any(t: &Context<'_>) -> Result<()> {
    t.sh_ok("cd /sys/kernel/debug/failslab && echo N >ignore-gfp-wait && echo 1 >verbose")
        .map(|_| ())
}

/// Each allocation of a probe fails once: the device stays without a driver, or does with what it has, and works
/// when there is memory again.
fn allocations_fail(t: &Context<'_>) -> Result<()> {
    fail_any(t)?;
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

/// There is no memory to work on requests with: they are answered as if there were, as none is needed. Nor is it to
/// take what a daemon writes, and to let a device go.
fn allocations_fail_at_work(t: &Context<'_>) -> Result<()> {
    let failslab = "/sys/kernel/debug/failslab";
    fail_any(t)?;
    // Whoever needs memory of the size of a message, which nobody but the module does meanwhile.
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    t.sh_ok(&format!(
        "cd {failslab} && echo 1 >/sys/kernel/slab/kmalloc-8k/failslab && echo 1 >cache-filter && \
         echo -1 >times && echo 100 >probability"
    ))?;
    let served = (0..5).try_for_each(|_| {
        talk.expect("SET", kvp::set(kvp::EXTERNAL, "key", "value"), S_OK)?;
        talk.expect("GET", kvp::enumerate(kvp::EXTERNAL, 0), S_OK)
            .map(|_| ())
    });
    t.sh_ok(&format!(
        "cd {failslab} && echo 0 >probability && echo 0 >cache-filter && echo 0 >/sys/kernel/slab/kmalloc-8k/failslab"
    ))?;
    served?;
    talk.finish()?;

    // A daemon, each allocation of whose answer fails once.
    let script =
        "i=0; while dd bs=12 count=1 2>/dev/null; do i=$((i + 1)); echo $i >/proc/self/fail-nth; \
                  printf \"\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000\" >&0; \
                  echo 0 >/proc/self/fail-nth; done";
    let daemon = ShellDaemon::registered(t, Service::Vss, script)?;
    let vss = Talk::with(t, Service::Vss);
    vss.channel.negotiate_all()?;
    for _ in 0..10 {
        vss.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    }
    daemon.kill(t)?;
    vss.finish()?;

    for number in 1..10 {
        let unbound = t.sh(&format!(
            "sh -c 'echo {number} >/proc/self/fail-nth; echo {} >/sys/bus/vmbus/drivers/hv_utils/unbind'",
            Service::Kvp.instance()
        ))?;
        // It may not have come so far as to ask for it.
        if unbound.status != 0 {
            daemon::rebind(t, "unbind", Service::Kvp)?;
        }
        talk.channel.wait_closed()?;
        daemon::KVP.wait_gone(t)?;
        daemon::rebind(t, "bind", Service::Kvp)?;
        talk.channel.wait_open()?;
        Talk::begin(t, Service::Kvp, daemon::KVP)?;
    }
    Ok(())
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
