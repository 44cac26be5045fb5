// SPDX-License-Identifier: GPL-2.0

//! Services of which there is one: they need a name that user space knows, so a second device of the
//! class cannot be served.

use hyperv::vmbus;
use kernel::{
    device::Core,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Release, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

/// How long a device waits for its predecessor to be unbound. A host may offer a new device right after
/// it took the old one away, and rescinds wait for one another.
const PATIENCE: Delta = Delta::from_secs(10);

/// How often it looks: a lock would cost more than this, which happens once an offer at most.
const INTERVAL: Delta = Delta::from_millis(20);

/// Set while a device has the service: there can be one.
pub(crate) struct Unique(Atomic<bool>);

impl Unique {
    /// A service that has no device yet.
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(false))
    }

    /// Gives the service to the device until the claim is dropped. Drop the claim last. May sleep.
    ///
    /// Fails with `ENODEV`, and says so in the log, if another device has it.
    pub(crate) fn claim(&'static self, dev: &vmbus::Device<Core<'_>>) -> Result<Claim> {
        let mut looks = PATIENCE.as_millis() / INTERVAL.as_millis();
        loop {
            if let Some(claim) = self.try_claim() {
                return Ok(claim);
            }
            if looks == 0 {
                dev_warn!(dev.as_ref(), "not served: a second device of its class\n");
                return Err(ENODEV);
            }
            looks -= 1;
            fsleep(INTERVAL);
        }
    }

    /// Claims it, if nobody has.
    pub(crate) fn try_claim(&'static self) -> Option<Claim> {
        self.0
            .cmpxchg(false, true, Acquire)
            .ok()
            .map(|_| Claim(self))
    }
}

/// Keeps other devices from being served.
pub(crate) struct Claim(&'static Unique);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0 .0.store(false, Release);
    }
}
