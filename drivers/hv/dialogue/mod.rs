// SPDX-License-Identifier: GPL-2.0

//! One question at a time to a daemon: where it is, and what becomes of its answer.
//!
//! Plain code, which knows neither the kernel nor the messages. So all sequences of its events are tested,
//! by KUnit in the kernel and by `rustc --test` on the build machine.

#[cfg(any(test, CONFIG_KUNIT = "y"))]
mod model;

use core::mem;

/// A device, the daemon that has opened it, and the service's question to that daemon.
///
/// `R` is how daemons register. `M` is memory for one message: each event moves or swaps it, none copies.
#[derive(Clone, PartialEq)]
pub(crate) struct Dialogue<R, M> {
    state: State<R, M>,
    /// Counts how often the device was opened.
    opened: u32,
    effects: Effects,
}

#[derive(Clone, PartialEq)]
enum State<R, M> {
    /// No question is pending. `Lost` is there if the last question failed. [`Dialogue::outcome`] takes it.
    Quiet(End<R, M>, Option<Lost>),
    /// The daemon has a question. `Late` says what happens to the answer if the service gives the question
    /// up.
    Pending(Daemon<R>, Late, Question<M>),
}

/// Who is at the other end of the device.
#[derive(Clone, PartialEq)]
enum End<R, M> {
    /// The device is gone, and does not come back. A file may be open still.
    Revoked(Desk<M>),
    /// Nobody has it open.
    Absent(M),
    /// Somebody has opened it.
    Connected(M),
    /// The daemon has registered. It has this confirmation to read.
    Confirming(Daemon<R>, Sent<M>),
    /// The daemon is ready.
    Registered(Daemon<R>, Desk<M>),
}

/// The answer that a daemon owes for an earlier question, which the service gave up.
#[derive(Clone, PartialEq)]
enum Desk<M> {
    /// Nothing.
    Free(M),
    /// It has read that question, and owes the answer.
    Owing(M, Late),
    /// It is reading that question.
    Reading(Late),
}

/// A message on its way to the daemon, and its length in bytes.
#[derive(Clone, PartialEq)]
enum Sent<M> {
    /// It waits to be read. The daemon may owe the answer to an earlier question.
    Unread(M, usize, Option<Late>),
    /// It is being read. A daemon that begins to read owes nothing any more: it may have skipped an answer.
    Reading(usize),
}

#[derive(Clone, PartialEq)]
enum Question<M> {
    Sent(Sent<M>),
    /// It was read; the answer is due.
    Asked(M),
    /// The memory holds the answer, for the service to take.
    Answered(M),
}

/// A daemon that is ready.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Daemon<R> {
    /// How it has registered.
    pub(crate) registration: R,
    /// Tells it from those before it.
    number: u32,
}

/// What became of the service's question.
pub(crate) enum Outcome<R> {
    /// Nothing yet.
    Pending,
    /// The daemon, which has registered so, has answered.
    Answered(R),
    /// The daemon has gone.
    Gone(Lost),
    /// The daemon takes too long.
    TimedOut(Lost),
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

/// What becomes of the answer to a question that was given up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// It is dropped, and the daemon does not notice.
    Dropped,
    /// The daemon gets an error, and [`Effects::finished`] is set.
    Refused,
}

/// Why a call of the daemon fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The device is gone.
    Gone,
    /// Another daemon has it.
    Busy,
    /// The message, or the room for one, is wrong.
    Invalid,
}

/// Who has to be told of events.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Effects {
    /// The daemon: there is something to read, or the device is gone.
    pub(crate) daemon: bool,
    /// The service: there is an outcome, another daemon, or the way is free.
    pub(crate) service: bool,
    /// The daemon is done with a question of [`Late::Refused`] that ended with [`Lost::Working`].
    pub(crate) finished: bool,
}

impl<R: Copy + PartialEq, M: Default> Dialogue<R, M> {
    /// Nobody has opened the device.
    pub(crate) fn new(memory: M) -> Self {
        Self {
            state: State::Quiet(End::Absent(memory), None),
            opened: 0,
            effects: Effects::default(),
        }
    }

    /// Returns who has to be told of what happened since the last call.
    pub(crate) fn take_effects(&mut self) -> Effects {
        mem::take(&mut self.effects)
    }

    /// The daemon, if it is ready.
    pub(crate) fn daemon(&self) -> Option<Daemon<R>> {
        match self.state {
            State::Pending(daemon, ..) | State::Quiet(End::Registered(daemon, _), _) => {
                Some(daemon)
            }
            State::Quiet(..) => None,
        }
    }

    /// Returns whether the daemon can be asked. If not, the service is told when it can.
    pub(crate) fn is_free(&self) -> bool {
        match &self.state {
            State::Quiet(End::Registered(_, desk), _) => !matches!(desk, Desk::Reading(_)),
            _ => false,
        }
    }

    /// Returns whether there is something to read.
    pub(crate) fn is_readable(&self) -> Result<bool, Refused> {
        match &self.state {
            State::Quiet(End::Revoked(_), _) => Err(Refused::Gone),
            State::Quiet(End::Confirming(_, Sent::Unread(..)), _)
            | State::Pending(.., Question::Sent(Sent::Unread(..))) => Ok(true),
            _ => Ok(false),
        }
    }

    /// Sends the first `len` bytes of `message` to `daemon`. Other memory takes its place. If that daemon has
    /// gone, the next outcome is [`Lost::Unread`]. Does nothing while a question is pending.
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
                // The service is told of that daemon's end, or has been.
                *lost = Some(Lost::Unread);
                return;
            }
        };
        mem::swap(memory, message);
        let question = Question::Sent(Sent::Unread(mem::take(memory), len, owed));
        self.state = State::Pending(daemon, late, question);
        self.effects.daemon = true;
    }

    /// Takes the outcome of the question. Puts an answer into `message`. Gives up a question without an
    /// answer if its time is over.
    pub(crate) fn outcome(&mut self, message: &mut M, is_over: bool) -> Outcome<R> {
        match &mut self.state {
            State::Quiet(_, lost) => match lost.take() {
                Some(lost) => Outcome::Gone(lost),
                // Nobody waits for a question that was never asked: it would be for ever.
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

    /// The service does not wait for the answer any more. Returns how far its question came.
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

    /// A daemon opens the device: one at a time.
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

    /// The daemon closes the device. The kernel calls this after the last read has ended.
    pub(crate) fn release(&mut self) {
        self.settle();
        let lost = self.lose().map(|lost| match lost {
            Lost::Working => Lost::Over,
            lost => lost,
        });
        if let State::Quiet(end, of) = &mut self.state {
            match end.take_desk() {
                desk if matches!(end, End::Revoked(_)) => *end = End::Revoked(desk),
                Desk::Free(memory) | Desk::Owing(memory, _) => {
                    (*end, *of) = (End::Absent(memory), lost);
                    self.effects.service = true;
                }
                // Cannot happen: a read holds the file open. The reader would have the memory.
                desk @ Desk::Reading(_) => *end = End::Revoked(desk),
            }
        }
    }

    /// The device goes away.
    pub(crate) fn revoke(&mut self) {
        let lost = self.lose();
        if let State::Quiet(end, _) = &mut self.state {
            let end = End::Revoked(end.take_desk());
            self.state = State::Quiet(end, lost);
        }
        self.effects.daemon = true;
    }

    /// The daemon begins to read the message that waits for it, if there is one, which has to fit into
    /// `room` bytes. [`Dialogue::end_read`] takes its memory back.
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

    /// The daemon has read `message`. If not, that message waits to be read again.
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
                    // The service does not wait for the answer, but the daemon cannot know.
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

    /// The daemon writes `message`: a registration if it has just opened the device, else an answer.
    /// Other memory takes the place of what is kept.
    ///
    /// `register` returns how a daemon with this message registers, if it does. It may write a
    /// confirmation in place of the message: then it also returns its length in bytes. A registration is
    /// returned.
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

    /// The daemon owes no answer any more. Returns what becomes of the one that it owed.
    fn settle(&mut self) -> Option<Late> {
        let owed = match &mut self.state {
            State::Pending(.., Question::Sent(Sent::Unread(_, _, owed))) => owed.take(),
            State::Quiet(End::Registered(_, desk) | End::Revoked(desk), _) => desk.settle(),
            _ => None,
        };
        self.effects.finished |= owed == Some(Late::Refused);
        owed
    }

    /// Returns how the last question was lost: the one that is pending is lost by this.
    fn lose(&mut self) -> Option<Lost> {
        match self.state {
            State::Quiet(_, lost) => lost,
            State::Pending(..) => Some(self.give_up()),
        }
    }
}

impl<R, M: Default> End<R, M> {
    /// Takes the memory out, and what is owed.
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
    /// Takes the memory out. Returns what the daemon goes on with, and how the question is lost.
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
        // A change of the states changes their number.
        assert_eq!(model::visit_all(), Ok(1347));
    }
}
