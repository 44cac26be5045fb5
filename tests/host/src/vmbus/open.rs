// SPDX-License-Identifier: GPL-2.0

//! An open channel: its rings, what waits to be sent, and when the guest is signalled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::packet::Packet;
use crate::ic::frame;
use crate::memory::GuestMemory;
use crate::ring::Ring;
use crate::ring::RingError;
use crate::service::Service;
use crate::synic::Hypervisor;
use crate::transcript::Speaker;
use crate::transcript::Transcript;

/// How long after the opening a host signals a ring that the guest has not read (observed).
pub const UNREAD_AFTER_OPEN: Duration = Duration::from_millis(100);

/// What channels and bus share: the guest's memory, the hypervisor, the record.
pub struct Link {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// Messages and events to the guest, and its clock.
    pub hypervisor: Box<dyn Hypervisor>,
    /// The record.
    pub transcript: Transcript,
}

impl Link {
    /// Records what was said.
    pub fn record(&mut self, speaker: Speaker, topic: &'static str, text: String, bytes: &[u8]) {
        let reference = self.hypervisor.reference_time();
        self.transcript.add(reference, speaker, topic, text, bytes);
    }
}

/// An open channel.
pub struct OpenChannel {
    service: Service,
    relid: u32,
    target_vp: u32,
    gpadl: u32,
    to_host: Ring,
    to_guest: Ring,
    outbox: VecDeque<Packet>,
    /// The host waits for an interrupt when the guest writes.
    waits: bool,
    signal_unread_at: Option<Instant>,
}

impl OpenChannel {
    /// A channel just opened, with the guest-to-host and the host-to-guest ring, both prepared.
    pub fn new(
        service: Service,
        relid: u32,
        target_vp: u32,
        gpadl: u32,
        to_host: Ring,
        to_guest: Ring,
    ) -> Self {
        Self {
            service,
            relid,
            target_vp,
            gpadl,
            to_host,
            to_guest,
            outbox: VecDeque::new(),
            waits: false,
            signal_unread_at: Some(Instant::now() + UNREAD_AFTER_OPEN),
        }
    }

    /// The processor that gets the interrupts.
    pub fn target_vp(&self) -> u32 {
        self.target_vp
    }

    /// Sends interrupts to another processor.
    pub fn set_target_vp(&mut self, vp: u32) {
        self.target_vp = vp;
    }

    /// The GPADL that holds the rings.
    pub fn gpadl(&self) -> u32 {
        self.gpadl
    }

    /// The ring in which the guest writes.
    pub fn to_host(&self) -> &Ring {
        &self.to_host
    }

    /// The ring in which the host writes.
    pub fn to_guest(&self) -> &Ring {
        &self.to_guest
    }

    /// Signals the guest, with reason or without.
    pub fn signal(&self, link: &mut Link) {
        link.hypervisor.signal_event(self.target_vp, self.relid);
    }

    /// Writes a packet into the ring, if there is room, and signals the guest if a host would.
    pub fn try_send(&mut self, link: &mut Link, packet: &Packet) -> Result<(), RingError> {
        if self.write(link, packet)? {
            self.signal(link);
        }
        Ok(())
    }

    /// Writes a packet into the ring, if there is room, and gives whether a host would signal the guest.
    fn write(&mut self, link: &mut Link, packet: &Packet) -> Result<bool, RingError> {
        let signal = self.to_guest.write(&packet.encode())?;
        let text = describe(self.service, packet);
        link.record(Speaker::Host, self.service.name(), text, &packet.payload);
        Ok(signal)
    }

    /// Writes any bytes where a packet would be, if there is room, and signals the guest: a host that misbehaves.
    pub fn send_raw(&mut self, link: &mut Link, bytes: &[u8]) -> Result<(), RingError> {
        self.to_guest.write(bytes)?;
        let text = "bytes of any kind".to_owned();
        link.record(Speaker::Host, self.service.name(), text, bytes);
        self.signal(link);
        Ok(())
    }

    /// Sends a packet now or as soon as the guest makes room.
    pub fn send(&mut self, link: &mut Link, packet: Packet) -> Result<(), RingError> {
        self.send_all(link, vec![packet])
    }

    /// Sends several in the same way. The guest is signalled when all that have room are there: it does not see some of
    /// them before.
    pub fn send_all(&mut self, link: &mut Link, packets: Vec<Packet>) -> Result<(), RingError> {
        self.outbox.extend(packets);
        self.flush(link)
    }

    /// Sends what waits for room. After an error nothing waits any more.
    pub fn flush(&mut self, link: &mut Link) -> Result<(), RingError> {
        let (mut signal, mut result) = (false, Ok(()));
        while let Some(packet) = self.outbox.pop_front() {
            match self.write(link, &packet) {
                Ok(first) => signal |= first,
                Err(RingError::Full) => {
                    self.outbox.push_front(packet);
                    break;
                }
                Err(error) => {
                    self.outbox.clear();
                    result = Err(error);
                }
            }
        }
        if signal {
            self.signal(link);
        }
        result
    }

    /// Packets that wait for room.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Reads the guest's next packet, `None` if there is none. The ring is masked unless the host waits for a packet; a
    /// guest that masks it then would have it wait for ever, which a host takes for a broken ring.
    pub fn receive(&mut self, link: &mut Link) -> Result<Option<Packet>, RingError> {
        if self.waits && self.to_host.is_masked()? {
            return Err(RingError::Masked);
        }
        self.waits = false;
        self.to_host.set_interrupt_mask(true)?;
        let mut result = self.to_host.read();
        if result == Err(RingError::Empty) {
            self.to_host.set_interrupt_mask(false)?;
            self.waits = true;
            // Something may have come before the guest could see the mask go.
            result = self.to_host.read();
        }
        let (bytes, signal) = match result {
            Ok(read) => read,
            Err(RingError::Empty) => return Ok(None),
            Err(error) => return Err(error),
        };
        if signal {
            self.signal(link);
        }
        let Some(packet) = Packet::decode(&bytes) else {
            link.record(
                Speaker::Error,
                self.service.name(),
                "packet with a bad offset".into(),
                &bytes,
            );
            return Err(RingError::BadLength(bytes.len() as u32));
        };
        let text = describe(self.service, &packet);
        link.record(Speaker::Guest, self.service.name(), text, &packet.payload);
        Ok(Some(packet))
    }

    /// Masks the ring while the host waits for nothing: it reads the ring anyway before it waits again.
    pub fn stop_reading(&mut self) {
        self.waits = false;
        let _ = self.to_host.set_interrupt_mask(true);
    }

    /// When [`OpenChannel::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.signal_unread_at
    }

    /// Signals a guest that has not heard of what waits for it since the opening: a packet, or room to send.
    ///
    /// A guest that took no interrupts before the result of its open request has missed them.
    pub fn tick(&mut self, link: &mut Link, now: Instant) {
        if self.signal_unread_at.is_some_and(|at| at <= now) {
            self.signal_unread_at = None;
            let unread = self.to_guest.reader_waits() || self.to_host.writer_waits();
            if unread {
                let text = "ring unread since the opening: signalled again".to_owned();
                link.record(Speaker::Note, self.service.name(), text, &[]);
                self.signal(link);
            }
        }
    }
}

/// One line about a packet.
fn describe(service: Service, packet: &Packet) -> String {
    let mut text = frame::describe(service, &packet.payload);
    if packet.kind != super::packet::DATA_INBAND || packet.flags != 0 {
        text.push_str(&format!(
            " (packet type {} flags {})",
            packet.kind, packet.flags
        ));
    }
    text
}
