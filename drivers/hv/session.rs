// SPDX-License-Identifier: GPL-2.0

//! The conversation between a service and the host: negotiates versions, passes requests to the
//! service, and answers all other messages.

use crate::icmsg::{
    self,
    Kind,
    Request,
    Status,
    Unanswerable,
    Version, //
};
use core::{
    convert::Infallible,
    fmt, //
};
use hyperv::{
    channel::{
        Buffer,
        Context,
        Handled,
        Handler,
        Packet,
        Sender,
        Sent,
        Taken, //
    },
    linux::{
        module_param::Uint,
        ratelimit::RateLimit,
        rwonce::{
            Counter,
            RwOnce, //
        }, //
    },
    trace, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The reason in the log if a request is malformed or unknown.
pub(crate) const MALFORMED: &str = "the host's request is malformed, or unknown";

/// Constants of a service's conversation with the host.
pub(crate) struct Info {
    /// The name in log messages.
    pub(crate) name: &'static str,
    /// The type of the service's requests.
    pub(crate) kind: Kind,
    /// The framework versions that the service supports, best first.
    pub(crate) frameworks: &'static [Version],
    /// The message versions that the service supports, newest first.
    pub(crate) versions: &'static [Version],
    /// The module parameter for the newest major message version that may be agreed on, if there is
    /// one. Read at each negotiation.
    pub(crate) newest: Option<&'static Uint>,
}

impl Info {
    /// Returns the message versions that may be agreed on now, newest first.
    fn versions_now(&self) -> &'static [Version] {
        let Some(newest) = self.newest else {
            return self.versions;
        };
        let newest = newest.get();
        let first = self
            .versions
            .partition_point(|version| u32::from(version.major) > newest);
        &self.versions[first..]
    }
}

/// Logs that `request` fails, the reason `why`, and the status that the host gets. Returns whether
/// `limit` allowed the line. The limit is needed because the host and the daemon can cause any
/// number of lines.
#[cold]
#[inline(never)]
pub(crate) fn log_failure(
    limit: Pin<&RateLimit>,
    service: &str,
    why: &dyn fmt::Display,
    request: &str,
    Status(status): Status,
) -> bool {
    let is_allowed = limit.allows();
    if is_allowed {
        pr_notice!(
            "{}: {}: {} fails, status {:#x}\n",
            service,
            format_args!("{why}"),
            request,
            status
        );
    }
    is_allowed
}

/// An integration service. No method may sleep, except [`Service::closed`].
pub(crate) trait Service: Send + 'static {
    /// The context in which all methods are called, except [`Service::closed`].
    const CONTEXT: Context;

    /// Work that a request asks for, done by [`Service::act`].
    type Action;

    /// Data that is needed to answer a message later, passed to [`Service::take`].
    type Later;

    /// The reason in the log if [`Service::answer`] refuses a request. `None` if the service logs
    /// the reason itself.
    const REFUSAL: Option<&'static str> = Some(MALFORMED);

    /// Returns the constants of the service.
    fn info(&self) -> &'static Info;

    /// Returns whether the service takes `message` now. If not, this message and all behind it stay
    /// in the ring until the next event of the channel.
    fn is_ready(&mut self, message: Incoming, sender: &Sender<'_>) -> bool {
        let _ = (message, sender);
        true
    }

    /// Handles a request with the message version `version`. To answer at once, changes `body` to
    /// that of the answer.
    fn answer(&mut self, version: Version, body: &mut [u8]) -> Answer<Self::Action, Self::Later>;

    /// Does the work that a request asks for. Called after the answer was sent, or dropped because
    /// the host does not wait for it. Work that sleeps belongs in the channel's job.
    fn act(&mut self, action: Self::Action, sender: &Sender<'_>) {
        let _ = (action, sender);
    }

    /// Takes a message to answer it later. Returns the packet if that is impossible.
    fn take<'a>(&mut self, packet: Packet<'a>, later: Self::Later) -> Result<Handled, Packet<'a>> {
        let _ = later;
        Err(packet)
    }

    /// Called when the host negotiates again, or the channel was closed. Drops the state of earlier
    /// messages. Returns `Some` to answer the negotiation later.
    fn restarted(&mut self) -> Option<Self::Later> {
        None
    }

    /// See [`Handler::woken`].
    fn woken(&mut self, negotiation: &mut Negotiation, sender: &Sender<'_>) {
        let _ = (negotiation, sender);
    }

    /// Called when the channel was closed. May sleep.
    fn closed(&mut self) {
        self.restarted();
    }
}

/// A message from the host.
#[derive(Clone, Copy)]
pub(crate) enum Incoming {
    /// The host offers versions.
    Negotiation,
    /// A request to the service, with the message version that was agreed on.
    Request(Version),
    /// A message of another type, or a request before a version was agreed on.
    Unexpected(Kind),
}

/// How a service answers a request. `A` is [`Service::Action`], `L` is [`Service::Later`].
pub(crate) enum Answer<A, L = Infallible> {
    /// The request is answered at once, with this status. The action is done after that.
    Now(Status, Option<A>),
    /// The service takes the request, to answer it later.
    Later(L),
}

/// The negotiation of versions with the host. The host may negotiate again at any time.
pub(crate) struct Negotiation {
    info: &'static Info,
    facts: Arc<Facts>,
    /// The time at which the service has accepted the message that it took last.
    start: trace::Start,
}

/// Facts about a conversation, for sysfs. Only the session writes them.
pub(crate) struct Facts {
    /// The message version: the major number in the high 16 bits, and the minor number in the low
    /// 16 bits. 0 if no version was agreed on.
    version: RwOnce<u32>,
    /// Number of messages that were answered at once.
    answered: Counter,
    /// Number of messages that were taken, to be answered later.
    taken: Counter,
    /// Number of taken messages that were answered.
    answered_later: Counter,
    /// Number of answers, at once or later, that could not be sent.
    unsent: Counter,
    /// Number of answers that report a failure.
    refused: Counter,
    /// Number of packets that were dropped without an answer.
    ignored: Counter,
}

impl Facts {
    /// Creates the facts of a session without an agreement.
    pub(crate) const fn new() -> Self {
        Self {
            version: RwOnce::new(0),
            answered: Counter::new(),
            taken: Counter::new(),
            answered_later: Counter::new(),
            unsent: Counter::new(),
            refused: Counter::new(),
            ignored: Counter::new(),
        }
    }

    /// Returns the number of messages from the host that got or will get an answer, including
    /// negotiations.
    pub(crate) fn requests(&self) -> usize {
        self.answered.get().wrapping_add(self.taken.get())
    }

    /// Returns the number of answers that were sent.
    pub(crate) fn replies(&self) -> usize {
        // The counters are read one after another. So the result may be wrong for a moment, but is
        // never negative.
        let answers = self.answered.get().wrapping_add(self.answered_later.get());
        answers.saturating_sub(self.unsent.get())
    }

    /// Returns the number of answers that report a failure, or that no version is common.
    pub(crate) fn refused(&self) -> usize {
        self.refused.get()
    }

    /// Returns the number of packets that were dropped without an answer.
    pub(crate) fn ignored(&self) -> usize {
        self.ignored.get()
    }

    /// Counts a refusal, and an answer that was not sent.
    fn count(&self, is_refusal: bool, sent: Sent) {
        if is_refusal {
            self.refused.add_one();
        }
        if sent != Sent::Left {
            self.unsent.add_one();
        }
    }

    /// Returns the message version that was agreed on with the host.
    pub(crate) fn version(&self) -> Option<Version> {
        let version = self.version.read();
        // CAST: Each number has 16 bits.
        (version != 0).then_some(Version::new((version >> 16) as u16, version as u16))
    }

    fn set_version(&self, version: Option<Version>) {
        let number = |Version { major, minor }| u32::from(major) << 16 | u32::from(minor);
        self.version.write(version.map_or(0, number));
    }
}

impl Negotiation {
    /// Answers the host's offer of versions, and logs the result.
    #[cold]
    pub(crate) fn answer(&mut self, request: Request<'_>, limit: Pin<&RateLimit>) {
        let info = self.info;
        let name = info.name;
        let version = request.negotiate(info.frameworks, info.versions_now());
        self.facts.set_version(version);
        let Version { major, minor } = version.unwrap_or(Version::new(0, 0));
        trace::negotiation(name, major, minor);
        if !limit.allows() {
            return;
        }
        match version {
            Some(version) => pr_info!("{} IC version {}\n", name, format_args!("{version}")),
            None => pr_warn!("{}: the host offers no version that is known\n", name),
        }
    }

    /// Answers a taken message, if the outbound ring has room. If not, returns the message.
    pub(crate) fn reply_later(
        &mut self,
        mut taken: Taken,
        sender: &Sender<'_>,
    ) -> Result<Buffer, Taken> {
        let transaction = taken.transaction();
        let is_refusal = icmsg::is_refusal(taken.payload());
        let status = icmsg::status(taken.payload());
        let (buffer, sent) = sender.reply(taken)?;
        self.facts.answered_later.add_one();
        self.facts.count(is_refusal, sent);
        self.trace_reply(transaction, status, self.start, sent);
        Ok(buffer)
    }

    /// Drops a packet that cannot be answered. In the interrupt, postpones the packet instead.
    #[cold]
    fn ignore(&self, mut packet: Packet<'_>) -> Handled {
        // The reason is logged, which must not happen in the interrupt.
        if packet.sender().is_in_interrupt() {
            return packet.postpone();
        }
        let reason = match packet.is_in_band() {
            true => Request::new(packet.payload_mut()).err(),
            false => None,
        };
        let reason = reason.unwrap_or(Unanswerable::OutOfBand);
        self.facts.ignored.add_one();
        trace::ignored(self.info.name, reason.name());
        packet.ignore(&reason)
    }

    /// Answers a packet with a failure.
    #[cold]
    fn fail(&self, mut packet: Packet<'_>, status: Status, start: trace::Start) -> Handled {
        match Request::new(packet.payload_mut()) {
            Ok(request) => request.answer(status),
            Err(_) => return self.ignore(packet),
        }
        self.reply(packet, start)
    }

    /// Sends the packet's payload as the answer. Counts and traces the answer.
    #[cold]
    fn reply(&self, packet: Packet<'_>, start: trace::Start) -> Handled {
        let transaction = packet.transaction();
        let is_refusal = icmsg::is_refusal(packet.payload());
        let status = icmsg::status(packet.payload());
        let (handled, sent) = packet.reply();
        self.facts.answered.add_one();
        self.facts.count(is_refusal, sent);
        self.trace_reply(transaction, status, start, sent);
        handled
    }

    #[inline(always)]
    fn trace_request(&self, packet: &Packet<'_>) {
        if trace::request_is_on() {
            // Pass values. If a function borrowed the packet, the packet would not stay in
            // registers.
            let payload = packet.payload();
            self.emit_request(packet.transaction(), icmsg::kind(payload), payload.len());
        }
    }

    #[cold]
    #[inline(never)]
    fn emit_request(&self, transaction: u64, Kind(kind): Kind, len: usize) {
        trace::request(self.info.name, transaction, kind, len);
    }

    #[inline(always)]
    fn trace_reply(&self, transaction: u64, status: Status, start: trace::Start, sent: Sent) {
        if trace::reply_is_on() {
            self.emit_reply(transaction, status, start, sent);
        }
    }

    #[cold]
    #[inline(never)]
    fn emit_reply(
        &self,
        transaction: u64,
        Status(status): Status,
        start: trace::Start,
        sent: Sent,
    ) {
        trace::reply(
            self.info.name,
            transaction,
            status,
            start,
            sent == Sent::Left,
        );
    }
}

/// A service with its side of the conversation: the handler of the channel.
pub(crate) struct Session<S> {
    negotiation: Negotiation,
    service: S,
}

impl<S: Service> Session<S> {
    /// Creates the handler of a channel for `service`.
    pub(crate) fn new(service: S, facts: Arc<Facts>) -> Self {
        Self {
            negotiation: Negotiation {
                info: service.info(),
                facts,
                start: None,
            },
            service,
        }
    }

    /// Answers a message that the service does not get: a negotiation or an unexpected message. In
    /// the interrupt, postpones the packet instead.
    #[cold]
    #[inline(never)]
    fn receive_other(
        &mut self,
        message: Incoming,
        mut packet: Packet<'_>,
        start: trace::Start,
    ) -> Handled {
        let sender = packet.sender();
        // Each of these answers is logged, which must not happen in the interrupt.
        if sender.is_in_interrupt() {
            return packet.postpone();
        }
        if let Incoming::Unexpected(Kind(kind)) = message {
            if sender.limit().allows() {
                pr_warn!(
                    "{}: unexpected message of type {}\n",
                    self.negotiation.info.name,
                    kind
                );
            }
            self.negotiation.trace_request(&packet);
            return self.negotiation.fail(packet, Status::FAIL, start);
        }
        self.negotiation.facts.set_version(None);
        if let Some(later) = self.service.restarted() {
            return self.take(packet, later, start);
        }
        self.negotiation.trace_request(&packet);
        match Request::new(packet.payload_mut()) {
            Ok(request) => self.negotiation.answer(request, sender.limit()),
            Err(_) => return self.negotiation.ignore(packet),
        }
        self.negotiation.reply(packet, start)
    }

    /// Lets the service take a message, to answer it later.
    fn take(&mut self, packet: Packet<'_>, later: S::Later, start: trace::Start) -> Handled {
        self.negotiation.trace_request(&packet);
        self.negotiation.start = start;
        match self.service.take(packet, later) {
            Ok(handled) => {
                self.negotiation.facts.taken.add_one();
                handled
            }
            Err(packet) => {
                log_failure(
                    packet.sender().limit(),
                    self.negotiation.info.name,
                    &"no memory",
                    "the request",
                    Status::FAIL,
                );
                self.negotiation.fail(packet, Status::FAIL, start)
            }
        }
    }

    /// Answers a request that the service refuses. In the interrupt, postpones the packet instead.
    #[cold]
    #[inline(never)]
    fn refuse(&mut self, packet: Packet<'_>, status: Status, start: trace::Start) -> Handled {
        let sender = packet.sender();
        // The reason is logged, which must not happen in the interrupt.
        if sender.is_in_interrupt() {
            return packet.postpone();
        }
        if let Some(why) = S::REFUSAL {
            log_failure(
                sender.limit(),
                self.negotiation.info.name,
                &why,
                "the request",
                status,
            );
        }
        self.negotiation.trace_request(&packet);
        self.negotiation.fail(packet, status, start)
    }
}

impl<S: Service> Handler for Session<S> {
    fn context(&self) -> Context {
        S::CONTEXT
    }

    fn wants_answer(&self, payload: &[u8]) -> bool {
        icmsg::wants_answer(payload)
    }

    fn receive(&mut self, mut packet: Packet<'_>) -> Handled {
        if !packet.is_in_band() {
            return self.negotiation.ignore(packet);
        }
        let start = trace::start();
        let (sender, transaction) = (packet.sender(), packet.transaction());
        let mut request = match Request::new(packet.payload_mut()) {
            Ok(request) => request,
            Err(_) => return self.negotiation.ignore(packet),
        };
        let message = match (request.kind(), self.negotiation.facts.version()) {
            (Kind::NEGOTIATE, _) => Incoming::Negotiation,
            (kind, Some(version)) if kind == self.service.info().kind => Incoming::Request(version),
            (kind, _) => Incoming::Unexpected(kind),
        };
        if !self.service.is_ready(message, sender) {
            return packet.leave();
        }
        let Incoming::Request(version) = message else {
            return self.receive_other(message, packet, start);
        };
        match self.service.answer(version, request.body()) {
            Answer::Now(status, _) if status.is_failure() => self.refuse(packet, status, start),
            Answer::Now(status, action) => {
                request.answer(status);
                self.negotiation.trace_request(&packet);
                let (handled, sent) = packet.reply();
                let facts = &*self.negotiation.facts;
                facts.answered.add_one();
                self.negotiation
                    .trace_reply(transaction, status, start, sent);
                if sent != Sent::Left {
                    facts.count(false, sent);
                }
                if let (Sent::Left | Sent::NotAwaited, Some(action)) = (sent, action) {
                    self.service.act(action, sender);
                }
                handled
            }
            Answer::Later(later) => self.take(packet, later, start),
        }
    }

    fn woken(&mut self, sender: &Sender<'_>) {
        self.service.woken(&mut self.negotiation, sender);
    }

    fn closed(&mut self) {
        self.negotiation.facts.set_version(None);
        self.service.closed();
    }
}
