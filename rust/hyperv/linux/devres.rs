// SPDX-License-Identifier: GPL-2.0

//! Registrations that end with the binding of their device.

use core::convert::Infallible;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    devres::Devres,
    prelude::*, //
};

/// A registration that is ended by dropping it.
pub(crate) trait Registered: Send + Sync + 'static {}

/// Owns a registration. The registration ends when this is dropped. If this is leaked, the
/// registration ends when the device is unbound; of several, the newest ends first.
///
/// One type serves all registrations: each `Devres<T>` would be a copy of the same code.
pub(crate) struct Managed(Devres<KBox<dyn Registered>>);

impl Managed {
    /// Ties `registered` to the binding of `dev`.
    ///
    /// Fails with `ENOMEM`.
    pub(crate) fn new<T: Registered>(
        dev: &Device<Bound>,
        registered: Pin<KBox<T>>,
    ) -> Result<Self> {
        // SAFETY: `Managed` never moves what the box holds, and hands out no mutable reference.
        let registered = unsafe { Pin::into_inner_unchecked(registered) };
        Self::new_erased(dev, registered)
    }

    fn new_erased(dev: &Device<Bound>, registered: KBox<dyn Registered>) -> Result<Self> {
        Ok(Self(Devres::new::<Infallible>(dev, registered)?))
    }

    /// Returns the registration.
    ///
    /// Fails with `EINVAL` if `dev` is not its device.
    pub(crate) fn access<'a>(&'a self, dev: &'a Device<Bound>) -> Result<Pin<&'a dyn Registered>> {
        let registered = &**self.0.access(dev)?;

        // SAFETY: It was pinned in `new()`.
        Ok(unsafe { Pin::new_unchecked(registered) })
    }
}
