// SPDX-License-Identifier: GPL-2.0

//! An integration service on its channel: what is the same for all that answer at once.

use crate::icmsg::{
    Kind,
    Request,
    Status,
    Unanswerable,
    Version, //
};
use hyperv::{
    channel::{
        Context,
        Handled,
        Handler,
        Packet, //
    },
    ratelimit::RateLimit, //
};
use kernel::prelude::*;

/// A service that answers each request at once.
pub(crate) trait Service: Send + 'static {
    /// The name in log messages.
    const NAME: &'static str;
    /// The type of the service's requests.
    const KIND: Kind;
    /// The framework versions that the service works with, best first.
    const FRAMEWORKS: &'static [Version] = &[Version::new(3, 0), Version::new(1, 0)];
    /// The message versions that the service knows, best first.
    const VERSIONS: &'static [Version];

    /// What is left to do once a request's answer has left.
    type Action;

    /// Answers a request by changing its body in place. Called in the host's interrupt, or in softirq
    /// context.
    fn answer(&mut self, version: Version, body: &mut [u8]) -> (Status, Option<Self::Action>);

    /// Does what the request asked for; its answer has left. Called in the same context.
    fn act(&mut self, action: Self::Action);

    /// The channel was closed: nothing that came in on it counts any more. May sleep.
    fn closed(&mut self) {}
}

/// The conversation with the host on a service's channel.
pub(crate) struct Session<S> {
    state: State,
    service: S,
}

/// What was agreed on with the host.
enum State {
    /// Nothing yet: requests are failed.
    Unnegotiated,
    /// To speak this version. The host may negotiate again at any time.
    Negotiated(Version),
}

/// What remains of a request when it has become its answer.
enum Answered<A> {
    Negotiation(Option<Version>),
    Request(Option<A>),
    /// A request before the versions were agreed on, or of a type that isn't the service's.
    Unexpected(Kind),
}

impl<S: Service> Session<S> {
    pub(crate) fn new(service: S) -> Self {
        Self {
            state: State::Unnegotiated,
            service,
        }
    }

    /// Turns the request in `payload` into its answer.
    fn answer(&mut self, payload: &mut [u8]) -> Result<Answered<S::Action>, Unanswerable> {
        let mut request = Request::new(payload)?;
        let kind = request.kind();
        if kind == Kind::NEGOTIATE {
            let version = request.negotiate(S::FRAMEWORKS, S::VERSIONS);
            return Ok(Answered::Negotiation(version));
        }
        match self.state {
            State::Negotiated(version) if kind == S::KIND => {
                let (status, action) = self.service.answer(version, request.body());
                request.answer(status);
                Ok(Answered::Request(action))
            }
            _ => {
                request.answer(Status::FAIL);
                Ok(Answered::Unexpected(kind))
            }
        }
    }
}

/// Says what the service of that name and the host have agreed on.
pub(crate) fn log_negotiation(name: &str, version: Option<Version>, limit: Pin<&RateLimit>) {
    if !limit.allows() {
        return;
    }
    match version {
        Some(Version { major, minor }) => pr_info!("{} IC version {}.{}\n", name, major, minor),
        None => pr_warn!("{}: the host offers no version that is known\n", name),
    }
}

/// Says that the service of that name got a message that isn't one of its requests, or too early.
pub(crate) fn log_unexpected(name: &str, Kind(kind): Kind, limit: Pin<&RateLimit>) {
    if limit.allows() {
        pr_warn!("{}: unexpected message of type {}\n", name, kind);
    }
}

impl<S: Service> Handler for Session<S> {
    fn context() -> Context {
        Context::Interrupt
    }

    fn receive(&mut self, mut packet: Packet<'_>) -> Handled {
        if !packet.is_in_band() {
            return packet.ignore("not in-band data");
        }
        let limit = packet.limit();
        let answered = match self.answer(packet.payload()) {
            Ok(answered) => answered,
            Err(unanswerable) => return packet.ignore(unanswerable),
        };
        packet.reply(|| match answered {
            Answered::Negotiation(version) => {
                self.state = match version {
                    Some(version) => State::Negotiated(version),
                    None => State::Unnegotiated,
                };
                log_negotiation(S::NAME, version, limit);
            }
            Answered::Request(Some(action)) => self.service.act(action),
            Answered::Request(None) => {}
            Answered::Unexpected(kind) => log_unexpected(S::NAME, kind, limit),
        })
    }

    fn closed(&mut self) {
        self.state = State::Unnegotiated;
        self.service.closed();
    }
}
