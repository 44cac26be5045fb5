// SPDX-License-Identifier: GPL-2.0

//! An integration service that a daemon does the work of: its conversation with the host.
//!
//! One request is worked on at a time, as the protocol has it. What comes in meanwhile stays in the
//! ring, except for a negotiation: with it the host starts over, and doesn't wait for any answer
//! from before.

use crate::{
    icmsg::{
        Kind,
        Request,
        Status,
        Unanswerable,
        Version, //
    },
    service::{
        log_negotiation,
        log_unexpected, //
    },
    transport::{
        Lost,
        Outcome,
        Protocol,
        Transport, //
    },
};
use hyperv::{
    channel::{
        Buffer,
        Handled,
        Handler,
        Packet,
        RingSize,
        Sender,
        Taken, //
    },
    new_delayed_work,
    work::{
        DelayedWork,
        Run, //
    },
};
use kernel::{
    prelude::*,
    sync::Arc,
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
};

/// How long a host waits for a daemon to answer.
pub(crate) const ANSWER_TIMEOUT: Delta = Delta::from_secs(30);

/// A service that a daemon does the work of. All methods are called in softirq context, but
/// [`DaemonService::closed`].
pub(crate) trait DaemonService: Protocol {
    /// The type of the service's requests.
    const KIND: Kind;
    /// The framework versions that the service works with, best first.
    const FRAMEWORKS: &'static [Version];
    /// The message versions that the service knows, best first.
    const VERSIONS: &'static [Version];
    /// The size of each ring.
    const RING: RingSize;
    /// How long the answer to a negotiation waits for a daemon. A host asks nothing before it.
    const PATIENCE: Delta;

    /// What has to be remembered of a request while the daemon works.
    type Operation: Copy + Send;

    /// Writes what the daemon is to be asked about the request in `body` to `message`, or answers
    /// the request.
    fn ask(
        &mut self,
        body: &mut [u8],
        daemon: Option<Self::Registration>,
        message: &mut Self::Message,
    ) -> Asked<Self::Operation>;

    /// Answers the request in `body` with what the daemon has answered.
    fn answered(
        &mut self,
        operation: Self::Operation,
        daemon: Self::Registration,
        answer: &Self::Message,
        body: &mut [u8],
    ) -> Status;

    /// The daemon has gone, or took too long; or the host doesn't wait any more.
    fn unanswered(&mut self, operation: Self::Operation, lost: Lost) {
        let _ = (operation, lost);
    }

    /// Writes what the daemon has to be asked although the host doesn't, and returns its size.
    fn tell(&mut self, message: &mut Self::Message) -> Option<usize> {
        let _ = message;
        None
    }

    /// What the daemon has answered to [`DaemonService::tell`]. Not called if it has gone.
    fn told(&mut self, answer: &Self::Message) {
        let _ = answer;
    }

    /// A daemon may have come or gone.
    fn daemon_changed(&mut self, daemon: Option<Self::Registration>) {
        let _ = daemon;
    }

    /// The host has started over, or the channel was closed.
    fn restarted(&mut self) {}
}

/// What becomes of a request.
pub(crate) enum Asked<O> {
    /// The daemon is asked the first `len` bytes of the message, and has `timeout` to answer.
    Question {
        operation: O,
        len: usize,
        timeout: Delta,
    },
    /// The request is answered without it.
    Answered(Status),
}

/// The conversation with the host on the service's channel.
pub(crate) struct Session<S: DaemonService> {
    service: S,
    transport: Arc<Transport<S>>,
    expiry: Pin<KBox<DelayedWork<Expiry<S>>>>,
    /// Where questions are written, and answers read.
    message: KBox<S::Message>,
    /// What was agreed on with the host, if anything.
    version: Option<Version>,
    /// Until when a negotiation waits for a daemon, if one does.
    patient_until: Option<Instant<Monotonic>>,
    /// Until when a request waits for the way to the daemon to be free, if one does.
    blocked_until: Option<Instant<Monotonic>>,
    /// `None` only while it is being changed.
    job: Option<Job<S::Operation>>,
}

/// The request that is worked on.
enum Job<O> {
    /// There is none.
    None(Buffer),
    /// The daemon has been asked.
    Asked(Taken, O),
    /// The daemon has been told something that the host didn't request, and takes until then to
    /// answer without any request suffering.
    Told(Buffer, Instant<Monotonic>),
    /// Its answer waits for room in the ring.
    Answered(Taken),
}

impl<S: DaemonService> Session<S> {
    pub(crate) fn new(service: S, transport: Arc<Transport<S>>) -> Result<Self> {
        let expiry = Expiry {
            transport: transport.clone(),
        };
        Ok(Self {
            service,
            transport,
            expiry: KBox::pin_init(new_delayed_work!("hv_utils::expiry", expiry), GFP_KERNEL)?,
            message: KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?,
            version: None,
            patient_until: None,
            blocked_until: None,
            job: Some(Job::None(Buffer::new(S::RING)?)),
        })
    }

    /// Whether a negotiation has to wait for a daemon.
    fn is_patient(&mut self) -> bool {
        if S::PATIENCE.is_zero() || self.transport.registration().is_some() {
            self.patient_until = None;
            return false;
        }
        lasts(&mut self.patient_until, self.expiry.as_ref(), S::PATIENCE)
    }

    /// Forgets the host's request, without an answer, and what was agreed on.
    fn restart(&mut self) {
        self.job = self.job.take().map(|job| match job {
            Job::Asked(taken, operation) => {
                let lost = self.transport.abandon();
                self.service.unanswered(operation, lost);
                Job::None(taken.abandon())
            }
            Job::Answered(taken) => Job::None(taken.abandon()),
            job @ (Job::None(_) | Job::Told(..)) => job,
        });
        self.version = None;
        self.patient_until = None;
        self.blocked_until = None;
        self.service.restarted();
        self.tell();
    }

    /// Tells the daemon what it has to be told, if it isn't working on something.
    fn tell(&mut self) {
        if self.transport.registration().is_none() || !self.transport.is_free() {
            return;
        }
        self.job = match self.job.take() {
            Some(Job::None(buffer)) => Some(match self.service.tell(&mut self.message) {
                Some(len) => {
                    self.transport.ask(&mut self.message, len, None);
                    // Before the timer starts: it is over when that ends.
                    let until = Instant::now() + ANSWER_TIMEOUT;
                    self.expiry.as_ref().schedule_in(ANSWER_TIMEOUT);
                    Job::Told(buffer, until)
                }
                None => Job::None(buffer),
            }),
            job => job,
        };
    }

    /// Passes on what the daemon has answered to what it was told.
    fn conclude_told(&mut self, buffer: Buffer, until: Instant<Monotonic>) -> Job<S::Operation> {
        match self.transport.outcome(&mut self.message) {
            Outcome::Pending => return Job::Told(buffer, until),
            Outcome::Answered(_) => self.service.told(&self.message),
            Outcome::None(_) => {}
        }
        Job::None(buffer)
    }

    fn negotiate(&mut self, mut packet: Packet<'_>) -> Handled {
        if self.is_patient() {
            return packet.leave();
        }
        self.restart();
        let request = match Request::new(packet.payload()) {
            Ok(request) => request,
            Err(unanswerable) => return packet.ignore(unanswerable),
        };
        let version = request.negotiate(S::FRAMEWORKS, S::VERSIONS);
        let limit = packet.limit();
        packet.reply(|| {
            self.version = version;
            log_negotiation(S::NAME, version, limit);
        })
    }

    /// Starts work on a request, or answers it.
    fn request(&mut self, mut packet: Packet<'_>, buffer: Buffer) -> (Handled, Job<S::Operation>) {
        let daemon = self.transport.registration();
        if !self.transport.is_free() {
            // A daemon may never read what it has to before it is one, nor end a read.
            let waits = daemon.is_some()
                && lasts(
                    &mut self.blocked_until,
                    self.expiry.as_ref(),
                    ANSWER_TIMEOUT,
                );
            let handled = match waits {
                true => packet.leave(),
                false => fail(packet),
            };
            return (handled, Job::None(buffer));
        }
        self.blocked_until = None;
        let asked = match Request::new(packet.payload()) {
            Ok(mut request) => {
                let asked = self.service.ask(request.body(), daemon, &mut self.message);
                if let Asked::Answered(status) = asked {
                    request.answer(status);
                }
                asked
            }
            Err(unanswerable) => return (packet.ignore(unanswerable), Job::None(buffer)),
        };
        match asked {
            Asked::Question {
                operation,
                len,
                timeout,
            } => {
                let (handled, taken) = packet.take(buffer);
                self.transport.ask(&mut self.message, len, Some(timeout));
                self.expiry.as_ref().schedule_in(timeout);
                (handled, Job::Asked(taken, operation))
            }
            Asked::Answered(_) => (packet.reply(|| {}), Job::None(buffer)),
        }
    }

    /// Answers the request if the daemon has, or won't any more.
    fn conclude(&mut self, mut taken: Taken, operation: S::Operation) -> Job<S::Operation> {
        match self.transport.outcome(&mut self.message) {
            Outcome::Pending => return Job::Asked(taken, operation),
            Outcome::None(lost) => {
                self.service.unanswered(operation, lost);
                answer(&mut taken, |_| Status::FAIL);
            }
            Outcome::Answered(daemon) => answer(&mut taken, |body| {
                self.service
                    .answered(operation, daemon, &self.message, body)
            }),
        }
        Job::Answered(taken)
    }
}

/// Whether waiting for as long as `delay` isn't over; begins it, and has `expiry` end it.
fn lasts<S: DaemonService>(
    until: &mut Option<Instant<Monotonic>>,
    expiry: Pin<&DelayedWork<Expiry<S>>>,
    delay: Delta,
) -> bool {
    let end = *until.get_or_insert_with(|| {
        let end = Instant::now() + delay;
        expiry.schedule_in(delay);
        end
    });
    end.elapsed().is_negative()
}

/// Answers a request that nothing can be done about.
fn fail(mut packet: Packet<'_>) -> Handled {
    match Request::new(packet.payload()) {
        Ok(request) => request.answer(Status::FAIL),
        Err(unanswerable) => return packet.ignore(unanswerable),
    }
    packet.reply(|| {})
}

/// Turns the request that was taken into its answer.
fn answer(taken: &mut Taken, status: impl FnOnce(&mut [u8]) -> Status) {
    if let Ok(mut request) = Request::new(taken.payload()) {
        let status = status(request.body());
        request.answer(status);
    }
}

impl<S: DaemonService> Handler for Session<S> {
    fn woken(&mut self, sender: &Sender<'_>) {
        let job = match self.job.take() {
            Some(Job::Asked(taken, operation)) => Some(self.conclude(taken, operation)),
            Some(Job::Told(buffer, until)) => Some(self.conclude_told(buffer, until)),
            job => job,
        };
        // Behind what the last daemon has or hasn't answered.
        self.service.daemon_changed(self.transport.registration());
        self.job = match job {
            Some(Job::Answered(taken)) => Some(match sender.reply(taken) {
                Ok(buffer) => Job::None(buffer),
                Err(taken) => Job::Answered(taken),
            }),
            job => job,
        };
        self.tell();
    }

    fn receive(&mut self, mut packet: Packet<'_>) -> Handled {
        if !packet.is_in_band() {
            return packet.ignore("not in-band data");
        }
        let kind: Result<Kind, Unanswerable> =
            Request::new(packet.payload()).map(|request| request.kind());
        match (kind, self.version, self.job.take()) {
            (Err(unanswerable), _, job) => {
                self.job = job;
                packet.ignore(unanswerable)
            }
            (Ok(Kind::NEGOTIATE), _, job) => {
                self.job = job;
                self.negotiate(packet)
            }
            (Ok(kind), Some(_), Some(Job::None(buffer))) if kind == S::KIND => {
                let (handled, job) = self.request(packet, buffer);
                self.job = Some(job);
                handled
            }
            (Ok(kind), _, job @ Some(Job::None(_))) => {
                self.job = job;
                log_unexpected(S::NAME, kind, packet.limit());
                fail(packet)
            }
            (Ok(_), _, Some(Job::Told(buffer, until))) if !until.elapsed().is_negative() => {
                self.job = Some(Job::Told(buffer, until));
                fail(packet)
            }
            // One request at a time.
            (Ok(_), _, job) => {
                self.job = job;
                packet.leave()
            }
        }
    }

    fn closed(&mut self) {
        // Before the daemon is told anything, which takes as long with the channel open again.
        self.expiry.as_ref().cancel();
        self.restart();
        self.service.daemon_changed(self.transport.registration());
    }
}

/// Ends waiting that has taken too long.
struct Expiry<S: DaemonService> {
    transport: Arc<Transport<S>>,
}

impl<S: DaemonService> Run for Expiry<S> {
    fn run(&self) {
        self.transport.expire();
    }
}
