// SPDX-License-Identifier: GPL-2.0

//! Fuzzers. Hosts send mutated messages of all six services, invalid packets, and corrupt rings. Programs in the guest
//! do random things to the devices while a host sends requests.
//!
//! Each run follows from a seed, which is printed. `HV_FUZZ_SEED` repeats a run. `HV_FUZZ_SECONDS` is the time of all
//! scenarios together, which then use one seed after another. A request that can be answered must get one reply, and
//! any other packet at most one. The service must work afterwards. `make soak` runs the fuzzers on the debug kernel.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use host::fuzz;
use host::fuzz::Mutation;
use host::fuzz::Random;
use host::fuzz::NO_SHUTDOWN;
use host::guest::Result;
use host::ic::fcopy;
use host::ic::frame;
use host::ic::frame::Message;
use host::ic::frame::BODY;
use host::ic::frame::NEGOTIATE;
use host::ic::frame::REQUEST;
use host::ic::frame::RESPONSE;
use host::ic::heartbeat;
use host::ic::kvp;
use host::ic::shutdown;
use host::ic::timesync;
use host::ic::vss;
use host::ring::Word;
use host::service::Service;
use host::service::Version;
use host::vmbus::packet::Packet;
use host::vmbus::packet::DATA_INBAND;

use crate::daemon;
use crate::daemon::Daemon;
use crate::removal;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// The module's log texts about mutated messages.
const SAYS: &[&str] = &[
    "packet ignored",
    "unexpected message of type",
    "no version that is known",
    "TimeSync: clock not set",
    "TimeSync: samples ahead",
    "VSS: no answer from the daemon",
    "VSS: the backup is not consistent",
    "VSS: the daemon failed",
    "GET_IP_INFO fails",
    "SET_IP_INFO fails",
    "callbacks suppressed",
];

/// The log texts of module and kernel about corrupt rings, and about daemons that exit at any time.
const SAYS_OF_OTHERS: &[&str] = &[
    "packet ignored",
    "unexpected message of type",
    "no version that is known",
    "TimeSync: clock not set",
    "TimeSync: samples ahead",
    "callbacks suppressed",
    "outbound ring indices out of range",
    "reply not sent",
    "VSS: no answer from the daemon",
    "VSS: a daemon has yet to end an earlier freeze",
    "VSS: the backup is not consistent",
    "VSS: the daemon failed",
    "VSS: the daemon has gone while file systems are frozen",
    "GET_IP_INFO fails",
    "SET_IP_INFO fails",
];

/// The services that answer at once.
const AT_ONCE: [Service; 3] = [Service::Heartbeat, Service::Shutdown, Service::TimeSync];

/// The services that have daemons, each with its daemon.
const WITH_DAEMON: [(Service, Daemon); 3] = [
    (Service::Kvp, daemon::KVP),
    (Service::Vss, daemon::VSS),
    (Service::FCopy, daemon::FCOPY),
];

/// Number of messages to each service, for each seed.
const MESSAGES: u64 = 512;
/// Number of messages at a time. Those that do not fit into the ring wait in the host.
const BATCH: u64 = 64;

/// As [`MESSAGES`], for services with a daemon, which are slower.
const MESSAGES_WITH_DAEMON: u64 = 64;
/// As [`BATCH`], for services with a daemon.
const BATCH_WITH_DAEMON: u64 = 16;

/// Number of times that each service's rings are corrupted, for each seed.
const ASSAULTS: u64 = 2;

/// Number of requests to each service while programs do random things to the devices, for each seed.
const REQUESTS: u64 = 100;

/// The first seed.
const SEED: u64 = 1;

/// The offset of the flags in the payload of a shutdown request.
const SHUTDOWN_FLAGS: usize = BODY + 8;

/// The maximum length of a payload, in bytes. The service's ring has room for it. No host's messages are longer.
const fn longest(service: Service) -> usize {
    match service {
        Service::Vss => BODY + vss::LONGEST + 1000,
        _ => 12_000,
    }
}

/// Interval of progress lines in a run with a time limit.
const PROGRESS: Duration = Duration::from_secs(10);

/// The scenarios of this file. With C, some of these messages crash the guest.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("fuzz", messages)
        .scripted(&AT_ONCE)
        .expects_log(SAYS)
        .everywhere()
        .by_chance()
        .rust_only(),
    Scenario::new("fuzz_with_daemons", messages_with_daemons)
        .daemons()
        .expects_log(SAYS)
        .everywhere()
        .rust_only(),
    Scenario::new("fuzz_rings", rings)
        .daemons()
        .scripted(&AT_ONCE)
        .expects_log(SAYS_OF_OTHERS)
        .everywhere()
        .rust_only(),
    Scenario::new("fuzz_devices", devices)
        .daemons()
        .expects_log(SAYS_OF_OTHERS)
        .everywhere()
        .rust_only(),
];

fn messages(t: &Context<'_>) -> Result<()> {
    run(0.35, |random, tallies| {
        for service in AT_ONCE {
            let tally = tallies.entry(service).or_default();
            rounds(t, service, random, (MESSAGES, BATCH), tally)?;
        }
        Ok(())
    })?;
    let channel = t.channel(Service::TimeSync);
    let body = timesync::body((4, 0), &t.moment(), timesync::SYNC);
    let reply = channel.transact(&channel.request(body)?)?;
    t.equal("status of the time", reply.status, 0)
}

/// Sends messages to the services with daemons. The distribution's daemons get the messages that the module accepts.
fn messages_with_daemons(t: &Context<'_>) -> Result<()> {
    let services = removal::services(t);
    for &service in services {
        Daemon::of(service).start(t)?;
    }
    run(0.25, |random, tallies| {
        // Empty the daemons' storage, which would grow with each seed.
        t.sh_ok("rm -rf /tmp/in; mkdir /tmp/in; for pool in /var/lib/hyperv/.kvp_pool_*; do : >$pool; done")?;
        for &service in services {
            let tally = tallies.entry(service).or_default();
            for _ in 0..MESSAGES_WITH_DAEMON / BATCH_WITH_DAEMON {
                set_protocol(t, service, random.of(protocols(service)))?;
                let size = (BATCH_WITH_DAEMON, BATCH_WITH_DAEMON);
                rounds(t, service, random, size, tally)?;
            }
        }
        Ok(())
    })?;
    for &service in services {
        set_protocol(t, service, 5)?;
    }
    Ok(())
}

/// The values of the parameter `SERVICE_protocol`, which sets the newest message version. 0 if there is no such
/// parameter.
fn protocols(service: Service) -> &'static [u16] {
    match service {
        Service::Kvp => &[4, 5],
        Service::Vss => &[5, 6, 7],
        _ => &[0],
    }
}

fn set_protocol(t: &Context<'_>, service: Service, newest: u16) -> Result<()> {
    match protocols(service) {
        [0] => Ok(()),
        _ => t
            .sh_ok(&format!(
                "echo {newest} >/sys/module/hv_utils/parameters/{}_protocol",
                service.name()
            ))
            .map(|_| ()),
    }
}

/// Counts of the messages to a service, and of its replies.
#[derive(Default)]
struct Tally {
    sent: u64,
    answered: u64,
    /// Number of changes of each kind.
    changes: BTreeMap<&'static str, u64>,
    /// Number of replies with each status.
    statuses: BTreeMap<u32, u64>,
    /// Number of negotiations of each message version.
    versions: BTreeMap<Version, u64>,
}

impl Tally {
    fn changed(&mut self, what: &'static str) {
        *self.changes.entry(what).or_default() += 1;
    }

    fn agreed(&mut self, version: Version) {
        *self.versions.entry(version).or_default() += 1;
    }

    fn answer(&mut self, packet: &Packet) {
        self.answered += 1;
        if let Some(reply) = Message::parse(&packet.payload) {
            *self.statuses.entry(reply.status).or_default() += 1;
        }
    }
}

type Tallies = BTreeMap<Service, Tally>;

/// Calls `once` with one seed. With `HV_FUZZ_SECONDS`, calls it with seed after seed for this share of the time. Prints
/// the progress and the counts.
fn run(share: f64, mut once: impl FnMut(&mut Random, &mut Tallies) -> Result<()>) -> Result<()> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let time = number("HV_FUZZ_SECONDS").map(|seconds| Duration::from_secs(seconds).mul_f64(share));
    let mut seed = number("HV_FUZZ_SEED").unwrap_or(SEED);
    let mut tallies = Tallies::new();
    let start = Instant::now();
    let mut said = start;
    loop {
        once(&mut Random::new(seed), &mut tallies)
            .map_err(|error| format!("HV_FUZZ_SEED={seed}: {error}"))?;
        let Some(time) = time.filter(|time| start.elapsed() < *time) else {
            break;
        };
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            println!(
                "# fuzz: {}, seed {seed}, {} of {} s",
                total(&tallies, start.elapsed()),
                start.elapsed().as_secs(),
                time.as_secs()
            );
        }
        seed += 1;
    }
    for (service, tally) in &tallies {
        let list = |counts: Vec<String>| match counts.is_empty() {
            true => "none".to_owned(),
            false => counts.join(", "),
        };
        let changes = tally.changes.iter();
        let statuses = tally.statuses.iter();
        let versions = tally.versions.iter();
        println!(
            "# fuzz: {service}: {} sent ({}), {} answered ({}), negotiated ({})",
            tally.sent,
            list(
                changes
                    .map(|(what, count)| format!("{what} {count}"))
                    .collect()
            ),
            tally.answered,
            list(
                statuses
                    .map(|(status, count)| format!("{status:#x} {count}"))
                    .collect()
            ),
            list(
                versions
                    .map(|((major, minor), count)| format!("{major}.{minor} {count}"))
                    .collect()
            ),
        );
    }
    println!(
        "# fuzz: {}, the last seed {seed}",
        total(&tallies, start.elapsed())
    );
    Ok(())
}

fn total(tallies: &Tallies, took: Duration) -> String {
    let sum = |count: fn(&Tally) -> u64| tallies.values().map(count).sum::<u64>();
    let sent = sum(|tally| tally.sent);
    let minutes = took.as_secs_f64() / 60.0;
    format!(
        "{sent} messages, {} replies, {:.0} messages a minute",
        sum(|tally| tally.answered),
        sent as f64 / minutes
    )
}

/// A random packet: a valid message, mutated up to four times.
fn packet(
    t: &Context<'_>,
    service: Service,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<Packet> {
    let message = match random.one_in(8) {
        true => Message::negotiation(
            service.framework_versions(),
            service.message_versions(),
            random.any() as u8,
        ),
        false => t
            .channel(service)
            .request(fuzz::body(service, &t.moment(), random))?,
    };
    let mut payload = message.encode();
    let mutations = random.below(5);
    if mutations == 0 {
        tally.changed("none");
    }
    for _ in 0..mutations {
        tally.changed(Mutation::apply(&mut payload, random).name());
    }
    payload.truncate(longest(service));
    // Never ask for a shutdown. The flags may be cut off: the packet's padding would be read as flags.
    if service == Service::Shutdown && payload.len().next_multiple_of(8) > SHUTDOWN_FLAGS {
        payload.resize(payload.len().max(SHUTDOWN_FLAGS + 1), 0);
        payload[SHUTDOWN_FLAGS] |= NO_SHUTDOWN;
    }
    let mut packet = Packet {
        transaction_id: random.any(),
        ..Packet::inband(payload)
    };
    if random.one_in(16) {
        tally.changed("packet type");
        packet.kind = random.of(&[0, 1, 7, 8, 9, 11, 0xffff]);
    }
    if random.one_in(16) {
        tally.changed("packet flags");
        packet.flags = random.of(&[1, 2, 0xffff]);
    }
    tally.sent += 1;
    Ok(packet)
}

/// The minimum and the maximum number of replies to a packet.
fn replies_to(packet: &Packet) -> (u32, u32) {
    let length = packet.payload.len();
    if packet.kind != DATA_INBAND || length.next_multiple_of(8) < BODY {
        return (0, 0);
    }
    let flags = packet.payload.get(BODY - 3).copied().unwrap_or(0);
    let is_request = length >= BODY && flags & (REQUEST | RESPONSE) == REQUEST;
    (u32::from(is_request), 1)
}

/// Whether the module reads a packet as a negotiation. A host that negotiates expects no replies to earlier requests.
fn negotiates(packet: &Packet) -> bool {
    let mut payload = packet.payload.clone();
    payload.resize(payload.len().max(BODY), 0);
    Message::parse(&payload).is_some_and(|message| message.kind == NEGOTIATE)
}

/// The packets with outstanding replies.
struct Due<'a> {
    t: &'a Context<'a>,
    service: Service,
    /// For each transaction, the minimum and the maximum number of replies.
    due: BTreeMap<u64, (u32, u32)>,
}

impl Due<'_> {
    /// Receives replies until no further reply must come.
    fn take_all(&mut self, tally: &mut Tally) -> Result<()> {
        while self.due.values().any(|(least, _)| *least > 0) {
            let missing = |error| format!("{}: {:x?}: {error}", self.service, self.due);
            let packet = self
                .t
                .channel(self.service)
                .receive_packet()
                .map_err(missing)?;
            self.take(&packet, tally)?;
        }
        Ok(())
    }

    /// Counts a reply. Fails if it is not outstanding.
    fn take(&mut self, packet: &Packet, tally: &mut Tally) -> Result<()> {
        let service = self.service;
        let id = packet.transaction_id;
        let (least, most) = self
            .due
            .get_mut(&id)
            .ok_or_else(|| format!("{service}: a reply to transaction {id:#x}, which is none"))?;
        if *most == 0 {
            return Err(format!("{service}: a reply too many to transaction {id:#x}").into());
        }
        (*least, *most) = (0, 0);
        tally.answer(packet);
        Ok(())
    }
}

/// Sends `count` random packets to a service, `batch` at a time, and checks the replies. Negotiates before and after.
fn rounds(
    t: &Context<'_>,
    service: Service,
    random: &mut Random,
    (count, batch): (u64, u64),
    tally: &mut Tally,
) -> Result<()> {
    let channel = t.channel(service);
    channel.configure(|device| device.set_tolerant(true))?;
    tally.agreed(channel.negotiate_all()?.message);
    for _ in 0..count / batch {
        let mut due = Due {
            t,
            service,
            due: BTreeMap::new(),
        };
        let mut packets = Vec::new();
        for _ in 0..batch {
            let packet = packet(t, service, random, tally)?;
            if negotiates(&packet) && !AT_ONCE.contains(&service) {
                channel.send_packets(std::mem::take(&mut packets))?;
                due.take_all(tally)?;
            }
            due.due.insert(packet.transaction_id, replies_to(&packet));
            packets.push(packet);
        }
        channel.send_packets(packets)?;
        due.take_all(tally)?;
        // The last message is always answered.
        let last = random.any();
        due.due.insert(last, (1, 1));
        let end = Message::negotiation(service.framework_versions(), service.message_versions(), 0);
        channel.send_packet(Packet {
            transaction_id: last,
            ..Packet::inband(end.encode())
        })?;
        due.take_all(tally)?;
    }
    channel.expect_silence(Duration::from_millis(50))?;
    channel.negotiate_all().map(|_| ())
}

/// Checks that the service answers a harmless request once, and correctly.
fn works(t: &Context<'_>, service: Service) -> Result<()> {
    let channel = t.channel(service);
    channel.configure(|device| device.set_tolerant(false))?;
    channel.expect_silence(Duration::from_millis(10))?;
    channel.negotiate_all()?;
    channel.transact(&channel.request(harmless(t, service))?)?;
    channel.expect_silence(Duration::from_millis(10))
}

fn harmless(t: &Context<'_>, service: Service) -> Vec<u8> {
    match service {
        Service::Shutdown => shutdown::body(u32::from(NO_SHUTDOWN), ""),
        Service::TimeSync => timesync::body((4, 0), &t.moment(), timesync::SAMPLE),
        Service::Kvp => kvp::enumerate(kvp::AUTO, 0),
        Service::Vss => vss::body(vss::HOT_BACKUP),
        Service::FCopy => fcopy::end(fcopy::CANCEL),
        Service::Heartbeat | Service::Echo | Service::Socket => {
            heartbeat::body(7, heartbeat::RESERVED)
        }
    }
}

/// The host writes invalid descriptors, and random control words of the rings. The service may not work then, but the
/// guest survives. A rebind or a rescind makes the service work again.
fn rings(t: &Context<'_>) -> Result<()> {
    // Random bytes may be a request to shut down: the program does nothing.
    t.sh_ok(
        "printf '#!/bin/sh\\n' >/tmp/stay && chmod 755 /tmp/stay && mount -o bind /tmp/stay /bin/poweroff",
    )?;
    run(0.15, |random, tallies| {
        for service in AT_ONCE {
            let tally = tallies.entry(service).or_default();
            for _ in 0..ASSAULTS {
                assault(t, service, random, tally)?;
                recover(t, service, random)?;
                works(t, service)?;
            }
        }
        for (service, daemon) in WITH_DAEMON {
            daemon.start(t)?;
            t.channel(service).negotiate_all()?;
            let tally = tallies.entry(service).or_default();
            assault(t, service, random, tally)?;
            recover(t, service, random)?;
        }
        // The daemons have lost their devices, and would take long to exit by themselves.
        daemon::end(t)?;
        for (service, daemon) in WITH_DAEMON {
            daemon.start(t)?;
            works(t, service)?;
        }
        daemon::end(t)
    })?;
    // Drop the content of the corrupt rings.
    for &service in &t.config().services {
        t.channel(service).forget_surplus();
    }
    t.sh_ok("umount /bin/poweroff").map(|_| ())
}

/// Writes random packets, descriptors and control words to a channel.
fn assault(
    t: &Context<'_>,
    service: Service,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<()> {
    let channel = t.channel(service);
    channel.configure(|device| device.set_tolerant(true))?;
    let size = channel.ring_size()?;
    for _ in 0..1 + random.below(8) {
        if random.one_in(3) {
            let any = random.any() as u32;
            let value = random.of(&[
                0,
                1,
                4,
                8,
                24,
                size - 8,
                size,
                size + 8,
                2 * size,
                0x7fff_fff8,
                u32::MAX,
                any,
                (any % size) & !7,
            ]);
            tally.changed("ring");
            channel.set_control(random.one_in(2), random.of(&Word::ALL), value)?;
        }
        let packet = packet(t, service, random, tally)?;
        if random.one_in(2) {
            // The host's own control words may be corrupt: ignore errors.
            let _ = channel.try_send_packet(&packet)?;
        } else {
            let mut bytes = packet.encode();
            let length = bytes.len() as u16 / 8;
            // The fields for offset and length, in units of 8 bytes.
            for at in [2, 4] {
                if random.one_in(2) {
                    let any = random.any() as u16;
                    let value = random.of(&[
                        0,
                        1,
                        2,
                        3,
                        length - 1,
                        length,
                        length + 1,
                        length * 2,
                        0x7fff,
                        0xffff,
                        any,
                    ]);
                    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
                }
            }
            tally.changed("descriptor");
            channel.send_raw(&bytes)?;
        }
        if random.one_in(2) {
            channel.signal()?;
        }
    }
    channel.signal()?;
    std::thread::sleep(Duration::from_millis(5));
    Ok(())
}

/// Unbinds and binds the device, or rescinds and offers it.
fn recover(t: &Context<'_>, service: Service, random: &mut Random) -> Result<()> {
    let channel = t.channel(service);
    if random.one_in(2) {
        daemon::rebind(t, "unbind", service)?;
        channel.wait_closed()?;
        daemon::rebind(t, "bind", service)?;
    } else {
        channel.rescind()?;
        channel.wait_released()?;
        channel.reoffer()?;
    }
    channel.wait_open()
}

/// Programs in the guest do random things to the devices while the host sends valid requests. Each request gets one
/// reply. The distribution's daemons work afterwards.
fn devices(t: &Context<'_>) -> Result<()> {
    run(0.2, |random, tallies| {
        let seed = random.any();
        t.sh_ok(&format!(
            "rm -f /tmp/fuzz; (/selftests/hv_utils/fuzz 600 {seed} >/tmp/fuzz 2>&1; echo status $? >>/tmp/fuzz) &"
        ))?;
        for (service, _) in WITH_DAEMON {
            let agreed = t.channel(service).negotiate_all()?.message;
            tallies.entry(service).or_default().agreed(agreed);
        }
        for _ in 0..REQUESTS {
            let mut requests = Vec::new();
            for (service, _) in WITH_DAEMON {
                let channel = t.channel(service);
                let request = channel.request(fuzz::body(service, &t.moment(), random))?;
                channel.send(&request)?;
                requests.push((service, request));
            }
            for (service, request) in requests {
                let packet = t.channel(service).receive_packet()?;
                let reply = frame::check_reply(&packet.payload, request.transaction_id)
                    .map_err(|rejection| format!("{service}: {rejection}"))?;
                t.equal("type of the reply", reply.kind, request.kind)?;
                let tally = tallies.entry(service).or_default();
                tally.sent += 1;
                tally.answer(&packet);
            }
        }
        for (service, _) in WITH_DAEMON {
            t.channel(service)
                .expect_silence(Duration::from_millis(50))?;
        }
        // The signal ends the program, which then prints its result. Ignore errors: its children may be gone.
        t.sh("killall -INT fuzz")?;
        daemon::wait_for(t, "grep -q ^status /tmp/fuzz")?;
        let said = t.sh_ok("cat /tmp/fuzz")?;
        t.check(said.ends_with("status 0"), &format!("fuzz passes: {said}"))?;
        println!("# {}", said.replace('\n', "\n#   "));
        for (service, daemon) in WITH_DAEMON {
            daemon.start(t)?;
            works(t, service)?;
        }
        daemon::end(t)
    })
}
