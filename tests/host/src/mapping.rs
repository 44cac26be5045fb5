// SPDX-License-Identifier: GPL-2.0

//! Mapped memory: the guest's own, and memory that the kernel shares through a descriptor.

use std::ffi::c_int;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

extern "C" {
    fn mmap(addr: *mut u8, len: usize, prot: c_int, flags: c_int, fd: c_int, off: i64) -> *mut u8;
    fn munmap(addr: *mut u8, len: usize) -> c_int;
    fn madvise(addr: *mut u8, len: usize, advice: c_int) -> c_int;
}

const PROT_READ: c_int = 1;
const PROT_READ_WRITE: c_int = 3;
const MAP_SHARED: c_int = 1;
const MAP_PRIVATE_ANONYMOUS_NORESERVE: c_int = 0x2 | 0x20 | 0x4000;
const MADV_HUGEPAGE: c_int = 14;
const MADV_DONTNEED: c_int = 4;

/// A range of this process's memory, mapped as long as the value lives. The owner decides who accesses the range, and
/// how.
pub struct Mapping {
    address: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes of zeroes, in huge pages where the kernel has some.
    pub fn zeroed(length: usize) -> io::Result<Self> {
        let mapping = Self::map(length, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS_NORESERVE, -1)?;
        // SAFETY: The range is the new mapping. A refusal only costs speed.
        unsafe { madvise(mapping.address(), length, MADV_HUGEPAGE) };
        Ok(mapping)
    }

    /// Maps the first `length` bytes of the memory that the kernel shares through `fd`.
    pub fn shared(fd: &OwnedFd, length: usize) -> io::Result<Self> {
        Self::map(length, PROT_READ_WRITE, MAP_SHARED, fd.as_raw_fd())
    }

    /// Like [`Mapping::shared`], read-only.
    pub fn shared_read_only(fd: &OwnedFd, length: usize) -> io::Result<Self> {
        Self::map(length, PROT_READ, MAP_SHARED, fd.as_raw_fd())
    }

    fn map(length: usize, access: c_int, flags: c_int, fd: c_int) -> io::Result<Self> {
        // SAFETY: The kernel picks the address, so the mapping replaces no other.
        let address = unsafe { mmap(std::ptr::null_mut(), length, access, flags, fd, 0) };
        match NonNull::new(address) {
            Some(address) if address.as_ptr() as isize != -1 => Ok(Self { address, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The mapping's first byte. Valid for [`Mapping::length`] bytes as long as `self` lives.
    pub fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// The length in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Zeroes a mapping made by [`Mapping::zeroed`].
    pub fn clear(&self) {
        // SAFETY: The range is this mapping.
        unsafe { madvise(self.address(), self.length, MADV_DONTNEED) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The range is this mapping. No pointer into the range is used after `self`.
        unsafe { munmap(self.address(), self.length) };
    }
}
