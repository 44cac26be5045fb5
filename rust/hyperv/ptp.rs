// SPDX-License-Identifier: GPL-2.0

//! PTP hardware clocks that can be read but not set.
//!
//! C header: [`include/linux/ptp_clock_kernel.h`](srctree/include/linux/ptp_clock_kernel.h)

use crate::bindings;
use core::{
    cell::Cell,
    ptr::NonNull, //
};
use kernel::{
    container_of,
    error::{
        from_err_ptr,
        from_result, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque,
    ThisModule, //
};

/// A source of time.
pub trait Clock: Send + Sync + 'static {
    /// The time now, as Unix time in nanoseconds. Called in process context.
    fn now(&self) -> Result<i64>;
}

impl<T: Clock> Clock for Arc<T> {
    fn now(&self) -> Result<i64> {
        T::now(self)
    }
}

/// A clock that user space sees as `/dev/ptpN`, until it is dropped.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Clock> {
    #[pin]
    info: Opaque<bindings::ptp_clock_info>,
    inner: T,
    /// `None` before the registration, and where the kernel has no PTP support.
    clock: Cell<Option<NonNull<bindings::ptp_clock>>>,
}

// SAFETY: `struct ptp_clock` may be used from any thread, and `T` is `Send`.
unsafe impl<T: Clock> Send for Registration<T> {}

// SAFETY: `clock` is only accessed in initialization and drop; `T` is `Sync`.
unsafe impl<T: Clock> Sync for Registration<T> {}

impl<T: Clock> Registration<T> {
    /// Registers a clock. `name` is what user space knows it by; at most 31 bytes of it are used.
    pub fn new(
        name: &'static CStr,
        module: &'static ThisModule,
        inner: T,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            info: Opaque::new(Self::info(name, module)),
            inner,
            clock: Cell::new(None),
        })
        .pin_chain(|this| {
            // SAFETY: `info` is complete, and stays where it is until the clock is unregistered in
            // `drop()`.
            let clock = from_err_ptr(unsafe {
                bindings::rust_helper_ptp_clock_register(this.info.get(), core::ptr::null_mut())
            })?;
            this.clock.set(NonNull::new(clock));
            Ok(())
        })
    }

    fn info(name: &'static CStr, module: &'static ThisModule) -> bindings::ptp_clock_info {
        // SAFETY: All fields are valid when zeroed: numbers, pointers, and functions that are
        // optional.
        let mut info: bindings::ptp_clock_info = unsafe { core::mem::zeroed() };
        info.owner = module.as_ptr();
        info.gettimex64 = Some(Self::gettimex);
        // The PTP core insists on the first, and calls the others without looking.
        info.settime64 = Some(Self::settime);
        info.adjtime = Some(Self::adjtime);
        info.adjfine = Some(Self::adjfine);
        let room = info.name.len() - 1;
        for (to, from) in info.name.iter_mut().take(room).zip(name.to_bytes()) {
            *to = *from;
        }
        info
    }

    extern "C" fn gettimex(
        info: *mut bindings::ptp_clock_info,
        time: *mut bindings::timespec64,
        system: *mut bindings::ptp_system_timestamp,
    ) -> c_int {
        // CAST: `Opaque` is transparent.
        // SAFETY: `info` is the field of a valid `Self`: `drop()` unregisters the clock.
        let this = unsafe { &*container_of!(info.cast::<Opaque<_>>(), Self, info) };

        // Few callers want it, and the helpers are calls.
        let has_system = !system.is_null();
        if has_system {
            // SAFETY: `system` is valid where it isn't null.
            unsafe { bindings::rust_helper_ptp_read_system_prets(system) };
        }
        let now = this.inner.now();
        if has_system {
            // SAFETY: As above.
            unsafe { bindings::rust_helper_ptp_read_system_postts(system) };
        }

        from_result(|| {
            // SAFETY: `time` is valid for writes.
            unsafe { *time = bindings::ns_to_timespec64(now?) };
            Ok(0)
        })
    }

    extern "C" fn settime(
        _: *mut bindings::ptp_clock_info,
        _: *const bindings::timespec64,
    ) -> c_int {
        EOPNOTSUPP.to_errno()
    }

    extern "C" fn adjtime(_: *mut bindings::ptp_clock_info, _: i64) -> c_int {
        EOPNOTSUPP.to_errno()
    }

    extern "C" fn adjfine(_: *mut bindings::ptp_clock_info, _: c_long) -> c_int {
        EOPNOTSUPP.to_errno()
    }
}

#[pinned_drop]
impl<T: Clock> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        if let Some(clock) = self.clock.get() {
            // SAFETY: `clock` was registered and is unregistered once.
            unsafe { bindings::rust_helper_ptp_clock_unregister(clock.as_ptr()) };
        }
    }
}
