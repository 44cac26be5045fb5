// SPDX-License-Identifier: GPL-2.0

//! The guest's memory: one region from physical address 0, shared with running processors.
//!
//! The guest may change any byte at any moment, so nothing here hands out references: bytes are copied with volatile
//! accesses, and words that carry a protocol (ring indices, message types, event flags) are accessed as atomics.

use std::ffi::c_int;
use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

extern "C" {
    fn mmap(addr: *mut u8, len: usize, prot: c_int, flags: c_int, fd: c_int, off: i64) -> *mut u8;
    fn munmap(addr: *mut u8, len: usize) -> c_int;
    fn madvise(addr: *mut u8, len: usize, advice: c_int) -> c_int;
}

const PROT_READ_WRITE: c_int = 3;
const MAP_PRIVATE_ANONYMOUS_NORESERVE: c_int = 0x2 | 0x20 | 0x4000;
const MADV_HUGEPAGE: c_int = 14;
const MADV_DONTNEED: c_int = 4;

/// Bytes of a Hyper-V (and x86) page.
pub const PAGE_SIZE: u64 = 4096;

/// An access that does not lie in the guest's memory (or is not aligned, for words).
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
            "{} bytes at {:#x} are not (aligned) guest memory",
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
    base: *mut u8,
    length: u64,
}

// SAFETY: The mapping lives as long as the value; every access is volatile or atomic, as for memory shared with a device.
unsafe impl Send for GuestMemory {}
// SAFETY: As above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Allocates `length` bytes (a multiple of 2 MiB, below 3 GiB) of zeroed memory.
    pub fn new(length: u64) -> io::Result<Self> {
        if length == 0 || length % (2 << 20) != 0 || length > 3 << 30 {
            return Err(io::Error::other(format!(
                "{length} is no size for a guest's memory"
            )));
        }
        // SAFETY: A fresh anonymous mapping at an address that the kernel picks.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                length as usize,
                PROT_READ_WRITE,
                MAP_PRIVATE_ANONYMOUS_NORESERVE,
                -1,
                0,
            )
        };
        if base as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: The range is the mapping just made; a refusal only costs speed.
        unsafe { madvise(base, length as usize, MADV_HUGEPAGE) };
        Ok(Self { base, length })
    }

    /// Bytes of memory.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there is no memory; never so.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Where KVM finds the memory in this process.
    pub fn host_address(&self) -> u64 {
        self.base as u64
    }

    /// Copies all pages that are not zero: runs of pages with the address of each. No processor may be running.
    pub fn nonzero_pages(&self) -> Vec<(u64, Vec<u8>)> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for address in (0..self.length).step_by(PAGE_SIZE as usize) {
            // SAFETY: The page lies in the mapping, and nobody writes while no processor runs.
            let page = unsafe {
                std::slice::from_raw_parts(self.base.add(address as usize), PAGE_SIZE as usize)
            };
            if page.iter().all(|byte| *byte == 0) {
                continue;
            }
            match runs.last_mut() {
                Some((start, bytes)) if *start + bytes.len() as u64 == address => {
                    bytes.extend(page)
                }
                _ => runs.push((address, page.to_vec())),
            }
        }
        runs
    }

    /// Makes all of it zero again. No processor may be running.
    pub fn clear(&self) {
        // SAFETY: The range is the mapping; private anonymous memory reads as zeroes afterwards.
        unsafe { madvise(self.base, self.length as usize, MADV_DONTNEED) };
    }

    /// Checks a range and returns where it begins in this process.
    fn at(&self, address: u64, length: u64, align: u64) -> Result<*mut u8, BadAddress> {
        let bad = BadAddress { address, length };
        let end = address.checked_add(length).ok_or(bad)?;
        if end > self.length || address % align != 0 {
            return Err(bad);
        }
        // SAFETY: `address` was checked to lie in the mapping (or one past its end for an empty range).
        Ok(unsafe { self.base.add(address as usize) })
    }

    /// Copies bytes out of the guest.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), BadAddress> {
        let from = self.at(address, out.len() as u64, 1)?;
        for (index, byte) in out.iter_mut().enumerate() {
            // SAFETY: `at` checked `out.len()` bytes from `from`.
            *byte = unsafe { from.add(index).read_volatile() };
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

    /// Copies bytes into the guest.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), BadAddress> {
        let to = self.at(address, data.len() as u64, 1)?;
        for (index, byte) in data.iter().enumerate() {
            // SAFETY: `at` checked `data.len()` bytes from `to`.
            unsafe { to.add(index).write_volatile(*byte) };
        }
        Ok(())
    }

    /// Copies bytes into the guest while no processor runs: fast, for images of many megabytes.
    pub fn load(&self, address: u64, data: &[u8]) -> Result<(), BadAddress> {
        let to = self.at(address, data.len() as u64, 1)?;
        // SAFETY: `at` checked the destination; `data` lies outside of the mapping; no processor is running.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
        Ok(())
    }

    fn atomic_u32(&self, address: u64) -> Result<&AtomicU32, BadAddress> {
        let at = self.at(address, 4, 4)?;
        // SAFETY: In bounds, aligned, alive as long as `self`, and everyone accesses such words atomically.
        Ok(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// Reads an aligned word.
    pub fn load_u32(&self, address: u64) -> Result<u32, BadAddress> {
        Ok(self.atomic_u32(address)?.load(Ordering::SeqCst))
    }

    /// Writes an aligned word after everything written before.
    pub fn store_u32(&self, address: u64, value: u32) -> Result<(), BadAddress> {
        self.atomic_u32(address)?.store(value, Ordering::SeqCst);
        Ok(())
    }

    /// Sets bits of an aligned word and returns what it was.
    pub fn fetch_or_u32(&self, address: u64, bits: u32) -> Result<u32, BadAddress> {
        Ok(self.atomic_u32(address)?.fetch_or(bits, Ordering::SeqCst))
    }

    /// Sets bits of an aligned 64-bit word and returns what it was.
    pub fn fetch_or_u64(&self, address: u64, bits: u64) -> Result<u64, BadAddress> {
        let at = self.at(address, 8, 8)?;
        // SAFETY: As in `atomic_u32`.
        let word = unsafe { AtomicU64::from_ptr(at.cast()) };
        Ok(word.fetch_or(bits, Ordering::SeqCst))
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        // SAFETY: The mapping was made in `new` with this length; no access outlives `self`.
        unsafe { munmap(self.base, self.length as usize) };
    }
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
