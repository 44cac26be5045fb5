// SPDX-License-Identifier: GPL-2.0

//! A VMBus ring buffer in the guest's memory, from the host's side. The host writes one ring of a channel and reads the
//! other.
//!
//! Source: `struct hv_ring_buffer` in `include/linux/hyperv.h`. The first page holds the control words, the other pages
//! hold data. An 8-byte trailer follows each packet, with the offset of the packet's start in the upper half. The
//! writer signals if the ring was empty and the reader's interrupt mask is 0. The reader signals when it frees the
//! space that the writer waits for.
//!
//! The guest may change any word at any time. So the host reads a word once, checks the value, and then uses it. The
//! host reads its own index only when the channel opens. From then on the host keeps its own index.

use std::cell::Cell;
use std::sync::atomic::fence;
use std::sync::atomic::Ordering;
use std::sync::Arc;

use crate::memory::BadAddress;
use crate::memory::GuestMemory;
use crate::memory::PAGE_SIZE;

const WRITE_INDEX: u64 = 0;
const READ_INDEX: u64 = 4;
const INTERRUPT_MASK: u64 = 8;
const PENDING_SEND_SIZE: u64 = 12;
const FEATURE_BITS: u64 = 64;
const FEATURE_PENDING_SEND_SIZE: u32 = 1;
/// Size of a packet's trailer in bytes.
const TRAILER: u32 = 8;
/// Size of a packet's descriptor in bytes.
const DESCRIPTOR: u32 = 16;
/// Bytes that stay free: a full ring must not look like an empty ring.
const GAP: u32 = 8;

/// A word of a ring's control page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Where the next packet is written.
    WriteIndex,
    /// Where the next packet is read.
    ReadIndex,
    /// Whether the reader wants no interrupts.
    InterruptMask,
    /// How much space the writer waits for.
    PendingSendSize,
    /// Features of writer and reader.
    FeatureBits,
}

impl Word {
    /// All words.
    pub const ALL: [Self; 5] = [
        Self::WriteIndex,
        Self::ReadIndex,
        Self::InterruptMask,
        Self::PendingSendSize,
        Self::FeatureBits,
    ];

    const fn offset(self) -> u64 {
        match self {
            Self::WriteIndex => WRITE_INDEX,
            Self::ReadIndex => READ_INDEX,
            Self::InterruptMask => INTERRUPT_MASK,
            Self::PendingSendSize => PENDING_SEND_SIZE,
            Self::FeatureBits => FEATURE_BITS,
        }
    }
}

/// Why an access to a ring failed. All but `Full` and `Empty` are the guest's faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RingError {
    /// The packet does not fit now.
    Full,
    /// No packet waits.
    Empty,
    /// The packet does not fit into an empty ring.
    TooLarge,
    /// The guest's index is outside the ring, or not a multiple of 8.
    BadIndex(u32),
    /// The length in the packet's descriptor is impossible.
    BadLength(u32),
    /// The guest has masked the interrupts that the host waits for.
    Masked,
    /// A page of the ring is not memory.
    BadAddress(BadAddress),
}

impl std::fmt::Display for RingError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full => write!(f, "the ring is full"),
            Self::Empty => write!(f, "the ring is empty"),
            Self::TooLarge => write!(f, "the packet is larger than the ring"),
            Self::BadIndex(index) => write!(f, "ring index {index} is impossible"),
            Self::BadLength(length) => write!(f, "packet length {length} is impossible"),
            Self::Masked => write!(f, "the guest has masked the host's interrupts"),
            Self::BadAddress(bad) => write!(f, "ring memory: {bad}"),
        }
    }
}

impl std::error::Error for RingError {}

impl From<BadAddress> for RingError {
    fn from(bad: BadAddress) -> Self {
        Self::BadAddress(bad)
    }
}

/// The two indices of a ring, in bytes from the start of its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Indices {
    /// Where the next packet is written.
    pub write: u32,
    /// Where the next packet is read.
    pub read: u32,
}

/// One ring: its control page and data pages.
pub struct Ring {
    memory: Arc<GuestMemory>,
    control: u64,
    data: Vec<u64>,
    /// The offset of the host's next write, if the host is the writer.
    write: Cell<u32>,
    /// The offset of the host's next read, if the host is the reader.
    read: Cell<u32>,
}

impl Ring {
    /// The ring in these page frames, the control page first. `None` if there is no page of data, or a page is not
    /// memory.
    pub fn new(memory: Arc<GuestMemory>, pages: &[u64]) -> Option<Self> {
        let mut addresses = Vec::with_capacity(pages.len());
        for page in pages {
            let address = page.checked_mul(PAGE_SIZE)?;
            memory.load_u32(address).ok()?;
            addresses.push(address);
        }
        let control = *addresses.first()?;
        addresses.remove(0);
        (!addresses.is_empty()).then_some(Self {
            memory,
            control,
            data: addresses,
            write: Cell::new(0),
            read: Cell::new(0),
        })
    }

    /// Bytes of data in the ring, with the free bytes.
    pub fn size(&self) -> u32 {
        self.data.len() as u32 * PAGE_SIZE as u32
    }

    fn word(&self, offset: u64) -> Result<u32, RingError> {
        Ok(self.memory.load_u32(self.control + offset)?)
    }

    /// The largest number of packets in the ring.
    pub fn most_packets(&self) -> u32 {
        self.size() / (DESCRIPTOR + TRAILER)
    }

    /// Whether the reader has masked this ring's interrupts.
    pub fn is_masked(&self) -> Result<bool, RingError> {
        Ok(self.word(INTERRUPT_MASK)? != 0)
    }

    fn set_word(&self, offset: u64, value: u32) -> Result<(), RingError> {
        Ok(self.memory.store_u32(self.control + offset, value)?)
    }

    /// Checks the indices and prepares the host to write from the current write index. Sets the feature bit of the
    /// pending-send size, and clears the size.
    pub fn begin_writing(&self) -> Result<(), RingError> {
        self.write.set(self.checked_indices()?.write);
        self.set_word(FEATURE_BITS, FEATURE_PENDING_SEND_SIZE)?;
        self.set_word(PENDING_SEND_SIZE, 0)
    }

    /// Checks the indices and prepares the host to read from the current read index. Masks the guest's signals.
    pub fn begin_reading(&self) -> Result<(), RingError> {
        self.read.set(self.checked_indices()?.read);
        self.set_interrupt_mask(true)
    }

    /// Reads the indices unchecked.
    pub fn indices(&self) -> Result<Indices, RingError> {
        Ok(Indices {
            write: self.word(WRITE_INDEX)?,
            read: self.word(READ_INDEX)?,
        })
    }

    /// Writes any write index, for a host that misbehaves. If the index is valid, the host's next write is there.
    pub fn set_write_index(&self, value: u32) -> Result<(), RingError> {
        self.write
            .set(self.checked(value).unwrap_or(self.write.get()));
        self.set_word(WRITE_INDEX, value)
    }

    /// Writes any read index, for a host that misbehaves. If the index is valid, the host's next read is there.
    pub fn set_read_index(&self, value: u32) -> Result<(), RingError> {
        self.read
            .set(self.checked(value).unwrap_or(self.read.get()));
        self.set_word(READ_INDEX, value)
    }

    /// Writes any value to a control word, for a host that misbehaves.
    pub fn set_control(&self, word: Word, value: u32) -> Result<(), RingError> {
        self.set_word(word.offset(), value)
    }

    fn checked(&self, index: u32) -> Result<u32, RingError> {
        match index < self.size() && index % 8 == 0 {
            true => Ok(index),
            false => Err(RingError::BadIndex(index)),
        }
    }

    fn checked_indices(&self) -> Result<Indices, RingError> {
        let Indices { write, read } = self.indices()?;
        Ok(Indices {
            write: self.checked(write)?,
            read: self.checked(read)?,
        })
    }

    fn used_between(&self, Indices { write, read }: Indices) -> u32 {
        (write + self.size() - read) % self.size()
    }

    fn free_between(&self, indices: Indices) -> u32 {
        self.size() - GAP - self.used_between(indices)
    }

    /// Number of unread bytes.
    pub fn used(&self) -> Result<u32, RingError> {
        Ok(self.used_between(self.checked_indices()?))
    }

    fn copy(
        &self,
        at: u32,
        length: usize,
        mut each: impl FnMut(u64, usize, usize) -> Result<(), BadAddress>,
    ) -> Result<u32, RingError> {
        let mut at = at;
        let mut done = 0;
        while done < length {
            let offset = u64::from(at) % PAGE_SIZE;
            let part = (length - done).min((PAGE_SIZE - offset) as usize);
            each(
                self.data[at as usize / PAGE_SIZE as usize] + offset,
                done,
                part,
            )?;
            done += part;
            at = (at + part as u32) % self.size();
        }
        Ok(at)
    }

    fn write_at(&self, at: u32, bytes: &[u8]) -> Result<u32, RingError> {
        self.copy(at, bytes.len(), |address, done, part| {
            self.memory.write(address, &bytes[done..done + part])
        })
    }

    fn read_at(&self, at: u32, out: &mut [u8]) -> Result<u32, RingError> {
        let length = out.len();
        self.copy(at, length, |address, done, part| {
            self.memory.read(address, &mut out[done..done + part])
        })
    }

    /// Writes a packet: descriptor and payload, a multiple of 8 bytes. Returns whether the host must signal the reader.
    ///
    /// If the packet does not fit, returns `Full`. The pending-send size then asks the guest to signal when the packet
    /// fits. Fact: a host asks for at least a quarter of the ring. With less, host and guest could wake each other for
    /// every packet.
    pub fn write(&self, packet: &[u8]) -> Result<bool, RingError> {
        let length = packet.len() as u32 + TRAILER;
        if length >= self.size() - GAP {
            return Err(RingError::TooLarge);
        }
        let start = self.write.get();
        let peer = |read| {
            Ok::<_, RingError>(Indices {
                write: start,
                read: self.checked(read)?,
            })
        };
        let mut indices = peer(self.word(READ_INDEX)?)?;
        if self.free_between(indices) < length {
            let quarter = (self.size() - GAP) / 4;
            self.set_word(PENDING_SEND_SIZE, length.max(quarter).next_multiple_of(8))?;
            // The guest may have freed space before it could see the pending-send size. Look again.
            indices = peer(self.word(READ_INDEX)?)?;
            if self.free_between(indices) < length {
                return Err(RingError::Full);
            }
        }
        self.set_word(PENDING_SEND_SIZE, 0)?;
        let at = self.write_at(start, packet)?;
        let at = self.write_at(at, &(u64::from(start) << 32).to_le_bytes())?;
        self.write.set(at);
        self.set_word(WRITE_INDEX, at)?;
        // Order the write index before the reads of mask and read index: the guest must see the packet first.
        fence(Ordering::SeqCst);
        Ok(!self.is_masked()? && self.word(READ_INDEX)? == start)
    }

    /// Reads the next packet: descriptor and payload. Returns the packet, and whether the host must signal the writer.
    pub fn read(&self) -> Result<(Vec<u8>, bool), RingError> {
        let before = Indices {
            write: self.checked(self.word(WRITE_INDEX)?)?,
            read: self.read.get(),
        };
        let used = self.used_between(before);
        if used == 0 {
            return Err(RingError::Empty);
        }
        if used < DESCRIPTOR + TRAILER {
            return Err(RingError::BadLength(used));
        }
        let mut descriptor = [0; DESCRIPTOR as usize];
        let at = self.read_at(before.read, &mut descriptor)?;
        let length = u32::from(u16::from_le_bytes([descriptor[4], descriptor[5]])) * 8;
        if length < DESCRIPTOR || length + TRAILER > used {
            return Err(RingError::BadLength(length));
        }
        let mut packet = vec![0; length as usize];
        let (head, body) = packet.split_at_mut(descriptor.len());
        head.copy_from_slice(&descriptor);
        self.read_at(at, body)?;
        let read = (before.read + length + TRAILER) % self.size();
        self.read.set(read);
        self.set_word(READ_INDEX, read)?;
        Ok((packet, self.made_room(before.read, read)?))
    }

    /// Whether the step of the read index from `old` to `new` frees the space that the writer waits for.
    fn made_room(&self, old: u32, new: u32) -> Result<bool, RingError> {
        // A guest that finds the ring full writes the pending-send size, then reads the read index again. The host
        // wrote the read index, and now reads the pending-send size. With this order at least one of the two sees the
        // other's write.
        fence(Ordering::SeqCst);
        // The pending-send size need not be a multiple of 8: some guests ask for all but one byte.
        let pending = self.word(PENDING_SEND_SIZE)? & !7;
        if pending == 0 {
            return Ok(false);
        }
        // Use one write index for both comparisons. With a new one, the guest's later writes would fill the space that
        // `old` lacked.
        let Ok(write) = self.checked(self.word(WRITE_INDEX)?) else {
            return Ok(false);
        };
        let free = |read| self.free_between(Indices { write, read });
        Ok(free(old) < pending && free(new) >= pending)
    }

    /// Whether the reader must be signalled: a packet is in the ring, and interrupts are not masked.
    pub fn reader_waits(&self) -> bool {
        let packet = self.indices().is_ok_and(|at| at.write != at.read);
        packet && self.is_masked() == Ok(false)
    }

    /// Whether the writer must be signalled: the ring has the space that the writer waits for.
    pub fn writer_waits(&self) -> bool {
        let pending = self.word(PENDING_SEND_SIZE).unwrap_or(0);
        let room = self.checked_indices().map(|at| self.free_between(at));
        pending != 0 && room.is_ok_and(|room| room >= pending)
    }

    /// Masks or unmasks the guest's signals for this ring, as a reader does while it reads.
    pub fn set_interrupt_mask(&self, masked: bool) -> Result<(), RingError> {
        self.set_word(INTERRUPT_MASK, u32::from(masked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring of one control page and two data pages that are not adjacent.
    fn ring() -> (Arc<GuestMemory>, Ring) {
        let memory = Arc::new(GuestMemory::new(2 << 20).unwrap());
        let ring = Ring::new(memory.clone(), &[1, 5, 3]).unwrap();
        (memory, ring)
    }

    fn packet(length: usize, fill: u8) -> Vec<u8> {
        let mut packet = vec![fill; length];
        packet[4..6].copy_from_slice(&((length / 8) as u16).to_le_bytes());
        packet
    }

    #[test]
    fn packets_come_out_as_they_went_in_across_the_end() {
        let (_memory, ring) = ring();
        assert_eq!(ring.size(), 8192);
        for round in 0..50 {
            let sent = packet(16 + 8 * (round * 7 % 90), round as u8);
            assert!(
                ring.write(&sent).unwrap(),
                "an empty ring's reader is signalled"
            );
            let (read, signal) = ring.read().unwrap();
            assert_eq!(read, sent);
            assert!(!signal);
        }
        assert_eq!(ring.read(), Err(RingError::Empty));
    }

    #[test]
    fn the_trailer_holds_the_packets_start() {
        let (memory, ring) = ring();
        ring.write(&packet(24, 1)).unwrap();
        ring.write(&packet(16, 2)).unwrap();
        assert_eq!(memory.read_vec(5 * 4096 + 24, 8).unwrap(), [0; 8]);
        assert_eq!(memory.load_u32(5 * 4096 + 32 + 16 + 4).unwrap(), 32);
        assert_eq!(ring.indices().unwrap(), Indices { write: 56, read: 0 });
    }

    #[test]
    fn only_an_empty_and_unmasked_ring_is_signalled() {
        let (memory, ring) = ring();
        assert!(ring.write(&packet(16, 1)).unwrap());
        assert!(!ring.write(&packet(16, 1)).unwrap());
        ring.read().unwrap();
        ring.read().unwrap();
        memory.store_u32(4096 + INTERRUPT_MASK, 1).unwrap();
        assert!(!ring.write(&packet(16, 1)).unwrap());
    }

    #[test]
    fn a_full_ring_asks_for_room_and_one_word_stays_free() {
        let (memory, ring) = ring();
        let pending = || memory.load_u32(4096 + PENDING_SEND_SIZE).unwrap();
        // 8 packets of 1016 bytes and their trailers fill 8192 bytes. The last packet would leave no free byte.
        for _ in 0..7 {
            ring.write(&packet(1016, 1)).unwrap();
        }
        assert_eq!(ring.write(&packet(1016, 1)), Err(RingError::Full));
        assert_eq!(pending(), 2048, "a quarter of the ring");
        assert_eq!(ring.write(&packet(4096, 1)), Err(RingError::Full));
        assert_eq!(pending(), 4104, "as much as the packet needs");
        ring.read().unwrap();
        ring.write(&packet(1016, 1)).unwrap();
        assert_eq!(pending(), 0);
        assert_eq!(ring.write(&packet(8176, 1)), Err(RingError::TooLarge));
        assert_eq!(ring.write(&packet(8168, 1)), Err(RingError::Full));
    }

    #[test]
    fn a_waiting_guest_is_signalled_when_room_appears() {
        let (memory, ring) = ring();
        // The host honours the pending-send size whether or not the guest sets the feature bit.
        for feature in [0, 1] {
            for _ in 0..7 {
                ring.write(&packet(1016, 1)).unwrap();
            }
            memory.store_u32(4096 + FEATURE_BITS, feature).unwrap();
            memory.store_u32(4096 + PENDING_SEND_SIZE, 2048).unwrap();
            let signals: Vec<_> = (0..7).map(|_| ring.read().unwrap().1).collect();
            assert_eq!(signals, [false, true, false, false, false, false, false]);
            memory.store_u32(4096 + PENDING_SEND_SIZE, 0).unwrap();
        }
    }

    #[test]
    fn room_is_made_beyond_what_the_guest_wrote_meanwhile() {
        let (memory, ring) = ring();
        for _ in 0..7 {
            ring.write(&packet(1016, 1)).unwrap();
        }
        // At the host's last look the ring held one packet and had enough space. The guest has since written six more,
        // and waits.
        memory.store_u32(4096 + PENDING_SEND_SIZE, 2000).unwrap();
        assert_eq!(ring.made_room(0, 1024), Ok(true));
        assert_eq!(ring.made_room(1024, 2048), Ok(false), "it was told before");
    }

    #[test]
    fn a_senseless_pending_size_does_no_harm() {
        let (memory, ring) = ring();
        let signal = |pending, write| {
            memory.store_u32(4096 + PENDING_SEND_SIZE, pending).unwrap();
            ring.set_write_index(write).unwrap();
            ring.made_room(0, 1024)
        };
        assert_eq!(signal(8191, 1024), Ok(true), "all but one byte");
        assert_eq!(signal(7, 8184), Ok(false));
        for pending in [8192, 1 << 31, u32::MAX] {
            assert_eq!(signal(pending, 1024), Ok(false));
        }
        for write in [8192, 4, u32::MAX] {
            assert_eq!(signal(2048, write), Ok(false));
        }
    }

    #[test]
    fn the_hosts_own_index_is_its_own() {
        let (memory, ring) = ring();
        let set = |index, value| memory.store_u32(4096 + index, value).unwrap();
        // The host starts at the indices that the guest has set before it opens the channel.
        set(WRITE_INDEX, 64);
        set(READ_INDEX, 64);
        ring.begin_writing().unwrap();
        ring.begin_reading().unwrap();
        ring.write(&packet(16, 1)).unwrap();
        assert_eq!(memory.read_vec(5 * 4096 + 64, 1).unwrap(), [1]);
        // Then the host ignores the guest's changes of these words.
        set(WRITE_INDEX, 4096);
        ring.write(&packet(16, 2)).unwrap();
        assert_eq!(ring.indices().unwrap().write, 112);
        set(READ_INDEX, 32);
        let read = || ring.read().unwrap().0[0];
        assert_eq!([read(), read()], [1, 2]);
        assert_eq!(
            ring.indices().unwrap(),
            Indices {
                write: 112,
                read: 112
            }
        );
    }

    #[test]
    fn a_guest_that_lies_is_told_so() {
        let (memory, ring) = ring();
        ring.set_write_index(8192).unwrap();
        assert_eq!(ring.read(), Err(RingError::BadIndex(8192)));
        ring.set_read_index(4).unwrap();
        assert_eq!(ring.write(&packet(16, 1)), Err(RingError::BadIndex(4)));
        ring.set_write_index(8).unwrap();
        assert_eq!(ring.read(), Err(RingError::BadLength(8)));
        ring.set_write_index(32).unwrap();
        memory.write(5 * 4096 + 4, &[9, 0]).unwrap();
        assert_eq!(ring.read(), Err(RingError::BadLength(72)));
        assert!(Ring::new(memory.clone(), &[1]).is_none());
        assert!(Ring::new(memory, &[1, 1 << 40]).is_none());
    }
}
