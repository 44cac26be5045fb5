// SPDX-License-Identifier: GPL-2.0

//! The baseline: the figures of a former run, and the limits that follow from them.

use std::fmt;

/// The baseline's file. Each row has the format of [`line`].
pub const BASELINE: &str = include_str!("baseline.txt");

/// The head of the file.
pub const HEAD: &str = "\
# Figures of make bench. Its last run writes build/results/bench.txt.
# ROW: this module, C. For each: the medians of instructions and exits, or bytes.
";

/// By how much the instructions may grow.
const TOLERANCE: f64 = 0.01;

/// If C's instructions differ from the baseline by this much, the kernel has changed. Less may be chance.
const KERNEL: f64 = 0.05;

/// By how much exits may differ by chance. Below twenty exits this allows none more, unless they are a mean.
pub const EXITS: f64 = 0.05;

/// The cost in a row for one module.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Instructions, or bytes.
    pub amount: f64,
    /// How often a processor leaves the guest. 0 if the amount is bytes.
    pub exits: f64,
}

impl Cost {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let amount = words.next()?.parse().ok()?;
        let exits = words.next().map_or(Ok(0.0), str::parse).ok()?;
        words.next().is_none().then_some(Self { amount, exits })
    }

    /// Whether the cost is within a limit.
    pub fn within(&self, limit: &Self) -> bool {
        self.amount <= limit.amount && self.exits_within(limit.exits)
    }

    /// Whether the exits are within a limit, up to chance.
    pub fn exits_within(&self, limit: f64) -> bool {
        self.exits <= limit * (1.0 + EXITS)
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} {}", self.amount, self.exits)
    }
}

/// The costs in a row for this module and its peer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    pub rust: Cost,
    pub c: Cost,
}

impl Pair {
    /// Finds a row in the text of a baseline.
    pub fn find(text: &str, row: &str) -> Option<Self> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(row)?.strip_prefix(": "))?;
        let (rust, c) = line.split_once(", ")?;
        Some(Self {
            rust: Cost::parse(rust)?,
            c: Cost::parse(c)?,
        })
    }

    /// The limit for this module, if the peer now costs `c`. If the peer's cost has changed, the kernel has changed,
    /// and the limit changes by the same factor. Exits cost more than instructions on real hardware: there may be no
    /// more than before, and no more than the peer's.
    pub fn limit(&self, c: Cost) -> Cost {
        let (factor, more) = match c.amount / self.c.amount {
            factor if (factor - 1.0).abs() < KERNEL => (1.0, 0.0),
            factor => (factor, c.exits - self.c.exits),
        };
        Cost {
            amount: self.rust.amount * factor * (1.0 + TOLERANCE),
            exits: (self.rust.exits + more).min(c.exits),
        }
    }

    /// By how much this module's amount has grown since the baseline, as text for a table.
    pub fn change(before: Option<Self>, now: f64) -> String {
        match before.map(|before| before.rust.amount) {
            None => "new".to_owned(),
            Some(0.0) => "-".to_owned(),
            Some(before) => format!("{:+.1} %", 100.0 * (now / before - 1.0)),
        }
    }
}

/// A row of the file.
pub fn line(row: &str, rust: impl fmt::Display, c: impl fmt::Display) -> String {
    format!("{row}: {rust}, {c}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn cost(amount: f64, exits: f64) -> Cost {
        Cost { amount, exits }
    }

    const BEFORE: Pair = Pair {
        rust: cost(2000.0, 4.0),
        c: cost(3000.0, 5.0),
    };

    #[test]
    fn reads_what_it_writes() {
        let text = HEAD.to_owned()
            + &line("KVP get", cost(7.0, 0.12), cost(9.0, 4.0))
            + &line("text", 39_813, 13_656);
        let pair = Pair::find(&text, "KVP get").unwrap();
        assert_eq!((pair.rust, pair.c), (cost(7.0, 0.12), cost(9.0, 4.0)));
        let pair = Pair::find(&text, "text").unwrap();
        assert_eq!((pair.rust.amount, pair.c.amount), (39_813.0, 13_656.0));
        for (text, row) in [
            (text.as_str(), "KVP"),
            ("KVP getter: 7 1, 9 1\n", "KVP get"),
            ("row: 7 1\n", "row"),
            ("row: 7 1 2, 9 1\n", "row"),
            ("row: 7 x, 9 1\n", "row"),
        ] {
            assert_eq!(Pair::find(text, row), None, "{text}");
        }
    }

    #[test]
    fn more_than_one_percent_is_too_much() {
        let limit = BEFORE.limit(BEFORE.c);
        assert!(BEFORE.rust.within(&limit));
        assert!(cost(2019.0, 4.0).within(&limit));
        assert!(!cost(2021.0, 4.0).within(&limit));
        assert!(!cost(2000.0, 5.0).within(&limit));
    }

    #[test]
    fn a_kernel_that_needs_more_allows_more() {
        // C needs half as much again, and two exits more.
        let limit = BEFORE.limit(cost(4500.0, 7.0));
        assert!(cost(3000.0, 6.0).within(&limit));
        assert!(!cost(3031.0, 6.0).within(&limit));
        assert!(!cost(3000.0, 7.0).within(&limit));
        // A kernel that needs less allows less.
        assert!(!cost(2000.0, 4.0).within(&BEFORE.limit(cost(2800.0, 5.0))));
    }

    #[test]
    fn chance_in_what_c_needs_does_not_matter() {
        for amount in [2900.0, 3100.0] {
            let limit = BEFORE.limit(cost(amount, 4.0));
            assert!(cost(2019.0, 4.0).within(&limit), "{amount}");
            assert!(!cost(2021.0, 4.0).within(&limit), "{amount}");
        }
    }

    #[test]
    fn no_more_exits_than_c() {
        let before = Pair {
            rust: cost(2000.0, 6.0),
            ..BEFORE
        };
        let limit = before.limit(before.c);
        assert!(!cost(2000.0, 6.0).within(&limit));
        assert!(cost(2000.0, 5.0).within(&limit));
    }

    #[test]
    fn nothing_to_compare_with_allows_nothing() {
        let before = Pair {
            c: cost(0.0, 5.0),
            ..BEFORE
        };
        assert!(!cost(1.0, 1.0).within(&before.limit(cost(0.0, 5.0))));
    }
}
