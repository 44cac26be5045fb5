// SPDX-License-Identifier: GPL-2.0

//! Sizes of rings and packets.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)

use crate::bindings;

/// Size of a packet's descriptor, in bytes. The payload follows the descriptor.
const DESCRIPTOR: usize = size_of::<bindings::vmpacket_descriptor>();

/// Size of the trailer that follows each packet in a ring, in bytes. The trailer contains the
/// offset at which the packet starts.
const TRAILER: usize = size_of::<u64>();

/// Number of bytes of a ring that must stay free.
const GAP: usize = 8;

/// The size of a ring in bytes, including its header page. A multiple of the page size.
#[derive(Clone, Copy)]
pub struct RingSize(usize);

impl RingSize {
    /// The maximum size of a ring's data, in bytes. The length of a packet that fills such a ring
    /// fits into `len8` of its descriptor.
    pub const LARGEST: usize = 256 * 1024;

    const HEADER: usize = size_of::<bindings::hv_ring_buffer>();

    /// Returns the size that `VMBUS_RING_SIZE()` calculates for `data` bytes of packets. From eight
    /// pages on, the header page is part of `data`.
    ///
    /// # Panics
    ///
    /// Panics if `data` is 0 or more than [`Self::LARGEST`]. In a `const`, the build fails instead.
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

    /// Returns the size in bytes.
    pub(super) const fn bytes(self) -> u32 {
        // CAST: The size is at most `LARGEST` rounded up, and a header page.
        self.0 as u32
    }

    /// Returns the size in bytes of the longest packet that fits, including its descriptor.
    ///
    /// A full ring would look empty, so [`GAP`] bytes stay free besides the packet and its trailer.
    /// hv_vmbus truncates a packet with an invalid length to this size. So an answer of the same
    /// length fits, and one packet advances the read index by less than the size of the ring.
    pub(super) const fn largest_packet(self) -> usize {
        self.0 - Self::HEADER - TRAILER - GAP
    }
}

/// Returns the number of bytes that a packet with a payload of `len` bytes occupies in a ring.
#[inline]
pub(super) fn packet_size(len: usize) -> u32 {
    // CAST: Packets are at most 0xffff * 8 bytes long.
    (DESCRIPTOR + len + TRAILER) as u32
}

// Upstream only. Here, each module that contains this crate would register the suite.
#[cfg(not(MODULE))]
#[kernel::macros::kunit_tests(rust_vmbus_ring)]
mod tests {
    use super::*;

    #[test]
    fn small_rings_have_a_header_page_besides() {
        assert_eq!(RingSize::with_data(1).0, 2 * RingSize::HEADER);
        let eight = 8 * RingSize::HEADER;
        assert_eq!(RingSize::with_data(eight).0, eight);
    }

    #[test]
    fn packet_has_descriptor_and_trailer() {
        assert_eq!(packet_size(0), 16 + 8);
        assert_eq!(packet_size(8), 16 + 8 + 8);
    }
}
