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
    Scenario::new("leaks", leaks).debug_kernel(),
    Scenario::new("leaks_with_daemons", leaks_with_daemons)
        .daemons()
        .debug_kernel(),
];

/// The module's KUnit suites, run by hand: with each insertion would take too long. Each test is a result of its own.
fn kunit(t: &Context<'_>) -> Result<()> {
    let suites = t.sh_ok("cd /sys/kernel/debug/kunit && ls -d hv_utils*")?;
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
    t.unload()?;
    finds_nothing(t)
}
