// SPDX-License-Identifier: GPL-2.0

//! PTP hardware clocks that can be read but not set.
//!
//! C header: [`include/linux/ptp_clock_kernel.h`](srctree/include/linux/ptp_clock_kernel.h)

use crate::{
    bindings,
    linux::{
        devres::{
            Managed,
            Registered, //
        },
        module::this_module, //
    },
    timer, //
};
use core::{
    cell::Cell,
    ptr::NonNull, //
};
use kernel::{
    container_of,
    device::{
        self,
        Bound, //
    },
    error::{
        from_err_ptr,
        from_result, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// What user space gets if it asks a clock for more than to be read.
const EOPNOTSUPP: c_int = -(bindings::EOPNOTSUPP as c_int);

/// Why a clock cannot be read. The values are what user space gets.
#[derive(Clone, Copy)]
#[repr(i32)]
pub enum Unreadable {
    /// No time is known yet: `ENODATA`.
    NoData = -(bindings::ENODATA as c_int),
    /// The last time that is known is too old: `ESTALE`.
    Stale = -(bindings::ESTALE as c_int),
}

impl From<Unreadable> for Error {
    fn from(reason: Unreadable) -> Self {
        Self::from_errno(reason as c_int)
    }
}

/// A source of time that goes with the hypervisor's reference time.
pub trait Clock: Send + Sync + 'static {
    /// The time at the reference time `reference` (units of 100 ns), which is about now, as Unix
    /// time in nanoseconds. Must not sleep.
    fn at(&self, reference: u64) -> Result<i64, Unreadable>;
}

impl<T: Clock> Clock for Arc<T> {
    fn at(&self, reference: u64) -> Result<i64, Unreadable> {
        T::at(self, reference)
    }
}

/// A clock that user space sees as `/dev/ptpN`, until this is dropped or, if this is leaked, until the
/// device that it was registered for is unbound.
pub struct Registration(#[expect(dead_code)] Managed);

impl Registration {
    /// Registers a clock. User space knows it by `name`, of which at most 31 bytes are used. `dev`
    /// only bounds the lifetime: the clock has no parent in sysfs, as with the driver in C. In a kernel
    /// without PTP support, succeeds and registers nothing.
    ///
    /// The clock has cross time stamps (`PTP_SYS_OFFSET_PRECISE`) where the hypervisor relates the
    /// processor's counter to the reference time, and the kernel may have that counter as its clock source.
    ///
    /// Fails with `ENOMEM`, or `EBUSY` if there are no more minor numbers.
    pub fn new<T: Clock>(
        dev: &device::Device<Bound>,
        name: &'static CStr,
        clock: T,
    ) -> Result<Self> {
        let inner = KBox::pin_init(Inner::new(name, clock), GFP_KERNEL)?;
        Ok(Self(Managed::new(dev, inner)?))
    }
}

#[pin_data(PinnedDrop)]
struct Inner<T: Clock> {
    #[pin]
    info: Opaque<bindings::ptp_clock_info>,
    inner: T,
    /// `None` before the registration, and where the kernel has no PTP support.
    clock: Cell<Option<NonNull<bindings::ptp_clock>>>,
}

// SAFETY: `struct ptp_clock` may be used from any thread, and `T` is `Send`.
unsafe impl<T: Clock> Send for Inner<T> {}

// SAFETY: `clock` is only accessed in initialization and drop; `T` is `Sync`.
unsafe impl<T: Clock> Sync for Inner<T> {}

impl<T: Clock> Registered for Inner<T> {}

impl<T: Clock> Inner<T> {
    fn new(name: &'static CStr, inner: T) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            info: Opaque::new(Self::info(name)),
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

    fn info(name: &'static CStr) -> bindings::ptp_clock_info {
        // SAFETY: All fields are valid when zeroed: numbers, pointers, and functions that are
        // optional.
        let mut info: bindings::ptp_clock_info = unsafe { core::mem::zeroed() };
        info.owner = this_module().as_ptr();
        info.gettimex64 = Some(Self::gettimex);
        // User space takes its presence for a promise. It stays, as the PTP core may be calling it: a
        // clock source that changes later makes it fail.
        // SAFETY: Has no requirements.
        if unsafe { bindings::rust_helper_hv_relates_counters() } {
            info.getcrosststamp = Some(Self::getcrosststamp);
        }
        // The PTP core refuses a clock without `settime64`, and calls the other two without a check
        // for NULL.
        info.settime64 = Some(Self::settime);
        info.adjtime = Some(Self::adjtime);
        info.adjfine = Some(Self::adjfine);
        let room = info.name.len() - 1;
        for (to, from) in info.name.iter_mut().take(room).zip(name.to_bytes()) {
            *to = *from;
        }
        info
    }

    /// # Safety
    ///
    /// `info` must be what the PTP core passes to its functions: the field of a valid `Self`, as
    /// that unregisters its clock before it goes.
    unsafe fn from_info<'a>(info: *mut bindings::ptp_clock_info) -> &'a Self {
        // CAST: `Opaque` is transparent.
        // SAFETY: `info` is the field of a `Self`.
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let this = unsafe { container_of!(info.cast::<Opaque<_>>(), Self, info) };

        // SAFETY: That `Self` is valid.
        unsafe { &*this }
    }

    extern "C" fn gettimex(
        info: *mut bindings::ptp_clock_info,
        to: *mut bindings::timespec64,
        system: *mut bindings::ptp_system_timestamp,
    ) -> c_int {
        // SAFETY: The PTP core has passed `info`.
        let this = unsafe { Self::from_info(info) };

        // `clock_gettime()` passes NULL. Skip the helpers then: each is a call.
        let has_system = !system.is_null();
        if has_system {
            // SAFETY: `system` is valid where it isn't null.
            unsafe { bindings::rust_helper_ptp_read_system_prets(system) };
        }
        let now = this.inner.at(timer::read_reference_counter());
        if has_system {
            // SAFETY: As above.
            unsafe { bindings::rust_helper_ptp_read_system_postts(system) };
        }

        from_result(|| {
            // SAFETY: Has no requirements.
            let now = unsafe { bindings::ns_to_timespec64(now?) };

            // SAFETY: `to` is valid for writes.
            unsafe { *to = now };
            Ok(0)
        })
    }

    /// Reads this clock and the system's at one moment. Fails with `ENODEV` while the clock source is
    /// not the processor's counter, `EOPNOTSUPP` if the hypervisor no longer relates that counter to the
    /// reference time.
    extern "C" fn getcrosststamp(
        info: *mut bindings::ptp_clock_info,
        to: *mut bindings::system_device_crosststamp,
    ) -> c_int {
        // SAFETY: `to` is valid, and `info` is what `read_counters()` wants. There is no history.
        unsafe {
            bindings::get_device_system_crosststamp(
                Some(Self::read_counters),
                info.cast(),
                core::ptr::null_mut(),
                to,
            )
        }
    }

    /// Reads this clock and the processor's counter at one moment.
    extern "C" fn read_counters(
        time: *mut bindings::ktime_t,
        processor: *mut bindings::system_counterval_t,
        info: *mut c_void,
    ) -> c_int {
        // SAFETY: `getcrosststamp()` has passed on what the PTP core has.
        let this = unsafe { Self::from_info(info.cast()) };
        let mut reference = 0;
        // SAFETY: Both are valid for writes.
        if !unsafe { bindings::rust_helper_hv_read_counters(processor, &mut reference) } {
            return EOPNOTSUPP;
        }
        from_result(|| {
            let now = this.inner.at(reference)?;

            // SAFETY: `time` is valid for writes.
            unsafe { *time = now };
            Ok(0)
        })
    }

    extern "C" fn settime(
        _: *mut bindings::ptp_clock_info,
        _: *const bindings::timespec64,
    ) -> c_int {
        EOPNOTSUPP
    }

    extern "C" fn adjtime(_: *mut bindings::ptp_clock_info, _: i64) -> c_int {
        EOPNOTSUPP
    }

    extern "C" fn adjfine(_: *mut bindings::ptp_clock_info, _: c_long) -> c_int {
        EOPNOTSUPP
    }
}

#[pinned_drop]
impl<T: Clock> PinnedDrop for Inner<T> {
    fn drop(self: Pin<&mut Self>) {
        if let Some(clock) = self.clock.get() {
            // SAFETY: `clock` was registered and is unregistered once.
            unsafe { bindings::rust_helper_ptp_clock_unregister(clock.as_ptr()) };
        }
    }
}
