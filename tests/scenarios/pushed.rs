// SPDX-License-Identifier: GPL-2.0

//! A host sets keys and addresses once. None is lost, whenever the KVP daemon starts, exits and starts again.

use std::time::Duration;
use std::time::Instant;

use host::guest::Result;
use host::ic::frame::Message;
use host::ic::kvp;
use host::ic::E_FAIL;
use host::ic::E_NO_MORE_ITEMS;
use host::ic::S_OK;
use host::service::Service;

use crate::addresses::new_addresses;
use crate::addresses::with_adapter;
use crate::daemon;
use crate::daemon::ShellDaemon;
use crate::daemon::Talk;
use crate::daemon::PROMPT;
use crate::daemon::QUIET;
use crate::kvp::pairs;
use crate::scenario::Context;
use crate::scenario::Scenario;
use crate::timeouts::at;

/// Number of keys that a host sets right after the negotiation.
const KEYS: usize = 11;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("kvp_pushed_to_a_late_daemon", |t| {
        late_daemon(t, 20)?;
        late_daemon(t, 90)
    })
    .waits()
    .daemons(),
    // Skipping an hour takes four minutes.
    Scenario::new("kvp_pushed_after_an_hour", |t| late_daemon(t, 3600))
        .daemons()
        .rust_only()
        .apart(),
    Scenario::new("kvp_late_daemon_that_hangs", late_and_hanging)
        .waits()
        .daemons()
        .rust_only(),
    Scenario::new("kvp_pushed_between_two_daemons", between_two_daemons)
        .waits()
        .daemons(),
    Scenario::new("kvp_pushed_without_a_daemon", without_a_daemon)
        .waits()
        .daemons()
        .rust_only(),
    Scenario::new("kvp_pushed_over_a_restart", over_a_restart)
        .daemons()
        .rust_only(),
    Scenario::new("kvp_pushed_to_ignition", to_ignition)
        .waits()
        .daemons()
        .rust_only(),
    Scenario::new("kvp_pushed_again_to_a_daemon_that_dies", dies_twice)
        .waits()
        .daemons()
        .rust_only(),
    Scenario::new("kvp_deletes_over_a_restart", deletes)
        .daemons()
        .rust_only(),
    Scenario::new("kvp_rescinded_while_it_waits", rescinded)
        .daemons()
        .versions(),
    Scenario::new("kvp_unbound_while_it_waits", unbound)
        .daemons()
        .rust_only()
        .versions(),
];

/// The key and value of that number.
fn pair(number: usize) -> (String, String) {
    (format!("key{number}"), format!("value of {number}"))
}

/// A SET of the pair of that number.
fn set(number: usize) -> Vec<u8> {
    let (key, value) = pair(number);
    kvp::set(kvp::AUTO_EXTERNAL, &key, &value)
}

/// Checks that the pool has the pairs of these numbers, and no others.
fn pool_has(t: &Context<'_>, talk: Talk<'_>, numbers: impl Iterator<Item = usize>) -> Result<()> {
    let expected: Vec<_> = numbers.map(pair).collect();
    t.equal("the pool", pairs(talk, kvp::AUTO_EXTERNAL)?, expected)
}

/// The daemon starts after `seconds`. The negotiation waits until then. All keys and addresses that the host sets right
/// after the negotiation arrive.
fn late_daemon(t: &Context<'_>, seconds: u64) -> Result<()> {
    with_adapter(t, |id| {
        let talk = Talk::with(t, Service::Kvp);
        let offer = Message::negotiation(&[(3, 0)], &[(4, 0)], 7);
        talk.channel.send(&offer)?;
        t.sh_within(
            &format!("rm -f /var/lib/hyperv/.kvp_pool_3; sleep {seconds}"),
            Duration::from_secs(seconds + 60),
        )?;
        talk.channel.expect_silence(QUIET)?;
        daemon::KVP.launch(t)?;
        talk.within("the negotiation", &offer, S_OK, PROMPT)?;
        for number in 0..KEYS {
            talk.expect("SET", set(number), S_OK)?;
        }
        let addresses = kvp::set_ip_info((4, 0), &new_addresses(id)).ok_or("no room")?;
        talk.expect("SET_IP_INFO", addresses, S_OK)?;
        let shown = t.sh_ok("ip -4 addr show dev dummy0")?;
        t.check(
            shown.contains("10.20.30.40/16"),
            &format!("{shown:?} has the address"),
        )?;
        pool_has(t, talk, 0..KEYS)?;
        daemon::KVP.kill(t)?;
        talk.finish()
    })
}

/// The daemon dies, and the next one starts 20 s later. A SET in between waits.
fn between_two_daemons(t: &Context<'_>) -> Result<()> {
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    talk.expect("SET", set(0), S_OK)?;
    daemon::KVP.kill(t)?;
    let request = talk.pend(set(1))?;
    t.sh_ok("sleep 20")?;
    talk.channel.expect_silence(QUIET)?;
    daemon::KVP.start(t)?;
    talk.promptly("the SET in between", &request, S_OK)?;
    talk.expect("SET", set(2), S_OK)?;
    pool_has(t, talk, 0..3)?;
    talk.finish()
}

/// A daemon that starts 20 s after a request has the full 30 s to answer.
fn late_and_hanging(t: &Context<'_>) -> Result<()> {
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    daemon::KVP.kill(t)?;
    let request = talk.pend(set(0))?;
    t.sh_ok("sleep 20")?;
    let asked = Instant::now();
    let daemon = ShellDaemon::registered(t, Service::Kvp, ShellDaemon::ANSWERS_NOTHING)?;
    at(t, talk, &request, E_FAIL, asked, 30)?;
    daemon.kill(t)?;
    talk.finish()
}

/// The daemon dies, and no other starts. A SET fails after 30 s. With the next daemon a SET succeeds.
fn without_a_daemon(t: &Context<'_>) -> Result<()> {
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    daemon::KVP.kill(t)?;
    let sent = Instant::now();
    let request = talk.pend(set(0))?;
    at(t, talk, &request, E_FAIL, sent, 30)?;
    daemon::KVP.start(t)?;
    pool_has(t, talk, 0..0)?;
    talk.expect("SET", set(1), S_OK)?;
    pool_has(t, talk, 1..2)?;
    talk.finish()
}

/// The daemon dies with a SET pending, and is restarted, as by systemd. Each SET succeeds, and is in the pool.
fn over_a_restart(t: &Context<'_>) -> Result<()> {
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    for number in 0..KEYS / 2 {
        talk.expect("SET", set(2 * number), S_OK)?;
        // Stop the daemon first. A kill while it writes the pool would lose pairs: it empties the file before.
        daemon::KVP.stop(t)?;
        let request = talk.pend(set(2 * number + 1))?;
        daemon::KVP.kill(t)?;
        daemon::KVP.start(t)?;
        talk.promptly("the SET amid which the daemon died", &request, S_OK)?;
    }
    pool_has(t, talk, 0..KEYS / 2 * 2)?;
    talk.finish()
}

/// A client like Ignition's starts first, answers each question with zeroes, and exits. The distribution's daemon
/// starts later. Requests to the client succeed. A request in between waits. The daemon serves all later ones.
fn to_ignition(t: &Context<'_>) -> Result<()> {
    let talk = Talk::with(t, Service::Kvp);
    let offer = Message::negotiation(&[(3, 0)], &[(4, 0)], 7);
    talk.channel.send(&offer)?;
    talk.channel.expect_silence(QUIET)?;
    let ignition = ShellDaemon::registered(t, Service::Kvp, &ShellDaemon::answers("/tmp/success"))?;
    talk.promptly("the negotiation", &offer, S_OK)?;
    let value = "x".repeat(900);
    for number in 0..200 {
        let set = kvp::set(kvp::AUTO_EXTERNAL, &format!("ignition{number}"), &value);
        talk.expect("SET", set, S_OK)?;
    }
    ignition.kill(t)?;
    let request = talk.pend(set(0))?;
    t.sh_ok("sleep 10")?;
    daemon::KVP.start(t)?;
    talk.promptly("the SET in between", &request, S_OK)?;
    talk.expect("SET", set(1), S_OK)?;
    pool_has(t, talk, 0..2)?;
    talk.finish()
}

/// Two daemons die with the same request. The request fails then: the third daemon does not get it.
fn dies_twice(t: &Context<'_>) -> Result<()> {
    let talk = Talk::with(t, Service::Kvp);
    let mut daemon = ShellDaemon::registered(t, Service::Kvp, ShellDaemon::ANSWERS_NOTHING)?;
    talk.channel.negotiate_all()?;
    let request = talk.pend(set(0))?;
    for _ in 0..2 {
        daemon::wait_for(t, "[ -e /tmp/read ]")?;
        daemon.kill(t)?;
        daemon = ShellDaemon::registered(t, Service::Kvp, ShellDaemon::ANSWERS_NOTHING)?;
    }
    talk.promptly("SET", &request, E_FAIL)?;
    t.sh_ok("[ ! -e /tmp/read ]")?;
    daemon.kill(t)?;
    talk.finish()
}

/// The daemon dies with a DELETE pending, perhaps after it has deleted the key. The next daemon does not find the key.
/// The DELETE succeeds.
fn deletes(t: &Context<'_>) -> Result<()> {
    let daemon = ShellDaemon::registered(t, Service::Kvp, ShellDaemon::ANSWERS_NOTHING)?;
    let talk = Talk::with(t, Service::Kvp);
    talk.channel.negotiate_all()?;
    let request = talk.pend(kvp::delete(kvp::AUTO_EXTERNAL, "key"))?;
    daemon::wait_for(t, "[ -e /tmp/read ]")?;
    daemon.kill(t)?;
    daemon::KVP.start(t)?;
    talk.promptly("DELETE", &request, S_OK)?;
    let again = kvp::delete(kvp::AUTO_EXTERNAL, "key");
    talk.expect("DELETE of nothing", again, E_NO_MORE_ITEMS)?;
    talk.finish()
}

/// The host rescinds the device while the negotiation waits for a daemon. The device goes at once. The next one works.
fn rescinded(t: &Context<'_>) -> Result<()> {
    let talk = Talk::with(t, Service::Kvp);
    let offer = Message::negotiation(&[(3, 0)], &[(4, 0)], 7);
    talk.channel.send(&offer)?;
    talk.channel.expect_silence(QUIET)?;
    talk.channel.rescind()?;
    talk.channel.wait_released()?;
    talk.channel.reoffer()?;
    talk.channel.wait_open()?;
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    talk.expect("SET", set(0), S_OK)?;
    pool_has(t, talk, 0..1)?;
    talk.finish()
}

/// The device is unbound while the negotiation waits for a daemon, and while a SET does.
fn unbound(t: &Context<'_>) -> Result<()> {
    let talk = Talk::with(t, Service::Kvp);
    for is_negotiated in [false, true] {
        if is_negotiated {
            Talk::begin(t, Service::Kvp, daemon::KVP)?;
            daemon::KVP.kill(t)?;
            talk.pend(set(0))?;
        } else {
            talk.channel
                .send(&Message::negotiation(&[(3, 0)], &[(4, 0)], 7))?;
            talk.channel.expect_silence(QUIET)?;
        }
        let took = daemon::rebind(t, "unbind", Service::Kvp)?;
        t.check(took < PROMPT, &format!("unbinding took {took:?}"))?;
        daemon::rebind(t, "bind", Service::Kvp)?;
        talk.channel.wait_open()?;
    }
    let talk = Talk::begin(t, Service::Kvp, daemon::KVP)?;
    talk.expect("SET", set(1), S_OK)?;
    pool_has(t, talk, 1..2)?;
    talk.finish()
}
