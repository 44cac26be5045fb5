// SPDX-License-Identifier: GPL-2.0

//! A machine and its state at the prompt: carries out commands, one at a time.

use std::cell::RefCell;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use super::command::Command;
use super::command::NOTES;
use super::command::USAGES;
use super::preparation;
use super::terminal::Terminal;
use super::Options;
use super::BROKEN_DOWN;
use crate::guest::ChannelHandle;
use crate::guest::Error;
use crate::guest::Guest;
use crate::guest::Result;
use crate::ic;
use crate::ic::frame::Message;
use crate::machine::Exit;
use crate::service::Service;

/// How long to wait until a service can take a request.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Why a command failed.
pub(super) enum Failure {
    /// The input was wrong, and nothing was done. The text says what was expected.
    Expected(String),
    /// The command was carried out, and went wrong.
    Failed(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // Further lines are for scenarios: processors, and the console, which the user sees anyway.
        let line = error.0.lines().next().unwrap_or_default();
        let end = line.find("; the console's").unwrap_or(line.len());
        Self::Failed(line[..end].to_owned())
    }
}

impl From<String> for Failure {
    fn from(error: String) -> Self {
        Self::Failed(error)
    }
}

/// How a command ended.
pub(super) type Outcome<T = ()> = std::result::Result<T, Failure>;

/// An error that says what was expected.
pub(super) fn expected<T>(what: impl Into<String>) -> Outcome<T> {
    Err(Failure::Expected(what.into()))
}

/// The machine's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Power {
    /// It runs.
    On,
    /// It stands still.
    Saved,
    /// It is off.
    Off,
}

/// A machine with a prompt.
pub(super) struct Session {
    pub(super) guest: Guest,
    pub(super) options: Options,
    pub(super) power: Power,
    /// When the machine was switched on; later by the times for which it was saved.
    pub(super) since: Instant,
    /// When it was saved, if it is.
    pub(super) saved_at: Option<Instant>,
    /// Seconds that the host's clock is ahead of this machine's.
    pub(super) offset: i64,
    /// The terminal, if a person types the commands.
    pub(super) terminal: Option<Terminal>,
    over: bool,
    /// The output since the last command began.
    said: RefCell<String>,
}

impl Session {
    /// Boots the machine, and prepares its guest.
    pub(super) fn start(options: &Options) -> Result<Self> {
        Self::start_scripted(options, &[])
    }

    /// The same; the caller leads these services from the beginning.
    pub(super) fn start_scripted(options: &Options, scripted: &[Service]) -> Result<Self> {
        let guest = Guest::boot(&options.config)?;
        for &service in scripted {
            guest.channel(service).script()?;
        }
        let session = Self {
            guest,
            options: options.clone(),
            power: Power::On,
            since: Instant::now(),
            saved_at: None,
            offset: 0,
            terminal: None,
            over: false,
            said: RefCell::default(),
        };
        session.prepare()?;
        Ok(session)
    }

    /// Prepares a guest of this project's, after each boot.
    pub(super) fn prepare(&self) -> Result<()> {
        if self.options.config.foreign {
            return Ok(());
        }
        preparation::prepare(&self.guest, self.options.module)?;
        self.say(&format!(
            "# booted in {:.0} s, with the module in {}",
            self.guest.boot_time().as_secs_f64(),
            match self.options.module {
                crate::guest::Module::Rust => "Rust",
                crate::guest::Module::C => "C",
            }
        ));
        Ok(())
    }

    /// Prints a line. Texts of the guest's may be in it: control characters are escaped.
    pub(super) fn say(&self, line: &str) {
        let line = printable(line) + "\n";
        self.said.borrow_mut().push_str(&line);
        let mut output = std::io::stdout().lock();
        let _ = output
            .write_all(line.as_bytes())
            .and_then(|()| output.flush());
    }

    /// The output since the last command began.
    pub(super) fn said(&self) -> String {
        self.said.borrow().clone()
    }

    /// Carries out a line; gives whether the command succeeded.
    pub(super) fn execute(&mut self, line: &str) -> bool {
        self.said.borrow_mut().clear();
        let outcome = match Command::parse(line) {
            Ok(Some(command)) => {
                self.notice_exit();
                self.carry_out(command)
            }
            Ok(None) => Ok(()),
            Err(what) => expected(what),
        };
        self.notice_exit();
        self.conclude(outcome)
    }

    /// Says why a command failed, if it did; gives whether it succeeded.
    pub(super) fn conclude(&self, outcome: Outcome) -> bool {
        match &outcome {
            Ok(()) => {}
            Err(Failure::Expected(what)) => self.say(&format!("expected {what}")),
            Err(Failure::Failed(why)) => self.say(&format!("error: {why}")),
        }
        outcome.is_ok()
    }

    fn carry_out(&mut self, command: Command) -> Outcome {
        match command {
            Command::Status => self.status(),
            Command::Start => self.switch_on(),
            Command::Stop { force } => self.stop(force),
            Command::Restart => self.restart(),
            Command::Hibernate => self.hibernate(),
            Command::KvpList(pool) => self.kvp_list(pool),
            Command::KvpGet(pool, key) => self.kvp_get(pool, &key),
            Command::KvpSet(pool, key, value) => self.kvp_set(pool, &key, &value),
            Command::KvpDelete(pool, key) => self.kvp_delete(pool, &key),
            Command::IpGet(mac) => self.ip_get(mac),
            Command::IpSet(set) => self.ip_set(set),
            Command::Backup(hold) => self.backup(hold),
            Command::Copy {
                file,
                destination,
                overwrite,
            } => self.copy(&file, destination, overwrite),
            Command::Connect(port, file) => self.connect(port, file.as_deref()),
            Command::Ssh { user, line } => self.ssh(&user, line.as_deref()),
            Command::Clock(step) => self.clock(step),
            Command::Sleep(time) => self.sleep(time),
            Command::Save => self.save(),
            Command::Restore => self.restore(),
            Command::Rescind(service) => self.rescind(service),
            Command::Offer(service) => self.offer(service),
            Command::Wait(service, time) => self.wait(service, time),
            Command::Expect(text) => self.expect(&text),
            Command::Flood(service, count) => self.flood(service, count),
            Command::Transcript(file) => self.transcript(file),
            Command::Console => self.console(),
            Command::Quit => {
                self.over = true;
                self.say("the machine is switched off");
                Ok(())
            }
            Command::Help => {
                help().iter().for_each(|line| self.say(line));
                Ok(())
            }
        }
    }

    /// Prints the end of the guest's logs, after a command of a file has failed.
    pub(super) fn explain(&self) {
        if self.options.config.foreign || self.power != Power::On {
            return;
        }
        if let Ok(output) = self.guest.sh(preparation::LOGS) {
            for line in output.text.lines() {
                self.say(&format!("  # {line}"));
            }
        }
    }

    /// Goes to the console.
    fn console(&mut self) -> Outcome {
        match &self.terminal {
            Some(terminal) => {
                terminal.go_to_console();
                Ok(())
            }
            None => expected("a terminal to show the console at: commands come from a file"),
        }
    }

    /// Whether the session is over.
    pub(super) fn is_over(&self) -> bool {
        self.over
            || matches!(
                self.guest.exit(),
                Some(Exit::Breakdown(_) | Exit::Failed(_))
            )
    }

    /// The exit status if the emulation or the host broke down.
    pub(super) fn breakdown(&self) -> Option<ExitCode> {
        match self.guest.exit() {
            Some(Exit::Breakdown(what)) => {
                self.say(&format!("# the emulation broke down: {what}"));
                Some(ExitCode::from(BROKEN_DOWN))
            }
            Some(Exit::Failed(what)) => {
                self.say(&format!("error: {what}"));
                Some(ExitCode::FAILURE)
            }
            _ => None,
        }
    }

    /// Switches the machine off at the end.
    pub(super) fn end(&mut self) {
        self.guest.power_off();
    }

    /// Looks whether the guest has switched off or reset the machine. Boots it again after a reset.
    pub(super) fn notice_exit(&mut self) {
        if self.power == Power::Off {
            return;
        }
        let (how, is_reset) = match self.guest.exit() {
            Some(Exit::PowerOff) => ("has switched the machine off", false),
            Some(Exit::S4) => ("has hibernated", false),
            Some(Exit::Reset) => ("has reset the machine", true),
            Some(Exit::TripleFault) => ("has crashed", false),
            Some(_) => ("has ended", false),
            None => return,
        };
        self.say(&format!("# the guest {how}"));
        self.power = Power::Off;
        if is_reset {
            if let Err(error) = self.boot_again() {
                self.say(&format!("error: {error}"));
            }
        }
    }

    /// Boots the machine again.
    pub(super) fn boot_again(&mut self) -> Result<()> {
        self.guest.restart()?;
        self.power = Power::On;
        self.since = Instant::now();
        self.saved_at = None;
        self.set_offset();
        self.prepare()
    }

    /// An error if the machine does not run.
    pub(super) fn runs(&self) -> Outcome {
        match self.power {
            Power::On => Ok(()),
            Power::Saved => expected("a machine that runs: restore goes on with this one"),
            Power::Off => expected("a machine that runs: start switches this one on"),
        }
    }

    /// A service's channel, once the service can take a request.
    pub(super) fn ready(&self, service: Service) -> Outcome<ChannelHandle<'_>> {
        self.runs()?;
        let channel = self.guest.channel(service);
        if !channel.is_present() {
            return expected(format!(
                "a service that is offered: offer {service} plugs it in"
            ));
        }
        channel.wait_ready(PATIENCE)?;
        Ok(channel)
    }

    /// Sends a request; gives the reply if its status is success. `what` names the request in the error.
    pub(super) fn ask(&self, service: Service, what: &str, body: Vec<u8>) -> Outcome<Message> {
        let reply = self.ready(service)?.ask(body)?;
        match reply.status {
            ic::S_OK => Ok(reply),
            status => Err(Failure::Failed(format!("{what}: {}", meaning(status)))),
        }
    }

    /// Waits, as long as the guest runs. A person at a terminal sees the console, and can end the wait.
    pub(super) fn hold(&self, time: Duration) {
        match &self.terminal {
            Some(terminal) => terminal.hold(&self.guest, time),
            None => {
                let _ = self.guest.wait_exit(time);
            }
        }
    }
}

/// The lines of `help`, for a terminal of 80 columns.
fn help() -> Vec<String> {
    let mut lines = Vec::new();
    for (usage, meaning) in USAGES {
        match usage.len() <= 30 {
            true => lines.push(format!("  {usage:<30}  {meaning}")),
            false => lines.extend([format!("  {usage}"), format!("  {:<30}  {meaning}", "")]),
        }
    }
    lines.push(String::new());
    lines.extend(NOTES.iter().map(|note| format!("  {note}")));
    lines
}

/// The text with its control characters escaped.
fn printable(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter.is_control() {
            true => out.extend(letter.escape_default()),
            false => out.push(letter),
        }
    }
    out
}

/// What a reply's status means.
pub(super) fn meaning(status: u32) -> String {
    let text = match status {
        ic::E_FAIL => "the guest failed to do it",
        ic::E_NOT_SUPPORTED => "the guest does not support it",
        ic::E_INVALID_ARGUMENT => "the guest calls it invalid",
        ic::E_NO_MORE_ITEMS => "the guest has no such item",
        ic::E_FILE_EXISTS => "the guest has that file already",
        ic::E_NAME_TOO_LONG => "the name is too long for the guest",
        ic::E_DISK_FULL => "the guest's disk is full",
        0x8004_1002 => "the guest has no such adapter",
        _ => "the guest says no",
    };
    format!("{text} ({status:#010x})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_guests_stay_in_their_line() {
        assert_eq!(printable("good \u{e4} day"), "good \u{e4} day");
        assert_eq!(
            printable("a\n\u{1b}[2J\u{9b}\0"),
            "a\\n\\u{1b}[2J\\u{9b}\\u{0}"
        );
    }

    #[test]
    fn help_fits_a_terminal() {
        for line in help() {
            assert!(line.len() < 80, "{line}");
        }
    }
}
