// SPDX-License-Identifier: GPL-2.0

//! The bus against a guest made of bytes: what it answers, and that nothing the guest sends upsets it.

use std::sync::Arc;
use std::sync::Mutex;

use super::bus::Bus;
use super::bus::Connection;
use super::bus::STATUS_UNSUCCESSFUL;
use super::packet::Packet;
use crate::bytes::u32_at;
use crate::bytes::u8_at;
use crate::hypercall::Status;
use crate::ic::device::State;
use crate::ic::frame::Message;
use crate::memory::GuestMemory;
use crate::ring::Ring;
use crate::service::Service;
use crate::service::Version;
use crate::synic::Hypervisor;
use crate::transcript::Speaker;

/// What reached the guest.
#[derive(Default)]
struct Seen {
    messages: Vec<(u32, Vec<u8>)>,
    events: Vec<(u32, u32)>,
    /// For which the last message was.
    sint: u32,
    /// The guest does not take its messages.
    congested: bool,
    /// How many messages were forgotten.
    forgotten: usize,
}

struct Fake(Arc<Mutex<Seen>>);

impl Hypervisor for Fake {
    fn post_message(&mut self, vp: u32, sint: u32, payload: &[u8]) {
        let mut seen = self.0.lock().unwrap();
        seen.messages.push((vp, payload.to_vec()));
        seen.sint = sint;
    }

    fn is_congested(&self) -> bool {
        self.0.lock().unwrap().congested
    }

    fn signal_event(&mut self, vp: u32, flag: u32) {
        self.0.lock().unwrap().events.push((vp, flag));
    }

    fn processors(&self) -> u32 {
        2
    }

    fn reference_time(&self) -> u64 {
        7
    }

    fn forget_messages(&mut self) {
        let mut seen = self.0.lock().unwrap();
        seen.forgotten += seen.messages.len();
        seen.messages.clear();
        seen.congested = false;
    }
}

/// The guest: it has its rings in pages 16 to 19 (to the host) and 20 to 23 (from it).
struct TestGuest {
    memory: Arc<GuestMemory>,
    bus: Bus,
    seen: Arc<Mutex<Seen>>,
}

const GPADL: u32 = 0xe1e10;
const UP: [u64; 4] = [16, 17, 18, 19];
const DOWN: [u64; 4] = [20, 21, 22, 23];

impl TestGuest {
    fn new(max_version: Version) -> Self {
        let memory = Arc::new(GuestMemory::new(2 << 20).unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let services = [Service::Heartbeat, Service::TimeSync];
        let bus = Bus::new(
            memory.clone(),
            Box::new(Fake(seen.clone())),
            max_version,
            &services,
        );
        Self { memory, bus, seen }
    }

    /// Posts a message and gives the types of those that came back.
    fn post(&mut self, kind: u32, words: &[u32]) -> Vec<u32> {
        let mut bytes: Vec<u8> = [kind, 0]
            .iter()
            .chain(words)
            .flat_map(|word| word.to_le_bytes())
            .collect();
        if kind == 5 {
            bytes.resize(148, 0);
        }
        self.post_to(1, &bytes)
    }

    fn post_to(&mut self, connection: u32, bytes: &[u8]) -> Vec<u32> {
        let sent = |seen: &Seen| seen.forgotten + seen.messages.len();
        let before = sent(&self.seen.lock().unwrap());
        assert_eq!(self.bus.post(connection, 1, bytes), Status::Success);
        let seen = self.seen.lock().unwrap();
        seen.messages[before.saturating_sub(seen.forgotten)..]
            .iter()
            .map(|(_, message)| u32_at(message, 0).unwrap())
            .collect()
    }

    fn last(&self) -> Vec<u8> {
        self.seen.lock().unwrap().messages.last().unwrap().1.clone()
    }

    /// Asks for a version by a connection; the fields behind it are those of the message.
    fn contact_by(&mut self, connection: u32, version: u32, fields: [u32; 7]) -> Vec<u32> {
        let words = [14, 0, version].into_iter().chain(fields);
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        self.post_to(connection, &bytes)
    }

    fn contact(&mut self, major: u32, minor: u32) -> bool {
        assert_eq!(
            self.post(14, &[major << 16 | minor, 1, 2, 0, 0, 0, 0, 0]),
            [15]
        );
        u8_at(&self.last(), 8) == Some(1)
    }

    /// Connects, asks for the offers, makes the rings known and opens heartbeat's channel for processor 1.
    fn open(&mut self) {
        assert!(self.contact(4, 0));
        assert_eq!(self.post(3, &[]), [1, 1, 4]);
        assert_eq!(self.gpadl(), [10]);
        assert_eq!(self.post(5, &[1, 9, GPADL, 1, 4]), [6]);
        assert_eq!(u32_at(&self.last(), 16), Some(0));
    }

    /// The GPADL in a header with five pages and a body with three.
    fn gpadl(&mut self) -> Vec<u32> {
        let mut header = vec![1, GPADL, 1 << 16 | 72, 8 * 4096, 0];
        let words = |pages: &[u64]| {
            pages
                .iter()
                .flat_map(|page| [*page as u32, 0])
                .collect::<Vec<_>>()
        };
        header.extend(words(&UP));
        header.extend(words(&DOWN[..1]));
        assert_eq!(self.post(8, &header), [0u32; 0]);
        let mut body = vec![1, GPADL];
        body.extend(words(&DOWN[1..]));
        self.post(9, &body)
    }

    fn rings(&self) -> (Ring, Ring) {
        let ring = |pages: &[u64]| Ring::new(self.memory.clone(), pages).unwrap();
        (ring(&UP), ring(&DOWN))
    }

    fn errors(&self) -> usize {
        self.bus
            .transcript()
            .entries()
            .iter()
            .filter(|entry| entry.speaker == Speaker::Error)
            .count()
    }
}

#[test]
fn versions_are_known_up_to_the_maximum() {
    let mut guest = TestGuest::new((5, 0));
    assert!(!guest.contact(6, 0));
    assert!(!guest.contact(5, 3));
    assert!(!guest.contact(1, 1));
    assert!(!guest.contact(4, 7));
    assert_eq!(guest.bus.connection(), Connection::Disconnected);
    assert!(guest.contact(5, 0));
    // The response goes to the processor that the guest named, and names the connection for what follows.
    assert_eq!(guest.seen.lock().unwrap().messages.last().unwrap().0, 1);
    assert_eq!(u32_at(&guest.last(), 12), Some(1));
    let mut guest = TestGuest::new((4, 0));
    assert!(guest.contact(4, 0));
    assert_eq!(u32_at(&guest.last(), 12), Some(0x4_0000));
}

#[test]
fn a_contact_is_for_a_processor_and_one_receiver() {
    let mut guest = TestGuest::new((6, 0));
    // A processor that is not there; one monitor page of two.
    for fields in [[9, 2, 0, 0, 0, 0, 0], [1, 2, 0, 0x1000, 0, 0, 0]] {
        assert_eq!(guest.contact_by(4, 0x6_0000, fields), [15]);
        assert_eq!(guest.last()[8..10], [1, 2], "known, but failed");
        assert_eq!(guest.bus.connection(), Connection::Disconnected);
    }
    // By the fourth connection a guest says which SINT it means, and from 5.1 on which VTL.
    let answered = &[15][..];
    for (version, receiver, answer) in [
        (0x5_0000, 3, answered),
        (0x6_0000, 3, answered),
        (0x5_0001, 2 | 1 << 8, &[]),
        (0x5_0001, 3 | 1 << 8, &[]),
    ] {
        let fields = [1, receiver, 0, 0, 0, 0, 0];
        assert_eq!(guest.contact_by(4, version, fields), answer);
        if answer == answered {
            let seen = guest.seen.lock().unwrap();
            let (vp, response) = seen.messages.last().unwrap();
            assert_eq!((*vp, seen.sint), (1, 3), "to who asked");
            assert_eq!((response.len(), response[8]), (16, 0), "unsupported");
        }
        assert_eq!(guest.contact_by(1, version, fields), [15]);
        assert_eq!(guest.last()[8..10], [1, 0]);
        assert_eq!(guest.seen.lock().unwrap().sint, 2);
    }
    assert_eq!(
        guest.contact_by(4, 0x6_0000, [1, 2, 0, 0x1000, 0, 0x2000, 0]),
        [15]
    );
    assert_eq!(guest.last()[8..10], [1, 0]);
}

#[test]
fn messages_can_be_refused() {
    let mut guest = TestGuest::new((6, 0));
    assert!(guest.contact(4, 0));
    guest.bus.refuse_closes(Service::Heartbeat, 1);
    // Others are taken, of any kind or channel.
    assert_eq!(guest.post(3, &[]), [1, 1, 4]);
    guest.post(7, &[2]);
    assert_eq!(guest.bus.refused_closes(), 1);
    let close = [7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!(guest.bus.post(1, 1, &close), Status::InsufficientBuffers);
    assert_eq!(guest.bus.refused_closes(), 0);
    assert_eq!(guest.bus.post(1, 1, &close), Status::Success);
}

#[test]
fn a_guest_that_takes_no_messages_posts_none() {
    let mut guest = TestGuest::new((6, 0));
    assert!(guest.contact(4, 0));
    guest.seen.lock().unwrap().congested = true;
    let offers = [3, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(guest.bus.post(1, 1, &offers), Status::InsufficientBuffers);
    guest.seen.lock().unwrap().congested = false;
    assert_eq!(guest.post(3, &[]), [1, 1, 4]);
    // Nor did one that has crashed.
    guest.seen.lock().unwrap().congested = true;
    assert!(guest.contact(4, 0));
    assert_eq!(guest.seen.lock().unwrap().messages.len(), 1);
    assert_eq!(guest.post(3, &[]), [1, 1, 4]);
    // What is refused leaves no more than one answer either.
    for _ in 0..2 {
        guest.seen.lock().unwrap().congested = true;
        assert!(!guest.contact(9, 0));
        assert_eq!(guest.seen.lock().unwrap().messages.len(), 1);
    }
}

#[test]
fn an_old_host_has_no_connection_4() {
    let contact: Vec<u8> = [14u32, 0, 0x60000, 0, 2, 0, 0, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    let mut guest = TestGuest::new((4, 1));
    assert_eq!(guest.bus.post(4, 1, &contact), Status::InvalidConnectionId);
    assert_eq!(guest.bus.post(3, 1, &contact), Status::InvalidConnectionId);
    let mut guest = TestGuest::new((5, 0));
    assert_eq!(guest.bus.post(4, 1, &contact), Status::Success);
}

#[test]
fn a_device_talks_before_the_open_result() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    let entries: Vec<String> = guest
        .bus
        .transcript()
        .entries()
        .iter()
        .map(|entry| entry.normalised())
        .collect();
    let at = |text: &str| {
        entries
            .iter()
            .position(|entry| entry.contains(text))
            .unwrap()
    };
    assert!(at("negotiate request") < at("OPENCHANNEL_RESULT"));
    assert_eq!(guest.seen.lock().unwrap().events, [(1, 1)]);
    let (packet, _) = guest.rings().1.read().unwrap();
    let packet = Packet::decode(&packet).unwrap();
    assert_eq!(
        (packet.kind, packet.flags, packet.transaction_id),
        (6, 0, 0)
    );
}

#[test]
fn a_service_negotiates_and_beats_through_the_rings() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    let (up, down) = guest.rings();
    let read = || Packet::decode(&down.read().unwrap().0).unwrap();
    let mut reply = Message::negotiation(
        &[(3, 0)],
        &[(3, 0)],
        Message::parse(&read().payload).unwrap().transaction_id,
    );
    reply = reply.reply(0);
    assert!(up.write(&Packet::inband(reply.encode()).encode()).unwrap());
    assert_eq!(guest.bus.signal(0x1_0001, 0), Status::Success);
    let beat = Message::parse(&read().payload).unwrap();
    assert_eq!((beat.kind, beat.version), (1, (3, 0)));
    assert!(matches!(
        guest
            .bus
            .channel(Service::Heartbeat)
            .unwrap()
            .device()
            .state(),
        State::Waiting { .. }
    ));
    // A flag that the port has not, a connection that nobody has, and one whose channel is closed.
    assert_eq!(guest.bus.signal(0x1_0001, 1), Status::InvalidParameter);
    assert_eq!(guest.bus.signal(0x1_0077, 0), Status::InvalidConnectionId);
    assert_eq!(guest.bus.signal(0x1_0002, 0), Status::InvalidConnectionId);
    // The connection that channels shared before they had their own.
    assert_eq!(guest.bus.signal(2, 0), Status::InvalidConnectionId);
}

#[test]
fn an_unread_ring_is_signalled_again() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    assert!(guest.bus.due().is_some());
    std::thread::sleep(super::open::UNREAD_AFTER_OPEN);
    guest.bus.tick();
    assert_eq!(guest.seen.lock().unwrap().events, [(1, 1), (1, 1)]);
    std::thread::sleep(super::open::UNREAD_AFTER_OPEN);
    guest.bus.tick();
    assert_eq!(guest.seen.lock().unwrap().events.len(), 2);
}

#[test]
fn a_masked_ring_is_not_signalled_again_but_room_is_told() {
    for (pending, events) in [(0, 1), (64, 2)] {
        let mut guest = TestGuest::new((6, 0));
        guest.open();
        guest.memory.store_u32(DOWN[0] * 4096 + 8, 1).unwrap();
        guest.memory.store_u32(UP[0] * 4096 + 12, pending).unwrap();
        std::thread::sleep(super::open::UNREAD_AFTER_OPEN);
        guest.bus.tick();
        assert_eq!(guest.seen.lock().unwrap().events.len(), events);
    }
}

#[test]
fn the_ring_is_masked_while_the_host_waits_for_nothing() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    let masked = |guest: &TestGuest| guest.memory.load_u32(UP[0] * 4096 + 8).unwrap() != 0;
    assert!(!masked(&guest), "it waits for the negotiation's reply");
    guest.bus.with_device(Service::Heartbeat, |device, _| {
        device.script();
        device.set_reading(false);
    });
    assert!(masked(&guest));
    let (up, down) = guest.rings();
    let reply = down.read().unwrap().0;
    assert!(!up.write(&reply).unwrap(), "no signal while it is masked");
    let received = |guest: &mut TestGuest, reading: bool| {
        guest
            .bus
            .with_device(Service::Heartbeat, |device, _| device.set_reading(reading));
        guest
            .bus
            .channel(Service::Heartbeat)
            .unwrap()
            .device()
            .received_count()
    };
    assert_eq!(received(&mut guest, true), 1);
    assert!(!masked(&guest));
}

#[test]
fn a_packet_of_another_type_ends_the_service() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    let (up, down) = guest.rings();
    let mut packet = Packet::decode(&down.read().unwrap().0).unwrap();
    packet.kind = 7;
    up.write(&packet.encode()).unwrap();
    guest.bus.signal(0x1_0001, 0);
    assert_eq!(state(&guest), State::Dead("packet of type 7".to_owned()));
    assert_eq!(guest.errors(), 1);
    // Nothing more is read, nor is the guest to tell.
    assert!(!up.write(&packet.encode()).unwrap());
    guest.bus.signal(0x1_0001, 0);
    assert!(up.used().unwrap() > 0);
}

/// The state of heartbeat's device.
fn state(guest: &TestGuest) -> State {
    let channel = guest.bus.channel(Service::Heartbeat).unwrap();
    channel.device().state().clone()
}

#[test]
fn a_guest_that_masks_the_hosts_interrupts_ends_the_service() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    assert_eq!(state(&guest), State::Negotiating);
    guest.memory.store_u32(UP[0] * 4096 + 8, 1).unwrap();
    guest.bus.signal(0x1_0001, 0);
    assert!(matches!(state(&guest), State::Dead(_)));
}

#[test]
fn a_ring_that_cannot_be_written_ends_the_service() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    let (up, down) = guest.rings();
    let request = Packet::decode(&down.read().unwrap().0).unwrap();
    let reply = Message::parse(&request.payload).unwrap();
    let mut reply = Message::negotiation(&[(3, 0)], &[(3, 0)], reply.transaction_id);
    reply = reply.reply(0);
    up.write(&Packet::inband(reply.encode()).encode()).unwrap();
    down.set_read_index(4).unwrap();
    // It would beat now.
    guest.bus.signal(0x1_0001, 0);
    assert_eq!(
        state(&guest),
        State::Dead("ring index 4 is impossible".to_owned())
    );
    assert_eq!(guest.errors(), 1);
}

#[test]
fn a_guest_that_writes_all_the_time_does_not_keep_the_host() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    guest
        .bus
        .with_device(Service::Heartbeat, |device, _| device.script());
    let received = |guest: &TestGuest| {
        let channel = guest.bus.channel(Service::Heartbeat).unwrap();
        channel.device().received_count()
    };
    // A ring full of the smallest packets.
    let (up, _) = guest.rings();
    let smallest = up.most_packets() as usize;
    let packet = Packet::inband(vec![1, 0, 0, 0, 0, 0, 0, 0]).encode();
    let mut total = 0;
    while up.write(&packet).is_ok() {
        total += 1;
    }
    assert!(total < smallest);
    // Another processor writes whenever there is room.
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                let _ = up.write(&packet);
            }
        }
    });
    // Others have their turn at times, and at some time as much waits as may.
    let mut before = 0;
    while before < 4096 {
        guest.bus.signal(0x1_0001, 0);
        let now = received(&guest);
        assert!(now - before <= smallest);
        before = now;
    }
    guest.bus.signal(0x1_0001, 0);
    assert_eq!(received(&guest), 4096);
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    writer.join().unwrap();
}

#[test]
fn a_channel_has_so_many_gpadls() {
    let mut guest = TestGuest::new((6, 0));
    assert!(guest.contact(4, 0));
    guest.post(3, &[]);
    for handle in 1..=257 {
        let header = [1, handle, 1 << 16 | 16, 4096, 0, 16, 0];
        assert_eq!(guest.post(8, &header), [10]);
        let failed = u32_at(&guest.last(), 16) != Some(0);
        assert_eq!(failed, handle == 257);
    }
}

#[test]
fn offers_come_by_class() {
    let memory = Arc::new(GuestMemory::new(2 << 20).unwrap());
    let seen = Arc::new(Mutex::new(Seen::default()));
    let services = [Service::Heartbeat, Service::Shutdown];
    let fake = Box::new(Fake(seen.clone()));
    let bus = Bus::new(memory.clone(), fake, (6, 0), &services);
    let mut guest = TestGuest { memory, bus, seen };
    assert!(guest.contact(4, 0));
    assert_eq!(guest.post(3, &[]), [1, 1, 4]);
    let relid = |service| guest.bus.channel(service).unwrap().relid();
    assert_eq!(relid(Service::Shutdown), Some(1));
    assert_eq!(relid(Service::Heartbeat), Some(2));
}

#[test]
fn a_snapshot_keeps_what_is_unplugged() {
    let mut guest = TestGuest::new((6, 0));
    assert!(guest.contact(4, 0));
    guest.post(3, &[]);
    guest.bus.rescind(Service::TimeSync).unwrap();
    guest.post(13, &[2]);
    let state = guest.bus.state().unwrap();
    guest.bus.reoffer(Service::TimeSync).unwrap();
    let fake = Box::new(Fake(guest.seen.clone()));
    guest.bus.set_state(&state, fake);
    assert!(
        guest.bus.reoffer(Service::TimeSync).is_ok(),
        "it was unplugged"
    );
}

#[test]
fn channels_are_closed_torn_down_and_opened_again() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    assert_eq!(guest.post(7, &[1]), [0u32; 0]);
    assert_eq!(guest.post(11, &[1, GPADL]), [12]);
    assert_eq!(guest.errors(), 0);
    assert_eq!(guest.gpadl(), [10]);
    assert_eq!(guest.post(5, &[1, 9, GPADL, 1, 4]), [6]);
    assert_eq!(guest.bus.channel(Service::Heartbeat).unwrap().opens(), 2);
    assert_eq!(guest.post(5, &[1, 9, GPADL, 1, 4]), [0u32; 0], "it is open");
    guest.post(7, &[1]);
    assert_eq!(guest.errors(), 1);
    guest.post(7, &[1]);
    assert_eq!(guest.errors(), 2, "it is closed");
}

#[test]
fn a_teardown_waits_for_the_close() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    assert_eq!(guest.post(11, &[1, GPADL]), [0u32; 0], "rings are in use");
    assert_eq!(guest.post(11, &[1, GPADL]), [0u32; 0]);
    assert_eq!(guest.post(7, &[1]), [12]);
    assert_eq!(guest.post(11, &[1, GPADL]), [0u32; 0], "it is gone");
    assert_eq!(guest.errors(), 3);
    guest.gpadl();
    guest.post(5, &[1, 9, GPADL, 1, 4]);
    guest.post(11, &[1, GPADL]);
    guest.bus.rescind(Service::Heartbeat).unwrap();
    let seen = guest.seen.lock().unwrap();
    let last: Vec<_> = seen.messages.iter().rev().take(2).collect();
    let kinds = last.iter().map(|(_, bytes)| bytes[0]);
    assert_eq!(kinds.collect::<Vec<_>>(), [2, 12]);
}

#[test]
fn gpadls_are_each_channels_own() {
    let mut guest = TestGuest::new((6, 0));
    assert!(guest.contact(4, 0));
    guest.post(3, &[]);
    let header = |relid| [relid, GPADL, 1 << 16 | 16, 4096, 0, 16, 0];
    assert_eq!(guest.post(8, &header(1)), [10]);
    assert_eq!(guest.post(8, &header(2)), [10]);
    assert_eq!(u32_at(&guest.last(), 16), Some(0));
    for (relid, what) in [(1, "a handle taken"), (9, "a channel unknown")] {
        assert_eq!(guest.post(8, &header(relid)), [10], "{what}");
        assert_eq!(u32_at(&guest.last(), 16), Some(STATUS_UNSUCCESSFUL));
    }
    // Bytes that the page has not.
    assert_eq!(guest.post(8, &[1, 5, 1 << 16 | 16, 4097, 0, 16, 0]), [10]);
    assert_eq!(u32_at(&guest.last(), 16), Some(STATUS_UNSUCCESSFUL));
    assert_eq!(guest.post(11, &[1, 5]), [0u32; 0], "it never was");
    // No range at all.
    assert_eq!(guest.post(8, &[1, 5, 0]), [10]);
    assert_eq!(u32_at(&guest.last(), 16), Some(0));
    // Incomplete ones cannot be torn down, and fail when they are complete after a rescind.
    assert_eq!(
        guest.post(8, &[2, 6, 1 << 16 | 24, 8192, 0, 16, 0]),
        [0u32; 0]
    );
    assert_eq!(guest.post(11, &[2, 6]), [0u32; 0]);
    guest.bus.rescind(Service::TimeSync).unwrap();
    assert_eq!(guest.post(9, &[1, 6, 17, 0]), [10]);
    assert_eq!(u32_at(&guest.last(), 16), Some(STATUS_UNSUCCESSFUL));
    assert_eq!(guest.post(11, &[2, GPADL]), [12]);
    assert_eq!(guest.post(11, &[1, GPADL]), [12]);
}

#[test]
fn impossible_opens_fail() {
    let mut guest = TestGuest::new((6, 0));
    assert!(guest.contact(4, 0));
    guest.post(3, &[]);
    guest.gpadl();
    // Another GPADL, no page for a ring, another processor.
    for words in [
        [1, 9, 5, 0, 4],
        [1, 9, GPADL, 0, 7],
        [1, 9, GPADL, 0, 0],
        [1, 9, GPADL, 0, 99],
        [1, 9, GPADL, 2, 4],
    ] {
        assert_eq!(guest.post(5, &words), [6], "{words:?}");
        assert_eq!(
            u32_at(&guest.last(), 16),
            Some(STATUS_UNSUCCESSFUL),
            "{words:?}"
        );
    }
    // Pages that are no memory, which nobody has looked for before.
    let far = [
        1,
        5,
        1 << 16 | 40,
        4 * 4096,
        0,
        16,
        0,
        17,
        0,
        20,
        0,
        1 << 20,
        0,
    ];
    assert_eq!(guest.post(8, &far), [10]);
    assert_eq!(u32_at(&guest.last(), 16), Some(0));
    guest.post(5, &[1, 9, 5, 0, 2]);
    assert_eq!(u32_at(&guest.last(), 16), Some(STATUS_UNSUCCESSFUL));
    // Rings whose indices are impossible from the beginning.
    for ring in [&UP, &DOWN] {
        let control = ring[0] * 4096;
        guest.memory.store_u32(control, 4).unwrap();
        guest.post(5, &[1, 9, GPADL, 0, 4]);
        assert_eq!(u32_at(&guest.last(), 16), Some(STATUS_UNSUCCESSFUL));
        guest.memory.store_u32(control, 0).unwrap();
    }
    guest.bus.fail_opens(Service::Heartbeat, 1, 0xc000_0022);
    guest.post(5, &[1, 9, GPADL, 0, 4]);
    assert_eq!(u32_at(&guest.last(), 16), Some(0xc000_0022));
    guest.post(5, &[1, 9, GPADL, 0, 4]);
    assert_eq!(u32_at(&guest.last(), 16), Some(0));
}

#[test]
fn a_rescinded_channel_keeps_its_number_until_released() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    guest.bus.rescind(Service::Heartbeat).unwrap();
    assert_eq!(u32_at(&guest.last(), 0), Some(2));
    assert!(guest.bus.rescind(Service::Heartbeat).is_err());
    assert!(guest.bus.has_unreleased());
    assert_eq!(guest.post(5, &[1, 9, GPADL, 0, 4]), [0u32; 0]);
    assert_eq!(guest.post(7, &[1]), [0u32; 0]);
    assert_eq!(guest.post(11, &[1, GPADL]), [12]);
    assert_eq!(guest.post(13, &[1]), [0u32; 0]);
    assert!(!guest.bus.has_unreleased());
    guest.bus.reoffer(Service::Heartbeat).unwrap();
    assert_eq!(u32_at(&guest.last(), 0), Some(1));
    assert_eq!(u32_at(&guest.last(), 184), Some(1), "the number is free");
    assert_eq!(guest.errors(), 0);
}

#[test]
fn a_new_offer_waits_for_the_old_ones_release() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    guest.bus.rescind(Service::Heartbeat).unwrap();
    guest.bus.reoffer(Service::Heartbeat).unwrap();
    assert_eq!(
        u32_at(&guest.last(), 0),
        Some(2),
        "nothing after the rescind"
    );
    assert!(guest.bus.has_unreleased());
    guest.bus.rescind(Service::Heartbeat).unwrap();
    guest.bus.reoffer(Service::Heartbeat).unwrap();
    assert_eq!(u32_at(&guest.last(), 0), Some(2), "nor for one unseen");
    assert_eq!(guest.post(7, &[1]), [0u32; 0]);
    assert_eq!(guest.post(11, &[1, GPADL]), [12]);
    assert_eq!(guest.post(13, &[1]), [1]);
    assert_eq!(u32_at(&guest.last(), 184), Some(1));
    assert!(!guest.bus.has_unreleased());
    assert_eq!(guest.gpadl(), [10]);
    assert_eq!(guest.post(5, &[1, 9, GPADL, 1, 4]), [6]);
    assert_eq!(guest.errors(), 0);
}

#[test]
fn a_guest_may_release_what_was_not_rescinded() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    guest.post(13, &[1]);
    assert_eq!(guest.errors(), 1, "but not while it is open");
    guest.post(7, &[1]);
    assert_eq!(guest.post(13, &[1]), [0u32; 0]);
    assert_eq!(guest.errors(), 1);
    // Its number is nobody's, and the GPADL went with it.
    for (kind, words) in [(5, [1, 9, GPADL, 1, 4]), (11, [1, GPADL, 0, 0, 0])] {
        assert_eq!(guest.post(kind, &words), [0u32; 0]);
    }
    guest.post(13, &[1]);
    assert_eq!(guest.errors(), 4);
    // The next connection has it again.
    guest.open();
}

#[test]
fn channels_move_and_say_so_from_5_3_on() {
    for (version, answer) in [((4, 0), &[][..]), ((4, 1), &[]), ((5, 3), &[24])] {
        let mut guest = TestGuest::new((6, 0));
        assert!(guest.contact(version.0, version.1));
        guest.post(3, &[]);
        guest.gpadl();
        guest.post(5, &[1, 9, GPADL, 1, 4]);
        assert_eq!(guest.post(22, &[1, 0]), answer);
        let open = guest.bus.channel(Service::Heartbeat).unwrap().open();
        let expected = if version == (4, 0) { 1 } else { 0 };
        assert_eq!(open.unwrap().target_vp(), expected, "{version:?}");
        // A processor that is not there, none at all, a channel that is not open.
        for (words, ok) in [([1, 9], false), ([1, u32::MAX], true), ([2, 0], false)] {
            assert_eq!(guest.post(22, &words), answer);
            if version == (5, 3) {
                let status = u32_at(&guest.last(), 12).unwrap();
                assert_eq!(status == 0, ok, "{words:?}");
            }
        }
    }
}

#[test]
fn unload_and_contact_begin_anew() {
    let mut guest = TestGuest::new((6, 0));
    guest.open();
    assert_eq!(guest.post(16, &[]), [17]);
    assert_eq!(guest.bus.connection(), Connection::Disconnected);
    guest.open();
    assert!(guest.contact(4, 0), "as after a crash");
    assert!(guest
        .bus
        .channel(Service::Heartbeat)
        .unwrap()
        .open()
        .is_none());
    guest.post(3, &[]);
    assert_eq!(guest.gpadl(), [10]);
}

#[test]
fn whatever_comes_is_survived() {
    // All types, with words that are often valid, in every state; a plain generator, so that a failure comes again.
    let mut random = 1u64;
    let mut next = move || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as u32
    };
    for round in 0..50 {
        let mut guest = TestGuest::new((6, 0));
        if round % 2 == 0 {
            guest.open();
        }
        for _ in 0..200 {
            let choices = [0, 1, 2, 4, 9, GPADL, 4096, 1 << 16 | 72, u32::MAX, next()];
            let words: Vec<u32> = (0..next() % 12)
                .map(|_| choices[next() as usize % choices.len()])
                .collect();
            guest.post(next() % 26, &words);
            guest.bus.signal(0x1_0001 + next() % 3, 0);
            guest.bus.tick();
        }
        assert!(guest.errors() > 0);
    }
}

/// The instance that the last message, an offer, names.
fn offered_instance(guest: &TestGuest) -> Vec<u8> {
    assert_eq!(u32_at(&guest.last(), 0), Some(1));
    guest.last()[24..40].to_vec()
}

#[test]
fn a_class_may_have_a_second_device() {
    let service = Service::Heartbeat;
    let other = Service::Echo.instance();
    let mut guest = TestGuest::new((4, 0));
    guest.open();
    guest.bus.offer_second(service, other);
    assert_eq!(offered_instance(&guest), other.0);
    assert_eq!(guest.bus.second_opens(service), Some(0));
    // The first one goes on.
    assert!(guest.bus.channel(service).unwrap().open().is_some());
    guest.bus.rescind_second(service).unwrap();
    assert!(guest.bus.rescind_second(service).is_err());
    assert!(guest.bus.has_unreleased());
    assert_eq!(guest.post(13, &[3]), [0u32; 0]);
    assert_eq!(guest.bus.second_opens(service), None);
    assert!(guest.bus.channel(service).unwrap().open().is_some());

    // Made as new, there is one device, offered as itself again.
    guest.bus.offer_second(service, other);
    guest.bus.set_instance(service, other);
    guest.bus.renew(service);
    assert_eq!(guest.post(13, &[3]), [0u32; 0]);
    assert_eq!(guest.bus.second_opens(service), None);
    guest.bus.rescind(service).unwrap();
    assert_eq!(guest.post(13, &[1]), [0u32; 0]);
    guest.bus.reoffer(service).unwrap();
    assert_eq!(offered_instance(&guest), service.instance().0);

    // It takes the place of the first one, which is gone once it is released.
    guest.bus.offer_second(service, other);
    guest.bus.rescind(service).unwrap();
    guest.bus.swap_second(service).unwrap();
    assert_eq!(guest.bus.channel(service).unwrap().relid(), Some(3));
    assert_eq!(guest.bus.second_opens(service), Some(0));
    assert_eq!(guest.post(13, &[1]), [0u32; 0]);
    assert_eq!(guest.bus.second_opens(service), None);
    assert!(guest.bus.swap_second(service).is_err());

    // Nothing is left of one that was unplugged when the guest disconnects.
    guest.bus.offer_second(service, other);
    guest.bus.rescind_second(service).unwrap();
    guest.bus.reset();
    assert_eq!(guest.bus.second_opens(service), None);
    assert_eq!(guest.errors(), 0);
}
