// SPDX-License-Identifier: GPL-2.0

//! A service's conversation with the host: what is the same for all services.

use crate::icmsg::{
    self,
    Kind,
    Request,
    Status,
    Version, //
};
use core::convert::Infallible;
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
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

/// What is fixed about a service's conversation.
pub(crate) struct Info {
    /// The name in log messages.
    pub(crate) name: &'static str,
    /// The type of the service's requests.
    pub(crate) kind: Kind,
    /// The framework versions that the service works with, best first.
    pub(crate) frameworks: &'static [Version],
    /// The message versions that the service knows, best first.
    pub(crate) versions: &'static [Version],
}

/// A service. All methods must not sleep, but for [`Service::closed`].
pub(crate) trait Service: Send + 'static {
    /// The context in which the other methods are called.
    const CONTEXT: Context;

    /// What is left to do once a request's answer has left.
    type Action;

    /// What is left to do about a message that is answered later.
    type Later;

    /// What is fixed about it.
    fn info(&self) -> &'static Info;

    /// Returns whether the service takes a message of this kind. If not, it stays in the ring, with all
    /// behind it, until the channel is woken.
    fn is_ready(&mut self, kind: Kind, sender: &Sender<'_>) -> bool {
        let _ = (kind, sender);
        true
    }

    /// Answers a request, at once by changing its body in place.
    fn answer(&mut self, version: Version, body: &mut [u8]) -> Answer<Self::Action, Self::Later>;

    /// Does what the request asked for; its answer has left. The channel's job may sleep.
    fn act(&mut self, action: Self::Action, sender: &Sender<'_>) {
        let _ = (action, sender);
    }

    /// Takes a message to answer it later. Returns the message if that is impossible.
    fn take<'a>(&mut self, packet: Packet<'a>, later: Self::Later) -> Result<Handled, Packet<'a>> {
        let _ = later;
        Err(packet)
    }

    /// The host has started over: nothing that it has said before counts any more. Returns whether its
    /// offer of versions is answered later.
    fn restarted(&mut self) -> Option<Self::Later> {
        None
    }

    /// See [`Handler::woken`].
    fn woken(&mut self, negotiation: &mut Negotiation, sender: &Sender<'_>) {
        let _ = (negotiation, sender);
    }

    /// The channel was closed. May sleep.
    fn closed(&mut self) {
        self.restarted();
    }
}

/// When a request is answered.
pub(crate) enum Answer<A, L = Infallible> {
    /// At once, with this status.
    Now(Status, Option<A>),
    /// Later: the service takes it.
    Later(L),
}

/// What was agreed on with the host, who may negotiate again at any time.
pub(crate) struct Negotiation {
    info: &'static Info,
    /// The version of messages; `None` before they were agreed on.
    version: Option<Version>,
    facts: Arc<Facts>,
}

/// What user space is told about a conversation.
pub(crate) struct Facts {
    /// The major number, and the minor number in the low 16 bits; 0 for none.
    version: Atomic<u32>,
}

impl Facts {
    pub(crate) const fn new() -> Self {
        Self {
            version: Atomic::new(0),
        }
    }

    /// The version of messages that was agreed on with the host.
    pub(crate) fn version(&self) -> Option<Version> {
        let version = self.version.load(Relaxed);
        // CAST: Half of the number each.
        (version != 0).then_some(Version::new((version >> 16) as u16, version as u16))
    }
}

impl Negotiation {
    fn set(&mut self, version: Option<Version>) {
        self.version = version;
        let number = |Version { major, minor }| u32::from(major) << 16 | u32::from(minor);
        self.facts.version.store(version.map_or(0, number), Relaxed);
    }

    /// Answers the host's offer of versions.
    #[cold]
    pub(crate) fn answer(&mut self, request: Request<'_>, limit: Pin<&RateLimit>) {
        let Info {
            name,
            frameworks,
            versions,
            ..
        } = *self.info;
        self.set(request.negotiate(frameworks, versions));
        if !limit.allows() {
            return;
        }
        match self.version {
            Some(Version { major, minor }) => pr_info!("{} IC version {}.{}\n", name, major, minor),
            None => pr_warn!("{}: the host offers no version that is known\n", name),
        }
    }
}

/// A service and its conversation.
pub(crate) struct Session<S> {
    negotiation: Negotiation,
    service: S,
}

impl<S: Service> Session<S> {
    pub(crate) fn new(service: S, facts: Arc<Facts>) -> Self {
        Self {
            negotiation: Negotiation {
                info: service.info(),
                version: None,
                facts,
            },
            service,
        }
    }

    /// Answers a message that is no request to the service, or comes too early.
    #[cold]
    #[inline(never)]
    fn receive_other(&mut self, kind: Kind, mut packet: Packet<'_>) -> Handled {
        let sender = packet.sender();
        // The answers are logged.
        if sender.is_in_interrupt() {
            return packet.postpone();
        }
        if kind != Kind::NEGOTIATE {
            if sender.limit().allows() {
                let Kind(kind) = kind;
                pr_warn!(
                    "{}: unexpected message of type {}\n",
                    self.negotiation.info.name,
                    kind
                );
            }
            return fail(packet);
        }
        self.negotiation.set(None);
        if let Some(later) = self.service.restarted() {
            return self.service.take(packet, later).unwrap_or_else(fail);
        }
        match Request::new(packet.payload_mut()) {
            Ok(request) => self.negotiation.answer(request, sender.limit()),
            Err(unanswerable) => return packet.ignore(&unanswerable),
        }
        packet.reply().0
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

impl<S: Service> Handler for Session<S> {
    fn context(&self) -> Context {
        S::CONTEXT
    }

    fn wants_answer(&self, payload: &[u8]) -> bool {
        icmsg::wants_answer(payload)
    }

    fn receive(&mut self, mut packet: Packet<'_>) -> Handled {
        if !packet.is_in_band() {
            return packet.ignore(&"not in-band data");
        }
        let sender = packet.sender();
        let mut request = match Request::new(packet.payload_mut()) {
            Ok(request) => request,
            Err(unanswerable) => return packet.ignore(&unanswerable),
        };
        let kind = request.kind();
        if !self.service.is_ready(kind, sender) {
            return packet.leave();
        }
        let answer = match self.negotiation.version {
            Some(version) if kind == self.service.info().kind => {
                self.service.answer(version, request.body())
            }
            _ => return self.receive_other(kind, packet),
        };
        match answer {
            Answer::Now(status, action) => {
                request.answer(status);
                let (handled, has_left) = packet.reply();
                if let (Some(action), true) = (action, has_left) {
                    self.service.act(action, sender);
                }
                handled
            }
            Answer::Later(later) => self.service.take(packet, later).unwrap_or_else(fail),
        }
    }

    fn woken(&mut self, sender: &Sender<'_>) {
        self.service.woken(&mut self.negotiation, sender);
    }

    fn closed(&mut self) {
        self.negotiation.set(None);
        self.service.closed();
    }
}
