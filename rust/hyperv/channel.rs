// SPDX-License-Identifier: GPL-2.0

//! VMBus channels.
//!
//! A channel has two rings of packets, one in each direction. hv_vmbus owns both. This module uses
//! the functions that hv_vmbus exports, and one helper that reads the free space of the outbound
//! ring. A [`Handler`] handles the packets. The channel's callback calls the handler on one CPU at
//! a time, in the host's interrupt or in a softirq.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)

use crate::{
    bindings,
    linux::{
        devres::{
            Managed,
            Registered, //
        },
        ratelimit::RateLimit,
        workqueue::{
            DelayedWork,
            Run, //
        },
    },
    vmbus, //
};
use core::{
    cell::{
        Cell,
        UnsafeCell, //
    },
    marker::PhantomData, //
};
use kernel::{
    device,
    error::to_result,
    new_mutex,
    prelude::*,
    static_lock_class,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Mutex, //
    },
};

mod packet;
mod ring;
mod sender;

pub use packet::{
    Buffer,
    Handled,
    Packet,
    Taken, //
};
pub use ring::RingSize;
pub use sender::{
    Sender,
    Sent, //
};

/// The context in which the packets of a channel are handled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Softirq context.
    Softirq,
    /// The host's interrupt for the first four packets, softirq for all further packets. Saves the
    /// latency of the softirq. Every lock that the handler takes must disable interrupts. The
    /// handler must not print in the interrupt: hv_vmbus holds a spinlock there, and consoles are
    /// slow. See [`Sender::is_in_interrupt`] and [`Packet::postpone`].
    ///
    /// On PREEMPT_RT, hv_vmbus uses a real-time thread instead of the interrupt. The same rules
    /// apply.
    Interrupt,
}

/// Handles the packets of a channel.
///
/// A handler borrows nothing: a leaked channel calls its handler until the device is unbound.
pub trait Handler: Send + 'static {
    /// Returns the context in which the other methods are called, except [`Handler::closed`].
    fn context(&self) -> Context {
        Context::Softirq
    }

    /// Handles an inbound packet. Called in atomic context: must not sleep.
    fn receive(&mut self, packet: Packet<'_>) -> Handled;

    /// Returns whether the host waits for an answer to a packet with this payload. If so,
    /// [`Handler::receive`] gets the packet only when the outbound ring has room for an answer of
    /// the same length.
    fn wants_answer(&self, payload: &[u8]) -> bool {
        let _ = payload;
        true
    }

    /// Called at the start of each invocation of the channel's callback, before the packets are
    /// handled. The callback is invoked when the host signals, when a [`Waker`] is used, and for
    /// postponed packets. Answer taken packets here. Called in atomic context: must not sleep.
    fn woken(&mut self, sender: &Sender<'_>) {
        let _ = sender;
    }

    /// Called when the channel is closed. No packets come in after that. May sleep.
    fn closed(&mut self) {}
}

/// A handler with its loop over the packets. The loop is compiled for each type of handler, so that
/// it calls the handler's methods directly.
trait Poll: Send {
    /// Calls [`Handler::woken`], then handles packets, see [`Sender::poll`].
    fn poll(&mut self, sender: &Sender<'_>) -> bool;

    /// See [`Handler::closed`].
    fn closed(&mut self);
}

impl<H: Handler> Poll for H {
    fn poll(&mut self, sender: &Sender<'_>) -> bool {
        self.woken(sender);
        sender.poll(self)
    }

    fn closed(&mut self) {
        Handler::closed(self);
    }
}

/// A driver's work for a channel in process context, scheduled by [`Sender::defer`]. With `None`,
/// [`Sender::defer`] has no effect.
pub type Job = Option<KBox<dyn Run>>;

#[derive(PartialEq, Eq)]
enum State {
    Closed,
    Open,
}

/// State that only the callback accesses while the channel is open.
struct Callback {
    handler: KBox<dyn Poll>,
    /// Free space, in bytes, at which the host was asked to signal; 0 for never. A copy: the host
    /// can change the value in the ring.
    pending_size: Cell<u32>,
    /// The error of the last answer that could not be sent, until it is logged.
    unsent: Cell<Option<Error>>,
}

/// The primary channel of a bound device, with its handler and its job.
///
/// The channel is open from [`Channel::open`] on, except between [`Channel::suspend`] and
/// [`Channel::resume`]. A failed resume leaves it closed. Dropping this closes the channel and
/// cancels the job. If this was leaked, unbinding the device does both.
///
/// The lifetime is that of the binding. Opening requires a `Device<Core>`, so it happens with the
/// device's lock held: in probe, suspend or resume. An attribute's function can drop the channel,
/// and so close it without the lock. Such a close never runs during an open: attributes appear
/// after the probe, unbinding waits for their functions, and user space is frozen while the system
/// is suspended.
pub struct Channel<'bound> {
    /// Holds an [`Inner`].
    inner: Managed,
    _bound: PhantomData<&'bound ()>,
}

impl<'bound> Channel<'bound> {
    /// Opens the channel of `device` with two rings of size `ring`.
    ///
    /// The host may send packets, and `handler` may answer them, before this function returns.
    /// `job` runs when `handler` calls [`Sender::defer`].
    ///
    /// Fails as [`Channel::resume`] does.
    pub fn open<H: Handler>(
        device: &'bound vmbus::Device<device::Core<'_>>,
        ring: RingSize,
        handler: KBox<H>,
        job: Job,
    ) -> Result<Self> {
        let context = handler.context();
        Self::open_with(device, ring, context, handler, job)
    }

    /// The part of [`Channel::open`] that does not depend on the type of the handler.
    fn open_with(
        device: &'bound vmbus::Device<device::Core<'_>>,
        ring: RingSize,
        context: Context,
        handler: KBox<dyn Poll>,
        job: Job,
    ) -> Result<Self> {
        let inner = Inner::new((&***device).into(), ring, context, handler, job);
        let channel = Self {
            inner: Managed::new(device.as_ref(), KBox::pin_init(inner, GFP_KERNEL)?)?,
            _bound: PhantomData,
        };
        channel.resume(device)?;
        Ok(channel)
    }

    fn inner<'a>(&'a self, device: &'a vmbus::Device<device::Core<'_>>) -> Result<Pin<&'a Inner>> {
        let inner = core::ptr::from_ref(self.inner.access(device.as_ref())?.get_ref());

        // SAFETY: `open()` has created the registration from an `Inner`.
        let inner = unsafe { &*inner.cast::<Inner>() };

        // SAFETY: `open()` has pinned the `Inner`.
        Ok(unsafe { Pin::new_unchecked(inner) })
    }

    /// Opens the channel again, if it is closed.
    ///
    /// Fails with `EBUSY` if another user has opened the channel, `ENODEV` if the host has
    /// rescinded the channel or did not offer it again after hibernation, `EAGAIN` or `EDQUOT` if
    /// the host refuses, `ENOMEM`, `EINVAL` if `device` is another device, or the error of hv_vmbus
    /// if it cannot send a message to the host.
    pub fn resume(&self, device: &vmbus::Device<device::Core<'_>>) -> Result {
        self.inner(device)?.open()
    }

    /// Closes the channel. When this returns, no packets are handled and the job does not run.
    ///
    /// Fails with `EINVAL` if the channel is not that of `device`.
    pub fn suspend(&self, device: &vmbus::Device<device::Core<'_>>) -> Result {
        self.inner(device)?.close();
        Ok(())
    }
}

/// Calls a channel's callback from process context.
pub struct Waker(ARef<vmbus::Device>);

impl Waker {
    /// Schedules the channel's callback. If the channel is open, the callback usually runs before
    /// this function returns, otherwise soon after. To be called in process context only.
    pub fn wake(&self) {
        // SAFETY: The channel lives as long as its device, and its tasklet as long as the channel.
        // While the channel is closed, it has no callback and the tasklet does nothing.
        unsafe { bindings::rust_helper_vmbus_wake(self.0.channel().as_ptr()) };
    }
}

impl From<&vmbus::Device> for Waker {
    fn from(device: &vmbus::Device) -> Self {
        Self(device.into())
    }
}

/// The part of a channel that the callback refers to.
#[pin_data(PinnedDrop)]
struct Inner {
    device: ARef<vmbus::Device>,
    ring: RingSize,
    context: Context,
    #[pin]
    state: Mutex<State>,
    /// Number of callback invocations since the running one began. If it is not zero, the callback
    /// already runs, or the rings do not exist: count and return.
    ///
    /// 64 bits, so that it cannot wrap: a host can signal any number of times while the channel is
    /// being opened.
    calls: Atomic<u64>,
    #[pin]
    limit: RateLimit,
    #[pin]
    job: DelayedWork<Job>,
    /// Accessed by the callback alone while the channel is open. Accessed under the lock of `state`
    /// alone while the channel is closed.
    callback: UnsafeCell<Callback>,
}

// SAFETY: `handler` is `Send` by its trait's bound. All other fields may be used from any thread.
unsafe impl Send for Inner {}

// SAFETY: One thread at a time accesses `callback`, as its comment says.
unsafe impl Sync for Inner {}

impl Registered for Inner {}

impl Inner {
    fn new(
        device: ARef<vmbus::Device>,
        ring: RingSize,
        context: Context,
        handler: KBox<dyn Poll>,
        job: Job,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            device,
            ring,
            context,
            state <- new_mutex!(State::Closed, "Channel::state"),
            calls: Atomic::new(1),
            limit <- RateLimit::new(c"hyperv"),
            job <- DelayedWork::new(
                job,
                c"Channel::job",
                static_lock_class!(),
                static_lock_class!()
            ),
            callback: UnsafeCell::new(Callback {
                handler,
                pending_size: Cell::new(0),
                unsent: Cell::new(None),
            }),
        })
    }

    /// See [`Channel::resume`]. Called with the device's lock held.
    fn open(self: Pin<&Self>) -> Result {
        let mut state = self.state.lock();
        if *state == State::Open {
            return Ok(());
        }
        let channel = self.device.channel().as_ptr();
        let context = core::ptr::from_ref(self.get_ref())
            .cast_mut()
            .cast::<c_void>();

        // `CHANNEL_OPEN_STATE` means that the channel can be opened. An open channel is in
        // `CHANNEL_OPENED_STATE`. `vmbus_open()` checks the state only after it has replaced the
        // rings.
        // SAFETY: The channel lives as long as its device. While this driver is bound, no other
        // driver opens or closes the channel, and this driver does so with `state` locked.
        if unsafe { (*channel).state } != bindings::vmbus_channel_state_CHANNEL_OPEN_STATE {
            return Err(EBUSY);
        }

        // If the host did not offer the channel again after hibernation, it would not answer.
        // SAFETY: As above.
        let relid = unsafe { (*channel).offermsg.child_relid };
        if relid == bindings::RUST_CONST_HELPER_INVALID_RELID {
            return Err(ENODEV);
        }

        // SAFETY: The device's lock is held. The channel is not open, as checked above.
        unsafe { self.prepare(channel, context) };

        // SAFETY:
        // - The channel is valid and closed. No other code opens or closes it: the device's lock is
        //   held.
        // - The callback's context is `self`, which is pinned. `self` closes the channel before it
        //   is dropped. On failure, `close()` removes the callback below.
        let result = to_result(unsafe {
            bindings::vmbus_open(
                channel,
                self.ring.bytes(),
                self.ring.bytes(),
                core::ptr::null_mut(),
                0,
                Some(Self::callback),
                context,
            )
        });
        if result.is_err() {
            // SAFETY: The channel is valid, and not open.
            unsafe { close(channel) };
            return result;
        }
        *state = State::Open;
        self.calls.store(0, Release);

        // The callback has ignored all events until now. Run it in case the host has signalled.
        // SAFETY: The channel is valid.
        unsafe { bindings::rust_helper_vmbus_wake(channel) };
        Ok(())
    }

    /// Prepares `channel` for a `vmbus_open()` that passes `context` to the callback.
    ///
    /// # Safety
    ///
    /// `channel` must be the device's channel. The channel must not be open, and the device's lock
    /// must be held.
    unsafe fn prepare(&self, channel: *mut bindings::vmbus_channel, context: *mut c_void) {
        // If another driver's `vmbus_open()` failed, that driver's callback may still be set.
        // Remove it.
        // SAFETY: The channel is valid, and not open.
        unsafe { close(channel) };

        // `uio_hv_generic` does not clear its rescind callback on unbind. Clear it: that module may
        // be unloaded.
        // SAFETY: The channel is valid.
        unsafe { bindings::vmbus_set_chn_rescind_callback(channel, None) };

        let mode = match self.context {
            Context::Softirq => bindings::vmbus_channel_hv_callback_mode_HV_CALL_DIRECT,
            Context::Interrupt => bindings::vmbus_channel_hv_callback_mode_HV_CALL_ISR,
        };
        // SAFETY: Nothing reads the mode of a channel without a callback.
        unsafe { (*channel).callback_mode = mode };

        // hv_vmbus copies each packet to a buffer of this size, and truncates longer packets. No
        // packet that fits into the ring is longer.
        // CAST: As in `RingSize::bytes()`.
        // SAFETY: Only `vmbus_open()` reads the size.
        unsafe { (*channel).max_pkt_size = self.ring.largest_packet() as u32 };

        // `vmbus_open()` sets the callback before its context, without a barrier. Set the same
        // context here.
        // SAFETY: Nothing reads the context of a channel without a callback.
        unsafe { (*channel).channel_callback_context = context };

        // Order this write before the write of the next callback: `vmbus_close()` takes the lock
        // under which the interrupt reads the callback and the context, and waits for the tasklet.
        // From now on, a reader of the new callback also reads the new context.
        // SAFETY: The channel is valid, and not open.
        unsafe { bindings::vmbus_close(channel) };
    }

    /// See [`Channel::suspend`].
    fn close(self: Pin<&Self>) {
        let mut state = self.state.lock();
        if *state == State::Closed {
            return;
        }

        // SAFETY: The channel lives as long as its device. This driver has opened it.
        unsafe { close(self.device.channel().as_ptr()) };
        self.calls.store(1, Release);
        *state = State::Closed;

        // Only the callback schedules the job, and the callback no longer runs.
        self.project_job().cancel();

        // SAFETY: The channel is closed, and the lock is held.
        let callback = unsafe { &mut *self.callback.get() };
        callback.pending_size.set(0);
        callback.handler.closed();
    }

    fn project_job(self: Pin<&Self>) -> Pin<&DelayedWork<Job>> {
        // SAFETY: `job` is structurally pinned.
        unsafe { self.map_unchecked(|this| &this.job) }
    }

    fn project_limit(self: Pin<&Self>) -> Pin<&RateLimit> {
        // SAFETY: `limit` is structurally pinned.
        unsafe { self.map_unchecked(|this| &this.limit) }
    }

    /// Called by the channel's tasklet and, with [`Context::Interrupt`], by the host's interrupt.
    extern "C" fn callback(context: *mut c_void) {
        // SAFETY: `context` is the pointer to `Self` that `open()` has passed. `Self` is valid: it
        // removes the callback before it is dropped, even if the channel could not be opened.
        let this = unsafe { &*context.cast::<Self>() };

        // SAFETY: `Channel::open()` has pinned `Self`.
        let this = unsafe { Pin::new_unchecked(this) };

        if this.calls.fetch_add(1, Acquire) != 0 {
            return;
        }

        // SAFETY: The channel is open, as `calls` was zero. Only one caller at a time gets here. No
        // other code uses `callback` until `vmbus_close()` has waited for this function.
        let callback = unsafe { &mut *this.callback.get() };

        // INVARIANT: As above.
        let sender = Sender {
            channel: this.device.channel(),
            device: &this.get_ref().device,
            limit: this.project_limit(),
            job: this.project_job(),
            pending_size: &callback.pending_size,
            unsent: &callback.unsent,
            context: this.context,
            room: Cell::new(0),
            waits_for_room: Cell::new(false),
        };
        let mut is_done = callback.handler.poll(&sender);
        if sender.pending_size.get() != 0 && !sender.waits_for_room.get() {
            sender.set_pending_size(0);
        }

        if sender.unsent.get().is_some() {
            match sender.is_in_interrupt() {
                true => is_done = false,
                false => sender.log_unsent(),
            }
        }
        let channel = sender.channel.as_ptr();
        if this.calls.xchg(0, Release) != 1 || !is_done {
            // SAFETY: The channel is valid. The tasklet does nothing after the channel is closed.
            unsafe { bindings::rust_helper_vmbus_schedule(channel) };
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Inner {
    fn drop(self: Pin<&mut Self>) {
        self.as_ref().close();
    }
}

/// Closes a channel, open or not, and removes its callback. Waits for a running callback.
///
/// # Safety
///
/// `channel` must be valid. No other driver may have opened it.
unsafe fn close(channel: *mut bindings::vmbus_channel) {
    // `vmbus_close()` removes the callback first. If the channel is not open, it then only closes
    // the sub-channels. These devices have none.
    // SAFETY: Guaranteed by the safety requirements of this function.
    unsafe { bindings::vmbus_close(channel) };

    // `vmbus_open()` sets the next driver's callback before its context. Until then, leave the
    // context that drivers in C use, not a pointer to memory that will be freed.
    // SAFETY: The channel is valid. Nothing reads the context of a channel without a callback.
    unsafe { (*channel).channel_callback_context = channel.cast() };
}
