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
        time::Deadline,
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
    marker::PhantomData,
    ptr::NonNull, //
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

/// Packets handled before other softirqs get a turn, so that a host that floods the ring does not
/// hold a CPU.
const BUDGET: usize = 64;

/// Packets handled in the host's interrupt itself. The softirq handles the others.
const INTERRUPT_BUDGET: usize = 4;

/// Bytes in front of a packet's payload.
const DESCRIPTOR: usize = size_of::<bindings::vmpacket_descriptor>();

/// Bytes behind each packet in a ring: the offset at which the packet began.
const TRAILER: usize = size_of::<u64>();

/// Bytes of a ring that stay free.
const GAP: usize = 8;

/// The size of one ring in bytes, its header page included: a multiple of the page size.
#[derive(Clone, Copy)]
pub struct RingSize(usize);

impl RingSize {
    /// The most data that a ring can have, in bytes: a packet that fills it must not be longer than a
    /// descriptor can say.
    pub const LARGEST: usize = 256 * 1024;

    const HEADER: usize = size_of::<bindings::hv_ring_buffer>();

    /// The ring that `VMBUS_RING_SIZE()` makes: it has room for `data` bytes of packets. From eight
    /// pages of data on, the header takes its page out of them.
    ///
    /// # Panics
    ///
    /// If `data` is 0 or more than [`Self::LARGEST`]: in a `const`, the build fails.
    pub const fn with_data(data: usize) -> Self {
        assert!(data > 0 && data <= Self::LARGEST);
        let page = kernel::page::PAGE_SIZE;
        let header = if data >= 8 * Self::HEADER {
            0
        } else {
            Self::HEADER
        };
        Self((header + data).next_multiple_of(page))
    }

    /// The size in bytes.
    const fn bytes(self) -> u32 {
        // CAST: Rings are not much larger than `LARGEST`.
        self.0 as u32
    }

    /// The longest packet that fits, its descriptor included.
    ///
    /// A full ring would look empty, so [`GAP`] bytes stay free beside the packet and its trailer.
    /// hv_vmbus cuts a packet whose length is wrong to this size. So an answer of the same size fits,
    /// and one packet moves the read index round the ring at most once.
    const fn largest_packet(self) -> usize {
        self.0 - Self::HEADER - TRAILER - GAP
    }
}

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

/// Proof that a packet was dealt with.
///
/// Only the methods of [`Packet`] return it, and they consume the packet: it can be neither answered
/// twice nor forgotten.
#[must_use]
pub struct Handled(Next);

enum Next {
    /// The packet is done with, or was taken: the channel goes on to the next.
    Advance,
    /// The packet comes in again with the next event.
    Stay,
    /// The packet comes in again in the softirq.
    Postpone,
}

/// An inbound packet.
///
/// hv_vmbus has copied it out of the ring into memory that the host cannot write to: its content
/// stays as it was checked.
///
/// # Invariants
///
/// hv_vmbus' iterator has returned `descriptor` for the channel, and was not moved since.
pub struct Packet<'a> {
    channel: &'a Sender<'a>,
    descriptor: NonNull<bindings::vmpacket_descriptor>,
}

impl<'a> Packet<'a> {
    /// The channel that the packet came in by.
    #[inline]
    pub fn sender(&self) -> &'a Sender<'a> {
        self.channel
    }

    #[inline]
    fn descriptor(&self) -> &bindings::vmpacket_descriptor {
        // SAFETY: By the type invariant, the descriptor is valid. Nothing writes to it until the
        // iterator is moved, which is after `self` is gone.
        unsafe { self.descriptor.as_ref() }
    }

    #[inline]
    fn transaction(&self) -> u64 {
        self.descriptor().trans_id
    }

    /// Returns whether the packet is plain data, as all requests of hosts are.
    #[inline]
    pub fn is_in_band(&self) -> bool {
        u32::from(self.descriptor().type_) == bindings::vmbus_packet_type_VM_PKT_DATA_INBAND
    }

    /// The payload. It is valid for reads and writes, and initialized, until the iterator is moved.
    #[inline]
    fn raw_payload(&self) -> *mut [u8] {
        // `hv_pkt_iter_first()` makes sure that the payload begins behind the descriptor, does not begin
        // behind its own end (no length is cut, see `RingSize::LARGEST`), and lies in hv_vmbus' copy.
        let descriptor = self.descriptor();
        let start = usize::from(descriptor.offset8) * 8;
        let len = (usize::from(descriptor.len8) * 8).saturating_sub(start);
        let payload = self.descriptor.cast::<u8>().as_ptr().wrapping_add(start);
        core::ptr::slice_from_raw_parts_mut(payload, len)
    }

    /// The payload, a multiple of 8 bytes long.
    #[inline]
    pub fn payload(&self) -> &[u8] {
        // SAFETY: `raw_payload()` says why it is valid. Only this packet refers to it, and only
        // `payload_mut()`, which borrows the packet alone, changes it.
        unsafe { &*self.raw_payload() }
    }

    /// The payload, to be changed into the answer.
    #[inline]
    pub fn payload_mut(&mut self) -> &mut [u8] {
        // SAFETY: As in `payload()`. The descriptor is not part of the slice.
        unsafe { &mut *self.raw_payload() }
    }

    /// Sends the payload back as the packet's answer, with its transaction id. Returns whether the
    /// answer has left, or need not.
    ///
    /// There is room for an answer that the host waits for, see [`Handler::wants_answer`], unless the
    /// handler has sent another since it got the packet. The answer cannot be sent to a host that has
    /// taken the channel away or broken the ring; the log says so.
    #[inline]
    pub fn reply(mut self) -> (Handled, bool) {
        let channel = self.channel;
        let transaction = self.transaction();
        let has_left = channel.send(self.payload_mut(), transaction);
        (Handled(Next::Advance), has_left)
    }

    /// Takes the packet off the channel, to be answered later, with a copy of it in `buffer`.
    ///
    /// Returns the packet and the buffer if the packet does not fit, and memory is short. A buffer
    /// made for this ring always fits.
    pub fn take(self, buffer: Buffer) -> Result<(Handled, Taken), (Self, Buffer)> {
        let Buffer(mut payload) = buffer;
        payload.clear();
        if payload
            .extend_from_slice(self.payload(), GFP_ATOMIC)
            .is_err()
        {
            return Err((self, Buffer(payload)));
        }
        let taken = Taken {
            transaction: self.transaction(),
            payload,
        };
        Ok((Handled(Next::Advance), taken))
    }

    /// Leaves the packet in the ring. It, and all packets behind it, come in again with the next
    /// event.
    pub fn leave(self) -> Handled {
        Handled(Next::Stay)
    }

    /// Leaves the packet in the ring, to come in again in the softirq.
    pub fn postpone(self) -> Handled {
        Handled(Next::Postpone)
    }

    /// Drops the packet unanswered, and logs the reason. In the host's interrupt, postpones it.
    #[cold]
    #[inline(never)]
    pub fn ignore(self, reason: &dyn core::fmt::Display) -> Handled {
        if self.channel.is_in_interrupt() {
            return self.postpone();
        }
        if self.channel.limit.allows() {
            dev_warn!(
                self.channel.device.as_ref(),
                "packet ignored: {}\n",
                format_args!("{reason}")
            );
        }
        Handled(Next::Advance)
    }
}

/// Memory for a packet that is answered later.
pub struct Buffer(KVec<u8>);

impl Buffer {
    /// Allocates as much memory as the longest packet of a ring of this size needs.
    pub fn new(ring: RingSize) -> Result<Self> {
        Ok(Self(KVec::with_capacity(
            ring.largest_packet(),
            GFP_KERNEL,
        )?))
    }
}

/// A packet that was taken off its channel to be answered later.
///
/// It ends with [`Sender::reply`] or [`Taken::abandon`], which give its memory back.
#[must_use]
pub struct Taken {
    transaction: u64,
    payload: KVec<u8>,
}

impl Taken {
    /// The payload.
    pub fn payload(&mut self) -> &mut [u8] {
        &mut self.payload
    }

    /// Drops the packet unanswered: the host does not wait for the answer any more.
    pub fn abandon(self) -> Buffer {
        Buffer(self.payload)
    }
}

/// Calls a channel's callback from process context.
#[derive(Clone)]
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

/// What a channel's callback may do, for as long as it runs.
///
/// # Invariants
///
/// `channel` is open, and only this callback uses its rings.
pub struct Sender<'a> {
    channel: NonNull<bindings::vmbus_channel>,
    device: &'a vmbus::Device,
    limit: Pin<&'a RateLimit>,
    job: Pin<&'a DelayedWork<Job>>,
    pending_size: &'a Cell<u32>,
    unsent: &'a Cell<Option<Error>>,
    context: Context,
    /// Bytes that the outbound ring has room for at least. The host only makes more.
    room: Cell<u32>,
    /// Something waits for room. All that waits asks again in each invocation of the callback.
    waits_for_room: Cell<bool>,
}

impl<'a> Sender<'a> {
    /// The limit of log messages that the channel's host can cause.
    pub fn limit(&self) -> Pin<&'a RateLimit> {
        self.limit
    }

    /// Runs the channel's job soon, in process context, unless the job is scheduled already.
    pub fn defer(&self) {
        self.job.schedule();
    }

    /// Runs the channel's job when `deadline` is over, instead of when it was to run before.
    pub fn defer_until(&self, deadline: Deadline) {
        self.job.schedule_at(deadline);
    }

    /// Sends the payload of a packet that was taken back as its answer, if there is room for it.
    ///
    /// If there is none, returns the packet. [`Handler::woken`] is called once there is room.
    pub fn reply(&self, mut taken: Taken) -> Result<Buffer, Taken> {
        if !self.has_room(taken.payload.len()) {
            return Err(taken);
        }
        self.send(&mut taken.payload, taken.transaction);
        Ok(taken.abandon())
    }

    /// Returns whether the host's interrupt has called the handler, which must not print then.
    pub fn is_in_interrupt(&self) -> bool {
        if self.context == Context::Softirq {
            return false;
        }

        // SAFETY: Has no requirements.
        unsafe { bindings::rust_helper_in_vmbus_isr() }
    }

    /// The first packet in the inbound ring, if there is one.
    fn first(&self) -> Option<NonNull<bindings::vmpacket_descriptor>> {
        // SAFETY: By the type invariant, the channel is open, and nobody else reads.
        NonNull::new(unsafe { bindings::hv_pkt_iter_first(self.channel.as_ptr()) })
    }

    /// The packet behind that of `descriptor`.
    ///
    /// # Safety
    ///
    /// hv_vmbus' iterator has returned `descriptor` last, and no packet refers to it any more.
    unsafe fn next(
        &self,
        descriptor: NonNull<bindings::vmpacket_descriptor>,
    ) -> Option<NonNull<bindings::vmpacket_descriptor>> {
        // SAFETY: By the type invariant and the safety requirements of this function.
        NonNull::new(unsafe {
            bindings::__hv_pkt_iter_next(self.channel.as_ptr(), descriptor.as_ptr())
        })
    }

    /// Shows the host how far the inbound ring was read. Signals if the host waits for that.
    fn publish_read_index(&self) {
        // SAFETY: By the type invariant, the channel is open, and nobody else reads.
        unsafe { bindings::hv_pkt_iter_close(self.channel.as_ptr()) };
    }

    /// Asks the host to signal once the outbound ring has room for `size` bytes, 0 for never.
    fn set_pending_size(&self, size: u32) {
        self.pending_size.set(size);
        // SAFETY: By the type invariant, the channel is open.
        unsafe { bindings::rust_helper_vmbus_set_pending_size(self.channel.as_ptr(), size) };
    }

    /// Returns whether there is room for a packet with a payload of `len` bytes. If not, the host
    /// signals when there is. Whoever waits asks again in the next invocation of the callback.
    fn has_room(&self, len: usize) -> bool {
        // A ring with nothing free would look empty.
        let needed = packet_size(len);
        let look = || {
            // SAFETY: By the type invariant, the channel is open.
            let room = unsafe { bindings::rust_helper_vmbus_bytes_to_write(self.channel.as_ptr()) };
            self.room.set(room);
            room > needed
        };
        if self.room.get() > needed || look() {
            return true;
        }
        self.set_pending_size(needed.max(self.pending_size.get()));
        let has_room = look();
        self.waits_for_room
            .set(self.waits_for_room.get() || !has_room);
        has_room
    }

    /// Sends in-band data. Returns false if an answer that the host waits for was not sent; the log
    /// says why.
    fn send(&self, payload: &mut [u8], transaction: u64) -> bool {
        // CAST: Packets are at most 0xffff * 8 bytes long.
        let len = payload.len() as u32;
        // SAFETY: By the type invariant, the channel is open; `payload` is valid for reads.
        let errno = unsafe {
            bindings::vmbus_sendpacket(
                self.channel.as_ptr(),
                payload.as_mut_ptr().cast(),
                len,
                transaction,
                bindings::vmbus_packet_type_VM_PKT_DATA_INBAND,
                0,
            )
        };
        if errno != 0 {
            return self.failed_to_send(errno);
        }
        let size = packet_size(payload.len());
        self.room.set(self.room.get().saturating_sub(size));
        true
    }

    /// Returns true if the host does not wait for this answer. Otherwise keeps the error for the log.
    #[cold]
    #[inline(never)]
    fn failed_to_send(&self, errno: c_int) -> bool {
        match Error::from_errno(errno) {
            // Only an answer that the host does not wait for is sent without room.
            EAGAIN => true,
            error => {
                self.unsent.set(Some(error));
                false
            }
        }
    }

    /// Logs the error of the last answer that could not be sent.
    #[cold]
    #[inline(never)]
    fn log_unsent(&self) {
        if let Some(error) = self.unsent.take() {
            if self.limit.allows() {
                dev_warn!(self.device.as_ref(), "reply not sent: {:?}\n", error);
            }
        }
    }

    /// Passes the packets in the ring to `handler`, as long as there is room to answer them. Returns
    /// whether the ring is done with until the next event.
    fn poll(&self, handler: &mut dyn Handler) -> bool {
        let mut next = self.first();
        for done in 0..BUDGET {
            // The host signals only when it finds the ring empty. Publish the read index before the
            // last look.
            let Some(descriptor) = next.or_else(|| {
                self.publish_read_index();
                self.first()
            }) else {
                return true;
            };

            // INVARIANT: The iterator has returned `descriptor` last.
            let packet = Packet {
                channel: self,
                descriptor,
            };
            if done == INTERRUPT_BUDGET && self.is_in_interrupt() {
                break;
            }
            let payload = packet.payload();
            if !self.has_room(payload.len()) && handler.wants_answer(payload) {
                self.publish_read_index();
                return true;
            }
            // To send would have hv_vmbus print that the host has spoilt the indices.
            if self.room.get() == u32::MAX && self.is_in_interrupt() {
                break;
            }
            match handler.receive(packet).0 {
                // SAFETY: As above; `receive()` has consumed the packet.
                Next::Advance => next = unsafe { self.next(descriptor) },
                Next::Stay => {
                    self.publish_read_index();
                    return true;
                }
                Next::Postpone => break,
            }
        }
        self.publish_read_index();
        false
    }
}

/// Bytes that a packet with a payload of `len` bytes takes in a ring.
fn packet_size(len: usize) -> u32 {
    // CAST: Packets are at most 0xffff * 8 bytes long.
    (DESCRIPTOR + len + TRAILER) as u32
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
/// The lifetime is that of the binding. It keeps all opening and closing under the device's lock: safe
/// code cannot move a channel to where it would be dropped at another time.
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
        let context = core::ptr::from_ref(self.get_ref()).cast_mut().cast();

        // `CHANNEL_OPEN_STATE` means that the channel can be opened; one that is open is in
        // `CHANNEL_OPENED_STATE`. `vmbus_open()` checks, too, but after it has replaced the rings.
        // SAFETY: The channel lives as long as its device. While this driver is bound, nobody else
        // opens or closes it, and this driver does so with the device's lock held.
        if unsafe { (*channel).state } != bindings::vmbus_channel_state_CHANNEL_OPEN_STATE {
            return Err(EBUSY);
        }

        // The host did not offer the channel again after a hibernation: it would not answer.
        // SAFETY: As above.
        let relid = unsafe { (*channel).offermsg.child_relid };
        if relid == bindings::RUST_CONST_HELPER_INVALID_RELID {
            return Err(ENODEV);
        }

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

    /// See [`Channel::suspend`]. Called with the device's lock held.
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
