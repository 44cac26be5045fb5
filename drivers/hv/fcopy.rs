// SPDX-License-Identifier: GPL-2.0

//! Guest service interface (fcopy): the host copies files into the guest; `hv_fcopy_daemon` writes
//! them.

use crate::{
    daemon::{
        Asked,
        DaemonService,
        ANSWER_TIMEOUT, //
    },
    icmsg::{
        fcopy::{
            self,
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
use hyperv::channel::RingSize;
use kernel::{
    prelude::*,
    time::Delta, //
};

/// The file copy service.
pub(crate) struct Fcopy {
    copy: Copy,
}

/// What the daemon has of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// Nothing, or all.
    None,
    /// A part, and the host goes on with it.
    Partial,
    /// A part, and the host has started over without it.
    Orphaned,
}

impl Fcopy {
    pub(crate) fn new() -> Self {
        Self { copy: Copy::None }
    }
}

/// The version of its protocol that a daemon registered with.
#[derive(Clone, Copy)]
pub(crate) enum Daemon {
    /// 0: it expects no confirmation.
    Legacy,
    /// 1.
    Current,
}

/// The number of [`Daemon::Current`].
const CURRENT: [u8; 4] = 1u32.to_ne_bytes();

/// What a daemon says, its version at first and the status of an operation then, is four bytes.
const ANSWER_LEN: usize = 4;

fn status(answer: &[u8; DAEMON_LEN]) -> [u8; ANSWER_LEN] {
    [answer[0], answer[1], answer[2], answer[3]]
}

impl Protocol for Fcopy {
    const NAME: &'static str = "FCopy";
    const DEVICE: &'static CStr = c"vmbus/hv_fcopy";
    const ANSWER_LEN: usize = ANSWER_LEN;

    type Message = [u8; DAEMON_LEN];
    type Registration = Daemon;

    fn register(message: &Self::Message) -> Option<Daemon> {
        match status(message) {
            [0, 0, 0, 0] => Some(Daemon::Legacy),
            CURRENT => Some(Daemon::Current),
            _ => None,
        }
    }

    fn confirm(registration: Daemon, message: &mut Self::Message) -> Option<usize> {
        match registration {
            Daemon::Legacy => None,
            Daemon::Current => {
                message[..ANSWER_LEN].copy_from_slice(&CURRENT);
                Some(ANSWER_LEN)
            }
        }
    }
}

impl DaemonService for Fcopy {
    const KIND: Kind = Kind::FCOPY;
    const FRAMEWORKS: &'static [Version] = &[Version::new(3, 0)];
    const VERSIONS: &'static [Version] = &[Version::new(1, 1)];
    const RING: RingSize = RingSize::with_data(4 * 4096);
    const PATIENCE: Delta = Delta::ZERO;

    type Operation = Operation;

    fn ask(
        &mut self,
        body: &mut [u8],
        daemon: Option<Daemon>,
        message: &mut Self::Message,
    ) -> Asked<Operation> {
        if daemon.is_none() {
            return Asked::Answered(Status::FAIL);
        }
        match fcopy::to_daemon(body, message) {
            // A daemon that has come since the copy began writes such a piece anywhere.
            Ok((Operation::Write | Operation::Complete, _)) if self.copy != Copy::Partial => {
                Asked::Answered(Status::FAIL)
            }
            Ok((operation, len)) => Asked::Question {
                operation,
                len,
                timeout: ANSWER_TIMEOUT,
            },
            Err(status) => Asked::Answered(status),
        }
    }

    fn answered(
        &mut self,
        operation: Operation,
        _: Daemon,
        answer: &Self::Message,
        _: &mut [u8],
    ) -> Status {
        let status = Status(u32::from_ne_bytes(status(answer)));
        self.copy = match operation {
            // There's nothing to cancel of a copy that didn't begin.
            Operation::Start if status != Status::OK => Copy::None,
            Operation::Start | Operation::Write => Copy::Partial,
            Operation::Complete | Operation::Cancel => Copy::None,
        };
        status
    }

    fn unanswered(&mut self, _: Operation, lost: Lost) {
        // Whatever it was, the daemon may have done it.
        if lost == Lost::Read {
            self.copy = Copy::Partial;
        }
    }

    fn tell(&mut self, message: &mut Self::Message) -> Option<usize> {
        (self.copy == Copy::Orphaned).then(|| fcopy::cancel(message))
    }

    fn told(&mut self, _: &Self::Message) {
        self.copy = Copy::None;
    }

    fn daemon_changed(&mut self, daemon: Option<Daemon>) {
        // A daemon that goes takes back what it has of a file.
        if daemon.is_none() {
            self.copy = Copy::None;
        }
    }

    fn restarted(&mut self) {
        if self.copy == Copy::Partial {
            self.copy = Copy::Orphaned;
        }
    }
}
