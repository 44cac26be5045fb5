// SPDX-License-Identifier: GPL-2.0

//! Heartbeat.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use host::guest::Module;
use host::guest::Result;
use host::ic::frame::Message;
use host::ic::frame::RESPONSE;
use host::ic::frame::TRANSACTION;
use host::ic::heartbeat;
use host::service::Service;

use crate::scenario::Context;
use crate::scenario::Scenario;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("heartbeat_beats", beats).everywhere(),
    Scenario::new("heartbeat_versions", versions)
        .expects_log(&["Heartbeat: the host offers no version that is known"])
        .scripted(&[Service::Heartbeat]),
    Scenario::new("heartbeat_replies", replies).scripted(&[Service::Heartbeat]),
    Scenario::new("heartbeat_short_reserved", short_reserved).scripted(&[Service::Heartbeat]),
    Scenario::new("heartbeat_longer_than_a_page", longer_than_a_page)
        .scripted(&[Service::Heartbeat])
        .rust_only(),
    Scenario::new("heartbeat_flood", flood)
        .everywhere()
        .scripted(&[Service::Heartbeat]),
    Scenario::new(
        "heartbeat_flood_leaves_the_processor",
        flood_leaves_the_processor,
    )
    .scripted(&[Service::Heartbeat])
    .rust_only(),
    Scenario::new("heartbeat_round_trips", round_trips),
    Scenario::new("heartbeat_restore", restore).versions(),
];

/// The host sends beats, as on Windows but ten times as fast. Each answer has the beat's number plus one.
fn beats(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.configure(|device| device.set_interval(Duration::from_millis(200)))?;
    let versions = heartbeat.wait_negotiated()?;
    t.equal(
        "versions",
        (versions.framework, versions.message),
        ((3, 0), (3, 0)),
    )?;
    let statistics = heartbeat.wait_replies(3)?;
    t.equal("answers with a wrong number", statistics.wrong_sequence, 0)?;
    t.log_has("Heartbeat IC version 3.0")
}

/// The host offers each pair of versions alone, and then only unknown versions.
fn versions(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    for framework in [(1, 0), (3, 0)] {
        for message in [(1, 0), (3, 0)] {
            let chosen = heartbeat.negotiate(&[framework], &[message])?;
            t.equal(
                "versions",
                (chosen.framework, chosen.message),
                (framework, message),
            )?;
        }
    }
    heartbeat.negotiate_in_vain(&[(9, 0)], &[(9, 0)])?;
    heartbeat.negotiate_all()?;
    heartbeat.expect_silence(Duration::from_millis(50))
}

/// The state of the applications in [`marked`].
pub const MARK: u32 = 0x5a5a_5a5a;

/// A beat with 0x5a in all bytes behind the number, which are zero in a host's beat. A changed byte was written by the
/// guest.
pub fn marked(sequence: u64) -> Vec<u8> {
    let mut body = heartbeat::body(sequence, heartbeat::RESERVED);
    body[8..].fill(0x5a);
    body
}

/// Checks that a reply has the state of the applications, and the reserved bytes of [`marked`].
pub fn tells(t: &Context<'_>, reply: &Message, state: u32) -> Result<()> {
    t.equal(
        "state of the applications",
        heartbeat::application_state(&reply.body),
        Some(state),
    )?;
    t.equal("reserved bytes", &reply.body[12..], &[0x5a; 4])
}

/// A reply echoes all fields of the request that it must.
fn replies(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    for version in [(1, 0), (3, 0)] {
        heartbeat.negotiate(&[(3, 0)], &[version])?;
        let reply = heartbeat.transact(&heartbeat.request(marked(5))?)?;
        // From 3.0 on, a reply has the state 0: nobody has set a state. C sends back the host's bytes.
        let state = match (version, t.module()) {
            ((3, 0), Module::Rust) => 0,
            _ => MARK,
        };
        tells(t, &reply, state)?;
    }
    for sequence in [0, 1, u64::from(u32::MAX), u64::MAX] {
        let request = heartbeat.request(heartbeat::body(sequence, heartbeat::RESERVED))?;
        let reply = heartbeat.transact(&request)?;
        t.equal(
            "number",
            heartbeat::sequence(&reply.body),
            Some(sequence.wrapping_add(1)),
        )?;
        t.equal("flags", reply.flags, TRANSACTION | RESPONSE)?;
        t.equal("status", reply.status, 0)?;
        t.equal("size", reply.size, Some(request.body.len() as u16))?;
        t.equal(
            "versions",
            (reply.framework, reply.version),
            (request.framework, request.version),
        )?;
    }
    heartbeat.expect_silence(Duration::from_millis(50))
}

/// The host sends fewer reserved bytes than the structure has, and more.
fn short_reserved(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.negotiate_all()?;
    for (sequence, reserved) in (1..).zip([0, 4, 28, 100]) {
        let request = heartbeat.request(heartbeat::body(sequence, reserved))?;
        let reply = heartbeat
            .transact(&request)
            .map_err(|error| format!("{reserved} bytes: {error}"))?;
        t.equal(
            &format!("number, with {reserved} bytes"),
            heartbeat::sequence(&reply.body),
            Some(sequence + 1),
        )?;
        t.equal("status", reply.status, 0)?;
        t.equal("size", reply.size, Some(request.body.len() as u16))?;
    }
    heartbeat.expect_silence(Duration::from_millis(50))
}

/// A beat longer than a page is answered, if the ring has room for it. So is the next beat.
fn longer_than_a_page(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.negotiate_all()?;
    for (sequence, reserved) in [(1, 5000), (2, heartbeat::RESERVED), (3, 8000), (4, 0)] {
        let request = heartbeat.request(heartbeat::body(sequence, reserved))?;
        let reply = heartbeat
            .transact(&request)
            .map_err(|error| format!("{reserved} bytes reserved: {error}"))?;
        t.equal(
            "sequence number",
            heartbeat::sequence(&reply.body),
            Some(sequence + 1),
        )?;
    }
    heartbeat.expect_silence(Duration::from_millis(50))
}

/// The host sends many beats, one by one. Each is answered. Prints the time from the host's write to its read.
fn round_trips(t: &Context<'_>) -> Result<()> {
    const COUNT: usize = 500;
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.configure(|device| device.set_interval(Duration::from_millis(3)))?;
    let before = heartbeat.statistics()?.latencies.len();
    let statistics = heartbeat.wait_replies(before as u64 + COUNT as u64)?;
    let mut latencies = statistics.latencies[before..].to_vec();
    latencies.sort_unstable();
    let at = |percent: usize| latencies[latencies.len() * percent / 100].as_secs_f64() * 1e3;
    println!(
        "# {}: heartbeat round trip: median {:.2} ms, 99th percentile {:.2} ms, of {}",
        t.module().name(),
        at(50),
        at(99),
        latencies.len()
    );
    t.equal("answers with a wrong number", statistics.wrong_sequence, 0)?;
    t.check(
        statistics.requests <= statistics.replies + 1,
        "at most the last beat is unanswered",
    )
}

/// The host sends a thousand beats at once. Each is answered once, in order.
fn flood(t: &Context<'_>) -> Result<()> {
    const COUNT: u64 = 1000;
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.negotiate_all()?;
    for sequence in 0..COUNT {
        let request = heartbeat.request(heartbeat::body(sequence, heartbeat::RESERVED))?;
        heartbeat.send(&request)?;
    }
    for sequence in 0..COUNT {
        let reply = heartbeat.receive()?;
        t.equal(
            "number",
            heartbeat::sequence(&reply.body),
            Some(sequence + 1),
        )?;
    }
    heartbeat.expect_silence(Duration::from_millis(50))
}

/// During a flood of beats the guest's programs get a share of the processor: a program runs to its end.
fn flood_leaves_the_processor(t: &Context<'_>) -> Result<()> {
    // The program takes about a tenth of these.
    const MOST: u64 = 30_000;
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.negotiate_all()?;
    let is_over = AtomicBool::new(false);
    let flood = || -> Result<u64> {
        let (mut sequence, mut answered) = (0, 0);
        while !is_over.load(Relaxed) && sequence < MOST {
            // Packets that wait for room keep the ring full.
            while heartbeat.unsent()? < 1000 {
                let request = heartbeat.request(heartbeat::body(sequence, heartbeat::RESERVED))?;
                heartbeat.send(&request)?;
                sequence += 1;
            }
            heartbeat.configure(|device| {
                while device.take_received().is_some() {
                    answered += 1;
                }
            })?;
        }
        for _ in answered..sequence {
            heartbeat.receive_packet()?;
        }
        Ok(sequence)
    };
    std::thread::scope(|scope| {
        let flood = scope.spawn(flood);
        let program = t.sh_ok("i=0; while [ $i -lt 500 ]; do i=$((i + 1)); : >/tmp/step; done");
        is_over.store(true, Relaxed);
        let beats = flood.join().map_err(|_| "the flood ended early")??;
        program?;
        println!("# {}: {beats} beats", t.module().name());
        t.check(beats > 1000, "the flood is one")?;
        t.check(
            beats < MOST,
            &format!("a program ends while {MOST} beats come"),
        )
    })
}

/// After a restore the host negotiates anew on the open channel, and sends beats again.
fn restore(t: &Context<'_>) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.wait_replies(1)?;
    heartbeat.offer_versions(&[(1, 0)], &[(1, 0)])?;
    heartbeat.restore()?;
    let versions = heartbeat.wait_negotiated()?;
    t.equal(
        "versions",
        (versions.framework, versions.message),
        ((1, 0), (1, 0)),
    )?;
    heartbeat.wait_replies(heartbeat.statistics()?.replies + 1)?;
    t.equal("times the channel was opened", heartbeat.opens()?, 1)
}
