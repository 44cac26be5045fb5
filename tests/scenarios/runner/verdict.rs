// SPDX-License-Identifier: GPL-2.0

//! A scenario's result: whether it is a failure, what is added to it, and its text in the table of faults.

use host::guest::Error;
use host::guest::Result;

use crate::faults;
use crate::scenario::skip_reason;

/// Whether the scenario failed. A skip is no failure.
pub(super) fn is_failure(result: &Result<()>) -> bool {
    matches!(result, Err(error) if skip_reason(error).is_none())
}

/// Returns `other` if it is an error and `result` is no failure. Otherwise returns `result`.
pub(super) fn and_also(result: Result<()>, other: Result<()>) -> Result<()> {
    match other {
        Err(error) if !is_failure(&result) => Err(error),
        _ => result,
    }
}

/// Adds a bad line of a log to a failure. Without a failure, the line is the failure.
pub(super) fn and_said(result: Result<()>, who: &str, line: Option<&str>) -> Result<()> {
    match (result, line) {
        (result, None) => result,
        (Err(error), Some(line)) if skip_reason(&error).is_none() => {
            Err(Error(format!("{error}\n{who} says: {line}")))
        }
        (_, Some(line)) => Err(Error(format!("{who} says: {line}"))),
    }
}

/// The text of a result in the table of faults: one line.
pub(super) fn verdict(result: &Result<()>) -> String {
    let Err(error) = result else {
        return faults::PASSES.to_owned();
    };
    if let Some(reason) = skip_reason(error) {
        return format!("skipped: {reason}");
    }
    let mut lines = error.0.lines();
    let first = lines.next().unwrap_or_default();
    let mut what = said(first).unwrap_or_else(|| first.to_owned());
    if let Some(said) = lines.find_map(said) {
        what.push_str(&format!("; {said}"));
    }
    format!("fails: ``{}``", what.replace('`', "'"))
}

/// If `line` quotes a log, the quotation without level and time, which differ between runs.
fn said(line: &str) -> Option<String> {
    let (log, said) = line.split_once(" says: ")?;
    let said = said.split_once("] ").map_or(said, |(_, said)| said);
    let said = said.trim_start_matches(|c| "<0123456789>".contains(c));
    Some(format!("{log} says: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::skip;

    #[test]
    fn a_skip_hides_nothing() {
        let skipped = || Err(skip("why"));
        let failed = || Err(Error("it failed".to_owned()));
        assert!(!is_failure(&and_also(skipped(), Ok(()))));
        assert!(is_failure(&and_also(skipped(), failed())));
        assert!(is_failure(&and_said(skipped(), "the log", Some("BUG:"))));
        assert!(is_failure(&and_said(Ok(()), "the log", Some("BUG:"))));
        let both = and_said(failed(), "the log", Some("BUG:")).unwrap_err();
        assert_eq!(both.0, "it failed\nthe log says: BUG:");
    }
}
