// SPDX-License-Identifier: GPL-2.0

//! The two rings of an open channel, as its callback uses them.
//!
//! `hv_vmbus` has functions for this that any number of callers may use at once: each packet costs
//! a lock, a list of pieces to copy, and two calls. A channel here has one caller at a time, so it
//! reads and writes the rings itself, by the same rules.
//!
//! Each ring is mapped twice in a row, so a packet that goes round its end is whole in memory.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h) (`struct hv_ring_buffer`)

use crate::bindings;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
};

/// Bytes in front of a packet's payload.
const DESCRIPTOR: usize = size_of::<bindings::vmpacket_descriptor>();

/// Bytes that follow each packet in a ring: where the packet began.
const TRAILER: usize = size_of::<u64>();

/// The type of packets that are plain data, which all requests of hosts and all answers are.
pub(crate) const IN_BAND: u16 = bindings::vmbus_packet_type_VM_PKT_DATA_INBAND as u16;

/// The size of one ring in bytes, its header page included: a multiple of the page size.
#[derive(Clone, Copy)]
pub struct RingSize(usize);

impl RingSize {
    const HEADER: usize = size_of::<bindings::hv_ring_buffer>();

    /// The ring that `VMBUS_RING_SIZE()` makes: it has room for `data` bytes of packets, or where
    /// that is large, eight pages or more, for a page less.
    pub const fn with_data(data: usize) -> Self {
        let page = kernel::page::PAGE_SIZE;
        // A ring that is large anyway takes its header out of the data.
        let header = if data >= 8 * Self::HEADER {
            0
        } else {
            Self::HEADER
        };
        Self((header + data).next_multiple_of(page))
    }

    /// The size in bytes.
    pub(crate) const fn bytes(self) -> u32 {
        // CAST: Rings are not that large.
        self.0 as u32
    }

    /// The longest packet that fits, its descriptor included.
    ///
    /// A ring is never full, or it would look empty: beside the packet and its trailer, eight bytes
    /// are left. Longer ones are cut to this, for a host that lies about lengths: so that there can
    /// be room for the answer, and the read index, moved by a packet, goes round the ring at most
    /// once.
    pub(crate) const fn largest_packet(self) -> u32 {
        // CAST: As above.
        (self.0 - Self::HEADER - 2 * TRAILER) as u32
    }
}

/// Copies 8-byte words, which may change meanwhile where they come from.
///
/// # Safety
///
/// `from` and `to` must be aligned, and valid for reads and writes of `words` words.
#[inline]
unsafe fn copy(from: *const u64, to: *mut u64, words: usize) {
    /// Up to here a loop is faster than a call.
    const SHORT: usize = 32;

    if words > SHORT {
        // SAFETY: Guaranteed by the safety requirements of this function; the two belong to
        // different allocations.
        unsafe { core::ptr::copy_nonoverlapping(from, to, words) };
        return;
    }
    for word in 0..words {
        // SAFETY: Guaranteed by the safety requirements of this function.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
    }
}

/// One of a channel's rings.
///
/// # Invariants
///
/// `info` is that of `channel`, which is open for as long as `'a`.
struct Ring<'a> {
    channel: *mut bindings::vmbus_channel,
    info: *mut bindings::hv_ring_buffer_info,
    _open: PhantomData<&'a ()>,
}

/// What the first words of a ring say, which guest and host share.
#[derive(Clone, Copy)]
enum Word {
    WriteIndex = 0,
    ReadIndex = 1,
    InterruptMask = 2,
    PendingSendSize = 3,
}

impl Ring<'_> {
    #[inline]
    fn word(&self, word: Word) -> &Atomic<u32> {
        // SAFETY: By the type invariant, the ring is mapped; it begins with these words, which
        // everybody accesses atomically.
        unsafe {
            let header = (*self.info).ring_buffer.cast::<u32>();
            Atomic::from_ptr(header.add(word as usize))
        }
    }

    /// Reads one of them, as `READ_ONCE()` does.
    #[inline]
    fn read(&self, word: Word) -> u32 {
        // SAFETY: As for `word()`. A call of `Atomic::load()` costs more than all around it.
        unsafe {
            let header = (*self.info).ring_buffer.cast::<u32>();
            header.add(word as usize).read_volatile()
        }
    }

    /// Bytes of packets that the ring has room for, less what is kept free.
    #[inline]
    fn size(&self) -> u32 {
        // SAFETY: By the type invariant, `info` is valid; the size doesn't change.
        unsafe { (*self.info).ring_datasize }
    }

    /// The word at a byte offset into the ring's data.
    ///
    /// # Safety
    ///
    /// `offset` must be less than twice the ring's size.
    #[inline]
    unsafe fn at(&self, offset: u32) -> *mut u64 {
        // SAFETY: By the type invariant, the ring is mapped, and its data twice, behind the header;
        // the rest by the safety requirements of this function.
        unsafe {
            let header = (*self.info).ring_buffer;
            header.add(1).cast::<u8>().add(offset as usize).cast()
        }
    }
}

/// The ring that the host reads.
pub(crate) struct Outbound<'a>(Ring<'a>);

impl Outbound<'_> {
    /// The outbound ring of a channel.
    ///
    /// # Safety
    ///
    /// The channel must be open for as long as `'_`, and nobody else may write to the ring.
    #[inline]
    pub(crate) unsafe fn new(channel: NonNull<bindings::vmbus_channel>) -> Self {
        let channel = channel.as_ptr();
        // INVARIANT: The channel is open.
        Self(Ring {
            channel,
            // SAFETY: The channel is valid.
            info: unsafe { &raw mut (*channel).outbound },
            _open: PhantomData,
        })
    }

    /// Where the next packet goes, and how many bytes are free from there on, one of which stays
    /// so; `None` if the host has spoilt the indices.
    #[inline]
    fn room(&self) -> Option<(u32, u32)> {
        let size = self.0.size();
        let read = self.0.read(Word::ReadIndex);
        let write = self.0.read(Word::WriteIndex);
        if read >= size || write >= size || write % 8 != 0 {
            return None;
        }
        let free = match write.checked_sub(read) {
            Some(used) => size - used,
            None => read - write,
        };
        Some((write, free))
    }

    /// Returns whether there is room for a packet with a payload as long as this. If not, the host
    /// will signal when there is, unless one as long is sent before.
    #[inline]
    pub(crate) fn has_room(&self, payload: &[u64]) -> bool {
        // CAST: Packets are at most 0xffff * 8 bytes long.
        let needed = (DESCRIPTOR + size_of_val(payload) + TRAILER) as u32;
        // Nothing can be sent where the indices are spoilt; sending says so.
        let is_free = || self.room().is_none_or(|(_, free)| free > needed);
        if !is_free() {
            self.0.word(Word::PendingSendSize).store(needed, Relaxed);
            // The host moves its read index, then reads the wish.
            // SAFETY: Has no requirements.
            unsafe { bindings::rust_helper_virt_mb() };
            if !is_free() {
                return false;
            }
        }
        true
    }

    /// Sends in-band data.
    ///
    /// Fails with `ENODEV` if the host has taken the channel away, `EIO` if it has spoilt the
    /// ring's indices, `EAGAIN` if there is no room.
    pub(crate) fn send(&self, payload: &[u64], transaction: u64) -> Result {
        let channel = self.0.channel;
        // SAFETY: The channel is valid; the flag may be set at any time.
        if unsafe { (&raw const (*channel).rescind).read_volatile() } {
            return Err(ENODEV);
        }
        let (write, free) = self.room().ok_or(EIO)?;
        let len = DESCRIPTOR + size_of_val(payload);
        if free as usize <= len + TRAILER {
            return Err(EAGAIN);
        }

        // SAFETY:
        // - `write` lies in the ring, in whole words, and what is written is shorter than the ring.
        // - All of that is free: the host doesn't read it before the index says that it is there.
        unsafe {
            let at = self.0.at(write);
            // Type, offset of the payload and length, both in units of 8 bytes; no flags.
            let descriptor =
                u64::from(IN_BAND) | (DESCRIPTOR as u64 / 8) << 16 | (len as u64 / 8) << 32;
            at.write_volatile(descriptor.to_le());
            at.add(1).write_volatile(transaction);
            copy(payload.as_ptr(), at.add(2), payload.len());
            let trailer = u64::from(write) << 32;
            at.add(2 + payload.len()).write_volatile(trailer.to_le());
        }

        // CAST: Less than the ring's size.
        let next = write + (len + TRAILER) as u32;
        let next = next.checked_sub(self.0.size()).unwrap_or(next);
        self.0.word(Word::WriteIndex).store(next, Release);

        // Whoever has waited for room has sent what it was for, but a longer packet may wait still.
        let wish = self.0.read(Word::PendingSendSize);
        if wish != 0 && wish as usize <= len + TRAILER {
            self.0.word(Word::PendingSendSize).store(0, Relaxed);
        }

        // The host has read all, then masks no more interrupts, then looks at the index again.
        // SAFETY: Has no requirements.
        unsafe { bindings::rust_helper_virt_mb() };
        let is_masked = self.0.word(Word::InterruptMask).load(Acquire) != 0;
        if !is_masked && self.0.read(Word::ReadIndex) == write {
            // SAFETY: The channel is open. Only its callback counts.
            unsafe {
                (*channel).intr_out_empty += 1;
                bindings::vmbus_setevent(channel);
            }
        }
        Ok(())
    }
}

/// The ring that the host writes.
pub(crate) struct Inbound<'a>(Ring<'a>);

impl Inbound<'_> {
    /// The inbound ring of a channel.
    ///
    /// # Safety
    ///
    /// The channel must be open for as long as `'_`, and nobody else may read from the ring.
    #[inline]
    pub(crate) unsafe fn new(channel: NonNull<bindings::vmbus_channel>) -> Self {
        let channel = channel.as_ptr();
        // INVARIANT: The channel is open.
        Self(Ring {
            channel,
            // SAFETY: The channel is valid.
            info: unsafe { &raw mut (*channel).inbound },
            _open: PhantomData,
        })
    }

    /// Copies the packet that is next out of the ring, to where the host can't change it any more.
    ///
    /// As with `hv_pkt_iter_first()`, a length that can't be becomes all that is there, and an
    /// offset that can't be the least.
    #[inline]
    pub(crate) fn peek(&self) -> Option<NonNull<bindings::vmpacket_descriptor>> {
        let info = self.0.info;
        // SAFETY: By `Ring`'s invariant; these are the callback's own.
        let (read, copied, room) = unsafe {
            let info = &*info;
            (info.priv_read_index, info.pkt_buffer, info.pkt_buffer_size)
        };
        let write = self.0.word(Word::WriteIndex).load(Acquire);
        let available = match write.checked_sub(read) {
            Some(available) => available,
            None => self.0.size() - read + write,
        };
        let available = available.min(room) as usize;
        if available < DESCRIPTOR {
            return None;
        }

        let copied = copied.cast::<u64>();
        // SAFETY:
        // - The private index lies in the ring, in whole words, and no packet is longer than the
        //   ring.
        // - The copy has room for so many bytes.
        unsafe {
            let at = self.0.at(read);
            let first = u64::from_le(at.read_volatile());
            let len = match (first >> 32 & 0xffff) as usize * 8 {
                len if (DESCRIPTOR..=available).contains(&len) => len,
                _ => available,
            };
            let offset = match (first >> 16 & 0xffff) as usize * 8 {
                offset if (DESCRIPTOR..=len).contains(&offset) => offset,
                _ => DESCRIPTOR,
            };
            let words = len / 8;
            let kept = first & 0xffff_0000_0000_ffff;
            let first = kept | (offset as u64 / 8) << 16 | (words as u64) << 32;
            copied.write(first.to_le());
            copy(at.add(1), copied.add(1), words - 1);
        }
        NonNull::new(copied.cast())
    }

    /// Goes on to the packet behind the one of that descriptor, which [`Self::peek`] has returned.
    #[inline]
    pub(crate) fn advance(&self, descriptor: NonNull<bindings::vmpacket_descriptor>) {
        let info = self.0.info;
        // SAFETY: By `Ring`'s invariant; the index is the callback's own, and the descriptor in the
        // callback's copy.
        unsafe {
            let len = u32::from((*descriptor.as_ptr()).len8) * 8;
            let next = (*info).priv_read_index + len + TRAILER as u32;
            (*info).priv_read_index = next.checked_sub(self.0.size()).unwrap_or(next);
        }
    }

    /// Copies packets to that memory from now on; gives back the memory with the last one.
    ///
    /// # Panics
    ///
    /// If it is less than the longest packet of a ring as large needs.
    ///
    /// # Safety
    ///
    /// Nothing may refer to the last packet's copy any more.
    #[inline]
    pub(crate) unsafe fn exchange(&self, memory: KVec<u64>) -> KVec<u64> {
        let info = self.0.info;
        // SAFETY: By `Ring`'s invariant; these are the callback's own while the channel is open.
        let (last, words) = unsafe {
            let words = (*info).pkt_buffer_size as usize / size_of::<u64>();
            (&raw mut (*info).pkt_buffer, words)
        };
        assert!(memory.len() >= words);
        let (memory, ..) = memory.into_raw_parts();
        // SAFETY:
        // - What was there is from `kzalloc()`, or from a `KVec`, which is from `kmalloc()`, too;
        //   it has as many words, all of them written. Nothing else refers to it, by the safety
        //   requirements of this function.
        // - What gets there has as many, and `kfree()` is what ends either.
        unsafe {
            let last = last.replace(memory.cast());
            KVec::from_raw_parts(last.cast(), words, words)
        }
    }

    /// Lets the host see how far the ring was read, and signals if it waits for that.
    #[inline]
    pub(crate) fn close(&self) {
        // SAFETY: The channel is open, and nobody else reads from the ring.
        unsafe { bindings::hv_pkt_iter_close(self.0.channel) };
    }
}
