// SPDX-License-Identifier: GPL-2.0

//! Lines that fail a scenario if the kernel's log has them.

/// Texts in splats of the kernel.
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

/// Warnings of the stock kernel that the module does not cause.
const HARMLESS: [&str; 8] = [
    "loading out-of-tree module taints kernel",
    "module verification failed: signature and/or required key missing",
    "PCI: Fatal: No config space access function found",
    "clocksource: Long readout interval",
    "clocksource: timekeeping watchdog",
    "hrtimer: interrupt took",
    // The host sends an NMI to a processor that seems stuck. The guest has no other source of NMIs.
    "Uhhuh. NMI received for unknown reason",
    "Dazed and confused, but trying to continue",
];

/// Whether a line is (part of) a splat.
pub fn is_splat(line: &str) -> bool {
    SPLATS.iter().any(|text| line.contains(text))
}

/// The first bad line of a raw log (`dmesg -r`: `<priority>[time] text`): a splat, or a warning or worse that is
/// neither harmless nor expected. Skips an expected splat from its `WARNING:` to its end, but not another splat inside.
pub fn first_bad_line<'a>(log: &'a str, expected: &[&str]) -> Option<&'a str> {
    let mut is_in_splat = false;
    log.lines().find(|line| {
        // A separator line of a report: the lines that matter follow.
        if line.ends_with("=====") {
            return false;
        }
        let is_expected = expected.iter().any(|text| line.contains(text));
        if is_in_splat {
            is_in_splat = !line.contains("---[ end trace");
            return is_splat(line) && !is_expected && !line.contains("Call Trace");
        }
        if is_splat(line) {
            is_in_splat = is_expected && line.contains("WARNING:");
            return !is_expected;
        }
        let priority = line
            .strip_prefix('<')
            .and_then(|rest| rest.split_once('>')?.0.parse::<u32>().ok());
        priority.is_some_and(|priority| priority & 7 <= 4)
            && !is_expected
            && !HARMLESS.iter().any(|text| line.contains(text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nmi_of_the_host_is_harmless() {
        let log = "<0>[1.0] Uhhuh. NMI received for unknown reason 30 on CPU 0.\n\
                   <0>[1.0] Dazed and confused, but trying to continue\n";
        assert_eq!(first_bad_line(log, &[]), None);
        assert!(first_bad_line("<0>[1.0] NMI watchdog: x\n", &[]).is_some());
    }

    const SPLAT: &str = "<4>[1.0] ------------[ cut here ]------------\n\
                         <4>[1.0] WARNING: kernel/smp.c:1 at f\n\
                         <4>[1.0] Modules linked in: hv_utils(O)\n\
                         <4>[1.0] Call Trace:\n\
                         <4>[1.0] ---[ end trace 0 ]---\n";

    #[test]
    fn an_expected_splat_is_left_out_as_a_whole() {
        assert_eq!(first_bad_line(SPLAT, &["cut here", "kernel/smp.c"]), None);
        assert!(first_bad_line(SPLAT, &[]).is_some());
        assert!(first_bad_line(SPLAT, &["cut here", "kernel/other.c"]).is_some());
    }

    #[test]
    fn what_is_in_or_behind_an_expected_splat_is_not() {
        let expected = ["cut here", "kernel/smp.c"];
        let within = SPLAT.replace("Modules linked in", "BUG: KASAN");
        assert_eq!(
            first_bad_line(&within, &expected),
            Some("<4>[1.0] BUG: KASAN: hv_utils(O)")
        );
        let behind = format!("{SPLAT}<4>[2.0] something else\n");
        assert_eq!(
            first_bad_line(&behind, &expected),
            Some("<4>[2.0] something else")
        );
    }
}
