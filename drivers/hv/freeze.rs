// SPDX-License-Identifier: GPL-2.0

//! Thaws file systems that the daemon has frozen for the host, if the daemon does not thaw them.
//!
//! The service checks and decides in softirq context. In process context, a worker records which
//! file systems are frozen, and thaws them. Recording and thawing wait for running freezes, which
//! may take minutes. So the worker is detached work: unbinding does not wait for the worker,
//! but the removal of the module does.

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

/// Claimed while a record exists. Two records would mistake each other's freezes for their own. So
/// the next device cannot freeze until the file systems that were frozen for the last device are
/// thawed.
static RECORD: Unique = Unique::new();

/// Why file systems are or were thawed.
#[derive(Clone, Copy)]
pub(crate) enum Cause {
    /// The host asks to thaw.
    Asked,
    /// The host asks to freeze again.
    Again,
    /// The host has negotiated again, or the device has gone.
    Restarted,
    /// The file systems were frozen for longer than `vss_freeze_limit`.
    Limit,
    /// The guest hibernates.
    Hibernation,
    /// The freeze has failed.
    Failed,
    /// The daemon has continued to freeze after the service gave up.
    Late,
    /// Someone else has thawed a file system.
    Elsewhere,
}

impl Cause {
    /// Returns the text for the log and the trace.
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

/// Why a freeze cannot begin.
#[derive(Clone, Copy)]
pub(crate) enum Refusal {
    /// An earlier freeze has not ended.
    Busy,
    /// The guest hibernates.
    Hibernates,
    /// The kernel cannot tell which file systems are frozen.
    Error(Error),
}

/// The cause in the trace for file systems that are already thawed when the daemon has answered
/// THAW.
const BY_OTHERS: &str = "the daemon, or somebody else";

/// The state of the backup when the host asks to thaw.
#[derive(Clone, Copy)]
pub(crate) enum Backup {
    /// Nothing was frozen for the host.
    None,
    /// All file systems stayed frozen.
    Consistent,
    /// A file system was thawed before, for this reason.
    Spoilt(Cause),
}

/// A record of the frozen file systems, and the claim on [`RECORD`].
struct Held {
    record: Record,
    /// The time at which the daemon had frozen all file systems.
    since: Option<Moment>,
    _claim: Claim,
}

/// The progress of a freeze.
enum Stage {
    /// Nothing is frozen.
    Idle,
    /// The freeze is prepared. The daemon is about to be asked, is freezing, or has failed.
    Begun(Held),
    /// The daemon has frozen all file systems.
    Frozen(Held),
    /// The worker thaws the file systems.
    Thawing,
}

/// The preparation of a freeze: the worker makes a record.
enum Preparation {
    /// No freeze is about to begin.
    None,
    /// The worker must make the record.
    Wanted,
    /// The worker has made the record, or failed.
    Ended(Result<(), Refusal>),
}

/// The state of the freezes for one device.
struct State {
    stage: Stage,
    preparation: Preparation,
    /// Whether the daemon may be freezing.
    is_freezing: bool,
    /// The worker must thaw, for this reason.
    thaw: Option<Cause>,
    /// Why file systems were thawed before the host asked for it. Kept until the next freeze.
    spoilt: Option<Cause>,
    /// The result of the last thaw.
    thawed: Result,
    /// Whether the system hibernates: nothing may be frozen.
    is_hibernating: bool,
}

impl State {
    /// Cancels the preparation of a freeze.
    fn cancel_preparation(&mut self) {
        if let Preparation::Ended(Ok(())) = self.preparation {
            self.stage = Stage::Idle;
        }
        self.preparation = Preparation::None;
    }

    /// Requests a thaw that the host has not asked for.
    fn spoil(&mut self, cause: Cause) {
        self.cancel_preparation();
        if let Stage::Begun(_) | Stage::Frozen(_) = self.stage {
            self.spoilt.get_or_insert(cause);
            self.thaw.get_or_insert(cause);
        }
    }
}

/// A task of the worker.
enum Task {
    /// Make a record.
    Record,
    /// Thaw the recorded file systems.
    Thaw(Held, Cause),
}

/// The state that the worker shares with the service.
#[pin_data]
struct Shared {
    /// Locked while tasks are carried out.
    #[pin]
    turn: Mutex<()>,
    #[pin]
    state: SpinLockIrq<State>,
    /// Wakes the service. `None` after the service is gone.
    #[pin]
    waker: Mutex<Option<Waker>>,
}

impl Shared {
    /// Carries out all tasks, and wakes the service. May sleep.
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

    /// Takes the next task.
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

    /// Makes a record for the freeze that is being prepared.
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

    /// Thaws the recorded file systems. Keeps the record if the daemon may freeze more.
    fn thaw(&self, mut held: Held, cause: Cause) {
        // Check before the thaw: a daemon that finishes during the thaw may have frozen more.
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

/// Thaws the recorded file systems, and logs each. Returns the last error.
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

/// A handle to the file systems that are frozen for the host. Unless stated otherwise, its methods
/// may be called in any context.
pub(crate) struct Freezer {
    shared: Arc<Shared>,
    work: Arc<Detached>,
}

impl Freezer {
    /// Creates a freezer for a service, with nothing frozen. `waker` wakes the service when the
    /// worker has finished.
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

    /// Prepares a freeze: lets the worker record which file systems are frozen. If file systems are
    /// still frozen for the host, the worker thaws them first.
    pub(crate) fn prepare(&self) {
        self.shared.state.lock().preparation = Preparation::Wanted;
        self.schedule();
    }

    /// Begins the freeze, if the worker has prepared it. The caller asks the daemon next. Returns
    /// `None` while the worker prepares the freeze.
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

    /// Completes the freeze: the daemon has frozen all file systems.
    ///
    /// Fails with the cause if a file system was thawed meanwhile.
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

    /// To be called when the daemon no longer freezes, but has not frozen all file systems.
    /// [`Freezer::thaw`] thaws those that the daemon has frozen.
    pub(crate) fn freeze_failed(&self) {
        self.shared.state.lock().is_freezing = false;
    }

    /// Cancels a freeze for which the daemon was not asked. Nothing needs to be thawed.
    pub(crate) fn cancel(&self) {
        let mut state = self.shared.state.lock();
        state.cancel_preparation();
    }

    /// Cancels a freeze for which the daemon has not read the question. Nothing needs to be thawed.
    pub(crate) fn freeze_unread(&self) {
        let mut state = self.shared.state.lock();
        state.is_freezing = false;
        if let (Stage::Begun(_), None) = (&state.stage, state.thaw) {
            state.stage = Stage::Idle;
        }
    }

    /// Lets the worker thaw the file systems that are frozen for the host, although the host has
    /// not asked for a thaw.
    pub(crate) fn thaw(&self, cause: Cause) {
        self.shared.state.lock().spoil(cause);
        self.schedule();
    }

    /// Begins the thaw that the host asks for. The caller asks the daemon next.
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

    /// Finishes the thaw, after the daemon has thawed or failed: lets the worker thaw the file
    /// systems that are still frozen. `daemon_succeeded` says whether the daemon has reported
    /// success.
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

    /// Returns the result of the last thaw, or `None` until the worker has finished a thaw.
    pub(crate) fn thawed(&self) -> Option<Result> {
        let state = self.shared.state.lock();
        match state.stage {
            Stage::Thawing => None,
            _ if state.thaw.is_some() => None,
            _ => Some(state.thawed),
        }
    }

    /// Calls `visit`, which must not sleep, for each file system that is frozen for the host.
    /// Returns false, without a call, while the worker thaws.
    pub(crate) fn for_each_frozen(&self, visit: &mut dyn FnMut(&SuperBlock)) -> bool {
        match &self.shared.state.lock().stage {
            Stage::Idle => (),
            Stage::Begun(held) | Stage::Frozen(held) => held.record.for_each_frozen(visit),
            Stage::Thawing => return false,
        }
        true
    }

    /// Returns the time since the daemon has frozen all file systems for the host, in milliseconds.
    /// Returns `None` if they are not all frozen.
    pub(crate) fn frozen_for(&self) -> Option<u64> {
        match &self.shared.state.lock().stage {
            Stage::Frozen(held) if held.record.is_intact() => held.since.map(Moment::age),
            _ => None,
        }
    }

    /// Stops waking the service. To be called when the service is gone. May sleep.
    pub(crate) fn forget_service(&self) {
        let waker = self.shared.waker.lock().take();
        drop(waker);
    }

    /// Schedules the worker.
    fn schedule(&self) {
        // This cannot fail, because a driver of the module is registered: while the device is
        // bound, and while a daemon has the device open, as the module cannot be removed then.
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
