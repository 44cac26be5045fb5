// SPDX-License-Identifier: GPL-2.0

//! VMBus channels.
//!
//! A channel is two rings of packets, one each way. Packets come in through a [`Handler`], which
//! runs in softirq context, on one CPU at a time, and owns what it works on.
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
    sync::Mutex, //
};

/// Packets handled before other softirqs get a turn, so that a host that floods the ring does not
/// hold a CPU.
const BUDGET: usize = 64;

/// Bytes that follow each packet in a ring: where the packet began.
const TRAILER: usize = size_of::<u64>();

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
    const fn largest_packet(self) -> usize {
        self.0 - Self::HEADER
    }
}

/// What a driver does with the packets of a channel.
pub trait Handler: Send {
    /// Takes a packet. Called in softirq context: must not sleep.
    fn receive(&mut self, packet: Packet<'_>) -> Handled;

    /// The channel is about to be opened; no packet has come in since [`Handler::closed`], if that
    /// has been called. May sleep.
    fn opening(&mut self) {}

    /// The channel was closed; no packet comes in any more. May sleep.
    fn closed(&mut self) {}
}

/// Proof that a packet was dealt with.
///
/// Only the methods of [`Packet`] give it out, and they consume the packet: it can be neither
/// answered twice nor forgotten.
#[must_use]
pub struct Handled(());

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
    channel: &'a ChannelRef<'a>,
    descriptor: NonNull<bindings::vmpacket_descriptor>,
}

/// What packets need of a channel.
struct ChannelRef<'a> {
    raw: NonNull<bindings::vmbus_channel>,
    device: &'a vmbus::Device<device::Bound>,
    limit: Pin<&'a RateLimit>,
}

impl Packet<'_> {
    /// Returns whether the packet is one of plain data, which all requests of hosts are.
    pub fn is_in_band(&self) -> bool {
        // SAFETY: By the type invariant, the descriptor is valid.
        let packet_type = unsafe { (*self.descriptor.as_ptr()).type_ };

        bindings::vmbus_packet_type::from(packet_type)
            == bindings::vmbus_packet_type_VM_PKT_DATA_INBAND
    }

    /// The payload, a multiple of 8 bytes long.
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
    /// once it's in the ring, with the limit of what the channel's host may have logged.
    ///
    /// There is room for it: packets don't come in before there is. It can't be sent to a host that
    /// has taken the channel away, or broken the ring; then the log says so.
    pub fn reply(mut self, sent: impl FnOnce(Pin<&RateLimit>)) -> Handled {
        let channel = self.channel;
        // SAFETY: By the type invariant, the descriptor is valid.
        let transaction = unsafe { (*self.descriptor.as_ptr()).trans_id };
        let payload = self.payload();

        // SAFETY:
        // - The channel is open, since packets exist only in its callback.
        // - `payload` is valid for reads of its length.
        let result = to_result(unsafe {
            bindings::vmbus_sendpacket(
                channel.raw.as_ptr(),
                payload.as_mut_ptr().cast(),
                // CAST: A packet is at most 0xffff * 8 bytes long.
                payload.len() as u32,
                transaction,
                bindings::vmbus_packet_type_VM_PKT_DATA_INBAND,
                0,
            )
        });

        match result {
            Ok(()) => sent(channel.limit),
            Err(error) => {
                if channel.limit.allows() {
                    dev_warn!(channel.device.as_ref(), "reply not sent: {:?}\n", error);
                }
            }
        }
        Handled(())
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
        Handled(())
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
pub struct Channel<'bound, H: Handler> {
    device: &'bound vmbus::Device<device::Bound>,
    send: RingSize,
    receive: RingSize,
    #[pin]
    state: Mutex<State>,
    #[pin]
    limit: RateLimit,
    /// Accessed by the callback alone while the channel is open, and under the lock of `state`
    /// alone while it's closed.
    handler: UnsafeCell<H>,
}

// SAFETY: `handler` is `Send` by the trait's bound; all else may be used from any thread.
unsafe impl<H: Handler> Send for Channel<'_, H> {}

// SAFETY: `handler` is only accessed as its comment says, from one thread at a time.
unsafe impl<H: Handler> Sync for Channel<'_, H> {}

impl<'bound, H: Handler + 'bound> Channel<'bound, H> {
    /// Opens the channel of `device` with rings of the given sizes.
    ///
    /// The host may have sent the first packets before this is done, and `handler` may have
    /// answered them.
    pub fn open(
        device: &'bound vmbus::Device<device::Bound>,
        send: RingSize,
        receive: RingSize,
        handler: H,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            device,
            send,
            receive,
            state <- new_mutex!(State::Closed, "Channel::state"),
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

        // SAFETY: The channel is closed, and the lock is held.
        unsafe { (*self.handler.get()).opening() };

        let channel = self.device.channel().as_ptr();

        // SAFETY:
        // - The channel is valid while the device is bound, and closed.
        // - The callback gets `self`, which is pinned; the channel is closed in `drop()`.
        to_result(unsafe {
            (*channel).callback_mode = bindings::vmbus_channel_hv_callback_mode_HV_CALL_DIRECT;
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
        })?;
        *state = State::Open;
        Ok(())
    }

    /// Closes the channel. No packet is handled any more when this returns.
    pub fn suspend(self: Pin<&Self>) {
        let mut state = self.state.lock();
        if *state == State::Closed {
            return;
        }

        // SAFETY: The channel is valid while the device is bound, and open.
        unsafe { bindings::vmbus_close(self.device.channel().as_ptr()) };
        *state = State::Closed;

        // SAFETY: The channel is closed, and the lock is held.
        unsafe { (*self.handler.get()).closed() };
    }

    /// Called for each event that the host signals on the channel, in softirq context.
    extern "C" fn callback(context: *mut c_void) {
        // SAFETY: `context` is what `resume()` passed: a pinned `Self` that closes the channel
        // before it goes.
        let this = unsafe { &*context.cast::<Self>() };

        // SAFETY: The channel is open. Its callback runs in its tasklet, hence on one CPU at a
        // time, and nothing else accesses the handler until `vmbus_close()` has waited for it.
        let handler = unsafe { &mut *this.handler.get() };

        // SAFETY: `this` is pinned.
        let limit = unsafe { Pin::new_unchecked(&this.limit) };

        let channel = ChannelRef {
            raw: this.device.channel(),
            device: this.device,
            limit,
        };

        // SAFETY: This is the channel's callback.
        unsafe { channel.poll(handler) };
    }
}

impl ChannelRef<'_> {
    /// Has `handler` take what's in the ring, as long as there's room to answer it.
    ///
    /// # Safety
    ///
    /// Must only be called from the channel's callback.
    unsafe fn poll(&self, handler: &mut dyn Handler) {
        let raw = self.raw.as_ptr();
        // SAFETY: The channel is open in its callback, and nothing else moves its iterator.
        let mut next = unsafe { bindings::hv_pkt_iter_first(raw) };

        for _ in 0..BUDGET {
            let Some(descriptor) = NonNull::new(next) else {
                return;
            };

            // SAFETY: The iterator has returned a valid descriptor.
            let len = usize::from(unsafe { descriptor.as_ref() }.len8) * 8;
            // CAST: `len` is at most 0xffff * 8.
            let answer_len = (len + TRAILER) as u32;
            // SAFETY: The channel is open in its callback.
            if !unsafe { bindings::rust_helper_vmbus_has_room(raw, answer_len) } {
                // The callback is called again when there is room.
                // SAFETY: As above.
                unsafe { bindings::hv_pkt_iter_close(raw) };
                return;
            }

            // INVARIANT: `descriptor` was returned by the iterator, which is moved only below.
            let Handled(()) = handler.receive(Packet {
                channel: self,
                descriptor,
            });

            // SAFETY: As above; `descriptor` is the iterator's current packet.
            next = unsafe { bindings::__hv_pkt_iter_next(raw, descriptor.as_ptr()) };
            if next.is_null() {
                // The host signals only when it finds the ring empty, so let it see how far the
                // ring was read before taking it for empty.
                // SAFETY: As above.
                unsafe { bindings::hv_pkt_iter_close(raw) };
                // SAFETY: As above.
                next = unsafe { bindings::hv_pkt_iter_first(raw) };
            }
        }

        // SAFETY: As above.
        unsafe { bindings::hv_pkt_iter_close(raw) };
        // SAFETY: As above; a channel that is closed meanwhile ignores this.
        unsafe { bindings::rust_helper_vmbus_schedule(raw) };
    }
}

#[pinned_drop]
impl<H: Handler> PinnedDrop for Channel<'_, H> {
    fn drop(self: Pin<&mut Self>) {
        self.as_ref().suspend();
    }
}
