// SPDX-License-Identifier: GPL-2.0

//! A model of a service and its daemons. Visits each state that a sequence of events can reach, and
//! checks the rules in each state.

use super::*;

#[cfg(not(test))]
use kernel::prelude::*;

/// The result of a check. The error names the broken rule.
type Check<T = ()> = core::result::Result<T, &'static str>;

/// Length of all messages to the daemon, in bytes.
const LEN: usize = 8;

/// Memory for one message.
#[derive(Clone, Copy, Default, PartialEq)]
struct Memory {
    /// Identity of the memory, from 1 to 3. The default value has 0.
    number: u8,
    /// The contents: one of the constants below, or the sum of a question and `ANSWER`.
    text: u8,
}

const NOTHING: u8 = 0;
const CONFIRMATION: u8 = 1;
/// The last question.
const LAST: u8 = 2;
/// An earlier question.
const EARLIER: u8 = 3;
/// Distance from a question to its answer.
const ANSWER: u8 = 4;

/// An event of the dialogue. `Look` stands for the service's call of [`Dialogue::daemon`].
#[derive(Clone, Copy)]
enum Event {
    Ask(Late),
    Look,
    Outcome {
        is_over: bool,
    },
    GiveUp,
    Open,
    Release,
    Revoke,
    BeginRead {
        room: usize,
    },
    EndRead {
        was_read: bool,
    },
    /// A daemon writes a message. `registers` is `None` if the message is not a valid registration.
    Write {
        registers: Option<Confirmed>,
    },
}

/// Whether a registration is confirmed.
type Confirmed = bool;

const EVENTS: [Event; 16] = [
    Event::Ask(Late::Dropped),
    Event::Ask(Late::Refused),
    Event::Look,
    Event::Outcome { is_over: false },
    Event::Outcome { is_over: true },
    Event::GiveUp,
    Event::Open,
    Event::Release,
    Event::Revoke,
    Event::BeginRead { room: LEN },
    Event::BeginRead { room: LEN - 1 },
    Event::EndRead { was_read: true },
    Event::EndRead { was_read: false },
    Event::Write { registers: None },
    Event::Write {
        registers: Some(true),
    },
    Event::Write {
        registers: Some(false),
    },
];

/// Progress of the daemon that has opened the device.
#[derive(Clone, Copy, PartialEq)]
enum Contact {
    None,
    Connected,
    Confirming,
    Registered,
}

/// The question whose outcome the service waits for.
#[derive(Clone, Copy, PartialEq)]
struct Asked {
    late: Late,
    progress: Progress,
    /// The question gets no answer: it was meant for an earlier daemon, the daemon has closed the
    /// device, or the device is gone.
    lost: Option<Lost>,
}

#[derive(Clone, Copy, PartialEq)]
enum Progress {
    Unread,
    Read,
    Answered,
}

impl Asked {
    /// Returns how the question has failed, or would fail now.
    fn lost(self) -> Lost {
        self.lost.unwrap_or(match self.progress {
            Progress::Unread => Lost::Unread,
            Progress::Read => Lost::Working,
            Progress::Answered => Lost::Over,
        })
    }
}

/// A dialogue between a service and daemons, with what the model knows of both.
#[derive(Clone, PartialEq)]
struct World {
    dialogue: Dialogue<(), Memory>,
    service: Memory,
    inbox: Memory,
    /// The message that the daemon is reading.
    reading: Option<(Memory, Late)>,
    /// The message that the daemon has read last, while its answer is due.
    read: Option<(u8, Late)>,
    asked: Option<Asked>,
    /// A question with [`Late::Refused`] has not come to its end.
    is_unfinished: bool,
    contact: Contact,
    is_revoked: bool,
    /// The daemon that the service has last seen. It may have gone.
    known: Option<Daemon<()>>,
}

/// Fails with `rule` unless `is_true` is set.
fn check(is_true: bool, rule: &'static str) -> Check {
    is_true.then_some(()).ok_or(rule)
}

impl World {
    fn new() -> Self {
        let memory = |number| Memory {
            number,
            text: NOTHING,
        };
        Self {
            dialogue: Dialogue::new(memory(1)),
            service: memory(2),
            inbox: memory(3),
            reading: None,
            read: None,
            asked: None,
            is_unfinished: false,
            contact: Contact::None,
            is_revoked: false,
            known: None,
        }
    }

    /// Lets `event` happen if it is possible, and checks its result. Returns whether the event was
    /// possible.
    fn happen(&mut self, event: Event) -> Check<bool> {
        match event {
            Event::Ask(Late::Refused) if self.is_unfinished => return Ok(false),
            Event::Ask(late) if self.asked.is_none() => self.ask(late)?,
            Event::Look => self.known = self.dialogue.daemon(),
            Event::Outcome { is_over: true } if self.asked.is_none() => return Ok(false),
            Event::Outcome { is_over } => self.outcome(is_over)?,
            Event::GiveUp => {
                let Some(asked) = self.asked else {
                    return Ok(false);
                };
                check(self.dialogue.give_up() == asked.lost(), "give up")?;
                self.end(asked.lost())?;
            }
            Event::Open => {
                let expected = match (self.is_revoked, self.is_open()) {
                    (true, _) => Err(Refused::Gone),
                    (_, true) => Err(Refused::Busy),
                    _ => Ok(()),
                };
                // Keep the number of states finite: only consecutive daemons must differ.
                self.dialogue.opened %= 2;
                check(self.dialogue.open() == expected, "open")?;
                if expected.is_ok() {
                    self.contact = Contact::Connected;
                }
            }
            Event::Release if self.is_open() && self.reading.is_none() => {
                self.dialogue.release();
                (self.contact, self.read) = (Contact::None, None);
                if let Some(asked) = &mut self.asked {
                    asked.lost.get_or_insert(match asked.progress {
                        Progress::Unread => Lost::Unread,
                        Progress::Read | Progress::Answered => Lost::Over,
                    });
                }
            }
            Event::Revoke => {
                self.dialogue.revoke();
                self.is_revoked = true;
                if let Some(asked) = &mut self.asked {
                    asked.lost = Some(asked.lost());
                }
            }
            Event::BeginRead { room } if self.is_open() => self.begin_read(room)?,
            Event::EndRead { was_read } => {
                let Some((message, late)) = self.reading.take() else {
                    return Ok(false);
                };
                self.dialogue.end_read(message, was_read);
                match (message.text, was_read) {
                    (CONFIRMATION, true) => self.contact = Contact::Registered,
                    (text, true) => self.read = Some((text, late)),
                    (LAST, false) => self.proceed(Progress::Unread),
                    (_, false) => {}
                }
            }
            Event::Write { registers } if self.is_open() => self.write(registers)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn ask(&mut self, late: Late) -> Check {
        for text in [
            self.reading.as_mut().map(|(message, _)| &mut message.text),
            self.read.as_mut().map(|(text, _)| text),
        ] {
            if let Some(text) = text.filter(|text| **text == LAST) {
                *text = EARLIER;
            }
        }
        self.service.text = LAST;
        self.is_unfinished |= late == Late::Refused;
        let can_ask = self.is_free() && self.known == self.dialogue.daemon();
        self.asked = Some(Asked {
            late,
            progress: Progress::Unread,
            lost: (!can_ask).then_some(Lost::Unread),
        });
        self.dialogue.ask(self.known, &mut self.service, LEN, late);
        check(self.is_pending() == can_ask, "ask")
    }

    fn is_open(&self) -> bool {
        self.contact != Contact::None
    }

    /// Returns the question, unless it has failed.
    fn question(&mut self) -> Option<&mut Asked> {
        self.asked.as_mut().filter(|asked| asked.lost.is_none())
    }

    fn proceed(&mut self, progress: Progress) {
        if let Some(asked) = self.question() {
            asked.progress = progress;
        }
    }

    fn is_registered(&self) -> bool {
        self.contact == Contact::Registered && !self.is_revoked
    }

    fn is_free(&mut self) -> bool {
        self.is_registered() && self.reading.is_none() && self.question().is_none()
    }

    /// Returns the expected result of [`Dialogue::is_readable`].
    fn is_readable(&mut self) -> core::result::Result<bool, Refused> {
        if self.is_revoked {
            return Err(Refused::Gone);
        }
        let is_confirming = self.contact == Contact::Confirming && self.reading.is_none();
        let question = self.question();
        Ok(is_confirming || question.is_some_and(|asked| asked.progress == Progress::Unread))
    }

    fn outcome(&mut self, is_over: bool) -> Check {
        let outcome = self.dialogue.outcome(&mut self.service, is_over);
        let Some(asked) = self.asked else {
            return check(matches!(outcome, Outcome::Pending), "two outcomes");
        };
        let lost = match (outcome, asked.lost) {
            (Outcome::Gone(lost), Some(_)) => lost,
            (Outcome::Answered(()), None) if asked.progress == Progress::Answered => {
                check(self.service.text == LAST + ANSWER, "takes another answer")?;
                return self.end(Lost::Over);
            }
            (Outcome::TimedOut(lost), None) if is_over => lost,
            (Outcome::Pending, None) if !is_over => {
                return check(asked.progress != Progress::Answered, "answer not taken");
            }
            _ => return Err("another outcome"),
        };
        let is_right = asked.lost.is_some() || asked.progress != Progress::Answered;
        check(is_right && lost == asked.lost(), "lost in another way")?;
        self.end(lost)
    }

    /// The service no longer waits. With any failure except [`Lost::Working`], the question has
    /// come to its end.
    fn end(&mut self, lost: Lost) -> Check {
        match self.asked.take() {
            Some(asked) if asked.late == Late::Refused && lost != Lost::Working => self.finish(),
            _ => Ok(()),
        }
    }

    fn finish(&mut self) -> Check {
        check(mem::take(&mut self.is_unfinished), "ended twice")
    }

    fn begin_read(&mut self, room: usize) -> Check {
        let late = self.asked.map_or(Late::Dropped, |asked| asked.late);
        let is_readable = self.is_readable();
        match self.dialogue.begin_read(room) {
            Ok(None) => check(is_readable == Ok(false), "waits"),
            Err(refused) => check(
                match refused {
                    Refused::Gone => self.is_revoked,
                    Refused::Invalid => room < LEN,
                    Refused::Busy => false,
                },
                "read",
            ),
            Ok(Some((message, len))) => {
                check(is_readable == Ok(true), "read twice")?;
                check(room >= len && len == LEN, "length")?;
                check(
                    match message.text {
                        LAST => self.asked.is_some(),
                        text => text == CONFIRMATION,
                    },
                    "read what was given up",
                )?;
                if message.text == LAST {
                    self.proceed(Progress::Read);
                }
                self.reading = Some((message, late));
                self.read = None;
                Ok(())
            }
        }
    }

    fn write(&mut self, registers: Option<Confirmed>) -> Check {
        let is_first = self.contact == Contact::Connected;
        let read = self.read.take();
        self.inbox.text = read.map_or(NOTHING, |(text, _)| text + ANSWER);
        let result = self.dialogue.write(&mut self.inbox, |message| {
            message.text = CONFIRMATION;
            registers.map(|is_confirmed| ((), is_confirmed.then_some(LEN)))
        });
        let expected = match (read, registers) {
            _ if self.is_revoked => Err(Refused::Gone),
            (_, Some(is_confirmed)) if is_first => {
                self.contact = match is_confirmed {
                    true => Contact::Confirming,
                    false => Contact::Registered,
                };
                Ok(Some(()))
            }
            (Some((LAST, _)), _) if self.question().is_some() => {
                self.proceed(Progress::Answered);
                Ok(None)
            }
            (Some((_, Late::Dropped)), _) => Ok(None),
            (Some((_, Late::Refused)) | None, _) => Err(Refused::Invalid),
        };
        check(result == expected, "write")
    }

    fn is_pending(&self) -> bool {
        matches!(self.dialogue.state, State::Pending(..))
    }

    /// Returns what a service can wait for: whether there is an outcome, the daemon, and whether
    /// the daemon can be asked.
    fn for_service(&self) -> (bool, Option<Daemon<()>>, bool) {
        let outcome = self.dialogue.clone().outcome(&mut Memory::default(), false);
        let has_outcome = !matches!(outcome, Outcome::Pending);
        (has_outcome, self.dialogue.daemon(), self.dialogue.is_free())
    }

    /// Lets `event` happen as `happen()` does, and checks the rules that hold for all events.
    fn step(&mut self, event: Event) -> Check<bool> {
        let before = (self.for_service(), self.dialogue.is_readable());
        if !self.happen(event)? {
            return Ok(false);
        }
        let Effects {
            daemon,
            service,
            finished,
        } = self.dialogue.take_effects();
        if finished {
            self.finish()?;
        }
        let is_of_daemon = matches!(
            event,
            Event::Open
                | Event::Release
                | Event::BeginRead { .. }
                | Event::EndRead { .. }
                | Event::Write { .. }
        );
        check(
            service || !is_of_daemon || self.for_service() == before.0,
            "service not told",
        )?;
        let is_readable = self.dialogue.is_readable();
        check(
            daemon || is_readable == before.1 || is_readable == Ok(false),
            "daemon not told",
        )?;
        check(is_readable == self.is_readable(), "readable")?;
        check(self.dialogue.is_free() == self.is_free(), "free")?;
        let daemon = self.dialogue.daemon();
        check(daemon.is_some() == self.is_registered(), "registered")?;
        let is_over = self.asked.is_none() && !self.is_open();
        check(!(is_over && self.is_unfinished), "never finished")?;
        self.tidy()?;
        Ok(true)
    }

    /// Checks that each memory is in exactly one place. Resets state that no later event reads, so
    /// that equivalent states are equal.
    fn tidy(&mut self) -> Check {
        let Self {
            dialogue,
            service,
            inbox,
            reading,
            ..
        } = self;
        let is_message = reading.is_some()
            || matches!(
                dialogue.state,
                State::Pending(..) | State::Quiet(End::Confirming(..), _)
            );
        let reading = reading.as_mut().map(|(message, _)| message);
        let ((Some(third), None) | (None, Some(third))) = (dialogue.memory(), reading) else {
            return Err("memory");
        };
        let numbers = [service.number, inbox.number, third.number];
        check((1..=3).all(|number| numbers.contains(&number)), "memory")?;
        if !is_message {
            third.text = NOTHING;
        }
        *service = Memory {
            number: 1,
            text: NOTHING,
        };
        *inbox = Memory {
            number: 2,
            text: NOTHING,
        };
        third.number = 3;
        Ok(())
    }

    /// Checks that the next daemon can be asked, and answers, whatever has happened.
    fn recovers(mut self) -> Check {
        if self.is_revoked {
            return Ok(());
        }
        for event in [
            Event::EndRead { was_read: true },
            Event::GiveUp,
            Event::Release,
            Event::Open,
            Event::Write {
                registers: Some(true),
            },
            Event::BeginRead { room: LEN },
            Event::EndRead { was_read: true },
            Event::Look,
            Event::Ask(Late::Refused),
            Event::BeginRead { room: LEN },
            Event::EndRead { was_read: true },
            Event::Write {
                registers: Some(true),
            },
        ] {
            self.step(event)?;
        }
        let outcome = self.dialogue.outcome(&mut self.service, false);
        check(matches!(outcome, Outcome::Answered(())), "no new daemon")
    }
}

impl Dialogue<(), Memory> {
    fn memory(&mut self) -> Option<&mut Memory> {
        match &mut self.state {
            State::Pending(
                ..,
                Question::Sent(Sent::Unread(memory, ..))
                | Question::Asked(memory)
                | Question::Answered(memory),
            )
            | State::Quiet(
                End::Absent(memory)
                | End::Connected(memory)
                | End::Confirming(_, Sent::Unread(memory, ..))
                | End::Registered(_, Desk::Free(memory) | Desk::Owing(memory, _))
                | End::Revoked(Desk::Free(memory) | Desk::Owing(memory, _)),
                _,
            ) => Some(memory),
            _ => None,
        }
    }
}

#[cfg(test)]
type List<T> = Vec<T>;
#[cfg(not(test))]
type List<T> = KVec<T>;

fn push(list: &mut List<World>, world: World) -> Check {
    #[cfg(test)]
    list.push(world);
    #[cfg(not(test))]
    list.push(world, GFP_KERNEL).map_err(|_| "no memory")?;
    Ok(())
}

/// Visits all states. Returns their number, or the rule that was broken.
pub(super) fn visit_all() -> Check<usize> {
    let mut worlds = List::new();
    push(&mut worlds, World::new())?;
    let mut visited = 0;
    while let Some(world) = worlds.get(visited).cloned() {
        visited += 1;
        for event in EVENTS {
            let mut next = world.clone();
            if next.step(event)? && !worlds.contains(&next) {
                push(&mut worlds, next)?;
            }
        }
        world.recovers()?;
    }
    Ok(visited)
}
