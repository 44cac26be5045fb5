// SPDX-License-Identifier: GPL-2.0

//! Integration services whose work a daemon in user space does: their conversation with the host.
//!
//! Such a service handles one request at a time, as the protocol requires. Later messages stay in
//! the ring. A negotiation is taken at once: the host starts over, and no longer waits for earlier
//! answers. If the negotiation has to wait for a daemon, later negotiations stay in the ring,
//! because each gets an answer.

use crate::{
    dialogue::{
        Late,
        Lost, //
    },
    icmsg::{
        Registration,
        Request,
        Status,
        Version, //
    },
    session::{
        self,
        Answer,
        Incoming,
        Negotiation,
        Service, //
    },
    transport::{
        Daemon,
        Message,
        Outcome,
        Protocol,
        Transport, //
    },
    unique::Unique, //
};
use core::{
    convert::Infallible,
    mem, //
};
use hyperv::{
    channel::{
        Buffer,
        Context,
        Handled,
        Job,
        Packet,
        RingSize,
        Sender,
        Taken, //
    },
    linux::{
        rwonce::{
            Counter,
            RwOnce, //
        },
        time::{
            Deadline,
            Moment,
            Since, //
        },
        workqueue::Run, //
    },
    trace, //
};
use kernel::{
    prelude::*,
    sync::Arc,
    time::Delta, //
};

/// Time that a daemon has to answer.
pub(crate) const ANSWER_TIMEOUT: Delta = Delta::from_secs(30);

/// Constants of a service with a daemon.
pub(crate) struct Info {
    /// Constants of the service's conversation with the host.
    pub(crate) session: session::Info,
    /// The size of each ring.
    pub(crate) ring: RingSize,
    /// Whether negotiations wait until a daemon has registered. Needed if the host sends data only
    /// once, right after the negotiation.
    pub(crate) waits_for_daemon: bool,
    /// Ensures that only one device has the service.
    pub(crate) unique: Unique,
    /// Constants of the service's dialogue with its daemon.
    pub(crate) protocol: Protocol,
}

/// A service with a daemon.
///
/// The channel's callback calls all methods, in softirq context. When the channel is closed,
/// [`DaemonService::restarted`], [`DaemonService::daemon_gone`], [`DaemonService::tell`] and
/// [`DaemonService::awaited`] are also called in process context. No method may sleep.
pub(crate) trait DaemonService: Send {
    /// Begins to handle the request in `body`, which has the message version `version`: writes a
    /// question for the daemon to `message`, answers the request, or lets it wait. `daemon` is
    /// `Some` if the daemon can be asked.
    fn ask(
        &mut self,
        version: Version,
        body: &mut [u8],
        daemon: Option<Registration>,
        message: &mut [u8],
    ) -> Next;

    /// Continues with the request in `body` after [`Next::Wait`], with the same results as
    /// [`DaemonService::ask`]. Called each time the channel is woken.
    fn resume(&mut self, body: &mut [u8], daemon: Option<Registration>, message: &mut [u8])
        -> Next;

    /// Continues with the request in `body` after the daemon has answered the question. `answer` is
    /// the daemon's answer.
    fn answered(&mut self, body: &mut [u8], daemon: Registration, answer: &[u8]) -> Next;

    /// Continues with the request in `body` after the question has failed.
    fn unanswered(&mut self, body: &mut [u8], lost: Lost, reason: Reason) -> Next;

    /// Returns the reason for the current [`Next::Wait`].
    fn awaited(&self) -> Awaited {
        Awaited::Daemon
    }

    /// Returns the status for the request in `body` when the deadline of its [`Next::Wait`] has
    /// passed.
    fn overdue(&mut self, body: &mut [u8]) -> Status;

    /// Returns the status for the request in `body` when the daemon has not answered the message of
    /// [`DaemonService::tell`] in time.
    fn busy(&mut self, body: &mut [u8]) -> Status {
        let _ = body;
        Status::FAIL
    }

    /// Writes a message that the daemon gets without a request from the host. Returns its length in
    /// bytes, or `None` if there is no such message. Called when the daemon can be asked and no
    /// request is being handled.
    fn tell(&mut self, message: &mut [u8]) -> Option<usize> {
        let _ = message;
        None
    }

    /// Called when the daemon has answered the message of [`DaemonService::tell`]. Not called if
    /// the daemon has gone instead.
    fn told(&mut self) {}

    /// Called when the daemon has gone. Another daemon may already have registered.
    fn daemon_gone(&mut self) {}

    /// Called when the host negotiates again, or the channel was closed. The current request is
    /// dropped. If a question was pending, the question is given up, and `pending` says how far the
    /// daemon has got with it.
    fn restarted(&mut self, pending: Option<Lost>) {
        let _ = pending;
    }

    /// Returns the time at which the service needs a call of [`DaemonService::expired`], if any.
    fn deadline(&self) -> Option<Deadline> {
        None
    }

    /// Called when the time of [`DaemonService::deadline`] has passed.
    fn expired(&mut self) {}
}

/// The next step of a request.
pub(crate) enum Next {
    /// Send the first `len` bytes of the message to the daemon as a question. The daemon has
    /// `timeout` to answer. `late` says what happens to an answer after that.
    Ask {
        len: usize,
        timeout: Delta,
        late: Late,
    },
    /// Answer the request.
    Answer(Status),
    /// Let the request wait, at most until `until`; see [`DaemonService::resume`].
    Wait { until: Deadline },
}

/// Why a question has failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The daemon has gone.
    Gone,
    /// The daemon took too long.
    TimedOut,
}

impl Reason {
    /// Returns the text for the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gone => "no answer from the daemon, which has gone",
            Self::TimedOut => "no answer from the daemon, time-out",
        }
    }
}

/// The event that a service waits for, shown by the attribute `state`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Awaited {
    /// The host's next request.
    Host,
    /// A daemon that can be asked.
    Daemon,
    /// The daemon's answer.
    Answer,
    /// The worker that records or thaws file systems.
    FileSystems,
    /// Room in the outbound ring.
    Room,
}

impl Awaited {
    const ALL: [Self; 5] = [
        Self::Host,
        Self::Daemon,
        Self::Answer,
        Self::FileSystems,
        Self::Room,
    ];

    /// Returns the name in sysfs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Daemon => "daemon",
            Self::Answer => "answer",
            Self::FileSystems => "file_systems",
            Self::Room => "room",
        }
    }
}

/// Facts about a daemon and its work, for sysfs. Only the service writes them.
pub(crate) struct Facts {
    registered: Since,
    /// The number of an [`Awaited`].
    awaited: RwOnce<u32>,
    /// The time since which `awaited` has had its value.
    since: Since,
    late: Counter,
}

impl Facts {
    /// Creates the facts of a service that waits for the host, and has no daemon yet.
    pub(crate) fn new() -> Self {
        let this = Self {
            registered: Since::never(),
            awaited: RwOnce::new(Awaited::Host as u32),
            since: Since::never(),
            late: Counter::new(),
        };
        this.since.begin();
        this
    }

    /// Returns the time since the daemon has registered, in milliseconds. `None` without a daemon.
    pub(crate) fn registered(&self) -> Option<u64> {
        self.registered.get().map(Moment::age)
    }

    /// Returns the event that the service waits for.
    pub(crate) fn awaited(&self) -> Awaited {
        let number = self.awaited.read();
        let is_it = |awaited: &Awaited| *awaited as u32 == number;
        Awaited::ALL
            .into_iter()
            .find(is_it)
            .unwrap_or(Awaited::Host)
    }

    /// Returns how long the service has waited for [`Facts::awaited`], in milliseconds.
    pub(crate) fn awaited_for(&self) -> Option<u64> {
        self.since.get().map(Moment::age)
    }

    /// Returns the number of requests for which the daemon or the file systems took too long.
    pub(crate) fn late(&self) -> usize {
        self.late.get()
    }

    /// Records the event that the service waits for from now on.
    fn wait_for(&self, awaited: Awaited) {
        let awaited = awaited as u32;
        if self.awaited.read() != awaited {
            self.since.begin();
            self.awaited.write(awaited);
        }
    }
}

/// A service and its daemon.
pub(crate) struct WithDaemon {
    info: &'static Info,
    facts: Arc<Facts>,
    service: KBox<dyn DaemonService>,
    transport: Arc<Transport>,
    /// The daemon that the last `look_for_daemon()` has found.
    daemon: Option<Daemon>,
    /// Whether `daemon` can be asked.
    is_free: bool,
    /// Time for which the channel's job was last scheduled.
    armed: Option<Deadline>,
    /// Memory for questions to the daemon and for its answers.
    message: Message,
    /// Deadline of the request in the ring that waits until the daemon can be asked.
    blocked_until: Option<Deadline>,
    current: Current,
}

/// The request that is being handled.
enum Current {
    /// There is no request. The buffer is memory for the next one.
    None(Buffer),
    /// There is no request. The daemon handles a message of [`DaemonService::tell`]. Requests wait
    /// until the deadline and fail after it.
    Told(Buffer, Deadline),
    /// The host has offered versions. The answer waits for a daemon.
    Offered(Taken),
    /// The daemon has until the deadline to answer a question about the request.
    Asked(Taken, Deadline),
    /// The service lets the request wait, at most until the deadline.
    Waiting(Taken, Deadline),
    /// The answer to the request waits for room in the outbound ring.
    Answered(Taken),
}

impl Default for Current {
    fn default() -> Self {
        Self::None(Buffer::default())
    }
}

/// How to continue with a message that was taken.
pub(crate) enum Later {
    /// Answer the host's offer of versions when a daemon has registered.
    Offered,
    /// Carry out the service's decision.
    Request(Next),
}

impl WithDaemon {
    /// Creates the service and the job of its channel.
    ///
    /// Fails with `ENOMEM`.
    pub(crate) fn new(
        info: &'static Info,
        service: KBox<dyn DaemonService>,
        transport: Arc<Transport>,
        facts: Arc<Facts>,
    ) -> Result<(Self, Job)> {
        let wake = Wake(transport.clone());
        let this = Self {
            info,
            facts,
            service,
            transport,
            daemon: None,
            is_free: false,
            armed: None,
            message: Message::new(&info.protocol)?,
            blocked_until: None,
            current: Current::None(Buffer::new(info.ring)?),
        };
        Ok((this, Some(KBox::new(wake, GFP_KERNEL)?)))
    }

    /// Returns the time at which the service must be woken next.
    fn next_deadline(&self) -> Option<Deadline> {
        let is_ahead = |until: &Deadline| !until.is_over();
        let until = match self.current {
            Current::Asked(_, until) | Current::Waiting(_, until) => Some(until),
            // Skip expired deadlines, here and below: the poll that follows handles the packet that
            // waits.
            Current::Told(_, until) => Some(until).filter(is_ahead),
            _ => None,
        };
        let until = until.or(self.blocked_until.filter(is_ahead));
        match (until, self.service.deadline()) {
            (Some(until), Some(deadline)) => Some(until.min(deadline)),
            (until, deadline) => until.or(deadline),
        }
    }

    /// Schedules the channel's job for the next deadline, unless the job is already scheduled for
    /// an earlier time.
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

    /// Records the event that the service waits for now.
    fn note(&self) {
        self.facts.wait_for(match self.current {
            Current::None(_) if self.blocked_until.is_some() => Awaited::Daemon,
            Current::None(_) => Awaited::Host,
            Current::Offered(_) => Awaited::Daemon,
            Current::Told(..) | Current::Asked(..) => Awaited::Answer,
            Current::Waiting(..) => self.service.awaited(),
            Current::Answered(_) => Awaited::Room,
        });
    }

    /// Checks for a change of the daemon, and tells the service.
    fn look_for_daemon(&mut self) {
        let (daemon, is_free) = self.transport.daemon();
        self.is_free = is_free;
        if self.daemon == daemon {
            return;
        }
        if self.daemon.is_some() {
            self.service.daemon_gone();
        }
        self.daemon = daemon;
        match daemon {
            Some(_) => self.facts.registered.begin(),
            None => self.facts.registered.end(),
        }
    }

    /// Returns how the daemon has registered, if it can be asked.
    fn free_daemon(&self) -> Option<Registration> {
        let daemon = self.daemon.filter(|_| self.is_free);
        daemon.map(|daemon| daemon.registration)
    }

    /// Sends the first `len` bytes of the message to the daemon as a question.
    fn question(&mut self, len: usize, late: Late) {
        self.is_free = false;
        trace::asked(self.info.session.name, len);
        self.transport
            .ask(self.daemon, &mut self.message, len, late);
    }

    /// Returns whether a request must wait because the daemon is still reading an earlier question.
    /// The read may never end, so a request waits for [`ANSWER_TIMEOUT`] at most.
    fn is_blocked(&mut self) -> bool {
        if self.daemon.is_none() || self.is_free {
            self.blocked_until = None;
            return false;
        }
        let until = self
            .blocked_until
            .get_or_insert_with(|| Deadline::after(ANSWER_TIMEOUT));
        let is_over = until.is_over();
        if is_over {
            // The next request waits for its own time.
            self.blocked_until = None;
            self.facts.late.add_one();
        }
        !is_over
    }

    /// Sends the message of [`DaemonService::tell`], if there is one and the daemon can be asked.
    fn tell(&mut self, current: Current) -> Current {
        match current {
            Current::None(buffer) if self.is_free => {
                let Some(len) = self.service.tell(&mut self.message) else {
                    return Current::None(buffer);
                };
                self.question(len, Late::Dropped);
                Current::Told(buffer, Deadline::after(ANSWER_TIMEOUT))
            }
            current => current,
        }
    }

    /// Traces the outcome of a question.
    fn trace(&self, outcome: &str) {
        trace::answered(self.info.session.name, outcome);
    }

    /// Tells the service when the daemon has answered the message of [`DaemonService::tell`]. This
    /// question has no time-out: it ends when the daemon answers or goes.
    fn conclude_told(&mut self, buffer: Buffer, until: Deadline) -> Current {
        match self.transport.outcome(&mut self.message, false) {
            Outcome::Pending => return Current::Told(buffer, until),
            Outcome::Answered(_) => {
                self.trace("answered");
                self.service.told();
            }
            Outcome::Gone(_) | Outcome::TimedOut(_) => self.trace("gone"),
        }
        Current::None(buffer)
    }

    /// Lets the service continue with the request if its question has an outcome.
    fn conclude(&mut self, mut taken: Taken, until: Deadline) -> Current {
        let result = match self.transport.outcome(&mut self.message, until.is_over()) {
            Outcome::Pending => return Current::Asked(taken, until),
            Outcome::Answered(daemon) => {
                self.trace("answered");
                Ok(daemon)
            }
            Outcome::Gone(lost) => {
                self.trace("gone");
                Err((lost, Reason::Gone))
            }
            Outcome::TimedOut(lost) => {
                self.trace("timed out");
                self.facts.late.add_one();
                Err((lost, Reason::TimedOut))
            }
        };
        let Ok(mut request) = Request::new(taken.payload()) else {
            return Current::Answered(taken);
        };
        let body = request.body();
        let next = match result {
            Ok(daemon) => self.service.answered(body, daemon, &self.message),
            Err((lost, reason)) => self.service.unanswered(body, lost, reason),
        };
        self.go_on(taken, next)
    }

    /// Lets the service continue with a request that waits.
    fn resume(&mut self, mut taken: Taken, until: Deadline) -> Current {
        let Ok(mut request) = Request::new(taken.payload()) else {
            return Current::Answered(taken);
        };
        let (body, daemon) = (request.body(), self.free_daemon());
        match self.service.resume(body, daemon, &mut self.message) {
            Next::Wait { .. } if until.is_over() => {
                self.facts.late.add_one();
                let status = self.service.overdue(body);
                self.go_on(taken, Next::Answer(status))
            }
            Next::Wait { .. } => Current::Waiting(taken, until),
            next => self.go_on(taken, next),
        }
    }

    /// Carries out the service's decision on a request that was taken.
    fn go_on(&mut self, mut taken: Taken, next: Next) -> Current {
        match next {
            Next::Ask { len, timeout, late } => {
                self.question(len, late);
                Current::Asked(taken, Deadline::after(timeout))
            }
            Next::Wait { until } => Current::Waiting(taken, until),
            Next::Answer(status) => {
                if let Ok(request) = Request::new(taken.payload()) {
                    request.answer(status);
                }
                Current::Answered(taken)
            }
        }
    }
}

impl Service for WithDaemon {
    const CONTEXT: Context = Context::Softirq;

    type Action = Infallible;
    type Later = Later;

    // Services with a daemon log the reason themselves.
    const REFUSAL: Option<&'static str> = None;

    fn info(&self) -> &'static session::Info {
        &self.info.session
    }

    /// Takes one message at a time. Takes a negotiation even while a request is being handled, as
    /// the host starts over. Takes the next negotiation only when the previous one was answered.
    fn is_ready(&mut self, message: Incoming, sender: &Sender<'_>) -> bool {
        let is_ready = match self.current {
            Current::Offered(_) => false,
            _ if matches!(message, Incoming::Negotiation) => true,
            Current::None(_) if matches!(message, Incoming::Request(_)) => !self.is_blocked(),
            Current::None(_) => true,
            Current::Told(_, until) => until.is_over(),
            Current::Asked(..) | Current::Waiting(..) | Current::Answered(_) => false,
        };
        if !is_ready {
            self.arm(sender);
        }
        self.note();
        is_ready
    }

    fn answer(&mut self, version: Version, body: &mut [u8]) -> Answer<Infallible, Later> {
        if let Current::Told(..) = self.current {
            self.facts.late.add_one();
            return Answer::Now(self.service.busy(body), None);
        }
        let daemon = self.free_daemon();
        match self.service.ask(version, body, daemon, &mut self.message) {
            Next::Answer(status) => Answer::Now(status, None),
            next => Answer::Later(Later::Request(next)),
        }
    }

    fn take<'a>(&mut self, packet: Packet<'a>, later: Later) -> Result<Handled, Packet<'a>> {
        let buffer = match mem::take(&mut self.current) {
            Current::None(buffer) => buffer,
            current => {
                self.current = current;
                return Err(packet);
            }
        };
        let sender = packet.sender();
        let (handled, taken) = packet.take(buffer).map_err(|(packet, buffer)| {
            self.current = Current::None(buffer);
            packet
        })?;
        self.current = match later {
            Later::Offered => Current::Offered(taken),
            Later::Request(next) => self.go_on(taken, next),
        };
        self.arm(sender);
        self.note();
        Ok(handled)
    }

    fn restarted(&mut self) -> Option<Later> {
        let mut pending = None;
        let current = match mem::take(&mut self.current) {
            // Drop the request: the host would take its answer for the answer to the negotiation.
            Current::Asked(taken, _) => {
                self.trace("given up");
                pending = Some(self.transport.give_up());
                (_, self.is_free) = self.transport.daemon();
                Current::None(taken.abandon())
            }
            Current::Offered(taken) | Current::Waiting(taken, _) | Current::Answered(taken) => {
                Current::None(taken.abandon())
            }
            current @ (Current::None(_) | Current::Told(..)) => current,
        };
        self.blocked_until = None;
        self.service.restarted(pending);
        self.current = self.tell(current);
        self.note();
        let is_idle = matches!(self.current, Current::None(_));
        (is_idle && self.info.waits_for_daemon && self.daemon.is_none()).then_some(Later::Offered)
    }

    fn woken(&mut self, negotiation: &mut Negotiation, sender: &Sender<'_>) {
        let current = match mem::take(&mut self.current) {
            Current::Asked(taken, until) => self.conclude(taken, until),
            Current::Told(buffer, until) => self.conclude_told(buffer, until),
            current => current,
        };
        // Look only now: the outcome above may be that of the previous daemon.
        self.look_for_daemon();
        if self.service.deadline().is_some_and(Deadline::is_over) {
            self.service.expired();
        }
        let current = match current {
            Current::Waiting(taken, until) => self.resume(taken, until),
            Current::Offered(mut taken) if self.daemon.is_some() => {
                if let Ok(request) = Request::new(taken.payload()) {
                    negotiation.answer(request, sender.limit());
                }
                Current::Answered(taken)
            }
            current => current,
        };
        let current = match current {
            Current::Answered(taken) => match negotiation.reply_later(taken, sender) {
                Ok(buffer) => Current::None(buffer),
                Err(taken) => Current::Answered(taken),
            },
            current => current,
        };
        self.current = self.tell(current);
        self.arm(sender);
        self.note();
    }

    fn closed(&mut self) {
        self.restarted();
        self.look_for_daemon();
        // The job is no longer scheduled: the channel has cancelled it.
        self.armed = None;
    }
}

/// The channel's job: wakes the service when a deadline has passed.
struct Wake(Arc<Transport>);

impl Run for Wake {
    fn run(&self) {
        self.0.wake();
    }
}
