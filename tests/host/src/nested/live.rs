// SPDX-License-Identifier: GPL-2.0

//! Standard input that someone types or a pipe brings, also for a program in the QEMU guest; and the terminal.
//!
//! In the QEMU guest standard input is a serial port, which does not end: the byte [`END`] stands for the end.

use std::io;
use std::io::IsTerminal;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use super::is_nested;

/// Stands for the end of standard input in the QEMU guest. UTF-8 does not use this byte.
const END: u8 = 0xff;

/// Another byte that UTF-8 does not use: takes the place of an [`END`] in the input.
const INVALID: u8 = 0xfe;

/// Names the file that says that the program in the QEMU guest reads its standard input.
const READING: &str = "HV_READING";

/// Says in the QEMU guest, or in a test, whether standard input is a terminal.
pub(super) const TERMINAL: &str = "HV_TERMINAL";

/// Says in the QEMU guest how large the terminal is: rows and columns.
const SIZE: &str = "HV_TERMINAL_SIZE";

/// How often to look for the file of [`READING`].
const LOOK: Duration = Duration::from_millis(100);

/// Cleans up behind this program, however it ends, SIGKILL included: reads its standard input up to the end, ends the
/// child, and gives the terminal (its standard output) the settings that it had. The terminal is left alone if another
/// program has already changed the settings. Arguments: the settings, the child's process id.
const KEEPER: &str = r#"
trap '' HUP INT QUIT TERM TSTP TTIN TTOU
exec 3<&1
before=$1 child=$2 raw=
while read -r word settings; do
    case $word in
    raw) raw=$settings ;;
    over) child= ;;
    esac
done
[ -z "$child" ] || kill "$child"
[ -z "$raw" ] || [ "$(stty -g <&3)" != "$raw" ] || stty "$before" <&3
"#;

/// The process that runs [`KEEPER`].
static KEEPS: Mutex<Option<Child>> = Mutex::new(None);

/// Whether standard input is a terminal, here or where the QEMU guest was started.
pub fn is_terminal() -> bool {
    match std::env::var_os(TERMINAL) {
        Some(value) => value == "1",
        None => io::stdin().is_terminal(),
    }
}

/// Runs `stty` on the terminal; what it prints.
fn stty(arguments: &[&str]) -> Option<String> {
    let ran = Command::new("stty")
        .args(arguments)
        .stdin(Stdio::inherit())
        .output();
    let text = String::from_utf8(ran.ok()?.stdout).ok()?;
    Some(text.trim().to_owned())
}

/// Rows and columns of the terminal, if they are known, as the program was started.
pub fn terminal_size() -> Option<(u16, u16)> {
    let text = match std::env::var(SIZE) {
        Ok(text) => text,
        Err(_) if io::stdin().is_terminal() => stty(&["size"])?,
        Err(_) => return None,
    };
    let (rows, columns) = text.split_once(' ')?;
    let size = (rows.parse().ok()?, columns.parse().ok()?);
    Some(size).filter(|(rows, columns)| *rows > 0 && *columns > 0)
}

/// Starts the keeper.
fn start_keeper(child: Option<u32>) {
    let before = match io::stdin().is_terminal() {
        true => stty(&["-g"]).unwrap_or_default(),
        false => String::new(),
    };
    let terminal = io::stdin().as_fd().try_clone_to_owned();
    let keeper = Command::new("sh")
        .args(["-c", KEEPER, "keeper", &before])
        .arg(child.map_or(String::new(), |id| id.to_string()))
        .stdin(Stdio::piped())
        .stdout(terminal.map_or(Stdio::null(), Stdio::from))
        .stderr(Stdio::null())
        .spawn();
    *KEEPS.lock().unwrap_or_else(PoisonError::into_inner) = keeper.ok();
}

/// Tells the keeper something.
fn tell_keeper(text: &str) {
    let mut keeps = KEEPS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pipe) = keeps.as_mut().and_then(|keeper| keeper.stdin.as_mut()) {
        let _ = writeln!(pipe, "{text}");
    }
}

/// Has each key come at once, if standard input is a terminal.
fn make_raw() {
    if io::stdin().is_terminal() && stty(&["raw", "-echo", "opost", "onlcr"]).is_some() {
        tell_keeper(&format!("raw {}", stty(&["-g"]).unwrap_or_default()));
    }
}

/// Leaves the terminal as it was.
pub fn tidy_up() {
    tell_keeper("over");
    let keeper = KEEPS.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut keeper) = keeper {
        // This closes its standard input, and waits.
        let _ = keeper.wait();
    }
}

/// Standard input, as the person or program gives it that runs this program.
pub struct StandardInput {
    is_over: bool,
}

/// Begins to read standard input. A terminal is raw from here on, until [`tidy_up`] or the end of this program.
pub fn open_input() -> StandardInput {
    match std::env::var_os(READING) {
        Some(file) => {
            let _ = std::fs::write(file, "");
        }
        None => {
            start_keeper(None);
            make_raw();
        }
    }
    StandardInput { is_over: false }
}

impl Read for StandardInput {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.is_over {
            return Ok(0);
        }
        let length = io::stdin().read(bytes)?;
        let end = bytes[..length].iter().position(|&byte| byte == END);
        match end.filter(|_| is_nested()) {
            Some(end) => {
                self.is_over = true;
                Ok(end)
            }
            None => Ok(length),
        }
    }
}

/// What a program in the QEMU guest has to know of standard input, as assignments before its command line.
pub(super) fn settings(reading: &str) -> String {
    // The terminal that TERMINAL tells of may be a test.
    let terminal = u8::from(is_terminal());
    let (rows, columns) = terminal_size().unwrap_or_default();
    format!("{READING}={reading} {TERMINAL}={terminal} {SIZE}='{rows} {columns}' ")
}

/// Runs a command that starts the QEMU guest, with this program's standard input once the file says that the program in
/// there reads it.
pub(super) fn run(command: &mut Command, reading: &Path) -> io::Result<ExitStatus> {
    let _ = std::fs::remove_file(reading);
    // Pipes, both: QEMU makes its standard output O_NONBLOCK. Were that the terminal, this program's standard input would
    // be O_NONBLOCK, too.
    let mut child = command
        .env("OUTER_INPUT", "yes")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    start_keeper(Some(child.id()));
    if let Some(pipe) = child.stdin.take() {
        let file = reading.to_owned();
        std::thread::spawn(move || forward(pipe, &file));
    }
    if let Some(mut output) = child.stdout.take() {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = output.read(&mut bytes) {
            let mut stdout = io::stdout().lock();
            let _ = stdout
                .write_all(&bytes[..length])
                .and_then(|()| stdout.flush());
        }
    }
    let status = child.wait();
    let _ = std::fs::remove_file(reading);
    tidy_up();
    status
}

/// Writes standard input to a pipe, with [`END`] behind it, once the file is there.
fn forward(mut pipe: impl Write, file: &Path) {
    while !file.exists() {
        std::thread::sleep(LOOK);
    }
    make_raw();
    let mut bytes = [0; 4096];
    let mut input = io::stdin().lock();
    while let Ok(length @ 1..) = input.read(&mut bytes) {
        let bytes = &mut bytes[..length];
        for byte in bytes.iter_mut().filter(|byte| **byte == END) {
            *byte = INVALID;
        }
        if pipe.write_all(bytes).is_err() {
            return;
        }
    }
    let _ = pipe.write_all(&[END]);
    // QEMU takes the pipe's end for a lost line.
    loop {
        std::thread::park();
    }
}
