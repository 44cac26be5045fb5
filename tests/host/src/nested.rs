// SPDX-License-Identifier: GPL-2.0

//! If `/dev/kvm` is absent or has no SynIC, a program runs itself in a QEMU guest that has a SynIC: the same binary,
//! arguments, output and exit status.

mod live;

use std::path::PathBuf;
use std::process::Command;

use crate::images::build_folder;
use crate::kvm::Kvm;

pub use self::live::is_terminal;
pub use self::live::open_input;
pub use self::live::terminal_size;
pub use self::live::tidy_up;

/// Set in the QEMU guest. A program that finds no SynIC there gives up.
const NESTED: &str = "HV_HOST_NESTED";

/// Names a file with the progress of the program in the QEMU guest.
const PROGRESS: &str = "HV_PROGRESS";

/// How many QEMU guests in a row may break down without progress: QEMU's emulation of SVM has bugs.
const GUESTS: u32 = 3;

/// Exit status of `outer-run.sh` if the QEMU guest broke down.
const DIED: i32 = 125;

/// QEMU's options for counting: each instruction takes a nanosecond of guest time. Besides, only idling takes time. The
/// options exclude all input that differs between runs.
const COUNTING: &str = "-icount shift=0,sleep=off -seed 1 -rtc base=2026-01-01,clock=vm";

/// The standard input of a program in the QEMU guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// Empty.
    Empty,
    /// This program's input, byte by byte. A mark ends it.
    Live,
}

/// Returns if this machine's `/dev/kvm` has a SynIC. Else runs this program in a QEMU guest and exits with its status.
/// Prints which of the two happens.
pub fn ensure_synic() {
    ensure_with(Input::Empty);
}

/// Like [`ensure_synic`], for a program that reads its standard input by [`open_input`]: the QEMU guest gets the input.
pub fn ensure_synic_live() {
    ensure_with(Input::Live);
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

/// Returns in a QEMU guest whose time counts instructions. Elsewhere runs this program in such a guest, even if
/// `/dev/kvm` has a SynIC, and exits with its status.
pub fn ensure_counted() {
    if !is_nested() {
        println!("# host: running in a QEMU guest that counts instructions");
        // Late timers expire together, and distort the figures. High resolution avoids that.
        let settings = [("OUTER_ARGS", COUNTING), ("OUTER_APPEND", "highres=on")];
        run_nested(&settings, Input::Empty);
    }
}

/// Runs this program in the QEMU guest and exits with its status. If the guest breaks down, another guest runs the
/// program again. The program resumes its work if it keeps its progress in [`progress_file`].
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
    for (name, value) in std::env::vars().filter(|(name, _)| {
        name.starts_with("HV_") && name != "HV_ENTERED" && name != live::TERMINAL
    }) {
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
        let reading = quote(&reading.to_string_lossy());
        line.insert_str(0, &live::settings(&reading));
        line.push_str(" </dev/ttyS0");
    }
    let run = || {
        let mut command = Command::new(&script);
        command.arg(&line).envs(settings.iter().copied());
        let status = match input {
            Input::Empty => command.status(),
            Input::Live => live::run(&mut command, &reading),
        };
        status.map(|status| status.code().unwrap_or(1))
    };
    // Remove a file that another program with the same process id has left.
    let _ = std::fs::remove_file(&progress);
    let mut result = run();
    let (mut left, mut reached) = (GUESTS - 1, None);
    // Typed input is lost with the guest: do not run the program again.
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

/// The file for a program's progress. It exists if the program has written it in a QEMU guest that broke down. `None`
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
