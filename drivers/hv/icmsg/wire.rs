// SPDX-License-Identifier: GPL-2.0

//! Little-endian numbers in byte slices.
//!
//! Each function panics if the number doesn't lie within the slice, as indexing does: callers check
//! a message's length once, where it comes in, and read its fields after that.

/// The `N` bytes of `bytes` from offset `at` on.
#[inline]
pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// Reads the `u16` at byte offset `at`.
#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

/// Reads the `u32` at byte offset `at`.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// Reads the `u64` at byte offset `at`.
#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Writes a `u16` at byte offset `at`.
#[inline]
pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Writes a `u32` at byte offset `at`.
#[inline]
pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Writes a `u64` at byte offset `at`.
#[inline]
pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Reads the `u32`, in the order of this machine, at byte offset `at`: daemons speak so.
#[inline]
pub(crate) fn u32_native_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(array_at(bytes, at))
}

/// Writes a `u32`, in the order of this machine, at byte offset `at`: daemons read it so.
#[inline]
pub(crate) fn put_u32_native(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

/// Writes a `u64`, in the order of this machine, at byte offset `at`.
#[inline]
pub(crate) fn put_u64_native(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
}

/// Reads the `u64`, in the order of this machine, at byte offset `at`.
#[cfg(any(test, CONFIG_KUNIT = "y"))]
pub(crate) fn u64_native_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(array_at(bytes, at))
}
