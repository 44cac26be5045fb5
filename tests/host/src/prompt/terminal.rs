// SPDX-License-Identifier: GPL-2.0

//! Someone at a terminal: the guest's console, live in both directions, and with a key the prompt.
//!
//! Keys come one by one, as the terminal is raw. A thread of its own waits for them, another one for what the console says.

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

/// How often it is looked whether the guest still runs.
const LOOK: Duration = Duration::from_millis(200);

/// The console says at most so much while the prompt is there; of more, the end.
const PENDING: usize = 1 << 16;

const PROMPT: &str = "host> ";

/// What the console has to say, and whether it may.
struct Screen {
    at_console: bool,
    pending: Vec<u8>,
}

impl Screen {
    fn show(&mut self) {
        let mut output = std::io::stdout().lock();
        let _ = output
            .write_all(&self.pending)
            .and_then(|()| output.flush());
        self.pending.clear();
    }
}

/// The terminal.
pub(super) struct Terminal {
    keys: Receiver<Vec<u8>>,
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
        std::thread::spawn(move || {
            let mut bytes = [0; 256];
            while let Ok(length @ 1..) = std::io::stdin().read(&mut bytes) {
                let mut parts = bytes[..length].split(|&byte| byte == nested::END);
                let keys = parts.next().unwrap_or_default().to_vec();
                if sender.send(keys).is_err() || parts.next().is_some() {
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

    /// Shows the console, with what it has said meanwhile.
    pub(super) fn go_to_console(&self) {
        let mut screen = self.screen();
        screen.at_console = true;
        screen.show();
    }

    /// Shows it no more.
    fn leave_console(&self) {
        self.screen().at_console = false;
    }

    fn is_at_console(&self) -> bool {
        self.screen().at_console
    }

    /// Gives the keys to a program that has the terminal's output, until it ends; it is ended by the key that goes to the
    /// console, and at the end of keys.
    pub(super) fn give_to(&self, mut child: Child) -> io::Result<ExitStatus> {
        println!("  in a session; ^] ends it");
        let mut input = child.stdin.take();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            match self.keys.recv_timeout(LOOK) {
                Ok(keys) if !keys.contains(&ESCAPE) => {
                    // A program that has ended takes none.
                    if let Some(input) = &mut input {
                        let _ = input.write_all(&keys).and_then(|()| input.flush());
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

    /// Is at the console for so long, or until a key that leaves it, or the end of keys.
    pub(super) fn hold(&self, guest: &Guest, time: Duration) {
        println!("  at the guest's console; ^] ends the wait");
        let end = Instant::now() + time;
        self.go_to_console();
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if guest.exit().is_some() {
                break;
            }
            match self.keys.recv_timeout(left.min(LOOK)) {
                Ok(keys) if keys.contains(&ESCAPE) => break,
                Ok(keys) => guest.type_at_console(&keys),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.leave_console();
        println!();
    }
}

/// Shows or keeps what the console says.
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

/// The line that is being typed at the prompt.
#[derive(Default)]
struct Line {
    text: String,
    /// The first bytes of a character.
    partial: Vec<u8>,
    /// Lines before it, and which of them the keys up and down have got to.
    history: Vec<String>,
    at: usize,
    /// What came of an escape sequence.
    sequence: Vec<u8>,
}

/// What a key at the prompt means.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    /// So much is to be printed.
    Echo(String),
    /// A line is complete.
    Line(String),
    /// To the console.
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
            INTERRUPT | ERASE_LINE => self.replace(String::new()),
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

    /// Has another line instead.
    fn replace(&mut self, text: String) -> Typed {
        let erase = "\u{8} \u{8}".repeat(self.text.chars().count());
        self.text = text;
        Typed::Echo(format!("{erase}{}", self.text))
    }
}

/// At the console, and at the prompt, until the end.
pub(super) fn run(mut session: Session) -> Result<ExitCode> {
    println!("# at the guest's console; ^] goes to the host's prompt, and back");
    session.terminal = Some(Terminal::new(session.guest.console_reader()));
    if !session.options.config.foreign {
        // The shell has said its prompt before anyone looked.
        session.guest.type_at_console(b"\r");
    }
    let mut line = Line::default();
    while !session.is_over() {
        let Some(terminal) = &session.terminal else {
            break;
        };
        let keys = match terminal.keys.recv_timeout(LOOK) {
            Ok(keys) => keys,
            Err(RecvTimeoutError::Timeout) => {
                watch(&mut session);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        for key in keys {
            handle(&mut session, &mut line, key);
            if session.is_over() {
                break;
            }
        }
    }
    println!();
    let status = session.breakdown();
    session.end();
    Ok(status.unwrap_or(ExitCode::SUCCESS))
}

/// The guest may have ended the machine's run: then the prompt is there.
fn watch(session: &mut Session) {
    if session.power != Power::Off && session.guest.exit().is_some() {
        println!();
        session.notice_exit();
        let is_off = session.power == Power::Off;
        if let Some(terminal) = session.terminal.as_ref().filter(|_| is_off) {
            terminal.leave_console();
            prompt();
        }
    }
}

fn prompt() {
    print!("{PROMPT}");
    let _ = std::io::stdout().flush();
}

/// A key at the console or the prompt.
fn handle(session: &mut Session, line: &mut Line, key: u8) {
    let Some(terminal) = &session.terminal else {
        return;
    };
    if terminal.is_at_console() {
        if key == ESCAPE {
            terminal.leave_console();
            println!();
            prompt();
        } else {
            session.guest.type_at_console(&[key]);
        }
        return;
    }
    match line.take(key) {
        Typed::Echo(text) => {
            print!("{text}");
            let _ = std::io::stdout().flush();
        }
        Typed::Console => {
            println!();
            terminal.go_to_console();
        }
        Typed::Line(command) => {
            println!();
            session.execute(&command);
            if let Some(terminal) = &session.terminal {
                if !terminal.is_at_console() && !session.is_over() {
                    prompt();
                }
            }
        }
        Typed::End => {
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
