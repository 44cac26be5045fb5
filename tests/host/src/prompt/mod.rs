// SPDX-License-Identifier: GPL-2.0

//! The host's prompt: the console of a guest, live in both directions, and commands to the host.
//!
//! Commands use [`Guest`](crate::guest::Guest) and [`ChannelHandle`](crate::guest::ChannelHandle) alone, as scenarios do.
//! [`command`] parses commands, [`session`] carries them out, [`terminal`] and [`lines`] read them from a terminal and from
//! a file, [`preparation`] prepares one of this project's guests.

pub mod command;
mod data;
mod devices;
mod files;
mod lines;
mod power;
mod preparation;
mod replay;
mod session;
mod sockets;
mod status;
mod terminal;
mod words;

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::guest::Module;
use crate::machine::Config;
use crate::nested;

use self::session::Session;

/// What the command line says.
#[derive(Clone)]
pub struct Options {
    /// The machine.
    pub config: Config,
    /// The module that serves in one of this project's guests.
    pub module: Module,
    /// A file with commands, instead of standard input.
    pub commands: Option<PathBuf>,
    /// A transcript to replay, instead of commands.
    pub replay: Option<PathBuf>,
}

/// The exit status after a breakdown of the emulation: the caller may try again.
const BROKEN_DOWN: u8 = 125;

/// Boots the machine and carries out the commands. The exit status says whether each did what it must.
pub fn run(options: &Options) -> ExitCode {
    let ended = match (&options.replay, &options.commands) {
        (Some(file), _) => replay::run(options, file),
        (None, Some(file)) => match File::open(file) {
            Ok(open) => Session::start(options).and_then(|it| lines::run(it, BufReader::new(open))),
            Err(error) => Err(format!("{}: {error}", file.display()).into()),
        },
        (None, None) if nested::is_terminal() => Session::start(options).and_then(terminal::run),
        (None, None) => Session::start(options)
            .and_then(|it| lines::run(it, BufReader::new(nested::open_input()))),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("host: {error}");
        ExitCode::FAILURE
    })
}
