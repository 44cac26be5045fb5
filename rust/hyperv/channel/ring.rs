// SPDX-License-Identifier: GPL-2.0

//! The sizes of rings and of the packets in them.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)

use crate::bindings;

/// Bytes in front of a packet's payload.
const DESCRIPTOR: usize = size_of::<bindings::vmpacket_descriptor>();

/// Bytes behind each packet in a ring: the offset at which the packet began.
const TRAILER: usize = size_of::<u64>();

/// Bytes of a ring that stay free.
const GAP: usize = 8;

/// The size of one ring in bytes, its header page included: a multiple of the page size.
#[derive(Clone, Copy)]
pub struct RingSize(usize);

impl RingSize {
    /// The most data that a ring can have, in bytes: a packet that fills it must not be longer than a
    /// descriptor can say.
    pub const LARGEST: usize = 256 * 1024;

    const HEADER: usize = size_of::<bindings::hv_ring_buffer>();

    /// The ring that `VMBUS_RING_SIZE()` makes: it has room for `data` bytes of packets. From eight
    /// pages of data on, the header takes its page out of them.
    ///
    /// # Panics
    ///
    /// If `data` is 0 or more than [`Self::LARGEST`]: in a `const`, the build fails.
    pub const fn with_data(data: usize) -> Self {
        assert!(data > 0 && data <= Self::LARGEST);
        let page = kernel::page::PAGE_SIZE;
        let header = if data >= 8 * Self::HEADER {
            0
        } else {
            Self::HEADER
        };
        Self((header + data).next_multiple_of(page))
    }

    /// The size in bytes.
    pub(super) const fn bytes(self) -> u32 {
        // CAST: Rings are not much larger than `LARGEST`.
        self.0 as u32
    }

    /// The longest packet that fits, its descriptor included.
    ///
    /// A full ring would look empty, so [`GAP`] bytes stay free beside the packet and its trailer.
    /// hv_vmbus cuts a packet whose length is wrong to this size. So an answer of the same size fits,
    /// and one packet moves the read index round the ring at most once.
    pub(super) const fn largest_packet(self) -> usize {
        self.0 - Self::HEADER - TRAILER - GAP
    }
}

/// Bytes that a packet with a payload of `len` bytes takes in a ring.
pub(super) fn packet_size(len: usize) -> u32 {
    // CAST: Packets are at most 0xffff * 8 bytes long.
    (DESCRIPTOR + len + TRAILER) as u32
}
