// SPDX-License-Identifier: GPL-2.0

//! What only a kernel that looks for faults can tell (`rust/kdir/debug-kernel.config`). Its reports are splats in the
//! log, which fail any scenario.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use host::guest::Result;
use host::guest::TIMEOUT;
use host::ic::fcopy::write;
use host::ic::fcopy::OVERWRITE;
use host::ic::kvp;
use host::ic::shutdown::HIBERNATE;
use host::ic::vss;
use host::ic::S_OK;
use host::images::build_folder;
use host::service::Service;

use crate::daemon;
use crate::daemon::Daemon;
use crate::daemon::Talk;
use crate::fcopy;
use crate::removal;
use crate::scenario::Context;
use crate::scenario::Scenario;
use crate::shutdown;

/// The scenarios of this file. `leaks` comes behind all that could have left one, but for `allocations_fail_at_work`: that
/// looks for itself, as `hv_vmbus` leaves rings for good there.
pub const SCENARIOS: &[Scenario] = &[
    // How long a test takes says nothing of it in a machine that is emulated twice over.
    Scenario::new("kunit", kunit)
        .rust_only()
        .debug_kernel()
        .expects_log(&["Test should be marked slow"]),
    Scenario::new("allocations_fail", allocations_fail)
        .daemons()
        .rust_only()
        .debug_kernel()
        .expects_log(&[
            "FAULT_INJECTION",
            // Each step of a probe may be the one without memory, and says so in words of its own.
            "failed",
            "cannot register PTP clock",
            // The connector, which C has and this module has not.
            "Failed to create new callback queue",
            "unable to add device",
            "debugfs: out of free dentries",
            "ACPI Error",
            "kmemleak: Cannot allocate",
        ]),
    Scenario::new("leaks", leaks).daemons().debug_kernel(),
    Scenario::new("allocations_fail_at_work", allocations_fail_at_work)
        .daemons()
        .rust_only()
        .debug_kernel()
        .expects_log(&[
            "FAULT_INJECTION",
            "hibernation uevent not sent",
            "VSS: no answer from the daemon",
            "teardown gpadl return",
        ]),
];

/// The module's KUnit suites, run by hand: with each insertion would take too long. Each test is a result of its own.
fn kunit(t: &Context<'_>) -> Result<()> {
    let suites = t.sh_ok("cd /sys/kernel/debug/kunit && ls -1d hv_utils*")?;
    let sources = build_folder().with_file_name("drivers");
    let there = suites.lines().map(str::to_owned).collect();
    t.equal("suites", there, suites_in(&sources)?)?;
    let (mut passed, mut failed) = (0, 0);
    for suite in suites.lines() {
        let folder = format!("/sys/kernel/debug/kunit/{suite}");
        let results = t.sh_ok(&format!("echo 1 >{folder}/run; cat {folder}/results"))?;
        let before = passed + failed;
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
        t.check(passed + failed > before, &format!("{suite} runs"))?;
    }
    t.equal("tests that failed", failed, 0)?;
    t.check(passed > 0, "there are tests")
}

/// The KUnit suites of the sources in a folder.
fn suites_in(folder: &Path) -> Result<BTreeSet<String>> {
    let mut suites = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            suites.extend(suites_in(&path)?);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path)?;
            let names = text.split("kunit_tests(").skip(1);
            suites.extend(names.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())));
        }
    }
    Ok(suites)
}

/// Has allocations fail that may sleep, too, where they are to fail, and only say so.
fn fail_any(t: &Context<'_>) -> Result<()> {
    t.sh_ok("cd /sys/kernel/debug/failslab && echo N >ignore-gfp-wait && echo 1 >verbose")
        .map(|_| ())
}

/// Has a command fail to allocate memory again and again: first its first allocation fails, then its second, until it
/// has no more of them. `before` and `after` each time are other commands; the latter finds the command's status in
/// `$status`. All are the shell's own: to start programs would take many times as long. Gives how many allocations have
/// failed.
fn each_allocation_fails(t: &Context<'_>, before: &str, command: &str, after: &str) -> Result<u32> {
    // What is left of the number in the end is how many allocations more there would have to be.
    let output = t.sh_within(
        &format!(
            "number=0 left=0; while [ $left = 0 ]; do \
                 {{ {before}; }} || exit; \
                 number=$((number + 1)); exec 4<>/proc/self/fail-nth; echo $number >&4; \
                 {command}; status=$?; read left <&4 || exit; echo 0 >&4; \
                 {{ {after}; }} || exit; \
             done 2>/tmp/errors; echo $((number - 1))"
        ),
        5 * TIMEOUT,
    )?;
    output.text.parse().map_err(|_| {
        let failed = t.sh_ok("tail -n 1 /tmp/errors").unwrap_or_default();
        format!("`{command}`, `{after}`: {failed}").into()
    })
}

/// The shell's command that writes to the driver's `bind` or `unbind`.
fn rebinding(file: &str, service: Service) -> String {
    let id = service.instance();
    format!("echo {id} >{}/{file}", daemon::driver(service))
}

/// The service does what it is for.
fn works(t: &Context<'_>, service: Service) -> Result<()> {
    let channel = t.channel(service);
    match service {
        Service::Heartbeat | Service::TimeSync => {
            channel.configure(|device| device.set_interval(Duration::from_millis(100)))?;
            channel.wait_negotiated()?;
            channel
                .wait_replies(channel.statistics()?.replies + 1)
                .map(|_| ())
        }
        Service::Shutdown => shutdown::request(t, HIBERNATE, S_OK),
        _ => removal::serves(t, service),
    }
}

/// Each allocation of a probe fails once: the device stays without a driver, or does with what it has, and works
/// when there is memory again.
fn allocations_fail(t: &Context<'_>) -> Result<()> {
    fail_any(t)?;
    for service in services(t) {
        let (bind, unbind) = (rebinding("bind", service), rebinding("unbind", service));
        let again = format!("[ $status = 0 ] || {bind}");
        let failed = each_allocation_fails(t, &unbind, &bind, &again)?;
        println!("# {service}: {failed} allocations of its probe failed");
        t.check(failed > 0, "allocations have failed")?;
        works(t, service)?;
    }
    t.unload()?;
    finds_nothing(t)
}

/// There is no memory to work on requests with: they are answered as if there were, as none is needed. Nor is it to
/// be a daemon, and to let a device go.
fn allocations_fail_at_work(t: &Context<'_>) -> Result<()> {
    fail_any(t)?;
    requests_without_memory(t)?;
    for service in daemon::SERVICES {
        daemon_without_memory(t, service)?;
    }
    for service in services(t) {
        device_without_memory(t, service)?;
    }
    // Where hv_vmbus has no memory to tell the host that a ring goes, it leaves the ring for good.
    t.unload()?;
    for object in found(t)?.split("unreferenced object").skip(1) {
        t.check(object.contains("hv_ringbuffer_init"), object)?;
    }
    t.sh_ok("echo clear >/sys/kernel/debug/kmemleak")
        .map(|_| ())
}

/// The services to look at: all of them take minutes, so without `HV_SLOW` one that has a clock, and one that has a
/// character device.
fn services(t: &Context<'_>) -> Vec<Service> {
    match t.is_slow() {
        true => t.config().services.clone(),
        false => vec![Service::TimeSync, Service::Kvp],
    }
}

/// No `kmalloc()` succeeds, whoever calls it: each service answers.
fn requests_without_memory(t: &Context<'_>) -> Result<()> {
    t.sh_ok("rm -rf /tmp/in /tmp/never; mkdir /tmp/in; mkfifo /tmp/never")?;
    for &service in removal::services(t) {
        Talk::begin(t, service, Daemon::of(service))?;
    }
    let [kvp, vss, files] = daemon::SERVICES.map(|service| Talk::with(t, service));
    // What the kernel notes to find faults has caches of its own, and works. No program can be started: it is a file
    // from the host that ends this, and a daemon's end that says so.
    t.sh_ok(
        "cd /sys/kernel/debug/failslab && for cache in /sys/kernel/slab/kmalloc-*; do echo 1 >$cache/failslab; done; \
         echo 1 >cache-filter && echo -1 >times && vss=$(pidof hv_vss_daemon) && exec 3>probability <>/tmp/never && \
         { { until [ -e /tmp/in/over ]; do read -t 1 line; done; echo 0 >&3; kill -KILL $vss; } >&2 & } && \
         echo 100 >&3",
    )?;
    for _ in 0..5 {
        for service in [Service::Heartbeat, Service::TimeSync, Service::Shutdown] {
            works(t, service)?;
        }
        kvp.expect("SET", kvp::set(kvp::EXTERNAL, "key", "value"), S_OK)?;
        kvp.expect("GET", kvp::enumerate(kvp::EXTERNAL, 0), S_OK)?;
        vss.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
        fcopy::copy(files, "/tmp/in/", "file", OVERWRITE, b"content")?;
    }
    fcopy::copy(files, "/tmp/in/", "over", 0, b"")?;
    let mut asked = 0;
    while vss.ask(vss::body(vss::HOT_BACKUP))?.status == S_OK {
        asked += 1;
        t.check(asked < 1000, "there is memory again")?;
        std::thread::sleep(Duration::from_millis(10));
    }
    t.sh_ok("echo 0 >/sys/kernel/debug/failslab/cache-filter")?;
    // The event for user space is the kernel's to allocate: there was no memory indeed.
    t.log_has("hibernation uevent not sent")?;
    daemon::end(t)
}

/// Each allocation of a daemon fails once, while it reads a request, works on it and answers.
fn daemon_without_memory(t: &Context<'_>, service: Service) -> Result<()> {
    let daemon = Daemon::of(service);
    let talk = Talk::begin(t, service, daemon)?;
    let body = match service {
        // Where a file is opened, or grows, the daemon needs memory indeed.
        Service::FCopy => {
            talk.expect("START", removal::request(service), S_OK)?;
            write(0, b"content")
        }
        _ => removal::request(service),
    };
    talk.expect("a request", body.clone(), S_OK)?;
    let mut number = 1;
    loop {
        daemon.fail_allocation(t, number)?;
        talk.expect("a request", body.clone(), S_OK)?;
        if daemon.allocations_to_fail(t)? > 0 {
            break;
        }
        number += 1;
    }
    println!(
        "# {service}: {} allocations of its daemon failed",
        number - 1
    );
    daemon.kill(t)?;
    talk.finish()
}

/// Each allocation of whoever opens a device fails once, and of whoever unbinds it: it goes, also where a file is open.
fn device_without_memory(t: &Context<'_>, service: Service) -> Result<()> {
    let (bind, unbind) = (rebinding("bind", service), rebinding("unbind", service));
    // It may not have come so far as to ask for it.
    let again = format!("{{ [ $status = 0 ] || {unbind}; }} && {bind}");
    let mut before = ":".to_owned();
    if daemon::SERVICES.contains(&service) {
        let device = format!("/dev/vmbus/hv_{service}");
        let failed = each_allocation_fails(t, ":", &format!("true <>{device}"), ":")?;
        println!("# {service}: {failed} allocations failed to open its device");
        t.check(failed > 0, "allocations have failed")?;
        before = format!("exec 5<>{device}");
    }
    let failed = each_allocation_fails(t, &before, &unbind, &again)?;
    println!("# {service}: {failed} allocations failed to unbind it");
    t.check(failed > 0, "allocations have failed")?;
    works(t, service)
}

/// Nothing that was allocated has been forgotten.
fn finds_nothing(t: &Context<'_>) -> Result<()> {
    match unknown_leak(&found(t)?) {
        None => Ok(()),
        Some(what) => Err(format!("kmemleak says: {what}").into()),
    }
}

/// What kmemleak says but for one leak that is known: `uio_hv_generic` has its rings connected at each opening, and
/// hv_vmbus forgets the packet buffer of the last time.
fn unknown_leak(text: &str) -> Option<&str> {
    let mut objects = text.split("unreferenced object");
    let before = objects.next().filter(|before| !before.trim().is_empty());
    let is_known = |object: &&str| {
        ["vmbus_connect_ring", "hv_uio_open"]
            .iter()
            .all(|function| object.contains(&format!("{function}+")))
    };
    before.or_else(|| objects.find(|object| !is_known(object)))
}

/// What kmemleak has found.
fn found(t: &Context<'_>) -> Result<String> {
    // What is younger than five seconds is left out; the second scan sees what the first took for reachable.
    let scans = t.sh_within(
        "sleep 6; echo scan >/sys/kernel/debug/kmemleak; echo scan >/sys/kernel/debug/kmemleak",
        5 * TIMEOUT,
    )?;
    t.equal("status of the scans", scans.status, 0)?;
    t.sh_ok("cat /sys/kernel/debug/kmemleak")
}

/// Nothing is left of a module that has served hosts and daemons.
fn leaks(t: &Context<'_>) -> Result<()> {
    t.channel(Service::Heartbeat).wait_replies(1)?;
    for &service in removal::services(t) {
        removal::serves(t, service)?;
    }
    t.unload()?;
    finds_nothing(t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_leak_is_known_and_nothing_else() {
        let known = "unreferenced object 0x1 (size 8):\n    vmbus_connect_ring+0x1/0x2\n    hv_uio_open+0x3/0x4\n";
        let ours = known.replace("hv_uio_open", "hv_utils_probe");
        assert_eq!(unknown_leak(""), None);
        assert_eq!(unknown_leak(&known.repeat(2)), None);
        assert!(
            unknown_leak(&format!("{known}{ours}")).is_some_and(|what| what.contains("hv_utils"))
        );
        assert!(unknown_leak(&known.replace("vmbus_connect_ring", "other")).is_some());
        assert_eq!(unknown_leak("cat: no memory\n"), Some("cat: no memory\n"));
    }
}
