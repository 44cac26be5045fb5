// SPDX-License-Identifier: GPL-2.0

//! The character devices without a daemon: the kselftest program about them.

use host::guest::Result;

use crate::scenario::Context;
use crate::scenario::Scenario;
use crate::selftests;

/// The scenarios of this file. In C, a device that goes waits for its file to be closed.
pub const SCENARIOS: &[Scenario] = &[Scenario::new("chardev", chardev).daemons().rust_only()];

/// Each test passes, for each of the three devices.
fn chardev(t: &Context<'_>) -> Result<()> {
    let output = t.sh("/selftests/hv_utils/chardev")?;
    selftests::tell("chardev", &output.text);
    t.equal("status", output.status, 0)?;
    t.check(!output.text.contains("# SKIP"), "no test is skipped")
}
