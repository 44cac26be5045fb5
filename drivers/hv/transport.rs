// SPDX-License-Identifier: GPL-2.0

//! The way to a daemon: a character device. The daemon reads one message at a time and writes its answer.
//! Daemon and host may go at any time.

use crate::{
    dialogue::{
        self,
        Dialogue,
        Effects,
        Late,
        Lost,
        Refused, //
    },
    icmsg::Registration, //
};
use core::ops::{
    Deref,
    DerefMut, //
};
use hyperv::{
    channel::Waker,
    compat::{
        new_spinlock_irq,
        PollCondVarBox,
        SpinLockIrq, //
    },
    linux::miscdevice::{
        self,
        Poll,
        Ready,
        Wait, //
    }, //
};
use kernel::{
    new_mutex,
    prelude::*,
    static_lock_class,
    sync::{
        Arc,
        Mutex, //
    },
    uaccess::{
        UserSliceReader,
        UserSliceWriter, //
    },
};

/// A daemon that is ready.
pub(crate) type Daemon = dialogue::Daemon<Registration>;

/// What became of the service's question.
pub(crate) type Outcome = dialogue::Outcome<Registration>;

/// Constants of a service's dialogue with its daemon.
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

/// Memory for a message. It is `None` where it was moved away: an empty `KVec` calls `kfree()` when dropped.
#[derive(Default)]
pub(crate) struct Message(Option<KVec<u8>>);

impl Message {
    /// Allocates memory for the longest message of `protocol`.
    pub(crate) fn new(protocol: &Protocol) -> Result<Self> {
        let bytes = KVec::from_elem(0, protocol.message_len, GFP_KERNEL)?;
        Ok(Self(Some(bytes)))
    }
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Message {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

/// Both ends of the way: the service asks, the daemon answers.
#[pin_data]
pub(crate) struct Transport {
    protocol: &'static Protocol,
    /// Wakes the service when there's something for it; `None` once the device went away.
    #[pin]
    waker: Mutex<Option<Waker>>,
    listener: Option<Arc<dyn LateListener>>,
    /// Notified when there is something for the daemon. Dropping a `PollCondVarBox` does not wait for
    /// RCU, since 7.3.
    changed: PollCondVarBox,
    /// Where a message from the daemon goes first. Locked before `dialogue`.
    #[pin]
    inbox: Mutex<Message>,
    #[pin]
    dialogue: SpinLockIrq<Dialogue<Registration, Message>>,
}

/// Told when a daemon ends what it was doing for a question that was given up ([`Late::Refused`]).
pub(crate) trait LateListener: Send + Sync {
    /// The daemon is done with a question that ended with [`Lost::Working`]: it has answered, has gone on
    /// to the next question, or has gone. Also called when the device is gone. May be called in any
    /// context.
    fn daemon_finished(&self);
}

impl Transport {
    /// Creates a way to a daemon that isn't there yet; `waker` is the service's.
    pub(crate) fn new(
        protocol: &'static Protocol,
        waker: Waker,
        listener: Option<Arc<dyn LateListener>>,
    ) -> Result<impl PinInit<Self, Error>> {
        let (inbox, message) = (Message::new(protocol)?, Message::new(protocol)?);
        let changed = PollCondVarBox::new(c"Transport::changed", static_lock_class!())?;
        Ok(try_pin_init!(Self {
            protocol,
            waker <- new_mutex!(Some(waker), "Transport::waker"),
            listener,
            changed,
            inbox <- new_mutex!(inbox, "Transport::inbox"),
            dialogue <- new_spinlock_irq!(Dialogue::new(message), "Transport::dialogue"),
        }))
    }

    /// The daemon, if it is ready, and whether it can be asked. If not, the service is woken when it can.
    pub(crate) fn daemon(&self) -> (Option<Daemon>, bool) {
        let dialogue = self.dialogue.lock();
        (dialogue.daemon(), dialogue.is_free())
    }

    /// See [`Dialogue::ask`].
    pub(crate) fn ask(
        &self,
        daemon: Option<Daemon>,
        message: &mut Message,
        len: usize,
        late: Late,
    ) {
        let mut dialogue = self.dialogue.lock();
        dialogue.ask(daemon, message, len, late);
        let _ = self.notify(&mut dialogue);
    }

    /// See [`Dialogue::outcome`].
    pub(crate) fn outcome(&self, message: &mut Message, is_over: bool) -> Outcome {
        self.dialogue.lock().outcome(message, is_over)
    }

    /// See [`Dialogue::give_up`].
    pub(crate) fn give_up(&self) -> Lost {
        self.dialogue.lock().give_up()
    }

    /// Wakes the service.
    pub(crate) fn wake(&self) {
        if let Some(waker) = &*self.waker.lock() {
            waker.wake();
        }
    }

    /// Notifies the listener and the daemon of events. Returns whether the caller must wake the service.
    #[must_use]
    fn notify(&self, dialogue: &mut Dialogue<Registration, Message>) -> bool {
        let Effects {
            daemon,
            service,
            finished,
        } = dialogue.take_effects();
        if let (true, Some(listener)) = (finished, &self.listener) {
            listener.daemon_finished();
        }
        if daemon {
            self.changed.notify_all();
        }
        service
    }

    /// Lets an event of the daemon happen, in process context.
    fn event<T>(&self, event: impl FnOnce(&mut Dialogue<Registration, Message>) -> T) -> T {
        let mut dialogue = self.dialogue.lock();
        let result = event(&mut dialogue);
        let wakes = self.notify(&mut dialogue);
        drop(dialogue);
        if wakes {
            self.wake();
        }
        result
    }

    /// Takes the message to be read by the daemon, with its size.
    fn begin_read(&self, room: usize, wait: Wait) -> Result<(Message, usize)> {
        let mut dialogue = self.dialogue.lock();
        loop {
            let message = dialogue.begin_read(room)?;
            let _ = self.notify(&mut dialogue);
            if let Some(message) = message {
                return Ok(message);
            }
            if wait == Wait::No {
                return Err(EAGAIN);
            }
            if self.changed.wait_interruptible(&mut dialogue) {
                return Err(ERESTARTSYS);
            }
        }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Gone => ENODEV,
            Refused::Busy => EBUSY,
            Refused::Invalid => EINVAL,
        }
    }
}

impl miscdevice::Device for Transport {
    fn name(&self) -> &'static CStr {
        self.protocol.device
    }

    /// One daemon at a time: `EBUSY`.
    fn open(&self) -> Result {
        Ok(self.event(Dialogue::open)?)
    }

    fn release(&self) {
        self.event(Dialogue::release);
    }

    /// `EINVAL` leaves the message to be read with more room, and so does `EFAULT`.
    fn read(&self, to: &mut UserSliceWriter, wait: Wait) -> Result<usize> {
        let (message, len) = self.begin_read(to.len(), wait)?;
        let result = to.write_slice(&message[..len]);
        self.event(|dialogue| dialogue.end_read(message, result.is_ok()));
        result.map(|()| len)
    }

    fn write(&self, from: &mut UserSliceReader) -> Result {
        let Protocol {
            answer_len,
            register,
            confirm,
            connected,
            ..
        } = *self.protocol;
        if from.len() != answer_len {
            return Err(EINVAL);
        }
        let mut inbox = self.inbox.lock();
        from.read_slice(&mut inbox[..answer_len])?;
        let registration = self.event(|dialogue| {
            dialogue.write(&mut inbox, |message| {
                let registration = register(message)?;
                Some((registration, confirm(registration, message)))
            })
        })?;
        if let Some(registration) = registration {
            connected(registration);
        }
        Ok(())
    }

    fn poll(&self, poll: &Poll<'_>) -> Ready {
        poll.register_wait(&self.changed);
        match self.dialogue.lock().is_readable() {
            Err(_) => Ready::GONE,
            Ok(true) => Ready::READ,
            Ok(false) => Ready::NO,
        }
    }

    /// Takes the device away from whoever has it open.
    fn revoke(&self) {
        // Drop the reference to the device: an open file must not keep a rescinded channel alive.
        let waker = self.waker.lock().take();
        drop(waker);
        self.event(Dialogue::revoke);
    }
}
