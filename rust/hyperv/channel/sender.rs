// SPDX-License-Identifier: GPL-2.0

//! The part of a channel's callback that uses the rings: handles inbound packets, and sends
//! answers.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)

use super::{
    packet::Next,
    ring::packet_size,
    Buffer,
    Context,
    Handler,
    Job,
    Packet,
    Taken, //
};
use crate::{
    bindings,
    compat,
    linux::{
        ratelimit::RateLimit,
        time::Deadline,
        workqueue::DelayedWork, //
    },
    vmbus, //
};
use core::{
    cell::Cell,
    ptr::NonNull, //
};
use kernel::prelude::*;

/// Number of packets handled before other softirqs run. Limits how long a host that floods the ring
/// occupies a CPU.
const BUDGET: usize = 64;

/// Number of packets handled in the host's interrupt. The softirq handles the others.
const INTERRUPT_BUDGET: usize = 4;

/// The outcome of sending an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The answer is in the outbound ring.
    Left,
    /// The answer was dropped: the ring is full, and the host does not wait for this answer.
    NotAwaited,
    /// The host waits for the answer, but the answer could not be sent. The error is logged.
    Failed,
}

/// Access to the rings and the job of a channel, for one invocation of the callback.
///
/// # Invariants
///
/// `channel` is open, and no other code uses its rings.
pub struct Sender<'a> {
    pub(super) channel: NonNull<bindings::vmbus_channel>,
    pub(super) device: &'a vmbus::Device,
    pub(super) limit: Pin<&'a RateLimit>,
    pub(super) job: Pin<&'a DelayedWork<Job>>,
    pub(super) pending_size: &'a Cell<u32>,
    pub(super) unsent: &'a Cell<Option<Error>>,
    pub(super) context: Context,
    /// A lower bound of the free bytes in the outbound ring. Reading by the host only adds free
    /// bytes.
    pub(super) room: Cell<u32>,
    /// Whether an answer or a packet waits for room. Waiters ask again in each invocation of the
    /// callback.
    pub(super) waits_for_room: Cell<bool>,
}

impl<'a> Sender<'a> {
    /// Returns the rate limit of the log messages that the channel's host can cause.
    pub fn limit(&self) -> Pin<&'a RateLimit> {
        self.limit
    }

    /// Schedules the channel's job to run soon, in process context. Does nothing if the job is
    /// scheduled already.
    pub fn defer(&self) {
        self.job.schedule();
    }

    /// Schedules the channel's job to run at `deadline`. Replaces any earlier schedule.
    pub fn defer_until(&self, deadline: Deadline) {
        self.job.schedule_at(deadline);
    }

    /// Sends the payload of a taken packet as the answer to that packet, if the outbound ring has
    /// room for it, see [`Packet::reply`].
    ///
    /// If there is no room, returns the packet: call this again in [`Handler::woken`], which is
    /// called when there is room.
    pub fn reply(&self, mut taken: Taken) -> Result<(Buffer, Sent), Taken> {
        if !self.has_room(taken.payload.len()) {
            return Err(taken);
        }
        let sent = self.send(&mut taken.payload, taken.transaction);
        Ok((taken.abandon(), sent))
    }

    /// Returns whether the host's interrupt has called the handler. The handler must not print
    /// then.
    #[inline]
    pub fn is_in_interrupt(&self) -> bool {
        if self.context == Context::Softirq {
            return false;
        }

        // SAFETY: Has no requirements.
        unsafe { bindings::rust_helper_in_vmbus_isr() }
    }

    /// Returns the first packet in the inbound ring, if any.
    #[inline]
    fn first(&self) -> Option<NonNull<bindings::vmpacket_descriptor>> {
        // SAFETY: By the type invariant, the channel is open, and no other code reads the ring.
        NonNull::new(unsafe { bindings::hv_pkt_iter_first(self.channel.as_ptr()) })
    }

    /// Returns the packet that follows `descriptor`, if any.
    ///
    /// # Safety
    ///
    /// `descriptor` must be the packet that hv_vmbus' iterator has returned last. No [`Packet`] may
    /// refer to it.
    #[inline]
    unsafe fn next(
        &self,
        descriptor: NonNull<bindings::vmpacket_descriptor>,
    ) -> Option<NonNull<bindings::vmpacket_descriptor>> {
        // SAFETY: By the type invariant and the safety requirements of this function.
        NonNull::new(unsafe {
            bindings::__hv_pkt_iter_next(self.channel.as_ptr(), descriptor.as_ptr())
        })
    }

    /// Publishes the read index of the inbound ring. Signals the host if the host waits for free
    /// space.
    #[inline]
    fn publish_read_index(&self) {
        // SAFETY: By the type invariant, the channel is open, and no other code reads the ring.
        unsafe { bindings::hv_pkt_iter_close(self.channel.as_ptr()) };
    }

    /// Asks the host to signal when the outbound ring has room for `size` bytes; 0 for never.
    pub(super) fn set_pending_size(&self, size: u32) {
        self.pending_size.set(size);
        // SAFETY: By the type invariant, the channel is open.
        unsafe { bindings::rust_helper_vmbus_set_pending_size(self.channel.as_ptr(), size) };
    }

    /// Returns whether the outbound ring has room for a packet with a payload of `len` bytes. If
    /// not, the host signals when the ring has room. The caller must ask again in the next
    /// invocation of the callback.
    #[inline]
    fn has_room(&self, len: usize) -> bool {
        let needed = packet_size(len);
        // A full ring would look empty, so at least one byte must stay free.
        self.room.get() > needed || self.finds_room(needed) || self.gets_room(needed)
    }

    /// Returns whether the outbound ring now has room for more than `needed` bytes.
    #[inline]
    fn finds_room(&self, needed: u32) -> bool {
        // SAFETY: By the type invariant, the channel is open.
        let room = unsafe { bindings::rust_helper_vmbus_bytes_to_write(self.channel.as_ptr()) };
        self.room.set(room);
        room > needed
    }

    /// Asks the host to signal when the outbound ring has room for `needed` bytes. Returns whether
    /// the ring has had room since.
    #[cold]
    #[inline(never)]
    fn gets_room(&self, needed: u32) -> bool {
        self.set_pending_size(needed.max(self.pending_size.get()));
        let has_room = self.finds_room(needed);
        self.waits_for_room
            .set(self.waits_for_room.get() || !has_room);
        has_room
    }

    /// Sends in-band data. An error is logged later.
    #[inline]
    pub(super) fn send(&self, payload: &mut [u8], transaction: u64) -> Sent {
        // CAST: Packets are at most 0xffff * 8 bytes long.
        let len = payload.len() as u32;
        // SAFETY: By the type invariant, the channel is open. `payload` is valid for reads.
        let errno = unsafe {
            compat::vmbus_sendpacket(
                self.channel.as_ptr(),
                payload.as_mut_ptr().cast(),
                len,
                transaction,
                bindings::vmbus_packet_type_VM_PKT_DATA_INBAND,
                0,
            )
        };
        if errno != 0 {
            return self.failed_to_send(errno);
        }
        let size = packet_size(payload.len());
        self.room.set(self.room.get().saturating_sub(size));
        Sent::Left
    }

    /// Keeps the error for the log, if the host waits for this answer.
    #[cold]
    #[inline(never)]
    fn failed_to_send(&self, errno: c_int) -> Sent {
        match Error::from_errno(errno) {
            // The callers check for room, except for answers that the host does not wait for.
            EAGAIN => Sent::NotAwaited,
            error => {
                self.unsent.set(Some(error));
                Sent::Failed
            }
        }
    }

    /// Logs the error of the last answer that could not be sent.
    #[cold]
    #[inline(never)]
    pub(super) fn log_unsent(&self) {
        if let Some(error) = self.unsent.take() {
            if self.limit.allows() {
                dev_warn!(self.device.as_ref(), "reply not sent: {:?}\n", error);
            }
        }
    }

    /// Passes the packets in the ring to `handler`, as long as there is room for their answers.
    /// Returns whether the remaining packets, if any, can wait for the next signal or wake-up.
    pub(super) fn poll<H: Handler>(&self, handler: &mut H) -> bool {
        let mut next = self.first();
        for done in 0..BUDGET {
            // The host signals only when it adds to an empty ring. Publish the read index before
            // the last check.
            let Some(descriptor) = next.or_else(|| {
                self.publish_read_index();
                self.first()
            }) else {
                return true;
            };

            // INVARIANT: The iterator has returned `descriptor` last.
            let packet = Packet {
                channel: self,
                descriptor,
            };
            if done == INTERRUPT_BUDGET && self.is_in_interrupt() {
                break;
            }
            let payload = packet.payload();
            if !self.has_room(payload.len()) && handler.wants_answer(payload) {
                self.publish_read_index();
                return true;
            }
            // The host has corrupted the indices. Sending would make hv_vmbus print, so leave the
            // packet to the softirq.
            if self.room.get() == u32::MAX && self.is_in_interrupt() {
                break;
            }
            match handler.receive(packet).0 {
                // SAFETY: The iterator has returned `descriptor` last, and `receive()` has consumed
                // the packet.
                Next::Advance => next = unsafe { self.next(descriptor) },
                Next::Stay => {
                    self.publish_read_index();
                    return true;
                }
                Next::Postpone => break,
            }
        }
        self.publish_read_index();
        false
    }
}
