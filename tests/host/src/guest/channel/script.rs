// SPDX-License-Identifier: GPL-2.0

//! A channel that a scenario leads step by step: packets and messages in both directions.

use std::time::Duration;

use super::ChannelHandle;
use crate::guest::Error;
use crate::guest::Result;
use crate::guest::TIMEOUT;
use crate::ic::device::State;
use crate::ic::device::Versions;
use crate::ic::frame;
use crate::ic::frame::Message;
use crate::ic::frame::Rejection;
use crate::ring::RingError;
use crate::service::Version;
use crate::vmbus::packet::Packet;

impl ChannelHandle<'_> {
    /// Takes the lead. The device no longer acts by itself.
    pub fn script(&self) -> Result<()> {
        self.device(|device, _| device.script())
    }

    /// Returns the lead to the device. On an open channel the device negotiates, and then acts as on Windows.
    pub fn auto(&self) -> Result<()> {
        self.device(|device, open| device.auto(open))
    }

    /// Sends a packet, now or when the guest frees space.
    pub fn send_packet(&self, packet: Packet) -> Result<()> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, link| open.send(link, packet)))
            .ok_or_else(|| self.not_open())?
            .map_err(Error::from)
    }

    /// Sends a packet if it fits now. The inner result is `Err(RingError::Full)` if it does not.
    pub fn try_send_packet(&self, packet: &Packet) -> Result<std::result::Result<(), RingError>> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, link| open.try_send(link, packet)))
            .ok_or_else(|| self.not_open())
    }

    /// Sends packets. The guest is signalled only when all packets that fit are in the ring.
    pub fn send_packets(&self, packets: Vec<Packet>) -> Result<()> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, link| open.send_all(link, packets)))
            .ok_or_else(|| self.not_open())?
            .map_err(Error::from)
    }

    /// Writes any bytes in place of a packet, a multiple of 8. Returns whether they fit.
    pub fn send_raw(&self, bytes: &[u8]) -> Result<bool> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, link| open.send_raw(link, bytes)))
            .map(|sent| sent.is_ok())
            .ok_or_else(|| self.not_open())
    }

    /// Sends any bytes as an in-band packet.
    pub fn send_bytes(&self, payload: &[u8]) -> Result<()> {
        self.send_packet(Packet::inband(payload.to_vec()))
    }

    /// Sends a message.
    pub fn send(&self, message: &Message) -> Result<()> {
        self.send_bytes(&message.encode())
    }

    /// Sends messages such that the guest finds all of them in the ring when it reads the first.
    pub fn send_together(&self, messages: &[&Message]) -> Result<()> {
        let packets = messages
            .iter()
            .map(|message| Packet::inband(message.encode()))
            .collect();
        self.send_packets(packets)
    }

    /// Sends `count` packets as fast as the ring takes them. `make` builds each from its number, from 0.
    pub fn flood(&self, count: usize, mut make: impl FnMut(usize) -> Packet) -> Result<()> {
        for number in 0..count {
            self.send_packet(make(number))?;
        }
        Ok(())
    }

    /// The number of packets that wait for space in the ring.
    pub fn unsent(&self) -> Result<usize> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, _| open.waiting()))
            .ok_or_else(|| self.not_open())
    }

    /// Waits for the next packet of the guest.
    pub fn receive_packet(&self) -> Result<Packet> {
        self.receive_packet_within(TIMEOUT)
    }

    /// [`ChannelHandle::receive_packet`] with another time-out.
    pub fn receive_packet_within(&self, timeout: Duration) -> Result<Packet> {
        let service = self.service;
        self.guest.wait_bus_within(
            &format!("{service}: packet from the guest"),
            timeout,
            |bus| {
                let taken = bus.with_device(service, |device, _| match device.take_received() {
                    Some(packet) => Some(Ok(packet)),
                    None => match device.state() {
                        State::Dead(reason) => {
                            Some(Err(Error(format!("{service} is dead: {reason}"))))
                        }
                        _ => None,
                    },
                });
                taken.flatten()
            },
        )?
    }

    /// Waits for the next message of the guest. Fails if the packet is shorter than the headers.
    pub fn receive(&self) -> Result<Message> {
        self.receive_within(TIMEOUT)
    }

    /// [`ChannelHandle::receive`] with another time-out.
    pub fn receive_within(&self, timeout: Duration) -> Result<Message> {
        let packet = self.receive_packet_within(timeout)?;
        let short = || {
            Error(format!(
                "{}: packet of only {} bytes",
                self.service,
                packet.payload.len()
            ))
        };
        Message::parse(&packet.payload).ok_or_else(short)
    }

    /// Unwraps a value that a host accepts. A rejection ends the service.
    fn accept<R>(&self, what: std::result::Result<R, Rejection>) -> Result<R> {
        let rejection = match what {
            Ok(accepted) => return Ok(accepted),
            Err(rejection) => rejection,
        };
        self.device(|device, _| device.rejected(rejection.to_string()))?;
        Err(format!("{}: {rejection}", self.service).into())
    }

    /// Sends a request and waits for the reply. Fails if a host rejects the reply, or its type is not the request's.
    pub fn transact(&self, request: &Message) -> Result<Message> {
        self.send(request)?;
        let packet = self.receive_packet()?;
        let reply = self.accept(frame::check_reply(&packet.payload, request.transaction_id))?;
        match reply.kind == request.kind {
            true => Ok(reply),
            false => Err(format!("{}: reply of message type {}", self.service, reply.kind).into()),
        }
    }

    /// Sends a negotiation request with these versions. Returns the reply.
    fn offer(&self, framework: &[Version], message: &[Version]) -> Result<Message> {
        let id = self.device(|device, _| device.new_transaction_id())?;
        self.transact(&Message::negotiation(framework, message, id))
    }

    /// Negotiates with versions that the guest does not support. Keeps the service alive, unlike a host.
    pub fn negotiate_in_vain(&self, framework: &[Version], message: &[Version]) -> Result<()> {
        let answer = frame::negotiated(&self.offer(framework, message)?);
        match answer {
            Err(Rejection::Counts(0, 0)) => Ok(()),
            other => Err(format!("{}: {other:?} instead of counts 0/0", self.service).into()),
        }
    }

    /// Negotiates with these versions. Returns the guest's choice.
    pub fn negotiate(&self, framework: &[Version], message: &[Version]) -> Result<Versions> {
        let answer = frame::negotiated(&self.offer(framework, message)?);
        let (framework, message) = self.accept(answer)?;
        let versions = Versions { framework, message };
        self.device(|device, _| device.set_versions(versions))?;
        Ok(versions)
    }

    /// Negotiates with the versions of a Windows host.
    pub fn negotiate_all(&self) -> Result<Versions> {
        self.negotiate(
            self.service.framework_versions(),
            self.service.message_versions(),
        )
    }

    /// A request of this service with the negotiated versions, for the scenario to change and send.
    pub fn request(&self, body: Vec<u8>) -> Result<Message> {
        self.device(|device, _| {
            let versions = device.versions().unwrap_or(Versions {
                framework: (3, 0),
                message: (1, 0),
            });
            let id = device.new_transaction_id();
            Message::request(
                self.service.message_type(),
                versions.framework,
                versions.message,
                id,
                body,
            )
        })
    }

    /// Stops or resumes reading from the ring.
    pub fn set_reading(&self, reading: bool) -> Result<()> {
        self.device(|device, _| device.set_reading(reading))
    }

    /// Fails if the guest has sent surplus packets within `pause`: in the ring, or received and not taken.
    pub fn expect_silence(&self, pause: Duration) -> Result<()> {
        std::thread::sleep(pause);
        let in_ring = self
            .guest
            .with_bus(|bus| bus.with_open(self.service, |open, _| open.to_host().used()))
            .ok_or_else(|| self.not_open())??;
        let received = self.device(|device, _| device.received_count())?;
        match (received, in_ring) {
            (0, 0) => Ok(()),
            _ => Err(format!(
                "{}: surplus from the guest: {received} packets, and {in_ring} bytes in the ring",
                self.service
            )
            .into()),
        }
    }

    /// Fails if the guest has sent packets that nobody took before the channel was closed: surplus replies, or replies
    /// that a scenario ignored.
    pub fn expect_nothing_left(&self) -> Result<()> {
        let service = self.service;
        let surplus = self
            .guest
            .with_bus(|bus| Some(bus.channel(service)?.surplus()));
        match surplus {
            None | Some((0, 0)) => Ok(()),
            Some((packets, bytes)) => Err(format!(
                "{service}: nobody took {packets} packets of the guest; its ring had {bytes} bytes at the close"
            )
            .into()),
        }
    }

    /// Forgets packets that the guest has sent and nobody took. For scenarios whose number of replies is left to
    /// chance.
    pub fn forget_surplus(&self) {
        self.guest.with_bus(|bus| bus.forget_surplus(self.service));
    }
}
