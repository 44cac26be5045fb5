// SPDX-License-Identifier: GPL-2.0

//! Work that ends before its owner goes, or before the module does.
//!
//! `kernel::workqueue` leaks a reference to each queued item until the item has run. A driver must
//! know that nothing runs any more when its device is gone: a [`DelayedWork`] is owned, and dropping
//! it cancels it. Safe code could leak such an item, so none is handed out: these work items exist only
//! inside registrations that the device's unbinding ends.
//!
//! [`Detached`] work is for what no unbinding may wait for. It runs on queues of the module, which the
//! last driver's unregistration empties: that is when the module is removed.
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

/// What a work item does.
pub trait Run: Send + Sync + 'static {
    /// Called in process context each time the work was scheduled, never twice at a time. May sleep.
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

/// A work item that runs after a delay, on the module's queue with a rescuer: memory reclaim may wait for
/// it.
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

    /// The queue. It exists while a driver is registered, which is as long as a device is bound.
    fn queue() -> *mut bindings::workqueue_struct {
        Memory::MayWait.queue().load(Acquire)
    }

    /// Runs the work soon, unless it is scheduled already. May be called in any context.
    pub(crate) fn schedule(self: Pin<&Self>) {
        let cpu = bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int;

        // SAFETY: `raw` was initialized in `new()`. It stays valid until the work has run, or was
        // cancelled in `drop()`.
        unsafe { bindings::queue_delayed_work_on(cpu, Self::queue(), self.raw.get(), 0) };
    }

    /// Runs the work at `deadline`, replacing any earlier schedule. May be called in
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

/// The queues of the module's detached work, by [`Memory`]; null while no driver is registered. Each
/// module has its own, as this crate is linked into each.
static QUEUES: [Atomic<*mut bindings::workqueue_struct>; 2] = [
    Atomic::new(core::ptr::null_mut()),
    Atomic::new(core::ptr::null_mut()),
];

/// Calls that may use [`QUEUES`] right now.
static USERS: Atomic<usize> = Atomic::new(0);

/// Number of drivers of the module that are registered, or about to be. Changed under
/// [`lock_drivers`].
static DRIVERS: Atomic<usize> = Atomic::new(0);

/// Keeps others from creating and destroying queues, until the guard is dropped.
fn lock_drivers() -> ScopeGuard<(), fn(())> {
    // SAFETY: In process context, and not locked by this thread: no work item registers drivers.
    unsafe { bindings::rust_helper_drivers_lock() };
    ScopeGuard::new_with_data((), |()| {
        // SAFETY: Locked above.
        unsafe { bindings::rust_helper_drivers_unlock() };
    })
}

/// What a [`Detached`] work item does when memory is short.
#[derive(Clone, Copy)]
pub enum Memory {
    /// Memory may wait for the work, so its queue has a spare thread (`WQ_MEM_RECLAIM`). The work must
    /// not wait for work on queues that have none.
    MayWait,
    /// The work may wait for memory.
    Waits,
}

impl Memory {
    fn queue(self) -> &'static Atomic<*mut bindings::workqueue_struct> {
        match self {
            Self::MayWait => &QUEUES[0],
            Self::Waits => &QUEUES[1],
        }
    }

    /// Creates the queue, with a name after `driver`. It stands still while the system hibernates: devices
    /// may be suspended then.
    fn create_queue(self, driver: &CStr) -> Result<*mut bindings::workqueue_struct> {
        let flags = bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_FREEZABLE;
        let (format, flags) = match self {
            Self::MayWait => (c"%s_reclaim", flags | bindings::wq_flags_WQ_MEM_RECLAIM),
            Self::Waits => (c"%s", flags),
        };

        // SAFETY: Both strings are C strings, and the second is what the format wants.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(format.as_char_ptr(), flags, 0, driver.as_char_ptr())
        };
        if queue.is_null() {
            return Err(ENOMEM);
        }
        Ok(queue)
    }

    /// Destroys the queue when all that was scheduled has run. May sleep.
    fn destroy_queue(self) {
        let queue = self.queue().xchg(core::ptr::null_mut(), Full);
        while USERS.load(Acquire) != 0 {
            fsleep(Delta::from_millis(1));
        }

        // SAFETY: The queue is valid. Whoever loads the pointer from now on finds null, and whoever
        // loaded it before has finished.
        unsafe { bindings::destroy_workqueue(queue) };
    }
}

/// A driver is about to be registered: detached work can be scheduled from now on. The queues have the
/// name of the module's first driver.
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

/// A driver was unregistered. If it was the last, waits until all detached work has run. May sleep.
pub(crate) fn driver_unregistered() {
    let _guard = lock_drivers();
    let drivers = DRIVERS.load(Relaxed) - 1;
    DRIVERS.store(drivers, Relaxed);
    if drivers == 0 {
        // In this order: work of the first kind may schedule work of the second.
        Memory::MayWait.destroy_queue();
        Memory::Waits.destroy_queue();
    }
}

/// Work that outlives the binding of a device, but not the module: the removal of the module waits for
/// it.
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

    /// Runs the work soon; once more if it runs already. May be called in any context.
    ///
    /// Returns false, and does nothing, while no driver of the module is registered.
    pub fn schedule(this: &Arc<Self>) -> bool {
        USERS.fetch_add(1, Full);
        let queue = this.memory.queue().load(Acquire);
        if !queue.is_null() {
            // SAFETY: The queue is destroyed only when nobody uses it.
            let queue = unsafe { Queue::from_raw(queue) };
            // If it is scheduled already, it has yet to run.
            let _ = queue.enqueue(this.clone());
        }
        USERS.fetch_sub(1, Release);
        !queue.is_null()
    }
}
