// SPDX-License-Identifier: GPL-2.0

//! Work items that cannot outlive their owner or the module.
//!
//! `kernel::workqueue` keeps a reference to each queued item until the item has run. But no work of
//! a device may run after the device is unbound. So a `DelayedWork` is owned, and dropping it
//! cancels the work. As safe code could leak a `DelayedWork`, it is private to this crate: each one
//! is part of a registration that ends when the device is unbound.
//!
//! [`Detached`] work is work for which unbinding must not wait. It runs on queues that exist while
//! a driver is registered. The removal of a driver's module waits for this work.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::{
    bindings,
    linux::time::Deadline, //
};
use kernel::{
    container_of, impl_has_work,
    prelude::*,
    static_lock_class,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc,
        LockClassKey, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::{
        Opaque,
        ScopeGuard, //
    },
    workqueue::{
        Queue,
        Work,
        WorkItem, //
    },
};

/// The function of a work item.
pub trait Run: Send + Sync + 'static {
    /// Called in process context when the work is due. Never runs concurrently with itself. May
    /// sleep.
    fn run(&self);
}

impl<T: Run> Run for Arc<T> {
    fn run(&self) {
        (**self).run();
    }
}

impl Run for Option<KBox<dyn Run>> {
    fn run(&self) {
        if let Some(inner) = self {
            inner.run();
        }
    }
}

/// A work item that runs after a delay. Its queue has a rescuer: a thread that runs the work when
/// no memory for further threads is available. So memory reclaim may wait for the work.
///
/// Must not be leaked while it is scheduled. The owner must be dropped before the module is
/// removed.
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
                // - `timer` is the timer of a `struct delayed_work`. `delayed_work_timer_fn()`
                //   requires `TIMER_IRQSAFE`.
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

    /// Returns the queue. The queue exists while a driver is registered, and thus while a device is
    /// bound.
    fn queue() -> *mut bindings::workqueue_struct {
        Memory::MayWait.queue().load(Acquire)
    }

    /// Schedules the work to run soon, unless it is scheduled already. May be called in any
    /// context.
    pub(crate) fn schedule(self: Pin<&Self>) {
        let cpu = bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int;

        // SAFETY: `raw` was initialized in `new()`. It stays valid until the work has run, or
        // `drop()` has cancelled the work.
        unsafe { bindings::queue_delayed_work_on(cpu, Self::queue(), self.raw.get(), 0) };
    }

    /// Schedules the work to run at `deadline`. Replaces any earlier schedule. May be called in any
    /// context.
    pub(crate) fn schedule_at(self: Pin<&Self>, deadline: Deadline) {
        let cpu = bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int;
        let delay = deadline.left();

        // SAFETY: As in `schedule()`.
        unsafe { bindings::mod_delayed_work_on(cpu, Self::queue(), self.raw.get(), delay) };
    }

    /// Cancels the work. Waits for the work if it is running. May sleep.
    pub(crate) fn cancel(self: Pin<&Self>) {
        // SAFETY: `raw` was initialized in `new()`.
        unsafe { bindings::cancel_delayed_work_sync(self.raw.get()) };
    }

    extern "C" fn callback(raw: *mut bindings::work_struct) {
        // SAFETY: `raw` is a field of a `struct delayed_work`.
        #[allow(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let raw = unsafe { container_of!(raw, bindings::delayed_work, work) };

        // CAST: `Opaque` is transparent.
        // SAFETY: `raw` is a field of a `Self`.
        #[allow(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let this = unsafe { container_of!(raw.cast::<Opaque<_>>(), Self, raw) };

        // SAFETY: That `Self` is valid, since `drop()` waits for this function.
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

/// The module's queues, indexed by [`Memory`]. Null while no driver is registered. Each module has
/// its own queues, as this crate is linked into each module.
static QUEUES: [Atomic<*mut bindings::workqueue_struct>; 2] = [
    Atomic::new(core::ptr::null_mut()),
    Atomic::new(core::ptr::null_mut()),
];

/// Number of callers that may be using [`QUEUES`].
static USERS: Atomic<usize> = Atomic::new(0);

/// Number of the module's drivers that are registered or being registered. Protected by
/// [`lock_drivers`].
static DRIVERS: Atomic<usize> = Atomic::new(0);

/// Serializes the creation and destruction of the queues, until the guard is dropped.
fn lock_drivers() -> ScopeGuard<(), fn(())> {
    // SAFETY: Called in process context. This thread does not hold the lock: no work item registers
    // drivers.
    unsafe { bindings::rust_helper_drivers_lock() };
    ScopeGuard::new_with_data((), |()| {
        // SAFETY: Locked above.
        unsafe { bindings::rust_helper_drivers_unlock() };
    })
}

/// The relation between work and memory reclaim.
#[derive(Clone, Copy)]
pub enum Memory {
    /// Memory reclaim may wait for the work, so its queue has a rescuer (`WQ_MEM_RECLAIM`). The
    /// work must not wait for work on queues without a rescuer.
    MayWait,
    /// The work may wait for memory reclaim.
    Waits,
}

impl Memory {
    fn queue(self) -> &'static Atomic<*mut bindings::workqueue_struct> {
        match self {
            Self::MayWait => &QUEUES[0],
            Self::Waits => &QUEUES[1],
        }
    }

    /// Creates the queue, named after `driver`. The queue is frozen while the system is suspended
    /// or hibernates, as devices may be suspended.
    fn create_queue(self, driver: &CStr) -> Result<*mut bindings::workqueue_struct> {
        let flags = bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_FREEZABLE;
        let (format, flags) = match self {
            Self::MayWait => (c"%s_reclaim", flags | bindings::wq_flags_WQ_MEM_RECLAIM),
            Self::Waits => (c"%s", flags),
        };

        // SAFETY: Both strings are valid C strings. The format takes one string.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(format.as_char_ptr(), flags, 0, driver.as_char_ptr())
        };
        if queue.is_null() {
            return Err(ENOMEM);
        }
        Ok(queue)
    }

    /// Destroys the queue after all scheduled work has run. May sleep.
    fn destroy_queue(self) {
        let queue = self.queue().xchg(core::ptr::null_mut(), Full);
        while USERS.load(Acquire) != 0 {
            fsleep(Delta::from_millis(1));
        }

        // SAFETY: The queue is valid. All callers that have loaded the pointer have finished.
        // Callers that load it from now on get null.
        unsafe { bindings::destroy_workqueue(queue) };
    }
}

/// To be called before a driver is registered. From now on, work can be scheduled. The queues are
/// named after the first driver.
///
/// Fails with `ENOMEM`.
pub(crate) fn driver_registers(name: &CStr) -> Result {
    let _guard = lock_drivers();
    let drivers = DRIVERS.load(Relaxed);
    if drivers == 0 {
        let first = Memory::MayWait.create_queue(name)?;
        Memory::MayWait.queue().store(first, Release);
        let second = Memory::Waits
            .create_queue(name)
            .inspect_err(|_| Memory::MayWait.destroy_queue())?;
        Memory::Waits.queue().store(second, Release);
    }
    DRIVERS.store(drivers + 1, Relaxed);
    Ok(())
}

/// To be called after a driver was unregistered. After the last driver, waits until all detached
/// work has run. May sleep.
pub(crate) fn driver_unregistered() {
    let _guard = lock_drivers();
    let drivers = DRIVERS.load(Relaxed) - 1;
    DRIVERS.store(drivers, Relaxed);
    if drivers == 0 {
        // The order matters: work on the first queue may schedule work on the second.
        Memory::MayWait.destroy_queue();
        Memory::Waits.destroy_queue();
    }
}

/// Work that may outlive the binding of a device. Removing the module waits for this work.
#[pin_data]
pub struct Detached {
    inner: KBox<dyn Run>,
    memory: Memory,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Detached { self.work }
}

impl WorkItem for Detached {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.inner.run();
    }
}

impl Detached {
    /// Creates work that is not scheduled.
    ///
    /// Fails with `ENOMEM`.
    pub fn new(inner: KBox<dyn Run>, memory: Memory) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                inner,
                memory,
                work <- Work::new(c"Detached::work", static_lock_class!()),
            }),
            GFP_KERNEL,
        )
    }

    /// Schedules the work to run soon, or to run again if it is running. May be called in any
    /// context.
    ///
    /// Returns false, and does nothing, while no driver is registered.
    pub fn schedule(this: &Arc<Self>) -> bool {
        USERS.fetch_add(1, Full);
        let queue = this.memory.queue().load(Acquire);
        if !queue.is_null() {
            // SAFETY: The queue is not destroyed while `USERS` is not 0.
            let queue = unsafe { Queue::from_raw(queue) };
            // `enqueue()` fails if the work is scheduled already. That is fine: the work has yet to
            // run.
            let _ = queue.enqueue(this.clone());
        }
        USERS.fetch_sub(1, Release);
        !queue.is_null()
    }
}
