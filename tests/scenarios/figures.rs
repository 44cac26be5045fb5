// SPDX-License-Identifier: GPL-2.0

//! The tables of `make bench`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::RangeInclusive;

use host::guest::Module;

use crate::baseline;
use crate::baseline::Cost;
use crate::baseline::Pair;
use crate::baseline::BASELINE;
use crate::baseline::EXITS;
use crate::memory::Memory;
use crate::statistics::Sample;
use crate::statistics::Statistics;
use crate::statistics::PERCENTS;

/// The rows of the table.
pub const ROWS: &[&str] = &[
    "insmod",
    "rmmod",
    "heartbeat",
    "heartbeat in a flood",
    "time sample",
    "PTP read",
    "KVP set",
    "KVP get",
    "KVP 100 keys",
    "VSS hot backup",
    "VSS freeze and thaw",
    "file of 10 MB",
    "shutdown",
];

/// The sample driver's name, in place of a module's.
pub const ECHO: &str = "echo";

/// The name of the cheapest round trip.
pub const FLOOR: &str = "round trip";

/// The measurements in all guests.
#[derive(Default)]
pub struct Figures {
    /// By row and module.
    samples: BTreeMap<(&'static str, &'static str), Vec<Sample>>,
    /// The kernel's share of the instructions, from 0 to 1, by row and module. It is estimated by samples, and not
    /// measured for all rows.
    shares: BTreeMap<(&'static str, &'static str), f64>,
    /// How far the PTP clock was ahead of the host's clock, in nanoseconds, as a range for each guest, by module.
    offsets: BTreeMap<&'static str, Vec<RangeInclusive<i128>>>,
}

impl Figures {
    /// Adds measurements from one guest.
    pub fn add(&mut self, row: &'static str, whose: &'static str, samples: &[Sample]) {
        if let Some(of) = Statistics::of(samples) {
            let [low, median, high] = of.percentiles;
            println!(
                "# {row}, {whose}: {median:.0} instructions ({low:.0} to {high:.0}), {} exits",
                of.median.exits
            );
        }
        self.samples
            .entry((row, whose))
            .or_default()
            .extend(samples);
    }

    /// Adds the kernel's share of a row.
    pub fn add_share(&mut self, row: &'static str, whose: &'static str, share: f64) {
        self.shares.insert((row, whose), share);
    }

    /// Adds how far a PTP clock was ahead in one guest.
    pub fn add_offset(&mut self, whose: &'static str, offset: RangeInclusive<i128>) {
        self.offsets.entry(whose).or_default().push(offset);
    }

    fn of(&self, row: &'static str, whose: &'static str) -> Option<Statistics> {
        Statistics::of(self.samples.get(&(row, whose))?)
    }

    /// The statistics of this module and of its peer, if both were measured.
    fn both(&self, row: &'static str) -> Option<(Statistics, Statistics)> {
        let of = |module: Module| self.of(row, module.name());
        Some((of(Module::Rust)?, of(Module::C)?))
    }

    /// The costs of both modules, to be compared with the baseline.
    pub fn pair(&self, row: &'static str) -> Option<Pair> {
        let cost = |of: Statistics| Cost {
            amount: of.median.instructions,
            exits: of.median.exits,
        };
        let (rust, c) = self.both(row)?;
        Some(Pair {
            rust: cost(rust),
            c: cost(c),
        })
    }

    /// All rows that were measured, with their costs.
    pub fn pairs(&self) -> impl Iterator<Item = (&'static str, Pair)> + '_ {
        ROWS.iter().filter_map(|row| Some((*row, self.pair(row)?)))
    }

    /// The lines of the next baseline.
    pub fn text(&self) -> String {
        self.pairs()
            .map(|(row, pair)| baseline::line(row, pair.rust, pair.c))
            .collect()
    }

    /// All tables, and the lines below them.
    pub fn table(&self) -> String {
        let mut text = self.statistics();
        text.push_str(&self.kernel());
        if let Some(echo) = self.of(FLOOR, ECHO) {
            let Sample {
                instructions,
                exits,
            } = echo.median;
            let _ = writeln!(
                text,
                "the cheapest round trip (samples/vmbus_echo.rs): {instructions:.0} instructions, {exits} exits"
            );
        }
        for (whose, offsets) in &self.offsets {
            let offsets: Vec<_> = offsets
                .iter()
                .map(|off| format!("{} to {}", off.start(), off.end()))
                .collect();
            let _ = writeln!(
                text,
                "nanoseconds that the PTP clock is ahead of the host's, {whose}: {}",
                offsets.join(", ")
            );
        }
        text
    }

    /// The statistics of both modules, side by side, and the rows that miss the goal.
    fn statistics(&self) -> String {
        let mut text = format!(
            "{:<20}{:<51}C\n{:<20}",
            "", "   this module", "instructions"
        );
        for _ in 0..2 {
            let [low, middle, high] = PERCENTS.map(|percent| format!("{percent}th"));
            let _ = write!(
                text,
                "{low:>10}{middle:>10}{high:>10}{:>10}{:>8}   ",
                "mean", "exits"
            );
        }
        let _ = writeln!(text, "{:>6}{:>9}", "ratio", "baseline");
        let mut missed = Vec::new();
        for row in ROWS {
            let (Some((rust, c)), Some(pair)) = (self.both(row), self.pair(row)) else {
                continue;
            };
            let mark = match pair.rust.exits_within(pair.c.exits) {
                true => ' ',
                false => '!',
            };
            if mark == '!' {
                missed.push(*row);
            }
            let change = Pair::change(Pair::find(BASELINE, row), pair.rust.amount);
            let _ = writeln!(
                text,
                "{row:<20}{}{mark}  {}   {:>6}{change:>9}",
                columns(&rust),
                columns(&c),
                ratio(pair.rust.amount, pair.c.amount),
            );
        }
        let (chance, rows) = (100.0 * EXITS, missed.join(", "));
        let _ = match missed.as_slice() {
            [] => writeln!(text, "no row has {chance} % more exits than with C"),
            _ => writeln!(text, "! {chance} % more exits than with C: {rows}"),
        };
        text
    }

    /// The kernel's part of the medians, for rows in which programs take part.
    fn kernel(&self) -> String {
        let mut text = format!(
            "\n{:<24}{:>12}{:>12}{:>8}\n",
            "of which the kernel's", "this module", "C", "ratio"
        );
        for (row, pair) in self.pairs() {
            let share = |module: Module| self.shares.get(&(row, module.name()));
            if let (Some(rust), Some(c)) = (share(Module::Rust), share(Module::C)) {
                let (rust, c) = (rust * pair.rust.amount, c * pair.c.amount);
                let _ = writeln!(text, "{row:<24}{rust:>12.0}{c:>12.0}{:>8}", ratio(rust, c));
            }
        }
        text + "\n"
    }
}

/// The columns of one module.
fn columns(of: &Statistics) -> String {
    let [low, median, high] = of.percentiles;
    format!(
        "{low:>10.0}{median:>10.0}{high:>10.0}{:>10.0}{:>8}",
        of.mean, of.median.exits
    )
}

/// The ratio of this module's figure to its peer's, unless the peer's is zero.
fn ratio(rust: f64, c: f64) -> String {
    match c > 0.0 {
        true => format!("{:.3}", rust / c),
        false => "-".to_owned(),
    }
}

/// The table of the memory of both modules.
pub fn memory_table(memory: &Memory) -> String {
    let mut text = format!(
        "{:<24}{:>12}{:>12}{:>8}{:>10}\n",
        "bytes of memory", "this module", "C", "ratio", "baseline"
    );
    for (row, rust, c) in memory.rows() {
        let change = Pair::change(Pair::find(BASELINE, row), rust as f64);
        let ratio = ratio(rust as f64, c as f64);
        let _ = writeln!(text, "{row:<24}{rust:>12}{c:>12}{ratio:>8}{change:>10}");
    }
    let _ = writeln!(
        text,
        "file copy, which is in none of these, adds to what this module allocates: {}",
        memory.file_copy
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(exits: f64) -> Figures {
        let sample = |instructions, exits| Sample {
            instructions,
            exits,
        };
        let mut figures = Figures::default();
        figures.add("KVP set", "rust", &[sample(59_000.0, exits)]);
        figures.add("KVP set", "c", &[sample(83_000.0, 5.0); 3]);
        // From another guest.
        figures.add("KVP set", "rust", &[sample(61_000.0, exits); 2]);
        figures.add("KVP get", "rust", &[sample(1.0, 1.0)]);
        figures
    }

    #[test]
    fn a_row_is_of_all_guests_and_both_modules() {
        let figures = figures(4.0);
        assert_eq!(figures.text(), "KVP set: 61000 4, 83000 5\n");
        let table = figures.table();
        assert!(table.contains("no row has 5 % more exits"), "{table}");
        assert!(!table.contains("KVP get"), "{table}");
    }

    #[test]
    fn a_row_that_misses_the_goal_is_marked() {
        let table = figures(6.0).table();
        assert!(table.contains("       6!"), "{table}");
        assert!(
            table.contains("more exits than with C: KVP set\n"),
            "{table}"
        );
    }

    #[test]
    fn a_terminal_shows_the_table() {
        let table = figures(6.0).table();
        for line in table.lines() {
            assert!(line.len() <= 140, "{}: {line}", line.len());
        }
        let ends = |part: &str| {
            let mut lines = table.lines().filter(|line| line.contains(part));
            lines.next().map_or(0, |line| line.trim_end().len())
        };
        assert_eq!(ends("exits   "), ends("0.735"), "{table}");
    }
}
