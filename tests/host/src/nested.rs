// SPDX-License-Identifier: GPL-2.0

//! Where `/dev/kvm` has no SynIC (or is not there), a program runs itself in a QEMU guest that has: the same binary
//! with the same arguments, the same output and exit status.

use std::io;
use std::io::IsTerminal;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use crate::images::build_folder;
use crate::kvm::Kvm;

/// Set in the QEMU guest, so that a program that finds no SynIC there either gives up.
const NESTED: &str = "HV_HOST_NESTED";

/// Names the file in which the program in the QEMU guest keeps how far it is.
const PROGRESS: &str = "HV_PROGRESS";

/// How many QEMU guests a program gets to go on in: its emulation of SVM is not beyond doubt.
const GUESTS: u32 = 3;

/// What `outer-run.sh` ends with where the guest did not survive.
const DIED: i32 = 125;

/// Has QEMU count: each instruction takes a nanosecond of guest time, and nothing else does but idling. Nothing that
/// differs from run to run is let in.
const COUNTING: &str = "-icount shift=0,sleep=off -seed 1 -rtc base=2026-01-01,clock=vm";

/// Stands for the end of standard input in the QEMU guest, where that is a serial port: no text has this byte.
pub const END: u8 = 0xff;

/// Names the file that says that the program in the QEMU guest reads its standard input; set only if it is to.
const READING: &str = "HV_READING";

/// Says in the QEMU guest whether standard input is a terminal.
const TERMINAL: &str = "HV_TERMINAL";

/// What becomes of a program's standard input in the QEMU guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// It is empty.
    Empty,
    /// It is this program's, byte by byte; [`END`] ends it.
    Live,
}

/// Returns where this machine's `/dev/kvm` serves; else runs this program in the QEMU guest and exits with its status.
/// Prints which of the two it is.
pub fn ensure_synic() {
    ensure_with(Input::Empty);
}

/// [`ensure_synic`] for a program that reads its standard input: that is there in the QEMU guest, too. A terminal is raw
/// from here on, until [`tidy_up`].
pub fn ensure_synic_live() {
    ensure_with(Input::Live);
    match std::env::var_os(READING) {
        Some(file) => {
            let _ = std::fs::write(file, "");
        }
        None => make_raw(),
    }
}

/// Whether standard input is a terminal, here or where the QEMU guest was started.
pub fn is_terminal() -> bool {
    match std::env::var_os(TERMINAL) {
        Some(value) => value == "1",
        None => std::io::stdin().is_terminal(),
    }
}

/// What the terminal was like before it was made raw.
static BEFORE: OnceLock<String> = OnceLock::new();

/// Runs `stty` on the terminal; what it prints.
fn stty(arguments: &[&str]) -> Option<String> {
    let ran = Command::new("stty")
        .args(arguments)
        .stdin(Stdio::inherit())
        .output();
    let text = String::from_utf8(ran.ok()?.stdout).ok()?;
    Some(text.trim().to_owned())
}

/// Has each key come at once, if standard input is a terminal.
fn make_raw() {
    if std::io::stdin().is_terminal() {
        if let Some(before) = stty(&["-g"]) {
            let _ = BEFORE.set(before);
            let _ = stty(&["raw", "-echo", "opost", "onlcr"]);
        }
    }
}

/// Leaves the terminal as it was.
pub fn tidy_up() {
    if let Some(before) = BEFORE.get() {
        let _ = stty(&[before]);
    }
}

fn ensure_with(input: Input) {
    let problem = match Kvm::open() {
        Ok(kvm) if kvm.has_synic() => {
            if !is_nested() {
                println!("# host: /dev/kvm here has a SynIC: using it");
            }
            return;
        }
        Ok(_) => "/dev/kvm here has no SynIC".to_owned(),
        Err(error) => format!("no /dev/kvm here ({error})"),
    };
    if is_nested() {
        eprintln!("host: {problem}, in the QEMU guest");
        std::process::exit(1);
    }
    println!("# host: {problem}: running in a QEMU guest that has one");
    run_nested(&[], input)
}

/// Returns in a QEMU guest in which guest time counts instructions; elsewhere runs this program in one, whatever
/// `/dev/kvm` there is, and exits with its status.
pub fn ensure_counted() {
    if !is_nested() {
        println!("# host: running in a QEMU guest that counts instructions");
        // Timers that come late, all at once, are in the figures.
        let settings = [("OUTER_ARGS", COUNTING), ("OUTER_APPEND", "highres=on")];
        run_nested(&settings, Input::Empty);
    }
}

/// Runs this program in the QEMU guest and exits with its status. Where that guest breaks down, another one runs it again:
/// it goes on from where it was if it keeps that in its [`progress_file`].
fn run_nested(settings: &[(&str, &str)], input: Input) -> ! {
    let script = std::env::var_os("HV_OUTER_RUN").map_or_else(
        || build_folder().join("../tests/guest/outer-run.sh"),
        PathBuf::from,
    );
    let progress = build_folder().join(format!("guest/progress.{}", std::process::id()));
    let mut line = format!(
        "{NESTED}=1 {PROGRESS}={} ",
        quote(&progress.to_string_lossy())
    );
    for (name, value) in std::env::vars()
        .filter(|(name, _)| name.starts_with("HV_") && name != "HV_ENTERED" && name != TERMINAL)
    {
        line.push_str(&format!("{name}={} ", quote(&value)));
    }
    let program = std::env::current_exe().unwrap_or_default();
    line.push_str(&quote(&program.to_string_lossy()));
    for argument in std::env::args().skip(1) {
        line.push(' ');
        line.push_str(&quote(&argument));
    }
    let reading = progress.with_extension("reading");
    if input == Input::Live {
        // The terminal that TERMINAL tells of may be a program's that stands in for someone.
        let terminal = u8::from(is_terminal());
        line.insert_str(
            0,
            &format!(
                "{READING}={} {TERMINAL}={terminal} ",
                quote(&reading.to_string_lossy())
            ),
        );
        line.push_str(" </dev/ttyS0");
    }
    let run = || {
        let mut command = Command::new(&script);
        command.arg(&line).envs(settings.iter().copied());
        let status = match input {
            Input::Empty => command.status(),
            Input::Live => run_live(&mut command, &reading),
        };
        status.map(|status| status.code().unwrap_or(1))
    };
    // Of another program that had this number.
    let _ = std::fs::remove_file(&progress);
    let mut result = run();
    let (mut left, mut reached) = (GUESTS - 1, None);
    // What was typed cannot be typed again.
    while left > 0 && matches!(result, Ok(DIED)) && input == Input::Empty {
        println!("# host: the QEMU guest broke down: another one goes on");
        result = run();
        let now = std::fs::read(&progress).ok();
        left = if now == reached { left - 1 } else { GUESTS - 1 };
        reached = now;
    }
    let _ = std::fs::remove_file(&progress);
    match result {
        Ok(status) => std::process::exit(status),
        Err(error) => {
            eprintln!("host: {}: {error}", script.display());
            std::process::exit(1);
        }
    }
}

/// Runs a command with this program's standard input, once the file says that it is read.
fn run_live(command: &mut Command, reading: &Path) -> io::Result<ExitStatus> {
    let _ = std::fs::remove_file(reading);
    let mut child = command
        .env("OUTER_INPUT", "yes")
        .stdin(Stdio::piped())
        .spawn()?;
    let pipe = child.stdin.take();
    let file = reading.to_owned();
    std::thread::spawn(move || {
        let Some(mut pipe) = pipe else {
            return;
        };
        while !file.exists() {
            std::thread::sleep(Duration::from_millis(100));
        }
        make_raw();
        let mut bytes = [0; 4096];
        let mut input = io::stdin().lock();
        while let Ok(length @ 1..) = input.read(&mut bytes) {
            if pipe.write_all(&bytes[..length]).is_err() {
                return;
            }
        }
        let _ = pipe.write_all(&[END]);
        // QEMU takes the pipe's end for a lost line.
        loop {
            std::thread::park();
        }
    });
    let status = child.wait();
    let _ = std::fs::remove_file(reading);
    tidy_up();
    status
}

/// A file that is there only if this program has run before and written it, in a QEMU guest that broke down; none
/// outside of QEMU guests.
pub fn progress_file() -> Option<PathBuf> {
    std::env::var_os(PROGRESS).map(PathBuf::from)
}

/// Whether this program runs in the QEMU guest.
pub fn is_nested() -> bool {
    std::env::var_os(NESTED).is_some()
}

/// Quotes a word for the shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quote("T=a b"), "'T=a b'");
        assert_eq!(quote("it's"), "'it'\\''s'");
    }
}
