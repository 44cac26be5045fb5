// SPDX-License-Identifier: GPL-2.0

//! The connection between a service and its daemon: a character device. The daemon reads one
//! message at a time and writes the answer. The daemon and the host's device may disappear at any
//! time.

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

/// A daemon that has registered and has read any confirmation.
pub(crate) type Daemon = dialogue::Daemon<Registration>;

/// The outcome of a question.
pub(crate) type Outcome = dialogue::Outcome<Registration>;

/// Constants of a service's dialogue with its daemon.
pub(crate) struct Protocol {
    /// The path of the device below `/dev`.
    pub(crate) device: &'static CStr,
    /// Length of each message from the daemon, in bytes.
    pub(crate) answer_len: usize,
    /// Length of the longest message in either direction, in bytes.
    pub(crate) message_len: usize,
    /// Reads the first message of a daemon. Returns `None` if the message is not a known
    /// registration.
    pub(crate) register: fn(message: &[u8]) -> Option<Registration>,
    /// Writes the confirmation of a registration, and returns its length in bytes. Returns `None`
    /// if the daemon expects no confirmation.
    pub(crate) confirm: fn(Registration, message: &mut [u8]) -> Option<usize>,
    /// Called when a daemon has registered. May sleep.
    pub(crate) connected: fn(Registration),
}

/// Memory for a message. `None` if the memory was moved away: dropping `None` does not call
/// `kfree()`, dropping an empty `KVec` does.
#[derive(Default)]
pub(crate) struct Message(Option<KVec<u8>>);

impl Message {
    /// Allocates memory for the longest message of `protocol`.
    ///
    /// Fails with `ENOMEM`.
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

/// The connection between a service and its daemon: the service asks, the daemon answers.
#[pin_data]
pub(crate) struct Transport {
    protocol: &'static Protocol,
    /// Wakes the service. `None` after the character device was revoked.
    #[pin]
    waker: Mutex<Option<Waker>>,
    listener: Option<Arc<dyn LateListener>>,
    /// Notified when there is a message for the daemon, or the device is gone. Since 7.3, dropping
    /// a `PollCondVarBox` does not wait for an RCU grace period.
    changed: PollCondVarBox,
    /// Memory into which a message from the daemon is copied first. Locked before `dialogue`.
    #[pin]
    inbox: Mutex<Message>,
    #[pin]
    dialogue: SpinLockIrq<Dialogue<Registration, Message>>,
}

/// Listens for the end of the daemon's work on a question that was given up ([`Late::Refused`]).
pub(crate) trait LateListener: Send + Sync {
    /// Called when the daemon is done with a question that ended with [`Lost::Working`]: the daemon
    /// has answered, begun to read the next question, or closed the device. Also called after the
    /// service is gone. Called with a spinlock held, so it must not sleep.
    fn daemon_finished(&self);
}

impl Transport {
    /// Creates a connection without a daemon. `waker` wakes the service.
    ///
    /// Fails with `ENOMEM`.
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

    /// Returns the daemon, if a daemon has registered, and whether the daemon can be asked. If not,
    /// the service is woken when the daemon can be asked.
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

    /// Sends the notifications that events require to the listener and the daemon. Returns whether
    /// the caller must wake the service.
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

    /// Applies an event that the daemon causes, and sends the notifications that the event
    /// requires. Called in process context.
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

    /// Takes the message that the daemon reads, and its length in bytes.
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

    /// Fails with `EBUSY` if another daemon has opened the device.
    fn open(&self) -> Result {
        Ok(self.event(Dialogue::open)?)
    }

    fn release(&self) {
        self.event(Dialogue::release);
    }

    /// Fails with `EINVAL` if the buffer is too small, or `EFAULT`. In both cases, the message can
    /// be read again.
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

    /// Makes all further calls of the daemon fail.
    fn revoke(&self) {
        // Drop the reference to the device: an open file must not keep a rescinded channel alive.
        let waker = self.waker.lock().take();
        drop(waker);
        self.event(Dialogue::revoke);
    }
}
