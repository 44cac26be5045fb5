// SPDX-License-Identifier: GPL-2.0

//! Volume shadow copy (VSS): the host backs the guest up while it runs; `hv_vss_daemon` freezes and
//! thaws its file systems.

use crate::{
    daemon::{
        Asked,
        DaemonService,
        ANSWER_TIMEOUT, //
    },
    icmsg::{
        vss::{
            Daemon,
            Operation,
            DAEMON_LEN, //
        },
        Kind,
        Status,
        Version, //
    },
    transport::{
        Lost,
        Protocol, //
    },
};
use hyperv::{
    channel::RingSize,
    ratelimit::RateLimit, //
};
use kernel::{
    prelude::*,
    time::Delta, //
};

/// How long a host waits for file systems to be frozen.
const FREEZE_TIMEOUT: Delta = Delta::from_secs(15 * 60);

/// The VSS service.
pub(crate) struct Vss {
    file_systems: FileSystems,
    /// The administrator was told what to do about them.
    has_warned: bool,
    /// Of what the host can have logged.
    limit: Pin<KBox<RateLimit>>,
}

/// What the guest's file systems are, as far as is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FileSystems {
    /// Writable.
    Thawed,
    /// Frozen for the host, which will have them thawed.
    Frozen,
    /// Frozen, or about to be, and the host won't have them thawed any more.
    Orphaned,
}

impl Vss {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            file_systems: FileSystems::Thawed,
            has_warned: false,
            limit: KBox::pin_init(RateLimit::new(), GFP_KERNEL)?,
        })
    }

    fn thawed(&mut self) {
        self.file_systems = FileSystems::Thawed;
        self.has_warned = false;
    }

    fn failed_to_thaw(&self) {
        if self.limit.as_ref().allows() {
            pr_err!("VSS: the daemon failed to thaw. Thaw: fsfreeze --unfreeze MOUNTPOINT\n");
        }
    }
}

impl Protocol for Vss {
    const NAME: &'static str = "VSS";
    const DEVICE: &'static CStr = c"vmbus/hv_vss";
    const ANSWER_LEN: usize = DAEMON_LEN;

    type Message = [u8; DAEMON_LEN];
    type Registration = Daemon;

    fn register(message: &Self::Message) -> Option<Daemon> {
        Daemon::registration(message)
    }

    fn confirm(registration: Daemon, message: &mut Self::Message) -> Option<usize> {
        registration.confirm(message)
    }

    fn connected(registration: Daemon) {
        pr_info!(
            "VSS: userspace daemon ver. {} connected\n",
            registration.version()
        );
    }
}

impl DaemonService for Vss {
    const KIND: Kind = Kind::VSS;
    const FRAMEWORKS: &'static [Version] = &[Version::new(3, 0)];
    const VERSIONS: &'static [Version] = &[Version::new(5, 0)];
    const RING: RingSize = crate::RING;
    const PATIENCE: Delta = Delta::ZERO;

    type Operation = Operation;

    fn ask(
        &mut self,
        body: &mut [u8],
        daemon: Option<Daemon>,
        message: &mut Self::Message,
    ) -> Asked<Operation> {
        let operation = match Operation::parse(body) {
            Ok(operation) => operation,
            Err(status) => return Asked::Answered(status),
        };
        let timeout = match operation {
            Operation::Freeze => FREEZE_TIMEOUT,
            Operation::Thaw | Operation::HotBackup => ANSWER_TIMEOUT,
            Operation::GetInfo | Operation::Notice => {
                operation.succeed(body);
                return Asked::Answered(Status::OK);
            }
        };
        if daemon.is_none() {
            // The host doesn't ask again: the next daemon will have to.
            if operation == Operation::Thaw {
                self.restarted();
            }
            return Asked::Answered(Status::FAIL);
        }
        operation.write(message);
        Asked::Question {
            operation,
            len: DAEMON_LEN,
            timeout,
        }
    }

    fn answered(
        &mut self,
        operation: Operation,
        _: Daemon,
        answer: &Self::Message,
        body: &mut [u8],
    ) -> Status {
        let status = Operation::status(answer);
        match operation {
            Operation::Thaw if status != Status::OK => self.failed_to_thaw(),
            _ if status != Status::OK => {}
            Operation::Freeze => self.file_systems = FileSystems::Frozen,
            Operation::Thaw => self.thawed(),
            _ => operation.succeed(body),
        }
        status
    }

    fn unanswered(&mut self, operation: Operation, _: Lost) {
        if self.limit.as_ref().allows() {
            pr_warn!("VSS: no answer from the daemon\n");
        }
        if matches!(operation, Operation::Freeze | Operation::Thaw) {
            self.file_systems = FileSystems::Orphaned;
        }
    }

    fn tell(&mut self, message: &mut Self::Message) -> Option<usize> {
        if self.file_systems != FileSystems::Orphaned {
            return None;
        }
        if self.limit.as_ref().allows() {
            pr_warn!("VSS: having the daemon thaw the file systems, as the host won't\n");
        }
        Operation::Thaw.write(message);
        Some(DAEMON_LEN)
    }

    fn told(&mut self, answer: &Self::Message) {
        match Operation::status(answer) {
            Status::OK => pr_info!("VSS: the daemon has thawed the file systems\n"),
            _ => self.failed_to_thaw(),
        }
        self.thawed();
    }

    fn daemon_changed(&mut self, daemon: Option<Daemon>) {
        if daemon.is_some() || self.file_systems == FileSystems::Thawed || self.has_warned {
            return;
        }
        self.has_warned = true;
        pr_err!(
            "VSS: the daemon has gone while file systems may be frozen. \
             Thaw them: fsfreeze --unfreeze MOUNTPOINT, or start the daemon\n"
        );
    }

    fn restarted(&mut self) {
        if self.file_systems == FileSystems::Frozen {
            self.file_systems = FileSystems::Orphaned;
        }
    }
}
