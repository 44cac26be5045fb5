// SPDX-License-Identifier: GPL-2.0

//! The kselftests of `tests/selftests/hv_utils`, run in the guest.

use host::guest::Result;
use host::service::Service;

use crate::scenario::Context;
use crate::scenario::Scenario;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario::new("selftests", selftests).once()];

/// Prints each result of a test as one of its own, for all who count them.
pub fn tell(test: &str, output: &str) {
    for line in output.lines() {
        let (verdict, rest) = match line.split_once(' ') {
            Some(("1..0", rest)) => ("ok", rest),
            Some(("ok", rest)) => ("ok", rest),
            Some(("not", rest)) if rest.starts_with("ok ") => ("not ok", &rest["ok ".len()..]),
            _ => {
                println!("# {test}: {line}");
                continue;
            }
        };
        // The number is the test's own.
        let what = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        println!("{verdict} - {test}: {}", what.trim());
    }
}

/// Each test passes; those that need more than a guest skip themselves.
fn selftests(t: &Context<'_>) -> Result<()> {
    t.channel(Service::TimeSync).wait_replies(2)?;
    let tests = t.sh_ok("cd /selftests/hv_utils && ls *.sh | grep -v common.sh")?;
    t.check(tests.contains("ptp.sh"), "the tests are in the guest")?;
    for test in tests.lines() {
        let output = t.sh(&format!("sh /selftests/hv_utils/{test}"))?;
        tell(test, &output.text);
        let expected = if test == "shutdown.sh" { 4 } else { 0 };
        t.equal(&format!("status of {test}"), output.status, expected)?;
        t.check(output.text.starts_with("TAP version 13"), "it speaks KTAP")?;
    }
    Ok(())
}
