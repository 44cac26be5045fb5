// SPDX-License-Identifier: GPL-2.0

//! Rate limiting, for messages that somebody else can cause.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use crate::bindings;
use kernel::{
    prelude::*,
    types::Opaque, //
};

/// Allows ten events in five seconds, the kernel's default.
#[pin_data]
pub struct RateLimit {
    name: &'static CStr,
    #[pin]
    state: Opaque<bindings::ratelimit_state>,
}

// SAFETY: `struct ratelimit_state` may be used from any thread.
unsafe impl Send for RateLimit {}

// SAFETY: `struct ratelimit_state` has its own lock.
unsafe impl Sync for RateLimit {}

impl RateLimit {
    /// Creates a limit that no event counts against yet. The log knows it by `name`.
    pub fn new(name: &'static CStr) -> impl PinInit<Self> {
        pin_init!(Self {
            name,
            // SAFETY: `slot` is valid for writes.
            state <- Opaque::ffi_init(|slot| unsafe {
                bindings::rust_helper_ratelimit_default_init(slot)
            }),
        })
    }

    /// Counts an event and returns whether it is within the limit. May be called in any context in
    /// which printing is fine: the kernel logs how many were not when the limit allows the next one.
    #[must_use]
    pub fn allows(self: Pin<&Self>) -> bool {
        // SAFETY: `state` was initialized in `new()`; the name is only read.
        unsafe { bindings::___ratelimit(self.state.get(), self.name.as_char_ptr()) != 0 }
    }
}
