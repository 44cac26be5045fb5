// SPDX-License-Identifier: GPL-2.0

//! An integration service on its channel: what is the same for all that answer at once.

use crate::icmsg::{
    self,
    Kind,
    Request,
    Status,
    Version, //
};
use hyperv::{
    channel::{
        Context,
        Handled,
        Handler,
        Packet,
        Sender, //
    },
    linux::ratelimit::RateLimit, //
};
use kernel::prelude::*;

/// What is fixed about a service that answers each request at once.
pub(crate) struct Info {
    /// The name in log messages.
    pub(crate) name: &'static str,
    /// The type of the service's requests.
    pub(crate) kind: Kind,
    /// The framework versions that the service works with, best first.
    pub(crate) frameworks: &'static [Version],
    /// The message versions that the service knows, best first.
    pub(crate) versions: &'static [Version],
    /// The context in which the service's methods are called.
    pub(crate) context: Context,
}

/// A service that answers each request at once.
pub(crate) trait Service: Send + 'static {
    /// What is fixed about it.
    const INFO: &'static Info;

    /// What is left to do once a request's answer has left.
    type Action;

    /// Answers a request by changing its body in place. Must not sleep.
    fn answer(&mut self, version: Version, body: &mut [u8]) -> (Status, Option<Self::Action>);

    /// Does what the request asked for; its answer has left. Must not sleep: the channel's job may.
    fn act(&mut self, action: Self::Action, sender: &Sender<'_>);

    /// The host has started over: nothing that it has said before counts any more. Must not sleep.
    fn restarted(&mut self) {}
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

impl State {
    /// Answers a packet that is no request to the service, or comes too early. Returns whether the
    /// host has started over.
    #[cold]
    #[inline(never)]
    fn answer_other(&mut self, info: &Info, mut packet: Packet<'_>) -> (Handled, bool) {
        let sender = packet.sender();
        // The answers are logged.
        if sender.is_in_interrupt() {
            return (packet.postpone(), false);
        }
        if !packet.is_in_band() {
            return (packet.ignore(&"not in-band data"), false);
        }
        let request = match Request::new(packet.payload_mut()) {
            Ok(request) => request,
            Err(unanswerable) => return (packet.ignore(&unanswerable), false),
        };
        if request.kind() != Kind::NEGOTIATE {
            log_unexpected(info.name, request.kind(), sender.limit());
            request.answer(Status::FAIL);
            return (packet.reply().0, false);
        }
        let version = request.negotiate(info.frameworks, info.versions);
        let (handled, has_left) = packet.reply();
        if has_left {
            *self = version.map_or(Self::Unnegotiated, Self::Negotiated);
            log_negotiation(info.name, version, sender.limit());
        }
        (handled, has_left)
    }
}

impl<S: Service> Session<S> {
    pub(crate) fn new(service: S) -> Self {
        Self {
            state: State::Unnegotiated,
            service,
        }
    }
}

impl<S: Service> Handler for Session<S> {
    fn context(&self) -> Context {
        S::INFO.context
    }

    fn wants_answer(&self, payload: &[u8]) -> bool {
        icmsg::wants_answer(payload)
    }

    fn receive(&mut self, mut packet: Packet<'_>) -> Handled {
        let Self { state, service } = self;
        if let (State::Negotiated(version), true) = (&*state, packet.is_in_band()) {
            match Request::new(packet.payload_mut()) {
                Ok(mut request) if request.kind() == S::INFO.kind => {
                    let (status, action) = service.answer(*version, request.body());
                    request.answer(status);
                    let sender = packet.sender();
                    let (handled, has_left) = packet.reply();
                    if let (Some(action), true) = (action, has_left) {
                        service.act(action, sender);
                    }
                    return handled;
                }
                _ => {}
            }
        }
        let (handled, has_restarted) = state.answer_other(S::INFO, packet);
        if has_restarted {
            service.restarted();
        }
        handled
    }

    fn closed(&mut self) {
        self.state = State::Unnegotiated;
        self.service.restarted();
    }
}

/// Says what the service of that name and the host have agreed on.
#[cold]
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
#[cold]
pub(crate) fn log_unexpected(name: &str, Kind(kind): Kind, limit: Pin<&RateLimit>) {
    if limit.allows() {
        pr_warn!("{}: unexpected message of type {}\n", name, kind);
    }
}
