// SPDX-License-Identifier: GPL-2.0

//! The table of faults in the documentation. It has the scenarios which show that C has a fault, and this module not.

use std::collections::BTreeMap;

use host::guest::Module;

/// A fault of the C driver, found by reading its code.
pub struct Fault {
    /// The event.
    what: &'static str,
    /// C's reaction. Empty if C passes.
    in_c: &'static str,
    /// The scenarios with the event.
    shown: &'static [Shown],
}

/// A scenario, and the kernel on which it shows the fault best.
pub struct Shown {
    scenario: &'static str,
    kernel: Kernel,
    /// The number of the patch for mainline's C driver which lets C pass, if there is one.
    patch: Option<u32>,
}

impl Shown {
    /// C passes with this patch of `Documentation/mainline` and all patches before.
    const fn patch(mut self, number: u32) -> Self {
        self.patch = Some(number);
        self
    }

    /// The scenario's name, and its kernel unless that is the stock kernel.
    fn name(&self) -> String {
        cell_of(self.scenario, self.kernel)
    }
}

/// The kernel for a scenario of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The stock kernel, with one processor.
    Stock,
    /// The debug kernel, with two processors.
    Debug,
}

const fn fault(what: &'static str, in_c: &'static str, shown: &'static [Shown]) -> Fault {
    Fault { what, in_c, shown }
}

impl Fault {
    /// The text in the table: the event, and C's reaction.
    fn text(&self) -> String {
        match self.in_c {
            "" => self.what.to_owned(),
            in_c => format!("{}: {in_c}", self.what),
        }
    }
}

const fn stock(scenario: &'static str) -> Shown {
    Shown {
        scenario,
        kernel: Kernel::Stock,
        patch: None,
    }
}

const fn debug(scenario: &'static str) -> Shown {
    Shown {
        scenario,
        kernel: Kernel::Debug,
        patch: None,
    }
}

/// All faults, by topic. Their numbers in the document are their places in this list.
pub const FAULTS: &[(&str, &[Fault])] = &[
    (
        "Life cycle",
        &[
            fault(
                "The host refuses to open the channel",
                "C crashes during its cleanup",
                &[
                    stock("open_refused").patch(1),
                    stock("open_refused_of_a_former_device").patch(1),
                ],
            ),
            fault(
                "There are two devices of one class",
                "C also takes the second one",
                &[stock("second_device_of_a_class").patch(7)],
            ),
            fault(
                "The device is removed while a daemon has its file open",
                "C waits until the file is closed",
                &[stock("chardev"), debug("vss_unbound_under_packets")],
            ),
            fault(
                "The device is removed while a process closes its file",
                "C frees memory that the process still uses",
                &[debug("kvp_unbound_as_a_file_closes").patch(2)],
            ),
            fault(
                "The device is removed while its daemon hangs",
                "C waits for the daemon",
                &[
                    stock("kvp_unbound_under_its_daemon"),
                    stock("kvp_rescinded_under_its_daemon"),
                ],
            ),
            fault(
                "Packets come while the device is removed",
                "",
                &[debug("vss_unbound_under_packets")],
            ),
            fault(
                "Work is pending when the module is removed",
                "C's work runs after the removal, and the guest crashes",
                // Not in emulated time: a busy processor takes minutes there.
                &[debug("work_left_at_removal").patch(3)],
            ),
            fault(
                "A step of the probe fails",
                "C still uses freed memory",
                &[debug("allocations_fail").patch(4)],
            ),
        ],
    ),
    (
        "Negotiation",
        &[
            fault(
                "The daemon starts 20 s or 90 s after the host's negotiation",
                "",
                &[stock("kvp_pushed_to_a_late_daemon")],
            ),
            fault(
                "The daemon restarts while the host sets keys",
                "C fails the pending request",
                &[
                    stock("kvp_pushed_between_two_daemons"),
                    stock("kvp_pushed_over_a_restart"),
                ],
            ),
            fault(
                "There is no common version",
                "C reports success",
                &[stock("framing_no_common_version").patch(5)],
            ),
            fault(
                "Any local user can register as the daemon",
                "C accepts registrations over netlink. This module has a device that only root can open",
                &[stock("kvp_registration_over_netlink")],
            ),
        ],
    ),
    (
        "Requests",
        &[
            fault(
                "Several packets are in the ring",
                "C leaves some unanswered",
                &[
                    stock("framing_queued_requests"),
                    stock("kvp_queued_requests"),
                ],
            ),
            fault(
                "A message is too short",
                "C drops the message, and the host waits",
                &[stock("framing_short_bodies"), stock("framing_no_header")],
            ),
            fault(
                "The host does not read, and the ring is full",
                "C loses replies",
                &[stock("framing_unread_replies")],
            ),
            fault(
                "An allocation fails",
                "C loses the request. This module allocates nothing once a device is bound",
                &[debug("allocations_fail_at_work")],
            ),
            fault(
                "The daemon answers before its time-out is armed",
                "",
                &[stock("kvp_quick_answers")],
            ),
            fault(
                "The daemon answers late",
                "C takes the answer for that of the next request",
                &[stock("kvp_late_answer")],
            ),
            fault(
                "The daemon never answers one question",
                "",
                &[
                    stock("kvp_daemon_skips_an_answer"),
                    stock("vss_daemon_skips_an_answer"),
                ],
            ),
            fault(
                "The daemon dies with a request pending",
                "",
                &[
                    stock("kvp_daemon_killed"),
                    stock("kvp_daemon_restarted_under_load"),
                    stock("vss_daemon_restarted_under_load"),
                    stock("fcopy_daemon_restarted_under_load"),
                ],
            ),
            fault(
                "A second VSS request comes while the daemon works on the first",
                "",
                &[stock("vss_queued_requests")],
            ),
            fault(
                "The guest hibernates without a daemon",
                "C does not register a daemon that starts afterwards",
                &[stock("hibernation_without_a_daemon")],
            ),
            fault(
                "The daemon dies or hangs while file systems are frozen",
                "C leaves them frozen, or waits for the daemon",
                &[
                    stock("vss_daemon_killed_while_frozen"),
                    stock("vss_unbound_while_frozen"),
                    stock("vss_rescinded_while_frozen"),
                    stock("vss_daemon_fails_to_thaw"),
                    stock("vss_thaw_unanswered"),
                    stock("vss_starts_over_while_frozen"),
                    stock("vss_rescinded_without_a_daemon"),
                    stock("vss_removed_while_frozen"),
                    stock("vss_daemon_dies_amid_a_freeze"),
                ],
            ),
            fault(
                "Somebody thaws file systems before the host does",
                "C reports a good backup",
                &[stock("vss_thawed_by_hand")],
            ),
        ],
    ),
    (
        "Data",
        &[
            fault(
                "The host sends wrong sizes",
                "C uses them",
                &[stock("kvp_sizes"), stock("framing_size_beyond_packet")],
            ),
            fault(
                "A message is longer than a page",
                "C takes the middle of the message for further messages",
                &[stock("heartbeat_longer_than_a_page").patch(8)],
            ),
            fault(
                "The index of an enumeration is 2^31 or more",
                "C passes a negative index to the daemon, and the daemon dies",
                &[stock("kvp_index_of_no_entry").patch(9)],
            ),
            fault(
                "The host gets a value",
                "C returns an empty value",
                &[stock("kvp_gets_values")],
            ),
            fault(
                "The answer to HOT_BACKUP has a flag",
                "C does not set the flag",
                &[stock("vss_backup_flag")],
            ),
            fault(
                "The VSS daemon is older than 2013",
                "C fails the host's requests",
                &[stock("vss_old_daemon")],
            ),
            fault(
                "The host sets values of other types, or sends unknown operations",
                "C stores an empty value, and reports success",
                &[stock("kvp_value_types"), stock("kvp_refuses")],
            ),
            fault(
                "A daemon's text has no NUL",
                "C reads beyond the text",
                &[debug("kvp_endless_answers").patch(6)],
            ),
            fault(
                "The host floods the ring",
                "C leaves no processor time to programs",
                &[stock("heartbeat_flood_leaves_the_processor")],
            ),
            fault(
                "The host sends unknown VSS operations",
                "C reports success",
                &[stock("vss_unknown_operations")],
            ),
        ],
    ),
    (
        "Hosts",
        &[
            fault(
                "The host negotiates anew amid a request",
                "",
                &[
                    stock("kvp_negotiates_amid_a_request"),
                    stock("fcopy_negotiates_amid_a_copy"),
                    stock("vss_negotiates_while_frozen"),
                ],
            ),
            fault(
                "The host sends and reads nothing while the module is removed",
                "",
                &[stock("silent_host")],
            ),
            fault(
                "The host sends each request twice, or sends responses",
                "",
                &[stock("host_says_it_twice"), stock("framing_responses")],
            ),
            fault(
                "The host fills the ring with invalid packets",
                "",
                &[stock("framing_whole_ring"), stock("framing_other_packets")],
            ),
            fault("The host's clock jumps", "", &[stock("clock_jumps")]),
            fault(
                "The host's reference time runs faster than the guest's",
                "C's clocks fall behind by the difference",
                &[
                    stock("timesync_samples_ahead"),
                    stock("timesync_samples_ahead_for_an_hour"),
                ],
            ),
            fault(
                "The host was suspended, and goes on with samples",
                "",
                &[stock("timesync_host_was_suspended")],
            ),
            fault(
                "The host sends random messages",
                "",
                &[stock("fuzz"), stock("fuzz_with_daemons")],
            ),
        ],
    ),
    (
        "Guests",
        &[
            fault(
                "The device or the module is removed at any step of a request",
                "",
                &[stock("removal_at_every_step"), stock("reload_under_beats")],
            ),
            fault(
                "The guest hibernates at any step of a request",
                "",
                &[stock("hibernation_at_every_step")],
            ),
            fault(
                "The daemon reads no requests",
                "",
                &[
                    stock("vss_daemon_that_does_not_read"),
                    stock("fcopy_unread_start"),
                ],
            ),
            fault(
                "The daemon sends unasked answers while the host sends requests",
                "",
                &[stock("daemon_and_host_at_once")],
            ),
            fault("Memory leaks", "", &[debug("leaks")]),
        ],
    ),
];

/// All rows of the table.
fn rows() -> impl Iterator<Item = &'static Shown> {
    let faults = FAULTS.iter().flat_map(|(_, faults)| *faults);
    faults.flat_map(|fault| fault.shown)
}

/// Whether a fault has the scenario on this kernel.
pub fn names(scenario: &str, kernel: Kernel) -> bool {
    rows().any(|shown| shown.scenario == scenario && shown.kernel == kernel)
}

/// The patch for mainline which lets C pass the scenario on this kernel, if there is one.
pub fn patch(scenario: &str, kernel: Kernel) -> Option<u32> {
    rows()
        .find(|shown| shown.scenario == scenario && shown.kernel == kernel)
        .and_then(|shown| shown.patch)
}

/// The table of the patches for mainline. `verdict` gives the verdict of C's last run of a scenario on a kernel,
/// without or with the patches.
pub fn patches(verdict: impl Fn(&str, Kernel, bool) -> Option<String>) -> String {
    let mut shown: Vec<&Shown> = rows().filter(|shown| shown.patch.is_some()).collect();
    shown.sort_by_key(|shown| shown.patch);
    let head = ["Patch", "Scenario", "C driver", "Patched", "Patched, debug"];
    let mut text = format!("{PATCHES}{}", row(head));
    for shown in shown {
        let number = shown.patch.unwrap_or_default().to_string();
        let name = shown.name();
        let cell = |kernel, is_patched| {
            verdict(shown.scenario, kernel, is_patched).unwrap_or_else(|| "not run".to_owned())
        };
        let stock = cell(shown.kernel, false);
        // A scenario for the debug kernel does not run on the stock kernel.
        let patched = match shown.kernel {
            Kernel::Stock => cell(Kernel::Stock, true),
            Kernel::Debug => String::new(),
        };
        let debug = cell(Kernel::Debug, true);
        text.push_str(&row([&number, &name, &stock, &patched, &debug]));
    }
    text
}

/// A table of the document. It has some of the rows, with their faults.
struct Table {
    title: &'static str,
    rows: String,
    /// The number of the last fault in the table.
    last: usize,
}

impl Table {
    fn new(title: &'static str) -> Self {
        Self {
            title,
            rows: String::new(),
            last: 0,
        }
    }

    /// Adds a row. Only the first row of a fault has its number and text.
    fn add(&mut self, number: usize, what: &str, [scenario, c, rust]: [&str; 3]) {
        let (number, what) = match std::mem::replace(&mut self.last, number) == number {
            true => (String::new(), ""),
            false => (number.to_string(), what),
        };
        self.rows.push_str(&row([&number, what, scenario, c, rust]));
    }

    /// The table's text. Empty if there are no rows.
    fn text(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let line = "=".repeat(self.title.len());
        let head = row(["", "Fault", "Scenario", "C driver", "This module"]);
        format!("\n{}\n{line}\n\n{TABLE}{head}{}", self.title, self.rows)
    }
}

/// The document. `verdict` gives the verdict of a scenario's last run.
pub fn document(verdict: impl Fn(&str, Module, Kernel) -> Option<String>) -> String {
    let mut text = INTRODUCTION.to_owned();
    let mut survived = Table::new(SURVIVED);
    let mut number = 0;
    for (title, faults) in FAULTS {
        let mut table = Table::new(title);
        for fault in *faults {
            number += 1;
            for shown in fault.shown {
                let cell = |module| {
                    verdict(shown.scenario, module, shown.kernel)
                        .unwrap_or_else(|| "not run".to_owned())
                };
                let (mut c, rust) = (cell(Module::C), cell(Module::Rust));
                let c_passes = c == PASSES;
                if let Some(number) = shown.patch {
                    c.push_str(&format!("{PATCHED}{number} <mainline>`"));
                }
                let name = shown.name();
                let cells = [&name, &c, &rust].map(String::as_str);
                match c_passes {
                    true => survived.add(number, fault.what, cells),
                    false => table.add(number, &fault.text(), cells),
                }
            }
        }
        text.push_str(&table.text());
    }
    text.push_str(&survived.text());
    text
}

/// The text behind C's verdict if a patch lets C pass.
const PATCHED: &str = "; passes with :doc:`patch ";

/// The cell of a scenario.
fn cell_of(scenario: &str, kernel: Kernel) -> String {
    let kernel = match kernel {
        Kernel::Stock => "",
        Kernel::Debug => " (debug)",
    };
    format!("``{scenario}``{kernel}")
}

/// Writes the document again, with the verdicts from `written`. The result differs only if the faults, scenarios or
/// texts have changed.
pub fn rewritten(written: &str) -> String {
    let lines: Vec<_> = written.lines().collect();
    let verdicts: BTreeMap<_, _> = lines
        .windows(5)
        .filter(|row| row[0].starts_with("   * -"))
        .filter_map(|row| {
            let mut cells = row.iter().map(|line| line.get(7..).unwrap_or_default());
            Some((cells.nth(2)?, [cells.next()?, cells.next()?]))
        })
        .collect();
    document(|scenario, module, kernel| {
        let [c, rust] = verdicts.get(cell_of(scenario, kernel).as_str())?;
        Some(match module {
            Module::C => c.split(PATCHED).next().unwrap_or(c).to_owned(),
            Module::Rust => (*rust).to_owned(),
        })
    })
}

fn row(cells: [&str; 5]) -> String {
    let mut text = String::new();
    for (index, cell) in cells.iter().enumerate() {
        let bullet = if index == 0 { "* -" } else { "  -" };
        text.push_str("   ");
        text.push_str(format!("{bullet} {cell}").trim_end());
        text.push('\n');
    }
    text
}

/// The verdict of a scenario that passes.
pub const PASSES: &str = "passes";

/// The title of the section with the rows in which C passes.
const SURVIVED: &str = "What both survive";

const TABLE: &str = "\
.. list-table::
   :header-rows: 1
   :widths: 5 30 20 30 15

";

const PATCHES: &str = "\
.. list-table::
   :header-rows: 1
   :widths: 5 25 40 15 15

";

const INTRODUCTION: &str = "\
.. SPDX-License-Identifier: GPL-2.0

======
Faults
======

.. Made by make faults: the texts are in tests/scenarios/faults.rs.

The faults of the C driver of 7.3. ``make faults`` runs each scenario with both drivers, and writes this document. For
a failure it has the first problem that the host or the kernel's log noticed. The host waits equally long for both
drivers: a minute, unless the scenario sets another time. The last section has the scenarios that C passes: the fault
does not show in the kernel of the run, or C does not have it. *debug* is the kernel of ``make check-debug``, with two
processors. All other scenarios ran on Debian's kernel, with one processor.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_c_passes_is_in_the_last_section() {
        let document = document(|scenario, module, _| {
            let passes = module == Module::Rust || scenario == "clock_jumps";
            Some(if passes { PASSES } else { "fails" }.to_owned())
        });
        let (failed, survived) = document.split_once(SURVIVED).unwrap();
        assert!(
            survived.contains("- The host's clock jumps\n     - ``clock_jumps``\n     - passes\n")
        );
        assert_eq!(survived.matches("``").count(), 2);
        assert!(!failed.contains("clock_jumps"));
        assert!(failed.contains("``silent_host``\n     - fails\n     - passes\n"));
    }

    #[test]
    fn a_document_is_written_again_as_it_is() {
        let verdict = |scenario: &str, module, kernel| match (module, kernel) {
            (Module::Rust, _) => Some(PASSES.to_owned()),
            (_, Kernel::Debug) => Some(format!("fails: ``{scenario}: 1 - 2``")),
            _ if scenario < "k" => Some(PASSES.to_owned()),
            _ => None,
        };
        let written = document(verdict);
        assert_eq!(rewritten(&written), written);
        // A scenario without a row in the written document has not run.
        let row = "     - ``silent_host``\n     - not run\n     - passes\n";
        let without = written.replace(row, &row.replace("silent_host", "another"));
        assert_ne!(rewritten(&without), without);
        let never = row.replace("passes", "not run");
        assert_eq!(rewritten(&without), written.replace(row, &never));
        let other = written.replace("The host's clock jumps", "It jumps");
        assert_eq!(rewritten(&other), written);
    }

    #[test]
    fn the_patches_and_what_they_change_are_told() {
        let verdict = |is_patched| Some(if is_patched { PASSES } else { "fails" }.to_owned());
        let table = patches(|_, _, is_patched| verdict(is_patched));
        let row = "   * - 1\n     - ``open_refused``\n     - fails\n     - passes\n     - passes\n";
        assert!(table.contains(row));
        // A scenario for the debug kernel has no result on the stock kernel.
        assert!(table.contains("(debug)\n     - fails\n     -\n     - passes\n"));
        let document = document(|_, module, _| verdict(module == Module::Rust));
        assert!(document.contains("- fails; passes with :doc:`patch 1 <mainline>`\n"));
    }
}
