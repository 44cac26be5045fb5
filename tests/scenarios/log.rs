// SPDX-License-Identifier: GPL-2.0

//! What the kernel's log must not hold.

/// What a splat of the kernel begins with or contains.
const SPLATS: [&str; 12] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "rcu: INFO",
    "INFO: task",
    "general protection fault",
    "Kernel panic",
    "KASAN",
    "UBSAN",
    "unreferenced object",
    "soft lockup",
];

/// Warnings of the stock kernel that have nothing to do with the module.
const HARMLESS: [&str; 6] = [
    "loading out-of-tree module taints kernel",
    "module verification failed: signature and/or required key missing",
    "PCI: Fatal: No config space access function found",
    "clocksource: Long readout interval",
    "clocksource: timekeeping watchdog",
    "hrtimer: interrupt took",
];

/// Whether a line is (part of) a splat.
pub fn is_splat(line: &str) -> bool {
    SPLATS.iter().any(|text| line.contains(text))
}

/// The first line of a raw log (`dmesg -r`: `<priority>[time] text`) that is a splat, or a warning or worse that is
/// neither harmless nor expected.
pub fn first_bad_line<'a>(log: &'a str, expected: &[&str]) -> Option<&'a str> {
    log.lines().find(|line| {
        // A rule, between which and the next one is what matters.
        if line.ends_with("=====") {
            return false;
        }
        if is_splat(line) {
            return !expected.iter().any(|text| line.contains(text));
        }
        let priority = line
            .strip_prefix('<')
            .and_then(|rest| rest.split_once('>')?.0.parse::<u32>().ok());
        priority.is_some_and(|priority| priority & 7 <= 4)
            && !HARMLESS
                .iter()
                .chain(expected)
                .any(|text| line.contains(text))
    })
}
