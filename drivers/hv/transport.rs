// SPDX-License-Identifier: GPL-2.0

//! The way to a daemon: a character device over which it takes one message at a time and answers
//! it, whatever becomes of it or of the host meanwhile.

use crate::icmsg::Registration;
use core::mem;
use hyperv::{
    channel::Waker,
    linux::{
        miscdevice::{
            self,
            Poll,
            Ready,
            Wait, //
        },
        time::Deadline, //
    },
};
use kernel::{
    new_mutex, new_spinlock_irq,
    prelude::*,
    static_lock_class,
    sync::{
        poll::PollCondVarBox,
        Arc,
        Mutex,
        SpinLockIrq, //
    },
    uaccess::{
        UserSliceReader,
        UserSliceWriter, //
    },
};

/// What a daemon and its service say to each other.
pub(crate) struct Protocol {
    /// The path of the device below `/dev`.
    pub(crate) device: &'static CStr,
    /// Bytes in each message from the daemon.
    pub(crate) answer_len: usize,
    /// Bytes in the longest message, either way.
    pub(crate) message_len: usize,
    /// Reads a daemon's first message; `None` if it is no registration that is known.
    pub(crate) register: fn(message: &[u8]) -> Option<Registration>,
    /// Writes what the daemon has to read before it is registered, and returns its size; `None` if
    /// the daemon expects nothing.
    pub(crate) confirm: fn(Registration, message: &mut [u8]) -> Option<usize>,
    /// A daemon has registered. May sleep.
    pub(crate) connected: fn(Registration),
}

impl Protocol {
    /// Allocates memory for one message.
    pub(crate) fn new_message(&self) -> Result<KVec<u8>> {
        Ok(KVec::from_elem(0, self.message_len, GFP_KERNEL)?)
    }
}

/// Both ends of the way: the service asks, the daemon answers.
#[pin_data]
pub(crate) struct Transport {
    protocol: &'static Protocol,
    /// Wakes the service when there's something for it; `None` once the device went away.
    #[pin]
    waker: Mutex<Option<Waker>>,
    /// Told of late answers that are refused.
    straggler: Option<Arc<dyn Straggler>>,
    /// Notified when there is something for the daemon. Dropping a `PollCondVarBox` does not wait for
    /// RCU.
    changed: PollCondVarBox,
    /// Where a message from the daemon goes first. Locked before `state`.
    #[pin]
    inbox: Mutex<KVec<u8>>,
    #[pin]
    state: SpinLockIrq<State>,
}

struct State {
    end: End,
    /// Counts how often the device was opened.
    opened: u32,
    phase: Phase,
    /// The one message on its way. `None` while it is being read.
    message: Option<KVec<u8>>,
    /// What becomes of the answer to the question that was asked last, if it is late.
    late: Late,
    /// Set if the next answer is one to a question that nobody asks any more. A daemon that reads a new
    /// question owes nothing for older ones: it may have skipped an answer.
    owed: Option<Late>,
    /// Set when the pending question failed. Cleared when the service reads the outcome, even if a new
    /// daemon has connected meanwhile.
    lost: Option<Lost>,
    /// When the service stops waiting for an answer.
    deadline: Option<Deadline>,
}

/// Who is at the other end of the device.
#[derive(Clone, Copy)]
enum End {
    /// The device went away, and doesn't come back.
    Revoked,
    /// Nobody has it open.
    Absent,
    /// Somebody has opened it.
    Connected,
    /// The daemon has registered. It has not read the confirmation yet.
    Confirming(Registration),
    /// The daemon is ready.
    Registered(Registration),
}

/// A daemon that is ready.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Daemon {
    /// How it has registered.
    pub(crate) registration: Registration,
    /// Tells it from those before it.
    number: u32,
}

/// What the message is, and where.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is none.
    Idle,
    /// It waits to be read by the daemon, or is being read.
    Unread { what: What, len: usize },
    /// It was read; the daemon's answer is due.
    Asked,
    /// It is the daemon's answer, for the service to take.
    Answered,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// What a registration is confirmed with.
    Confirmation,
    /// A question of the service.
    Question,
}

/// What became of the service's question.
pub(crate) enum Outcome {
    /// Nothing yet.
    Pending,
    /// The daemon, which has registered so, has answered.
    Answered(Registration),
    /// The daemon has gone, or took too long.
    None(Lost),
}

/// How far a question came that gets no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The daemon has not read it, and never will.
    Unread,
    /// The daemon has read it, and may still do what it says.
    Working,
    /// The daemon has read it, and may have done what it says. It has answered too late, or has gone.
    Over,
}

/// What becomes of an answer that nobody waits for any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// It is dropped, and the daemon does not notice.
    Dropped,
    /// The daemon gets an error (`EINVAL`), and the [`Straggler`] is told.
    Refused,
}

/// Told when a daemon ends what it was doing for a question that was given up.
pub(crate) trait Straggler: Send + Sync {
    /// The daemon is done with a question whose late answer is refused ([`Lost::Working`]): it has
    /// answered, has gone on to the next question, or has gone. Also called when the device is gone. May
    /// be called in any context.
    fn daemon_finished(&self);
}

impl Transport {
    /// Creates a way to a daemon that isn't there yet; `waker` is the service's.
    pub(crate) fn new(
        protocol: &'static Protocol,
        waker: Waker,
        straggler: Option<Arc<dyn Straggler>>,
    ) -> Result<impl PinInit<Self, Error>> {
        let (inbox, message) = (protocol.new_message()?, protocol.new_message()?);
        let changed = PollCondVarBox::new(c"Transport::changed", static_lock_class!())?;
        Ok(try_pin_init!(Self {
            protocol,
            waker <- new_mutex!(Some(waker), "Transport::waker"),
            straggler,
            changed,
            inbox <- new_mutex!(inbox, "Transport::inbox"),
            state <- new_spinlock_irq!(State {
                end: End::Absent,
                opened: 0,
                phase: Phase::Idle,
                message: Some(message),
                late: Late::Dropped,
                owed: None,
                lost: None,
                deadline: None,
            }, "Transport::state"),
        }))
    }

    /// The daemon, if it is ready.
    pub(crate) fn daemon(&self) -> Option<Daemon> {
        self.state.lock().daemon()
    }

    /// Whether the daemon can be asked a question. If not, the service is woken when it can.
    pub(crate) fn is_free(&self) -> bool {
        let state = self.state.lock();
        state.daemon().is_some() && state.phase == Phase::Idle && state.message.is_some()
    }

    /// Asks that daemon, if it is there still, what the first `len` bytes of `message` say; leaves
    /// other memory in its place. The way must be free.
    ///
    /// The service waits for the answer until the deadline, or else for as long as the daemon has
    /// the device open. `late` says what becomes of an answer after that.
    pub(crate) fn ask(
        &self,
        daemon: Option<Daemon>,
        message: &mut KVec<u8>,
        len: usize,
        deadline: Option<Deadline>,
        late: Late,
    ) {
        let mut state = self.state.lock();
        state.lost = None;
        if daemon.is_some() && state.daemon() == daemon && state.put(message, What::Question, len) {
            state.deadline = deadline;
            state.late = late;
            self.changed.notify_all();
        } else {
            // It has just gone, of which the service is being told; another may have come.
            state.lost = Some(Lost::Unread);
        }
    }

    /// What became of the question; an answer is left in `message`. Any outcome is told once.
    pub(crate) fn outcome(&self, message: &mut KVec<u8>) -> Outcome {
        let mut state = self.state.lock();
        if let Some(lost) = state.lost.take() {
            return Outcome::None(lost);
        }
        match (state.phase, state.end, &mut state.message) {
            (Phase::Answered, End::Registered(registration), Some(answer)) => {
                mem::swap(answer, message);
                state.phase = Phase::Idle;
                state.deadline = None;
                Outcome::Answered(registration)
            }
            _ => Outcome::Pending,
        }
    }

    /// Gives up the question, if there is one: nobody waits for its answer any more. Returns how
    /// far it came.
    pub(crate) fn abandon(&self) -> Lost {
        let mut state = self.state.lock();
        state.fail();
        state.lost.take().unwrap_or(Lost::Unread)
    }

    /// Gives up the question if the service has waited for long enough, and wakes the service.
    pub(crate) fn expire(&self) {
        {
            let mut state = self.state.lock();
            let is_over = state.deadline.is_some_and(Deadline::is_over);
            if is_over && state.phase != Phase::Answered {
                state.fail();
            }
        }
        self.wake();
    }

    /// Wakes the service.
    fn wake(&self) {
        if let Some(waker) = &*self.waker.lock() {
            waker.wake();
        }
    }

    /// Takes the message to be read by the daemon, with its size.
    fn take_unread(&self, room: usize, wait: Wait) -> Result<(KVec<u8>, usize)> {
        let mut state = self.state.lock();
        loop {
            if let End::Revoked = state.end {
                return Err(ENODEV);
            }
            if let Phase::Unread { len, .. } = state.phase {
                if room < len {
                    return Err(EINVAL);
                }
                if let Some(message) = state.message.take() {
                    return Ok((message, len));
                }
            }
            if wait == Wait::No {
                return Err(EAGAIN);
            }
            if self.changed.wait_interruptible(&mut state) {
                return Err(ERESTARTSYS);
            }
        }
    }

    /// Puts the message back that was to be read.
    fn put_read(&self, message: KVec<u8>, was_read: bool) {
        {
            let mut state = self.state.lock();
            state.message = Some(message);
            match (state.phase, was_read) {
                // Its answer is what the service waits for.
                (
                    Phase::Unread {
                        what: What::Question,
                        ..
                    },
                    true,
                ) => {
                    state.phase = Phase::Asked;
                    self.settle(&mut state);
                    return;
                }
                (
                    Phase::Unread {
                        what: What::Confirmation,
                        ..
                    },
                    true,
                ) => {
                    if let End::Confirming(registration) = state.end {
                        state.end = End::Registered(registration);
                    }
                    state.phase = Phase::Idle;
                }
                // Another one may read it.
                (Phase::Unread { .. }, false) => self.changed.notify_all(),
                // Nobody waits for it any more, but the daemon can't know.
                (_, true) => state.owed = Some(state.late),
                (_, false) => {
                    state.owed = Some(state.late);
                    self.settle(&mut state);
                }
            }
        }
        self.wake();
    }

    /// Takes the daemon's message out of `inbox`.
    fn take_message(&self, inbox: &mut KVec<u8>) -> Result {
        let registration = {
            let mut state = self.state.lock();
            match state.end {
                End::Revoked => {
                    self.settle(&mut state);
                    return Err(ENODEV);
                }
                End::Absent | End::Confirming(_) => return Err(EINVAL),
                End::Connected => {
                    let registration = (self.protocol.register)(inbox).ok_or(EINVAL)?;
                    state.end = match (self.protocol.confirm)(registration, inbox) {
                        None => End::Registered(registration),
                        // Only a file that is open has a message that is being read, and none was
                        // sent to this one.
                        Some(len) if state.put(inbox, What::Confirmation, len) => {
                            End::Confirming(registration)
                        }
                        Some(_) => return Err(EBUSY),
                    };
                    self.changed.notify_all();
                    Some(registration)
                }
                End::Registered(_) => {
                    match self.settle(&mut state) {
                        None => state.answer(inbox)?,
                        Some(Late::Dropped) => {}
                        Some(Late::Refused) => return Err(EINVAL),
                    }
                    None
                }
            }
        };
        if let Some(registration) = registration {
            (self.protocol.connected)(registration);
        }
        self.wake();
        Ok(())
    }

    /// The daemon owes no answer any more. Returns what becomes of the one that it owed.
    fn settle(&self, state: &mut State) -> Option<Late> {
        let owed = state.owed.take();
        if let (Some(Late::Refused), Some(straggler)) = (owed, &self.straggler) {
            straggler.daemon_finished();
        }
        owed
    }
}

impl State {
    fn daemon(&self) -> Option<Daemon> {
        match self.end {
            End::Registered(registration) => Some(Daemon {
                registration,
                number: self.opened,
            }),
            _ => None,
        }
    }

    /// Has the daemon read `message`, if the last one isn't being read still. Leaves other memory
    /// in its place.
    fn put(&mut self, message: &mut KVec<u8>, what: What, len: usize) -> bool {
        let Some(ours) = &mut self.message else {
            return false;
        };
        mem::swap(ours, message);
        self.phase = Phase::Unread { what, len };
        true
    }

    /// Takes an answer out of `inbox`: daemons answer in the order in which they are asked.
    fn answer(&mut self, inbox: &mut KVec<u8>) -> Result {
        match (&mut self.message, self.phase) {
            (Some(message), Phase::Asked) => {
                mem::swap(message, inbox);
                self.phase = Phase::Answered;
                Ok(())
            }
            _ => Err(EINVAL),
        }
    }

    /// The question gets no answer.
    fn fail(&mut self) {
        let lost = match self.phase {
            Phase::Asked => {
                self.owed = Some(self.late);
                Lost::Working
            }
            Phase::Answered => Lost::Over,
            Phase::Unread {
                what: What::Question,
                ..
            } => match self.message {
                Some(_) => Lost::Unread,
                // It is being read.
                None => Lost::Working,
            },
            _ => return,
        };
        self.phase = Phase::Idle;
        self.lost = Some(lost);
        self.deadline = None;
    }
}

impl miscdevice::Device for Transport {
    type OwnerModule = crate::Module;

    fn name(&self) -> &'static CStr {
        self.protocol.device
    }

    /// One daemon at a time: `EBUSY`.
    fn open(&self) -> Result {
        let mut state = self.state.lock();
        match state.end {
            End::Absent => {
                state.end = End::Connected;
                state.opened = state.opened.wrapping_add(1);
                Ok(())
            }
            End::Revoked => Err(ENODEV),
            _ => Err(EBUSY),
        }
    }

    fn release(&self) {
        {
            let mut state = self.state.lock();
            self.settle(&mut state);
            if let End::Revoked = state.end {
                return;
            }
            state.end = End::Absent;
            state.fail();
            state.owed = None;
            if state.lost == Some(Lost::Working) {
                state.lost = Some(Lost::Over);
            }
            if let Phase::Unread { .. } = state.phase {
                state.phase = Phase::Idle;
            }
        }
        self.wake();
    }

    /// `EINVAL` leaves the message to be read with more room, and so does `EFAULT`.
    fn read(&self, to: &mut UserSliceWriter, wait: Wait) -> Result<usize> {
        let (message, len) = self.take_unread(to.len(), wait)?;
        let result = to.write_slice(&message[..len]);
        self.put_read(message, result.is_ok());
        result.map(|()| len)
    }

    fn write(&self, from: &mut UserSliceReader) -> Result {
        if from.len() != self.protocol.answer_len {
            return Err(EINVAL);
        }
        let mut inbox = self.inbox.lock();
        from.read_slice(&mut inbox[..self.protocol.answer_len])?;
        self.take_message(&mut inbox)
    }

    fn poll(&self, poll: &Poll<'_>) -> Ready {
        poll.register_wait(&self.changed);
        let state = self.state.lock();
        match (state.end, state.phase) {
            (End::Revoked, _) => Ready::GONE,
            (_, Phase::Unread { .. }) => Ready::READ,
            _ => Ready::NO,
        }
    }

    /// Takes the device away from whoever has it open.
    fn revoke(&self) {
        // Drop the reference to the device: an open file must not keep a rescinded channel alive.
        let waker = self.waker.lock().take();
        drop(waker);

        let mut state = self.state.lock();
        state.fail();
        state.end = End::Revoked;
        state.phase = Phase::Idle;
        self.changed.notify_all();
    }
}
