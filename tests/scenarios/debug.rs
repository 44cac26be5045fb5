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
    Scenario::new("kunit", kunit)
        .unloaded()
        .rust_only()
        .debug_kernel(),
    Scenario::new("leaks", leaks).debug_kernel(),
    Scenario::new("leaks_with_daemons", leaks_with_daemons)
        .daemons()
        .debug_kernel(),
];

/// The suites of the module run when it is inserted. Each test is a result of its own.
fn kunit(t: &Context<'_>) -> Result<()> {
    t.load()?;
    let log = t.kernel_log()?;
    let results = log.lines().filter_map(|line| {
        let said = line.split_once("] ").map_or(line, |(_, said)| said);
        // Indented once is a test, not indented is a suite.
        let said = said.strip_prefix("    ")?;
        (said.starts_with("ok ") || said.starts_with("not ok ")).then_some(said)
    });
    let (mut passed, mut failed) = (0, 0);
    for said in results {
        let name = said.rsplit(' ').next().unwrap_or_default();
        match said.starts_with("ok ") && !said.contains("# SKIP") {
            true => passed += 1,
            false => failed += 1,
        }
        println!(
            "{} - kunit: {name}",
            said.split(' ').next().unwrap_or_default()
        );
    }
    t.equal("tests that failed", failed, 0)?;
    t.check(passed > 0, "there were tests")
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
