// SPDX-License-Identifier: GPL-2.0

//! Packets that have come in.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)

use super::{
    RingSize,
    Sender, //
};
use crate::bindings;
use core::ptr::NonNull;
use kernel::prelude::*;

/// Proof that a packet was dealt with.
///
/// Only the methods of [`Packet`] return it, and they consume the packet: it can be neither answered
/// twice nor forgotten.
#[must_use]
pub struct Handled(pub(super) Next);

/// What becomes of a packet.
pub(super) enum Next {
    /// The packet is done with, or was taken: the channel goes on to the next.
    Advance,
    /// The packet comes in again with the next event.
    Stay,
    /// The packet comes in again in the softirq.
    Postpone,
}

/// An inbound packet.
///
/// hv_vmbus has copied it out of the ring into memory that the host cannot write to: its content
/// stays as it was checked.
///
/// # Invariants
///
/// hv_vmbus' iterator has returned `descriptor` for the channel, and was not moved since.
pub struct Packet<'a> {
    pub(super) channel: &'a Sender<'a>,
    pub(super) descriptor: NonNull<bindings::vmpacket_descriptor>,
}

impl<'a> Packet<'a> {
    /// The channel that the packet came in by.
    #[inline]
    pub fn sender(&self) -> &'a Sender<'a> {
        self.channel
    }

    #[inline]
    fn descriptor(&self) -> &bindings::vmpacket_descriptor {
        // SAFETY: By the type invariant, the descriptor is valid. Nothing writes to it until the
        // iterator is moved, which is after `self` is gone.
        unsafe { self.descriptor.as_ref() }
    }

    #[inline]
    fn transaction(&self) -> u64 {
        self.descriptor().trans_id
    }

    /// Returns whether the packet is plain data, as all requests of hosts are.
    #[inline]
    pub fn is_in_band(&self) -> bool {
        u32::from(self.descriptor().type_) == bindings::vmbus_packet_type_VM_PKT_DATA_INBAND
    }

    /// The payload. It is valid for reads and writes, and initialized, until the iterator is moved.
    #[inline]
    fn raw_payload(&self) -> *mut [u8] {
        // `hv_pkt_iter_first()` makes sure that the payload begins behind the descriptor, does not begin
        // behind its own end (no length is cut, see `RingSize::LARGEST`), and lies in hv_vmbus' copy.
        let descriptor = self.descriptor();
        let start = usize::from(descriptor.offset8) * 8;
        let len = (usize::from(descriptor.len8) * 8).saturating_sub(start);
        let payload = self.descriptor.cast::<u8>().as_ptr().wrapping_add(start);
        core::ptr::slice_from_raw_parts_mut(payload, len)
    }

    /// The payload, a multiple of 8 bytes long.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        // SAFETY: `raw_payload()` says why it is valid. Only this packet refers to it, and only
        // `payload_mut()`, which borrows the packet alone, changes it.
        unsafe { &*self.raw_payload() }
    }

    /// The payload, to be changed into the answer.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        // SAFETY: As in `payload()`. The descriptor is not part of the slice.
        unsafe { &mut *self.raw_payload() }
    }

    /// Sends the payload back as the packet's answer, with its transaction id. Returns whether the
    /// answer has left, or need not.
    ///
    /// There is room for an answer that the host waits for, see [`Handler::wants_answer`], unless the
    /// handler has sent another since it got the packet. The answer cannot be sent to a host that has
    /// taken the channel away or broken the ring; the log says so.
    #[inline]
    pub fn reply(mut self) -> (Handled, bool) {
        let channel = self.channel;
        let transaction = self.transaction();
        let has_left = channel.send(self.payload_mut(), transaction);
        (Handled(Next::Advance), has_left)
    }

    /// Takes the packet off the channel, to be answered later, with a copy of it in `buffer`.
    ///
    /// Returns the packet and the buffer if the packet does not fit, and memory is short. A buffer
    /// made for this ring always fits.
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

    /// Leaves the packet in the ring. It, and all packets behind it, come in again with the next
    /// event.
    pub fn leave(self) -> Handled {
        Handled(Next::Stay)
    }

    /// Leaves the packet in the ring, to come in again in the softirq.
    pub fn postpone(self) -> Handled {
        Handled(Next::Postpone)
    }

    /// Drops the packet unanswered, and logs the reason. In the host's interrupt, postpones it.
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

/// Memory for a packet that is answered later. By default it has none, and grows when a packet is taken.
#[derive(Default)]
pub struct Buffer(Option<KVec<u8>>);

impl Buffer {
    /// Allocates as much memory as the longest packet of a ring of this size needs.
    pub fn new(ring: RingSize) -> Result<Self> {
        Ok(Self(Some(KVec::with_capacity(
            ring.largest_packet(),
            GFP_KERNEL,
        )?)))
    }
}

/// A packet that was taken off its channel to be answered later.
///
/// It ends with [`Sender::reply`] or [`Taken::abandon`], which give its memory back.
#[must_use]
pub struct Taken {
    pub(super) transaction: u64,
    pub(super) payload: KVec<u8>,
}

impl Taken {
    /// The payload.
    pub fn payload(&mut self) -> &mut [u8] {
        &mut self.payload
    }

    /// Drops the packet unanswered: the host does not wait for the answer any more.
    pub fn abandon(self) -> Buffer {
        Buffer(Some(self.payload))
    }
}
