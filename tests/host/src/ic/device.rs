// SPDX-License-Identifier: GPL-2.0

//! The host's side of one service: by itself as on Windows, or led by a scenario.
//!
//! Nothing here touches rings or clocks: packets go in by [`Device::received`], come out by [`Device::take_output`],
//! and time is an argument.
//!
//! By itself a device behaves as a Microsoft host was seen to: it negotiates when the channel opens; it reads the ring
//! only while it waits for a reply, and all its requests have the IC transaction id 0, so that a surplus reply is taken
//! for the answer to its next request; a reply that it must reject ends the service until the channel is opened again;
//! a reply that never comes stops it. While it negotiates, it drops replies of any other type: they are to requests from
//! before a restore.
//!
//! Packets that are not a pipe's end a service also when a scenario leads it.

use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;

use super::addresses;
use super::frame;
use super::frame::Message;
use super::frame::NEGOTIATE;
use super::frame::REQUEST;
use super::frame::TRANSACTION;
use super::heartbeat;
use super::kvp;
use super::timesync;
use super::Moment;
use super::S_OK;
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

/// How many round trips are timed at most.
const LATENCIES: usize = 1 << 20;

/// The IC transaction id of all that a device in [`Mode::Auto`] sends.
const TRANSACTION_ID: u8 = 0;

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

    /// The machine was saved and goes on. What is dead stays so, and what the device waits for may still come.
    pub fn restored(&mut self, now: Instant) {
        let serves = !matches!(self.state, State::Closed | State::Dead(_));
        match self.restore {
            _ if self.mode != Mode::Auto || !serves => {}
            Restore::Renegotiate => self.renegotiate(),
            Restore::Resume => {
                self.synced = false;
                if self.service == Service::TimeSync && self.state == State::Ready {
                    self.due = Some(now);
                }
            }
        }
    }

    /// Starts over on the open channel. A reply to an earlier request may still come and is not taken for the
    /// negotiation's; that to an earlier negotiation is all that it waits for.
    pub fn renegotiate(&mut self) {
        let negotiates = self.state == State::Negotiating;
        if self.mode == Mode::Auto && self.state != State::Closed && !negotiates {
            self.begin();
        }
    }

    fn begin(&mut self) {
        let (framework, message) = match &self.offered {
            Some((framework, message)) => (framework.clone(), message.clone()),
            None => (
                self.service.framework_versions().to_vec(),
                self.service.message_versions().to_vec(),
            ),
        };
        self.state = State::Negotiating;
        self.versions = None;
        self.due = None;
        self.synced = false;
        let request = Message::negotiation(&framework, &message, TRANSACTION_ID);
        self.output.push_back(Packet::inband(request.encode()));
    }

    fn waits(&self) -> bool {
        matches!(self.state, State::Negotiating | State::Waiting { .. })
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

    /// When [`Device::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.due
            .filter(|_| self.mode == Mode::Auto && self.state == State::Ready)
    }

    /// Sends what is due.
    pub fn tick(&mut self, moment: &Moment) {
        if self.mode != Mode::Auto
            || self.state != State::Ready
            || self.due.is_none_or(|due| due > moment.instant)
        {
            return;
        }
        self.due = None;
        let Some(versions) = self.versions else {
            return;
        };
        let body = match self.service {
            Service::Heartbeat => {
                self.sequence += 1;
                // Beats keep their rhythm, whenever the replies come.
                self.due = Some(moment.instant + self.interval);
                heartbeat::body(self.sequence, heartbeat::RESERVED)
            }
            Service::TimeSync => {
                let flags = if self.synced {
                    timesync::SAMPLE
                } else {
                    timesync::SYNC
                };
                self.synced = true;
                self.due = Some(moment.instant + self.interval);
                timesync::body(versions.message, &self.host_time(moment), flags)
            }
            _ => return,
        };
        self.send(body, moment);
    }

    /// Sends a request of the administrator's; an error if the service is not ready for one.
    pub fn request(&mut self, body: Vec<u8>, moment: &Moment) -> Result<(), String> {
        if self.mode != Mode::Auto || self.state != State::Ready {
            return Err(format!(
                "{} cannot send a request now ({:?})",
                self.service, self.state
            ));
        }
        self.send(body, moment);
        Ok(())
    }

    /// Takes the reply to the last request, once it has come.
    pub fn take_reply(&mut self) -> Option<Message> {
        self.reply.take()
    }

    fn send(&mut self, body: Vec<u8>, moment: &Moment) {
        let Some(Versions { framework, message }) = self.versions else {
            return;
        };
        self.reply = None;
        self.operation = body.first().copied();
        let kind = self.service.message_type();
        let mut request = Message::request(kind, framework, message, TRANSACTION_ID, body);
        request.flags = self.flags;
        self.statistics.requests += 1;
        if self.is_answered() {
            self.state = State::Waiting {
                since: moment.instant,
            };
        }
        self.output.push_back(Packet::inband(request.encode()));
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
        let since = match self.state {
            State::Negotiating => None,
            State::Waiting { since } => Some(since),
            _ => return None,
        };
        let reply = match frame::check_reply(&packet.payload, TRANSACTION_ID) {
            Ok(reply) => reply,
            Err(rejection) => return self.reject(rejection.to_string()),
        };
        match since {
            Some(since) => self.accept(&reply, since, moment),
            None if reply.kind != NEGOTIATE => Some(Remark::Note(format!(
                "reply of message type {} dropped while negotiating",
                reply.kind
            ))),
            None => match frame::negotiated(&reply) {
                Ok((framework, message)) => {
                    self.begin_work(Versions { framework, message }, moment)
                }
                Err(rejection) => self.reject(rejection.to_string()),
            },
        }
    }

    fn begin_work(&mut self, versions: Versions, moment: &Moment) -> Option<Remark> {
        self.statistics.negotiations += 1;
        self.versions = Some(versions);
        self.state = State::Ready;
        if matches!(self.service, Service::Heartbeat | Service::TimeSync) {
            self.due = Some(moment.instant);
        }
        None
    }

    fn accept(&mut self, reply: &Message, since: Instant, moment: &Moment) -> Option<Remark> {
        self.statistics.replies += 1;
        self.statistics.last_status = Some(reply.status);
        if self.statistics.latencies.len() < LATENCIES {
            self.statistics.latencies.push(moment.instant - since);
        }
        self.state = State::Ready;
        self.reply = Some(reply.clone());
        match self.service {
            Service::Heartbeat => {
                self.statistics.application_state = heartbeat::application_state(&reply.body);
                let expected = self.sequence + 1;
                if heartbeat::sequence(&reply.body) != Some(expected) {
                    self.statistics.wrong_sequence += 1;
                    return Some(Remark::Error(format!(
                        "the beat's answer is not {expected}"
                    )));
                }
            }
            Service::TimeSync => self.due = Some(moment.instant + self.interval),
            Service::Kvp if reply.status == S_OK => {
                let version = self.versions.map_or((0, 0), |versions| versions.message);
                let is_readable = match self.operation {
                    Some(kvp::ENUMERATE) => kvp::pair(&reply.body).is_some(),
                    Some(kvp::GET_IP_INFO) => addresses::read(version, &reply.body).is_some(),
                    _ => true,
                };
                if !is_readable {
                    return self.reject("unreadable pair or addresses".to_owned());
                }
            }
            _ => {}
        }
        None
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
    use super::super::shutdown;
    use super::super::E_FAIL;
    use super::*;

    fn moment(at: Duration) -> Moment {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        Moment {
            instant: *START.get_or_init(Instant::now) + at,
            reference: 0,
            wall: 0,
        }
    }

    fn sent(device: &mut Device) -> Message {
        let mut output = device.take_output();
        assert_eq!(output.len(), 1, "the device sends one packet");
        Message::parse(&output.pop_front().unwrap().payload).unwrap()
    }

    fn answer(device: &mut Device, reply: &Message, at: Duration) -> Option<Remark> {
        assert!(device.wants_packet());
        device.received(Packet::inband(reply.encode()), &moment(at))
    }

    fn negotiate(device: &mut Device, message: Version, at: Duration) {
        let request = sent(device);
        assert_eq!(request.kind, NEGOTIATE);
        assert_eq!((request.framework, request.version), ((0, 0), (0, 0)));
        let mut reply =
            Message::negotiation(&[(3, 0)], &[message], request.transaction_id).reply(0);
        reply.size = Some(16);
        assert_eq!(request.transaction_id, 0);
        assert_eq!(answer(device, &reply, at), None);
    }

    const ZERO: Duration = Duration::ZERO;

    /// A device whose channel was opened, with these versions agreed on.
    fn ready(service: Service, message: Version) -> Device {
        let mut device = Device::new(service);
        device.opened();
        negotiate(&mut device, message, ZERO);
        device
    }

    /// Has a heartbeat device send its first beat, and answers it; gives the answer.
    fn first_beat(device: &mut Device) -> Message {
        device.tick(&moment(ZERO));
        let mut reply = sent(device).reply(0);
        reply.body = heartbeat::body(2, heartbeat::RESERVED);
        assert_eq!(answer(device, &reply, ZERO), None);
        reply
    }

    #[test]
    fn heartbeat_beats_every_two_seconds_and_counts() {
        let mut device = ready(Service::Heartbeat, (3, 0));
        for beat in 1..4u64 {
            let now = heartbeat::INTERVAL * (beat as u32 - 1);
            device.tick(&moment(now));
            let request = sent(&mut device);
            assert_eq!(
                (request.framework, request.version, request.flags),
                ((3, 0), (3, 0), 3)
            );
            assert_eq!(heartbeat::sequence(&request.body), Some(beat));
            let mut reply = request.reply(0);
            reply.body = heartbeat::body(beat + 1, 28);
            reply.body[8] = 1;
            assert_eq!(answer(&mut device, &reply, now), None);
            assert!(!device.wants_packet(), "a surplus reply stays in the ring");
            assert_eq!(
                device.due(),
                Some(moment(now + heartbeat::INTERVAL).instant)
            );
        }
        assert_eq!(device.statistics().replies, 3);
        assert_eq!(device.statistics().application_state, Some(1));
    }

    #[test]
    fn another_interval_counts_from_the_last_beat() {
        let mut device = ready(Service::Heartbeat, (3, 0));
        first_beat(&mut device);
        let interval = Duration::from_millis(200);
        device.set_interval(interval);
        assert_eq!(device.due(), Some(moment(interval).instant));
    }

    #[test]
    fn a_surplus_reply_answers_the_next_request() {
        let mut device = ready(Service::Heartbeat, (3, 0));
        let reply = first_beat(&mut device);
        // It came twice.
        device.tick(&moment(heartbeat::INTERVAL));
        assert_eq!(heartbeat::sequence(&sent(&mut device).body), Some(2));
        assert!(matches!(
            answer(&mut device, &reply, heartbeat::INTERVAL),
            Some(Remark::Error(_))
        ));
        assert_eq!(device.state(), &State::Ready, "it is off by one");
        assert_eq!(device.statistics().wrong_sequence, 1);
    }

    #[test]
    fn a_replys_type_is_all_the_same() {
        let mut device = ready(Service::Heartbeat, (3, 0));
        device.tick(&moment(ZERO));
        let mut reply = sent(&mut device).reply(0);
        reply.body = heartbeat::body(2, heartbeat::RESERVED);
        reply.kind = 9;
        assert_eq!(answer(&mut device, &reply, ZERO), None);
        assert_eq!(device.statistics().replies, 1);
    }

    #[test]
    fn a_missing_reply_stops_the_service() {
        let mut device = ready(Service::Heartbeat, (3, 0));
        device.tick(&moment(ZERO));
        sent(&mut device);
        device.tick(&moment(heartbeat::INTERVAL * 10));
        assert!(device.take_output().is_empty());
    }

    #[test]
    fn a_rejected_reply_kills_the_service_until_reopened() {
        let mut device = ready(Service::Heartbeat, (3, 0));
        device.tick(&moment(ZERO));
        let mut reply = sent(&mut device).reply(0);
        reply.transaction_id ^= 1;
        assert!(matches!(
            answer(&mut device, &reply, ZERO),
            Some(Remark::Error(_))
        ));
        assert!(matches!(device.state(), State::Dead(_)));
        assert!(!device.wants_packet());
        device.tick(&moment(heartbeat::INTERVAL * 10));
        assert!(device.take_output().is_empty());
        device.closed();
        device.opened();
        negotiate(&mut device, (3, 0), ZERO);
    }

    #[test]
    fn timesync_syncs_once_and_samples_after_replies() {
        let mut device = ready(Service::TimeSync, (4, 0));
        let flags = |device: &mut Device, at| {
            device.tick(&moment(at));
            let request = sent(device);
            assert_eq!(
                answer(device, &request.reply(0), at + Duration::from_secs(1)),
                None
            );
            request.body[16]
        };
        assert_eq!(flags(&mut device, ZERO), timesync::SYNC);
        device.tick(&moment(Duration::from_secs(5)));
        assert!(device.take_output().is_empty());
        assert_eq!(flags(&mut device, Duration::from_secs(6)), timesync::SAMPLE);
        assert_eq!(
            flags(&mut device, Duration::from_secs(12)),
            timesync::SAMPLE
        );
        device.restored(moment(Duration::from_secs(13)).instant);
        negotiate(&mut device, (3, 0), Duration::from_secs(13));
        device.tick(&moment(Duration::from_secs(13)));
        assert_eq!(sent(&mut device).body[24], timesync::SYNC);
    }

    #[test]
    fn timesync_may_ask_for_no_replies() {
        let mut device = Device::new(Service::TimeSync);
        device.set_unanswered();
        assert!(!device.is_answered());
        device.opened();
        negotiate(&mut device, (4, 0), ZERO);
        for (seconds, flags) in [
            (0, timesync::SYNC),
            (5, timesync::SAMPLE),
            (10, timesync::SAMPLE),
        ] {
            let now = moment(Duration::from_secs(seconds));
            assert_eq!(device.due(), Some(now.instant));
            device.tick(&now);
            let request = sent(&mut device);
            assert_eq!((request.flags, request.body[16]), (0, flags));
            assert!(!device.wants_packet());
        }
        device.renegotiate();
        assert_eq!(sent(&mut device).flags, TRANSACTION | REQUEST);
    }

    #[test]
    fn a_restore_keeps_versions_but_time_syncs() {
        let mut device = ready(Service::Heartbeat, (3, 0));
        device.tick(&moment(ZERO));
        let request = sent(&mut device);
        device.restored(moment(ZERO).instant);
        assert!(device.take_output().is_empty());
        assert_eq!(
            answer(&mut device, &request.reply(0), ZERO),
            Some(Remark::Error("the beat's answer is not 2".into()))
        );
        assert_eq!(device.versions().unwrap().message, (3, 0));
        device.set_restore(Restore::Renegotiate);
        device.restored(moment(ZERO).instant);
        negotiate(&mut device, (1, 0), ZERO);

        let mut device = Device::new(Service::TimeSync);
        device.set_restore(Restore::Resume);
        device.opened();
        negotiate(&mut device, (4, 0), ZERO);
        device.tick(&moment(ZERO));
        let request = sent(&mut device);
        answer(&mut device, &request.reply(0), ZERO);
        device.restored(moment(Duration::from_secs(1)).instant);
        device.tick(&moment(Duration::from_secs(1)));
        assert_eq!(sent(&mut device).body[16], timesync::SYNC);
        device.reject("some reason".to_owned());
        device.set_restore(Restore::Renegotiate);
        device.restored(moment(ZERO).instant);
        assert!(device.take_output().is_empty(), "what is dead stays so");
    }

    #[test]
    fn other_replies_are_dropped_while_negotiating() {
        let mut device = Device::new(Service::Shutdown);
        device.opened();
        let request = sent(&mut device);
        let mut other = request.reply(0);
        other.kind = 3;
        assert!(matches!(
            answer(&mut device, &other, ZERO),
            Some(Remark::Note(_))
        ));
        assert!(device.wants_packet());
    }

    #[test]
    fn after_a_restore_an_old_reply_is_not_the_negotiations() {
        let mut device = ready(Service::Heartbeat, (3, 0));
        device.tick(&moment(ZERO));
        let old = sent(&mut device).reply(0);
        device.renegotiate();
        // Also one that was surplus already.
        for _ in 0..2 {
            assert!(matches!(
                answer(&mut device, &old, ZERO),
                Some(Remark::Note(_))
            ));
        }
        device.renegotiate();
        negotiate(&mut device, (1, 0), ZERO);
        assert_eq!(device.versions().unwrap().message, (1, 0));
    }

    #[test]
    fn shutdown_waits_for_the_administrator() {
        let mut device = Device::new(Service::Shutdown);
        device.opened();
        let body = |flags| shutdown::body(flags, "bye");
        assert!(device.request(body(0), &moment(ZERO)).is_err());
        negotiate(&mut device, (3, 2), ZERO);
        device.tick(&moment(ZERO));
        assert!(device.take_output().is_empty());
        device
            .request(body(shutdown::RESTART), &moment(ZERO))
            .unwrap();
        assert!(
            device.request(body(0), &moment(ZERO)).is_err(),
            "one by one"
        );
        let request = sent(&mut device);
        assert_eq!(request.encode().len(), 28 + 12 + 2048);
        answer(&mut device, &request.reply(E_FAIL), ZERO);
        assert_eq!(device.statistics().last_status, Some(E_FAIL));
        assert_eq!(device.take_reply(), Some(request.reply(E_FAIL)));
        assert_eq!(device.take_reply(), None);
    }

    #[test]
    fn kvp_starts_over_after_a_restore() {
        let mut device = ready(Service::Kvp, (4, 0));
        let ask = |device: &mut Device| {
            let body = kvp::enumerate(kvp::AUTO, 0);
            device.request(body, &moment(ZERO)).unwrap();
            sent(device)
        };
        let old = ask(&mut device);
        device.restored(moment(ZERO).instant);
        assert!(matches!(
            answer(&mut device, &old.reply(S_OK), ZERO),
            Some(Remark::Note(_))
        ));
        negotiate(&mut device, (4, 0), ZERO);
        assert_eq!(device.take_reply(), None);
        let request = ask(&mut device);
        let end = request.reply(super::super::E_NO_MORE_ITEMS);
        assert_eq!(answer(&mut device, &end, ZERO), None);
        // A host gives up a service whose pairs it cannot read.
        let empty = ask(&mut device).reply(S_OK);
        answer(&mut device, &empty, ZERO);
        assert!(matches!(device.state(), State::Dead(_)));
    }

    #[test]
    fn a_script_gets_everything() {
        let mut device = Device::new(Service::Kvp);
        device.script();
        device.opened();
        assert!(device.take_output().is_empty());
        let packet = Packet::inband(Message::negotiation(&[], &[], 0).encode());
        assert_eq!(device.received(packet.clone(), &moment(ZERO)), None);
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
                device.received(packet, &moment(ZERO)),
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
