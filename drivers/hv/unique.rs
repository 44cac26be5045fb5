// SPDX-License-Identifier: GPL-2.0

//! Services that only one device can have. Such a service uses a name that user space knows, so the
//! module cannot serve a second device of the class.

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

/// Time that a device waits for its predecessor to be unbound. The host may offer a new device
/// right after it has rescinded the old one, and hv_vmbus handles one rescind at a time.
const PATIENCE: Delta = Delta::from_secs(10);

/// Interval at which a waiting device tries again. Polling is simpler than a lock, and happens only
/// if two devices of a class overlap.
const INTERVAL: Delta = Delta::from_millis(20);

/// Whether a device has the service.
pub(crate) struct Unique(Atomic<bool>);

impl Unique {
    /// Creates a service that no device has.
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(false))
    }

    /// Claims the service for `dev` until the claim is dropped. Drop all other parts of the service
    /// before the claim. May sleep for up to 10 s.
    ///
    /// Fails with `ENODEV` and a line in the log if another device still has the service after 10
    /// s.
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

    /// Claims the service, or returns `None` if the service is claimed already.
    pub(crate) fn try_claim(&'static self) -> Option<Claim> {
        self.0
            .cmpxchg(false, true, Acquire)
            .ok()
            .map(|_| Claim(self))
    }
}

/// The right of a device to have the service.
pub(crate) struct Claim(&'static Unique);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0 .0.store(false, Release);
    }
}
