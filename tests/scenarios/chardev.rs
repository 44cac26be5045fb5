// SPDX-License-Identifier: GPL-2.0

//! The kselftest program `chardev`: the character devices without a daemon.

use host::guest::Result;

use crate::scenario::Context;
use crate::scenario::Scenario;
use crate::selftests;

/// The scenarios of this file. With C, the removal of a device waits until its file is closed.
pub const SCENARIOS: &[Scenario] = &[Scenario::new("chardev", chardev).daemons().rust_only()];

/// Each test of the program passes, for each of the three devices.
fn chardev(t: &Context<'_>) -> Result<()> {
    let output = t.sh("/selftests/hv_utils/chardev")?;
    selftests::tell("chardev", &output.text);
    t.equal("status", output.status, 0)?;
    t.check(!output.text.contains("# SKIP"), "no test is skipped")
}
