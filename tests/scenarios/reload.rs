// SPDX-License-Identifier: GPL-2.0

//! The module inserted and removed over and over, under beats that never pause.

use std::time::Duration;

use host::guest::Result;
use host::service::Service;

use crate::scenario::Context;
use crate::scenario::Scenario;

/// How often; as often as the second number where `HV_SLOW=1` is set.
const CYCLES: (u64, u64) = (10, 100);

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario::new("reload_under_beats", reload_under_beats)
    .unloaded()
    .rust_only()];

/// No beat is lost but one that was on its way when the guest closed the channel.
fn reload_under_beats(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.configure(|device| device.set_interval(Duration::from_millis(2)))?;
    let cycles = t.often(CYCLES);
    let opens = heartbeat.opens()?;
    let mut lost = 0;
    for cycle in 0..cycles {
        t.load()?;
        heartbeat.wait_open()?;
        heartbeat.wait_replies(heartbeat.statistics()?.replies + 5)?;
        t.unload()?;
        heartbeat.wait_closed()?;
        let statistics = heartbeat.statistics()?;
        t.equal("wrong answers", statistics.wrong_sequence, 0)?;
        let unanswered = statistics.requests - statistics.replies;
        t.check(
            unanswered <= lost + 1,
            &format!("cycle {cycle} leaves at most one beat unanswered"),
        )?;
        lost = unanswered;
    }
    t.equal(
        "times the channel was opened",
        heartbeat.opens()? - opens,
        cycles,
    )
}
