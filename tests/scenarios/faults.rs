// SPDX-License-Identifier: GPL-2.0

//! The table of faults in the documentation: which scenarios show that C has one, and that this module has not.

use host::guest::Module;

/// A way in which the C driver fails, by reading it.
pub struct Fault {
    /// What happens, and what comes of it in C.
    text: &'static str,
    /// The scenarios in which it does.
    scenarios: &'static [&'static str],
}

const fn fault(text: &'static str, scenarios: &'static [&'static str]) -> Fault {
    Fault { text, scenarios }
}

/// All of them, by what they are about.
pub const FAULTS: &[(&str, &[Fault])] = &[
    (
        "Life cycle",
        &[
            fault(
                "The host refuses to open the channel, or a device can't be registered: C cleans up what was never \
                 set up",
                &["open_refused", "allocations_fail"],
            ),
            fault(
                "The device goes while a daemon has its file open: C frees what the file still uses, or waits for \
                 the daemon, with all of VMBus behind it",
                &[
                    "kvp_unbound_under_its_daemon",
                    "kvp_rescinded_under_its_daemon",
                    "chardev",
                ],
            ),
            fault(
                "Work is left over: in C that of time synchronisation and shutdown can run when the module has gone",
                &[
                    "insert_and_remove",
                    "reload_under_beats",
                    "leaks",
                    "leaks_with_daemons",
                ],
            ),
            fault(
                "The guest hibernates without a daemon: C takes the service for ready, and refuses the next daemon",
                &["hibernation_devices"],
            ),
        ],
    ),
    (
        "Negotiation",
        &[
            fault(
                "There is no daemon: C's timer of 55 s does nothing, and the host waits for ever",
                &["kvp_waits_for_its_daemon", "daemon_timeouts"],
            ),
            fault(
                "No version is common: C keeps one, and says that all is well",
                &["framing_renegotiation", "framing_bad_counts"],
            ),
            fault(
                "The host negotiates amid a request",
                &[
                    "kvp_negotiates_amid_a_request",
                    "fcopy_negotiates_amid_a_copy",
                    "vss_negotiates_while_frozen",
                ],
            ),
            fault(
                "Any local user is the daemon: C takes registrations over netlink. Here there is the device, which \
                 root opens",
                &["chardev"],
            ),
        ],
    ),
    (
        "Requests",
        &[
            fault(
                "Packets queue up: C takes one each time it is called, and may not be called again; or takes them \
                 as long as there are any, in a softirq",
                &["heartbeat_flood"],
            ),
            fault(
                "A message is short, or of an unknown type: C drops it, and the host waits",
                &[
                    "framing_short_bodies",
                    "framing_unknown_type",
                    "framing_no_header",
                ],
            ),
            fault(
                "The ring is full: C loses the reply",
                &["framing_whole_ring"],
            ),
            fault(
                "An allocation fails: C loses the request. Here nothing is allocated once a device is bound",
                &["allocations_fail"],
            ),
            fault(
                "The daemon answers late, or after another has come: C takes it for the answer to the next request",
                &["daemon_timeouts", "kvp_daemon_killed", "fcopy_daemon_killed"],
            ),
            fault(
                "The daemon does not read",
                &["vss_daemon_that_does_not_read", "fcopy_unread_start"],
            ),
            fault(
                "File systems stay frozen: C tells nobody",
                &[
                    "vss_daemon_killed_while_frozen",
                    "vss_unbound_while_frozen",
                    "vss_rescinded_while_frozen",
                    "vss_daemon_fails_to_thaw",
                ],
            ),
        ],
    ),
    (
        "Data",
        &[
            fault(
                "Sizes, pools and types that are wrong: C uses what the host says",
                &[
                    "kvp_refuses",
                    "kvp_any_text",
                    "kvp_value_types",
                    "framing_size_beyond_packet",
                ],
            ),
            fault("GET of a value: C answers that it is empty", &["kvp_gets_values"]),
            fault("HOT_BACKUP's flag: C never sets it", &["vss_backs_up"]),
            fault(
                "A VSS daemon of before 2013: in C it never becomes ready",
                &["vss_old_daemon"],
            ),
            fault(
                "Unknown VSS operations: C says that they succeeded",
                &["vss_operations"],
            ),
            fault("Anything else", &["fuzz", "fuzz_with_daemons"]),
        ],
    ),
];

/// Whether a fault names the scenario.
pub fn names(scenario: &str) -> bool {
    FAULTS
        .iter()
        .flat_map(|(_, faults)| *faults)
        .any(|fault| fault.scenarios.contains(&scenario))
}

/// The document, with what `verdict` knows of the scenarios' last runs.
pub fn document(verdict: impl Fn(&str, Module) -> Option<String>) -> String {
    let cell = |name: &str, module| verdict(name, module).unwrap_or_else(|| "not run".to_owned());
    let mut text = INTRODUCTION.to_owned();
    for (title, faults) in FAULTS {
        text.push_str(&format!(
            "\n{title}\n{}\n\n{TABLE}",
            "=".repeat(title.len())
        ));
        text.push_str(&row(["Fault", "Scenario", "C driver", "This module"]));
        for fault in *faults {
            for (index, name) in fault.scenarios.iter().enumerate() {
                let what = if index == 0 { fault.text } else { "" };
                let (c, rust) = (cell(name, Module::C), cell(name, Module::Rust));
                text.push_str(&row([what, &format!("``{name}``"), &c, &rust]));
            }
        }
    }
    text
}

fn row(cells: [&str; 4]) -> String {
    let mut text = String::new();
    for (index, cell) in cells.iter().enumerate() {
        let bullet = if index == 0 { "* -" } else { "  -" };
        text.push_str("   ");
        text.push_str(format!("{bullet} {cell}").trim_end());
        text.push('\n');
    }
    text
}

const TABLE: &str = "\
.. list-table::
   :header-rows: 1
   :widths: 30 20 35 15

";

const INTRODUCTION: &str = "\
.. SPDX-License-Identifier: GPL-2.0

======
Faults
======

.. Made by make faults: the texts are in tests/scenarios/faults.rs.

What the C driver of 7.3 does not survive, or gets wrong, by reading it; and what came of it when both
drivers ran the scenario. ``make faults`` runs the scenarios with both and writes this document. What C is
said to fail with is the first thing that the host, or the kernel's log, noticed; where it passes, the
scenario does not meet the fault in the stock kernel of the run, or C does not have it any more.
";
