// SPDX-License-Identifier: GPL-2.0

//! Daemons that do not start or do not answer. The module waits for them for minutes, in emulated time.

use std::time::Duration;
use std::time::Instant;

use host::guest::Result;
use host::ic::fcopy;
use host::ic::frame::Message;
use host::ic::kvp;
use host::ic::vss;
use host::ic::E_FAIL;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon;
use crate::daemon::ShellDaemon;
use crate::daemon::Talk;
use crate::hibernation;
use crate::removal;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// C's log text about a daemon that does not answer.
const TIMEOUT_IN_C: &str = "VSS: timeout waiting for daemon to reply";

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("kvp_late_answer", kvp_late_answer)
        .waits()
        .daemons()
        .rust_only(),
    Scenario::new("kvp_daemon_skips_an_answer", |t| {
        skips_an_answer(t, Service::Kvp)
    })
    .waits()
    .daemons(),
    Scenario::new("vss_daemon_skips_an_answer", |t| {
        skips_an_answer(t, Service::Vss)
    })
    .waits()
    .daemons()
    .expects_log(&["VSS: no answer from the daemon", TIMEOUT_IN_C]),
    Scenario::new("daemon_skips_an_answer_given_up", |t| {
        removal::services(t)
            .iter()
            .try_for_each(|&service| skips_an_answer_given_up(t, service))
    })
    .daemons()
    .rust_only()
    .expects_log(&["VSS: no answer from the daemon"]),
    Scenario::new("kvp_times_out_after_hibernation", kvp_after_hibernation)
        .waits()
        .daemons()
        .rust_only()
        .expects_log(hibernation::EXPECTED),
    Scenario::new("vss_freeze_times_out", freeze_times_out)
        .waits()
        .daemons()
        .rust_only()
        .expects_log(&[
            "VSS: no answer from the daemon",
            "VSS: a daemon has yet to end",
        ]),
    Scenario::new("daemon_timeouts", timeouts)
        .waits()
        .daemons()
        .rust_only()
        .expects_log(&[
            "VSS: no answer from the daemon",
            "VSS: a daemon has yet to end",
        ]),
];

/// How late a reply may come that is due after `expected`. The kernel's timers are late by up to an eighth
/// (`kernel/time/timer.c`).
fn slack(expected: Duration) -> Duration {
    Duration::from_secs(4).max(expected / 8)
}

/// Checks that the reply to `request` comes `seconds` after `start`, and has `status`.
pub fn at(
    t: &Context<'_>,
    talk: Talk<'_>,
    request: &Message,
    status: u32,
    start: Instant,
    seconds: u64,
) -> Result<Message> {
    let expected = Duration::from_secs(seconds);
    let reply = talk.within("a time-out", request, status, expected + slack(expected))?;
    let took = start.elapsed();
    println!(
        "# {} answered after {:.1} s",
        talk.channel.service(),
        took.as_secs_f64()
    );
    t.check(
        took + Duration::from_secs(1) > expected && took < expected + slack(expected),
        &format!("the answer takes {seconds} s (it took {took:?})"),
    )?;
    Ok(reply)
}

/// The daemon has read a request, and does not answer within 30 s. The request fails. The late answer is dropped.
fn kvp_late_answer(t: &Context<'_>) -> Result<()> {
    let kvp = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    // The daemon hangs until somebody opens the other end of the FIFO that it reads.
    t.sh_ok("rm -f /var/lib/hyperv/.kvp_pool_1; mkfifo /var/lib/hyperv/.kvp_pool_1")?;
    let asked = Instant::now();
    let late = kvp.pend(kvp::enumerate(kvp::GUEST, 0))?;
    at(t, kvp, &late, E_FAIL, asked, 30)?;
    let next = kvp.pend(kvp::enumerate(kvp::AUTO, 5))?;
    t.sh_ok(": >/var/lib/hyperv/.kvp_pool_1")?;
    let reply = kvp.promptly("the next request", &next, S_OK)?;
    let pair = kvp::pair(&reply.body).map(|(key, _)| key);
    t.equal("the reply's key", pair.as_deref(), Some("OSName"))?;
    kvp.finish()
}

/// Starts a daemon that does not answer its first question, and answers all others.
fn skipping(t: &Context<'_>, service: Service) -> Result<ShellDaemon> {
    let script = format!(
        "dd bs=8192 count=1 && : >/tmp/read; {}",
        ShellDaemon::answers("/tmp/success")
    );
    ShellDaemon::registered(t, service, &script)
}

/// Checks that the host gets the answers to the next three questions.
fn answered(talk: Talk<'_>) -> Result<()> {
    for number in 1..=3 {
        let next = talk
            .channel
            .request(removal::request(talk.channel.service()))?;
        talk.channel.send(&next)?;
        talk.promptly(&format!("question {number} after it"), &next, S_OK)?;
    }
    talk.finish()
}

/// A daemon reads a question, and never answers it. The question fails after 30 s. The daemon answers the next
/// questions. The host gets these answers.
fn skips_an_answer(t: &Context<'_>, service: Service) -> Result<()> {
    let daemon = skipping(t, service)?;
    let talk = Talk::with(t, service);
    talk.channel.negotiate_all()?;
    let asked = Instant::now();
    let skipped = talk.pend(removal::request(service))?;
    daemon::wait_for(t, "[ -e /tmp/read ]")?;
    at(t, talk, &skipped, E_FAIL, asked, 30)?;
    answered(talk)?;
    daemon.kill(t)
}

/// As [`skips_an_answer`], but the host negotiates anew before the time-out. The module gives up the question then.
fn skips_an_answer_given_up(t: &Context<'_>, service: Service) -> Result<()> {
    let daemon = skipping(t, service)?;
    let talk = Talk::with(t, service);
    talk.channel.negotiate_all()?;
    talk.pend(removal::request(service))?;
    daemon::wait_for(t, "[ -e /tmp/read ]")?;
    talk.channel.negotiate_all()?;
    answered(talk).map_err(|error| format!("{service}: {error}"))?;
    daemon.kill(t)
}

/// Hibernation cancels the job that handles the time-out. After the hibernation a question times out nevertheless.
fn kvp_after_hibernation(t: &Context<'_>) -> Result<()> {
    let daemon = ShellDaemon::registered(t, Service::Kvp, ShellDaemon::READS_NOTHING)?;
    let kvp = Talk::with(t, Service::Kvp);
    kvp.channel.negotiate_all()?;
    // The job is armed.
    kvp.pend(removal::request(Service::Kvp))?;
    hibernation::hibernate(t)?;
    kvp.channel.wait_open()?;
    kvp.channel.negotiate_all()?;
    let asked = Instant::now();
    let request = kvp.pend(removal::request(Service::Kvp))?;
    at(t, kvp, &request, E_FAIL, asked, 30)?;
    daemon.kill(t)?;
    kvp.finish()
}

/// The daemon does not read a request. The request fails after 30 s. The daemon does the next requests.
fn timeouts(t: &Context<'_>) -> Result<()> {
    let vss = Talk::begin(t, Service::Vss, daemon::VSS)?;
    let fcopy = Talk::begin(t, Service::FCopy, daemon::FCOPY)?;
    daemon::VSS.stop(t)?;
    daemon::FCOPY.stop(t)?;
    let asked = Instant::now();
    let backup = vss.pend(vss::body(vss::HOT_BACKUP))?;
    let file = fcopy.pend(fcopy::start("/tmp", "late", 0, 1))?;
    at(t, vss, &backup, E_FAIL, asked, 30)?;
    at(t, fcopy, &file, E_FAIL, asked, 30)?;
    daemon::VSS.resume(t)?;
    daemon::FCOPY.resume(t)?;
    vss.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    fcopy.expect("START", fcopy::start("/tmp", "other", 0, 1), S_OK)?;
    fcopy.expect("CANCEL", fcopy::end(fcopy::CANCEL), S_OK)?;
    fcopy.finish()?;
    hangs_over_a_restart(t, vss)?;
    vss.finish()
}

/// The daemon does not finish a freeze within 15 minutes. FREEZE fails. Further FREEZE requests fail until the daemon
/// has finished. The daemon's late answer is rejected.
fn freeze_times_out(t: &Context<'_>) -> Result<()> {
    let script = format!(
        "dd bs=8192 count=1 && : >/tmp/read; read line </tmp/go; {answer} || : >/tmp/refused; {answers}",
        answer = ShellDaemon::write("/tmp/success"),
        answers = ShellDaemon::answers("/tmp/success"),
    );
    t.sh_ok("rm -f /tmp/go /tmp/refused; mkfifo /tmp/go")?;
    let daemon = ShellDaemon::registered(t, Service::Vss, &script)?;
    let vss = Talk::with(t, Service::Vss);
    vss.channel.negotiate_all()?;
    let asked = Instant::now();
    let freeze = vss.pend(vss::body(vss::FREEZE))?;
    daemon::wait_for(t, "[ -e /tmp/read ]")?;
    at(t, vss, &freeze, E_FAIL, asked, 900)?;
    vss.expect("FREEZE amid it", vss::body(vss::FREEZE), E_FAIL)?;
    t.sh_ok("echo >/tmp/go")?;
    daemon::wait_for(t, "[ -e /tmp/refused ]")?;
    vss.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    vss.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    vss.expect("THAW", vss::body(vss::THAW), S_OK)?;
    vss.finish()?;
    daemon.kill(t)
}

/// The host negotiates anew while file systems are frozen and the daemon hangs. The next request fails after 30 s.
fn hangs_over_a_restart(t: &Context<'_>, vss: Talk<'_>) -> Result<()> {
    vss.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    daemon::VSS.stop(t)?;
    vss.channel.negotiate_all()?;
    let told = Instant::now();
    let backup = vss.pend(vss::body(vss::HOT_BACKUP))?;
    at(t, vss, &backup, E_FAIL, told, 30)?;
    daemon::VSS.resume(t)?;
    vss.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)
        .map(|_| ())
}
