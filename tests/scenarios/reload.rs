// SPDX-License-Identifier: GPL-2.0

//! The module is inserted and removed, or its daemons are killed and started, over and over, while the host sends
//! requests without a pause.

use std::time::Duration;

use host::guest::Result;
use host::ic::E_FAIL;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon::Daemon;
use crate::daemon::Talk;
use crate::daemon::PROMPT;
use crate::removal;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// How often the module is inserted. The second number is for `HV_SLOW=1`.
const CYCLES: (u64, u64) = (10, 100);

/// How many daemons are killed. The second number is for `HV_SLOW=1`.
const KILLED: (u64, u64) = (30, 1000);

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("reload_under_beats", reload_under_beats).unloaded(),
    Scenario::new("kvp_daemon_restarted_under_load", |t| {
        daemon_restarted_under_load(t, Service::Kvp)
    })
    .expects_log(&["callbacks suppressed"])
    .by_chance()
    .daemons()
    .race(),
    Scenario::new("vss_daemon_restarted_under_load", |t| {
        daemon_restarted_under_load(t, Service::Vss)
    })
    .by_chance()
    .daemons()
    .race()
    .expects_log(&[
        "VSS: no answer from the daemon",
        "callbacks suppressed",
        // C's log texts about a daemon that has exited.
        "VSS: failed to communicate to the daemon",
        "VSS: timeout waiting for daemon to reply",
    ]),
    Scenario::new("fcopy_daemon_restarted_under_load", |t| {
        daemon_restarted_under_load(t, Service::FCopy)
    })
    .expects_log(&["callbacks suppressed"])
    .daemons()
    .race()
    .rust_only(),
];

/// At each removal at most one beat is lost: one that was on its way when the guest closed the channel.
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

/// Daemons are killed at any moment while the host sends requests, even before they have registered. The host gets one
/// reply to each request. The last daemon works.
fn daemon_restarted_under_load(t: &Context<'_>, service: Service) -> Result<()> {
    let daemon = Daemon::of(service);
    let talk = Talk::begin(t, service, daemon)?;
    let daemons = t.often(KILLED);
    daemon.restart_often(t, daemons)?;
    let (mut served, mut failed) = (0, 0);
    loop {
        let request = talk.channel.request(removal::request(service))?;
        talk.channel.send(&request)?;
        match talk.channel.receive_within(PROMPT)? {
            reply if reply.transaction_id != request.transaction_id => {
                return Err("a reply to another request".into())
            }
            reply if reply.status == S_OK => served += 1,
            reply if reply.status == E_FAIL => failed += 1,
            reply => return Err(format!("status {:#x}", reply.status).into()),
        }
        if (served + failed) % 64 == 0 && t.sh("[ -e /tmp/over ]")?.status == 0 {
            break;
        }
    }
    println!(
        "# {service}: of the requests under {daemons} daemons {served} were served, {failed} failed"
    );
    t.check(served > 0, "some succeed")?;
    if service != Service::Kvp {
        // Requests of KVP wait for the next daemon.
        t.check(failed > 0, "some fail")?;
    }
    daemon.kill(t)?;
    removal::serves(t, service)
}
