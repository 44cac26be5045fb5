// SPDX-License-Identifier: GPL-2.0

//! A simulated guest for tests of the bus. It posts messages and keeps the host's messages.

use std::sync::Arc;
use std::sync::Mutex;

use super::bus::Bus;
use crate::bytes::u32_at;
use crate::bytes::u8_at;
use crate::hypercall::Status;
use crate::memory::GuestMemory;
use crate::ring::Ring;
use crate::service::Service;
use crate::service::Version;
use crate::synic::Hypervisor;
use crate::transcript::Speaker;

/// Messages and signals that the guest has received.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) messages: Vec<(u32, Vec<u8>)>,
    pub(super) events: Vec<(u32, u32)>,
    /// The SINT of the last message.
    pub(super) sint: u32,
    /// Whether the guest reads no messages.
    pub(super) congested: bool,
    /// The number of messages that the host dropped.
    pub(super) forgotten: usize,
}

/// A hypervisor that stores messages and signals.
pub(super) struct Fake(pub(super) Arc<Mutex<Seen>>);

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

/// The guest. Its rings are in pages 16 to 19 (guest-to-host) and 20 to 23 (host-to-guest).
pub(super) struct TestGuest {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) bus: Bus,
    pub(super) seen: Arc<Mutex<Seen>>,
}

/// The handle of the GPADL with the rings.
pub(super) const GPADL: u32 = 0xe1e10;
/// The pages of the guest-to-host ring.
pub(super) const UP: [u64; 4] = [16, 17, 18, 19];
/// The pages of the host-to-guest ring.
pub(super) const DOWN: [u64; 4] = [20, 21, 22, 23];

impl TestGuest {
    /// A guest without a connection. The bus speaks versions up to `max_version`.
    pub(super) fn new(max_version: Version) -> Self {
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

    /// Posts a message. Returns the types of the host's answers.
    pub(super) fn post(&mut self, kind: u32, words: &[u32]) -> Vec<u32> {
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

    /// Posts bytes to a connection id.
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

    /// The host's last message.
    pub(super) fn last(&self) -> Vec<u8> {
        self.seen.lock().unwrap().messages.last().unwrap().1.clone()
    }

    /// Starts a connection of a version, by a connection id. `fields` follow the version in the message.
    pub(super) fn contact_by(
        &mut self,
        connection: u32,
        version: u32,
        fields: [u32; 7],
    ) -> Vec<u32> {
        let words = [14, 0, version].into_iter().chain(fields);
        let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
        self.post_to(connection, &bytes)
    }

    /// Starts a connection of a version. Returns whether the host speaks the version.
    pub(super) fn contact(&mut self, major: u32, minor: u32) -> bool {
        assert_eq!(
            self.post(14, &[major << 16 | minor, 1, 2, 0, 0, 0, 0, 0]),
            [15]
        );
        u8_at(&self.last(), 8) == Some(1)
    }

    /// Connects, requests the offers, sends the GPADL, and opens heartbeat's channel for processor 1.
    pub(super) fn open(&mut self) {
        assert!(self.contact(4, 0));
        assert_eq!(self.post(3, &[]), [1, 1, 4]);
        assert_eq!(self.gpadl(), [10]);
        assert_eq!(self.post(5, &[1, 9, GPADL, 1, 4]), [6]);
        assert_eq!(u32_at(&self.last(), 16), Some(0));
    }

    /// Sends the GPADL of channel 1: a header with five pages and a body with three.
    pub(super) fn gpadl(&mut self) -> Vec<u32> {
        self.gpadl_of(1)
    }

    /// The same of any channel.
    pub(super) fn gpadl_of(&mut self, relid: u32) -> Vec<u32> {
        let mut header = vec![relid, GPADL, 1 << 16 | 72, 8 * 4096, 0];
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

    /// The guest's ends of the rings: guest-to-host, host-to-guest.
    pub(super) fn rings(&self) -> (Ring, Ring) {
        let ring = |pages: &[u64]| Ring::new(self.memory.clone(), pages).unwrap();
        (ring(&UP), ring(&DOWN))
    }

    /// The number of guest faults in the transcript.
    pub(super) fn errors(&self) -> usize {
        self.bus
            .transcript()
            .entries()
            .iter()
            .filter(|entry| entry.speaker == Speaker::Error)
            .count()
    }
}
