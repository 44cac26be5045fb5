// SPDX-License-Identifier: GPL-2.0

//! Checks that need the debug kernel (`rust/kdir/debug-kernel.config`). The debug kernel reports faults as splats in
//! the log, which fail any scenario.

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

/// The scenarios of this file. `leaks` is behind all scenarios that may leak. Only `allocations_fail_at_work` comes
/// later, and checks for leaks itself: `hv_vmbus` leaks rings there.
pub const SCENARIOS: &[Scenario] = &[
    // Tests are slow with two layers of emulation.
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
            // Any step of a probe may fail. Each has its own message.
            "failed",
            "cannot register PTP clock",
            // The connector. Only C uses it.
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

/// Runs the module's KUnit suites through debugfs. They do not run at each insertion, which would take too long. Each
/// test is a result of its own.
fn kunit(t: &Context<'_>) -> Result<()> {
    let suites =
        t.sh_ok("cd /sys/kernel/debug/kunit && ls -1 | grep -E '^(hv_utils|rust_vmbus)'")?;
    let mut expected = suites_in(&build_folder().with_file_name("drivers"))?;
    if t.config().built_in {
        // The abstractions have suites, too, but only in the kernel crate.
        expected.append(&mut suites_in(&build_folder().with_file_name("rust"))?);
    }
    let there = suites.lines().map(str::to_owned).collect();
    t.equal("suites", there, expected)?;
    let (mut passed, mut failed) = (0, 0);
    for suite in suites.lines() {
        let folder = format!("/sys/kernel/debug/kunit/{suite}");
        let results = t.sh_ok(&format!("echo 1 >{folder}/run; cat {folder}/results"))?;
        let before = passed + failed;
        // Results of tests are indented once. The result of the suite is not indented.
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

/// The names of the KUnit suites in a folder's sources.
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

/// Lets fault injection also hit allocations that may sleep, and log one line instead of a stack trace.
fn fail_any(t: &Context<'_>) -> Result<()> {
    t.sh_ok("cd /sys/kernel/debug/failslab && echo N >ignore-gfp-wait && echo 1 >verbose")
        .map(|_| ())
}

/// Runs a command again and again. Its first allocation fails, then its second, and so on until it makes no further
/// one. Runs `before` and `after` each time. `after` finds the command's status in `$status`. All commands must be
/// builtins of the shell: starting programs takes many times as long. Returns how many allocations have failed.
fn each_allocation_fails(t: &Context<'_>, before: &str, command: &str, after: &str) -> Result<u32> {
    // The file then has the rest of the number. If it is not zero, the command made fewer allocations.
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

/// A shell command that writes to the driver's `bind` or `unbind`.
fn rebinding(file: &str, service: Service) -> String {
    let id = service.instance();
    format!("echo {id} >{}/{file}", daemon::driver(service))
}

/// Checks that the service works.
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

/// Each allocation of a probe fails once. The probe fails, or does without the memory. The device works when there is
/// memory again.
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

/// There is no memory. Requests are answered nevertheless: they need none. Daemons work, and devices can be unbound.
fn allocations_fail_at_work(t: &Context<'_>) -> Result<()> {
    fail_any(t)?;
    requests_without_memory(t)?;
    for service in daemon::SERVICES {
        daemon_without_memory(t, service)?;
    }
    for service in services(t) {
        device_without_memory(t, service)?;
    }
    // Without memory hv_vmbus cannot tell the host that a ring goes away, and leaks the ring.
    t.unload()?;
    for object in found(t)?.split("unreferenced object").skip(1) {
        t.check(object.contains("hv_ringbuffer_init"), object)?;
    }
    t.sh_ok("echo clear >/sys/kernel/debug/kmemleak")
        .map(|_| ())
}

/// The services to test. All take minutes: without `HV_SLOW=1` these are one with a clock, and one with a character
/// device.
fn services(t: &Context<'_>) -> Vec<Service> {
    match t.is_slow() {
        true => t.config().services.clone(),
        false => vec![Service::TimeSync, Service::Kvp],
    }
}

/// All calls of `kmalloc()` fail. Each service answers nevertheless.
fn requests_without_memory(t: &Context<'_>) -> Result<()> {
    t.sh_ok("rm -rf /tmp/in /tmp/never; mkdir /tmp/in; mkfifo /tmp/never")?;
    for &service in removal::services(t) {
        Talk::begin(t, service, Daemon::of(service))?;
    }
    let [kvp, vss, files] = daemon::SERVICES.map(|service| Talk::with(t, service));
    // The debug kernel's bookkeeping has its own caches, which still work. No program can be started. So the host ends
    // this by copying a file, and the shell kills the VSS daemon to say that there is memory again.
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
    // The kernel could not allocate the uevent: there was no memory indeed.
    t.log_has("hibernation uevent not sent")?;
    daemon::end(t)
}

/// Each allocation of a daemon fails once while it reads a request, works on it and answers.
fn daemon_without_memory(t: &Context<'_>, service: Service) -> Result<()> {
    let daemon = Daemon::of(service);
    let talk = Talk::begin(t, service, daemon)?;
    let body = match service {
        // The daemon needs memory to open a file, and to let it grow. Begin the copy before.
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

/// Each allocation fails once while a process opens the device, and while a process unbinds it. The device is unbound
/// nevertheless, even if its file is open.
fn device_without_memory(t: &Context<'_>, service: Service) -> Result<()> {
    let (bind, unbind) = (rebinding("bind", service), rebinding("unbind", service));
    // The write may have failed before it reached the driver core.
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
    println!("# {service}: {failed} allocations failed to unbind its device");
    t.check(failed > 0, "allocations have failed")?;
    works(t, service)
}

/// Checks that kmemleak finds no leak.
pub fn finds_nothing(t: &Context<'_>) -> Result<()> {
    match unknown_leak(&found(t)?) {
        None => Ok(()),
        Some(what) => Err(format!("kmemleak says: {what}").into()),
    }
}

/// The first leak in kmemleak's report that is not known. One is known: `uio_hv_generic` connects its rings at each
/// opening, and hv_vmbus leaks the packet buffer of the last opening. The report has no name for the functions of
/// `uio_hv_generic` if that module was removed. This module does not call `vmbus_connect_ring()`.
fn unknown_leak(text: &str) -> Option<&str> {
    let mut objects = text.split("unreferenced object");
    let before = objects.next().filter(|before| !before.trim().is_empty());
    let is_known = |object: &&str| object.contains("vmbus_connect_ring+");
    before.or_else(|| objects.find(|object| !is_known(object)))
}

/// kmemleak's report.
fn found(t: &Context<'_>) -> Result<String> {
    // kmemleak ignores objects younger than five seconds. The second scan finds leaks that the first one took for
    // reachable.
    let scans = t.sh_within(
        "sleep 6; echo scan >/sys/kernel/debug/kmemleak; echo scan >/sys/kernel/debug/kmemleak",
        5 * TIMEOUT,
    )?;
    t.equal("status of the scans", scans.status, 0)?;
    t.sh_ok("cat /sys/kernel/debug/kmemleak")
}

/// The module serves the host and daemons, and is removed. It has leaked nothing.
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
        let known = "unreferenced object 0x1 (size 8):\n    vmbus_connect_ring+0x1/0x2\n    0xffffffffa03e9f76\n";
        let ours = known.replace("vmbus_connect_ring", "hv_utils_probe");
        assert_eq!(unknown_leak(""), None);
        assert_eq!(unknown_leak(&known.repeat(2)), None);
        assert!(
            unknown_leak(&format!("{known}{ours}")).is_some_and(|what| what.contains("hv_utils"))
        );
        assert_eq!(unknown_leak("cat: no memory\n"), Some("cat: no memory\n"));
    }
}
