// SPDX-License-Identifier: GPL-2.0

//! Volume shadow copy (VSS): the host backs the guest up while it runs; `hv_vss_daemon` freezes and
//! thaws its file systems.

use crate::{
    daemon::{
        Asked,
        DaemonService,
        Info,
        ANSWER_TIMEOUT, //
    },
    icmsg::{
        vss::{
            self,
            Operation,
            DAEMON_LEN, //
        },
        Kind,
        Registration,
        Status,
        Version, //
    },
    transport::{
        Lost,
        Protocol, //
    },
    unique::Unique, //
};
use hyperv::ratelimit::RateLimit;
use kernel::{
    prelude::*,
    time::Delta, //
};

/// How long a host waits for file systems to be frozen.
const FREEZE_TIMEOUT: Delta = Delta::from_secs(15 * 60);

/// What is fixed about the VSS service.
pub(crate) static INFO: Info = Info {
    name: "VSS",
    kind: Kind::VSS,
    frameworks: &[Version::new(3, 0)],
    versions: &[Version::new(5, 0)],
    ring: crate::RING,
    patience: None,
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

/// The VSS service.
pub(crate) struct Vss {
    file_systems: FileSystems,
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
    /// Frozen, and the daemon that is there has failed to thaw them: the next one may not.
    Stuck,
}

impl Vss {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            file_systems: FileSystems::Thawed,
            limit: KBox::pin_init(RateLimit::new(), GFP_KERNEL)?,
        })
    }

    fn failed_to_thaw(&mut self) {
        self.file_systems = FileSystems::Stuck;
        if self.limit.as_ref().allows() {
            pr_err!("VSS: the daemon failed to thaw. Thaw: fsfreeze --unfreeze MOUNTPOINT\n");
        }
    }
}

impl DaemonService for Vss {
    fn ask(&mut self, body: &mut [u8], daemon: Option<Registration>, message: &mut [u8]) -> Asked {
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
        let (Some(_), Some(message)) = (daemon, message.first_chunk_mut()) else {
            // The host doesn't ask again: the next daemon will have to.
            if operation == Operation::Thaw {
                self.restarted();
            }
            return Asked::Answered(Status::FAIL);
        };
        operation.write(message);
        Asked::Question {
            len: DAEMON_LEN,
            timeout,
        }
    }

    fn answered(&mut self, body: &mut [u8], _: Registration, answer: &[u8]) -> Status {
        let status = vss::status(answer);
        match Operation::parse(body) {
            Ok(Operation::Thaw) if status != Status::OK => self.failed_to_thaw(),
            _ if status != Status::OK => {}
            Ok(Operation::Freeze) => self.file_systems = FileSystems::Frozen,
            Ok(Operation::Thaw) => self.file_systems = FileSystems::Thawed,
            Ok(operation) => operation.succeed(body),
            Err(status) => return status,
        }
        status
    }

    fn unanswered(&mut self, body: &[u8], lost: Lost) {
        if self.limit.as_ref().allows() {
            pr_warn!("VSS: no answer from the daemon\n");
        }
        match (Operation::parse(body), lost) {
            (Ok(Operation::Freeze), Lost::Read) | (Ok(Operation::Thaw), _) => {
                self.file_systems = FileSystems::Orphaned;
            }
            _ => {}
        }
    }

    fn tell(&mut self, message: &mut [u8]) -> Option<usize> {
        if self.file_systems != FileSystems::Orphaned {
            return None;
        }
        if self.limit.as_ref().allows() {
            pr_warn!("VSS: having the daemon thaw the file systems, as the host won't\n");
        }
        Operation::Thaw.write(message.first_chunk_mut()?);
        Some(DAEMON_LEN)
    }

    fn told(&mut self, answer: &[u8]) {
        match vss::status(answer) {
            Status::OK => {
                pr_info!("VSS: the daemon has thawed the file systems\n");
                self.file_systems = FileSystems::Thawed;
            }
            _ => self.failed_to_thaw(),
        }
    }

    fn daemon_gone(&mut self) {
        match self.file_systems {
            FileSystems::Thawed => return,
            FileSystems::Stuck => self.file_systems = FileSystems::Orphaned,
            FileSystems::Frozen | FileSystems::Orphaned => {}
        }
        pr_err!(
            "VSS: the daemon has gone while file systems may be frozen. \
             Thaw them: fsfreeze --unfreeze MOUNTPOINT, or start the daemon\n"
        );
    }

    fn restarted(&mut self) {
        if self.file_systems != FileSystems::Thawed {
            self.file_systems = FileSystems::Orphaned;
        }
    }
}
