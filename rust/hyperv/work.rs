// SPDX-License-Identifier: GPL-2.0

//! Work that is cancelled when its owner goes.
//!
//! `kernel::workqueue` leaks a reference to whatever is queued until it has run. A driver has to
//! know that nothing runs any more when its device is gone: here, a work item is owned, and
//! dropping it cancels it or waits for it.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::{
    bindings,
    time::Deadline, //
};
use kernel::{
    container_of,
    prelude::*,
    sync::LockClassKey,
    types::Opaque, //
};

/// What a work item does. It borrows nothing: work that is leaked may run still.
pub trait Run: Send + Sync + 'static {
    /// Called in process context each time the work was scheduled, never twice at a time.
    fn run(&self);
}

/// Creates a [`Work`] initialiser with a newly-created lock class.
#[macro_export]
macro_rules! new_work {
    ($name:literal, $inner:expr) => {
        $crate::work::Work::new(
            $inner,
            ::kernel::c_str!($name),
            ::kernel::static_lock_class!(),
        )
    };
}

/// Creates a [`DelayedWork`] initialiser with newly-created lock classes.
#[macro_export]
macro_rules! new_delayed_work {
    ($name:literal, $inner:expr) => {
        $crate::work::DelayedWork::new(
            $inner,
            ::kernel::c_str!($name),
            ::kernel::static_lock_class!(),
            ::kernel::static_lock_class!(),
        )
    };
}

/// A work item on the system's work queue.
#[pin_data(PinnedDrop)]
pub struct Work<T: Run> {
    #[pin]
    raw: Opaque<bindings::work_struct>,
    inner: T,
}

// SAFETY: `struct work_struct` may be used from any thread, and `T` is `Send`.
unsafe impl<T: Run> Send for Work<T> {}

// SAFETY: `struct work_struct` may be used from any thread, and `T` is `Sync`.
unsafe impl<T: Run> Sync for Work<T> {}

impl<T: Run> Work<T> {
    /// Creates a work item that isn't scheduled; use [`new_work!`](crate::new_work).
    pub fn new(
        inner: T,
        name: &'static CStr,
        key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            inner,
            // SAFETY: `slot` is valid for writes, and pinned until it is dropped.
            raw <- Opaque::ffi_init(|slot| unsafe {
                bindings::init_work_with_key(
                    slot,
                    Some(Self::callback),
                    false,
                    name.as_char_ptr(),
                    key.as_ptr(),
                )
            }),
        })
    }

    /// Has the work run soon. Does nothing if it is waiting to run already. May be called in any
    /// context.
    pub fn schedule(self: Pin<&Self>) {
        // SAFETY:
        // - The system's queue always exists.
        // - `raw` was initialized in `new()`. It stays valid until the work has run, or was
        //   cancelled in `drop()`.
        unsafe {
            bindings::queue_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_percpu_wq,
                self.raw.get(),
            )
        };
    }

    /// Takes the work off the queue; waits for it if it runs. May sleep.
    pub fn cancel(self: Pin<&Self>) {
        // SAFETY: `raw` was initialized in `new()`.
        unsafe { bindings::cancel_work_sync(self.raw.get()) };
    }

    extern "C" fn callback(raw: *mut bindings::work_struct) {
        // CAST: `Opaque` is transparent.
        // SAFETY: `raw` is the field of a valid `Self`, since `drop()` waits for this.
        let this = unsafe { &*container_of!(raw.cast::<Opaque<_>>(), Self, raw) };
        this.inner.run();
    }
}

#[pinned_drop]
impl<T: Run> PinnedDrop for Work<T> {
    fn drop(self: Pin<&mut Self>) {
        self.as_ref().cancel();
    }
}

/// A work item that runs some time after it was scheduled.
#[pin_data(PinnedDrop)]
pub struct DelayedWork<T: Run> {
    #[pin]
    raw: Opaque<bindings::delayed_work>,
    inner: T,
}

// SAFETY: `struct delayed_work` may be used from any thread, and `T` is `Send`.
unsafe impl<T: Run> Send for DelayedWork<T> {}

// SAFETY: `struct delayed_work` may be used from any thread, and `T` is `Sync`.
unsafe impl<T: Run> Sync for DelayedWork<T> {}

impl<T: Run> DelayedWork<T> {
    /// Creates a work item that isn't scheduled; use
    /// [`new_delayed_work!`](crate::new_delayed_work).
    pub fn new(
        inner: T,
        name: &'static CStr,
        work_key: Pin<&'static LockClassKey>,
        timer_key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            inner,
            // SAFETY:
            // - `slot` is valid for writes, and pinned until it is dropped.
            // - The timer is that of a `struct delayed_work`, and interrupt safe, as
            //   `delayed_work_timer_fn()` needs.
            raw <- Opaque::ffi_init(|slot: *mut bindings::delayed_work| unsafe {
                bindings::init_work_with_key(
                    &raw mut (*slot).work,
                    Some(Self::callback),
                    false,
                    name.as_char_ptr(),
                    work_key.as_ptr(),
                );
                bindings::timer_init_key(
                    &raw mut (*slot).timer,
                    Some(bindings::delayed_work_timer_fn),
                    bindings::TIMER_IRQSAFE,
                    name.as_char_ptr(),
                    timer_key.as_ptr(),
                );
            }),
        })
    }

    /// Has the work run when `deadline` is over, also if it was to run at another time. May be
    /// called in any context.
    pub fn schedule_at(self: Pin<&Self>, deadline: Deadline) {
        // SAFETY:
        // - The system's queue always exists.
        // - `raw` was initialized in `new()`. It stays valid until the work has run, or was
        //   cancelled in `drop()`.
        unsafe {
            bindings::mod_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_percpu_wq,
                self.raw.get(),
                deadline.left(),
            )
        };
    }

    /// Has the work not run; waits for it if it runs. May sleep.
    pub fn cancel(self: Pin<&Self>) {
        // SAFETY: `raw` was initialized in `new()`.
        unsafe { bindings::cancel_delayed_work_sync(self.raw.get()) };
    }

    extern "C" fn callback(raw: *mut bindings::work_struct) {
        // SAFETY: `raw` is the field of the `struct delayed_work` below.
        let raw = unsafe { container_of!(raw, bindings::delayed_work, work) };
        // CAST: `Opaque` is transparent.
        // SAFETY: `raw` is the field of a valid `Self`, since `drop()` waits for this.
        let this = unsafe { &*container_of!(raw.cast::<Opaque<_>>(), Self, raw) };
        this.inner.run();
    }
}

#[pinned_drop]
impl<T: Run> PinnedDrop for DelayedWork<T> {
    fn drop(self: Pin<&mut Self>) {
        self.as_ref().cancel();
    }
}
