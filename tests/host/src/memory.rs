// SPDX-License-Identifier: GPL-2.0

//! The guest's memory: one region from physical address 0, shared with running processors.
//!
//! The guest may change any byte at any time. So may a thread of this host that acts for another processor. So this
//! module hands out no references to bytes, and all accesses are atomic: relaxed for copies, sequentially consistent
//! for words of a protocol (ring indices, message types, event flags).

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

use crate::mapping::Mapping;

/// Bytes of a Hyper-V (and x86) page.
pub const PAGE_SIZE: u64 = 4096;

/// An access outside the guest's memory, or a misaligned access to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadAddress {
    /// The guest physical address.
    pub address: u64,
    /// The number of bytes.
    pub length: u64,
}

impl std::fmt::Display for BadAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes at {:#x} are misaligned or not guest memory",
            self.length, self.address
        )
    }
}

impl std::error::Error for BadAddress {}

impl From<BadAddress> for io::Error {
    fn from(bad: BadAddress) -> Self {
        Self::other(bad.to_string())
    }
}

/// The guest's memory, from physical address 0.
pub struct GuestMemory {
    mapping: Mapping,
}

// SAFETY: The mapping lives as long as the value, and every access is atomic.
unsafe impl Send for GuestMemory {}
// SAFETY: As above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Allocates `length` bytes (a multiple of 2 MiB, below 3 GiB) of zeroed memory.
    pub fn new(length: u64) -> io::Result<Self> {
        if length == 0 || length % (2 << 20) != 0 || length > 3 << 30 {
            return Err(io::Error::other(format!(
                "a guest cannot have {length} bytes of memory"
            )));
        }
        Ok(Self {
            mapping: Mapping::zeroed(length as usize)?,
        })
    }

    /// Bytes of memory.
    pub fn len(&self) -> u64 {
        self.mapping.length() as u64
    }

    /// Whether there is no memory: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory's address in this process, for KVM.
    pub fn host_address(&self) -> u64 {
        self.mapping.address() as u64
    }

    /// Copies all nonzero pages: runs of pages, each with its address. A running processor's writes may or may not be
    /// included.
    pub fn nonzero_pages(&self) -> Vec<(u64, Vec<u8>)> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut page = vec![0; PAGE_SIZE as usize];
        for address in (0..self.len()).step_by(PAGE_SIZE as usize) {
            if self.is_zero_page(address) || self.read(address, &mut page).is_err() {
                continue;
            }
            match runs.last_mut() {
                Some((start, bytes)) if *start + bytes.len() as u64 == address => {
                    bytes.extend(&page)
                }
                _ => runs.push((address, page.clone())),
            }
        }
        runs
    }

    fn is_zero_page(&self, address: u64) -> bool {
        (address..address + PAGE_SIZE)
            .step_by(8)
            .all(|at| matches!(self.atomic_u64(at), Ok(word) if word.load(Ordering::Relaxed) == 0))
    }

    /// Zeroes all memory.
    pub fn clear(&self) {
        self.mapping.clear();
    }

    /// Checks a range and returns its address in this process.
    fn at(&self, address: u64, length: u64, align: u64) -> Result<*mut u8, BadAddress> {
        let bad = BadAddress { address, length };
        let end = address.checked_add(length).ok_or(bad)?;
        if end > self.len() || address % align != 0 {
            return Err(bad);
        }
        // SAFETY: `address` was checked: in the mapping, or at its end for an empty range.
        Ok(unsafe { self.mapping.address().add(address as usize) })
    }

    /// Copies bytes out of the guest: aligned words where possible, single bytes elsewhere.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), BadAddress> {
        self.at(address, out.len() as u64, 1)?;
        let (head, words, tail) = split(address, out.len());
        for at in head.chain(tail) {
            out[at] = self.atomic_u8(address + at as u64)?.load(Ordering::Relaxed);
        }
        for (word, chunk) in (address + words.start as u64..)
            .step_by(8)
            .zip(out[words].chunks_exact_mut(8))
        {
            let value = self.atomic_u64(word)?.load(Ordering::Relaxed);
            chunk.copy_from_slice(&value.to_ne_bytes());
        }
        Ok(())
    }

    /// Copies `length` bytes out of the guest.
    pub fn read_vec(&self, address: u64, length: usize) -> Result<Vec<u8>, BadAddress> {
        self.at(address, length as u64, 1)?;
        let mut out = vec![0; length];
        self.read(address, &mut out)?;
        Ok(out)
    }

    /// Copies bytes into the guest: aligned words where possible, single bytes elsewhere.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), BadAddress> {
        self.at(address, data.len() as u64, 1)?;
        let (head, words, tail) = split(address, data.len());
        for at in head.chain(tail) {
            let byte = self.atomic_u8(address + at as u64)?;
            byte.store(data[at], Ordering::Relaxed);
        }
        for (word, chunk) in (address + words.start as u64..)
            .step_by(8)
            .zip(data[words].chunks_exact(8))
        {
            let mut value = [0; 8];
            value.copy_from_slice(chunk);
            let word = self.atomic_u64(word)?;
            word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
        }
        Ok(())
    }

    fn atomic_u8(&self, address: u64) -> Result<&AtomicU8, BadAddress> {
        let at = self.at(address, 1, 1)?;
        // SAFETY: The byte is in bounds and lives as long as `self`. All accesses are atomic.
        Ok(unsafe { AtomicU8::from_ptr(at) })
    }

    fn atomic_u64(&self, address: u64) -> Result<&AtomicU64, BadAddress> {
        let at = self.at(address, 8, 8)?;
        // SAFETY: As in `atomic_u8`. `at()` has checked the alignment.
        Ok(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    fn atomic_u32(&self, address: u64) -> Result<&AtomicU32, BadAddress> {
        let at = self.at(address, 4, 4)?;
        // SAFETY: As in `atomic_u8`. `at()` has checked the alignment.
        Ok(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// Reads an aligned word.
    pub fn load_u32(&self, address: u64) -> Result<u32, BadAddress> {
        Ok(self.atomic_u32(address)?.load(Ordering::SeqCst))
    }

    /// Writes an aligned word. All earlier writes become visible before it.
    pub fn store_u32(&self, address: u64, value: u32) -> Result<(), BadAddress> {
        self.atomic_u32(address)?.store(value, Ordering::SeqCst);
        Ok(())
    }

    /// Sets bits of an aligned word. Returns the word's old value.
    pub fn fetch_or_u32(&self, address: u64, bits: u32) -> Result<u32, BadAddress> {
        Ok(self.atomic_u32(address)?.fetch_or(bits, Ordering::SeqCst))
    }

    /// Sets bits of an aligned 64-bit word. Returns the word's old value.
    pub fn fetch_or_u64(&self, address: u64, bits: u64) -> Result<u64, BadAddress> {
        Ok(self.atomic_u64(address)?.fetch_or(bits, Ordering::SeqCst))
    }
}

/// Splits `length` bytes at `address`: bytes before the first aligned word, whole words, bytes after the last word.
fn split(address: u64, length: usize) -> (Range<usize>, Range<usize>, Range<usize>) {
    let head = length.min((address.wrapping_neg() % 8) as usize);
    let tail = length - (length - head) % 8;
    (0..head, head..tail, tail..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_checked() {
        let memory = GuestMemory::new(2 << 20).unwrap();
        let end = memory.len();
        assert!(memory.write(end - 4, &[1, 2, 3, 4]).is_ok());
        assert_eq!(memory.read_vec(end - 4, 4).unwrap(), [1, 2, 3, 4]);
        assert!(memory.write(end - 3, &[1, 2, 3, 4]).is_err());
        assert!(memory.read_vec(u64::MAX, 2).is_err());
        assert!(memory.load_u32(end).is_err());
        assert!(memory.load_u32(2).is_err());
    }

    #[test]
    fn bytes_are_copied_from_and_to_anywhere() {
        let memory = GuestMemory::new(2 << 20).unwrap();
        let bytes: Vec<u8> = (1..=40).collect();
        for start in 0..16 {
            for length in 0..40 {
                memory.clear();
                memory.write(start, &bytes[..length]).unwrap();
                assert_eq!(memory.read_vec(start, length).unwrap(), bytes[..length]);
                let mut around = vec![0; 64];
                around[start as usize..][..length].copy_from_slice(&bytes[..length]);
                assert_eq!(memory.read_vec(0, 64).unwrap(), around);
            }
        }
    }

    #[test]
    fn words_are_little_endian_and_flags_accumulate() {
        let memory = GuestMemory::new(2 << 20).unwrap();
        memory.store_u32(8, 0x0403_0201).unwrap();
        assert_eq!(memory.read_vec(8, 4).unwrap(), [1, 2, 3, 4]);
        assert_eq!(memory.fetch_or_u64(16, 4).unwrap(), 0);
        assert_eq!(memory.fetch_or_u64(16, 1).unwrap(), 4);
        memory.store_u32(3 * 4096, 1).unwrap();
        let runs = memory.nonzero_pages();
        let shape: Vec<_> = runs.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
        assert_eq!(shape, [(0, 4096), (3 * 4096, 4096)]);
        memory.clear();
        assert_eq!(memory.load_u32(16).unwrap(), 0);
    }
}
