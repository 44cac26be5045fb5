// SPDX-License-Identifier: GPL-2.0

//! An integration service that a daemon does the work of: its conversation with the host.
//!
//! One request is worked on at a time, as the protocol has it. What comes in meanwhile stays in the
//! ring. Only a negotiation is taken at once: with it the host starts over, and waits for no answer from
//! before. While a negotiation waits for a daemon, the next one stays in the ring, too: each is answered.

use crate::{
    icmsg::{
        Kind,
        Registration,
        Request,
        Status,
        Version, //
    },
    service::{
        log_negotiation,
        log_unexpected, //
    },
    transport::{
        Daemon,
        Late,
        Lost,
        Outcome,
        Protocol,
        Transport, //
    },
    unique::Unique, //
};
use hyperv::{
    channel::{
        Buffer,
        Handled,
        Handler,
        Job as ChannelJob,
        Packet,
        RingSize,
        Sender,
        Taken, //
    },
    linux::{
        ratelimit::RateLimit,
        time::Deadline,
        workqueue::Run, //
    },
};
use kernel::{
    prelude::*,
    sync::Arc,
    time::Delta, //
};

/// How long a daemon has to answer.
pub(crate) const ANSWER_TIMEOUT: Delta = Delta::from_secs(30);

/// What is fixed about a service that a daemon does the work of.
pub(crate) struct Info {
    /// The name in log messages.
    pub(crate) name: &'static str,
    /// The type of the service's requests.
    pub(crate) kind: Kind,
    /// The framework versions that the service works with, best first.
    pub(crate) frameworks: &'static [Version],
    /// The message versions that the service knows, best first.
    pub(crate) versions: &'static [Version],
    /// The size of each ring.
    pub(crate) ring: RingSize,
    /// Whether negotiations wait until a daemon has registered. A host pushes what it has right after
    /// them.
    pub(crate) waits_for_daemon: bool,
    /// Set while a device has the service: there can be one.
    pub(crate) unique: Unique,
    /// What is said to the daemon.
    pub(crate) protocol: Protocol,
}

/// A service that a daemon does the work of. All methods are called in softirq context, but
/// [`DaemonService::restarted`], [`DaemonService::unanswered`] and [`DaemonService::daemon_gone`] also
/// where they may sleep.
pub(crate) trait DaemonService: Send {
    /// Writes what the daemon is to be asked about the request in `body` to `message`, or answers
    /// the request.
    fn ask(&mut self, body: &mut [u8], daemon: Option<Registration>, message: &mut [u8]) -> Asked;

    /// Goes on with the request in `body` for which [`Asked::Later`] was returned last, as
    /// [`DaemonService::ask`] does. Called each time the channel is woken; with `daemon` if it can be asked.
    fn resume(
        &mut self,
        body: &mut [u8],
        daemon: Option<Registration>,
        message: &mut [u8],
    ) -> Asked;

    /// Answers the request in `body`, about which the daemon was asked, with what it has answered.
    fn answered(&mut self, body: &mut [u8], daemon: Registration, answer: &[u8]) -> Asked;

    /// The request in `body`, about which the daemon was asked, gets no answer from it. What is returned
    /// does not matter if the host has started over.
    fn unanswered(&mut self, body: &mut [u8], lost: Lost, reason: Reason) -> Asked;

    /// The request in `body` is past the deadline of its [`Asked::Later`].
    fn overdue(&mut self, body: &mut [u8]) -> Status {
        let _ = body;
        Status::FAIL
    }

    /// Writes what the daemon has to be asked although the host doesn't, and returns its size.
    fn tell(&mut self, message: &mut [u8]) -> Option<usize> {
        let _ = message;
        None
    }

    /// What the daemon has answered to [`DaemonService::tell`]. Not called if it has gone.
    fn told(&mut self, answer: &[u8]) {
        let _ = answer;
    }

    /// The daemon has gone; another may have come.
    fn daemon_gone(&mut self) {}

    /// The host has started over, or the channel was closed.
    fn restarted(&mut self) {}

    /// When the service has something to do that is not about a request, if it has.
    fn deadline(&self) -> Option<Deadline> {
        None
    }

    /// That time is over.
    fn expired(&mut self) {}
}

/// What becomes of a request.
pub(crate) enum Asked {
    /// The daemon is asked the first `len` bytes of the message, and has `timeout` to answer. `late`
    /// says what becomes of an answer after that.
    Question {
        len: usize,
        timeout: Delta,
        late: Late,
    },
    /// The request is answered without it.
    Answered(Status),
    /// The service goes on with it each time the channel is woken, by [`DaemonService::resume`], and has
    /// until then.
    Later { until: Deadline },
}

/// Why a question gets no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The daemon has gone.
    Gone,
    /// The daemon took too long.
    TimedOut,
    /// The host has started over.
    Restarted,
}

/// The conversation with the host on the service's channel.
pub(crate) struct Session {
    info: &'static Info,
    service: KBox<dyn DaemonService>,
    transport: Arc<Transport>,
    /// The daemon that was there last time.
    daemon: Option<Daemon>,
    /// When the channel's job runs, or ran last.
    armed: Option<Deadline>,
    /// Where questions are written, and answers read.
    message: KVec<u8>,
    /// What was agreed on with the host, if anything.
    version: Option<Version>,
    /// Deadline of a request that waits until the daemon can be asked.
    blocked_until: Option<Deadline>,
    /// `None` only while it is being changed.
    job: Option<Job>,
}

/// The request that is worked on.
enum Job {
    /// There is none.
    None(Buffer),
    /// The host has offered versions. The answer waits for a daemon.
    Offered(Taken),
    /// The daemon has been asked, and has until then to answer.
    Asked(Taken, Deadline),
    /// The service works on it, and has until then.
    Later(Taken, Deadline),
    /// The daemon works on a message of ours. Requests wait until the deadline and fail after it.
    Told(Buffer, Deadline),
    /// Its answer waits for room in the ring.
    Answered(Taken),
}

impl Session {
    /// The conversation, and the job of its channel.
    pub(crate) fn new(
        info: &'static Info,
        service: KBox<dyn DaemonService>,
        transport: Arc<Transport>,
    ) -> Result<(Self, ChannelJob)> {
        let expiry = Expiry {
            transport: transport.clone(),
        };
        let session = Self {
            info,
            service,
            transport,
            daemon: None,
            armed: None,
            message: info.protocol.new_message()?,
            version: None,
            blocked_until: None,
            job: Some(Job::None(Buffer::new(info.ring)?)),
        };
        Ok((session, Some(KBox::new(expiry, GFP_KERNEL)?)))
    }

    /// The time at which the service has to be woken next.
    fn next_deadline(&self) -> Option<Deadline> {
        let is_ahead = |until: &Deadline| !until.is_over();
        let until = match self.job {
            Some(Job::Asked(_, until) | Job::Later(_, until)) => Some(until),
            // Skip these once they are over: the packets that come in next end them.
            Some(Job::Told(_, until)) => Some(until).filter(is_ahead),
            _ => None,
        };
        let until = until.or(self.blocked_until.filter(is_ahead));
        match (until, self.service.deadline()) {
            (Some(until), Some(deadline)) => Some(until.min(deadline)),
            (until, deadline) => until.or(deadline),
        }
    }

    /// Has the channel's job wake the service in time, if it does not run before that anyway.
    fn arm(&mut self, sender: &Sender<'_>) {
        let Some(next) = self.next_deadline() else {
            return;
        };
        if self
            .armed
            .is_some_and(|armed| !armed.is_over() && armed.min(next) == armed)
        {
            return;
        }
        self.armed = Some(next);
        sender.defer_until(next);
    }

    /// Notices that the daemon is another one.
    fn look_for_daemon(&mut self) {
        let daemon = self.transport.daemon();
        if self.daemon.is_some() && self.daemon != daemon {
            self.service.daemon_gone();
        }
        self.daemon = daemon;
    }

    /// Forgets the host's request, without an answer, and what was agreed on.
    fn restart(&mut self, job: Option<Job>) -> Option<Job> {
        let job = job.map(|job| match job {
            Job::Asked(mut taken, _) => {
                let lost = self.transport.abandon();
                if let Ok(mut request) = Request::new(taken.payload()) {
                    self.service
                        .unanswered(request.body(), lost, Reason::Restarted);
                }
                Job::None(taken.abandon())
            }
            Job::Offered(taken) | Job::Later(taken, _) | Job::Answered(taken) => {
                Job::None(taken.abandon())
            }
            job @ (Job::None(_) | Job::Told(..)) => job,
        });
        self.version = None;
        self.blocked_until = None;
        self.service.restarted();
        self.tell(job)
    }

    /// Tells the daemon what it has to be told, if it isn't working on something.
    fn tell(&mut self, job: Option<Job>) -> Option<Job> {
        match job {
            Some(Job::None(buffer)) if self.transport.is_free() => {
                Some(match self.service.tell(&mut self.message) {
                    Some(len) => {
                        let until = Deadline::after(ANSWER_TIMEOUT);
                        self.transport.ask(
                            self.daemon,
                            &mut self.message,
                            len,
                            None,
                            Late::Dropped,
                        );
                        Job::Told(buffer, until)
                    }
                    None => Job::None(buffer),
                })
            }
            job => job,
        }
    }

    /// Passes on what the daemon has answered to what it was told.
    fn conclude_told(&mut self, buffer: Buffer, until: Deadline) -> Job {
        match self.transport.outcome(&mut self.message) {
            Outcome::Pending => return Job::Told(buffer, until),
            Outcome::Answered(_) => self.service.told(&self.message),
            Outcome::None(_) => {}
        }
        Job::None(buffer)
    }

    fn negotiate(&mut self, mut packet: Packet<'_>, job: Option<Job>) -> (Handled, Option<Job>) {
        let limit = packet.sender().limit();
        // Drop the pending answer: the host would take it for this one's.
        let job = match self.restart(job) {
            Some(Job::None(buffer)) if self.info.waits_for_daemon && self.daemon.is_none() => {
                return match packet.take(buffer) {
                    Ok((handled, taken)) => (handled, Some(Job::Offered(taken))),
                    Err((packet, buffer)) => (fail(packet), Some(Job::None(buffer))),
                };
            }
            job => job,
        };
        let request = match Request::new(packet.payload_mut()) {
            Ok(request) => request,
            Err(unanswerable) => return (packet.ignore(&unanswerable), job),
        };
        let version = request.negotiate(self.info.frameworks, self.info.versions);
        let (handled, has_left) = packet.reply();
        if has_left {
            self.version = version;
            log_negotiation(self.info.name, version, limit);
        }
        (handled, job)
    }

    /// Answers the host's offer of versions.
    fn accept(&mut self, mut taken: Taken, limit: Pin<&RateLimit>) -> Job {
        if let Ok(request) = Request::new(taken.payload()) {
            self.version = request.negotiate(self.info.frameworks, self.info.versions);
            log_negotiation(self.info.name, self.version, limit);
        }
        Job::Answered(taken)
    }

    /// Starts work on a request, or answers it.
    fn request(&mut self, mut packet: Packet<'_>, buffer: Buffer) -> (Handled, Job) {
        let mut daemon = self.daemon.map(|daemon| daemon.registration);
        if daemon.is_some() && !self.transport.is_free() {
            if self.is_blocked() {
                return (packet.leave(), Job::None(buffer));
            }
            // As good as none.
            daemon = None;
        }
        self.blocked_until = None;
        let asked = match Request::new(packet.payload_mut()) {
            Ok(mut request) => {
                let asked = self.service.ask(request.body(), daemon, &mut self.message);
                if let Asked::Answered(status) = asked {
                    request.answer(status);
                }
                asked
            }
            Err(unanswerable) => return (packet.ignore(&unanswerable), Job::None(buffer)),
        };
        if let Asked::Answered(_) = asked {
            return (packet.reply().0, Job::None(buffer));
        }
        match packet.take(buffer) {
            Ok((handled, taken)) => (handled, self.go_on(taken, asked)),
            Err((packet, buffer)) => (fail(packet), Job::None(buffer)),
        }
    }

    /// Does about a request that was taken what the service says.
    fn go_on(&mut self, mut taken: Taken, asked: Asked) -> Job {
        match asked {
            Asked::Question { len, timeout, late } => {
                let until = Deadline::after(timeout);
                self.transport
                    .ask(self.daemon, &mut self.message, len, Some(until), late);
                Job::Asked(taken, until)
            }
            Asked::Later { until } => Job::Later(taken, until),
            Asked::Answered(status) => {
                if let Ok(request) = Request::new(taken.payload()) {
                    request.answer(status);
                }
                Job::Answered(taken)
            }
        }
    }

    /// Has the service go on with a request that it works on.
    fn resume(&mut self, mut taken: Taken, until: Deadline) -> Job {
        let Ok(mut request) = Request::new(taken.payload()) else {
            return Job::Answered(taken);
        };
        let is_free = self.transport.is_free();
        let daemon = self.daemon.filter(|_| is_free);
        let daemon = daemon.map(|daemon| daemon.registration);
        match self
            .service
            .resume(request.body(), daemon, &mut self.message)
        {
            Asked::Later { .. } if until.is_over() => {
                let status = self.service.overdue(request.body());
                self.go_on(taken, Asked::Answered(status))
            }
            Asked::Later { .. } => Job::Later(taken, until),
            asked => self.go_on(taken, asked),
        }
    }

    /// Whether a request goes on waiting for the way to the daemon to be free. A daemon may never
    /// end a read.
    fn is_blocked(&mut self) -> bool {
        let until = *self
            .blocked_until
            .get_or_insert_with(|| Deadline::after(ANSWER_TIMEOUT));
        !until.is_over()
    }

    /// Answers the request if the daemon has, or won't any more.
    fn conclude(&mut self, mut taken: Taken, until: Deadline) -> Job {
        let result = match self.transport.outcome(&mut self.message) {
            Outcome::Pending => return Job::Asked(taken, until),
            Outcome::Answered(daemon) => Ok(daemon),
            Outcome::None(lost) => Err(lost),
        };
        let Ok(mut request) = Request::new(taken.payload()) else {
            return Job::Answered(taken);
        };
        let body = request.body();
        let asked = match result {
            Ok(daemon) => self.service.answered(body, daemon, &self.message),
            Err(lost) if until.is_over() => self.service.unanswered(body, lost, Reason::TimedOut),
            Err(lost) => self.service.unanswered(body, lost, Reason::Gone),
        };
        self.go_on(taken, asked)
    }
}

/// Answers a request that nothing can be done about.
fn fail(mut packet: Packet<'_>) -> Handled {
    match Request::new(packet.payload_mut()) {
        Ok(request) => request.answer(Status::FAIL),
        Err(unanswerable) => return packet.ignore(&unanswerable),
    }
    packet.reply().0
}

impl Handler for Session {
    fn woken(&mut self, sender: &Sender<'_>) {
        let job = match self.job.take() {
            Some(Job::Asked(taken, until)) => Some(self.conclude(taken, until)),
            Some(Job::Told(buffer, until)) => Some(self.conclude_told(buffer, until)),
            job => job,
        };
        // After handling the last daemon's outcome.
        self.look_for_daemon();
        if self.service.deadline().is_some_and(Deadline::is_over) {
            self.service.expired();
        }
        let job = match job {
            Some(Job::Later(taken, until)) => Some(self.resume(taken, until)),
            job => job,
        };
        let job = match job {
            Some(Job::Offered(taken)) if self.daemon.is_some() => {
                Some(self.accept(taken, sender.limit()))
            }
            job => job,
        };
        let job = match job {
            Some(Job::Answered(taken)) => Some(match sender.reply(taken) {
                Ok(buffer) => Job::None(buffer),
                Err(taken) => Job::Answered(taken),
            }),
            job => job,
        };
        self.job = self.tell(job);
        self.arm(sender);
    }

    fn receive(&mut self, mut packet: Packet<'_>) -> Handled {
        if !packet.is_in_band() {
            return packet.ignore(&"not in-band data");
        }
        let sender = packet.sender();
        let kind = Request::new(packet.payload_mut()).map(|request| request.kind());
        let (handled, job) = match (kind, self.version, self.job.take()) {
            (Err(unanswerable), _, job) => (packet.ignore(&unanswerable), job),
            // Each negotiation is answered, in its turn.
            (Ok(_), _, job @ Some(Job::Offered(_))) => (packet.leave(), job),
            (Ok(Kind::NEGOTIATE), _, job) => self.negotiate(packet, job),
            (Ok(kind), Some(_), Some(Job::None(buffer))) if kind == self.info.kind => {
                let (handled, job) = self.request(packet, buffer);
                (handled, Some(job))
            }
            (Ok(kind), _, job @ Some(Job::None(_))) => {
                log_unexpected(self.info.name, kind, sender.limit());
                (fail(packet), job)
            }
            (Ok(_), _, Some(Job::Told(buffer, until))) if until.is_over() => {
                (fail(packet), Some(Job::Told(buffer, until)))
            }
            // One request at a time.
            (Ok(_), _, job) => (packet.leave(), job),
        };
        self.job = job;
        self.arm(sender);
        handled
    }

    fn closed(&mut self) {
        let job = self.job.take();
        self.job = self.restart(job);
        self.look_for_daemon();
        // The channel has cancelled its job.
        self.armed = None;
    }
}

/// Ends waiting that has taken too long.
struct Expiry {
    transport: Arc<Transport>,
}

impl Run for Expiry {
    fn run(&self) {
        self.transport.expire();
    }
}
