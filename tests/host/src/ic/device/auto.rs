// SPDX-License-Identifier: GPL-2.0

//! A device that acts by itself: it negotiates, sends requests, and checks replies.
//!
//! Fact for KVP and guest shutdown, Inference for the other services:
//!
//! - The device negotiates when the channel opens.
//! - The device reads the ring only while it waits for a reply.
//! - All requests have the IC transaction id 0. So a surplus reply counts as the reply to the next request.
//! - A rejected reply ends the service until the channel opens again. A missing reply stops the service.
//! - While the device negotiates, it drops replies of other types: they answer requests from before a restore.
//!
//! Fact: time synchronization negotiates likewise, but then reads no replies: see [`Device::set_unanswered`].

use std::time::Instant;

use super::Device;
use super::Mode;
use super::Remark;
use super::Restore;
use super::State;
use super::Versions;
use crate::ic::addresses;
use crate::ic::frame;
use crate::ic::frame::Message;
use crate::ic::frame::NEGOTIATE;
use crate::ic::heartbeat;
use crate::ic::kvp;
use crate::ic::timesync;
use crate::ic::Moment;
use crate::ic::S_OK;
use crate::service::Service;
use crate::vmbus::packet::Packet;

/// The largest number of recorded round trips.
const LATENCIES: usize = 1 << 20;

/// The IC transaction id of all messages in [`Mode::Auto`].
const TRANSACTION_ID: u8 = 0;

impl Device {
    /// The machine was restored. A dead service stays dead, and a pending reply may still arrive. Fact: KVP and time
    /// synchronization negotiate again. (Newer versions of Microsoft's VMM restore KVP's state instead.)
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

    /// Negotiates again on the open channel, unless a negotiation is pending. A late reply to an earlier request does
    /// not count as the negotiation's reply.
    pub fn renegotiate(&mut self) {
        let negotiates = self.state == State::Negotiating;
        if self.mode == Mode::Auto && self.state != State::Closed && !negotiates {
            self.begin();
        }
    }

    /// Offers versions on the open channel.
    pub(super) fn begin(&mut self) {
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

    /// Whether the device waits for a reply.
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, State::Negotiating | State::Waiting { .. })
    }

    /// When to call [`Device::tick`] next.
    pub fn due(&self) -> Option<Instant> {
        self.due
            .filter(|_| self.mode == Mode::Auto && self.state == State::Ready)
    }

    /// Sends the beat or sample that is due.
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
                // The interval counts from beat to beat, not from the replies. Inference.
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

    /// Sends a request of the administrator. Fails if the service is not ready.
    pub fn request(&mut self, body: Vec<u8>, moment: &Moment) -> Result<(), String> {
        if self.mode != Mode::Auto || self.state != State::Ready {
            return Err(format!(
                "{} cannot send a request now ({:?})",
                self.service, self.state
            ));
        }
        let is_about_addresses =
            matches!(body.first(), Some(&(kvp::GET_IP_INFO | kvp::SET_IP_INFO)));
        let is_older = self.versions.is_some_and(|it| it.message < (5, 0));
        if self.service == Service::Kvp && is_about_addresses && is_older {
            return Err("requests about addresses need version 5.0".to_owned());
        }
        self.send(body, moment);
        Ok(())
    }

    /// Takes the reply to the last request, if it has arrived.
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

    /// A reply has arrived, or another packet in its place.
    pub(super) fn replied(&mut self, packet: &Packet, moment: &Moment) -> Option<Remark> {
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
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ic::frame::REQUEST;
    use crate::ic::frame::TRANSACTION;
    use crate::ic::shutdown;
    use crate::ic::E_FAIL;
    use crate::ic::E_NO_MORE_ITEMS;
    use crate::service::Version;

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

    /// A device with an open channel and these negotiated versions.
    fn ready(service: Service, message: Version) -> Device {
        let mut device = Device::new(service);
        device.opened();
        negotiate(&mut device, message, ZERO);
        device
    }

    /// Makes a heartbeat device send its first beat, and answers. Returns the answer.
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
        // The reply arrives twice.
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
        // This includes a reply that was surplus before.
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
        let end = request.reply(E_NO_MORE_ITEMS);
        assert_eq!(answer(&mut device, &end, ZERO), None);
        // Fact: a pair that a host cannot read ends the service.
        let empty = ask(&mut device).reply(S_OK);
        answer(&mut device, &empty, ZERO);
        assert!(matches!(device.state(), State::Dead(_)));
    }

    #[test]
    fn kvp_is_asked_about_addresses_in_numbers_only() {
        for (version, is_asked) in [((4, 0), false), ((5, 0), true)] {
            let mut device = ready(Service::Kvp, version);
            let body = addresses::get_ip_info(version, "00:15");
            assert_eq!(device.request(body, &moment(ZERO)).is_ok(), is_asked);
        }
        let mut device = ready(Service::Kvp, (5, 0));
        let body = addresses::get_ip_info((5, 0), "00:15");
        device.request(body, &moment(ZERO)).unwrap();
        let mut reply = sent(&mut device).reply(S_OK);
        // The number of gateways exceeds the capacity.
        reply.body[12] = 6;
        answer(&mut device, &reply, ZERO);
        assert!(matches!(device.state(), State::Dead(_)));
    }
}
