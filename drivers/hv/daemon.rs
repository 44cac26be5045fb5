// SPDX-License-Identifier: GPL-2.0

//! An integration service that a daemon does the work of: its conversation with the host.
//!
//! One request is worked on at a time, as the protocol has it. What comes in meanwhile stays in the
//! ring. Only a negotiation is taken at once: with it the host starts over, and waits for no answer from
//! before. While a negotiation waits for a daemon, the next one stays in the ring, too: each is answered.

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

/// How long a daemon has to answer.
pub(crate) const ANSWER_TIMEOUT: Delta = Delta::from_secs(30);

/// Constants of a service that a daemon does the work of.
pub(crate) struct Info {
    /// Constants of its conversation with the host.
    pub(crate) session: session::Info,
    /// The size of each ring.
    pub(crate) ring: RingSize,
    /// Whether negotiations wait until a daemon has registered. A host pushes what it has right after
    /// them.
    pub(crate) waits_for_daemon: bool,
    /// Set while a device has the service: there can be one.
    pub(crate) unique: Unique,
    /// Constants of its dialogue with the daemon.
    pub(crate) protocol: Protocol,
}

/// A service that a daemon does the work of. All methods are called in softirq context, but
/// [`DaemonService::restarted`], [`DaemonService::unanswered`] and [`DaemonService::daemon_gone`] also
/// where they may sleep.
pub(crate) trait DaemonService: Send {
    /// Writes what the daemon is to be asked about the request in `body`, of this message version, to
    /// `message`, or answers the request.
    fn ask(
        &mut self,
        version: Version,
        body: &mut [u8],
        daemon: Option<Registration>,
        message: &mut [u8],
    ) -> Next;

    /// Goes on with the request in `body` for which [`Next::Wait`] was returned last, as
    /// [`DaemonService::ask`] does. Called each time the channel is woken; with `daemon` if it can be asked.
    fn resume(&mut self, body: &mut [u8], daemon: Option<Registration>, message: &mut [u8])
        -> Next;

    /// Answers the request in `body`, about which the daemon was asked, with what it has answered.
    fn answered(&mut self, body: &mut [u8], daemon: Registration, answer: &[u8]) -> Next;

    /// The request in `body`, about which the daemon was asked, gets no answer from it.
    fn unanswered(&mut self, body: &mut [u8], lost: Lost, reason: Reason) -> Next;

    /// What a request waits for while [`Next::Wait`] has it wait.
    fn awaited(&self) -> Awaited {
        Awaited::Daemon
    }

    /// The request in `body` is past the deadline of its [`Next::Wait`].
    fn overdue(&mut self, body: &mut [u8]) -> Status;

    /// The request in `body` is past the time that it waits for the daemon to be done with
    /// [`DaemonService::tell`].
    fn busy(&mut self, body: &mut [u8]) -> Status {
        let _ = body;
        Status::FAIL
    }

    /// Writes what the daemon has to be asked although the host doesn't, and returns its size.
    fn tell(&mut self, message: &mut [u8]) -> Option<usize> {
        let _ = message;
        None
    }

    /// The daemon has answered to [`DaemonService::tell`]. Not called if it has gone.
    fn told(&mut self) {}

    /// The daemon has gone; another may have come.
    fn daemon_gone(&mut self) {}

    /// The host has negotiated anew, or the channel was closed. `pending` says how far the question came
    /// that is dropped, if one was pending.
    fn restarted(&mut self, pending: Option<Lost>) {
        let _ = pending;
    }

    /// When the service has something to do that is not about a request, if it has.
    fn deadline(&self) -> Option<Deadline> {
        None
    }

    /// That time is over.
    fn expired(&mut self) {}
}

/// The next step of a request.
pub(crate) enum Next {
    /// The daemon is asked the first `len` bytes of the message, and has `timeout` to answer. `late`
    /// says what becomes of an answer after that.
    Ask {
        len: usize,
        timeout: Delta,
        late: Late,
    },
    /// The request is answered.
    Answer(Status),
    /// The request waits, until then at the most: see [`DaemonService::resume`].
    Wait { until: Deadline },
}

/// Why a question gets no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The daemon has gone.
    Gone,
    /// The daemon took too long.
    TimedOut,
}

impl Reason {
    /// The words in the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gone => "no answer from the daemon, which has gone",
            Self::TimedOut => "no answer from the daemon, time-out",
        }
    }
}

/// What a service waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Awaited {
    /// The host's next request.
    Host,
    /// A daemon that can be asked.
    Daemon,
    /// The daemon's answer.
    Answer,
    /// The kernel's file systems.
    FileSystems,
    /// Room in the ring to the host.
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

    /// The name in sysfs.
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

/// Facts about a daemon and its work. The service writes them, sysfs reads them.
pub(crate) struct Facts {
    registered: Since,
    awaited: RwOnce<u32>,
    since: Since,
    late: Counter,
}

impl Facts {
    /// Nobody has come, and nothing was asked.
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

    /// Milliseconds since the daemon has registered, if there is one.
    pub(crate) fn registered(&self) -> Option<u64> {
        self.registered.get().map(Moment::age)
    }

    /// What is waited for.
    pub(crate) fn awaited(&self) -> Awaited {
        let number = self.awaited.read();
        let is_it = |awaited: &Awaited| *awaited as u32 == number;
        Awaited::ALL
            .into_iter()
            .find(is_it)
            .unwrap_or(Awaited::Host)
    }

    /// Milliseconds for which that was waited for.
    pub(crate) fn awaited_for(&self) -> Option<u64> {
        self.since.get().map(Moment::age)
    }

    /// Requests for which something took too long.
    pub(crate) fn late(&self) -> usize {
        self.late.get()
    }

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
    /// The daemon at the last `look_for_daemon()`.
    daemon: Option<Daemon>,
    /// That daemon can take a question.
    is_free: bool,
    /// Time for which the channel's job was scheduled last.
    armed: Option<Deadline>,
    /// Where questions are written, and answers read.
    message: Message,
    /// Deadline of a request that waits until the daemon can be asked.
    blocked_until: Option<Deadline>,
    current: Current,
}

/// The request that is worked on.
enum Current {
    /// There is none.
    None(Buffer),
    /// There is none. The daemon works on a message of ours. Requests wait until the deadline and fail
    /// after it.
    Told(Buffer, Deadline),
    /// The host has offered versions. The answer waits for a daemon.
    Offered(Taken),
    /// The daemon has been asked, and has until then to answer.
    Asked(Taken, Deadline),
    /// The service lets it wait, until then at the most.
    Waiting(Taken, Deadline),
    /// Its answer waits for room in the ring.
    Answered(Taken),
}

impl Default for Current {
    fn default() -> Self {
        Self::None(Buffer::default())
    }
}

/// Work on a message that was taken.
pub(crate) enum Later {
    /// A daemon has to come before an offer of versions is answered.
    Offered,
    /// The service says what comes next.
    Request(Next),
}

impl WithDaemon {
    /// The service, and the job of its channel.
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

    /// The time at which the service has to be woken next.
    fn next_deadline(&self) -> Option<Deadline> {
        let is_ahead = |until: &Deadline| !until.is_over();
        let until = match self.current {
            Current::Asked(_, until) | Current::Waiting(_, until) => Some(until),
            // Skip these once they are over: the packets that come in next end them.
            Current::Told(_, until) => Some(until).filter(is_ahead),
            _ => None,
        };
        let until = until.or(self.blocked_until.filter(is_ahead));
        match (until, self.service.deadline()) {
            (Some(until), Some(deadline)) => Some(until.min(deadline)),
            (until, deadline) => until.or(deadline),
        }
    }

    /// Schedules the channel's job for the next deadline, unless it runs before that anyway.
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

    /// Says in sysfs what is waited for.
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

    /// Notices that the daemon is another one.
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

    /// The daemon, if it can be asked.
    fn free_daemon(&self) -> Option<Registration> {
        let daemon = self.daemon.filter(|_| self.is_free);
        daemon.map(|daemon| daemon.registration)
    }

    /// Asks the daemon what the first `len` bytes of the message say.
    fn question(&mut self, len: usize, late: Late) {
        self.is_free = false;
        trace::asked(self.info.session.name, len);
        self.transport
            .ask(self.daemon, &mut self.message, len, late);
    }

    /// Returns whether a request has to wait for the daemon to end a read, which it may never do.
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
            // The next request has its own time.
            self.blocked_until = None;
            self.facts.late.add_one();
        }
        !is_over
    }

    /// Tells the daemon what it has to be told, if it isn't working on something.
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

    /// Lets who traces know what came of a question.
    fn trace(&self, outcome: &str) {
        trace::answered(self.info.session.name, outcome);
    }

    /// Tells the service that the daemon has answered to `tell()`. There is no time-out: the question ends
    /// when the daemon goes.
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

    /// Answers the request if the daemon has, or won't any more.
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

    /// Lets the service go on with a request that waits.
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

    // Each service that a daemon does the work of has more to say.
    const REFUSAL: Option<&'static str> = None;

    fn info(&self) -> &'static session::Info {
        &self.info.session
    }

    /// One message at a time, but for a negotiation: with it the host starts over. Of several negotiations
    /// each is answered, in its turn.
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
            // Drop the pending answer: the host would take it for the negotiation's.
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
        // After handling the last daemon's outcome.
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
        // The channel has cancelled its job.
        self.armed = None;
    }
}

/// Wakes the service when a time is over.
struct Wake(Arc<Transport>);

impl Run for Wake {
    fn run(&self) {
        self.0.wake();
    }
}
