// SPDX-License-Identifier: GPL-2.0

//! Hosts that send anything: valid messages of all six services, mutated.
//!
//! All of it follows from a seed, which is printed: `HV_FUZZ_SEED` repeats a run, and `HV_FUZZ_SECONDS` makes it
//! longer. What must hold: a request that can be answered gets one reply, nothing else gets more than that, and after
//! all of it the service works as ever. `make soak` runs it on a kernel that looks for faults.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use host::guest::Result;
use host::ic::fcopy;
use host::ic::frame::Message;
use host::ic::frame::BODY;
use host::ic::frame::REQUEST;
use host::ic::frame::RESPONSE;
use host::ic::heartbeat;
use host::ic::kvp;
use host::ic::shutdown;
use host::ic::timesync;
use host::ic::vss;
use host::service::Service;
use host::vmbus::packet::Packet;
use host::vmbus::packet::DATA_INBAND;

use crate::daemon;
use crate::daemon::Talk;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// What the module says of such messages.
const SAYS: &[&str] = &[
    "packet ignored",
    "unexpected message",
    "no version that is known",
    "clock not set",
    "no answer from the daemon",
    "having the daemon thaw",
    "callbacks suppressed",
];

/// The services that answer at once.
const AT_ONCE: [Service; 3] = [Service::Heartbeat, Service::Shutdown, Service::TimeSync];

/// How many messages are sent to each service if no time is given.
const MESSAGES: u64 = 100;

/// How many messages may be on their way to a service that answers at once.
const BATCH: u64 = 16;

/// The first seed.
const SEED: u64 = 1;

/// Where the flags of a shutdown request are in its payload.
const SHUTDOWN_FLAGS: usize = BODY + 8;

/// No payload is longer, in bytes: each ring has room for one of them.
const LONGEST: usize = 8000;

/// A flag of shutdown requests that none has: with it, the guest stays on.
const NO_SHUTDOWN: u8 = 0x80;

/// The scenarios of this file. In C, some of these messages take the guest down.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("fuzz", fuzz)
        .scripted(&AT_ONCE)
        .expects_log(SAYS)
        .rust_only(),
    Scenario::new("fuzz_with_daemons", fuzz_with_daemons)
        .daemons()
        .expects_log(SAYS)
        .rust_only(),
];

/// Numbers that look random and follow from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Zero is the one state that it would never leave.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit.max(1)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// A valid message of the service, any of those that its hosts send.
fn valid(t: &Context<'_>, service: Service, random: &mut Random) -> Result<Message> {
    if random.one_in(8) {
        return Ok(Message::negotiation(
            service.framework_versions(),
            service.message_versions(),
            random.next() as u8,
        ));
    }
    let text = |random: &mut Random| -> String {
        let length = random.of(&[0, 1, 7, 31, 127]);
        (0..length)
            .map(|_| random.of(&['a', '/', 'ü', '€', '😀']))
            .collect()
    };
    let pool = random.below(6) as u8;
    let body = match service {
        Service::Shutdown => shutdown::body(u32::from(NO_SHUTDOWN), &text(random)),
        Service::TimeSync => {
            let version = random.of(&[(1, 0), (3, 0), (4, 0)]);
            let flags = random.of(&[timesync::SAMPLE, timesync::SYNC, 0]);
            timesync::body(version, &t.moment(), flags)
        }
        Service::Kvp => match random.below(6) {
            0 => kvp::get(pool, &text(random)),
            1 => kvp::set(pool, &text(random), &text(random)),
            2 => kvp::set_value(pool, &text(random), random.below(9) as u32, &[7; 8]),
            3 => kvp::delete(pool, &text(random)),
            4 => kvp::enumerate(pool, random.below(12) as u32),
            _ => kvp::get_ip_info(&text(random)),
        },
        Service::Vss => vss::body(random.below(12) as u8),
        Service::FCopy => match random.below(4) {
            0 => fcopy::start("/tmp/in/", &text(random), random.below(4) as u32, 100_000),
            1 => fcopy::write(random.below(100_000) as u64, &[7; 100]),
            2 => fcopy::end(fcopy::COMPLETE),
            _ => fcopy::end(fcopy::CANCEL),
        },
        _ => heartbeat::body(random.next(), heartbeat::RESERVED),
    };
    t.channel(service).request(body)
}

/// Changes something about the bytes of a message.
fn mutate(payload: &mut Vec<u8>, random: &mut Random) {
    let length = payload.len();
    match random.below(6) {
        // A bit.
        0 if length > 0 => payload[random.below(length)] ^= 1 << random.below(8),
        // A field, to one of the values that are special.
        1 | 2 if length >= 4 => {
            let at = random.below(length.min(64) - 3);
            let value = random.of(&[
                0,
                1,
                length as u32,
                0x7f,
                0x80,
                0xff,
                0x7fff,
                0xffff,
                0x7fff_ffff,
                0x8000_0000,
                u32::MAX,
            ]);
            let size = random.of(&[1, 2, 4]);
            payload[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        // The end.
        3 => payload.truncate(random.below(length + 1)),
        4 => {
            let more = random.of(&[1, 7, 8, 100, 4000]);
            payload.extend((0..more).map(|_| random.next() as u8));
        }
        // Something in the middle.
        _ if length > 0 => {
            let from = random.below(length);
            let to = from + random.below((length - from).min(64));
            payload[from..to].fill_with(|| random.next() as u8);
        }
        _ => {}
    }
}

/// A packet numbered `number`, on the ways of a valid one or off them.
fn packet(t: &Context<'_>, service: Service, number: u64, random: &mut Random) -> Result<Packet> {
    let mut payload = valid(t, service, random)?.encode();
    for _ in 0..random.below(5) {
        mutate(&mut payload, random);
    }
    payload.truncate(LONGEST);
    // Packets are filled up with zeros, and those would be flags too.
    if service == Service::Shutdown && payload.len().next_multiple_of(8) > SHUTDOWN_FLAGS {
        payload.resize(payload.len().max(SHUTDOWN_FLAGS + 1), 0);
        payload[SHUTDOWN_FLAGS] |= NO_SHUTDOWN;
    }
    let kind = match random.one_in(16) {
        true => random.of(&[0, 1, 7, 8, 9, 11, 0xffff]),
        false => DATA_INBAND,
    };
    Ok(Packet {
        kind,
        transaction_id: number,
        ..Packet::inband(payload)
    })
}

/// How many replies a packet must get at least, and may get at most.
fn replies_to(packet: &Packet) -> (u32, u32) {
    let length = packet.payload.len();
    if packet.kind != DATA_INBAND || length.next_multiple_of(8) < BODY {
        return (0, 0);
    }
    let flags = packet.payload.get(BODY - 3).copied().unwrap_or(0);
    let is_request = length >= BODY && flags & (REQUEST | RESPONSE) == REQUEST;
    (u32::from(is_request), 1)
}

/// What was sent, and what came back.
#[derive(Default)]
struct Tally {
    sent: u64,
    answered: u64,
}

/// Sends packets to a service, `batch` at a time, as long as `goes_on` says so, and looks after their replies.
fn rounds(
    t: &Context<'_>,
    service: Service,
    random: &mut Random,
    batch: u64,
    mut goes_on: impl FnMut(u64) -> bool,
) -> Result<Tally> {
    let channel = t.channel(service);
    let mut tally = Tally::default();
    while goes_on(tally.sent) {
        let mut due: BTreeMap<u64, (u32, u32)> = BTreeMap::new();
        for _ in 0..batch {
            let packet = packet(t, service, tally.sent, random)?;
            due.insert(tally.sent, replies_to(&packet));
            tally.sent += 1;
            channel.send_packet(packet)?;
        }
        // Behind it all something that is answered for sure.
        let last = u64::MAX;
        due.insert(last, (1, 1));
        let end = Message::negotiation(service.framework_versions(), service.message_versions(), 0);
        if batch == 1 {
            // A host that negotiates does not wait for what it asked before.
            while due.range(..last).any(|(_, (least, _))| *least > 0) {
                take_reply(t, service, &mut due, &mut tally)?;
            }
        }
        channel.send_packet(Packet {
            transaction_id: last,
            ..Packet::inband(end.encode())
        })?;
        while due[&last].0 > 0 {
            take_reply(t, service, &mut due, &mut tally)?;
        }
        if let Some((number, _)) = due.iter().find(|(_, (least, _))| *least > 0) {
            return Err(format!("{service}: packet {number} got no reply").into());
        }
    }
    channel.expect_silence(Duration::from_millis(50))?;
    Ok(tally)
}

/// Takes a reply, which must be due.
fn take_reply(
    t: &Context<'_>,
    service: Service,
    due: &mut BTreeMap<u64, (u32, u32)>,
    tally: &mut Tally,
) -> Result<()> {
    let number = t.channel(service).receive_packet()?.transaction_id;
    let (least, most) = due
        .get_mut(&number)
        .ok_or_else(|| format!("{service}: a reply to packet {number}, which was not sent"))?;
    if *most == 0 {
        return Err(format!("{service}: a reply too many to packet {number}").into());
    }
    (*least, *most) = (0, 0);
    tally.answered += 1;
    Ok(())
}

/// Fuzzes these services one after another, once or for a time; says how far it came.
fn run(t: &Context<'_>, services: &[Service], batch: u64) -> Result<()> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seconds = number("HV_FUZZ_SECONDS").map(Duration::from_secs);
    let start = Instant::now();
    let mut seed = number("HV_FUZZ_SEED").unwrap_or(SEED);
    let (mut sent, mut answered) = (0, 0);
    loop {
        let mut random = Random::new(seed);
        for &service in services {
            t.channel(service)
                .configure(|device| device.set_tolerant(true))?;
            t.channel(service).negotiate_all()?;
            let tally = rounds(t, service, &mut random, batch, |sent| sent < MESSAGES)
                .map_err(|error| format!("HV_FUZZ_SEED={seed}: {error}"))?;
            sent += tally.sent;
            answered += tally.answered;
            // What it works with is as it was.
            t.channel(service).negotiate_all()?;
        }
        let Some(seconds) = seconds.filter(|seconds| start.elapsed() < *seconds) else {
            break;
        };
        println!(
            "# fuzz: {sent} messages, {answered} replies, seed {seed}, {} of {} s",
            start.elapsed().as_secs(),
            seconds.as_secs()
        );
        seed += 1;
    }
    println!("# fuzz: {sent} messages, {answered} replies, the last seed {seed}");
    if services.contains(&Service::TimeSync) {
        let channel = t.channel(Service::TimeSync);
        let body = timesync::body((4, 0), &t.moment(), timesync::SYNC);
        let reply = channel.transact(&channel.request(body)?)?;
        t.equal("status of the time", reply.status, 0)?;
    }
    Ok(())
}

fn fuzz(t: &Context<'_>) -> Result<()> {
    run(t, &AT_ONCE, BATCH)
}

/// With the distribution's daemons, which get whatever is valid enough.
fn fuzz_with_daemons(t: &Context<'_>) -> Result<()> {
    t.sh_ok("rm -rf /tmp/in; mkdir /tmp/in")?;
    for (service, daemon) in [
        (Service::Kvp, daemon::KVP),
        (Service::Vss, daemon::VSS),
        (Service::FCopy, daemon::FCOPY),
    ] {
        daemon.start(t)?;
        Talk::with(t, service);
    }
    run(t, &daemon::SERVICES, 1)
}
