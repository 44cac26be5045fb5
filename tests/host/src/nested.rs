// SPDX-License-Identifier: GPL-2.0

//! Where `/dev/kvm` has no SynIC (or is not there), a program runs itself in a QEMU guest that has: the same binary
//! with the same arguments, the same output and exit status.

use std::path::PathBuf;
use std::process::Command;

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

/// Returns where this machine's `/dev/kvm` serves; else runs this program in the QEMU guest and exits with its status.
/// Prints which of the two it is.
pub fn ensure_synic() {
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
    run_nested(&[])
}

/// Returns in a QEMU guest in which guest time counts instructions; elsewhere runs this program in one, whatever
/// `/dev/kvm` there is, and exits with its status.
pub fn ensure_counted() {
    if !is_nested() {
        println!("# host: running in a QEMU guest that counts instructions");
        // Timers that come late, all at once, are in the figures.
        run_nested(&[("OUTER_ARGS", COUNTING), ("OUTER_APPEND", "highres=on")]);
    }
}

/// Runs this program in the QEMU guest and exits with its status. Where that guest breaks down, another one runs it again:
/// it goes on from where it was if it keeps that in its [`progress_file`].
fn run_nested(settings: &[(&str, &str)]) -> ! {
    let script = std::env::var_os("HV_OUTER_RUN").map_or_else(
        || build_folder().join("../tests/guest/outer-run.sh"),
        PathBuf::from,
    );
    let progress = build_folder().join(format!("guest/progress.{}", std::process::id()));
    let mut line = format!(
        "{NESTED}=1 {PROGRESS}={} ",
        quote(&progress.to_string_lossy())
    );
    for (name, value) in
        std::env::vars().filter(|(name, _)| name.starts_with("HV_") && name != "HV_ENTERED")
    {
        line.push_str(&format!("{name}={} ", quote(&value)));
    }
    let program = std::env::current_exe().unwrap_or_default();
    line.push_str(&quote(&program.to_string_lossy()));
    for argument in std::env::args().skip(1) {
        line.push(' ');
        line.push_str(&quote(&argument));
    }
    let run = || {
        let settings = settings.iter().copied();
        let status = Command::new(&script).arg(&line).envs(settings).status();
        status.map(|status| status.code().unwrap_or(1))
    };
    // Of another program that had this number.
    let _ = std::fs::remove_file(&progress);
    let mut result = run();
    let (mut left, mut reached) = (GUESTS - 1, None);
    while left > 0 && matches!(result, Ok(DIED)) {
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
