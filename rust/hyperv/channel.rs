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
    vmbus, //
};
use core::{
    cell::UnsafeCell,
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
        Mutex, //
    },
};

/// Packets handled before other softirqs get a turn, so that a host that floods the ring does not
/// hold a CPU.
const BUDGET: usize = 64;

/// Packets handled in the host's interrupt itself, before the others are left to the softirq.
const INTERRUPT_BUDGET: usize = 4;

/// Bytes that follow each packet in a ring: where the packet began.
const TRAILER: usize = size_of::<u64>();

/// Bytes that a packet takes in a ring beside its payload.
const PACKET_OVERHEAD: usize = size_of::<bindings::vmpacket_descriptor>() + TRAILER;

/// The size of one ring in bytes, its header page included: a multiple of the page size.
#[derive(Clone, Copy)]
pub struct RingSize(usize);

impl RingSize {
    const HEADER: usize = size_of::<bindings::hv_ring_buffer>();

    /// The ring with room for `data` bytes of packets; as `VMBUS_RING_SIZE()`.
    pub const fn with_data(data: usize) -> Self {
        let page = kernel::page::PAGE_SIZE;
        // A ring that is large anyway takes its header out of the data.
        let header = if data >= 8 * Self::HEADER {
            0
        } else {
            Self::HEADER
        };
        Self((header + data).next_multiple_of(page))
    }

    /// The longest packet that fits, its descriptor included.
    ///
    /// A ring is never full, or it would look empty: beside the packet and its trailer, eight bytes
    /// are left. `hv_vmbus` cuts longer ones to this, for a host that lies about lengths: so that
    /// there can be room for the answer, and the read index, moved by a packet, goes round the ring
    /// at most once.
    const fn largest_packet(self) -> usize {
        self.0 - Self::HEADER - 2 * TRAILER
    }
}

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
    fn context() -> Context
    where
        Self: Sized,
    {
        Context::Softirq
    }

    /// Takes a packet. Called in atomic context: must not sleep.
    fn receive(&mut self, packet: Packet<'_>) -> Handled;

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
    /// The packet is done with, or was taken.
    Advance,
    /// The packet comes in again.
    Stay,
}

/// An inbound packet.
///
/// `hv_vmbus` has copied it out of the ring into memory that the host can't write to, so what was
/// checked in it stays as it was.
///
/// # Invariants
///
/// `descriptor` is what `hv_pkt_iter_first()` returned for `channel`, and the packet iterator has
/// not been moved since.
pub struct Packet<'a> {
    channel: &'a Sender<'a>,
    descriptor: NonNull<bindings::vmpacket_descriptor>,
}

/// The way out of a channel, for as long as its callback runs.
pub struct Sender<'a> {
    raw: NonNull<bindings::vmbus_channel>,
    device: &'a vmbus::Device,
    limit: Pin<&'a RateLimit>,
}

impl<'a> Packet<'a> {
    /// The limit of what the channel's host may have logged.
    pub fn limit(&self) -> Pin<&'a RateLimit> {
        self.channel.limit
    }

    /// Returns whether the packet is one of plain data, which all requests of hosts are.
    #[inline]
    pub fn is_in_band(&self) -> bool {
        // SAFETY: By the type invariant, the descriptor is valid.
        let packet_type = unsafe { (*self.descriptor.as_ptr()).type_ };

        bindings::vmbus_packet_type::from(packet_type)
            == bindings::vmbus_packet_type_VM_PKT_DATA_INBAND
    }

    /// The payload, a multiple of 8 bytes long.
    #[inline]
    pub fn payload(&mut self) -> &mut [u8] {
        let descriptor = self.descriptor.as_ptr();

        // SAFETY: By the type invariant, the descriptor is valid.
        let (offset, len) = unsafe {
            (
                usize::from((*descriptor).offset8) * 8,
                usize::from((*descriptor).len8) * 8,
            )
        };

        // SAFETY:
        // - `hv_pkt_iter_first()` has made sure that `size_of::<vmpacket_descriptor>() <= offset`
        //   and `offset <= len`, and that `len` bytes are in the copy.
        // - Nothing but this packet refers to the copy until the packet iterator is moved, which
        //   is after `self` is gone.
        // - The copy was written in full.
        unsafe { slice::from_raw_parts_mut(descriptor.cast::<u8>().add(offset), len - offset) }
    }

    /// Sends the payload back as the packet's answer, with its transaction id, and calls `sent`
    /// once it's in the ring.
    ///
    /// There is room for it: packets don't come in before there is. It can't be sent to a host that
    /// has taken the channel away, or broken the ring; then the log says so.
    pub fn reply(mut self, sent: impl FnOnce()) -> Handled {
        let channel = self.channel;
        let transaction = self.transaction();
        if channel.send(self.payload(), transaction) {
            sent();
        }
        Handled(Next::Advance)
    }

    /// Takes the packet off the channel, to be answered later.
    pub fn take(mut self, buffer: Buffer) -> (Handled, Taken) {
        let transaction = self.transaction();
        let payload = self.payload();
        let len = payload.len();
        let Buffer(mut bytes) = buffer;
        bytes[..len].copy_from_slice(payload);
        let taken = Taken {
            transaction,
            bytes,
            len,
        };
        (Handled(Next::Advance), taken)
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
    pub fn ignore(self, reason: impl core::fmt::Display) -> Handled {
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

/// Memory for a packet that is taken: as much as the longest that fits into a ring needs.
pub struct Buffer(KVec<u8>);

impl Buffer {
    /// Allocates memory for packets out of a ring of that size.
    pub fn new(ring: RingSize) -> Result<Self> {
        Ok(Self(KVec::from_elem(0, ring.largest_packet(), GFP_KERNEL)?))
    }
}

/// A packet that was taken off its channel to be answered later.
///
/// It ends with [`Sender::reply`] or [`Taken::abandon`], which give its memory back.
#[must_use]
pub struct Taken {
    transaction: u64,
    bytes: KVec<u8>,
    len: usize,
}

impl Taken {
    /// The payload.
    pub fn payload(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// Drops the packet unanswered: the host doesn't wait for the answer any more.
    pub fn abandon(self) -> Buffer {
        Buffer(self.bytes)
    }
}

/// Calls a channel's callback from any context, for as long as somebody may want to.
#[derive(Clone)]
pub struct Waker(ARef<vmbus::Device>);

impl Waker {
    /// Has the callback called soon, if the channel is open. Interrupts must be enabled.
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
pub struct Channel<H: Handler> {
    device: ARef<vmbus::Device>,
    send: RingSize,
    receive: RingSize,
    #[pin]
    state: Mutex<State>,
    /// Set while the callback may access `handler`. `hv_vmbus` calls it earlier, while it opens the
    /// channel and there are no rings yet, and may later, when it has failed to.
    is_open: Atomic<bool>,
    /// How often the callback was called since it was entered. Whoever finds it not zero leaves
    /// the packets to the one that is in there.
    calls: Atomic<i32>,
    #[pin]
    limit: RateLimit,
    /// Accessed by the callback alone while the channel is open, and under the lock of `state`
    /// alone while it's closed.
    handler: UnsafeCell<H>,
}

// SAFETY: `handler` is `Send` by the trait's bound; all else may be used from any thread.
unsafe impl<H: Handler> Send for Channel<H> {}

// SAFETY: `handler` is only accessed as its comment says, from one thread at a time.
unsafe impl<H: Handler> Sync for Channel<H> {}

impl<H: Handler> Channel<H> {
    /// Opens the channel of `device` with rings of the given sizes.
    ///
    /// The host may have sent the first packets before this is done, and `handler` may have
    /// answered them.
    pub fn open(
        device: &vmbus::Device<device::Bound>,
        send: RingSize,
        receive: RingSize,
        handler: H,
    ) -> impl PinInit<Self, Error> {
        let device = ARef::<vmbus::Device>::from(&**device);
        try_pin_init!(Self {
            device,
            send,
            receive,
            state <- new_mutex!(State::Closed, "Channel::state"),
            is_open: Atomic::new(false),
            calls: Atomic::new(0),
            limit <- RateLimit::new(),
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

        // SAFETY:
        // - The channel is valid as long as its device, and closed.
        // - The callback gets `self`, which is pinned; the channel is closed in `drop()`, or below.
        let result = to_result(unsafe {
            (*channel).callback_mode = match H::context() {
                Context::Softirq => bindings::vmbus_channel_hv_callback_mode_HV_CALL_DIRECT,
                Context::Interrupt => bindings::vmbus_channel_hv_callback_mode_HV_CALL_ISR,
            };
            // Whatever fits into the ring fits into the copy: nothing is ever cut.
            (*channel).max_pkt_size = self.receive.largest_packet() as u32;
            bindings::vmbus_open(
                channel,
                self.send.0 as u32,
                self.receive.0 as u32,
                core::ptr::null_mut(),
                0,
                Some(Self::callback),
                core::ptr::from_ref(self.get_ref()).cast_mut().cast(),
            )
        });
        if result.is_err() {
            // A failed open leaves the callback set. Of a channel that isn't open, this takes
            // nothing but the callback away, and waits for it.
            // SAFETY: The channel is valid as long as its device.
            unsafe { bindings::vmbus_close(channel) };
            return result;
        }
        *state = State::Open;
        self.is_open.store(true, Release);

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

        // SAFETY: The channel is valid as long as its device, and open.
        unsafe { bindings::vmbus_close(self.device.channel().as_ptr()) };
        self.is_open.store(false, Release);
        *state = State::Closed;

        // SAFETY: The channel is closed, and the lock is held.
        unsafe { (*self.handler.get()).closed() };
    }

    /// Called for each event that the host signals on the channel: in its interrupt, where the
    /// handler is for that, or by the channel's tasklet.
    extern "C" fn callback(context: *mut c_void) {
        // SAFETY: `context` is what `resume()` passed: a pinned `Self` that takes the callback away
        // before it goes, also where the channel could not be opened.
        let this = unsafe { &*context.cast::<Self>() };
        if !this.is_open.load(Acquire) || this.calls.fetch_add(1, Acquire) != 0 {
            return;
        }

        // SAFETY: The channel is open, `calls` lets one caller at a time get here, and nothing else
        // accesses the handler until `vmbus_close()` has waited for it.
        let handler = unsafe { &mut *this.handler.get() };

        // SAFETY: `this` is pinned.
        let limit = unsafe { Pin::new_unchecked(&this.limit) };

        let raw = this.device.channel();
        let channel = Sender {
            raw,
            device: &this.device,
            limit,
        };

        handler.woken(&channel);

        // SAFETY: This is the channel's callback.
        let is_empty = unsafe { channel.poll(handler) };

        if this.calls.xchg(0, Release) != 1 || !is_empty {
            // SAFETY: The channel is valid; one that is closed meanwhile ignores this.
            unsafe { bindings::rust_helper_vmbus_schedule(raw.as_ptr()) };
        }
    }
}

impl Sender<'_> {
    /// Sends the payload of a packet that was taken back as its answer, if there is room for it.
    ///
    /// If there is none, the packet is returned, and [`Handler::woken`] called when there is.
    pub fn reply(&self, mut taken: Taken) -> Result<Buffer, Taken> {
        if !self.has_room(PACKET_OVERHEAD + taken.len) {
            return Err(taken);
        }
        let transaction = taken.transaction;
        self.send(taken.payload(), transaction);
        Ok(taken.abandon())
    }

    /// Returns whether there's room in the ring for `len` bytes. If not, the host will signal.
    fn has_room(&self, len: usize) -> bool {
        // CAST: Packets are at most 0xffff * 8 bytes long.
        // SAFETY: The channel is open in its callback.
        unsafe { bindings::rust_helper_vmbus_has_room(self.raw.as_ptr(), len as u32) }
    }

    /// Sends in-band data; returns whether it has left. If not, the log says why.
    #[inline]
    fn send(&self, payload: &mut [u8], transaction: u64) -> bool {
        // SAFETY:
        // - The channel is open in its callback.
        // - `payload` is valid for reads of its length.
        let result = to_result(unsafe {
            bindings::vmbus_sendpacket(
                self.raw.as_ptr(),
                payload.as_mut_ptr().cast(),
                // CAST: A packet is at most 0xffff * 8 bytes long.
                payload.len() as u32,
                transaction,
                bindings::vmbus_packet_type_VM_PKT_DATA_INBAND,
                0,
            )
        });
        result.inspect_err(|error| self.log_unsent(*error)).is_ok()
    }

    #[cold]
    fn log_unsent(&self, error: Error) {
        if self.limit.allows() {
            dev_warn!(self.device.as_ref(), "reply not sent: {:?}\n", error);
        }
    }

    /// Has `handler` take what's in the ring, as long as there's room to answer it. Returns whether
    /// that was all for now: if not, others are to get a turn.
    ///
    /// # Safety
    ///
    /// Must only be called from the channel's callback, by one caller at a time.
    unsafe fn poll(&self, handler: &mut dyn Handler) -> bool {
        let raw = self.raw.as_ptr();
        // SAFETY: The channel is open in its callback, and nothing else moves its iterator.
        let mut next = unsafe { bindings::hv_pkt_iter_first(raw) };

        for done in 0..BUDGET {
            let Some(descriptor) = NonNull::new(next) else {
                return true;
            };

            // SAFETY: Has no requirements.
            if done == INTERRUPT_BUDGET && unsafe { bindings::rust_helper_in_hardirq() } {
                break;
            }

            // SAFETY: The iterator has returned a valid descriptor.
            let len = usize::from(unsafe { descriptor.as_ref() }.len8) * 8;
            if !self.has_room(len + TRAILER) {
                // SAFETY: As above.
                unsafe { bindings::hv_pkt_iter_close(raw) };
                return true;
            }

            // INVARIANT: `descriptor` was returned by the iterator, which is moved only below.
            let handled = handler.receive(Packet {
                channel: self,
                descriptor,
            });

            let is_last = match handled.0 {
                Next::Advance => {
                    // SAFETY: As above; `descriptor` is the iterator's current packet.
                    next = unsafe { bindings::__hv_pkt_iter_next(raw, descriptor.as_ptr()) };
                    next.is_null()
                }
                Next::Stay => true,
            };
            if is_last {
                // The host signals only when it finds the ring empty, so let it see how far the
                // ring was read before taking it for empty.
                // SAFETY: As above.
                unsafe { bindings::hv_pkt_iter_close(raw) };
                if matches!(handled.0, Next::Stay) {
                    return true;
                }
                // SAFETY: As above.
                next = unsafe { bindings::hv_pkt_iter_first(raw) };
            }
        }

        // SAFETY: As above.
        unsafe { bindings::hv_pkt_iter_close(raw) };
        false
    }
}

#[pinned_drop]
impl<H: Handler> PinnedDrop for Channel<H> {
    fn drop(self: Pin<&mut Self>) {
        self.as_ref().suspend();
    }
}
