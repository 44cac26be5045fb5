// SPDX-License-Identifier: GPL-2.0

//! Commands about Hyper-V sockets: a connection to a port of the guest, and ssh.

use std::path::Path;
use std::process::Stdio;

use super::session::expected;
use super::session::Failure;
use super::session::Outcome;
use super::session::Session;
use super::session::PATIENCE;
use crate::guest::relay::SSH_PORT;
use crate::guest::Connection;
use crate::guest::Result;

/// The maximum number of received lines to print.
const SHOWN: usize = 20;

impl Session {
    /// Connects to a port of the guest, sends a file, and prints the received bytes.
    pub(super) fn connect(&self, port: u32, file: Option<&Path>) -> Outcome {
        self.runs()?;
        let sent = match file.map(std::fs::read).transpose() {
            Ok(sent) => sent.unwrap_or_default(),
            Err(why) => return expected(format!("a file that can be read here: {why}")),
        };
        let connection = self.guest.connect(port)?;
        if connection.wait_connected_within(PATIENCE).is_err() {
            let why = format!("no program in the guest has accepted a connection to port {port}");
            return Err(Failure::Failed(why));
        }
        let got = exchange(&connection, &sent)?;
        let (count, length) = (sent.len(), got.len());
        if !sent.is_empty() && got == sent {
            self.say(&format!(
                "port {port}: sent {count} bytes, the same came back"
            ));
            return Ok(());
        }
        for line in String::from_utf8_lossy(&got).lines().take(SHOWN) {
            self.say(&format!("  {line}"));
        }
        self.say(&format!(
            "port {port}: sent {count} bytes, {length} came back"
        ));
        Ok(())
    }

    /// Logs in by ssh. Runs a command or, at a terminal, a session.
    pub(super) fn ssh(&self, user: &str, line: Option<&str>) -> Outcome {
        self.runs()?;
        let relay = self.guest.relay(SSH_PORT)?;
        let Ok(mut command) = relay.ssh(user) else {
            return expected("a guest with sshd: make shell GUEST=systemd has one");
        };
        let status = match (line, &self.terminal) {
            (Some(line), _) => command.arg(line).stdin(Stdio::null()).status(),
            (None, Some(terminal)) => {
                let child = command.arg("-tt").stdin(Stdio::piped()).spawn();
                child.and_then(|child| terminal.give_to(child))
            }
            (None, None) => return expected("a command, or a terminal"),
        };
        match status.map_err(|why| format!("ssh: {why}"))? {
            status if status.success() => {
                self.say("ssh: done");
                Ok(())
            }
            status => Err(Failure::Failed(format!("ssh: {status}"))),
        }
    }
}

/// Sends all bytes, and receives until the end.
fn exchange(connection: &Connection, sent: &[u8]) -> Result<Vec<u8>> {
    std::thread::scope(|scope| {
        // A program may not take all before it answers.
        let writer = scope.spawn(|| connection.write(sent).and_then(|()| connection.finish()));
        let got = connection.read_all();
        if got.is_err() {
            connection.hang_up();
        }
        let written = writer.join();
        written.map_err(|_| "a thread has panicked")??;
        got
    })
}
