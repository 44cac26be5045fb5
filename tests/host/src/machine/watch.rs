// SPDX-License-Identifier: GPL-2.0

//! Where a processor is, as seen from outside, and whether it still gets on.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use super::shared::lock;
use crate::kvm::VcpuKick;

/// What can be seen of a processor from outside.
#[derive(Default)]
pub(super) struct Watch {
    /// Someone wants to know where it is.
    pub(super) wanted: AtomicBool,
    /// And that it gets an NMI then.
    pub(super) nmi: AtomicBool,
    /// The answer.
    pub(super) seen: Mutex<Option<Seen>>,
    /// Held by the one who wants to know.
    looking: Mutex<()>,
    /// What it is doing.
    pub(super) doing: Mutex<&'static str>,
}

impl Watch {
    /// Has the processor that `kick` reaches say where it is; `None` if it doesn't. It may get an NMI then.
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

/// Where a processor was when someone wanted to know.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) place: String,
    /// All its registers, if it isn't idle.
    pub(super) busy_with: Option<String>,
    /// An NMI is on its way to it.
    pub(super) waits_for_nmi: bool,
}

impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        self.busy_with == other.busy_with
    }
}

/// Where nested paging is emulated for several processors, one at times stays at an instruction for good, takes neither
/// interrupts nor NMIs there, and changes no register. Elsewhere that is the guest's own doing.
#[derive(Clone, Default)]
pub(super) struct Suspicion {
    last: Option<Seen>,
    /// For how many looks it has been the same.
    looks: u32,
}

impl Suspicion {
    /// After so many looks it gets an NMI, which any software takes.
    const NMI_AFTER: u32 = 4;

    /// Looks where a processor is; once it's certain that it does not get on, says so.
    pub(super) fn look(&mut self, watch: &Watch, kick: &VcpuKick) -> Option<String> {
        let seen = watch.look(kick, self.looks == Self::NMI_AFTER);
        let same = seen.is_some() && seen == self.last;
        self.looks = match &seen {
            Some(seen) if same && seen.busy_with.is_some() => self.looks + 1,
            _ => 0,
        };
        self.last = seen;
        let last = self.last.as_ref()?;
        // The NMI was sent with the look before the last.
        (self.looks > Self::NMI_AFTER + 1 && last.waits_for_nmi)
            .then(|| format!("stays at {}, and takes no NMI there", last.place))
    }
}
