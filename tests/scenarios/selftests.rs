// SPDX-License-Identifier: GPL-2.0

//! Runs the kselftests of `tests/selftests/hv_utils` in the guest.

use host::guest::Result;
use host::guest::TIMEOUT;
use host::service::Service;

use crate::scenario::Context;
use crate::scenario::Scenario;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario::new("selftests", selftests)];

/// Prints each result of a test program as a result of its own, so that it is counted.
pub fn tell(test: &str, output: &str) {
    for line in output.lines() {
        println!("{}", retold(test, line));
    }
}

/// Rewrites a line of a test program's output. A result gets the program's name instead of its number. Other lines
/// become comments. A program that is skipped as a whole is one result.
fn retold(test: &str, line: &str) -> String {
    let result = [("ok ", "ok"), ("not ok ", "not ok"), ("1..0 ", "ok")]
        .into_iter()
        .find_map(|(start, verdict)| Some((verdict, line.strip_prefix(start)?)));
    match result {
        Some((verdict, what)) => {
            let what = what.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{verdict} - selftests: {test}: {}", what.trim())
        }
        None => format!("# {test}: {line}"),
    }
}

/// Each test program passes. Tests that need more than a guest are skipped.
fn selftests(t: &Context<'_>) -> Result<()> {
    t.channel(Service::TimeSync).wait_replies(2)?;
    let tests = t.sh_ok("cd /selftests/hv_utils && ls *.sh | grep -v common.sh")?;
    t.check(tests.contains("ptp.sh"), "the tests are in the guest")?;
    for test in tests.lines() {
        let output = t.sh_within(&format!("sh /selftests/hv_utils/{test}"), 5 * TIMEOUT)?;
        tell(test, &output.text);
        t.equal(&format!("status of {test}"), output.status, 0)?;
        t.check(output.text.starts_with("TAP version 13"), "KTAP output")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_retold_with_their_directives() {
        for (line, said) in [
            ("TAP version 13", "# a.sh: TAP version 13"),
            ("1..3", "# a.sh: 1..3"),
            (
                "1..0 # SKIP no root",
                "ok - selftests: a.sh: # SKIP no root",
            ),
            ("ok 1 2 is even ", "ok - selftests: a.sh: 2 is even"),
            (
                "ok 2 it runs # SKIP",
                "ok - selftests: a.sh: it runs # SKIP",
            ),
            ("not ok 3 it ends", "not ok - selftests: a.sh: it ends"),
            ("# ok 4", "# a.sh: # ok 4"),
        ] {
            assert_eq!(retold("a.sh", line), said);
        }
    }
}
