// SPDX-License-Identifier: GPL-2.0

//! Rate limiting for log messages.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use crate::bindings;
use kernel::{
    prelude::*,
    types::Opaque, //
};

/// Allows ten events per five seconds, the kernel's default.
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
    /// Creates a rate limit. The kernel's messages about suppressed events contain `name`.
    pub fn new(name: &'static CStr) -> impl PinInit<Self> {
        pin_init!(Self {
            name,
            // SAFETY: `slot` is valid for writes.
            state <- Opaque::ffi_init(|slot| unsafe {
                bindings::rust_helper_ratelimit_default_init(slot)
            }),
        })
    }

    /// Counts an event, and returns whether it is within the limit. May be called in any context
    /// that may print: when the next interval starts, the kernel logs the number of suppressed
    /// events.
    #[must_use]
    pub fn allows(self: Pin<&Self>) -> bool {
        // SAFETY: `state` was initialized in `new()`. The name is only read.
        unsafe { bindings::___ratelimit(self.state.get(), self.name.as_char_ptr()) != 0 }
    }
}
