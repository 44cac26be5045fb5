// SPDX-License-Identifier: GPL-2.0

//! An open channel: its rings, packets that wait for space, and signals to the guest.

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

/// How long after the opening a host signals a ring that the guest has not read. Fact.
pub const UNREAD_AFTER_OPEN: Duration = Duration::from_millis(100);

/// State that channels and bus share: the guest's memory, the hypervisor, the transcript.
pub struct Link {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// Messages and signals to the guest, and its reference time.
    pub hypervisor: Box<dyn Hypervisor>,
    /// The transcript.
    pub transcript: Transcript,
}

impl Link {
    /// Adds an entry to the transcript.
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
    /// Whether the host waits for the guest's signal.
    waits: bool,
    signal_unread_at: Option<Instant>,
}

impl OpenChannel {
    /// A channel that was just opened. Both rings are prepared.
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

    /// Changes the processor that gets the interrupts.
    pub fn set_target_vp(&mut self, vp: u32) {
        self.target_vp = vp;
    }

    /// The GPADL that holds the rings.
    pub fn gpadl(&self) -> u32 {
        self.gpadl
    }

    /// The guest-to-host ring.
    pub fn to_host(&self) -> &Ring {
        &self.to_host
    }

    /// The host-to-guest ring.
    pub fn to_guest(&self) -> &Ring {
        &self.to_guest
    }

    /// Signals the guest, needed or not.
    pub fn signal(&self, link: &mut Link) {
        link.hypervisor.signal_event(self.target_vp, self.relid);
    }

    /// Writes a packet into the ring if it fits. Signals the guest if needed.
    pub fn try_send(&mut self, link: &mut Link, packet: &Packet) -> Result<(), RingError> {
        if self.write(link, packet)? {
            self.signal(link);
        }
        Ok(())
    }

    /// Writes a packet into the ring if it fits. Returns whether the guest must be signalled.
    fn write(&mut self, link: &mut Link, packet: &Packet) -> Result<bool, RingError> {
        let signal = self.to_guest.write(&packet.encode())?;
        let text = describe(self.service, packet);
        link.record(Speaker::Host, self.service.name(), text, &packet.payload);
        Ok(signal)
    }

    /// Writes any bytes in place of a packet if they fit, and signals the guest. For a host that misbehaves.
    pub fn send_raw(&mut self, link: &mut Link, bytes: &[u8]) -> Result<(), RingError> {
        self.to_guest.write(bytes)?;
        let text = "bytes of any kind".to_owned();
        link.record(Speaker::Host, self.service.name(), text, bytes);
        self.signal(link);
        Ok(())
    }

    /// Sends a packet, now or when the guest frees space.
    pub fn send(&mut self, link: &mut Link, packet: Packet) -> Result<(), RingError> {
        self.send_all(link, vec![packet])
    }

    /// Sends packets, now or when the guest frees space. Signals the guest only when all packets that fit are in the
    /// ring.
    pub fn send_all(&mut self, link: &mut Link, packets: Vec<Packet>) -> Result<(), RingError> {
        self.outbox.extend(packets);
        self.flush(link)
    }

    /// Writes the packets that wait for space. An error drops them all.
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

    /// Number of packets that wait for space.
    pub fn waiting(&self) -> usize {
        self.outbox.len()
    }

    /// Reads the guest's next packet. `None` if the ring is empty. The host unmasks the ring only while it waits for a
    /// packet. If the guest masks the ring then, the host would wait for ever. Fact: a host treats such a ring as
    /// broken.
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
            // A packet may have arrived before the guest could see the ring unmasked. Look again.
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

    /// Masks the ring while the host waits for no packet. The host reads the ring before it waits again.
    pub fn stop_reading(&mut self) {
        self.waits = false;
        let _ = self.to_host.set_interrupt_mask(true);
    }

    /// When to call [`OpenChannel::tick`] next.
    pub fn due(&self) -> Option<Instant> {
        self.signal_unread_at
    }

    /// Signals the guest again after the opening, if a packet or free space still waits for it. A guest that took no
    /// interrupts before its OPENCHANNEL_RESULT has missed the first signal.
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

/// Describes a packet in a line.
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
