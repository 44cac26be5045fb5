// SPDX-License-Identifier: GPL-2.0

//! The dialogue between a service and its daemon: a state machine for one question at a time.
//!
//! This code calls no kernel code, and does not depend on the contents of the messages. So KUnit in
//! the kernel and programs in user space can test all sequences of its events.

#[cfg(any(test, CONFIG_KUNIT = "y"))]
mod model;

use core::mem;

/// The state of a character device, the daemon that has opened the device, and the service's
/// question to that daemon.
///
/// `R` is the type of a registration. `M` is memory for one message. Events move or swap the
/// memory, and never copy it.
#[derive(Clone, PartialEq)]
pub(crate) struct Dialogue<R, M> {
    state: State<R, M>,
    /// Number of times that the device was opened. Wraps.
    opened: u32,
    /// Effects of events since the last [`Dialogue::take_effects`].
    effects: Effects,
}

/// The state of a dialogue.
#[derive(Clone, PartialEq)]
enum State<R, M> {
    /// No question is pending. `Lost` is set if the last question failed and [`Dialogue::outcome`]
    /// has not reported the failure yet.
    Quiet(End<R, M>, Option<Lost>),
    /// The daemon has a question. `Late` applies if the service gives the question up.
    Pending(Daemon<R>, Late, Question<M>),
}

/// The state of the device and its daemon while no question is pending.
#[derive(Clone, PartialEq)]
enum End<R, M> {
    /// The device is gone for good. A daemon may still have it open.
    Revoked(Desk<M>),
    /// No daemon has opened the device.
    Absent(M),
    /// A daemon has opened the device, and has not registered.
    Connected(M),
    /// The daemon has registered, and has to read the confirmation.
    Confirming(Daemon<R>, Sent<M>),
    /// The daemon has registered and read any confirmation.
    Registered(Daemon<R>, Desk<M>),
}

/// What the daemon does with the last question that the service has given up.
#[derive(Clone, PartialEq)]
enum Desk<M> {
    /// Nothing: the daemon owes no answer.
    Free(M),
    /// The daemon has read the question, and owes the answer.
    Owing(M, Late),
    /// The daemon is reading the question. The reader has the memory.
    Reading(Late),
}

/// A message on its way to the daemon. The number is its length in bytes.
#[derive(Clone, PartialEq)]
enum Sent<M> {
    /// The message waits to be read. With `Some`, the daemon owes the answer to an earlier
    /// question.
    Unread(M, usize, Option<Late>),
    /// The daemon is reading the message. From the start of the read, the daemon owes no earlier
    /// answer: it may have skipped an answer.
    Reading(usize),
}

/// The state of a question.
#[derive(Clone, PartialEq)]
enum Question<M> {
    /// The daemon has not finished reading the question.
    Sent(Sent<M>),
    /// The daemon has read the question and has not answered.
    Asked(M),
    /// The daemon has answered. The memory holds the answer.
    Answered(M),
}

/// A daemon that has registered and has read any confirmation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Daemon<R> {
    /// How the daemon has registered.
    pub(crate) registration: R,
    /// Distinguishes the daemon from earlier daemons.
    number: u32,
}

/// The outcome of a question.
pub(crate) enum Outcome<R> {
    /// There is no outcome yet.
    Pending,
    /// The daemon has answered. The registration is that of this daemon.
    Answered(R),
    /// The daemon or the device has gone.
    Gone(Lost),
    /// The daemon did not answer in time.
    TimedOut(Lost),
}

/// How far the daemon has got with a question that gets no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The daemon has not read the question, and never will.
    Unread,
    /// The daemon has read or is reading the question, and may still act on the question.
    Working,
    /// The daemon has read the question and may have acted on it, but does nothing more: the
    /// daemon has answered too late, or has closed the device.
    Over,
}

/// What happens to the answer to a question that the service has given up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// The answer is dropped. The daemon's `write()` succeeds.
    Dropped,
    /// The daemon's `write()` fails with [`Refused::Invalid`]. [`Effects::finished`] is set.
    Refused,
}

/// Why a system call of the daemon fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The device is gone.
    Gone,
    /// Another daemon has opened the device.
    Busy,
    /// The message is invalid or unexpected, or the daemon's buffer is too small.
    Invalid,
}

/// Notifications that events require.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Effects {
    /// Wake the daemon: there is a message to read, or the device is gone.
    pub(crate) daemon: bool,
    /// Wake the service: there is an outcome, the daemon has changed, or the daemon can be asked
    /// again.
    pub(crate) service: bool,
    /// Tell the listener: the daemon is done with a question that ended with [`Lost::Working`] and
    /// [`Late::Refused`].
    pub(crate) finished: bool,
}

impl<R: Copy + PartialEq, M: Default> Dialogue<R, M> {
    /// Creates a dialogue without a daemon. `memory` is memory for a message.
    pub(crate) fn new(memory: M) -> Self {
        Self {
            state: State::Quiet(End::Absent(memory), None),
            opened: 0,
            effects: Effects::default(),
        }
    }

    /// Returns the notifications that the events since the last call require.
    pub(crate) fn take_effects(&mut self) -> Effects {
        mem::take(&mut self.effects)
    }

    /// Returns the daemon, if a daemon has registered and read any confirmation.
    pub(crate) fn daemon(&self) -> Option<Daemon<R>> {
        match self.state {
            State::Pending(daemon, ..) | State::Quiet(End::Registered(daemon, _), _) => {
                Some(daemon)
            }
            State::Quiet(..) => None,
        }
    }

    /// Returns whether the daemon can be asked. If not, [`Effects::service`] is set when the daemon
    /// can be asked.
    pub(crate) fn is_free(&self) -> bool {
        match &self.state {
            State::Quiet(End::Registered(_, desk), _) => !matches!(desk, Desk::Reading(_)),
            _ => false,
        }
    }

    /// Returns whether there is a message to read.
    ///
    /// Fails with [`Refused::Gone`] if the device is gone.
    pub(crate) fn is_readable(&self) -> Result<bool, Refused> {
        match &self.state {
            State::Quiet(End::Revoked(_), _) => Err(Refused::Gone),
            State::Quiet(End::Confirming(_, Sent::Unread(..)), _)
            | State::Pending(.., Question::Sent(Sent::Unread(..))) => Ok(true),
            _ => Ok(false),
        }
    }

    /// Sends the first `len` bytes of `message` to `daemon` as a question, and puts other memory
    /// into `message`. If `daemon` has gone, the next outcome is [`Lost::Unread`]. Does nothing
    /// while a question is pending.
    pub(crate) fn ask(
        &mut self,
        daemon: Option<Daemon<R>>,
        message: &mut M,
        len: usize,
        late: Late,
    ) {
        let State::Quiet(end, lost) = &mut self.state else {
            return;
        };
        let (daemon, memory, owed) = match end {
            End::Registered(ready, Desk::Free(memory)) if Some(*ready) == daemon => {
                (*ready, memory, None)
            }
            End::Registered(ready, Desk::Owing(memory, late)) if Some(*ready) == daemon => {
                (*ready, memory, Some(*late))
            }
            _ => {
                // The service learns of the daemon's end separately.
                *lost = Some(Lost::Unread);
                return;
            }
        };
        mem::swap(memory, message);
        let question = Question::Sent(Sent::Unread(mem::take(memory), len, owed));
        self.state = State::Pending(daemon, late, question);
        self.effects.daemon = true;
    }

    /// Takes the outcome of the question. Swaps an answer into `message`. If there is no answer and
    /// `is_over` is set, gives the question up.
    pub(crate) fn outcome(&mut self, message: &mut M, is_over: bool) -> Outcome<R> {
        match &mut self.state {
            State::Quiet(_, lost) => match lost.take() {
                Some(lost) => Outcome::Gone(lost),
                // The service waits although no question was asked. Do not let it wait for ever.
                None if is_over => Outcome::TimedOut(Lost::Unread),
                None => Outcome::Pending,
            },
            State::Pending(daemon, _, Question::Answered(answer)) => {
                mem::swap(answer, message);
                let (daemon, desk) = (*daemon, Desk::Free(mem::take(answer)));
                self.state = State::Quiet(End::Registered(daemon, desk), None);
                Outcome::Answered(daemon.registration)
            }
            State::Pending(..) if is_over => Outcome::TimedOut(self.give_up()),
            State::Pending(..) => Outcome::Pending,
        }
    }

    /// Gives the question up. Returns how far the daemon has got with the question.
    pub(crate) fn give_up(&mut self) -> Lost {
        let (end, lost) = match &mut self.state {
            State::Quiet(_, lost) => return lost.take().unwrap_or(Lost::Unread),
            State::Pending(daemon, late, question) => {
                let (desk, lost) = question.give_up(*late);
                (End::Registered(*daemon, desk), lost)
            }
        };
        self.state = State::Quiet(end, None);
        lost
    }

    /// Opens the device for a daemon.
    ///
    /// Fails with [`Refused::Busy`] if another daemon has opened the device, or [`Refused::Gone`].
    pub(crate) fn open(&mut self) -> Result<(), Refused> {
        let State::Quiet(end, _) = &mut self.state else {
            return Err(Refused::Busy);
        };
        match end {
            End::Absent(memory) => {
                *end = End::Connected(mem::take(memory));
                self.opened = self.opened.wrapping_add(1);
                Ok(())
            }
            End::Revoked(_) => Err(Refused::Gone),
            _ => Err(Refused::Busy),
        }
    }

    /// Closes the device. The kernel calls this after the last read has ended.
    pub(crate) fn release(&mut self) {
        self.settle();
        if matches!(self.state, State::Quiet(End::Revoked(_), _)) {
            return;
        }
        let (desk, lost) = self.lose();
        let lost = lost.map(|lost| match lost {
            Lost::Working => Lost::Over,
            lost => lost,
        });
        let end = match desk {
            Desk::Free(memory) | Desk::Owing(memory, _) => End::Absent(memory),
            // Cannot happen: a read holds the file open. The reader has the memory, so the
            // device cannot be used again.
            Desk::Reading(_) => End::Revoked(desk),
        };
        self.state = State::Quiet(end, lost);
        self.effects.service = true;
    }

    /// Revokes the device: from now on, all calls of the daemon except `close()` fail.
    pub(crate) fn revoke(&mut self) {
        let (desk, lost) = self.lose();
        self.state = State::Quiet(End::Revoked(desk), lost);
        self.effects.daemon = true;
    }

    /// Begins a read of the message that waits for the daemon. Returns the memory and the length of
    /// the message in bytes, or `None` if there is no message. [`Dialogue::end_read`] takes the
    /// memory back.
    ///
    /// Fails with [`Refused::Invalid`] if the message is longer than `room` bytes, or
    /// [`Refused::Gone`].
    pub(crate) fn begin_read(&mut self, room: usize) -> Result<Option<(M, usize)>, Refused> {
        self.is_readable()?;
        let (State::Quiet(End::Confirming(_, sent), _) | State::Pending(.., Question::Sent(sent))) =
            &mut self.state
        else {
            return Ok(None);
        };
        match sent {
            Sent::Unread(_, len, _) if room < *len => Err(Refused::Invalid),
            Sent::Unread(message, len, owed) => {
                self.effects.finished |= *owed == Some(Late::Refused);
                let unread = (mem::take(message), *len);
                *sent = Sent::Reading(unread.1);
                Ok(Some(unread))
            }
            Sent::Reading(_) => Ok(None),
        }
    }

    /// Ends a read. If the daemon could not read the message (`was_read` is false), the message
    /// waits to be read again, unless the service has given the question up.
    pub(crate) fn end_read(&mut self, message: M, was_read: bool) {
        match &mut self.state {
            State::Quiet(End::Confirming(_, sent), _)
            | State::Pending(.., Question::Sent(sent))
                if !was_read =>
            {
                if let Sent::Reading(len) = *sent {
                    *sent = Sent::Unread(message, len, None);
                    self.effects.daemon = true;
                }
            }
            State::Pending(.., question @ Question::Sent(Sent::Reading(_))) => {
                *question = Question::Asked(message);
            }
            State::Quiet(end @ End::Confirming(..), _) => {
                if let End::Confirming(daemon, Sent::Reading(_)) = *end {
                    *end = End::Registered(daemon, Desk::Free(message));
                    self.effects.service = true;
                }
            }
            State::Quiet(End::Registered(_, desk) | End::Revoked(desk), _) => {
                if let Desk::Reading(late) = *desk {
                    // The service no longer waits for the answer, but the daemon does not know
                    // that.
                    *desk = Desk::Owing(message, late);
                    self.effects.service = true;
                    if !was_read {
                        self.settle();
                    }
                }
            }
            _ => {}
        }
    }

    /// Handles a message that the daemon writes: a registration if the daemon has just opened the
    /// device, otherwise an answer. If the message is kept, swaps other memory into `message`.
    ///
    /// `register` reads a registration, and returns `None` if the message is not a valid
    /// registration. `register` may write a confirmation to the memory of the message, and then
    /// also returns the length of the confirmation in bytes.
    ///
    /// Returns the registration, if the message is a registration. Fails with [`Refused::Invalid`]
    /// if the message is unexpected or not valid, or [`Refused::Gone`].
    pub(crate) fn write(
        &mut self,
        message: &mut M,
        register: impl FnOnce(&mut M) -> Option<(R, Option<usize>)>,
    ) -> Result<Option<R>, Refused> {
        let owed = self.settle();
        match &mut self.state {
            State::Pending(.., question) => {
                if let Question::Asked(memory) = question {
                    mem::swap(memory, message);
                    *question = Question::Answered(mem::take(memory));
                    self.effects.service = true;
                    return Ok(None);
                }
            }
            State::Quiet(end, _) => match end {
                End::Revoked(_) => return Err(Refused::Gone),
                End::Connected(memory) => {
                    let (registration, confirmation) = register(message).ok_or(Refused::Invalid)?;
                    let daemon = Daemon {
                        registration,
                        number: self.opened,
                    };
                    *end = match confirmation {
                        None => End::Registered(daemon, Desk::Free(mem::take(memory))),
                        Some(len) => {
                            mem::swap(memory, message);
                            End::Confirming(daemon, Sent::Unread(mem::take(memory), len, None))
                        }
                    };
                    self.effects.daemon = true;
                    self.effects.service = true;
                    return Ok(Some(registration));
                }
                _ => {}
            },
        }
        match owed {
            Some(Late::Dropped) => Ok(None),
            Some(Late::Refused) | None => Err(Refused::Invalid),
        }
    }

    /// Ends the daemon's debt. Returns what happens to the answer that the daemon owed, if any.
    fn settle(&mut self) -> Option<Late> {
        let owed = match &mut self.state {
            State::Pending(.., Question::Sent(Sent::Unread(_, _, owed))) => owed.take(),
            State::Quiet(End::Registered(_, desk) | End::Revoked(desk), _) => desk.settle(),
            _ => None,
        };
        self.effects.finished |= owed == Some(Late::Refused);
        owed
    }

    /// Gives up the pending question, if any. Returns the memory with the answer that is owed, and
    /// how the last question failed, if it failed and its outcome was not taken.
    fn lose(&mut self) -> (Desk<M>, Option<Lost>) {
        match &mut self.state {
            State::Quiet(end, lost) => (end.take_desk(), *lost),
            State::Pending(_, late, question) => {
                let (desk, lost) = question.give_up(*late);
                (desk, Some(lost))
            }
        }
    }
}

impl<R, M: Default> End<R, M> {
    /// Takes the memory and the debt out.
    fn take_desk(&mut self) -> Desk<M> {
        match self {
            Self::Absent(memory)
            | Self::Connected(memory)
            | Self::Confirming(_, Sent::Unread(memory, ..)) => Desk::Free(mem::take(memory)),
            Self::Confirming(_, Sent::Reading(_)) => Desk::Reading(Late::Dropped),
            Self::Registered(_, desk) | Self::Revoked(desk) => match desk {
                Desk::Free(memory) => Desk::Free(mem::take(memory)),
                Desk::Owing(memory, late) => Desk::Owing(mem::take(memory), *late),
                Desk::Reading(late) => Desk::Reading(*late),
            },
        }
    }
}

impl<M: Default> Desk<M> {
    fn settle(&mut self) -> Option<Late> {
        let Self::Owing(memory, late) = self else {
            return None;
        };
        let late = *late;
        *self = Self::Free(mem::take(memory));
        Some(late)
    }
}

impl<M: Default> Question<M> {
    /// Takes the memory out. Returns the daemon's state from now on, and how the question failed.
    fn give_up(&mut self, late: Late) -> (Desk<M>, Lost) {
        match self {
            Self::Sent(Sent::Unread(memory, _, None)) => {
                (Desk::Free(mem::take(memory)), Lost::Unread)
            }
            Self::Sent(Sent::Unread(memory, _, Some(owed))) => {
                (Desk::Owing(mem::take(memory), *owed), Lost::Unread)
            }
            Self::Sent(Sent::Reading(_)) => (Desk::Reading(late), Lost::Working),
            Self::Asked(memory) => (Desk::Owing(mem::take(memory), late), Lost::Working),
            Self::Answered(memory) => (Desk::Free(mem::take(memory)), Lost::Over),
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT = "y"))]
#[cfg_attr(not(test), kernel::prelude::kunit_tests(hv_utils_dialogue))]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_of_events_keeps_the_rules() {
        // A change of the state machine changes the number of its states.
        assert_eq!(model::visit_all(), Ok(1347));
    }

    /// A dialogue with a daemon that is ready.
    fn registered() -> Dialogue<(), u8> {
        let mut dialogue = Dialogue::new(1);
        let _ = dialogue.open();
        let _ = dialogue.write(&mut 2, |_| Some(((), None)));
        dialogue.take_effects();
        dialogue
    }

    #[test]
    fn a_second_question_waits_for_the_outcome_of_the_first() {
        let mut dialogue = registered();
        let daemon = dialogue.daemon();
        dialogue.ask(daemon, &mut 3, 1, Late::Dropped);
        dialogue.take_effects();
        let mut second = 4;
        dialogue.ask(daemon, &mut second, 1, Late::Dropped);
        assert_eq!(second, 4);
        assert!(dialogue.take_effects() == Effects::default());
        assert_eq!(dialogue.begin_read(1), Ok(Some((3, 1))));
    }

    #[test]
    fn nobody_waits_for_a_question_that_was_never_asked() {
        let mut dialogue = registered();
        assert!(matches!(dialogue.outcome(&mut 3, false), Outcome::Pending));
        let outcome = dialogue.outcome(&mut 3, true);
        assert!(matches!(outcome, Outcome::TimedOut(Lost::Unread)));
    }

    #[test]
    fn a_read_that_never_began_changes_nothing() {
        for was_read in [false, true] {
            let mut dialogue = Dialogue::<(), u8>::new(1);
            let before = dialogue.clone();
            dialogue.end_read(9, was_read);
            assert!(dialogue == before);
            let mut dialogue = registered();
            let before = dialogue.clone();
            dialogue.end_read(9, was_read);
            assert!(dialogue == before);
        }
        let mut dialogue = Dialogue::new(1);
        let _ = dialogue.open();
        // A confirmation waits to be read.
        let _ = dialogue.write(&mut 2, |_| Some(((), Some(1))));
        let before = dialogue.clone();
        dialogue.end_read(9, true);
        assert!(dialogue == before);
        assert_eq!(dialogue.begin_read(1), Ok(Some((2, 1))));
    }

    #[test]
    fn a_file_that_closes_amid_a_read_takes_the_device_with_it() {
        let mut dialogue = registered();
        let daemon = dialogue.daemon();
        dialogue.ask(daemon, &mut 3, 1, Late::Dropped);
        assert_eq!(dialogue.begin_read(1), Ok(Some((3, 1))));
        dialogue.release();
        assert!(dialogue.take_effects().service);
        assert!(matches!(
            dialogue.outcome(&mut 4, false),
            Outcome::Gone(Lost::Over)
        ));
        assert_eq!(dialogue.open(), Err(Refused::Gone));
        dialogue.end_read(3, true);
        assert_eq!(dialogue.open(), Err(Refused::Gone));
    }
}
