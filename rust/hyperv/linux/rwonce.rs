// SPDX-License-Identifier: GPL-2.0

//! Words that several contexts read and write without a lock, in no order with other memory.
//!
//! [`kernel::sync::atomic`] calls a function for each access, even for a plain load.
//!
//! C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)

use core::cell::UnsafeCell;

/// A word that is read and written whole, as by `READ_ONCE()` and `WRITE_ONCE()`.
pub struct RwOnce<T>(UnsafeCell<T>);

// SAFETY: All accesses are volatile and of a whole aligned word, which the kernel's memory model allows at
// any time.
unsafe impl<T: Word> Sync for RwOnce<T> {}

impl<T: Word> RwOnce<T> {
    /// Creates a word with this value.
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

/// A type that the processor reads and writes at once.
///
/// # Safety
///
/// An aligned access must not be torn, and all bit patterns must be valid.
pub unsafe trait Word: Copy + Send {}

// SAFETY: Linux runs on no processor that tears these.
unsafe impl Word for u32 {}

// SAFETY: As above.
unsafe impl Word for usize {}
