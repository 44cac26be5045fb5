// SPDX-License-Identifier: GPL-2.0

//! Volume shadow copy (VSS): the host backs up the running guest. `hv_vss_daemon` freezes and thaws
//! the file systems. If the daemon does not thaw them, this module does.

use crate::{
    daemon::Awaited,
    freeze::{
        Backup,
        Cause,
        Freezer,
        Refusal, //
    },
    icmsg::vss::{
        self,
        Operation,
        DAEMON_LEN, //
    },
    parameters::{
        vss_freeze_limit,
        vss_protocol, //
    },
    prelude::*, //
};
use core::fmt;
use hyperv::{
    channel::Waker,
    linux::suspend::{
        Hibernation,
        HibernationNotifier, //
    },
};

/// Time that the daemon has to freeze the file systems.
const FREEZE_TIMEOUT: Delta = Delta::from_secs(15 * 60);

/// Constants of the VSS service.
static INFO: daemon::Info = daemon::Info {
    session: session::Info {
        name: "VSS",
        kind: Kind::VSS,
        frameworks: &[Version::new(3, 0)],
        versions: &[Version::new(7, 0), Version::new(6, 0), Version::new(5, 0)],
        newest: Some(&vss_protocol),
    },
    // The longest message has 12,528 bytes: a freeze with 520 disks.
    ring: RingSize::with_data(4 * 4096),
    waits_for_daemon: false,
    unique: Unique::new(),
    protocol: Protocol {
        device: c"vmbus/hv_vss",
        answer_len: DAEMON_LEN,
        message_len: DAEMON_LEN,
        register: vss::registration,
        confirm: vss::confirm,
        connected: |registration| {
            let version = vss::version(registration);
            pr_info!("VSS: userspace daemon ver. {} connected\n", version);
        },
    },
};

/// Binds the service to its device.
pub(crate) fn bind<'bound>(dev: &'bound Device<'_>) -> Result<BoundService<'bound>> {
    let freezer = Freezer::new(Waker::from(&***dev))?;
    let service = Vss {
        freezer: freezer.clone(),
        operation: Operation::Notice,
        step: Step::None,
        frozen: None,
        limit: KBox::pin_init(RateLimit::new(c"hv_utils"), GFP_KERNEL)?,
    };
    let service = KBox::new(service, GFP_KERNEL)?;
    let bound = BoundService::open_with_daemon(dev, &INFO, service, Some(freezer.clone()))?;
    let hibernation: Arc<dyn Hibernation> = freezer.clone();
    Ok(BoundService {
        _hibernation: Some(HibernationNotifier::new(dev.as_ref(), hibernation)?),
        freezer: Some(freezer),
        ..bound
    })
}

/// The VSS service.
pub(crate) struct Vss {
    freezer: Arc<Freezer>,
    /// The operation of the current request.
    operation: Operation,
    step: Step,
    /// `Some` while file systems are frozen for the host.
    frozen: Option<Frozen>,
    /// Limits the lines that the host can cause.
    limit: Pin<KBox<RateLimit>>,
}

/// Progress of the current request.
#[derive(Clone, Copy)]
enum Step {
    /// There is no request, or the request only needs the daemon.
    None,
    /// FREEZE: the worker records which file systems are already frozen.
    Preparing,
    /// FREEZE: the daemon freezes the file systems.
    Freezing,
    /// THAW: the daemon thaws the file systems.
    Thawing(Backup),
    /// THAW: the worker thaws the file systems that the daemon has left frozen. `Status` is the
    /// status of the daemon's answer. The host gets this status if nothing was frozen for the host.
    Finishing(Backup, Status),
}

/// A freeze for the host, and its limit.
struct Frozen {
    /// Maximum duration of the freeze in seconds; 0 for no limit.
    limit: u32,
    /// Time at which the file systems are thawed, if there is a limit.
    until: Option<Deadline>,
}

/// Why a request fails, for the log.
enum Why {
    /// There is no daemon, or it is still reading an earlier question.
    NoDaemon,
    /// The daemon has answered with a failure.
    Daemon,
    /// The daemon has not answered.
    NoAnswer(Reason),
    /// File systems were thawed before the host asked for it.
    Spoilt(Cause),
    /// The freeze cannot begin.
    Refused(Refusal),
    /// The kernel failed to thaw a file system.
    FileSystems(Error),
    /// Recording the frozen file systems, or thawing them, takes too long.
    FileSystemsTimedOut,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDaemon => f.write_str("no daemon that can be asked"),
            Self::Daemon => f.write_str("the daemon failed"),
            Self::NoAnswer(reason) => f.write_str(reason.name()),
            Self::Spoilt(cause) => write!(
                f,
                "the backup is not consistent, file systems were thawed before ({})",
                cause.name()
            ),
            Self::Refused(Refusal::Busy) => {
                f.write_str("a daemon has yet to end an earlier freeze")
            }
            Self::Refused(Refusal::Hibernates) => f.write_str("the guest hibernates"),
            Self::Refused(Refusal::Error(error)) | Self::FileSystems(error) => {
                write!(f, "file systems, error {}", error.to_errno())
            }
            Self::FileSystemsTimedOut => f.write_str("file systems, time-out"),
        }
    }
}

impl Vss {
    /// Returns the step that waits for the worker.
    fn later() -> Next {
        Next::Wait {
            until: Deadline::after(ANSWER_TIMEOUT),
        }
    }

    /// Asks the daemon to freeze if the worker has prepared the freeze, otherwise waits for the
    /// worker.
    fn freeze(&mut self, daemon: Option<Registration>, message: &mut [u8]) -> Next {
        self.step = Step::Preparing;
        if daemon.is_none() {
            return self.fail(Operation::Freeze, Status::FAIL, &Why::NoDaemon);
        }
        match self.freezer.begin() {
            None => Self::later(),
            Some(Ok(())) => self.question(Step::Freezing, Operation::Freeze, message),
            Some(Err(refusal)) => {
                self.fail(Operation::Freeze, Status::FAIL, &Why::Refused(refusal))
            }
        }
    }

    /// Lets the worker thaw the file systems that the daemon has left frozen. `status` is that of
    /// the daemon's answer.
    fn finish_thaw(&mut self, backup: Backup, status: Status) -> Next {
        self.freezer.finish_thaw(status == Status::OK);
        self.thaw_done(backup, status)
    }

    /// Answers THAW if nothing is left to thaw, otherwise waits for the worker.
    fn thaw_done(&mut self, backup: Backup, status: Status) -> Next {
        self.step = Step::Finishing(backup, status);
        let Some(thawed) = self.freezer.thawed() else {
            return Self::later();
        };
        let (status, why) = match (backup, thawed, status) {
            (Backup::Spoilt(cause), ..) => (Status::FAIL, Why::Spoilt(cause)),
            (_, Err(error), _) => (Status::FAIL, Why::FileSystems(error)),
            (Backup::Consistent, ..) | (.., Status::OK) => {
                self.step = Step::None;
                return Next::Answer(Status::OK);
            }
            (Backup::None, ..) => (status, Why::Daemon),
        };
        self.fail(Operation::Thaw, status, &why)
    }

    /// Asks the daemon about `operation`. `step` is the next step of the request.
    fn question(&mut self, step: Step, operation: Operation, message: &mut [u8]) -> Next {
        let Some(message) = message.first_chunk_mut() else {
            return Next::Answer(Status::FAIL);
        };
        operation.write(message);
        self.step = step;
        let (timeout, late) = match operation {
            Operation::Freeze => (FREEZE_TIMEOUT, Late::Refused),
            _ => (ANSWER_TIMEOUT, Late::Dropped),
        };
        Next::Ask {
            len: DAEMON_LEN,
            timeout,
            late,
        }
    }

    /// Answers the request with the failure `status`, and logs the reason. If the request is a
    /// freeze that has begun, lets the worker thaw all file systems that were frozen for the host.
    fn fail(&mut self, operation: Operation, status: Status, why: &Why) -> Next {
        self.log_failure(operation, status, why);
        match self.step {
            Step::Preparing => self.freezer.cancel(),
            Step::Freezing => self.freezer.thaw(Cause::Failed),
            Step::None | Step::Thawing(_) | Step::Finishing(..) => {}
        }
        self.step = Step::None;
        Next::Answer(status)
    }

    /// Logs that a request fails.
    fn log_failure(&self, operation: Operation, Status(status): Status, why: &Why) {
        if !self.limit.as_ref().allows() {
            return;
        }
        let operation = operation.name();
        match why {
            // This is expected if no daemon is installed, so do not warn.
            Why::NoDaemon => pr_notice!(
                "VSS: {}: {} fails, status {:#x}\n",
                format_args!("{why}"),
                operation,
                status
            ),
            _ => pr_warn!(
                "VSS: {}: {} fails, status {:#x}\n",
                format_args!("{why}"),
                operation,
                status
            ),
        }
    }

    /// Logs that the module thaws because the daemon does not.
    fn log_thaw(&self, why: &Why) {
        if self.limit.as_ref().allows() {
            pr_warn!("VSS: {}: thawing without it\n", format_args!("{why}"));
        }
    }

    /// Tells the freezer if the question about a FREEZE has failed.
    fn freeze_lost(&self, lost: Lost) {
        match (self.step, lost) {
            (Step::Freezing, Lost::Unread) => self.freezer.freeze_unread(),
            (Step::Freezing, Lost::Over) => self.freezer.freeze_failed(),
            _ => {}
        }
    }

    /// Answers a FREEZE when all file systems are frozen. The limit begins now.
    fn freeze_done(&mut self) -> Next {
        let limit = vss_freeze_limit.get();
        self.frozen = Some(Frozen {
            limit,
            until: (limit != 0).then(|| Deadline::after(Delta::from_secs(limit.into()))),
        });
        self.step = Step::None;
        Next::Answer(Status::OK)
    }
}

impl DaemonService for Vss {
    fn ask(
        &mut self,
        version: Version,
        body: &mut [u8],
        daemon: Option<Registration>,
        message: &mut [u8],
    ) -> Next {
        let operation = match Operation::parse(version, body) {
            Ok(operation) => operation,
            Err(status) => {
                let limit = self.limit.as_ref();
                session::log_failure(limit, "VSS", &session::MALFORMED, "the request", status);
                return Next::Answer(status);
            }
        };
        self.operation = operation;
        match operation {
            Operation::GetInfo | Operation::QueryCluster | Operation::Notice => {
                operation.succeed(body);
                Next::Answer(Status::OK)
            }
            Operation::HotBackup | Operation::Freeze if daemon.is_none() => {
                self.fail(operation, Status::FAIL, &Why::NoDaemon)
            }
            Operation::HotBackup => self.question(Step::None, operation, message),
            Operation::Freeze => {
                // The previous limit does not apply to the new freeze.
                self.frozen = None;
                self.freezer.prepare();
                self.freeze(daemon, message)
            }
            Operation::Thaw => {
                self.frozen = None;
                match (self.freezer.begin_thaw(), daemon) {
                    (backup, Some(_)) => self.question(Step::Thawing(backup), operation, message),
                    (Backup::None, None) => self.fail(operation, Status::FAIL, &Why::NoDaemon),
                    (backup, None) => self.finish_thaw(backup, Status::FAIL),
                }
            }
        }
    }

    fn resume(&mut self, _: &mut [u8], daemon: Option<Registration>, message: &mut [u8]) -> Next {
        match self.step {
            Step::Preparing => self.freeze(daemon, message),
            Step::Finishing(backup, status) => self.thaw_done(backup, status),
            Step::None | Step::Freezing | Step::Thawing(_) => Next::Answer(Status::FAIL),
        }
    }

    fn answered(&mut self, body: &mut [u8], _: Registration, answer: &[u8]) -> Next {
        let (status, operation) = (vss::status(answer), self.operation);
        match (self.step, status) {
            (Step::Freezing, Status::OK) => match self.freezer.complete() {
                Ok(()) => self.freeze_done(),
                Err(cause) => self.fail(operation, Status::FAIL, &Why::Spoilt(cause)),
            },
            (Step::Freezing, status) => {
                self.freezer.freeze_failed();
                self.fail(operation, status, &Why::Daemon)
            }
            (Step::Thawing(backup), status) => {
                if status != Status::OK {
                    self.log_thaw(&Why::Daemon);
                }
                self.finish_thaw(backup, status)
            }
            (_, Status::OK) => {
                operation.succeed(body);
                Next::Answer(status)
            }
            _ => self.fail(operation, status, &Why::Daemon),
        }
    }

    fn unanswered(&mut self, _: &mut [u8], lost: Lost, reason: Reason) -> Next {
        self.freeze_lost(lost);
        let (why, operation) = (Why::NoAnswer(reason), self.operation);
        match self.step {
            Step::Thawing(backup) => {
                self.log_thaw(&why);
                self.finish_thaw(backup, Status::FAIL)
            }
            _ => self.fail(operation, Status::FAIL, &why),
        }
    }

    fn awaited(&self) -> Awaited {
        Awaited::FileSystems
    }

    fn overdue(&mut self, _: &mut [u8]) -> Status {
        self.fail(self.operation, Status::FAIL, &Why::FileSystemsTimedOut);
        Status::FAIL
    }

    fn daemon_gone(&mut self) {
        match self.frozen {
            None => {}
            Some(Frozen { limit: 0, .. }) => pr_err!(
                "VSS: the daemon has gone while file systems are frozen. They are thawed when the host \
                 says so. At once, without a backup: fsfreeze --unfreeze MOUNTPOINT\n"
            ),
            Some(Frozen { limit, .. }) => pr_err!(
                "VSS: the daemon has gone while file systems are frozen. They are thawed when the host \
                 says so, {} s after the freeze at the latest. At once, without a backup: \
                 fsfreeze --unfreeze MOUNTPOINT\n",
                limit
            ),
        }
    }

    fn restarted(&mut self, pending: Option<Lost>) {
        if let Some(lost) = pending {
            self.freeze_lost(lost);
            if self.limit.as_ref().allows() {
                pr_warn!(
                    "VSS: no answer from the daemon before the host started over, or went: {} is dropped\n",
                    self.operation.name()
                );
            }
        }
        self.step = Step::None;
        self.frozen = None;
        self.freezer.thaw(Cause::Restarted);
    }

    fn deadline(&self) -> Option<Deadline> {
        self.frozen.as_ref()?.until
    }

    fn expired(&mut self) {
        self.frozen = None;
        self.freezer.thaw(Cause::Limit);
    }
}

impl Drop for Vss {
    fn drop(&mut self) {
        self.freezer.forget_service();
    }
}
