// SPDX-License-Identifier: GPL-2.0

//! Notification of hibernation.
//!
//! C header: [`include/linux/suspend.h`](srctree/include/linux/suspend.h)

use crate::{
    bindings,
    linux::{
        devres::{
            Managed,
            Registered, //
        },
        workqueue::{
            Detached,
            Memory,
            Run, //
        },
    },
};
use kernel::{
    container_of,
    device::{
        Bound,
        Device, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        Mutex, //
    },
    types::Opaque, //
};

/// A listener for hibernation. All methods are called in process context, and may sleep and do I/O.
pub trait Hibernation: Send + Sync + 'static {
    /// Called when the system is about to hibernate. User space is frozen only after this returns.
    fn begins(&self);

    /// Called when the system has resumed, or has failed to hibernate. Also called when the
    /// registration ends.
    fn ends(&self);
}

/// Notifies a listener of hibernation. Dropping this ends the registration. If this was leaked,
/// unbinding the device ends the registration.
///
/// The registration takes effect some time after the creation, so a hibernation that begins before
/// that time may go unnoticed. A running call of the listener continues after the registration has
/// ended. Only the removal of the module waits for this call.
pub struct HibernationNotifier(#[expect(dead_code)] Managed);

impl HibernationNotifier {
    /// Registers `listener`, until this is dropped or `dev` is unbound.
    ///
    /// Fails with `ENOMEM`.
    pub fn new(dev: &Device<Bound>, listener: Arc<dyn Hibernation>) -> Result<Self> {
        let notifier = Arc::pin_init(Notifier::new(listener), GFP_KERNEL)?;
        let run = KBox::new(notifier.clone(), GFP_KERNEL)?;
        let work = Detached::new(run, Memory::Waits)?;
        Detached::schedule(&work);
        let inner = Inner { notifier, work };
        Ok(Self(Managed::new(dev, KBox::pin(inner, GFP_KERNEL)?)?))
    }
}

/// A registration. Registering and unregistering wait for the notifiers that run. A notifier may
/// thaw file systems, which may take minutes. So detached work registers and unregisters.
struct Inner {
    notifier: Arc<Notifier>,
    work: Arc<Detached>,
}

impl Registered for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        self.notifier.is_wanted.store(false, Release);
        if !Detached::schedule(&self.work) {
            self.notifier.run();
        }
    }
}

/// A notifier. `is_wanted` says whether it should be registered, see [`Notifier::run`].
#[pin_data(PinnedDrop)]
struct Notifier {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    listener: Arc<dyn Hibernation>,
    is_wanted: Atomic<bool>,
    #[pin]
    is_registered: Mutex<bool>,
}

// SAFETY: Notifiers may be registered and unregistered from any thread. `listener` is `Send`.
unsafe impl Send for Notifier {}

// SAFETY: Only the notifier chain accesses `block`, with the chain's lock held. `listener` is
// `Sync`.
unsafe impl Sync for Notifier {}

impl Notifier {
    fn new(listener: Arc<dyn Hibernation>) -> impl PinInit<Self> {
        pin_init!(Self {
            listener,
            is_wanted: Atomic::new(true),
            is_registered <- new_mutex!(false, "Notifier::is_registered"),
            block <- Opaque::ffi_init(|slot: *mut bindings::notifier_block| {
                let mut block: bindings::notifier_block = pin_init::zeroed();
                block.notifier_call = Some(Self::callback);

                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(block) };
            }),
        })
    }

    extern "C" fn callback(
        block: *mut bindings::notifier_block,
        action: c_ulong,
        _: *mut c_void,
    ) -> c_int {
        // CAST: `Opaque` is transparent.
        // SAFETY: `block` is a field of a `Self`.
        #[allow(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let this = unsafe { container_of!(block.cast::<Opaque<_>>(), Self, block) };

        // SAFETY: That `Self` is valid, since unregistering waits for this function.
        let this = unsafe { &*this };

        // CAST: Actions are small numbers.
        match action as u32 {
            bindings::PM_HIBERNATION_PREPARE => this.listener.begins(),
            bindings::PM_POST_HIBERNATION => this.listener.ends(),
            _ => {}
        }
        bindings::NOTIFY_DONE as c_int
    }

    fn unregister(&self) {
        // SAFETY: `block` was registered.
        unsafe { bindings::unregister_pm_notifier(self.block.get()) };
    }
}

impl Run for Notifier {
    /// Registers or unregisters the notifier, as `is_wanted` says.
    fn run(&self) {
        let mut is_registered = self.is_registered.lock();
        match (self.is_wanted.load(Acquire), *is_registered) {
            (true, false) => {
                // SAFETY: `block` is pinned, and unregistered in `drop()` at the latest.
                *is_registered = unsafe { bindings::register_pm_notifier(self.block.get()) } == 0;
            }
            (false, true) => {
                self.unregister();
                *is_registered = false;
                self.listener.ends();
            }
            _ => {}
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Notifier {
    fn drop(self: Pin<&mut Self>) {
        if *self.is_registered.lock() {
            self.unregister();
        }
    }
}
