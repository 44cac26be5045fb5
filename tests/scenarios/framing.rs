// SPDX-License-Identifier: GPL-2.0

//! Framing and negotiation, which all services share. Each request gets one reply, even if it is malformed.

use std::time::Duration;

use host::guest::Result;
use host::ic::frame::Message;
use host::ic::frame::RESPONSE;
use host::ic::frame::TRANSACTION;
use host::ic::heartbeat;
use host::ic::shutdown;
use host::ic::timesync;
use host::ic::E_FAIL;
use host::service::Service;
use host::vmbus::packet::Packet;
use host::vmbus::packet::COMPLETION;

use crate::daemon;
use crate::daemon::PROMPT;
use crate::scenario::Context;
use crate::scenario::Scenario;

const SERVICES: [Service; 3] = [Service::Heartbeat, Service::Shutdown, Service::TimeSync];
const IGNORED: &[&str] = &["packet ignored"];
const UNEXPECTED: &[&str] = &[
    "unexpected message of type",
    "Invalid msg type",
    "no version that is known",
];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("framing_preference", preference).scripted(&SERVICES),
    Scenario::new("framing_renegotiation", renegotiation)
        .scripted(&SERVICES)
        .expects_log(UNEXPECTED)
        .rust_only()
        .versions(),
    Scenario::new("framing_bad_counts", bad_counts)
        .scripted(&SERVICES)
        .expects_log(&["no version that is known", "Invalid icmsg negotiate"]),
    Scenario::new("framing_no_common_version", no_common_version)
        .scripted(&SERVICES)
        .expects_log(UNEXPECTED)
        .rust_only(),
    Scenario::new("framing_queued_requests", queued_requests)
        .scripted(&SERVICES)
        .rust_only(),
    Scenario::new("framing_unread_replies", unread_replies)
        .scripted(&SERVICES)
        .rust_only(),
    Scenario::new("full_ring_is_counted", full_ring_is_counted)
        .scripted(&SERVICES)
        .rust_only(),
    Scenario::new(
        "nothing_is_logged_in_an_interrupt",
        nothing_is_logged_in_an_interrupt,
    )
    .everywhere()
    .scripted(&SERVICES)
    .expects_log(&[
        "packet ignored",
        "unexpected message of type",
        "no version that is known",
    ])
    .rust_only(),
    Scenario::new("framing_unknown_type", unknown_type)
        .scripted(&SERVICES)
        .expects_log(UNEXPECTED),
    Scenario::new("framing_short_bodies", short_bodies)
        .scripted(&SERVICES)
        .rust_only(),
    Scenario::new("framing_no_header", no_header)
        .scripted(&SERVICES)
        .expects_log(IGNORED)
        .rust_only(),
    Scenario::new("framing_responses", responses)
        .scripted(&SERVICES)
        .expects_log(IGNORED)
        .rust_only(),
    Scenario::new("framing_other_packets", other_packets)
        .scripted(&SERVICES)
        .expects_log(IGNORED)
        .rust_only(),
    Scenario::new("framing_whole_ring", whole_ring)
        .scripted(&SERVICES)
        .expects_log(IGNORED)
        .rust_only(),
    Scenario::new("framing_size_beyond_packet", size_beyond_packet)
        .scripted(&SERVICES)
        .rust_only(),
    Scenario::new("framing_packet_transaction", packet_transaction).scripted(&SERVICES),
];

/// A well-formed, harmless request for a service.
pub fn request(t: &Context<'_>, service: Service) -> Result<Message> {
    let body = match service {
        Service::Shutdown => shutdown::body(8, ""),
        Service::TimeSync => timesync::body((4, 0), &t.moment(), timesync::SAMPLE),
        _ => heartbeat::body(7, heartbeat::RESERVED),
    };
    t.channel(service).request(body)
}

/// Checks that the service works as after insertion, and that no reply is left over.
pub fn works(t: &Context<'_>, service: Service) -> Result<()> {
    let channel = t.channel(service);
    channel.expect_silence(Duration::from_millis(30))?;
    channel.negotiate_all()?;
    let expected = if service == Service::Shutdown {
        E_FAIL
    } else {
        0
    };
    let reply = channel.transact(&request(t, service)?)?;
    t.equal("status", reply.status, expected)?;
    channel.expect_silence(Duration::from_millis(30))
}

/// The host offers several versions, in various orders. The guest takes the newest version that it knows.
fn preference(t: &Context<'_>) -> Result<()> {
    let cases: [(Service, &[(u16, u16)], (u16, u16)); 5] = [
        (Service::Heartbeat, &[(3, 0), (1, 0), (9, 9)], (3, 0)),
        (Service::Shutdown, &[(1, 0), (3, 2), (3, 0), (3, 1)], (3, 2)),
        (Service::Shutdown, &[(3, 0), (1, 0), (4, 0)], (3, 0)),
        (Service::TimeSync, &[(5, 0), (1, 0), (4, 0), (3, 0)], (4, 0)),
        (Service::TimeSync, &[(2, 0), (1, 0)], (1, 0)),
    ];
    for (service, offered, best) in cases {
        let channel = t.channel(service);
        let chosen = channel.negotiate(&[(1, 0), (3, 0), (2, 0)], offered)?;
        t.equal(
            "versions",
            (chosen.framework, chosen.message),
            ((3, 0), best),
        )?;
        channel.expect_silence(Duration::from_millis(30))?;
    }
    Ok(())
}

/// The host negotiates at any time. Requests fail while no version is agreed on.
fn renegotiation(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        let early = channel.transact(&request(t, service)?)?;
        t.equal("status before a negotiation", early.status, E_FAIL)?;
        for _ in 0..3 {
            works(t, service)?;
        }
        channel.negotiate_in_vain(&[(3, 0)], &[(9, 9)])?;
        let late = channel.transact(&request(t, service)?)?;
        t.equal("status after a failed negotiation", late.status, E_FAIL)?;
        works(t, service)?;
    }
    Ok(())
}

/// A negotiation whose counts of versions exceed its size gets the counts 0/0.
fn bad_counts(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        for (frameworks, messages) in [(0, 0), (1, 3), (3, 1), (101, 1), (0xffff, 0xffff)] {
            let mut request = Message::negotiation(&[(3, 0)], &[(3, 0)], 77);
            request.body[..2].copy_from_slice(&u16::to_le_bytes(frameworks));
            request.body[2..4].copy_from_slice(&u16::to_le_bytes(messages));
            let reply = channel.transact(&request)?;
            t.equal("counts", &reply.body[..4], &[0; 4])?;
        }
        works(t, service)?;
    }
    Ok(())
}

/// Without a common version the negotiation is refused. Later requests of the host fail.
fn no_common_version(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        let refused = channel.negotiate(&[(3, 0)], &[(9, 9)]);
        t.check(
            refused.is_err_and(|error| error.0.contains("counts 0/0")),
            "an unknown version is refused",
        )?;
        // A refused host gives up by itself. The scenario goes on for the host.
        channel.script()?;
        let reply = channel.transact(&request(t, service)?)?;
        t.equal("status", reply.status, E_FAIL)?;
        works(t, service)?;
    }
    Ok(())
}

/// The guest finds several requests together. It answers all of them, in order, without waiting for a further packet.
fn queued_requests(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        for _ in 0..20 {
            let requests = [
                request(t, service)?,
                request(t, service)?,
                request(t, service)?,
            ];
            channel.send_together(&requests.each_ref())?;
            for request in requests {
                let reply = channel.receive()?;
                t.equal("transaction", reply.transaction_id, request.transaction_id)?;
            }
        }
        works(t, service)?;
    }
    Ok(())
}

/// Stops reading, and sends enough requests to fill both rings. Numbers them from 0. Returns how many.
pub fn fill_unread(t: &Context<'_>, service: Service) -> Result<usize> {
    let channel = t.channel(service);
    let mut request = request(t, service)?;
    let count = 2 * channel.ring_size()? as usize / request.encode().len() + 1;
    channel.set_reading(false)?;
    for number in 0..count {
        request.transaction_id = number as u8;
        channel.send(&request)?;
    }
    std::thread::sleep(Duration::from_millis(300));
    Ok(count)
}

/// The host stops reading, and gets all replies when it reads again. The device can be unbound meanwhile.
fn unread_replies(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        let count = fill_unread(t, service)?;
        channel.set_reading(true)?;
        for number in 0..count {
            let reply = channel.receive()?;
            t.equal("transaction", reply.transaction_id, number as u8)?;
        }
        works(t, service)?;

        fill_unread(t, service)?;
        let took = daemon::rebind(t, "unbind", service)?;
        t.check(took < PROMPT, &format!("unbinding took {took:?}"))?;
        channel.set_reading(true)?;
        daemon::rebind(t, "bind", service)?;
        channel.wait_open()?;
        works(t, service)?;
    }
    Ok(())
}

/// The channel's counters of full rings, which `hv_vmbus` shows in sysfs: how often a reply found no room, and how
/// often this was the first time since there was room.
fn full_counts(t: &Context<'_>, service: Service) -> Result<(u64, u64)> {
    let instance = service.instance();
    let text = t.sh_ok(&format!(
        "cd /sys/bus/vmbus/devices/{instance}/channels/* && cat out_full_total out_full_first"
    ))?;
    let counts: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    match *counts {
        [total, first] => Ok((total, first)),
        _ => Err(format!("{service}: counters {text:?}").into()),
    }
}

/// Each time that the ring gets full, `out_full_total` and `out_full_first` grow. The latter may grow by more than one:
/// after each signal of the host the module requests room anew. All replies come when the host reads again.
fn full_ring_is_counted(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        t.channel(service).negotiate_all()?;
        for round in 1..=2 {
            fill_and_count(t, service)
                .map_err(|error| format!("{service}, round {round}: {error}"))?;
        }
    }
    Ok(())
}

fn fill_and_count(t: &Context<'_>, service: Service) -> Result<()> {
    let channel = t.channel(service);
    let before = full_counts(t, service)?;
    let count = fill_unread(t, service)?;
    let full = full_counts(t, service)?;
    t.check(full.0 > before.0, "out_full_total counts the full ring")?;
    t.check(
        full.1 > before.1 && full.1 - before.1 <= full.0 - before.0,
        &format!("out_full_first counts it (from {} to {})", before.1, full.1),
    )?;
    channel.set_reading(true)?;
    for number in 0..count {
        let reply = channel.receive()?;
        t.equal("transaction", reply.transaction_id, number as u8)?;
    }
    works(t, service)
}

const TRACING: &str = "/sys/kernel/tracing";

/// Some services answer in the host's interrupt. They log bad packets later, outside of the interrupt. The kernel's
/// trace has the context of each log line.
fn nothing_is_logged_in_an_interrupt(t: &Context<'_>) -> Result<()> {
    let enable = format!("{TRACING}/events/printk/console/enable");
    if t.sh(&format!("[ -e {enable} ]"))?.status != 0 {
        return t.skip("this kernel does not trace what is logged (CONFIG_EVENT_TRACING)");
    }
    t.sh_ok(&format!("echo >{TRACING}/trace; echo 1 >{enable}"))?;
    let result = log_much(t);
    let lines = t.sh_ok(&format!(
        "echo 0 >{enable}; grep hv_utils {TRACING}/trace; echo >{TRACING}/trace"
    ))?;
    result?;
    for line in lines.lines() {
        // "comm-pid [processor] flags time: event: text". The third flag is the context.
        let flags = line
            .split_once(" [")
            .and_then(|(_, rest)| rest.split_whitespace().nth(1))
            .unwrap_or_default();
        let context = flags.chars().nth(2);
        t.check(
            matches!(context, Some('.' | 's')),
            &format!("not in an interrupt: {line}"),
        )?;
    }
    Ok(())
}

/// The host sends all kinds of packets that the services log lines about. Waits for the lines.
fn log_much(t: &Context<'_>) -> Result<()> {
    for (number, service) in [Service::Heartbeat, Service::TimeSync].iter().enumerate() {
        let channel = t.channel(*service);
        channel.transact(&request(t, *service)?)?;
        channel.negotiate_in_vain(&[(3, 0)], &[(9, 9)])?;
        channel.negotiate_all()?;
        let mut unknown = request(t, *service)?;
        unknown.kind = 9;
        channel.transact(&unknown)?;
        channel.send_bytes(&[0xff; 16])?;
        for (text, times) in [
            ("unexpected message of type", 2),
            ("no version that is known", 1),
            ("IC version", 1),
            ("packet ignored", 1),
        ] {
            let times = times * (number + 1);
            daemon::wait_for(
                t,
                &format!("[ $(grep hv_utils {TRACING}/trace | grep -c '{text}') -ge {times} ]"),
            )?;
        }
    }
    Ok(())
}

/// A message of another service's type fails.
fn unknown_type(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        for kind in [6, 8, 9, 0xffff] {
            let mut request = request(t, service)?;
            request.kind = kind;
            let reply = channel.transact(&request)?;
            t.equal("status", reply.status, E_FAIL)?;
        }
        works(t, service)?;
    }
    Ok(())
}

/// A body that is cut anywhere fails, unless only unused bytes are missing. The guest survives.
fn short_bodies(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        let (whole, needed) = match service {
            Service::Heartbeat => (24, 8),
            Service::Shutdown => (16, 12),
            _ => (24, 17),
        };
        for len in 0..whole {
            let mut request = request(t, service)?;
            request.body.truncate(len);
            let reply = channel.transact(&request)?;
            let fails = len < needed || service == Service::Shutdown;
            let expected = if fails { E_FAIL } else { 0 };
            t.equal(
                &format!("{service} status at {len} bytes"),
                reply.status,
                expected,
            )?;
        }
        works(t, service)?;
    }
    Ok(())
}

/// A packet without a header cannot be answered: it is dropped. The next request is served.
fn no_header(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        for len in [0, 8, 16, 24] {
            channel.send_bytes(&vec![0xff; len])?;
        }
        works(t, service)?;
    }
    t.log_has("packet ignored")
}

/// A message with the response flag gets no answer: otherwise two such sides would answer each other forever.
fn responses(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        let mut request = request(t, service)?;
        request.flags = TRANSACTION | RESPONSE;
        channel.send(&request)?;
        works(t, service)?;
    }
    t.log_has("packet ignored")
}

/// A packet other than in-band data is dropped.
fn other_packets(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        for kind in [0, 7, 9, COMPLETION, 0xffff] {
            channel.send_packet(Packet {
                kind,
                ..Packet::inband(request(t, service)?.encode())
            })?;
        }
        works(t, service)?;
    }
    t.log_has("packet ignored")
}

/// The host's write index says that the ring is full, but the ring has no packets. The content is dropped. The channel
/// still works.
fn whole_ring(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        // The guest sends a reply before it marks the request as read.
        channel.wait_read()?;
        let (to_guest, _) = channel.indices()?;
        let size = channel.ring_size()?;
        channel.set_write_index((to_guest.read + size - 8) % size)?;
        channel.signal()?;
        works(t, service)?;
    }
    Ok(())
}

/// A header claims a larger body than the packet has. The answer's header does not.
fn size_beyond_packet(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        let mut request = request(t, service)?;
        let len = request.body.len();
        request.size = Some(0xffff);
        let reply = channel.transact(&request)?;
        t.check(
            reply.size.is_some_and(|size| usize::from(size) <= len),
            "the answer's size is within its packet",
        )?;
        works(t, service)?;
    }
    Ok(())
}

/// The reply's packet has the transaction id of the request's packet.
fn packet_transaction(t: &Context<'_>) -> Result<()> {
    for service in SERVICES {
        let channel = t.channel(service);
        channel.negotiate_all()?;
        for transaction_id in [1, 0xdead_beef_0000_0001, u64::MAX] {
            channel.send_packet(Packet {
                transaction_id,
                ..Packet::inband(request(t, service)?.encode())
            })?;
            let reply = channel.receive_packet()?;
            t.equal("transaction id", reply.transaction_id, transaction_id)?;
        }
    }
    Ok(())
}
