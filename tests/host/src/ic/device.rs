// SPDX-License-Identifier: GPL-2.0

//! The host's side of one service. The device acts by itself as on Windows (see `device/auto.rs`), or a scenario leads
//! it.
//!
//! The device touches neither rings nor clocks. Packets go in by [`Device::received`] and come out by
//! [`Device::take_output`]. Time is an argument.
//!
//! A packet without a pipe's framing ends the service, also when a scenario leads.

mod auto;

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use super::frame;
use super::frame::Message;
use super::frame::REQUEST;
use super::frame::TRANSACTION;
use super::heartbeat;
use super::timesync;
use super::Moment;
use crate::service::Service;
use crate::service::Version;
use crate::vmbus::packet::Packet;

/// The negotiated versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// Framework version.
    pub framework: Version,
    /// Message version.
    pub message: Version,
}

/// Who leads the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The device acts by itself, as on Windows.
    Auto,
    /// A scenario sends and receives.
    Script,
}

/// The reaction of a device in [`Mode::Auto`] to a restore of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restore {
    /// The device negotiates again on the open channel, unless a negotiation is pending.
    Renegotiate,
    /// The device keeps its versions. Time sync sends a new SYNC.
    Resume,
}

/// The largest number of packets that wait for a scenario. With more, the device stops reading.
const INBOX: usize = 4096;

/// The state of a device in [`Mode::Auto`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The channel is not open.
    Closed,
    /// The device waits for the reply to its negotiation.
    Negotiating,
    /// The device waits for its timer or for a request of the administrator.
    Ready,
    /// The device waits for the reply to a request.
    Waiting {
        /// When the request was sent.
        since: Instant,
    },
    /// The device has rejected a packet, for this reason. It reads nothing until the channel opens again.
    Dead(String),
}

/// Counts of a device in [`Mode::Auto`] since its channel first opened.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Negotiations that succeeded.
    pub negotiations: u64,
    /// Requests sent: beats, samples, shutdowns and others, without negotiations.
    pub requests: u64,
    /// Accepted replies to these requests.
    pub replies: u64,
    /// The status of the last reply.
    pub last_status: Option<u32>,
    /// The application state in the last heartbeat reply.
    pub application_state: Option<u32>,
    /// Heartbeat replies whose number is not the beat's plus one.
    pub wrong_sequence: u64,
    /// Times from request to reply, of the first million requests.
    pub latencies: Vec<Duration>,
}

/// A remark for the transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// An event.
    Note(String),
    /// A fault of the guest.
    Error(String),
}

/// The host's side of one service.
pub struct Device {
    service: Service,
    mode: Mode,
    state: State,
    /// Whether a scenario wants packets to be read from the ring.
    reading: bool,
    /// See [`Device::set_tolerant`].
    tolerant: bool,
    /// The reaction to a restore.
    restore: Restore,
    /// The next IC transaction id for a scenario.
    next_transaction_id: u8,
    /// The first byte of the last request's body.
    operation: Option<u8>,
    /// The reply to the last request.
    reply: Option<Message>,
    offered: Option<(Vec<Version>, Vec<Version>)>,
    versions: Option<Versions>,
    due: Option<Instant>,
    sequence: u64,
    /// Whether time sync has sent its SYNC.
    synced: bool,
    /// Offset of the host's wall clock from this machine's, in 100 ns units.
    wall_offset: i64,
    interval: Duration,
    /// The flags of requests in the IC header.
    flags: u8,
    output: VecDeque<Packet>,
    inbox: VecDeque<Packet>,
    /// Packets that no scenario took before the channel opened again or the lead changed.
    forgotten: usize,
    statistics: Statistics,
}

impl Device {
    /// A device whose channel is not open.
    pub fn new(service: Service) -> Self {
        Self {
            service,
            mode: match service {
                Service::Echo | Service::Socket => Mode::Script,
                _ => Mode::Auto,
            },
            state: State::Closed,
            reading: true,
            tolerant: false,
            restore: match service {
                Service::Kvp | Service::TimeSync => Restore::Renegotiate,
                _ => Restore::Resume,
            },
            next_transaction_id: 1,
            operation: None,
            reply: None,
            offered: None,
            versions: None,
            due: None,
            sequence: 0,
            synced: false,
            wall_offset: 0,
            interval: match service {
                Service::TimeSync => timesync::INTERVAL,
                _ => heartbeat::INTERVAL,
            },
            flags: TRANSACTION | REQUEST,
            output: VecDeque::new(),
            inbox: VecDeque::new(),
            forgotten: 0,
            statistics: Statistics::default(),
        }
    }

    /// The service.
    pub fn service(&self) -> Service {
        self.service
    }

    /// Who leads the device.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The device's state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The versions negotiated by the device, or by a scenario (see [`Device::set_versions`]).
    pub fn versions(&self) -> Option<Versions> {
        self.versions
    }

    /// Sets the versions that a scenario has negotiated.
    pub fn set_versions(&mut self, versions: Versions) {
        self.versions = Some(versions);
    }

    /// The device's counts.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Offers these versions instead of a host's, from the next negotiation on.
    pub fn set_offered(&mut self, framework: &[Version], message: &[Version]) {
        self.offered = Some((framework.to_vec(), message.to_vec()));
    }

    /// Sets the host's wall clock off this machine's, in 100 ns units.
    pub fn set_wall_offset(&mut self, offset: i64) {
        self.wall_offset = offset;
    }

    /// Sets the reaction to a restore. The default is a host's.
    pub fn set_restore(&mut self, restore: Restore) {
        self.restore = restore;
    }

    /// Makes time sync ask for no replies: it reads none, and sends the next sample an interval after the last one.
    /// Fact: a host does so. Inference: others ask for replies, as this device does by default.
    pub fn set_unanswered(&mut self) {
        self.flags = 0;
    }

    /// Whether the device asks for replies.
    pub fn is_answered(&self) -> bool {
        self.flags & REQUEST != 0
    }

    /// Sends beats or samples in this interval. The next one is due an interval after the last one.
    pub fn set_interval(&mut self, interval: Duration) {
        let last = self.due.and_then(|due| due.checked_sub(self.interval));
        self.due = last.map(|last| last + interval).or(self.due);
        self.interval = interval;
    }

    /// The host's wall clock at `moment`.
    pub fn host_time(&self, moment: &Moment) -> Moment {
        Moment {
            wall: moment.wall.saturating_add_signed(self.wall_offset),
            ..*moment
        }
    }

    /// Returns a fresh IC transaction id for a scenario.
    pub fn new_transaction_id(&mut self) -> u8 {
        let id = self.next_transaction_id;
        self.next_transaction_id = id.wrapping_add(1);
        id
    }

    /// Gives the lead to a scenario. The device drops its pending request.
    pub fn script(&mut self) {
        self.mode = Mode::Script;
        self.reading = true;
        self.due = None;
        self.revive();
        self.forgotten += self.inbox.drain(..).count();
    }

    /// Returns the lead to the device. On an open channel the device negotiates first.
    pub fn auto(&mut self, open: bool) {
        self.mode = Mode::Auto;
        self.forgotten += self.inbox.drain(..).count();
        if open {
            self.begin();
        } else {
            self.state = State::Closed;
        }
    }

    /// Sets whether packets for a scenario are read from the ring.
    pub fn set_reading(&mut self, reading: bool) {
        self.reading = reading;
    }

    /// Whether packets for a scenario are read from the ring.
    pub fn is_reading(&self) -> bool {
        self.reading
    }

    /// Sets whether a scenario gets all packets, also after one that ends the service. For messages that no host sends:
    /// their answers echo the faults.
    pub fn set_tolerant(&mut self, tolerant: bool) {
        self.tolerant = tolerant;
    }

    /// The channel has opened.
    pub fn opened(&mut self) {
        self.output.clear();
        self.forgotten += self.inbox.drain(..).count();
        self.versions = None;
        match self.mode {
            Mode::Auto => self.begin(),
            Mode::Script => self.revive(),
        }
    }

    /// Revives a dead service, for a scenario.
    fn revive(&mut self) {
        if matches!(self.state, State::Dead(_)) {
            self.state = State::Ready;
        }
    }

    /// The channel has closed.
    pub fn closed(&mut self) {
        self.state = State::Closed;
        self.due = None;
        self.output.clear();
    }

    /// Whether the device reads a packet now.
    pub fn wants_packet(&self) -> bool {
        match self.mode {
            Mode::Auto => self.waits(),
            Mode::Script => {
                let takes = self.reading && self.inbox.len() < INBOX;
                takes && !matches!(self.state, State::Dead(_))
            }
        }
    }

    /// Takes the packets that the device sends.
    pub fn take_output(&mut self) -> VecDeque<Packet> {
        std::mem::take(&mut self.output)
    }

    /// A packet has arrived. To be called only while [`Device::wants_packet`].
    pub fn received(&mut self, packet: Packet, moment: &Moment) -> Option<Remark> {
        if self.service.is_framed() && !self.tolerant {
            if let Err(rejection) = frame::check_packet(&packet) {
                return self.reject(rejection.to_string());
            }
        }
        if self.mode == Mode::Script {
            self.inbox.push_back(packet);
            return None;
        }
        self.replied(&packet, moment)
    }

    /// Takes the next packet for a scenario.
    pub fn take_received(&mut self) -> Option<Packet> {
        self.inbox.pop_front()
    }

    /// The number of packets for a scenario that none has taken.
    pub fn untaken(&self) -> usize {
        self.forgotten + self.inbox.len()
    }

    /// Forgets the packets that no scenario has taken.
    pub fn forget_untaken(&mut self) {
        self.inbox.clear();
        self.forgotten = 0;
    }

    /// The number of packets that wait for a scenario.
    pub fn received_count(&self) -> usize {
        self.inbox.len()
    }

    fn reject(&mut self, reason: String) -> Option<Remark> {
        self.state = State::Dead(reason.clone());
        self.due = None;
        Some(Remark::Error(format!(
            "rejected, the service is dead: {reason}"
        )))
    }

    /// A scenario has received a reply that a host rejects.
    pub fn rejected(&mut self, reason: String) {
        if !self.tolerant {
            self.reject(reason);
        }
    }

    /// A ring is unusable from now on.
    pub fn broken(&mut self, reason: String) -> Option<Remark> {
        self.reject(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_gets_everything() {
        let mut device = Device::new(Service::Kvp);
        device.script();
        device.opened();
        assert!(device.take_output().is_empty());
        let packet = Packet::inband(Message::negotiation(&[], &[], 0).encode());
        assert_eq!(device.received(packet.clone(), &Moment::now(0)), None);
        assert_eq!(device.take_received(), Some(packet));
        device.set_reading(false);
        assert!(!device.wants_packet());
    }

    #[test]
    fn what_is_no_pipes_packet_kills_whoever_leads() {
        for mode in [Mode::Auto, Mode::Script] {
            let mut device = Device::new(Service::Heartbeat);
            if mode == Mode::Script {
                device.script();
            }
            device.opened();
            device.take_output();
            let mut packet = Packet::inband(Message::negotiation(&[], &[], 0).encode());
            packet.kind = 9;
            assert!(matches!(
                device.received(packet, &Moment::now(0)),
                Some(Remark::Error(_))
            ));
            assert!(matches!(device.state(), State::Dead(_)));
            assert!(!device.wants_packet());
            assert_eq!(device.received_count(), 0);
            device.closed();
            device.opened();
            assert!(device.wants_packet());
        }
    }
}
