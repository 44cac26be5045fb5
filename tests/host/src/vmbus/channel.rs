// SPDX-License-Identifier: GPL-2.0

//! A device on the bus: its offer, its channel, and how the two work together.

use std::collections::BTreeMap;
use std::time::Instant;

use super::gpadl::Gpadl;
use super::open::Link;
use super::open::OpenChannel;
use crate::guid::Guid;
use crate::ic::device::Device;
use crate::ic::device::Remark;
use crate::ic::Moment;
use crate::service::Service;
use crate::transcript::Speaker;

/// An offer that the guest has not released.
pub(super) struct Offered {
    pub(super) relid: u32,
    /// GPADLs by handle. The guest chooses handles. Channels may have equal ones.
    pub(super) gpadls: BTreeMap<u32, Gpadl>,
    pub(super) open: Option<OpenChannel>,
    /// Whether the host has rescinded the offer. The guest still holds the number.
    pub(super) rescinded: bool,
}

impl Offered {
    pub(super) fn new(relid: u32) -> Self {
        Self {
            relid,
            gpadls: BTreeMap::new(),
            open: None,
            rescinded: false,
        }
    }

    /// Removes the GPADLs whose teardown waited for the channel's close. Returns their handles.
    pub(super) fn take_torn_down(&mut self) -> Vec<u32> {
        let down = self.gpadls.iter().filter(|(_, gpadl)| gpadl.tearing_down);
        let handles: Vec<u32> = down.map(|(handle, _)| *handle).collect();
        self.gpadls.retain(|_, gpadl| !gpadl.tearing_down);
        handles
    }
}

/// A connection of Hyper-V sockets. Each connection has a channel of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Socket {
    /// The number of the connection. No other connection has the same number.
    pub(super) number: u32,
    /// Whether the host has requested the connection.
    pub(super) is_from_host: bool,
    /// The port of the listener, in the guest or on the host.
    pub(super) port: u32,
    /// Whether the guest has requested the connection, and nobody on the host has accepted it yet.
    pub(super) is_unclaimed: bool,
    /// Whether the guest has sent its last byte.
    pub(super) has_ended: bool,
}

/// A device on the bus, with or without an offer.
pub struct Channel {
    pub(super) service: Service,
    /// The class id of the device.
    pub(super) class: Guid,
    /// The instance id of the device.
    pub(super) instance: Guid,
    /// The connection of Hyper-V sockets, if the channel is one.
    pub(super) socket: Option<Socket>,
    /// Whether the device is the second of its class, see [`Bus::offer_second`](super::bus::Bus::offer_second).
    pub(super) is_second: bool,
    pub(super) device: Device,
    /// Whether the device is plugged in. Then it is offered on request, and again after the release of a rescinded
    /// offer.
    pub(super) present: bool,
    pub(super) offered: Option<Offered>,
    /// How many of the next open requests fail, and with which status.
    pub(super) fail_opens: (u32, u32),
    pub(super) opens: u64,
    /// Sum of the unread bytes in the guest-to-host ring at the channel's closes.
    pub(super) left: u32,
    /// Since when the ring has unread packets because the host stopped early.
    unfinished: Option<Instant>,
}

impl Channel {
    /// A device that is plugged in, without an offer.
    pub(super) fn new(service: Service) -> Self {
        Self {
            service,
            class: service.class(),
            instance: service.instance(),
            socket: None,
            is_second: false,
            device: Device::new(service),
            present: true,
            offered: None,
            fail_opens: (0, 0),
            opens: 0,
            left: 0,
            unfinished: None,
        }
    }

    /// Whether the device stays on the bus when it is unplugged and released.
    pub(super) fn is_lasting(&self) -> bool {
        !self.is_second && self.socket.is_none()
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The channel's number, if the guest holds one.
    pub fn relid(&self) -> Option<u32> {
        self.offered.as_ref().map(|offered| offered.relid)
    }

    /// Whether the offer is rescinded and not released.
    pub(super) fn is_rescinded(&self) -> bool {
        let offered = self.offered.as_ref();
        offered.is_some_and(|offered| offered.rescinded)
    }

    /// The open channel.
    pub fn open(&self) -> Option<&OpenChannel> {
        self.offered.as_ref()?.open.as_ref()
    }

    /// Whether the device is plugged in.
    pub fn is_present(&self) -> bool {
        self.present
    }

    /// How often the guest has opened the channel.
    pub fn opens(&self) -> u64 {
        self.opens
    }

    /// Surplus from the guest that nobody took: packets for a scenario, and bytes left in the ring at closes.
    pub fn surplus(&self) -> (usize, u32) {
        (self.device.untaken(), self.left)
    }

    /// Forgets the surplus.
    pub fn forget_surplus(&mut self) {
        self.left = 0;
        self.device.forget_untaken();
    }

    /// Makes the device act: send, read, handle packets.
    pub(super) fn pump(&mut self, link: &mut Link) {
        let Some(open) = self
            .offered
            .as_mut()
            .and_then(|offered| offered.open.as_mut())
        else {
            return;
        };
        self.unfinished = None;
        let moment = Moment::now(link.hypervisor.reference_time());
        self.device.tick(&moment);
        // Limit the number of packets: a guest that writes all the time must not keep the host here.
        let mut left = open.to_host().most_packets();
        loop {
            let sent = self.device.take_output().into_iter();
            let sent = sent.fold(open.flush(link), |result, packet| {
                result.and_then(|()| open.send(link, packet))
            });
            let received = sent.and_then(|()| match (self.device.wants_packet(), left) {
                (false, _) => {
                    open.stop_reading();
                    Ok(None)
                }
                (true, 0) => {
                    self.unfinished = Some(moment.instant);
                    Ok(None)
                }
                (true, _) => open.receive(link),
            });
            let remark = match received {
                Ok(None) => break,
                Ok(Some(packet)) => {
                    left -= 1;
                    let moment = Moment::now(link.hypervisor.reference_time());
                    let remark = self.device.received(packet, &moment);
                    self.device.tick(&moment);
                    remark
                }
                Err(error) => self.device.broken(error.to_string()),
            };
            match remark {
                Some(Remark::Note(text)) => {
                    link.record(Speaker::Note, self.service.name(), text, &[])
                }
                Some(Remark::Error(text)) => {
                    link.record(Speaker::Error, self.service.name(), text, &[])
                }
                None => {}
            }
        }
    }

    /// When to call [`Channel::tick`] next.
    pub(super) fn due(&self) -> Option<Instant> {
        let open = self.open()?;
        [open.due(), self.device.due(), self.unfinished]
            .into_iter()
            .flatten()
            .min()
    }

    /// Runs the timers that are due at `now`.
    pub(super) fn tick(&mut self, link: &mut Link, now: Instant) {
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        if let Some(open) = self
            .offered
            .as_mut()
            .and_then(|offered| offered.open.as_mut())
        {
            open.tick(link, now);
        }
        self.pump(link);
    }

    /// Closes the channel if it is open.
    pub(super) fn close(&mut self) {
        if let Some(offered) = &mut self.offered {
            if let Some(open) = offered.open.take() {
                self.unfinished = None;
                // Count surplus bytes only if the host reads replies: the device asks for them, and no scenario has
                // stopped it.
                if self.device.is_answered() && self.device.is_reading() {
                    self.left += open.to_host().used().unwrap_or(0);
                }
                self.device.closed();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering;
    use std::sync::Arc;

    use crate::hypercall::Status;
    use crate::ic::device::State;
    use crate::ic::frame::Message;
    use crate::service::Service;
    use crate::vmbus::open::UNREAD_AFTER_OPEN;
    use crate::vmbus::packet::Packet;
    use crate::vmbus::test_guest::TestGuest;
    use crate::vmbus::test_guest::DOWN;
    use crate::vmbus::test_guest::UP;

    /// The state of heartbeat's device.
    fn state(guest: &TestGuest) -> State {
        let channel = guest.bus.channel(Service::Heartbeat).unwrap();
        channel.device().state().clone()
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
        // An unknown flag, an unknown connection, and the connection of a closed channel.
        assert_eq!(guest.bus.signal(0x1_0001, 1), Status::InvalidParameter);
        assert_eq!(guest.bus.signal(0x1_0077, 0), Status::InvalidConnectionId);
        assert_eq!(guest.bus.signal(0x1_0002, 0), Status::InvalidConnectionId);
        // The connection that all channels shared before each had its own.
        assert_eq!(guest.bus.signal(2, 0), Status::InvalidConnectionId);
    }

    #[test]
    fn an_unread_ring_is_signalled_again() {
        let mut guest = TestGuest::new((6, 0));
        guest.open();
        assert!(guest.bus.due().is_some());
        std::thread::sleep(UNREAD_AFTER_OPEN);
        guest.bus.tick();
        assert_eq!(guest.seen.lock().unwrap().events, [(1, 1), (1, 1)]);
        std::thread::sleep(UNREAD_AFTER_OPEN);
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
            std::thread::sleep(UNREAD_AFTER_OPEN);
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
        // The host reads and signals nothing more.
        assert!(!up.write(&packet.encode()).unwrap());
        guest.bus.signal(0x1_0001, 0);
        assert!(up.used().unwrap() > 0);
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
        // The next beat is due.
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
        // The ring is full of the smallest packets.
        let (up, _) = guest.rings();
        let smallest = up.most_packets() as usize;
        let packet = Packet::inband(vec![1, 0, 0, 0, 0, 0, 0, 0]).encode();
        let mut total = 0;
        while up.write(&packet).is_ok() {
            total += 1;
        }
        assert!(total < smallest);
        // Another processor writes whenever the ring has space.
        let stop = Arc::new(AtomicBool::new(false));
        let writer = std::thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::SeqCst) {
                    let _ = up.write(&packet);
                }
            }
        });
        // Each signal reads a limited number of packets. In the end the scenario's inbox is full.
        let mut before = 0;
        while before < 4096 {
            guest.bus.signal(0x1_0001, 0);
            let now = received(&guest);
            assert!(now - before <= smallest);
            before = now;
        }
        guest.bus.signal(0x1_0001, 0);
        assert_eq!(received(&guest), 4096);
        stop.store(true, Ordering::SeqCst);
        writer.join().unwrap();
    }
}
