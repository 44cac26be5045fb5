// SPDX-License-Identifier: GPL-2.0

//! The host's side of one service: by itself as on Windows (see `device/auto.rs`), or led by a scenario.
//!
//! Nothing here touches rings or clocks: packets go in by [`Device::received`], come out by [`Device::take_output`],
//! and time is an argument.
//!
//! Packets that are not a pipe's end a service also when a scenario leads it.

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

/// The versions agreed on.
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
    /// It behaves as on Windows.
    Auto,
    /// A scenario sends and receives.
    Script,
}

/// What a device in [`Mode::Auto`] does when its machine goes on after it was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restore {
    /// It negotiates again on the open channel, unless it is about to anyway.
    Renegotiate,
    /// It goes on with the versions it has; time sync sends a new SYNC.
    Resume,
}

/// How many packets wait for a scenario at most; then it is as if it stopped reading.
const INBOX: usize = 4096;

/// What a device in [`Mode::Auto`] is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The channel is not open.
    Closed,
    /// It waits for the reply to its negotiation.
    Negotiating,
    /// It has nothing to wait for but its timer or a request of the administrator's.
    Ready,
    /// It waits for the reply to a request.
    Waiting {
        /// When it was sent.
        since: Instant,
    },
    /// It has rejected a packet, for this reason, and reads no more before the channel is opened again.
    Dead(String),
}

/// What a device in [`Mode::Auto`] has done since its channel was opened first.
#[derive(Debug, Clone, Default)]
pub struct Statistics {
    /// Negotiations that succeeded.
    pub negotiations: u64,
    /// Requests sent (beats, samples, shutdowns), negotiations not counted.
    pub requests: u64,
    /// Replies to them that were accepted.
    pub replies: u64,
    /// The status of the last one.
    pub last_status: Option<u32>,
    /// The application state of the last heartbeat.
    pub application_state: Option<u32>,
    /// Heartbeats that answered another number than the beat's plus one.
    pub wrong_sequence: u64,
    /// From each request to its reply, of the first million.
    pub latencies: Vec<Duration>,
}

/// Something that belongs into the transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// Worth knowing.
    Note(String),
    /// A fault of the guest's.
    Error(String),
}

/// The host's side of one service.
pub struct Device {
    service: Service,
    mode: Mode,
    state: State,
    /// Whether a scenario wants packets read from the ring.
    reading: bool,
    /// See [`Device::set_tolerant`].
    tolerant: bool,
    /// What a restore does.
    restore: Restore,
    /// The next IC transaction id that a scenario gets.
    next_transaction_id: u8,
    /// What the last request's body begins with.
    operation: Option<u8>,
    /// The reply to it.
    reply: Option<Message>,
    offered: Option<(Vec<Version>, Vec<Version>)>,
    versions: Option<Versions>,
    due: Option<Instant>,
    sequence: u64,
    /// The time-sync device has sent its SYNC.
    synced: bool,
    /// Wall clock offset in 100 ns units, for a host whose clock differs from this machine's.
    wall_offset: i64,
    interval: Duration,
    /// The flags of requests.
    flags: u8,
    output: VecDeque<Packet>,
    inbox: VecDeque<Packet>,
    /// Packets that a scenario had not taken when the channel was opened again, or another took the lead.
    forgotten: usize,
    statistics: Statistics,
}

impl Device {
    /// A device whose channel is not open.
    pub fn new(service: Service) -> Self {
        Self {
            service,
            mode: match service {
                Service::Echo => Mode::Script,
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

    /// Who leads.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What it is about.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The versions agreed on, by the device itself or (see [`Device::set_versions`]) by a scenario.
    pub fn versions(&self) -> Option<Versions> {
        self.versions
    }

    /// Tells the device what a scenario has negotiated.
    pub fn set_versions(&mut self, versions: Versions) {
        self.versions = Some(versions);
    }

    /// What it has done.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Offers these versions from the next negotiation on instead of a host's.
    pub fn set_offered(&mut self, framework: &[Version], message: &[Version]) {
        self.offered = Some((framework.to_vec(), message.to_vec()));
    }

    /// Has the host's wall clock differ from this machine's by so many 100 ns units.
    pub fn set_wall_offset(&mut self, offset: i64) {
        self.wall_offset = offset;
    }

    /// Has a restore do this instead of what it does with a host.
    pub fn set_restore(&mut self, restore: Restore) {
        self.restore = restore;
    }

    /// Has time sync ask for no replies, as some hosts do: it reads none, and sends the next sample an interval after the
    /// last.
    pub fn set_unanswered(&mut self) {
        self.flags = 0;
    }

    /// Whether it asks for replies.
    pub fn is_answered(&self) -> bool {
        self.flags & REQUEST != 0
    }

    /// Sends beats or samples in this interval instead of a host's. The next is due as if it had always been so.
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

    /// Gives a scenario a fresh IC transaction id.
    pub fn new_transaction_id(&mut self) -> u8 {
        let id = self.next_transaction_id;
        self.next_transaction_id = id.wrapping_add(1);
        id
    }

    /// Hands the lead to a scenario; what the device waited for is forgotten.
    pub fn script(&mut self) {
        self.mode = Mode::Script;
        self.reading = true;
        self.due = None;
        self.revive();
        self.forgotten += self.inbox.drain(..).count();
    }

    /// Takes the lead back. On an open channel it begins with a negotiation.
    pub fn auto(&mut self, open: bool) {
        self.mode = Mode::Auto;
        self.forgotten += self.inbox.drain(..).count();
        if open {
            self.begin();
        } else {
            self.state = State::Closed;
        }
    }

    /// Whether a scenario's packets are to be read from the ring.
    pub fn set_reading(&mut self, reading: bool) {
        self.reading = reading;
    }

    /// Whether a scenario has packets read from the ring.
    pub fn is_reading(&self) -> bool {
        self.reading
    }

    /// Whether a scenario gets every packet, also after one that a host gives up the service for: the answer to a message
    /// that no host sends echoes what is wrong with it.
    pub fn set_tolerant(&mut self, tolerant: bool) {
        self.tolerant = tolerant;
    }

    /// The channel was opened.
    pub fn opened(&mut self) {
        self.output.clear();
        self.forgotten += self.inbox.drain(..).count();
        self.versions = None;
        match self.mode {
            Mode::Auto => self.begin(),
            Mode::Script => self.revive(),
        }
    }

    /// Lets a dead service serve again, as far as a scenario has it do so.
    fn revive(&mut self) {
        if matches!(self.state, State::Dead(_)) {
            self.state = State::Ready;
        }
    }

    /// The channel was closed.
    pub fn closed(&mut self) {
        self.state = State::Closed;
        self.due = None;
        self.output.clear();
    }

    /// Whether the device would read a packet now.
    pub fn wants_packet(&self) -> bool {
        match self.mode {
            Mode::Auto => self.waits(),
            Mode::Script => {
                let takes = self.reading && self.inbox.len() < INBOX;
                takes && !matches!(self.state, State::Dead(_))
            }
        }
    }

    /// Takes the packets that the device wants to send.
    pub fn take_output(&mut self) -> VecDeque<Packet> {
        std::mem::take(&mut self.output)
    }

    /// A packet came. Call only while [`Device::wants_packet`].
    pub fn received(&mut self, packet: Packet, moment: &Moment) -> Option<Remark> {
        if self.service != Service::Echo && !self.tolerant {
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

    /// Takes the next packet that came for a scenario.
    pub fn take_received(&mut self) -> Option<Packet> {
        self.inbox.pop_front()
    }

    /// How many packets came for a scenario that it has not taken.
    pub fn untaken(&self) -> usize {
        self.forgotten + self.inbox.len()
    }

    /// Forgets them.
    pub fn forget_untaken(&mut self) {
        self.inbox.clear();
        self.forgotten = 0;
    }

    /// How many packets wait for a scenario.
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

    /// A scenario has got a reply that a host rejects.
    pub fn rejected(&mut self, reason: String) {
        if !self.tolerant {
            self.reject(reason);
        }
    }

    /// A ring can be used no more.
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
