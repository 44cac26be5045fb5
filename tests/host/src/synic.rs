// SPDX-License-Identifier: GPL-2.0

//! The host's side of the synthetic interrupt controller (SynIC): messages and event flags for one SINT per processor.
//!
//! Source: TLFS, "Inter-partition communication". A message slot is free if its message type is 0. If the slot is
//! occupied and the host has another message, the host sets MessagePending in the slot. The guest then writes EOM after
//! it has freed the slot. KVM's irqfd injects the SINT, and its resample descriptor reports EOM, as in QEMU.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::hypercall::MESSAGE_PAYLOAD;
use crate::memory::BadAddress;
use crate::memory::GuestMemory;
use crate::memory::PAGE_SIZE;

/// The SINT that VMBus uses (`VMBUS_MESSAGE_SINT`).
pub const VMBUS_SINT: u32 = 2;
/// Number of a controller's SINTs.
const SINTS: u32 = 16;
/// If this many messages wait for a processor, the bus should send no more.
const CONGESTED: usize = 64;
/// Number of a SINT's event flags.
const EVENT_FLAGS: u32 = 2048;
const ENABLE: u64 = 1;
const ADDRESS: u64 = !0xfff;
/// Size in bytes of a message slot, and of a SINT's event flags.
const SLOT: u64 = 256;
/// The message type of all VMBus messages.
const MESSAGE_TYPE: u32 = 1;
/// MessagePending, a bit of the word with the payload's size.
const PENDING: u32 = 1 << 8;

/// The hypervisor, as the VMBus host uses it.
pub trait Hypervisor: Send {
    /// Queues a message of up to 240 bytes for `sint` of processor `vp`.
    fn post_message(&mut self, vp: u32, sint: u32, payload: &[u8]);
    /// Whether many messages wait. Then the guest should read some before the host sends more.
    fn is_congested(&self) -> bool;
    /// Sets event flag `flag` of processor `vp`. Interrupts the processor if the flag was clear.
    fn signal_event(&mut self, vp: u32, flag: u32);
    /// The number of virtual processors.
    fn processors(&self) -> u32;
    /// The guest's reference time in units of 100 ns.
    fn reference_time(&self) -> u64;
    /// Drops all messages that wait for a free slot.
    fn forget_messages(&mut self);
}

/// A SynIC page in the guest's memory.
#[derive(Clone, Copy, Default)]
struct Page {
    /// The page's address, if the guest has enabled the page.
    address: Option<u64>,
    /// Whether the guest has enabled the controller as a whole.
    enabled: bool,
}

impl Page {
    /// Takes the registers' new values. Clears a page whose address is new.
    fn update(&mut self, memory: &GuestMemory, enabled: bool, register: u64) {
        let address = (register & ENABLE != 0).then_some(register & ADDRESS);
        if let (Some(new), true) = (address, address != self.address) {
            // An address without memory needs no clearing.
            let _ = memory.write(new, &[0; PAGE_SIZE as usize]);
        }
        *self = Self { address, enabled };
    }

    fn in_use(&self) -> Option<u64> {
        self.address.filter(|_| self.enabled)
    }
}

#[derive(Clone, Default)]
struct Processor {
    message_page: Page,
    event_page: Page,
    queue: VecDeque<Vec<u8>>,
}

/// The controllers' state in a snapshot.
#[derive(Clone)]
pub struct State(Vec<Processor>);

/// The controllers of all processors.
pub struct Synic {
    memory: Arc<GuestMemory>,
    raise: Box<dyn Fn(u32) + Send>,
    processors: Vec<Processor>,
}

impl Synic {
    /// Controllers after reset. `raise` injects the SINT into a processor.
    pub fn new(memory: Arc<GuestMemory>, processors: u32, raise: Box<dyn Fn(u32) + Send>) -> Self {
        Self {
            memory,
            raise,
            processors: (0..processors).map(|_| Processor::default()).collect(),
        }
    }

    /// The state for a snapshot.
    pub fn state(&self) -> State {
        State(self.processors.clone())
    }

    /// Continues from a snapshot's state.
    pub fn set_state(&mut self, state: &State) {
        self.processors.clone_from(&state.0);
    }

    /// The guest has written SCONTROL, SIEFP or SIMP of processor `vp`. The arguments are all three values.
    pub fn update(&mut self, vp: u32, control: u64, event_page: u64, message_page: u64) {
        let Some(processor) = self.processors.get_mut(vp as usize) else {
            return;
        };
        let enabled = control & ENABLE != 0;
        let memory = &self.memory;
        processor.message_page.update(memory, enabled, message_page);
        processor.event_page.update(memory, enabled, event_page);
        self.deliver(vp);
    }

    /// The guest has acknowledged the SINT of processor `vp`, or written EOM: its slot may be free.
    pub fn acknowledged(&mut self, vp: u32) {
        self.deliver(vp);
    }

    /// Whether messages wait for a free slot.
    pub fn has_waiting_messages(&self) -> bool {
        self.processors
            .iter()
            .any(|processor| !processor.queue.is_empty())
    }

    /// Whether at least [`CONGESTED`] messages wait for a processor.
    pub fn is_congested(&self) -> bool {
        let mut queues = self.processors.iter().map(|processor| &processor.queue);
        queues.any(|queue| queue.len() >= CONGESTED)
    }

    /// Queues a message for processor `vp`. Ignores an absent processor. Only VMBus' SINT has a queue and an interrupt.
    /// A message for another SINT goes into its slot if that is free, without an interrupt.
    pub fn post(&mut self, vp: u32, sint: u32, payload: &[u8]) {
        assert!(
            payload.len() <= MESSAGE_PAYLOAD,
            "a SynIC message holds 240 bytes"
        );
        let Some(processor) = self.processors.get_mut(vp as usize) else {
            return;
        };
        if sint == VMBUS_SINT {
            processor.queue.push_back(payload.to_vec());
            return self.deliver(vp);
        }
        if let Some(page) = processor.message_page.in_use().filter(|_| sint < SINTS) {
            let _ = fill(&self.memory, page + u64::from(sint) * SLOT, payload, false);
        }
    }

    /// Sets an event flag. Interrupts the processor if the flag was clear. Does nothing if the guest has enabled no
    /// event page.
    pub fn signal(&mut self, vp: u32, flag: u32) {
        let Some(page) = self
            .processors
            .get(vp as usize)
            .and_then(|processor| processor.event_page.in_use())
        else {
            return;
        };
        if flag >= EVENT_FLAGS {
            return;
        }
        let word = page + u64::from(VMBUS_SINT) * SLOT + u64::from(flag / 64) * 8;
        let bit = 1 << (flag % 64);
        if self
            .memory
            .fetch_or_u64(word, bit)
            .is_ok_and(|old| old & bit == 0)
        {
            (self.raise)(vp);
        }
    }

    /// Drops all messages that wait.
    pub fn forget(&mut self) {
        for processor in &mut self.processors {
            processor.queue.clear();
        }
    }

    fn deliver(&mut self, vp: u32) {
        let processor = &mut self.processors[vp as usize];
        let Some(page) = processor.message_page.in_use() else {
            return;
        };
        let slot = page + u64::from(VMBUS_SINT) * SLOT;
        if let Some(message) = processor.queue.front() {
            let more = processor.queue.len() > 1;
            match fill(&self.memory, slot, message, more) {
                Ok(true) => {
                    processor.queue.pop_front();
                    (self.raise)(vp);
                }
                Ok(false) => {}
                // The guest's message page is not memory: no message can ever arrive.
                Err(BadAddress { .. }) => processor.queue.clear(),
            }
        }
    }
}

/// Fills a free slot with a message and returns true. Sets MessagePending in an occupied slot and returns false.
fn fill(memory: &GuestMemory, slot: u64, payload: &[u8], more: bool) -> Result<bool, BadAddress> {
    if memory.load_u32(slot)? != 0 {
        memory.fetch_or_u32(slot + 4, PENDING)?;
        // The guest may have freed the slot before it could see MessagePending. Then the guest writes no EOM: fill the
        // slot now.
        if memory.load_u32(slot)? != 0 {
            return Ok(false);
        }
    }
    memory.write(slot + 8, &[0; 8])?;
    memory.write(slot + 16, payload)?;
    memory.store_u32(
        slot + 4,
        payload.len() as u32 | if more { PENDING } else { 0 },
    )?;
    memory.store_u32(slot, MESSAGE_TYPE)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;

    const MESSAGES: u64 = 0x1000;
    const EVENTS: u64 = 0x2000;
    const SLOT2: u64 = MESSAGES + 512;

    fn synic() -> (Arc<GuestMemory>, Synic, Arc<AtomicUsize>) {
        let memory = Arc::new(GuestMemory::new(2 << 20).unwrap());
        let raised = Arc::new(AtomicUsize::new(0));
        let count = raised.clone();
        let raise = Box::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        (memory.clone(), Synic::new(memory, 1, raise), raised)
    }

    #[test]
    fn a_full_slot_is_marked_and_filled_at_eom() {
        let (memory, mut synic, raised) = synic();
        synic.post(0, VMBUS_SINT, &[1; 8]);
        assert!(synic.has_waiting_messages());
        synic.update(0, 1, EVENTS | 1, MESSAGES | 1);
        assert_eq!(memory.load_u32(SLOT2).unwrap(), 1);
        assert_eq!(memory.load_u32(SLOT2 + 4).unwrap(), 8);
        synic.post(0, VMBUS_SINT, &[2; 9]);
        synic.post(0, VMBUS_SINT, &[3; 9]);
        assert_eq!(memory.load_u32(SLOT2 + 4).unwrap(), 8 | PENDING);
        synic.acknowledged(0); // The slot is still occupied.
        assert_eq!(raised.load(Ordering::SeqCst), 1);
        memory.store_u32(SLOT2, 0).unwrap();
        synic.acknowledged(0);
        assert_eq!(memory.read_vec(SLOT2 + 16, 9).unwrap(), [2; 9]);
        assert_eq!(memory.load_u32(SLOT2 + 4).unwrap(), 9 | PENDING);
        memory.store_u32(SLOT2, 0).unwrap();
        synic.acknowledged(0);
        assert_eq!(memory.load_u32(SLOT2 + 4).unwrap(), 9);
        assert!(!synic.has_waiting_messages());
        assert_eq!(raised.load(Ordering::SeqCst), 3);
    }

    #[test]
    fn an_event_flag_interrupts_once() {
        let (memory, mut synic, raised) = synic();
        synic.update(0, 1, EVENTS | 1, MESSAGES | 1);
        synic.signal(0, 65);
        synic.signal(0, 65);
        synic.signal(0, 1 << 20);
        synic.signal(7, 1);
        assert_eq!(memory.load_u32(EVENTS + 512 + 8).unwrap(), 2);
        assert_eq!(raised.load(Ordering::SeqCst), 1);
        memory.store_u32(EVENTS + 512 + 8, 0).unwrap();
        synic.signal(0, 65);
        assert_eq!(raised.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn pages_are_cleared_when_they_come_into_use() {
        let (memory, mut synic, _) = synic();
        let dirty = |at: u64| memory.store_u32(at + 4092, 7).unwrap();
        let clean = |at: u64| memory.load_u32(at + 4092).unwrap() == 0;
        dirty(MESSAGES);
        dirty(EVENTS);
        synic.update(0, 1, EVENTS, MESSAGES | 1);
        assert_eq!((clean(MESSAGES), clean(EVENTS)), (true, false));
        dirty(MESSAGES);
        synic.update(0, 1, EVENTS | 1, MESSAGES | 1);
        assert_eq!((clean(MESSAGES), clean(EVENTS)), (false, true));
        // Enabling the controller clears nothing. A new address does.
        synic.update(0, 0, EVENTS | 1, MESSAGES | 1);
        synic.update(0, 1, EVENTS | 1, MESSAGES | 1);
        assert!(!clean(MESSAGES));
        dirty(0x3000);
        synic.update(0, 1, 0x3000 | 1, MESSAGES | 1);
        assert!(clean(0x3000));
        synic.update(0, 1, 1 << 40 | 1, MESSAGES | 1);
    }

    #[test]
    fn another_sint_has_a_slot_but_no_queue() {
        let (memory, mut synic, raised) = synic();
        synic.update(0, 1, EVENTS | 1, MESSAGES | 1);
        for sint in [3, 3, 16, u32::MAX] {
            synic.post(0, sint, &[1; 8]);
        }
        assert_eq!(memory.load_u32(MESSAGES + 3 * SLOT).unwrap(), 1);
        assert!(!synic.has_waiting_messages());
        assert_eq!(raised.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn it_is_told_when_many_messages_wait() {
        let (_memory, mut synic, _) = synic();
        for count in 0..CONGESTED {
            assert!(!synic.is_congested(), "{count}");
            synic.post(0, VMBUS_SINT, &[1]);
        }
        assert!(synic.is_congested());
        synic.forget();
        assert!(!synic.is_congested());
    }

    #[test]
    fn a_disabled_controller_keeps_messages() {
        let (memory, mut synic, raised) = synic();
        synic.update(0, 0, EVENTS | 1, MESSAGES | 1);
        synic.post(0, VMBUS_SINT, &[1]);
        synic.signal(0, 1);
        assert_eq!(memory.load_u32(SLOT2).unwrap(), 0);
        assert_eq!(raised.load(Ordering::SeqCst), 0);
        synic.update(0, 1, EVENTS | 1, MESSAGES | 1);
        assert_eq!(memory.load_u32(SLOT2).unwrap(), 1);
    }
}
