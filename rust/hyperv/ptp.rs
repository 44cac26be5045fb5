// SPDX-License-Identifier: GPL-2.0

//! Read-only PTP hardware clocks.
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

/// The error for all operations other than reading the clock.
const EOPNOTSUPP: c_int = -(bindings::EOPNOTSUPP as c_int);

/// Why a clock cannot be read. The values are the error numbers that user space gets.
#[derive(Clone, Copy)]
#[repr(i32)]
pub enum Unreadable {
    /// No time is known yet: `ENODATA`.
    NoData = -(bindings::ENODATA as c_int),
    /// The last known time is too old: `ESTALE`.
    Stale = -(bindings::ESTALE as c_int),
}

impl From<Unreadable> for Error {
    fn from(reason: Unreadable) -> Self {
        Self::from_errno(reason as c_int)
    }
}

/// A clock that is derived from the hypervisor's reference time.
pub trait Clock: Send + Sync + 'static {
    /// Returns the Unix time in nanoseconds at the reference time `reference` (units of 100 ns).
    /// `reference` is close to the current time. Must not sleep.
    ///
    /// Fails if no time is known, or if the last known time is too old.
    fn at(&self, reference: u64) -> Result<i64, Unreadable>;
}

impl<T: Clock> Clock for Arc<T> {
    fn at(&self, reference: u64) -> Result<i64, Unreadable> {
        T::at(self, reference)
    }
}

/// A registered clock, `/dev/ptpN` in user space. Dropping this unregisters the clock. If this was
/// leaked, unbinding the device passed to [`Registration::new`] unregisters the clock.
pub struct Registration(#[expect(dead_code)] Managed);

impl Registration {
    /// Registers a clock. `clock_name` in sysfs is the first 31 bytes of `name`. `dev` only limits
    /// the lifetime: the clock has no parent device, as in the C driver. In a kernel without PTP
    /// support, succeeds without registering a clock.
    ///
    /// The clock supports cross timestamps (`PTP_SYS_OFFSET_PRECISE`) if the hypervisor provides
    /// the relation between TSC and reference time, and the kernel can use the TSC as its clock
    /// source.
    ///
    /// Fails with `ENOMEM`, or `EBUSY` if no minor number is free.
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
    /// `None` before the registration, and if the kernel has no PTP support.
    clock: Cell<Option<NonNull<bindings::ptp_clock>>>,
}

// SAFETY: `struct ptp_clock` may be used from any thread, and `T` is `Send`.
unsafe impl<T: Clock> Send for Inner<T> {}

// SAFETY: Only initialization and `drop()` access `clock`. `T` is `Sync`.
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
            // SAFETY: `info` is initialized, and pinned until `drop()` unregisters the clock.
            let clock = from_err_ptr(unsafe {
                bindings::rust_helper_ptp_clock_register(this.info.get(), core::ptr::null_mut())
            })?;
            this.clock.set(NonNull::new(clock));
            Ok(())
        })
    }

    fn info(name: &'static CStr) -> bindings::ptp_clock_info {
        // SAFETY: All fields are valid when zeroed: numbers, pointers and optional functions.
        let mut info: bindings::ptp_clock_info = unsafe { core::mem::zeroed() };
        info.owner = this_module().as_ptr();
        info.gettimex64 = Some(Self::gettimex);
        // User space assumes that the clock supports cross timestamps if this function is set. The
        // function cannot be removed later, as the PTP core may be calling it. If the clock source
        // changes, the function fails.
        // SAFETY: Has no requirements.
        if unsafe { bindings::rust_helper_hv_relates_counters() } {
            info.getcrosststamp = Some(Self::getcrosststamp);
        }
        // The PTP core rejects a clock without `settime64`, and calls `adjtime` and `adjfine`
        // without a check for NULL.
        info.settime64 = Some(Self::settime);
        info.adjtime = Some(Self::adjtime);
        info.adjfine = Some(Self::adjfine);
        let room = info.name.len() - 1;
        for (to, from) in info.name.iter_mut().take(room).zip(name.to_bytes()) {
            *to = *from;
        }
        info
    }

    /// Returns the registration of the clock with this `info`.
    ///
    /// # Safety
    ///
    /// `info` must be the pointer that the PTP core passes to the clock's functions. It points to a
    /// field of a valid `Self`, as `Self` unregisters its clock before it is dropped.
    unsafe fn from_info<'a>(info: *mut bindings::ptp_clock_info) -> &'a Self {
        // CAST: `Opaque` is transparent.
        // SAFETY: `info` is a field of a `Self`.
        #[allow(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let this = unsafe { container_of!(info.cast::<Opaque<_>>(), Self, info) };

        // SAFETY: By the safety requirements, that `Self` is valid.
        unsafe { &*this }
    }

    extern "C" fn gettimex(
        info: *mut bindings::ptp_clock_info,
        to: *mut bindings::timespec64,
        system: *mut bindings::ptp_system_timestamp,
    ) -> c_int {
        // SAFETY: The PTP core has passed `info`.
        let this = unsafe { Self::from_info(info) };

        // `clock_gettime()` passes NULL. Skip the helpers in this case, as they are not inlined.
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

    /// Reads this clock and the system clock at the same time. Fails with `ENODEV` while the TSC is
    /// not the system's clock source, and with `EOPNOTSUPP` if the hypervisor no longer provides
    /// the relation between TSC and reference time.
    extern "C" fn getcrosststamp(
        info: *mut bindings::ptp_clock_info,
        to: *mut bindings::system_device_crosststamp,
    ) -> c_int {
        // SAFETY: `to` is valid. `read_counters()` accepts `info`. The history may be null.
        unsafe {
            bindings::get_device_system_crosststamp(
                Some(Self::read_counters),
                info.cast(),
                core::ptr::null_mut(),
                to,
            )
        }
    }

    /// Reads this clock and the TSC at the same time.
    extern "C" fn read_counters(
        time: *mut bindings::ktime_t,
        processor: *mut bindings::system_counterval_t,
        info: *mut c_void,
    ) -> c_int {
        // SAFETY: The PTP core has passed `info` to `getcrosststamp()`.
        let this = unsafe { Self::from_info(info.cast()) };
        let mut reference = 0;
        // SAFETY: Both pointers are valid for writes.
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
            // SAFETY: `clock` was registered, and is unregistered only here.
            unsafe { bindings::rust_helper_ptp_clock_unregister(clock.as_ptr()) };
        }
    }
}
