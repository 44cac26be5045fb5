// SPDX-License-Identifier: GPL-2.0

//! The bus: a connection, and a state machine for messages. The modules below handle each kind of message.
//!
//! Sources: `drivers/hv/{connection,channel,channel_mgmt}.c` for what a guest expects. Fact: how the host reacts to
//! unexpected messages, here and in the modules below. Any fault of the guest yields an error in the transcript and, if
//! the protocol has one, an answer with a failure.

mod channels;
mod contact;
mod faults;
mod gpadls;
mod offers;
mod record;
mod second;
mod sockets;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::channel::Channel;
use super::channel::Offered;
use super::gpadl::Gpadl;
use super::message;
use super::message::FromGuest;
use super::message::ToGuest;
use super::open::Link;
use super::open::OpenChannel;
use crate::hypercall::Status;
use crate::ic::device;
use crate::ic::device::Device;
use crate::memory::GuestMemory;
use crate::service::Service;
use crate::service::Version;
use crate::synic::Hypervisor;
use crate::synic::VMBUS_SINT;
use crate::transcript::Speaker;
use crate::transcript::Transcript;

/// The connection id for messages of all versions (`VMBUS_MESSAGE_CONNECTION_ID`).
const MESSAGES: u32 = 1;

/// The connection id for messages from 5.0 on (`VMBUS_MESSAGE_CONNECTION_ID_4`).
const MESSAGES_4: u32 = 4;

/// A channel's connection id is its number plus this.
const CHANNEL_CONNECTIONS: u32 = 0x1_0000;

const STATUS_SUCCESS: u32 = 0;
/// The status of a failed open, GPADL or modification.
pub const STATUS_UNSUCCESSFUL: u32 = 0x8000_ffff;
const STATUS_CONNECTION_REFUSED: u32 = 0xc000_0236;

/// The connection between guest and host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// No connection.
    Disconnected,
    /// Guest and host have negotiated a version.
    Connected {
        /// The version.
        version: Version,
        /// The processor that gets the host's messages.
        target_vp: u32,
        /// Whether the guest has requested the offers.
        offered: bool,
    },
}

/// The bus' state in a snapshot: the connection and, for each device, the number of its offer and whether it is plugged
/// in.
#[derive(Clone)]
pub struct State {
    connection: Connection,
    relids: Vec<Option<u32>>,
    present: Vec<bool>,
}

/// The bus.
pub struct Bus {
    link: Link,
    max_version: Version,
    connection: Connection,
    channels: Vec<Channel>,
    /// A service, and how many messages that close its channel are still to be refused.
    refused_closes: (Service, u32),
    /// The ports at which the host accepts connections of Hyper-V sockets.
    listening: BTreeSet<u32>,
    /// So many such connections there have been.
    connections: u32,
}

impl Bus {
    /// A bus with these services' devices and versions up to `max_version`. The bus offers and numbers devices in the
    /// order of class and instance, so all guests see the same numbers.
    pub fn new(
        memory: Arc<GuestMemory>,
        hypervisor: Box<dyn Hypervisor>,
        max_version: Version,
        services: &[Service],
    ) -> Self {
        let mut services = services.to_vec();
        services.sort_by_key(|service| (service.class(), service.instance()));
        Self {
            link: Link {
                memory,
                hypervisor,
                transcript: Transcript::new(),
            },
            max_version,
            connection: Connection::Disconnected,
            channels: services.into_iter().map(Channel::new).collect(),
            refused_closes: (Service::Kvp, 0),
            listening: BTreeSet::new(),
            connections: 0,
        }
    }

    /// Sets the hypervisor of a new machine, after a reset.
    pub fn set_hypervisor(&mut self, hypervisor: Box<dyn Hypervisor>) {
        self.link.hypervisor = hypervisor;
        self.reset();
    }

    /// The transcript.
    pub fn transcript(&self) -> &Transcript {
        &self.link.transcript
    }

    /// The connection.
    pub fn connection(&self) -> Connection {
        self.connection
    }

    /// The guest's reference time in 100 ns units.
    pub fn reference_time(&self) -> u64 {
        self.link.hypervisor.reference_time()
    }

    /// The channel of `service`, if the bus has such a device.
    pub fn channel(&self, service: Service) -> Option<&Channel> {
        self.channels
            .iter()
            .find(|channel| channel.service == service)
    }

    /// Changes a device. The device then acts on the change.
    pub fn with_device<R>(
        &mut self,
        service: Service,
        change: impl FnOnce(&mut Device, bool) -> R,
    ) -> Option<R> {
        let channel = self
            .channels
            .iter_mut()
            .find(|channel| channel.service == service)?;
        let open = channel.open().is_some();
        let result = change(&mut channel.device, open);
        channel.pump(&mut self.link);
        Some(result)
    }

    /// Uses an open channel directly. `None` if the channel is not open.
    pub fn with_open<R>(
        &mut self,
        service: Service,
        act: impl FnOnce(&mut OpenChannel, &mut Link) -> R,
    ) -> Option<R> {
        let channel = self
            .channels
            .iter_mut()
            .find(|channel| channel.service == service)?;
        let open = channel.offered.as_mut()?.open.as_mut()?;
        Some(act(open, &mut self.link))
    }

    /// Resets the device of `service` and plugs it in, as the only device of its class. On an open channel the device
    /// negotiates again.
    pub fn renew(&mut self, service: Service) {
        if let Some(index) = self.second(service) {
            if self.channels[index].present {
                self.unplug(index);
            }
            self.drop_gone();
        }
        let Some(channel) = self
            .channels
            .iter_mut()
            .find(|channel| channel.service == service)
        else {
            return;
        };
        let negotiates = *channel.device.state() == device::State::Negotiating;
        channel.device = Device::new(service);
        channel.instance = service.instance();
        channel.fail_opens = (0, 0);
        channel.opens = 0;
        channel.left = 0;
        if channel.open().is_some() {
            channel.device.opened();
            if negotiates {
                // A reply to an earlier negotiation is pending: a second request would yield a surplus reply.
                channel.device.take_output();
            }
            channel.pump(&mut self.link);
        }
        if !channel.present {
            let _ = self.reoffer(service);
        }
    }

    /// Forgets packets that the guest has sent on the service's channel and nobody took.
    pub fn forget_surplus(&mut self, service: Service) {
        let mut channels = self.channels.iter_mut();
        if let Some(channel) = channels.find(|channel| channel.service == service) {
            channel.forget_surplus();
        }
    }

    /// The machine was reset: drops the connection and all channels.
    pub fn reset(&mut self) {
        self.disconnect();
        self.link.hypervisor.forget_messages();
        self.link
            .record(Speaker::Note, "vmbus", "reset".to_owned(), &[]);
    }

    fn disconnect(&mut self) {
        for channel in &mut self.channels {
            channel.close();
            channel.offered = None;
            // A connection does not outlive the bus'.
            channel.present &= channel.socket.is_none();
        }
        self.drop_gone();
        self.connection = Connection::Disconnected;
    }

    /// The state for a snapshot. Fails if a channel is in use: rings and services are not part of the state.
    pub fn state(&self) -> Result<State, String> {
        let in_use = |channel: &&Channel| {
            let is_socket = channel.socket.is_some();
            let offered = channel.offered.as_ref();
            is_socket || offered.is_some_and(|it| it.open.is_some() || !it.gpadls.is_empty())
        };
        if let Some(channel) = self.channels.iter().find(in_use) {
            return Err(format!("{} is in use", channel.service));
        }
        if self.has_unreleased() {
            return Err("a rescinded channel is in use".to_owned());
        }
        Ok(State {
            connection: self.connection,
            relids: self.channels.iter().map(Channel::relid).collect(),
            present: self
                .channels
                .iter()
                .map(|channel| channel.present)
                .collect(),
        })
    }

    /// Continues from a snapshot, with the hypervisor of a new machine. The devices keep their state.
    pub fn set_state(&mut self, state: &State, hypervisor: Box<dyn Hypervisor>) {
        self.set_hypervisor(hypervisor);
        self.connection = state.connection;
        let saved = state.relids.iter().zip(&state.present);
        for (channel, (relid, present)) in self.channels.iter_mut().zip(saved) {
            channel.present = *present;
            channel.offered = relid.map(Offered::new);
        }
        self.note("goes on from a snapshot".to_owned());
    }

    /// When to call [`Bus::tick`] next.
    pub fn due(&self) -> Option<Instant> {
        self.channels.iter().filter_map(Channel::due).min()
    }

    /// Runs the timers that are due.
    pub fn tick(&mut self) {
        let now = Instant::now();
        for channel in &mut self.channels {
            channel.tick(&mut self.link, now);
        }
    }

    /// HvSignalEvent from the guest.
    pub fn signal(&mut self, connection: u32, flag: u16) -> Status {
        let channel = self.channels.iter_mut().find(|channel| {
            channel.open().is_some()
                && channel.relid().map(|relid| relid + CHANNEL_CONNECTIONS) == Some(connection)
        });
        let Some(channel) = channel else {
            return Status::InvalidConnectionId;
        };
        if flag != 0 {
            return Status::InvalidParameter;
        }
        channel.pump(&mut self.link);
        Status::Success
    }

    /// HvPostMessage from the guest.
    pub fn post(&mut self, connection: u32, kind: u32, payload: &[u8]) -> Status {
        // A host that does not speak 5.0 lacks this connection.
        if connection != MESSAGES && !(connection == MESSAGES_4 && self.max_version >= (5, 0)) {
            return Status::InvalidConnectionId;
        }
        let message = FromGuest::parse(payload);
        if message.as_ref().is_ok_and(|message| self.refuses(message)) {
            self.note("a message is refused: no buffers".to_owned());
            return Status::InsufficientBuffers;
        }
        if self.link.hypervisor.is_congested() {
            if !matches!(message, Ok(FromGuest::InitiateContact { .. })) {
                return Status::InsufficientBuffers;
            }
            // The contact may come from a new kernel after a crash, which need not read old messages: drop them. Then
            // answers to repeated contacts do not pile up either.
            self.link.hypervisor.forget_messages();
        }
        if kind != 1 {
            self.error(format!("message of type {kind} instead of 1"), payload);
            return Status::Success;
        }
        match message {
            Ok(message) => {
                let text = format!(
                    "{} {}",
                    message::name(payload),
                    self.details_from_guest(&message)
                );
                self.link
                    .record(Speaker::Guest, "vmbus", text.trim_end().to_owned(), payload);
                self.handle(connection, message);
            }
            Err(malformed) => self.error(malformed.to_string(), payload),
        }
        Status::Success
    }

    /// Handles a message: a contact, or a message of a connection.
    fn handle(&mut self, connection: u32, message: FromGuest) {
        if let FromGuest::InitiateContact {
            version,
            target_vp,
            interrupt_page_or_target: receiver,
            parent_monitor,
            child_monitor,
        } = message
        {
            let one_monitor_page = (parent_monitor == 0) != (child_monitor == 0);
            return self.contact(connection, version, target_vp, receiver, one_monitor_page);
        }
        let Connection::Connected {
            version, target_vp, ..
        } = self.connection
        else {
            return self.error("message without a connection".to_owned(), &[]);
        };
        let needs = match message {
            FromGuest::TlConnect { .. } => (4, 0),
            FromGuest::ModifyChannel { .. } => (4, 1),
            _ => (0, 0),
        };
        if version < needs {
            let (major, minor) = needs;
            return self.error(format!("message of version {major}.{minor}"), &[]);
        }
        self.handle_connected(version, target_vp, message);
    }

    /// Handles a message of a connection. `target_vp` is the processor for the answers.
    fn handle_connected(&mut self, version: Version, target_vp: u32, message: FromGuest) {
        match message {
            FromGuest::InitiateContact { .. } => unreachable!("it needs no connection"),
            FromGuest::RequestOffers => self.request_offers(target_vp),
            FromGuest::Unload => {
                self.disconnect();
                self.send(target_vp, &ToGuest::UnloadResponse);
            }
            FromGuest::GpadlHeader {
                relid,
                gpadl,
                range_length,
                range_count,
                words,
            } => {
                let new = Gpadl::new(range_length, range_count, &words);
                self.gpadl_header(target_vp, relid, gpadl, new);
            }
            FromGuest::GpadlBody { gpadl, words, .. } => self.gpadl_body(target_vp, gpadl, &words),
            FromGuest::GpadlTeardown { relid, gpadl } => {
                self.gpadl_teardown(target_vp, relid, gpadl)
            }
            FromGuest::OpenChannel {
                relid,
                open_id,
                gpadl,
                target_vp: vp,
                downstream_page,
            } => self.open_channel(target_vp, relid, open_id, gpadl, vp, downstream_page),
            FromGuest::CloseChannel { relid } => self.close_channel(target_vp, relid),
            FromGuest::RelidReleased { relid } => self.release(target_vp, relid),
            FromGuest::ModifyChannel {
                relid,
                target_vp: vp,
            } => self.modify_channel(version, target_vp, relid, vp),
            FromGuest::TlConnect { endpoint, service } if self.accepts(&endpoint, &service) => {
                self.offer_connection(endpoint, service);
            }
            // Before 4.1 there is no refusal. The guest waits for an offer that never comes.
            FromGuest::TlConnect { .. } if version < (4, 1) => {}
            FromGuest::TlConnect { endpoint, service } => {
                let refused = ToGuest::TlConnectResult {
                    endpoint,
                    service,
                    status: STATUS_CONNECTION_REFUSED,
                };
                self.send(target_vp, &refused);
            }
        }
    }

    /// Sends a message to `target_vp`, the guest's choice.
    fn send(&mut self, target_vp: u32, message: &ToGuest) {
        self.send_to(target_vp, VMBUS_SINT, message);
    }

    /// Sends a message to a SINT of a processor.
    fn send_to(&mut self, target_vp: u32, sint: u32, message: &ToGuest) {
        let bytes = message.encode();
        let details = self.details_to_guest(message);
        let text = format!("{} {details}", message::name(&bytes));
        self.link
            .record(Speaker::Host, "vmbus", text.trim_end().to_owned(), &bytes);
        self.link.hypervisor.post_message(target_vp, sint, &bytes);
    }

    /// The channel with this number.
    fn by_relid(&mut self, relid: u32) -> Option<&mut Channel> {
        self.channels
            .iter_mut()
            .find(|channel| channel.relid() == Some(relid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmbus::test_guest::Fake;
    use crate::vmbus::test_guest::TestGuest;
    use crate::vmbus::test_guest::GPADL;

    #[test]
    fn a_guest_that_takes_no_messages_posts_none() {
        let mut guest = TestGuest::new((6, 0));
        assert!(guest.contact(4, 0));
        guest.seen.lock().unwrap().congested = true;
        let offers = [3, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(guest.bus.post(1, 1, &offers), Status::InsufficientBuffers);
        guest.seen.lock().unwrap().congested = false;
        assert_eq!(guest.post(3, &[]), [1, 1, 4]);
        // A guest may have crashed: a contact is accepted, and drops the old messages.
        guest.seen.lock().unwrap().congested = true;
        assert!(guest.contact(4, 0));
        assert_eq!(guest.seen.lock().unwrap().messages.len(), 1);
        assert_eq!(guest.post(3, &[]), [1, 1, 4]);
        // A contact with an unknown version does the same, so its answers do not pile up.
        for _ in 0..2 {
            guest.seen.lock().unwrap().congested = true;
            assert!(!guest.contact(9, 0));
            assert_eq!(guest.seen.lock().unwrap().messages.len(), 1);
        }
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
    fn whatever_comes_is_survived() {
        // All message types, in every state, with words that are often valid. The generator's seed is fixed, so a
        // failure repeats.
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
}
