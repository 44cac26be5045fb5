// SPDX-License-Identifier: GPL-2.0

//! Commands from a file or a pipe, one a line.
//!
//! A `!` in front of a command: the command must fail. A line that begins with `=`: the output of the command before must
//! have this text, whatever the number of blanks.

use std::io::BufRead;
use std::process::ExitCode;

use super::session::expected;
use super::session::Session;
use crate::guest::Result;

/// Carries out the commands. The exit status says whether each did what it must.
pub(super) fn run(mut session: Session, mut input: impl BufRead) -> Result<ExitCode> {
    let mut failed = 0;
    let mut bytes = Vec::new();
    while !session.is_over() {
        bytes.clear();
        if input.read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        if !carry_out(&mut session, &bytes) {
            failed += 1;
        }
    }
    if let Some(status) = session.breakdown() {
        return Ok(status);
    }
    session.end();
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        _ => {
            session.say(&format!("# {failed} lines failed"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Carries out a line; gives whether it did what it must.
fn carry_out(session: &mut Session, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let line = text.trim();
    if line.is_empty() || line.starts_with('#') {
        return true;
    }
    if let Some(text) = line.strip_prefix('=') {
        let has_said = has_text(&session.said(), text);
        if !has_said {
            session.say(&format!("error: the command did not print {}", text.trim()));
        }
        return has_said;
    }
    session.say(&format!("> {line}"));
    let (command, must_fail) = match line.strip_prefix('!') {
        Some(command) => (command, true),
        None => (line, false),
    };
    let is_done = match std::str::from_utf8(bytes) {
        Ok(_) => session.execute(command),
        Err(_) => session.conclude(expected("a line in UTF-8")),
    };
    match (is_done, must_fail) {
        (true, true) => session.say("error: the command did not fail"),
        (false, false) => session.explain(),
        _ => return true,
    }
    false
}

/// Whether a line of the output has the text.
fn has_text(output: &str, text: &str) -> bool {
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = squeezed(text);
    output.lines().any(|line| squeezed(line).contains(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_in_lines() {
        let output = "Service   Enabled\nHeartbeat  True   OK\n";
        assert!(has_text(output, " Heartbeat True"));
        assert!(has_text(output, "True    OK"));
        assert!(!has_text(output, "Enabled Heartbeat"));
        assert!(!has_text(output, "HeartbeatTrue"));
        assert!(!has_text("", "x"));
    }
}
