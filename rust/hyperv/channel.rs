// SPDX-License-Identifier: GPL-2.0

//! VMBus channels.
//!
//! A channel is two rings of packets, one each way. hv_vmbus owns both. This file uses the functions
//! that hv_vmbus exports; one helper reads how much room the outbound ring has. A [`Handler`] gets the
//! packets. It runs on one CPU at a time, in the host's interrupt or in a softirq, and owns its state.
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
pub use sender::Sender;

/// The context in which the packets of a channel are handled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Softirq context.
    Softirq,
    /// The host's interrupt for the first four packets, the softirq for the others. That saves the way
    /// to the softirq. Every lock that the handler takes must disable interrupts. The handler must not
    /// print in the interrupt: hv_vmbus holds a spinlock there, and consoles are slow. See
    /// [`Sender::is_in_interrupt`] and [`Packet::postpone`].
    ///
    /// On PREEMPT_RT hv_vmbus has a real-time thread in place of the interrupt. The same rules apply.
    Interrupt,
}

/// What a driver does with the packets of a channel.
///
/// A handler borrows nothing: a channel that was leaked serves on until its device is unbound.
pub trait Handler: Send + 'static {
    /// The context in which the other methods are called, but for [`Handler::closed`].
    fn context(&self) -> Context {
        Context::Softirq
    }

    /// A packet came in. Called in atomic context: must not sleep.
    fn receive(&mut self, packet: Packet<'_>) -> Handled;

    /// Returns whether the host waits for an answer to a packet with this payload. If it does, the
    /// packet comes in only once there is room for an answer of the same length.
    fn wants_answer(&self, payload: &[u8]) -> bool {
        let _ = payload;
        true
    }

    /// Called first in each invocation of the channel's callback, before the packets: after a signal
    /// of the host, for a [`Waker`], or for postponed packets. Requests that were taken are answered
    /// here. Called in atomic context: must not sleep.
    fn woken(&mut self, sender: &Sender<'_>) {
        let _ = sender;
    }

    /// The channel was closed; no packet comes in any more. May sleep.
    fn closed(&mut self) {}
}

/// What a driver does for a channel in process context; see [`Sender::defer`]. Without one, that has
/// no effect.
pub type Job = Option<KBox<dyn Run>>;

#[derive(PartialEq, Eq)]
enum State {
    Closed,
    Open,
}

/// What the callback alone accesses while the channel is open.
struct Callback {
    handler: KBox<dyn Handler>,
    /// The room that the host was asked for, in bytes. A copy: the host could change it in the ring.
    pending_size: Cell<u32>,
    /// Why the last answer could not be sent, until the log says so.
    unsent: Cell<Option<Error>>,
}

/// The primary channel of a bound device, with its handler and its job.
///
/// It is open except between [`Channel::suspend`] and [`Channel::resume`]; a failed resume leaves it
/// closed. It is closed, and its job cancelled, when it is dropped, or when the device is unbound if it
/// was leaked.
///
/// The lifetime is that of the binding. It is opened with the device's lock held only, as that needs a
/// `Device<Core>`: in a probe, a suspend or a resume. Safe code can close it elsewhere, in an attribute's
/// function. That meets no opening: attributes appear after the probe, unbinding waits for their functions,
/// and user space does not run while the system is suspended.
pub struct Channel<'bound> {
    /// Holds an [`Inner`].
    inner: Managed,
    _bound: PhantomData<&'bound ()>,
}

impl<'bound> Channel<'bound> {
    /// Opens the channel of `device` with two rings of that size.
    ///
    /// The host may have sent the first packets before this returns, and `handler` may have answered
    /// them. `job` is run when `handler` asks for it.
    ///
    /// Fails as [`Channel::resume`] does.
    pub fn open(
        device: &'bound vmbus::Device<device::Core<'_>>,
        ring: RingSize,
        handler: KBox<dyn Handler>,
        job: Job,
    ) -> Result<Self> {
        let inner = Inner::new((&***device).into(), ring, handler, job);
        let channel = Self {
            inner: Managed::new(device.as_ref(), KBox::pin_init(inner, GFP_KERNEL)?)?,
            _bound: PhantomData,
        };
        channel.resume(device)?;
        Ok(channel)
    }

    fn inner<'a>(&'a self, device: &'a vmbus::Device<device::Core<'_>>) -> Result<Pin<&'a Inner>> {
        let inner = core::ptr::from_ref(self.inner.access(device.as_ref())?.get_ref());

        // SAFETY: `open()` has put an `Inner` there.
        let inner = unsafe { &*inner.cast::<Inner>() };

        // SAFETY: It is pinned there.
        Ok(unsafe { Pin::new_unchecked(inner) })
    }

    /// Opens the channel again, if it is not open.
    ///
    /// Fails with `EBUSY` if somebody else has the channel open, `ENODEV` if the host has taken it away or
    /// did not offer it again, `EAGAIN` or `EDQUOT` if the host refuses, `ENOMEM`, `EINVAL` if `device` is
    /// another device, or as hv_vmbus does where it cannot send the host a message.
    pub fn resume(&self, device: &vmbus::Device<device::Core<'_>>) -> Result {
        self.inner(device)?.open()
    }

    /// Closes the channel. When this returns, no packet is handled and the job does not run.
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
    /// Schedules the channel's callback. If the channel is open, the callback runs soon, and has
    /// mostly done so when this returns. In process context only.
    pub fn wake(&self) {
        // SAFETY: The channel lives as long as its device, and the tasklet as long as the channel.
        // The tasklet does nothing while the channel has no callback, that is, while it is closed.
        unsafe { bindings::rust_helper_vmbus_wake(self.0.channel().as_ptr()) };
    }
}

impl From<&vmbus::Device> for Waker {
    fn from(device: &vmbus::Device) -> Self {
        Self(device.into())
    }
}

/// A channel's part that the callback refers to.
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
    /// 64 bits: a host can signal without end while the channel is being opened.
    calls: Atomic<u64>,
    #[pin]
    limit: RateLimit,
    #[pin]
    job: DelayedWork<Job>,
    /// Accessed by the callback alone while the channel is open, and under the lock of `state` alone
    /// while it is closed.
    callback: UnsafeCell<Callback>,
}

// SAFETY: `handler` is `Send` by the trait's bound; all else may be used from any thread.
unsafe impl Send for Inner {}

// SAFETY: `callback` is only accessed as its comment says, from one thread at a time.
unsafe impl Sync for Inner {}

impl Registered for Inner {}

impl Inner {
    fn new(
        device: ARef<vmbus::Device>,
        ring: RingSize,
        handler: KBox<dyn Handler>,
        job: Job,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            device,
            ring,
            context: handler.context(),
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

        // `CHANNEL_OPEN_STATE` means that the channel can be opened; one that is open is in
        // `CHANNEL_OPENED_STATE`. `vmbus_open()` checks, too, but after it has replaced the rings.
        // SAFETY: The channel lives as long as its device. While this driver is bound, nobody else
        // opens or closes it, and this driver does so with `state` locked.
        if unsafe { (*channel).state } != bindings::vmbus_channel_state_CHANNEL_OPEN_STATE {
            return Err(EBUSY);
        }

        // The host did not offer the channel again after a hibernation: it would not answer.
        // SAFETY: As above.
        let relid = unsafe { (*channel).offermsg.child_relid };
        if relid == bindings::RUST_CONST_HELPER_INVALID_RELID {
            return Err(ENODEV);
        }

        // SAFETY: The device's lock is held, and the channel is not open, as seen above.
        unsafe { self.prepare(channel, context) };

        // SAFETY:
        // - The channel is valid, and closed. Nobody else opens or closes it: the device's lock is
        //   held.
        // - The callback's context is `self`, which is pinned and closes the channel before it goes,
        //   or has the callback removed below.
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

        // The host may have signalled before.
        // SAFETY: The channel is valid.
        unsafe { bindings::rust_helper_vmbus_wake(channel) };
        Ok(())
    }

    /// Sets `channel` up for a `vmbus_open()` whose callback gets `context`.
    ///
    /// # Safety
    ///
    /// `channel` must be that of the device. It must not be open, and the device's lock must be held.
    unsafe fn prepare(&self, channel: *mut bindings::vmbus_channel, context: *mut c_void) {
        // A driver whose `vmbus_open()` failed may have left its callback behind.
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
        // SAFETY: Nobody reads the mode of a channel without a callback.
        unsafe { (*channel).callback_mode = mode };

        // hv_vmbus copies packets to memory of this size, and cuts none that fits into the ring.
        // CAST: As in `RingSize::bytes()`.
        // SAFETY: Only `vmbus_open()` reads the size.
        unsafe { (*channel).max_pkt_size = self.ring.largest_packet() as u32 };

        // `vmbus_open()` sets the callback before its context, without a barrier.
        // SAFETY: Nobody reads the context of a channel without a callback.
        unsafe { (*channel).channel_callback_context = context };

        // Order the context before the next callback: this takes the lock under which the interrupt
        // reads both, and waits for the tasklet. Who sees a callback after this sees this context.
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

        // The callback alone schedules the job.
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

    /// Called for each event that the host signals on the channel: in its interrupt, where the
    /// handler is for that, or by the channel's tasklet.
    extern "C" fn callback(context: *mut c_void) {
        // SAFETY: `context` is what `open()` passed: a valid `Self`, which removes the callback
        // before it goes, also where the channel could not be opened.
        let this = unsafe { &*context.cast::<Self>() };

        // SAFETY: `Channel` has pinned it.
        let this = unsafe { Pin::new_unchecked(this) };

        if this.calls.fetch_add(1, Acquire) != 0 {
            return;
        }

        // SAFETY: The channel is open, as `calls` was zero. One caller at a time gets here, and
        // nothing else uses `callback` until `vmbus_close()` has waited for it.
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
        let handler = &mut *callback.handler;
        handler.woken(&sender);
        let mut is_done = sender.poll(handler);
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
            // SAFETY: The channel is valid. The tasklet does nothing once it is closed.
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

/// Closes a channel, open or not, and removes its callback. Waits until that does not run any more.
///
/// # Safety
///
/// `channel` must be valid. No driver but the caller may have it open.
unsafe fn close(channel: *mut bindings::vmbus_channel) {
    // `vmbus_close()` resets the callback first. Of a channel that is not open it does nothing else,
    // but to sub-channels: these devices have none.
    // SAFETY: Guaranteed by the safety requirements of this function.
    unsafe { bindings::vmbus_close(channel) };

    // `vmbus_open()` sets the next driver's callback before its context. Leave the context that drivers
    // in C use, not a pointer to memory that will be freed.
    // SAFETY: The channel is valid. Nobody reads the context of a channel without a callback.
    unsafe { (*channel).channel_callback_context = channel.cast() };
}
