// SPDX-License-Identifier: GPL-2.0

//! Words that several contexts read and write without a lock and without ordering.
//!
//! Each access of [`kernel::sync::atomic`] calls a C helper, even a plain load. The accesses here
//! are inlined.
//!
//! C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)

use core::cell::UnsafeCell;

/// A word that is read and written by single accesses, like `READ_ONCE()` and `WRITE_ONCE()`.
pub struct RwOnce<T>(UnsafeCell<T>);

// SAFETY: All accesses are volatile accesses of an aligned word. The kernel's memory model allows
// these at any time.
unsafe impl<T: Word> Sync for RwOnce<T> {}

impl<T: Word> RwOnce<T> {
    /// Creates a word with the value `value`.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Reads the word.
    #[inline(always)]
    pub fn read(&self) -> T {
        // SAFETY: The pointer is valid for reads; see the implementation of `Sync` for races.
        unsafe { self.0.get().read_volatile() }
    }

    /// Writes the word.
    #[inline(always)]
    pub fn write(&self, value: T) {
        // SAFETY: The pointer is valid for writes; see the implementation of `Sync` for races.
        unsafe { self.0.get().write_volatile(value) }
    }
}

/// A counter that one context at a time increments, and any context may read.
pub struct Counter(RwOnce<usize>);

impl Counter {
    /// Creates a counter with the value 0.
    pub const fn new() -> Self {
        Self(RwOnce::new(0))
    }

    /// Increments the counter, and wraps at `usize::MAX`. Concurrent increments may count as one.
    #[inline(always)]
    pub fn add_one(&self) {
        self.0.write(self.0.read().wrapping_add(1));
    }

    /// Returns the number of increments.
    pub fn get(&self) -> usize {
        self.0.read()
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

/// A type that the processor reads and writes with a single access.
///
/// # Safety
///
/// Aligned accesses must not be torn, and all bit patterns must be valid.
pub unsafe trait Word: Copy + Send {}

// SAFETY: Linux supports no processor that tears accesses to this type.
unsafe impl Word for u32 {}

// SAFETY: As above.
unsafe impl Word for usize {}
