// SPDX-License-Identifier: GPL-2.0

//! Registrations that end no later than the binding of their device.

use core::convert::Infallible;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    devres::Devres,
    prelude::*, //
};

/// A registration that ends when it is dropped.
pub(crate) trait Registered: Send + Sync + 'static {}

/// Owns a registration. Dropping this ends the registration. If this was leaked, unbinding the
/// device ends the registration. If several were leaked, the newest ends first.
///
/// This type is not generic: each `Devres<T>` would be a copy of the same code.
pub(crate) struct Managed(Devres<KBox<dyn Registered>>);

impl Managed {
    /// Ties `registered` to the binding of `dev`.
    ///
    /// Fails with `ENOMEM`.
    pub(crate) fn new<T: Registered>(
        dev: &Device<Bound>,
        registered: Pin<KBox<T>>,
    ) -> Result<Self> {
        // SAFETY: `Managed` never moves the contents of the box, and returns no mutable reference
        // to them.
        let registered = unsafe { Pin::into_inner_unchecked(registered) };
        Self::new_erased(dev, registered)
    }

    fn new_erased(dev: &Device<Bound>, registered: KBox<dyn Registered>) -> Result<Self> {
        Ok(Self(Devres::new::<Infallible>(dev, registered)?))
    }

    /// Returns the registration.
    ///
    /// Fails with `EINVAL` if the registration is not tied to `dev`.
    pub(crate) fn access<'a>(&'a self, dev: &'a Device<Bound>) -> Result<Pin<&'a dyn Registered>> {
        let registered = &**self.0.access(dev)?;

        // SAFETY: `new()` got a pinned registration.
        Ok(unsafe { Pin::new_unchecked(registered) })
    }
}
