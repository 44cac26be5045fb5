// SPDX-License-Identifier: GPL-2.0

//! VMBus channels.
//!
//! A channel is two rings of packets, one each way. Packets come in through a [`Handler`], which
//! runs in the host's interrupt or after it, on one CPU at a time, and owns what it works on.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)

use crate::{
    bindings,
    ratelimit::RateLimit,
    ring::{
        Inbound,
        Outbound,
        IN_BAND, //
    },
    vmbus, //
};
use core::{
    cell::UnsafeCell,
    ops::Range,
    ptr::NonNull,
    slice, //
};
use kernel::{
    device,
    error::to_result,
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        barrier::{
            smp_mb,
            Write, //
        },
        Mutex, //
    },
};

pub use crate::ring::RingSize;

/// Packets handled before other softirqs get a turn, so that a host that floods the ring does not
/// hold a CPU.
const BUDGET: usize = 64;

/// Packets handled in the host's interrupt itself, before the others are left to the softirq.
const INTERRUPT_BUDGET: usize = 4;

/// In which context the packets of a channel are handled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// In softirq context.
    Softirq,
    /// The first few in the host's interrupt itself, which saves the way to the softirq; what is
    /// behind them in softirq context. So all locks that the handler takes have to disable
    /// interrupts.
    Interrupt,
}

/// What a driver does with the packets of a channel.
///
/// It borrows nothing: a channel that is leaked goes on to be served.
pub trait Handler: Send + 'static {
    /// Returns in which context the other methods are called.
    fn context(&self) -> Context {
        Context::Softirq
    }

    /// Takes a packet. Called in atomic context: must not sleep.
    fn receive(&mut self, packet: Packet<'_>) -> Handled;

    /// Returns whether the host waits for an answer to a packet. One that it waits for comes in
    /// only when there is room for the answer; any other always, and the answer goes if there is
    /// room.
    fn wants_answer(&self, payload: &[u8]) -> bool {
        let _ = payload;
        true
    }

    /// The host has signalled, or a [`Waker`] has woken the channel: packets come in next. This is
    /// where requests that were taken are answered. Called in atomic context: must not sleep.
    fn woken(&mut self, sender: &Sender<'_>) {
        let _ = sender;
    }

    /// The channel was closed; no packet comes in any more. May sleep.
    fn closed(&mut self) {}
}

/// Proof that a packet was dealt with.
///
/// Only the methods of [`Packet`] give it out, and they consume the packet: it can be neither
/// answered twice nor forgotten.
#[must_use]
pub struct Handled(Next);

enum Next {
    /// The packet is done with, or was taken; the channel has gone on.
    Advance,
    /// The packet comes in again.
    Stay,
}

/// An inbound packet.
///
/// It was copied out of the ring into memory that the host can't write to, so what was checked in
/// it stays as it was.
///
/// # Invariants
///
/// `descriptor` is what [`Inbound::peek`] returned for the channel, which has not gone on since.
pub struct Packet<'a> {
    channel: &'a Sender<'a>,
    descriptor: NonNull<bindings::vmpacket_descriptor>,
}

/// A channel's rings, which its callback has for as long as it runs: the way that answers go.
pub struct Sender<'a> {
    inbound: Inbound<'a>,
    outbound: Outbound<'a>,
    device: &'a vmbus::Device,
    limit: Pin<&'a RateLimit>,
}

impl<'a> Packet<'a> {
    /// The limit of what the channel's host may have logged.
    pub fn limit(&self) -> Pin<&'a RateLimit> {
        self.channel.limit()
    }

    /// Returns whether the packet is one of plain data, which all requests of hosts are.
    #[inline]
    pub fn is_in_band(&self) -> bool {
        // SAFETY: By the type invariant, the descriptor is valid.
        let packet_type = unsafe { (*self.descriptor.as_ptr()).type_ };

        packet_type == IN_BAND
    }

    /// The payload, a multiple of 8 bytes long.
    #[inline]
    pub fn payload(&mut self) -> &mut [u8] {
        bytes_of(self.words())
    }

    /// Which words of the copy are the payload.
    #[inline]
    fn range(&self) -> Range<usize> {
        let descriptor = self.descriptor.as_ptr();

        // SAFETY: By the type invariant, the descriptor is valid.
        unsafe { usize::from((*descriptor).offset8)..usize::from((*descriptor).len8) }
    }

    #[inline]
    fn words(&mut self) -> &mut [u64] {
        let Range { start, end } = self.range();

        // SAFETY:
        // - `Inbound::peek()` has made sure that `start <= end`, and that `end` words, which are
        //   aligned, are in the copy.
        // - Nothing but this packet refers to what is behind the descriptor in the copy until the
        //   next one is copied, which is after `self` is gone.
        // - The copy was written in full.
        unsafe {
            let words = self.descriptor.as_ptr().cast::<u64>();
            slice::from_raw_parts_mut(words.add(start), end - start)
        }
    }

    /// Sends the payload back as the packet's answer, with its transaction id; returns whether it
    /// has left, or need not.
    ///
    /// There is room for it if the host wants it, see [`Handler::wants_answer`]. It can't be sent
    /// to a host that has taken the channel away, or broken the ring; then the log says so.
    pub fn reply(mut self) -> (Handled, bool) {
        let channel = self.channel;
        let transaction = self.transaction();
        let has_left = channel.send(self.words(), transaction);
        (self.advance(), has_left)
    }

    /// Takes the packet off the channel, to be answered later: its memory becomes the caller's, and
    /// `buffer` the channel's.
    ///
    /// # Panics
    ///
    /// If `buffer` is for smaller rings.
    pub fn take(self, buffer: Buffer) -> (Handled, Taken) {
        let transaction = self.transaction();
        let payload = self.range();
        let channel = self.channel;
        let handled = self.advance();
        let taken = Taken {
            transaction,
            // SAFETY: The packet is gone.
            words: unsafe { channel.inbound.exchange(buffer.0) },
            payload,
        };
        (handled, taken)
    }

    /// Leaves the packet in the ring. It, and whatever follows it, comes in again with the next
    /// event.
    pub fn leave(self) -> Handled {
        Handled(Next::Stay)
    }

    fn transaction(&self) -> u64 {
        // SAFETY: By the type invariant, the descriptor is valid.
        unsafe { (*self.descriptor.as_ptr()).trans_id }
    }

    /// Drops the packet unanswered, and says why in the log.
    #[cold]
    #[inline(never)]
    pub fn ignore(self, reason: &dyn core::fmt::Display) -> Handled {
        if self.channel.limit.allows() {
            dev_warn!(
                self.channel.device.as_ref(),
                "packet ignored: {}\n",
                format_args!("{reason}")
            );
        }
        self.advance()
    }

    /// Has the channel go on to the next packet.
    #[inline]
    fn advance(self) -> Handled {
        self.channel.inbound.advance(self.descriptor);
        Handled(Next::Advance)
    }
}

/// Memory for a packet that is taken: as much as the longest that fits into a ring needs.
pub struct Buffer(KVec<u64>);

impl Buffer {
    /// Allocates memory for packets out of a ring of that size.
    pub fn new(ring: RingSize) -> Result<Self> {
        let words = ring.largest_packet() as usize / size_of::<u64>();
        Ok(Self(KVec::from_elem(0, words, GFP_KERNEL)?))
    }
}

/// A packet that was taken off its channel to be answered later.
///
/// It ends with [`Sender::reply`] or [`Taken::abandon`], which give its memory back.
#[must_use]
pub struct Taken {
    transaction: u64,
    words: KVec<u64>,
    /// Which of the words are the payload.
    payload: Range<usize>,
}

impl Taken {
    /// The payload.
    pub fn payload(&mut self) -> &mut [u8] {
        bytes_of(&mut self.words[self.payload.clone()])
    }

    /// Drops the packet unanswered: the host doesn't wait for the answer any more.
    pub fn abandon(self) -> Buffer {
        Buffer(self.words)
    }
}

/// The bytes of 8-byte words.
#[inline]
fn bytes_of(words: &mut [u64]) -> &mut [u8] {
    // SAFETY: The slice is the same memory, and bytes may have any value and alignment.
    unsafe { slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

/// Calls a channel's callback, for as long as somebody may want to.
#[derive(Clone)]
pub struct Waker(ARef<vmbus::Device>);

impl Waker {
    /// Has the callback called, if the channel is open; it has been when this returns, unless it is
    /// running elsewhere. In process context only.
    pub fn wake(&self) {
        // SAFETY: A channel lives as long as its device.
        unsafe { bindings::rust_helper_vmbus_wake(self.0.channel().as_ptr()) };
    }
}

impl From<&vmbus::Device> for Waker {
    fn from(device: &vmbus::Device) -> Self {
        Self(device.into())
    }
}

#[derive(PartialEq, Eq)]
enum State {
    Closed,
    Open,
}

/// The primary channel of a device, with its handler.
///
/// It is open from its initialization on, except between [`Channel::suspend`] and
/// [`Channel::resume`], and closed when it's dropped.
#[pin_data(PinnedDrop)]
pub struct Channel {
    device: ARef<vmbus::Device>,
    ring: RingSize,
    #[pin]
    state: Mutex<State>,
    /// How often the callback was called since it was entered. Whoever finds it not zero leaves
    /// the packets to the one that is in there; while there are no rings yet, or no more, nobody
    /// is, and it isn't zero.
    calls: Atomic<i32>,
    #[pin]
    limit: RateLimit,
    context: Context,
    /// Accessed by the callback alone while the channel is open, and under the lock of `state`
    /// alone while it's closed.
    handler: UnsafeCell<KBox<dyn Handler>>,
}

// SAFETY: `handler` is `Send` by the trait's bound; all else may be used from any thread.
unsafe impl Send for Channel {}

// SAFETY: `handler` is only accessed as its comment says, from one thread at a time.
unsafe impl Sync for Channel {}

impl Channel {
    /// Opens the channel of `device` with two rings of that size.
    ///
    /// The host may have sent the first packets before this is done, and `handler` may have
    /// answered them.
    ///
    /// Fails with `EBUSY` if it is open, else as [`Channel::resume`] does.
    pub fn open(
        device: &vmbus::Device<device::Core<'_>>,
        ring: RingSize,
        handler: KBox<dyn Handler>,
    ) -> impl PinInit<Self, Error> {
        let device = ARef::<vmbus::Device>::from(&**device);
        let context = handler.context();
        try_pin_init!(Self {
            device,
            ring,
            state <- new_mutex!(State::Closed, "Channel::state"),
            calls: Atomic::new(1),
            limit <- RateLimit::new(),
            context,
            handler: UnsafeCell::new(handler),
        })
        .pin_chain(|this| this.as_ref().resume())
    }

    /// Opens the channel again.
    ///
    /// Fails with `EINVAL` if the host has taken the channel away, `ENOMEM`, or what the host's
    /// refusal maps to.
    pub fn resume(self: Pin<&Self>) -> Result {
        let mut state = self.state.lock();
        if *state == State::Open {
            return Ok(());
        }

        let channel = self.device.channel().as_ptr();
        let context = core::ptr::from_ref(self.get_ref()).cast_mut().cast();

        // SAFETY: The channel is valid as long as its device. Nobody else opens or closes it now:
        // the device's lock is held where a `Self` is made, and where its bus suspends or resumes
        // it.
        if unsafe { (*channel).onchannel_callback.is_some() } {
            return Err(EBUSY);
        }

        // SAFETY:
        // - The channel is valid as long as its device, and closed: it has no callback.
        // - The callback gets `self`, which is pinned; the channel is closed in `drop()`, or below.
        let result = to_result(unsafe {
            // `uio_hv_generic` leaves its own behind, to be called when it may have gone.
            bindings::vmbus_set_chn_rescind_callback(channel, None);
            (*channel).callback_mode = match self.context {
                Context::Softirq => bindings::vmbus_channel_hv_callback_mode_HV_CALL_DIRECT,
                Context::Interrupt => bindings::vmbus_channel_hv_callback_mode_HV_CALL_ISR,
            };
            // Whatever fits into the ring fits into the copy: nothing is ever cut.
            (*channel).max_pkt_size = self.ring.largest_packet();
            // `vmbus_open()` sets it behind the callback, which an event may call in between.
            (*channel).channel_callback_context = context;
            smp_mb(Write);
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
            // A failed open leaves the callback set. Of a channel that isn't open, this takes
            // nothing but the callback away, and waits for it.
            // SAFETY: `channel` is that of the device.
            unsafe { close(channel) };
            return result;
        }
        *state = State::Open;
        self.calls.store(0, Release);

        // For what came before that.
        // SAFETY: The channel is valid as long as its device.
        unsafe { bindings::rust_helper_vmbus_wake(channel) };
        Ok(())
    }

    /// Closes the channel. No packet is handled any more when this returns.
    pub fn suspend(self: Pin<&Self>) {
        let mut state = self.state.lock();
        if *state == State::Closed {
            return;
        }

        // SAFETY: `channel()` is that of the device.
        unsafe { close(self.device.channel().as_ptr()) };
        self.calls.store(1, Release);
        *state = State::Closed;

        // SAFETY: The channel is closed, and the lock is held.
        unsafe { (*self.handler.get()).closed() };
    }

    /// Called for each event that the host signals on the channel: in its interrupt, where the
    /// handler is for that, or by the channel's tasklet.
    extern "C" fn callback(context: *mut c_void) {
        // SAFETY: `context` is what `resume()` passed: a pinned `Self` that takes the callback away
        // before it goes, also where the channel could not be opened.
        let this = unsafe { Pin::new_unchecked(&*context.cast::<Self>()) };
        if this.calls.fetch_add(1, Acquire) != 0 {
            return;
        }

        let raw = this.device.channel();
        // SAFETY: The channel is open, `calls` lets one caller at a time get here, and nothing else
        // uses the handler and the rings until `vmbus_close()` has waited for it.
        let (handler, inbound, outbound) = unsafe {
            (
                &mut **this.handler.get(),
                Inbound::new(raw),
                Outbound::new(raw),
            )
        };
        let sender = Sender {
            inbound,
            outbound,
            device: &this.get_ref().device,
            // SAFETY: `this` is pinned.
            limit: unsafe { this.map_unchecked(|this| &this.limit) },
        };

        handler.woken(&sender);
        let is_empty = sender.poll(handler);

        if this.calls.xchg(0, Release) != 1 || !is_empty {
            // SAFETY: The channel is valid; one that is closed meanwhile ignores this.
            unsafe { bindings::rust_helper_vmbus_schedule(raw.as_ptr()) };
        }
    }
}

/// Closes a channel, open or not. Its callback is not called any more when this returns.
///
/// # Safety
///
/// `channel` must be valid.
unsafe fn close(channel: *mut bindings::vmbus_channel) {
    // SAFETY: The channel is valid.
    unsafe {
        bindings::vmbus_close(channel);
        // `vmbus_open()` sets the next driver's callback before its context. The channel is what
        // drivers in C have there, and outlives this driver.
        (*channel).channel_callback_context = channel.cast();
    }
}

#[pinned_drop]
impl PinnedDrop for Channel {
    fn drop(self: Pin<&mut Self>) {
        self.as_ref().suspend();
    }
}

impl<'a> Sender<'a> {
    /// The limit of what the channel's host may have logged.
    pub fn limit(&self) -> Pin<&'a RateLimit> {
        self.limit
    }

    /// Sends the payload of a packet that was taken back as its answer, if there is room for it.
    ///
    /// If there is none, the packet is returned, and [`Handler::woken`] called when there is.
    pub fn reply(&self, taken: Taken) -> Result<Buffer, Taken> {
        let payload = &taken.words[taken.payload.clone()];
        if !self.outbound.has_room(payload) {
            return Err(taken);
        }
        self.send(payload, taken.transaction);
        Ok(taken.abandon())
    }

    /// Sends in-band data; returns whether it has left, or nobody waits for it. If not, the log
    /// says why.
    fn send(&self, payload: &[u64], transaction: u64) -> bool {
        match self.outbound.send(payload, transaction) {
            Ok(()) => true,
            // There would be room if the host waited for it.
            Err(EAGAIN) => true,
            Err(error) => {
                if self.limit.allows() {
                    dev_warn!(self.device.as_ref(), "reply not sent: {:?}\n", error);
                }
                false
            }
        }
    }

    /// Has `handler` take what's in the ring, as long as there's room to answer it. Returns whether
    /// that was all for now.
    fn poll(&self, handler: &mut dyn Handler) -> bool {
        let inbound = &self.inbound;
        for done in 0..BUDGET {
            // The host signals only when it finds the ring empty, so it has to see how far the ring
            // was read before that counts as empty.
            let next = inbound.peek().or_else(|| {
                inbound.close();
                inbound.peek()
            });
            let Some(descriptor) = next else {
                return true;
            };

            // SAFETY: Has no requirements.
            if done == INTERRUPT_BUDGET && unsafe { bindings::rust_helper_in_hardirq() } {
                break;
            }

            // INVARIANT: `peek()` has returned `descriptor`, and only the packet has the ring go
            // on.
            let mut packet = Packet {
                channel: self,
                descriptor,
            };
            if !self.outbound.has_room(packet.words()) && handler.wants_answer(packet.payload()) {
                inbound.close();
                return true;
            }
            if let Next::Stay = handler.receive(packet).0 {
                inbound.close();
                return true;
            }
        }
        inbound.close();
        false
    }
}
