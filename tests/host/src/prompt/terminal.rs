// SPDX-License-Identifier: GPL-2.0

//! A person at a terminal: the guest's console, live in both directions, and behind a key the prompt.
//!
//! The terminal is raw: each key comes at once. One thread reads keys, another one the console. Keys that are typed while
//! a command runs are taken after that.

use std::io;
use std::io::Read;
use std::io::Write;
use std::process::Child;
use std::process::ExitCode;
use std::process::ExitStatus;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use super::session::Power;
use super::session::Session;
use crate::guest::ConsoleReader;
use crate::guest::Guest;
use crate::guest::Result;
use crate::nested;

/// The key that goes from the console to the prompt and back: ^].
const ESCAPE: u8 = 0x1d;
const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const ERASE_LINE: u8 = 0x15;

/// How often to look whether the guest still runs.
const LOOK: Duration = Duration::from_millis(200);

/// Bytes of the console that are kept while the prompt is there; of more, the last.
const PENDING: usize = 1 << 16;

const PROMPT: &str = "host> ";

/// Prints a text at once. A terminal that has gone is no error: the end of keys says so.
fn show(text: &str) {
    show_bytes(text.as_bytes());
}

fn show_bytes(bytes: &[u8]) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(bytes).and_then(|()| output.flush());
}

/// What the console has said, and whether that is shown.
struct Screen {
    at_console: bool,
    pending: Vec<u8>,
}

impl Screen {
    fn show(&mut self) {
        show_bytes(&self.pending);
        self.pending.clear();
    }
}

/// The terminal.
pub(super) struct Terminal {
    keys: Receiver<u8>,
    screen: Arc<Mutex<Screen>>,
}

impl Terminal {
    /// Begins to read keys and the console.
    fn new(console: ConsoleReader) -> Self {
        let screen = Arc::new(Mutex::new(Screen {
            at_console: true,
            pending: Vec::new(),
        }));
        let (sender, keys) = mpsc::channel();
        let input = nested::open_input();
        std::thread::spawn(move || {
            for key in input.bytes() {
                let Ok(key) = key else {
                    return;
                };
                if sender.send(key).is_err() {
                    return;
                }
            }
        });
        let shown = screen.clone();
        std::thread::spawn(move || follow(console, &shown));
        Self { keys, screen }
    }

    fn screen(&self) -> MutexGuard<'_, Screen> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows the console, from what it has said meanwhile on.
    pub(super) fn go_to_console(&self) {
        let mut screen = self.screen();
        screen.at_console = true;
        screen.show();
    }

    /// Shows the console no more.
    fn leave_console(&self) {
        self.screen().at_console = false;
    }

    fn is_at_console(&self) -> bool {
        self.screen().at_console
    }

    /// Sends the keys to a program that writes to the terminal, until the program ends. The key that goes to the console
    /// kills the program, and so does the end of keys.
    pub(super) fn give_to(&self, mut child: Child) -> io::Result<ExitStatus> {
        show("  in a session; ^] ends it\n");
        let mut input = child.stdin.take();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            match self.keys.recv_timeout(LOOK) {
                Ok(key) if key != ESCAPE => {
                    // A program that has ended takes no key.
                    if let Some(input) = &mut input {
                        let _ = input.write_all(&[key]).and_then(|()| input.flush());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                _ => {
                    child.kill()?;
                    return child.wait();
                }
            }
        }
    }

    /// Stays at the console for a time, or until the key that leaves it, the end of keys, or the end of the guest.
    pub(super) fn hold(&self, guest: &Guest, time: Duration) {
        show("  at the guest's console; ^] ends the wait\n");
        let end = Instant::now() + time;
        self.go_to_console();
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if guest.exit().is_some() {
                break;
            }
            match self.keys.recv_timeout(left.min(LOOK)) {
                Ok(ESCAPE) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(key) => guest.type_at_console(&[key]),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        self.leave_console();
        show("\n");
    }
}

/// Reads the console: shows what it says, or keeps that while the prompt is there.
fn follow(mut console: ConsoleReader, screen: &Mutex<Screen>) {
    loop {
        let bytes = console.wait(Duration::from_secs(1));
        let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
        screen.pending.extend(bytes);
        let surplus = screen.pending.len().saturating_sub(PENDING);
        screen.pending.drain(..surplus);
        if screen.at_console && !screen.pending.is_empty() {
            screen.show();
        }
    }
}

/// The line that is typed at the prompt.
#[derive(Default)]
struct Line {
    text: String,
    /// The first bytes of a character.
    partial: Vec<u8>,
    /// Earlier lines.
    history: Vec<String>,
    /// The place in the history that the keys up and down have got to.
    at: usize,
    /// The first bytes of an escape sequence.
    sequence: Vec<u8>,
}

/// What a key at the prompt means.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    /// Print this.
    Echo(String),
    /// A line is complete.
    Line(String),
    /// Go to the console.
    Console,
    /// The end.
    End,
}

impl Line {
    /// Takes a byte.
    fn take(&mut self, byte: u8) -> Typed {
        if !self.sequence.is_empty() {
            return self.take_sequence(byte);
        }
        match byte {
            b'\r' | b'\n' => {
                let line = std::mem::take(&mut self.text);
                if !line.trim().is_empty() {
                    self.history.push(line.clone());
                }
                self.at = self.history.len();
                Typed::Line(line)
            }
            ESCAPE => Typed::Console,
            END if self.text.is_empty() => Typed::End,
            0x7f | 0x08 => match self.text.pop() {
                Some(_) => Typed::Echo("\u{8} \u{8}".to_owned()),
                None => Typed::Echo(String::new()),
            },
            INTERRUPT => {
                self.text.clear();
                self.at = self.history.len();
                Typed::Line(String::new())
            }
            ERASE_LINE => self.replace(String::new()),
            0x1b => {
                self.sequence.push(byte);
                Typed::Echo(String::new())
            }
            0..0x20 => Typed::Echo(String::new()),
            _ => {
                self.partial.push(byte);
                match std::str::from_utf8(&self.partial) {
                    Ok(text) => {
                        let text = text.to_owned();
                        self.text.push_str(&text);
                        self.partial.clear();
                        Typed::Echo(text)
                    }
                    Err(error) => {
                        if error.error_len().is_some() {
                            self.partial.clear();
                        }
                        Typed::Echo(String::new())
                    }
                }
            }
        }
    }

    /// Takes a byte of an escape sequence: the keys up and down.
    fn take_sequence(&mut self, byte: u8) -> Typed {
        self.sequence.push(byte);
        let at = match self.sequence.as_slice() {
            [_, b'[' | b'O'] => return Typed::Echo(String::new()),
            [_, _, b'A'] => self.at.saturating_sub(1),
            [_, _, b'B'] => (self.at + 1).min(self.history.len()),
            _ => {
                self.sequence.clear();
                return Typed::Echo(String::new());
            }
        };
        self.sequence.clear();
        self.at = at;
        self.replace(self.history.get(at).cloned().unwrap_or_default())
    }

    /// Puts another text in the line's place.
    fn replace(&mut self, text: String) -> Typed {
        let erase = "\u{8} \u{8}".repeat(self.text.chars().count());
        self.text = text;
        Typed::Echo(format!("{erase}{}", self.text))
    }
}

/// Serves the person at the terminal until the end.
pub(super) fn run(mut session: Session) -> Result<ExitCode> {
    show("# at the guest's console; ^] goes to the host's prompt, and back\n");
    session.terminal = Some(Terminal::new(session.guest.console_reader()));
    let mut line = Line::default();
    while !session.is_over() {
        let Some(terminal) = &session.terminal else {
            break;
        };
        match terminal.keys.recv_timeout(LOOK) {
            Ok(key) => handle(&mut session, &mut line, key),
            Err(RecvTimeoutError::Timeout) => watch(&mut session, &line),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    show("\n");
    let status = session.breakdown();
    session.end();
    Ok(status.unwrap_or(ExitCode::SUCCESS))
}

/// Says so if the guest has ended by itself. The prompt comes if the machine is off then.
fn watch(session: &mut Session, line: &Line) {
    if session.power == Power::Off || session.guest.exit().is_none() {
        return;
    }
    show("\n");
    session.notice_exit();
    if let Some(terminal) = &session.terminal {
        if session.power == Power::Off {
            terminal.leave_console();
        }
        if !terminal.is_at_console() {
            show(&format!("{PROMPT}{}", line.text));
        }
    }
}

/// Takes a key at the console or the prompt.
fn handle(session: &mut Session, line: &mut Line, key: u8) {
    let Some(terminal) = &session.terminal else {
        return;
    };
    match (terminal.is_at_console(), key) {
        (true, ESCAPE) => {
            terminal.leave_console();
            show(&format!("\n{PROMPT}{}", line.text));
            return;
        }
        (true, _) => return session.guest.type_at_console(&[key]),
        (false, _) => {}
    }
    match line.take(key) {
        Typed::Echo(text) => show(&text),
        Typed::Console => {
            show("\n");
            terminal.go_to_console();
        }
        Typed::Line(command) => {
            show("\n");
            session.execute(&command);
            if let Some(terminal) = &session.terminal {
                if !terminal.is_at_console() && !session.is_over() {
                    show(PROMPT);
                }
            }
        }
        Typed::End => {
            show("quit\n");
            session.execute("quit");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_all(line: &mut Line, keys: &[u8]) -> (String, Vec<String>) {
        let (mut echo, mut lines) = (String::new(), Vec::new());
        for &key in keys {
            match line.take(key) {
                Typed::Echo(text) => echo.push_str(&text),
                Typed::Line(text) => lines.push(text),
                other => panic!("{other:?}"),
            }
        }
        (echo, lines)
    }

    #[test]
    fn lines_are_edited() {
        let mut line = Line::default();
        let (echo, lines) = type_all(&mut line, "stä\u{7f}\u{7f}top\r".as_bytes());
        assert_eq!(echo, "stä\u{8} \u{8}\u{8} \u{8}top");
        assert_eq!(lines, ["stop"]);
        assert_eq!(type_all(&mut line, b"x\x15\x1b[Dkvp\r").1, ["kvp"]);
        assert_eq!(line.take(END), Typed::End);
        assert_eq!(line.take(ESCAPE), Typed::Console);
        assert_eq!(type_all(&mut line, b"\x7f\xff\r").1, [""]);
        assert_eq!(type_all(&mut line, b"stop\x03kvp\r").1, ["", "kvp"]);
    }

    #[test]
    fn lines_come_back() {
        let mut line = Line::default();
        type_all(&mut line, b"one\rtwo\r\r");
        assert_eq!(type_all(&mut line, b"\x1b[A\x1b[A\r").1, ["one"]);
        assert_eq!(type_all(&mut line, b"\x1bOA\x1b[A\x1b[B\r").1, ["one"]);
        assert_eq!(type_all(&mut line, b"\x1b[A\x1b[B\r").1, [""]);
    }
}
