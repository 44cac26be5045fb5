// SPDX-License-Identifier: GPL-2.0

//! The table of faults in the documentation: which scenarios show that C has one, and that this module has not.

use std::collections::BTreeMap;

use host::guest::Module;

/// A way in which the C driver fails, by reading it.
pub struct Fault {
    /// What happens.
    what: &'static str,
    /// What comes of it in C; nothing where that passes.
    in_c: &'static str,
    /// The scenarios in which it does.
    shown: &'static [Shown],
}

/// A scenario, and the kernel on which it shows most.
pub struct Shown {
    scenario: &'static str,
    kernel: Kernel,
    /// The number of the patch for mainline's C driver with which it passes, if there is one.
    patch: Option<u32>,
}

impl Shown {
    /// C passes with this patch of `Documentation/mainline`, and those before it.
    const fn patch(mut self, number: u32) -> Self {
        self.patch = Some(number);
        self
    }

    /// The scenario, and its kernel if that is not the stock one.
    fn name(&self) -> String {
        cell_of(self.scenario, self.kernel)
    }
}

/// What the scenarios of the table run on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// The kernel that most guests have, with one processor.
    Stock,
    /// The one that looks for faults, with two.
    Debug,
}

const fn fault(what: &'static str, in_c: &'static str, shown: &'static [Shown]) -> Fault {
    Fault { what, in_c, shown }
}

impl Fault {
    /// What happens, and what comes of it in C.
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

/// All of them, by what they are about. Their numbers in the document are their places here.
pub const FAULTS: &[(&str, &[Fault])] = &[
    (
        "Life cycle",
        &[
            fault(
                "The host refuses to open the channel",
                "C crashes as it cleans up",
                &[
                    stock("open_refused").patch(1),
                    stock("open_refused_of_a_former_device").patch(1),
                ],
            ),
            fault(
                "There are two devices of one class",
                "C takes the second one, too",
                &[stock("second_device_of_a_class").patch(7)],
            ),
            fault(
                "The device goes while a daemon has its file open",
                "C waits until it is closed",
                &[stock("chardev"), debug("vss_unbound_under_packets")],
            ),
            fault(
                "The device goes as its file is closed",
                "C frees what the closing process still uses",
                &[debug("kvp_unbound_as_a_file_closes").patch(2)],
            ),
            fault(
                "The device goes under a daemon that hangs",
                "C waits for the daemon",
                &[
                    stock("kvp_unbound_under_its_daemon"),
                    stock("kvp_rescinded_under_its_daemon"),
                ],
            ),
            fault(
                "A packet comes while the device goes",
                "",
                &[debug("vss_unbound_under_packets")],
            ),
            fault(
                "Work is left over",
                "with C the guest does not survive that it runs when the module has gone",
                // A processor that is kept busy takes minutes in emulated time.
                &[debug("work_left_at_removal").patch(3)],
            ),
            fault(
                "A step of the registration fails",
                "C leaves freed memory in use",
                &[debug("allocations_fail").patch(4)],
            ),
        ],
    ),
    (
        "Negotiation",
        &[
            fault(
                "The daemon comes 20 s or 90 s after the host",
                "",
                &[stock("kvp_pushed_to_a_late_daemon")],
            ),
            fault(
                "The daemon is started again while the host sets keys",
                "C fails the request over which it died",
                &[
                    stock("kvp_pushed_between_two_daemons"),
                    stock("kvp_pushed_over_a_restart"),
                ],
            ),
            fault(
                "No version is common",
                "C says that all is well",
                &[stock("framing_no_common_version").patch(5)],
            ),
            fault(
                "Any local user is the daemon",
                "C takes registrations over netlink. Here there is the device, which root opens",
                &[stock("kvp_registration_over_netlink")],
            ),
        ],
    ),
    (
        "Requests",
        &[
            fault(
                "Packets queue up",
                "C leaves some unanswered",
                &[
                    stock("framing_queued_requests"),
                    stock("kvp_queued_requests"),
                ],
            ),
            fault(
                "A message is short",
                "C drops it, and the host waits",
                &[stock("framing_short_bodies"), stock("framing_no_header")],
            ),
            fault(
                "The ring is full, as the host does not read",
                "C loses replies",
                &[stock("framing_unread_replies")],
            ),
            fault(
                "An allocation fails",
                "C loses the request. Here nothing is allocated once a device is bound",
                &[debug("allocations_fail_at_work")],
            ),
            fault(
                "The daemon answers before the timer runs",
                "",
                &[stock("kvp_quick_answers")],
            ),
            fault(
                "The daemon answers late",
                "C takes it for the answer to the next request",
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
                "The daemon goes while it is asked",
                "",
                &[
                    stock("kvp_daemon_killed"),
                    stock("kvp_daemon_restarted_under_load"),
                    stock("vss_daemon_restarted_under_load"),
                    stock("fcopy_daemon_restarted_under_load"),
                ],
            ),
            fault(
                "A second VSS request comes while one is in work",
                "",
                &[stock("vss_queued_requests")],
            ),
            fault(
                "The guest hibernates without a daemon",
                "C does not take the daemon that comes then",
                &[stock("hibernation_without_a_daemon")],
            ),
            fault(
                "The daemon goes, or hangs, while file systems are frozen",
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
                "File systems are thawed before the host asks for it",
                "C says that the backup is good",
                &[stock("vss_thawed_by_hand")],
            ),
        ],
    ),
    (
        "Data",
        &[
            fault(
                "Sizes are wrong",
                "C uses what the host says",
                &[stock("kvp_sizes"), stock("framing_size_beyond_packet")],
            ),
            fault(
                "A message is longer than a page",
                "C takes its middle for further ones",
                &[stock("heartbeat_longer_than_a_page").patch(8)],
            ),
            fault(
                "An enumeration's index is beyond 2^31",
                "C hands the daemon a negative one, and the daemon dies",
                &[stock("kvp_index_of_no_entry").patch(9)],
            ),
            fault(
                "GET of a value",
                "C answers that it is empty",
                &[stock("kvp_gets_values")],
            ),
            fault(
                "HOT_BACKUP's flag",
                "C does not set it",
                &[stock("vss_backup_flag")],
            ),
            fault(
                "A VSS daemon of before 2013",
                "C fails what the host asks",
                &[stock("vss_old_daemon")],
            ),
            fault(
                "SET of other types",
                "C stores an empty value; unknown operations succeed",
                &[stock("kvp_value_types"), stock("kvp_refuses")],
            ),
            fault(
                "A daemon's text does not end",
                "C reads on",
                &[debug("kvp_endless_answers").patch(6)],
            ),
            fault(
                "The host floods the ring",
                "C leaves programs nothing of the processor",
                &[stock("heartbeat_flood_leaves_the_processor")],
            ),
            fault(
                "Unknown VSS operations",
                "C says that they succeeded",
                &[stock("vss_unknown_operations")],
            ),
        ],
    ),
    (
        "Hosts",
        &[
            fault(
                "The host negotiates amid a request",
                "",
                &[
                    stock("kvp_negotiates_amid_a_request"),
                    stock("fcopy_negotiates_amid_a_copy"),
                    stock("vss_negotiates_while_frozen"),
                ],
            ),
            fault(
                "It says nothing, or reads nothing, when the module is removed",
                "",
                &[stock("silent_host")],
            ),
            fault(
                "It says everything twice, or answers what it was not asked",
                "",
                &[stock("host_says_it_twice"), stock("framing_responses")],
            ),
            fault(
                "It has a ring full of what are no packets",
                "",
                &[stock("framing_whole_ring"), stock("framing_other_packets")],
            ),
            fault("Its clock jumps", "", &[stock("clock_jumps")]),
            fault(
                "Its reference time runs faster than the guest's",
                "C's clocks fall behind by as much",
                &[
                    stock("timesync_samples_ahead"),
                    stock("timesync_samples_ahead_for_an_hour"),
                ],
            ),
            fault(
                "It was suspended, and sends samples as before",
                "",
                &[stock("timesync_host_was_suspended")],
            ),
            fault(
                "It sends anything",
                "",
                &[stock("fuzz"), stock("fuzz_with_daemons")],
            ),
        ],
    ),
    (
        "Guests",
        &[
            fault(
                "The device, or the module, goes at any step of a request",
                "",
                &[stock("removal_at_every_step"), stock("reload_under_beats")],
            ),
            fault(
                "The guest hibernates at any step of a request",
                "",
                &[stock("hibernation_at_every_step")],
            ),
            fault(
                "The daemon does not read",
                "",
                &[
                    stock("vss_daemon_that_does_not_read"),
                    stock("fcopy_unread_start"),
                ],
            ),
            fault(
                "The daemon answers what it was not asked, while the host asks",
                "",
                &[stock("daemon_and_host_at_once")],
            ),
            fault("Memory is forgotten", "", &[debug("leaks")]),
        ],
    ),
];

/// Each row of the table.
fn rows() -> impl Iterator<Item = &'static Shown> {
    let faults = FAULTS.iter().flat_map(|(_, faults)| *faults);
    faults.flat_map(|fault| fault.shown)
}

/// Whether a fault names the scenario for the kernel.
pub fn names(scenario: &str, kernel: Kernel) -> bool {
    rows().any(|shown| shown.scenario == scenario && shown.kernel == kernel)
}

/// The patch for mainline with which C passes the scenario that a fault names for the kernel.
pub fn patch(scenario: &str, kernel: Kernel) -> Option<u32> {
    rows()
        .find(|shown| shown.scenario == scenario && shown.kernel == kernel)
        .and_then(|shown| shown.patch)
}

/// The table of the patches for mainline, with what `verdict` knows of C's last runs on a kernel, without and with them.
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
        // What only the kernel that looks for faults shows does not run on the other one.
        let patched = match shown.kernel {
            Kernel::Stock => cell(Kernel::Stock, true),
            Kernel::Debug => String::new(),
        };
        let debug = cell(Kernel::Debug, true);
        text.push_str(&row([&number, &name, &stock, &patched, &debug]));
    }
    text
}

/// A table of the document: some rows of the faults that have any there.
struct Table {
    title: &'static str,
    rows: String,
    /// The number of the last fault in it.
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

    /// Adds a row; the fault's number and text stand in the first one only.
    fn add(&mut self, number: usize, what: &str, [scenario, c, rust]: [&str; 3]) {
        let (number, what) = match std::mem::replace(&mut self.last, number) == number {
            true => (String::new(), ""),
            false => (number.to_string(), what),
        };
        self.rows.push_str(&row([&number, what, scenario, c, rust]));
    }

    /// Nothing where it has no rows.
    fn text(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let line = "=".repeat(self.title.len());
        let head = row(["", "Fault", "Scenario", "C driver", "This module"]);
        format!("\n{}\n{line}\n\n{TABLE}{head}{}", self.title, self.rows)
    }
}

/// The document, with what `verdict` knows of the scenarios' last runs.
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

/// What follows C's verdict where a patch mends it.
const PATCHED: &str = "; passes with :doc:`patch ";

/// What the column of scenarios has.
fn cell_of(scenario: &str, kernel: Kernel) -> String {
    let kernel = match kernel {
        Kernel::Stock => "",
        Kernel::Debug => " (debug)",
    };
    format!("``{scenario}``{kernel}")
}

/// The document as it would be written with the verdicts that `written` has: the same, unless the faults, scenarios or
/// texts are others by now.
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

/// The title of the section for the rows in which C passes.
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

What the C driver of 7.3 does not survive, or gets wrong, as both drivers ran the scenario. ``make faults`` runs
the scenarios with both and writes this document. What C is said to fail with is the first thing that the host, or
the kernel's log, noticed. Both drivers are waited for equally long: a minute, where the scenario says nothing else.
What C passes is in the last section: the scenario does not meet a fault of C's in the kernel of the run, or there
is none. *debug* is the kernel of ``make check-debug``, with two processors; the other one is Debian's, with one.
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
        assert!(survived.contains("- Its clock jumps\n     - ``clock_jumps``\n     - passes\n"));
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
        // A scenario that is not in it has not run.
        let row = "     - ``silent_host``\n     - not run\n     - passes\n";
        let without = written.replace(row, &row.replace("silent_host", "another"));
        assert_ne!(rewritten(&without), without);
        let never = row.replace("passes", "not run");
        assert_eq!(rewritten(&without), written.replace(row, &never));
        let other = written.replace("Its clock jumps", "It jumps");
        assert_eq!(rewritten(&other), written);
    }

    #[test]
    fn the_patches_and_what_they_change_are_told() {
        let verdict = |is_patched| Some(if is_patched { PASSES } else { "fails" }.to_owned());
        let table = patches(|_, _, is_patched| verdict(is_patched));
        let row = "   * - 1\n     - ``open_refused``\n     - fails\n     - passes\n     - passes\n";
        assert!(table.contains(row));
        // The stock kernel does not show it.
        assert!(table.contains("(debug)\n     - fails\n     -\n     - passes\n"));
        let document = document(|_, module, _| verdict(module == Module::Rust));
        assert!(document.contains("- fails; passes with :doc:`patch 1 <mainline>`\n"));
    }
}
