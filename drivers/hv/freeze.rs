// SPDX-License-Identifier: GPL-2.0

//! Thaws file systems that the daemon froze for the host, if nobody else does.
//!
//! The service looks at them and decides in softirq context. A worker records and thaws in process
//! context: both may take as long as a freeze in progress. Only the removal of the module waits for
//! the worker.

use crate::{
    transport::LateListener,
    unique::{
        Claim,
        Unique, //
    },
};
use core::mem;
use hyperv::{
    channel::Waker,
    compat::{
        new_spinlock_irq,
        SpinLockIrq, //
    },
    linux::{
        super_block::{
            Record,
            SuperBlock, //
        },
        suspend::Hibernation,
        time::Moment,
        workqueue::{
            Detached,
            Memory,
            Run, //
        },
    },
    trace, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

/// Set while there is a record. Two records would take each other's freezes for their own. The next
/// device cannot freeze before all is thawed that was frozen for the last.
static RECORD: Unique = Unique::new();

/// Why file systems are thawed, or were.
#[derive(Clone, Copy)]
pub(crate) enum Cause {
    /// The host asks for it.
    Asked,
    /// The host freezes once more.
    Again,
    /// The host has started over, or the device has gone.
    Restarted,
    /// They were frozen for longer than they may be.
    Limit,
    /// The guest hibernates.
    Hibernation,
    /// The freeze has failed.
    Failed,
    /// The daemon has gone on to freeze after the end.
    Late,
    /// Somebody else has thawed.
    Elsewhere,
}

impl Cause {
    /// The words in the log, and for who traces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Asked => "the host asks for it",
            Self::Again => "the host freezes once more",
            Self::Restarted => "the host has started over, or has gone",
            Self::Limit => "vss_freeze_limit is over",
            Self::Hibernation => "the guest hibernates",
            Self::Failed => "the freeze has failed",
            Self::Late => "the daemon went on to freeze",
            Self::Elsewhere => "not by this module",
        }
    }
}

/// Why nothing can be frozen.
#[derive(Clone, Copy)]
pub(crate) enum Refusal {
    /// An earlier freeze has not ended.
    Busy,
    /// The guest hibernates.
    Hibernates,
    /// The kernel does not say what is frozen.
    Error(Error),
}

/// The cause, for who traces, of what this module finds thawed when the daemon has answered THAW.
const BY_OTHERS: &str = "the daemon, or somebody else";

/// What is known of the backup when the host asks to thaw.
#[derive(Clone, Copy)]
pub(crate) enum Backup {
    /// Nothing was frozen for the host.
    None,
    /// All stayed frozen.
    Consistent,
    /// Something was thawed before, for that reason.
    Spoilt(Cause),
}

/// A record, and the right to have one.
struct Held {
    record: Record,
    /// When the daemon had frozen all.
    since: Option<Moment>,
    _claim: Claim,
}

/// How far the freeze is.
enum Stage {
    /// Nothing is frozen.
    Idle,
    /// The daemon is about to be asked, or freezes, or has failed to.
    Begun(Held),
    /// The daemon has frozen.
    Frozen(Held),
    /// The worker thaws.
    Thawing,
}

/// What the worker has done about the record that a freeze needs.
enum Preparation {
    /// No freeze is about to begin.
    None,
    /// The worker has to make the record.
    Wanted,
    /// It has made it, or not.
    Ended(Result<(), Refusal>),
}

struct State {
    stage: Stage,
    preparation: Preparation,
    /// The daemon may be freezing.
    is_freezing: bool,
    /// The worker has to thaw, for that reason.
    thaw: Option<Cause>,
    /// Why something was thawed before the host asked for it. Kept until the next freeze.
    spoilt: Option<Cause>,
    /// What came of the last thaw.
    thawed: Result,
    /// Nothing may be frozen.
    is_hibernating: bool,
}

impl State {
    /// A freeze that was prepared does not begin.
    fn cancel_preparation(&mut self) {
        if let Preparation::Ended(Ok(())) = self.preparation {
            self.stage = Stage::Idle;
        }
        self.preparation = Preparation::None;
    }

    /// Has the worker thaw, although the host did not ask for it.
    fn spoil(&mut self, cause: Cause) {
        self.cancel_preparation();
        if let Stage::Begun(_) | Stage::Frozen(_) = self.stage {
            self.spoilt.get_or_insert(cause);
            self.thaw.get_or_insert(cause);
        }
    }
}

/// What the worker does next.
enum Task {
    /// Makes a record.
    Record,
    /// Thaws what the daemon has frozen.
    Thaw(Held, Cause),
}

/// What the worker and its handles share.
#[pin_data]
struct Shared {
    /// Locked while tasks are carried out.
    #[pin]
    turn: Mutex<()>,
    #[pin]
    state: SpinLockIrq<State>,
    /// Wakes the service; `None` once that is gone.
    #[pin]
    waker: Mutex<Option<Waker>>,
}

impl Shared {
    /// Carries out all tasks.
    fn carry_out(&self) {
        let _turn = self.turn.lock();
        while let Some(task) = self.next() {
            match task {
                Task::Record => self.record(),
                Task::Thaw(held, cause) => self.thaw(held, cause),
            }
        }
        if let Some(waker) = &*self.waker.lock() {
            waker.wake();
        }
    }

    fn next(&self) -> Option<Task> {
        let mut state = self.state.lock();
        let is_wanted = matches!(state.preparation, Preparation::Wanted);
        let cause = match state.thaw.take() {
            Some(cause) => cause,
            None if is_wanted => Cause::Again,
            None => return None,
        };
        match (mem::replace(&mut state.stage, Stage::Thawing), cause) {
            (Stage::Frozen(held), cause) => {
                if let Cause::Again = cause {
                    state.spoilt = Some(cause);
                }
                Some(Task::Thaw(held, cause))
            }
            (stage @ Stage::Begun(_), Cause::Again) => {
                state.stage = stage;
                state.preparation = Preparation::Ended(Err(Refusal::Busy));
                None
            }
            (Stage::Begun(held), cause) => Some(Task::Thaw(held, cause)),
            (Stage::Idle | Stage::Thawing, _) => {
                state.stage = Stage::Idle;
                is_wanted.then_some(Task::Record)
            }
        }
    }

    fn record(&self) {
        let made = match RECORD.try_claim() {
            Some(claim) => Record::new()
                .map(|record| Held {
                    record,
                    since: None,
                    _claim: claim,
                })
                .map_err(Refusal::Error),
            None => Err(Refusal::Busy),
        };
        let mut state = self.state.lock();
        let Preparation::Wanted = state.preparation else {
            return;
        };
        state.preparation = Preparation::Ended(made.map(|held| {
            state.stage = Stage::Begun(held);
            state.spoilt = None;
        }));
    }

    /// Thaws, for the last time if the daemon does not freeze any more.
    fn thaw(&self, mut held: Held, cause: Cause) {
        // Look first: a daemon that ends during the thaw may have frozen more.
        let is_last = !self.state.lock().is_freezing;
        let result = thaw(cause, &mut held.record);
        if !is_last {
            held.record.unpin();
        }
        let mut state = self.state.lock();
        state.thawed = result;
        if is_last {
            state.stage = Stage::Idle;
            return;
        }
        state.stage = Stage::Begun(held);
        if !state.is_freezing {
            state.thaw = Some(Cause::Late);
        }
    }
}

/// Thaws what is recorded, and logs that. Returns the last error.
fn thaw(cause: Cause, record: &mut Record) -> Result {
    let mut result = Ok(());
    record.thaw(&mut |super_block, thawed| {
        trace::thawed(super_block.name().as_bytes(), cause.name(), thawed);
        match thawed {
            Ok(()) => {
                pr_notice!(
                    "VSS: thawed {}: {}\n",
                    format_args!("{super_block}"),
                    cause.name()
                );
            }
            Err(error) => {
                pr_err!(
                    "VSS: cannot thaw {}: {:?}\n",
                    format_args!("{super_block}"),
                    error
                );
                result = Err(error);
            }
        }
    });
    result
}

impl Run for Shared {
    fn run(&self) {
        self.carry_out();
    }
}

/// A handle to what was frozen for the host. Its methods may be called in any context.
pub(crate) struct Freezer {
    shared: Arc<Shared>,
    work: Arc<Detached>,
}

impl Freezer {
    /// Nothing is frozen yet. `waker` is the service's, which is woken when the worker has done what it
    /// was to do.
    ///
    /// Fails with `ENOMEM`.
    pub(crate) fn new(waker: Waker) -> Result<Arc<Self>> {
        let shared = Arc::pin_init(
            pin_init!(Shared {
                turn <- new_mutex!((), "Freezer::turn"),
                state <- new_spinlock_irq!(State {
                    stage: Stage::Idle,
                    preparation: Preparation::None,
                    is_freezing: false,
                    thaw: None,
                    spoilt: None,
                    thawed: Ok(()),
                    is_hibernating: false,
                }, "Freezer::state"),
                waker <- new_mutex!(Some(waker), "Freezer::waker"),
            }),
            GFP_KERNEL,
        )?;
        let run = KBox::new(shared.clone(), GFP_KERNEL)?;
        let work = Detached::new(run, Memory::MayWait)?;
        Ok(Arc::new(Self { shared, work }, GFP_KERNEL)?)
    }

    /// A freeze is about to begin: has the worker record what is frozen already. What was frozen for the
    /// host before is thawed.
    pub(crate) fn prepare(&self) {
        self.shared.state.lock().preparation = Preparation::Wanted;
        self.schedule();
    }

    /// Begins the freeze once it is prepared: the daemon is asked next. `None` if it is not prepared yet.
    pub(crate) fn begin(&self) -> Option<Result<(), Refusal>> {
        let mut state = self.shared.state.lock();
        if state.is_hibernating {
            return Some(Err(Refusal::Hibernates));
        }
        let result = match state.preparation {
            Preparation::Wanted => return None,
            Preparation::None => Err(Refusal::Busy),
            Preparation::Ended(result) => result,
        };
        state.preparation = Preparation::None;
        Some(result.map(|()| {
            if let Stage::Begun(held) = &mut state.stage {
                held.record.begin();
            }
            state.is_freezing = true;
        }))
    }

    /// The daemon has frozen. Fails if something was thawed before that.
    pub(crate) fn complete(&self) -> Result<(), Cause> {
        let mut state = self.shared.state.lock();
        state.is_freezing = false;
        match (
            mem::replace(&mut state.stage, Stage::Idle),
            state.spoilt.or(state.thaw),
        ) {
            (Stage::Begun(mut held), None) => {
                held.record.complete();
                if trace::frozen_is_on() {
                    held.record
                        .for_each_frozen(&mut |frozen| trace::frozen(frozen.name().as_bytes()));
                }
                held.since = Some(Moment::now());
                state.stage = Stage::Frozen(held);
                Ok(())
            }
            (stage, cause) => {
                state.stage = stage;
                Err(cause.unwrap_or(Cause::Failed))
            }
        }
    }

    /// The daemon freezes no more, and has not frozen all: what it has frozen is to be thawed.
    pub(crate) fn freeze_failed(&self) {
        self.shared.state.lock().is_freezing = false;
    }

    /// The daemon was not asked: nothing is to be thawed.
    pub(crate) fn cancel(&self) {
        let mut state = self.shared.state.lock();
        state.cancel_preparation();
    }

    /// The daemon has not read that it is to freeze: there is nothing to thaw.
    pub(crate) fn freeze_unread(&self) {
        let mut state = self.shared.state.lock();
        state.is_freezing = false;
        if let (Stage::Begun(_), None) = (&state.stage, state.thaw) {
            state.stage = Stage::Idle;
        }
    }

    /// Has what was frozen for the host thawed, although the host has not asked for it.
    pub(crate) fn thaw(&self, cause: Cause) {
        self.shared.state.lock().spoil(cause);
        self.schedule();
    }

    /// The host asks to thaw: the daemon is asked next.
    pub(crate) fn begin_thaw(&self) -> Backup {
        let mut state = self.shared.state.lock();
        let spoilt = state.spoilt;
        match &mut state.stage {
            Stage::Frozen(held) if spoilt.is_none() => {
                let is_intact = held.record.is_intact();
                held.record.begin_thaw();
                match is_intact {
                    true => Backup::Consistent,
                    false => Backup::Spoilt(Cause::Elsewhere),
                }
            }
            _ => spoilt.map_or(Backup::None, Backup::Spoilt),
        }
    }

    /// The daemon says that it has thawed, or does not: has the worker thaw what is left.
    pub(crate) fn finish_thaw(&self, daemon_succeeded: bool) {
        {
            let mut state = self.shared.state.lock();
            if let Stage::Frozen(held) = &mut state.stage {
                if !daemon_succeeded {
                    held.record.thaw_failed();
                }
                if trace::thawed_is_on() {
                    held.record.for_each_thawed(&mut |thawed| {
                        trace::thawed(thawed.name().as_bytes(), BY_OTHERS, Ok(()));
                    });
                }
                if held.record.is_thawed() {
                    state.stage = Stage::Idle;
                }
            }
            match state.stage {
                Stage::Frozen(_) | Stage::Begun(_) => state.thaw = Some(Cause::Asked),
                Stage::Idle => {
                    state.thawed = Ok(());
                    return;
                }
                Stage::Thawing => return,
            }
        }
        self.schedule();
    }

    /// What came of the thaw, once nothing is left to do.
    pub(crate) fn thawed(&self) -> Option<Result> {
        let state = self.shared.state.lock();
        match state.stage {
            Stage::Thawing => None,
            _ if state.thaw.is_some() => None,
            _ => Some(state.thawed),
        }
    }

    /// Calls `visit` for each file system that is frozen for the host, in an atomic context. Returns false
    /// while the worker thaws them.
    pub(crate) fn for_each_frozen(&self, visit: &mut dyn FnMut(&SuperBlock)) -> bool {
        match &self.shared.state.lock().stage {
            Stage::Idle => (),
            Stage::Begun(held) | Stage::Frozen(held) => held.record.for_each_frozen(visit),
            Stage::Thawing => return false,
        }
        true
    }

    /// Milliseconds since the daemon had frozen all that the host has asked for. `None` if it has not, or
    /// if something was thawed, by whomever.
    pub(crate) fn frozen_for(&self) -> Option<u64> {
        match &self.shared.state.lock().stage {
            Stage::Frozen(held) if held.record.is_intact() => held.since.map(Moment::age),
            _ => None,
        }
    }

    /// The service has gone: it is not woken any more. May sleep.
    pub(crate) fn forget_service(&self) {
        let waker = self.shared.waker.lock().take();
        drop(waker);
    }

    fn schedule(&self) {
        // The driver is registered as long as a device is bound, or a daemon has the device open.
        Detached::schedule(&self.work);
    }
}

impl LateListener for Freezer {
    fn daemon_finished(&self) {
        {
            let mut state = self.shared.state.lock();
            state.is_freezing = false;
            if let Stage::Idle | Stage::Frozen(_) = state.stage {
                return;
            }
            state.spoilt.get_or_insert(Cause::Late);
            state.thaw.get_or_insert(Cause::Late);
        }
        self.schedule();
    }
}

impl Hibernation for Freezer {
    fn begins(&self) {
        {
            let mut state = self.shared.state.lock();
            state.is_hibernating = true;
            state.spoil(Cause::Hibernation);
        }
        self.shared.carry_out();
    }

    fn ends(&self) {
        self.shared.state.lock().is_hibernating = false;
    }
}
