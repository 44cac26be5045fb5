// SPDX-License-Identifier: GPL-2.0

//! Inbound packets.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)

use super::{
    RingSize,
    Sender,
    Sent, //
};
use crate::bindings;
use core::ptr::NonNull;
use kernel::prelude::*;

/// Proof that a packet was handled.
///
/// Only the methods of [`Packet`] return this, and they consume the packet. So no packet can be
/// answered twice, or forgotten.
#[must_use]
pub struct Handled(pub(super) Next);

/// How the channel continues after a packet.
pub(super) enum Next {
    /// The packet was handled or taken. Continue with the next packet.
    Advance,
    /// Leave the packet in the ring until the next invocation of the callback.
    Stay,
    /// Leave the packet in the ring, and handle it in the softirq.
    Postpone,
}

/// An inbound packet.
///
/// hv_vmbus has copied the packet from the ring to memory that the host cannot write to, so its
/// content cannot change after a check.
///
/// # Invariants
///
/// hv_vmbus' iterator has returned `descriptor` for the channel, and has not moved since.
pub struct Packet<'a> {
    pub(super) channel: &'a Sender<'a>,
    pub(super) descriptor: NonNull<bindings::vmpacket_descriptor>,
}

impl<'a> Packet<'a> {
    /// Returns the sender of the channel from which the packet was received.
    #[inline]
    pub fn sender(&self) -> &'a Sender<'a> {
        self.channel
    }

    #[inline]
    fn descriptor(&self) -> &bindings::vmpacket_descriptor {
        // SAFETY: By the type invariant, the descriptor is valid. Nothing writes to it until the
        // iterator moves, which happens after `self` is consumed.
        unsafe { self.descriptor.as_ref() }
    }

    /// Returns the transaction id, by which the host identifies the packet.
    #[inline]
    pub fn transaction(&self) -> u64 {
        self.descriptor().trans_id
    }

    /// Returns whether the packet is in-band data, as all requests of hosts are.
    #[inline]
    pub fn is_in_band(&self) -> bool {
        u32::from(self.descriptor().type_) == bindings::vmbus_packet_type_VM_PKT_DATA_INBAND
    }

    /// Returns the payload. It is initialized, and valid for reads and writes, until the iterator
    /// moves.
    #[inline]
    fn raw_payload(&self) -> *mut [u8] {
        // `hv_pkt_iter_first()` ensures that the payload starts after the descriptor and not after
        // its own end, and lies in hv_vmbus' copy. The length fits into `len8`, see
        // `RingSize::LARGEST`.
        let descriptor = self.descriptor();
        let start = usize::from(descriptor.offset8) * 8;
        let len = (usize::from(descriptor.len8) * 8).saturating_sub(start);
        let payload = self.descriptor.cast::<u8>().as_ptr().wrapping_add(start);
        core::ptr::slice_from_raw_parts_mut(payload, len)
    }

    /// Returns the payload. Its length is a multiple of 8 bytes.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        // SAFETY: The payload is valid, see `raw_payload()`. Only this packet refers to it, and
        // only `payload_mut()`, which borrows the packet mutably, allows changes.
        unsafe { &*self.raw_payload() }
    }

    /// Returns the payload, to be changed into the answer.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        // SAFETY: As in `payload()`. The descriptor is not part of the slice.
        unsafe { &mut *self.raw_payload() }
    }

    /// Sends the payload as the answer to the packet, with the packet's transaction id.
    ///
    /// The ring has room for an answer that the host waits for, see [`Handler::wants_answer`](super::Handler::wants_answer). If
    /// the handler has used that room for another answer, this answer is dropped
    /// ([`Sent::NotAwaited`]). Sending fails if the host has rescinded the channel or corrupted the
    /// ring. The error is logged.
    #[inline]
    pub fn reply(mut self) -> (Handled, Sent) {
        let channel = self.channel;
        let transaction = self.transaction();
        let sent = channel.send(self.payload_mut(), transaction);
        (Handled(Next::Advance), sent)
    }

    /// Takes the packet off the channel, to be answered later. Copies the packet to `buffer`.
    ///
    /// Returns the packet and the buffer if the packet is larger than the buffer, and no memory is
    /// available. A buffer made for this ring is always large enough.
    pub fn take(self, buffer: Buffer) -> Result<(Handled, Taken), (Self, Buffer)> {
        let Buffer(memory) = buffer;
        let mut payload = memory.unwrap_or_default();
        payload.clear();
        if payload
            .extend_from_slice(self.payload(), GFP_ATOMIC)
            .is_err()
        {
            return Err((self, Buffer(Some(payload))));
        }
        let taken = Taken {
            transaction: self.transaction(),
            payload,
        };
        Ok((Handled(Next::Advance), taken))
    }

    /// Leaves the packet in the ring. This packet and all later packets are handled in the next
    /// invocation of the channel's callback.
    pub fn leave(self) -> Handled {
        Handled(Next::Stay)
    }

    /// Leaves the packet in the ring, to be handled in the softirq.
    pub fn postpone(self) -> Handled {
        Handled(Next::Postpone)
    }

    /// Drops the packet unanswered, and logs the reason. In the host's interrupt, postpones the
    /// packet instead.
    #[cold]
    #[inline(never)]
    pub fn ignore(self, reason: &dyn core::fmt::Display) -> Handled {
        if self.channel.is_in_interrupt() {
            return self.postpone();
        }
        if self.channel.limit.allows() {
            dev_warn!(
                self.channel.device.as_ref(),
                "packet ignored: {}\n",
                format_args!("{reason}")
            );
        }
        Handled(Next::Advance)
    }
}

/// Memory for a taken packet. The default value has no memory. Taking a packet allocates memory if
/// the buffer is too small.
#[derive(Default)]
pub struct Buffer(Option<KVec<u8>>);

impl Buffer {
    /// Allocates memory for the longest packet of a ring of size `ring`. May sleep.
    ///
    /// Fails with `ENOMEM`.
    pub fn new(ring: RingSize) -> Result<Self> {
        Ok(Self(Some(KVec::with_capacity(
            ring.largest_packet(),
            GFP_KERNEL,
        )?)))
    }
}

/// A packet that was taken off its channel to be answered later.
///
/// [`Sender::reply`] and [`Taken::abandon`] consume the packet, and return its memory.
#[must_use]
pub struct Taken {
    pub(super) transaction: u64,
    pub(super) payload: KVec<u8>,
}

impl Taken {
    /// Returns the payload.
    pub fn payload(&mut self) -> &mut [u8] {
        &mut self.payload
    }

    /// See [`Packet::transaction`].
    pub fn transaction(&self) -> u64 {
        self.transaction
    }

    /// Drops the packet unanswered, when the host no longer waits for the answer.
    pub fn abandon(self) -> Buffer {
        Buffer(Some(self.payload))
    }
}
