// SPDX-License-Identifier: GPL-2.0

//! The way to a daemon: a character device over which it takes one message at a time and answers
//! it, whatever becomes of it or of the host meanwhile.

use core::mem;
use hyperv::{
    channel::Waker,
    chardev::{
        self,
        Ready,
        Wait, //
    },
};
use kernel::{
    fs::File,
    new_mutex, new_poll_condvar, new_spinlock_irq,
    prelude::*,
    sync::{
        poll::{
            PollCondVar,
            PollTable, //
        },
        Arc,
        Mutex,
        SpinLockIrq, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
    uaccess::{
        UserSliceReader,
        UserSliceWriter, //
    },
};

/// What a daemon and its service say to each other.
pub(crate) trait Protocol: Send + Sync + 'static {
    /// The service's name in log messages.
    const NAME: &'static str;
    /// The path of the device below `/dev`.
    const DEVICE: &'static CStr;
    /// Bytes in each message from the daemon.
    const ANSWER_LEN: usize;

    /// Memory for a message either way.
    type Message: AsRef<[u8]> + AsMut<[u8]> + Zeroable + Send + Sync + Unpin;
    /// How a daemon has registered.
    type Registration: Copy + Send + Unpin;

    /// Reads a daemon's first message; `None` if it is no registration that is known.
    fn register(message: &Self::Message) -> Option<Self::Registration>;

    /// Writes what the daemon has to read before it is registered, and returns its size; `None` if
    /// the daemon expects nothing.
    fn confirm(registration: Self::Registration, message: &mut Self::Message) -> Option<usize>;

    /// A daemon has registered. May sleep.
    fn connected(registration: Self::Registration) {
        let _ = registration;
    }
}

/// Both ends of the way: the service asks, the daemon answers.
#[pin_data]
pub(crate) struct Transport<P: Protocol> {
    /// Wakes the service when there's something for it; `None` once the device went away.
    #[pin]
    waker: Mutex<Option<Waker>>,
    /// Notified when there's something for the daemon.
    #[pin]
    changed: PollCondVar,
    /// Where a message from the daemon goes first. Locked before `state`.
    #[pin]
    inbox: Mutex<KBox<P::Message>>,
    #[pin]
    state: SpinLockIrq<State<P>>,
}

struct State<P: Protocol> {
    daemon: Daemon<P::Registration>,
    phase: Phase,
    /// The one message on its way. `None` while it is being read.
    message: Option<KBox<P::Message>>,
    /// Counts messages, so that one that was being read is known when it comes back.
    number: u64,
    /// Answers that the daemon owes to questions that nobody asks any more.
    owed: u32,
    /// The service's question gets no answer, which it has yet to be told: whatever has come after
    /// the question does not change that.
    lost: Option<Lost>,
    /// When the service stops waiting for an answer.
    deadline: Option<Instant<Monotonic>>,
}

/// Who is at the other end of the device.
#[derive(Clone, Copy)]
pub(crate) enum Daemon<R> {
    /// The device went away, and doesn't come back.
    Revoked,
    /// Nobody has it open.
    Absent,
    /// Somebody has opened it.
    Connected,
    /// The registration has to be read to count.
    Confirming(R),
    /// The daemon is ready.
    Registered(R),
}

/// What the message is, and where.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is none.
    Idle,
    /// It waits to be read by the daemon.
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
pub(crate) enum Outcome<R> {
    /// Nothing yet.
    Pending,
    /// The daemon, which has registered so, has answered.
    Answered(R),
    /// The daemon has gone, or took too long.
    None(Lost),
}

/// How far a question came that gets no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The daemon has not read it, and never will.
    Unread,
    /// The daemon has read it, and may have done what it says.
    Read,
}

impl<P: Protocol> Transport<P> {
    /// Creates a way to a daemon that isn't there yet; `waker` is the service's.
    pub(crate) fn new(waker: Waker) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            waker <- new_mutex!(Some(waker), "Transport::waker"),
            changed <- new_poll_condvar!("Transport::changed"),
            inbox <- new_mutex!(KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?, "Transport::inbox"),
            state <- new_spinlock_irq!(State {
                daemon: Daemon::Absent,
                phase: Phase::Idle,
                message: Some(KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?),
                number: 0,
                owed: 0,
                lost: None,
                deadline: None,
            }, "Transport::state"),
        })
    }

    /// How the daemon has registered, if it has.
    pub(crate) fn registration(&self) -> Option<P::Registration> {
        self.state.lock().daemon.registration()
    }

    /// Whether a question can be asked. If not, the service is woken when it can.
    pub(crate) fn is_free(&self) -> bool {
        let state = self.state.lock();
        state.phase == Phase::Idle && state.message.is_some()
    }

    /// Asks the daemon what the first `len` bytes of `message` say; leaves other memory in its
    /// place. The way must be free.
    ///
    /// The service waits for the answer for as long as `timeout`, or else for as long as the daemon
    /// has the device open.
    pub(crate) fn ask(&self, message: &mut KBox<P::Message>, len: usize, timeout: Option<Delta>) {
        let mut state = self.state.lock();
        state.lost = None;
        state.deadline = timeout.map(|timeout| Instant::now() + timeout);
        if state.daemon.registration().is_none() || !state.put(message, What::Question, len) {
            // The daemon has just gone, of which the service is being told.
            state.lost = Some(Lost::Unread);
        }
        self.changed.notify_all();
    }

    /// What became of the question; an answer is left in `message`. Any outcome is told once.
    pub(crate) fn outcome(&self, message: &mut KBox<P::Message>) -> Outcome<P::Registration> {
        let mut state = self.state.lock();
        if let Some(lost) = state.lost.take() {
            return Outcome::None(lost);
        }
        match (state.phase, state.daemon.registration(), &mut state.message) {
            (Phase::Answered, Some(registration), Some(answer)) => {
                mem::swap(answer, message);
                state.phase = Phase::Idle;
                Outcome::Answered(registration)
            }
            _ => Outcome::Pending,
        }
    }

    /// Gives up the question, if there is one: nobody waits for its answer any more. Returns how far
    /// it came.
    pub(crate) fn abandon(&self) -> Lost {
        let mut state = self.state.lock();
        state.fail();
        state.lost.take().unwrap_or(Lost::Unread)
    }

    /// Gives up the question if the service has waited for long enough, and wakes the service.
    pub(crate) fn expire(&self) {
        {
            let mut state = self.state.lock();
            if state
                .deadline
                .is_some_and(|deadline| !deadline.elapsed().is_negative())
            {
                state.deadline = None;
                if state.phase != Phase::Answered {
                    state.fail();
                }
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

    /// Takes the device away from whoever has it open.
    fn revoke(&self) {
        // A channel that the host took away is released with its device: who keeps the file open
        // must not keep that.
        let waker = self.waker.lock().take();
        drop(waker);

        let mut state = self.state.lock();
        state.daemon = Daemon::Revoked;
        state.phase = Phase::Idle;
        self.changed.notify_all();
    }

    /// Takes the message to be read by the daemon, with its size and number.
    fn take_unread(&self, room: usize, wait: Wait) -> Result<(KBox<P::Message>, usize, u64)> {
        let mut state = self.state.lock();
        loop {
            if let Daemon::Revoked = state.daemon {
                return Err(ENODEV);
            }
            if let Phase::Unread { len, .. } = state.phase {
                if room < len {
                    return Err(EINVAL);
                }
                if let Some(message) = state.message.take() {
                    return Ok((message, len, state.number));
                }
            }
            if wait == Wait::No {
                return Err(EAGAIN);
            }
            if self.changed.wait_interruptible(&mut state) {
                return Err(EINTR);
            }
        }
    }

    /// Puts the message back that was to be read.
    fn put_read(&self, message: KBox<P::Message>, number: u64, was_read: bool) {
        {
            let mut state = self.state.lock();
            state.message = Some(message);
            match state.phase {
                Phase::Unread { what, .. } if state.number == number => {
                    if was_read {
                        state.read(what);
                    }
                }
                // Nobody waits for it any more, but the daemon can't know.
                _ if was_read => state.owed = state.owed.saturating_add(1),
                _ => {}
            }
            self.changed.notify_all();
        }
        self.wake();
    }

    /// Takes the daemon's message out of `inbox`.
    fn take_message(&self, inbox: &mut KBox<P::Message>) -> Result {
        let registration = {
            let mut state = self.state.lock();
            match state.daemon {
                Daemon::Revoked => return Err(ENODEV),
                Daemon::Absent | Daemon::Confirming(_) => return Err(EINVAL),
                Daemon::Connected => {
                    let registration = P::register(inbox).ok_or(EINVAL)?;
                    state.register(registration, inbox)?;
                    self.changed.notify_all();
                    Some(registration)
                }
                Daemon::Registered(_) => {
                    state.answer(inbox)?;
                    None
                }
            }
        };
        if let Some(registration) = registration {
            P::connected(registration);
        }
        self.wake();
        Ok(())
    }
}

impl<R: Copy> Daemon<R> {
    fn registration(&self) -> Option<R> {
        match self {
            Self::Registered(registration) => Some(*registration),
            _ => None,
        }
    }
}

impl<P: Protocol> State<P> {
    /// Has the daemon read `message`, if the last one isn't being read still. Leaves other memory in
    /// its place.
    fn put(&mut self, message: &mut KBox<P::Message>, what: What, len: usize) -> bool {
        let Some(ours) = &mut self.message else {
            return false;
        };
        mem::swap(ours, message);
        self.number += 1;
        self.phase = Phase::Unread { what, len };
        true
    }

    /// The message was read.
    fn read(&mut self, what: What) {
        self.phase = match what {
            What::Question => Phase::Asked,
            What::Confirmation => {
                if let Daemon::Confirming(registration) = self.daemon {
                    self.daemon = Daemon::Registered(registration);
                }
                Phase::Idle
            }
        };
    }

    fn register(&mut self, registration: P::Registration, inbox: &mut KBox<P::Message>) -> Result {
        let Some(len) = P::confirm(registration, inbox) else {
            self.daemon = Daemon::Registered(registration);
            return Ok(());
        };
        // Only a file that is open has a message that is being read, and it was opened after that.
        if !self.put(inbox, What::Confirmation, len) {
            return Err(EBUSY);
        }
        self.daemon = Daemon::Confirming(registration);
        Ok(())
    }

    /// Takes an answer out of `inbox`: daemons answer in the order in which they are asked.
    fn answer(&mut self, inbox: &mut KBox<P::Message>) -> Result {
        if self.owed > 0 {
            self.owed -= 1;
            return Ok(());
        }
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
                self.owed = self.owed.saturating_add(1);
                Lost::Read
            }
            Phase::Answered => Lost::Read,
            Phase::Unread {
                what: What::Question,
                ..
            } => match self.message {
                Some(_) => Lost::Unread,
                // It is being read.
                None => Lost::Read,
            },
            _ => return,
        };
        self.phase = Phase::Idle;
        self.lost = Some(lost);
    }
}

impl<P: Protocol> chardev::Device for Transport<P> {
    type OwnerModule = crate::Module;
    const NAME: &'static CStr = P::DEVICE;

    /// One daemon at a time: `EBUSY`.
    fn open(&self) -> Result {
        let mut state = self.state.lock();
        match state.daemon {
            Daemon::Absent => {
                state.daemon = Daemon::Connected;
                Ok(())
            }
            Daemon::Revoked => Err(ENODEV),
            _ => Err(EBUSY),
        }
    }

    fn release(&self) {
        {
            let mut state = self.state.lock();
            if let Daemon::Revoked = state.daemon {
                return;
            }
            state.daemon = Daemon::Absent;
            state.fail();
            state.owed = 0;
            if let Phase::Unread { .. } = state.phase {
                state.phase = Phase::Idle;
            }
        }
        self.wake();
    }

    /// `EINVAL` leaves the message to be read with more room, and so does `EFAULT`.
    fn read(&self, to: &mut UserSliceWriter, wait: Wait) -> Result<usize> {
        let (message, len, number) = self.take_unread(to.len(), wait)?;
        let result = to.write_slice(&(*message).as_ref()[..len]);
        self.put_read(message, number, result.is_ok());
        result.map(|()| len)
    }

    fn write(&self, from: &mut UserSliceReader) -> Result {
        if from.len() != P::ANSWER_LEN {
            return Err(EINVAL);
        }
        let mut inbox = self.inbox.lock();
        from.read_slice(&mut (**inbox).as_mut()[..P::ANSWER_LEN])?;
        self.take_message(&mut inbox)
    }

    fn poll(&self, file: &File, table: &PollTable<'_>) -> Ready {
        table.register_wait(file, &self.changed);
        let state = self.state.lock();
        match (state.daemon, state.phase) {
            (Daemon::Revoked, _) => Ready::GONE,
            (_, Phase::Unread { .. }) => Ready::READ,
            _ => Ready::NO,
        }
    }
}

/// A transport's device, for as long as the service has it: then it is taken away.
pub(crate) struct Device<P: Protocol> {
    transport: Arc<Transport<P>>,
    _registration: Pin<KBox<chardev::Registration<Transport<P>>>>,
}

impl<P: Protocol> Device<P> {
    pub(crate) fn new(transport: Arc<Transport<P>>) -> Result<Self> {
        let registration = chardev::Registration::new(transport.clone());
        Ok(Self {
            transport,
            _registration: KBox::pin_init(registration, GFP_KERNEL)?,
        })
    }
}

impl<P: Protocol> Drop for Device<P> {
    fn drop(&mut self) {
        self.transport.revoke();
    }
}
