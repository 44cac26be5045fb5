// SPDX-License-Identifier: GPL-2.0

//! Guest service interface (fcopy): the host copies files into the guest. `hv_fcopy_daemon` writes
//! them.

use crate::{
    icmsg::fcopy::{
        self,
        Operation,
        ANSWER_LEN,
        DAEMON_LEN, //
    },
    prelude::*, //
};

/// Constants of the file copy service.
static INFO: daemon::Info = daemon::Info {
    session: session::Info {
        name: "FCopy",
        kind: Kind::FCOPY,
        frameworks: &[Version::new(3, 0)],
        versions: &[Version::new(1, 1)],
        newest: None,
    },
    ring: RingSize::with_data(4 * 4096),
    waits_for_daemon: false,
    unique: Unique::new(),
    protocol: Protocol {
        device: c"vmbus/hv_fcopy",
        answer_len: ANSWER_LEN,
        message_len: DAEMON_LEN,
        register: fcopy::registration,
        confirm: fcopy::confirm,
        connected: |_| {},
    },
};

/// Binds the service to its device.
pub(crate) fn bind<'bound>(dev: &'bound Device<'_>) -> Result<BoundService<'bound>> {
    let service = Fcopy {
        progress: Progress::None,
        is_cancelling: false,
        limit: KBox::pin_init(RateLimit::new(c"hv_utils"), GFP_KERNEL)?,
    };
    BoundService::open_with_daemon(dev, &INFO, KBox::new(service, GFP_KERNEL)?, None)
}

/// The file copy service.
struct Fcopy {
    progress: Progress,
    /// The daemon is being asked to cancel the last copy. After that, the daemon is asked about the
    /// current request.
    is_cancelling: bool,
    /// Limits the lines that the host or the daemon can cause.
    limit: Pin<KBox<RateLimit>>,
}

/// How much of a file the daemon has written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Nothing, or the whole file.
    None,
    /// A part. The host continues the copy.
    Partial,
    /// A part, but a piece has failed. The daemon gets no more pieces.
    Broken,
    /// A part. The host has started over, and will not continue the copy.
    Orphaned,
}

impl Fcopy {
    /// Returns whether the daemon has a part of a file that the host may continue or cancel.
    fn is_amid(&self) -> bool {
        matches!(self.progress, Progress::Partial | Progress::Broken)
    }

    /// Asks the daemon about the request in `body`, or answers the request.
    fn ask_daemon(
        &mut self,
        body: &[u8],
        daemon: Option<Registration>,
        message: &mut [u8],
    ) -> Next {
        self.is_cancelling = false;
        if Operation::parse(body) == Ok(Operation::Cancel) && !self.is_amid() {
            // The daemon would remove the last file that it was asked to create: a complete copy,
            // or a file that was there before.
            return Next::Answer(Status::OK);
        }
        let (Some(_), Some(message)) = (daemon, message.first_chunk_mut()) else {
            return self.fail(body, Status::FAIL, "no daemon that can be asked");
        };
        match fcopy::to_daemon(body, message) {
            // A new daemon has not opened the file, and would write the piece to another file.
            // After a failed piece, the daemon would report a complete file.
            Ok((Operation::Write | Operation::Complete, _))
                if self.progress != Progress::Partial =>
            {
                self.fail(body, Status::FAIL, "the copy has failed, or did not begin")
            }
            // The daemon would forget the partial file.
            Ok((Operation::Start, _)) if self.is_amid() => {
                self.is_cancelling = true;
                Self::question(fcopy::cancel(message))
            }
            Ok((_, len)) => Self::question(len),
            Err(status) => self.fail(body, status, session::MALFORMED),
        }
    }

    /// Answers the request in `body` with the failure `status`, and logs the reason.
    fn fail(&self, body: &[u8], status: Status, why: &str) -> Next {
        let request = Operation::parse(body).map_or("the request", Operation::name);
        session::log_failure(self.limit.as_ref(), "FCopy", &why, request, status);
        Next::Answer(status)
    }

    /// Returns the step that sends the first `len` bytes of the message to the daemon.
    const fn question(len: usize) -> Next {
        Next::Ask {
            len,
            timeout: ANSWER_TIMEOUT,
            late: Late::Dropped,
        }
    }
}

impl DaemonService for Fcopy {
    fn ask(
        &mut self,
        _: Version,
        body: &mut [u8],
        daemon: Option<Registration>,
        message: &mut [u8],
    ) -> Next {
        self.ask_daemon(body, daemon, message)
    }

    fn resume(
        &mut self,
        body: &mut [u8],
        daemon: Option<Registration>,
        message: &mut [u8],
    ) -> Next {
        self.ask_daemon(body, daemon, message)
    }

    fn answered(&mut self, body: &mut [u8], _: Registration, answer: &[u8]) -> Next {
        if self.is_cancelling {
            self.progress = Progress::None;
            return Next::Wait {
                until: Deadline::after(ANSWER_TIMEOUT),
            };
        }
        let status = fcopy::status(answer);
        self.progress = match Operation::parse(body) {
            // A copy that did not begin need not be cancelled.
            Ok(Operation::Start) if status != Status::OK => Progress::None,
            Ok(Operation::Write) if status != Status::OK => Progress::Broken,
            Ok(Operation::Start | Operation::Write) => Progress::Partial,
            Ok(Operation::Complete | Operation::Cancel) | Err(_) => Progress::None,
        };
        match status {
            Status::OK => Next::Answer(status),
            status => self.fail(body, status, "the daemon failed"),
        }
    }

    fn unanswered(&mut self, body: &mut [u8], lost: Lost, reason: Reason) -> Next {
        // The daemon may have carried out all or part of the operation.
        if lost != Lost::Unread {
            self.progress = Progress::Broken;
        }
        self.fail(body, Status::FAIL, reason.name())
    }

    fn overdue(&mut self, body: &mut [u8]) -> Status {
        self.fail(body, Status::FAIL, "no daemon that can be asked");
        Status::FAIL
    }

    fn busy(&mut self, body: &mut [u8]) -> Status {
        self.fail(
            body,
            Status::FAIL,
            "the daemon has yet to cancel the last copy",
        );
        Status::FAIL
    }

    fn tell(&mut self, message: &mut [u8]) -> Option<usize> {
        match self.progress {
            Progress::Orphaned => message.first_chunk_mut().map(fcopy::cancel),
            Progress::None | Progress::Partial | Progress::Broken => None,
        }
    }

    fn told(&mut self) {
        self.progress = Progress::None;
    }

    fn daemon_gone(&mut self) {
        // No daemon is left that could remove the partial file.
        self.progress = Progress::None;
    }

    fn restarted(&mut self, pending: Option<Lost>) {
        if self.is_amid() || pending.is_some_and(|lost| lost != Lost::Unread) {
            self.progress = Progress::Orphaned;
        }
    }
}
