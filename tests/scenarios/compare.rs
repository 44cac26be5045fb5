// SPDX-License-Identifier: GPL-2.0

//! Compares the messages of both modules to the host in a scenario.
//!
//! For a service that the scenario acts for, all lines of each side must be the same, in the same order. For a service
//! that acts by itself, the number of requests depends on time: only the replies to the same request must be the same.
//! The order of lines of different services does not matter.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use host::service::Service;

use crate::daemon;
use crate::scenario::Scenario;

/// The intended differences. See [`parse`] for the format.
const DIFFERENCES: &str = include_str!("differences.txt");

/// Stands for the missing line where only one module has a line.
const NOTHING: &str = "(nothing)";

/// An intended difference: these two lines, at the same place.
#[derive(Debug, Default, PartialEq, Eq)]
struct Meant<'a> {
    /// The scenarios. Each must have the difference.
    scenarios: Vec<&'a str>,
    reason: &'a str,
    rust: &'a str,
    c: &'a str,
}

/// Reads entries of three lines: `SCENARIO...: REASON`, `  rust: LINE`, `  c: LINE`. The sequence `N` stands for any
/// number.
fn parse(text: &str) -> Result<Vec<Meant<'_>>, String> {
    let mut lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let mut entries = Vec::new();
    while let Some(head) = lines.next() {
        let entry = head.split_once(": ").and_then(|(names, reason)| {
            Some(Meant {
                scenarios: names.split(' ').collect(),
                reason,
                rust: lines.next()?.strip_prefix("  rust: ")?,
                c: lines.next()?.strip_prefix("  c: ")?,
            })
        });
        entries.push(entry.ok_or_else(|| format!("differences.txt: {head:?} is no entry"))?);
    }
    Ok(entries)
}

/// Compares the transcripts of both modules. Returns the reasons of the intended differences. Fails if there is another
/// difference, or if an intended difference is missing.
pub fn compare(scenario: &Scenario, rust: &str, c: &str) -> Result<Vec<String>, String> {
    let leads = |topic: &str| {
        let scripted = scenario.scripted_services().iter().copied();
        let mut names = scripted.map(Service::name);
        let daemons = daemon::SERVICES.map(Service::name);
        names.any(|name| name == topic) || (scenario.needs_daemons() && daemons.contains(&topic))
    };
    // C has no file copy: its daemon uses uio.
    let is_of_both = |line: &&str| !line.starts_with(Service::FCopy.name());
    let of_both = |said: &str| {
        said.lines()
            .filter(is_of_both)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let (rust, c) = (&of_both(rust), &of_both(c));
    judge(
        scenario.name(),
        &parse(DIFFERENCES)?,
        &differences(&Said::parse(rust, leads), &Said::parse(c, leads)),
    )
}

/// Checks that the differences are the intended ones. Returns their reasons.
fn judge(
    name: &str,
    meant: &[Meant<'_>],
    found: &[(String, String)],
) -> Result<Vec<String>, String> {
    let is_about = |entry: &&Meant<'_>| entry.scenarios.contains(&name);
    let entries: Vec<_> = meant.iter().filter(is_about).collect();
    let is_met = |entry: &Meant<'_>, (rust, c): &(String, String)| {
        let any = numbered(rust).zip(numbered(c));
        let any = any.filter(|((number, _), (number_of_c, _))| number == number_of_c);
        (entry.rust == *rust && entry.c == *c)
            || any.is_some_and(|((_, rust), (_, c))| entry.rust == rust && entry.c == c)
    };
    if let Some((rust, c)) = found
        .iter()
        .find(|pair| !entries.iter().any(|entry| is_met(entry, pair)))
    {
        return Err(format!("rust: {rust}\nc:    {c}"));
    }
    let is_there = |entry: &&&Meant<'_>| found.iter().any(|pair| is_met(entry, pair));
    match entries.iter().find(|entry| !is_there(entry)) {
        Some(entry) => Err(format!(
            "differences.txt has a difference that is not there: {}",
            entry.rust
        )),
        None => Ok(entries.iter().map(|it| it.reason.to_owned()).collect()),
    }
}

/// The sequence in a line, and the line with `N` in its place.
fn numbered(line: &str) -> Option<(&str, String)> {
    const SEQUENCE: &str = " sequence ";
    let (before, rest) = line.split_once(SEQUENCE)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (number, after) = rest.split_at(end);
    Some((number, format!("{before}{SEQUENCE}N{after}")))
}

/// The messages of one run. Remarks are left out. So are the messages of the bus: hv_vmbus probes devices in any order.
#[derive(Default)]
struct Said<'a> {
    /// All lines of the services that the scenario acts for, by topic and side.
    led: BTreeMap<(&'a str, &'a str), Vec<&'a str>>,
    /// The replies of the other services, by topic and request.
    replies: BTreeMap<(&'a str, &'a str), BTreeSet<&'a str>>,
}

impl<'a> Said<'a> {
    fn parse(transcript: &'a str, leads: impl Fn(&str) -> bool) -> Self {
        let mut said = Self::default();
        let mut asked: BTreeMap<&str, &str> = BTreeMap::new();
        for line in transcript.lines() {
            let mut words = line.splitn(3, ' ');
            let (Some(topic), Some(side), Some(what)) = (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if topic == "vmbus" || side == "--" {
                continue;
            }
            if leads(topic) {
                said.led.entry((topic, side)).or_default().push(line);
            } else if side == "->" {
                asked.insert(topic, what);
            } else {
                let request = asked.get(topic).copied().unwrap_or_default();
                let replies = said.replies.entry((topic, request)).or_default();
                replies.insert(line);
            }
        }
        said
    }
}

/// The differences between two runs. For a service that acts by itself, only requests of both runs count.
fn differences(rust: &Said<'_>, c: &Said<'_>) -> Vec<(String, String)> {
    let places: BTreeSet<_> = rust.led.keys().chain(c.led.keys()).collect();
    let lines = |said: &'_ BTreeMap<_, Vec<_>>, place| said.get(place).cloned().unwrap_or_default();
    let led = places
        .into_iter()
        .flat_map(|place| diff(&lines(&rust.led, place), &lines(&c.led, place)));
    let both = rust.replies.iter();
    let both = both.filter_map(|(request, replies)| Some((replies, c.replies.get(request)?)));
    let replies = both.flat_map(|(rust, c)| {
        let only = |one: &BTreeSet<_>, other| one.difference(other).copied().collect::<Vec<_>>();
        zip(&only(rust, c), &only(c, rust))
    });
    led.chain(replies)
        .map(|(rust, c)| (rust.to_owned(), c.to_owned()))
        .collect()
}

/// Pairs the lines by their places.
fn zip<'a>(left: &[&'a str], right: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let of = |lines: &[&'a str], at| lines.get(at).copied().unwrap_or(NOTHING);
    let places = 0..left.len().max(right.len());
    places.map(|at| (of(left, at), of(right, at))).collect()
}

/// Maximum number of pairs of places for [`diff`]. Beyond that, as in a flood, it pairs the lines by their places.
const MOST: usize = 1 << 20;

/// The lines that only one side has, paired where they are at the same place.
fn diff<'a>(left: &[&'a str], right: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let same = |(left, right): &(&&str, &&str)| left == right;
    let prefix = left.iter().zip(right).take_while(same).count();
    let (left, right) = (&left[prefix..], &right[prefix..]);
    let suffix = left.iter().rev().zip(right.iter().rev());
    let suffix = suffix.take_while(same).count();
    let left = &left[..left.len() - suffix];
    let right = &right[..right.len() - suffix];

    if left.len() * right.len() > MOST {
        return zip(left, right);
    }

    // For each pair of places: the length of the longest common subsequence of the lines behind.
    let mut common = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (i, line) in left.iter().enumerate().rev() {
        for (j, other) in right.iter().enumerate().rev() {
            common[i][j] = match line == other {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut found = Vec::new();
    let (mut only_left, mut only_right) = (Vec::new(), Vec::new());
    loop {
        let (line, other) = (left.get(i), right.get(j));
        if line == other {
            found.extend(zip(&only_left, &only_right));
            (only_left, only_right) = (Vec::new(), Vec::new());
            if line.is_none() {
                return found;
            }
            (i, j) = (i + 1, j + 1);
        } else if other.is_none() || (line.is_some() && common[i + 1][j] >= common[i][j + 1]) {
            only_left.extend(line);
            i += 1;
        } else {
            only_right.extend(other);
            j += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rust: &str, c: &str) -> Vec<(String, String)> {
        let leads = |topic: &str| topic == "kvp";
        differences(&Said::parse(rust, leads), &Said::parse(c, leads))
    }

    #[test]
    fn each_line_of_a_service_in_the_lead_counts() {
        let said = "kvp -> a\nvmbus -- x\nkvp <- b\nkvp -- remark\nvss -> q\nvss <- r\n";
        assert_eq!(found(said, said), []);
        let other = "vss -> q\nkvp -> a\nvss <- r\nkvp <- c\n";
        assert_eq!(found(said, other), [("kvp <- b".into(), "kvp <- c".into())]);
        let more = format!("{said}kvp <- b\n");
        assert_eq!(found(&more, said), [("kvp <- b".into(), NOTHING.into())]);
        let before = format!("kvp <- c\n{said}");
        assert_eq!(found(&before, said), [("kvp <- c".into(), NOTHING.into())]);
        // Whether the host sends its next request before it has an answer is chance.
        assert_eq!(
            found(
                "kvp -> a\nkvp -> b\nkvp <- c\n",
                "kvp -> a\nkvp <- c\nkvp -> b\n"
            ),
            []
        );
    }

    #[test]
    fn lines_are_paired_where_both_differ() {
        let found = diff(&["a", "b", "c", "d", "e"], &["a", "x", "c", "e", "f"]);
        assert_eq!(found, [("b", "x"), ("d", NOTHING), (NOTHING, "f")]);
        assert_eq!(diff(&[], &["a"]), [(NOTHING, "a")]);
    }

    #[test]
    fn a_service_that_acts_by_itself_answers_the_same_to_the_same() {
        let said = "vss -> q\nvss <- r\nvss -> s\nvss <- t\n";
        assert_eq!(found(said, "vss -> q\nvss <- r\nvss -> q\n"), []);
        let once = "vss -> q\nvss <- r\nvss -> q\nvss <- x\n";
        assert_eq!(found(once, said), [("vss <- x".into(), NOTHING.into())]);
        let other = "vss -> s\nvss <- u\n";
        assert_eq!(found(said, other), [("vss <- t".into(), "vss <- u".into())]);
    }

    #[test]
    fn a_difference_is_meant_as_it_is_written_or_not_at_all() {
        let text = "# a comment\none two: why\n  rust: a\n  c: b\n\ntwo: more\n  rust: x\n  c: y\n";
        let meant = parse(text).unwrap();
        assert_eq!(meant[0].scenarios, ["one", "two"]);
        let pair = |rust: &str, c: &str| (rust.to_owned(), c.to_owned());
        let why = |found: &[_]| judge("one", &meant, found);
        assert_eq!(why(&[pair("a", "b")]), Ok(vec!["why".to_owned()]));
        why(&[pair("a", "c")]).unwrap_err();
        why(&[pair("a", "b"), pair("b", "a")]).unwrap_err();
        // A difference must be there as a whole, and only in its scenarios.
        why(&[]).unwrap_err();
        why(&[pair("x", "y")]).unwrap_err();
        assert_eq!(judge("other", &meant, &[]), Ok(vec![]));
        judge("other", &meant, &[pair("a", "b")]).unwrap_err();
        judge("two", &meant, &[pair("a", "b")]).unwrap_err();
        let both = [pair("a", "b"), pair("x", "y")];
        let reasons = vec!["why".to_owned(), "more".to_owned()];
        assert_eq!(judge("two", &meant, &both), Ok(reasons));
        parse("one: why\n  c: b\n").unwrap_err();

        let any = parse("one: why\n  rust: x sequence N 1\n  c: x sequence N 0\n").unwrap();
        let is_meant = |rust, c| judge("one", &any, &[pair(rust, c)]).is_ok();
        assert!(is_meant("x sequence 8 1", "x sequence 8 0"));
        assert!(!is_meant("x sequence 8 1", "x sequence 9 0"));
        assert!(!is_meant("x sequence 8 1", "x sequence 8 2"));
    }

    #[test]
    fn the_file_is_one() {
        assert!(!parse(DIFFERENCES).unwrap().is_empty());
    }
}
