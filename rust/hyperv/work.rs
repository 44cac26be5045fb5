// SPDX-License-Identifier: GPL-2.0

//! Work that is cancelled before its owner goes.
//!
//! `kernel::workqueue` leaks a reference to each queued item until the item has run. A driver must
//! know that nothing runs any more when its device is gone: here a work item is owned, and dropping
//! it cancels it. Safe code could leak such an item, so none is handed out: work items exist only
//! inside registrations that the device's unbinding ends.
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

/// What a work item does.
pub trait Run: Send + Sync + 'static {
    /// Called in process context each time the work was scheduled, never twice at a time. May sleep.
    fn run(&self);
}

impl Run for Option<KBox<dyn Run>> {
    fn run(&self) {
        if let Some(inner) = self {
            inner.run();
        }
    }
}

/// A work item that runs some time after it was scheduled, on the system's work queue.
///
/// Must not be leaked while it may be scheduled: its owner has to be dropped before the module goes.
#[pin_data(PinnedDrop)]
pub(crate) struct DelayedWork<T: Run> {
    #[pin]
    raw: Opaque<bindings::delayed_work>,
    inner: T,
}

// SAFETY: `struct delayed_work` may be used from any thread, and `T` is `Send`.
unsafe impl<T: Run> Send for DelayedWork<T> {}

// SAFETY: `struct delayed_work` may be used from any thread, and `T` is `Sync`.
unsafe impl<T: Run> Sync for DelayedWork<T> {}

impl<T: Run> DelayedWork<T> {
    /// Creates a work item that is not scheduled.
    pub(crate) fn new(
        inner: T,
        name: &'static CStr,
        work_key: Pin<&'static LockClassKey>,
        timer_key: Pin<&'static LockClassKey>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            inner,
            raw <- Opaque::ffi_init(|slot: *mut bindings::delayed_work| {
                // SAFETY: `slot` is valid for writes.
                let work = unsafe { &raw mut (*slot).work };

                // SAFETY: `work` is valid for writes, and pinned until it is dropped.
                unsafe {
                    bindings::init_work_with_key(
                        work,
                        Some(Self::callback),
                        false,
                        name.as_char_ptr(),
                        work_key.as_ptr(),
                    )
                };

                // SAFETY: `slot` is valid for writes.
                let timer = unsafe { &raw mut (*slot).timer };

                // SAFETY:
                // - `timer` is valid for writes, and pinned until it is dropped.
                // - It is the timer of a `struct delayed_work`, and interrupt safe, as
                //   `delayed_work_timer_fn()` needs.
                unsafe {
                    bindings::timer_init_key(
                        timer,
                        Some(bindings::delayed_work_timer_fn),
                        bindings::TIMER_IRQSAFE,
                        name.as_char_ptr(),
                        timer_key.as_ptr(),
                    )
                };
            }),
        })
    }

    /// The system's queue.
    fn queue() -> *mut bindings::workqueue_struct {
        // SAFETY: It is set at boot, and always exists.
        unsafe { bindings::system_percpu_wq }
    }

    /// Runs the work soon, unless it is scheduled already. May be called in any context.
    pub(crate) fn schedule(self: Pin<&Self>) {
        let cpu = bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int;

        // SAFETY: `raw` was initialized in `new()`. It stays valid until the work has run, or was
        // cancelled in `drop()`.
        unsafe { bindings::queue_delayed_work_on(cpu, Self::queue(), self.raw.get(), 0) };
    }

    /// Runs the work when `deadline` is over, instead of when it was to run before. May be called in
    /// any context.
    pub(crate) fn schedule_at(self: Pin<&Self>, deadline: Deadline) {
        let cpu = bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int;
        let delay = deadline.left();

        // SAFETY: As in `schedule()`.
        unsafe { bindings::mod_delayed_work_on(cpu, Self::queue(), self.raw.get(), delay) };
    }

    /// Cancels the work; waits for it if it runs. May sleep.
    pub(crate) fn cancel(self: Pin<&Self>) {
        // SAFETY: `raw` was initialized in `new()`.
        unsafe { bindings::cancel_delayed_work_sync(self.raw.get()) };
    }

    extern "C" fn callback(raw: *mut bindings::work_struct) {
        // SAFETY: `raw` is the field of the `struct delayed_work` below.
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let raw = unsafe { container_of!(raw, bindings::delayed_work, work) };

        // CAST: `Opaque` is transparent.
        // SAFETY: `raw` is the field of a `Self`.
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let this = unsafe { container_of!(raw.cast::<Opaque<_>>(), Self, raw) };

        // SAFETY: That `Self` is valid, since `drop()` waits for this.
        let this = unsafe { &*this };
        this.inner.run();
    }
}

#[pinned_drop]
impl<T: Run> PinnedDrop for DelayedWork<T> {
    fn drop(self: Pin<&mut Self>) {
        self.as_ref().cancel();
    }
}
