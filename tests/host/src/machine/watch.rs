// SPDX-License-Identifier: GPL-2.0

//! Reports where a processor is, and detects a stuck one.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use super::shared::lock;
use crate::kvm::VcpuKick;

/// A processor's place, as other threads see it.
#[derive(Default)]
pub(super) struct Watch {
    /// A thread asks for the processor's place.
    pub(super) wanted: AtomicBool,
    /// The processor is to get an NMI, too.
    pub(super) nmi: AtomicBool,
    /// The processor's answer.
    pub(super) seen: Mutex<Option<Seen>>,
    /// Held by the thread that asks.
    looking: Mutex<()>,
    /// The processor's current work.
    pub(super) doing: Mutex<&'static str>,
}

impl Watch {
    /// Asks the processor behind `kick` for its place. Sends an NMI if `nmi` is set. `None` if the processor does not
    /// answer.
    pub(super) fn look(&self, kick: &VcpuKick, nmi: bool) -> Option<Seen> {
        let _one = lock(&self.looking);
        *lock(&self.seen) = None;
        self.nmi.store(nmi, Ordering::SeqCst);
        self.wanted.store(true, Ordering::SeqCst);
        kick.kick();
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            if let Some(seen) = lock(&self.seen).take() {
                return Some(seen);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.wanted.store(false, Ordering::SeqCst);
        None
    }
}

/// A processor's answer.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) place: String,
    /// All registers, unless the processor is idle.
    pub(super) busy_with: Option<String>,
    /// Whether an NMI is pending for the processor.
    pub(super) waits_for_nmi: bool,
}

impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        self.busy_with == other.busy_with
    }
}

/// Detects a processor that does not get on. If nested paging is emulated for several processors, one at times stays at
/// an instruction for good: it takes neither interrupts nor NMIs and changes no register. Elsewhere a stuck processor
/// is the guest's own fault.
#[derive(Clone, Default)]
pub(super) struct Suspicion {
    last: Option<Seen>,
    /// How many looks have found the same place.
    looks: u32,
}

impl Suspicion {
    /// The processor gets an NMI after this many looks. Any software takes an NMI.
    const NMI_AFTER: u32 = 4;

    /// Looks at a processor. Returns a description if the processor is surely stuck.
    pub(super) fn look(&mut self, watch: &Watch, kick: &VcpuKick) -> Option<String> {
        let seen = watch.look(kick, self.looks == Self::NMI_AFTER);
        let same = seen.is_some() && seen == self.last;
        self.looks = match &seen {
            Some(seen) if same && seen.busy_with.is_some() => self.looks + 1,
            _ => 0,
        };
        self.last = seen;
        let last = self.last.as_ref()?;
        // The NMI was sent two looks ago.
        (self.looks > Self::NMI_AFTER + 1 && last.waits_for_nmi)
            .then(|| format!("stays at {}, and takes no NMI there", last.place))
    }
}
