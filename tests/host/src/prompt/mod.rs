// SPDX-License-Identifier: GPL-2.0

//! The host's prompt: the console of a guest, live in both directions, and commands to its host.
//!
//! All that commands do they do with [`Guest`](crate::guest::Guest) and [`ChannelHandle`](crate::guest::ChannelHandle),
//! as scenarios do. [`command`] reads them, [`session`] carries them out, [`terminal`] is where they come from if someone
//! types them, [`preparation`] makes one of this project's guests ready for them.

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

use std::path::PathBuf;
use std::process::ExitCode;

use crate::guest::Module;
use crate::machine::Config;
use crate::nested;

use self::session::Session;

/// What the prompt is given.
#[derive(Clone)]
pub struct Options {
    /// The machine.
    pub config: Config,
    /// The module that answers for the services in one of this project's guests.
    pub module: Module,
    /// A file with commands, instead of standard input.
    pub commands: Option<PathBuf>,
    /// A transcript to be replayed, instead of any commands.
    pub replay: Option<PathBuf>,
}

/// The exit status where the emulation broke down: another attempt may do better.
const BROKEN_DOWN: u8 = 125;

/// Boots the machine and carries out the commands that come. The exit status says whether all of them did what they were
/// to.
pub fn run(options: &Options) -> ExitCode {
    if let Some(file) = &options.replay {
        return status(replay::run(options, file));
    }
    let is_typed = options.commands.is_none() && nested::is_terminal();
    let ended = match (&options.commands, is_typed) {
        (None, true) => Session::start(options).and_then(terminal::run),
        (None, false) => {
            Session::start(options).and_then(|it| lines::run(it, std::io::stdin().lock()))
        }
        (Some(file), _) => match std::fs::File::open(file) {
            Ok(open) => {
                Session::start(options).and_then(|it| lines::run(it, std::io::BufReader::new(open)))
            }
            Err(error) => Err(format!("{}: {error}", file.display()).into()),
        },
    };
    status(ended)
}

/// The exit status; what went wrong is printed.
fn status(ended: crate::guest::Result<ExitCode>) -> ExitCode {
    ended.unwrap_or_else(|error| {
        eprintln!("host: {error}");
        ExitCode::FAILURE
    })
}
