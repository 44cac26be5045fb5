// SPDX-License-Identifier: GPL-2.0

//! Commands that nobody types: from a file or a pipe, one a line.
//!
//! A `!` in front of a command says that it must fail.

use std::io::BufRead;
use std::process::ExitCode;

use super::session::Session;
use crate::guest::Result;
use crate::nested;

/// Carries out the commands; the status is that of a failure if one failed.
pub(super) fn run(mut session: Session, mut input: impl BufRead) -> Result<ExitCode> {
    let mut failed = 0;
    while let Some(line) = next(&mut input)? {
        let command = line.trim();
        if command.is_empty() || command.starts_with('#') {
            continue;
        }
        session.say(&format!("> {command}"));
        let (command, is_to_fail) = match command.strip_prefix('!') {
            Some(command) => (command, true),
            None => (command, false),
        };
        let is_done = session.execute(command);
        if is_done == is_to_fail {
            failed += 1;
            match is_done {
                true => session.say("error: this was to fail"),
                false => session.explain(),
            }
        }
        if session.is_over() {
            break;
        }
    }
    if let Some(status) = session.breakdown() {
        return Ok(status);
    }
    session.end();
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        _ => {
            session.say(&format!("# {failed} commands failed"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The next line, `None` at the end. Through the QEMU guest's console, a byte stands for the end.
fn next(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    loop {
        let (used, is_over) = {
            let ready = input.fill_buf()?;
            match ready
                .iter()
                .position(|&byte| byte == b'\n' || byte == nested::END)
            {
                Some(at) => {
                    bytes.extend(&ready[..at]);
                    (at + usize::from(ready[at] == b'\n'), true)
                }
                None => {
                    bytes.extend(ready);
                    (ready.len(), ready.is_empty())
                }
            }
        };
        let is_end = used == 0 && is_over;
        input.consume(used);
        match (is_over, is_end && bytes.is_empty()) {
            (_, true) => return Ok(None),
            (true, _) => return Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_and_so_does_the_input() {
        let read = |mut text: &[u8]| {
            let mut lines = Vec::new();
            while let Some(line) = next(&mut text).unwrap() {
                lines.push(line);
            }
            lines
        };
        assert_eq!(read(b"a\nb\n"), ["a", "b"]);
        assert_eq!(read(b"a\n\nb"), ["a", "", "b"]);
        assert_eq!(read(b"a\n\xffnever"), ["a"]);
        assert_eq!(read(b"a\xff"), ["a"]);
        assert_eq!(read(b""), [""; 0]);
    }
}
