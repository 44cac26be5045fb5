// SPDX-License-Identifier: GPL-2.0

//! Commands about files: a backup, and a copy into the guest.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use super::command::NAME;
use super::session::expected;
use super::session::meaning;
use super::session::Failure;
use super::session::Outcome;
use super::session::Session;
use crate::ic::fcopy;
use crate::ic::vss;
use crate::ic::E_FILE_EXISTS;
use crate::ic::S_OK;
use crate::service::Service;

/// A smaller file is copied without a line of progress.
const SMALL: u64 = 200_000;

impl Session {
    /// Backs the guest up: freezes its file systems for this time.
    pub(super) fn backup(&self, hold: Duration) -> Outcome {
        let ask = |what: &str, operation: u8| self.ask(Service::Vss, what, vss::body(operation));
        ask("HOT_BACKUP", vss::HOT_BACKUP)?;
        self.say("  the guest can be backed up while it runs");
        ask("FREEZE", vss::FREEZE)?;
        let frozen = Instant::now();
        self.say(&format!(
            "  its file systems are frozen, for {} s",
            hold.as_secs()
        ));
        self.hold(hold);
        ask("THAW", vss::THAW)?;
        let seconds = frozen.elapsed().as_secs_f64();
        self.say("  they are thawed");
        ask("BU_COMPLETE", vss::BU_COMPLETE)?;
        self.say(&format!("backed up: frozen for {seconds:.1} s"));
        Ok(())
    }

    /// Copies a file into the guest.
    pub(super) fn copy(
        &self,
        file: &Path,
        destination: Option<String>,
        overwrite: bool,
    ) -> Outcome {
        let (open, size) = match open(file) {
            Ok(open) => open,
            Err(why) => {
                return expected(format!(
                    "a file that can be read here, not {:?}: {why}",
                    file.display()
                ))
            }
        };
        let (folder, name) = match place(file, destination) {
            Some(place) => place,
            None => return expected("a name of at most 259 UTF-16 units"),
        };
        let start = Instant::now();
        let flags = fcopy::CREATE_PATH | if overwrite { fcopy::OVERWRITE } else { 0 };
        let channel = self.ready(Service::FCopy)?;
        let begun = channel.ask(fcopy::start(&folder, &name, flags, size))?;
        match begun.status {
            S_OK => {}
            E_FILE_EXISTS => {
                let why = format!("{folder}{name} exists: --overwrite replaces it");
                return Err(Failure::Failed(why));
            }
            status => return Err(Failure::Failed(format!("copy: {}", meaning(status)))),
        }
        if let Err(why) = self.pieces(open, size) {
            // The guest removes the part that it has.
            let _ = channel.ask(fcopy::end(fcopy::CANCEL));
            return Err(why);
        }
        self.ask(Service::FCopy, "copy", fcopy::end(fcopy::COMPLETE))?;
        self.say(&format!(
            "copied {size} bytes to {folder}{name} in {:.1} s",
            start.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// Sends the file piece by piece.
    fn pieces(&self, mut file: File, size: u64) -> Outcome {
        let channel = self.guest.channel(Service::FCopy);
        let (mut sent, mut told) = (0, 0);
        while sent < size {
            let mut piece = Vec::new();
            let most = (size - sent).min(fcopy::PIECE as u64);
            let read = file.by_ref().take(most).read_to_end(&mut piece);
            if read.as_ref().ok() != Some(&(most as usize)) {
                let why = "copy: the file has shrunk, or can no longer be read";
                return Err(Failure::Failed(why.to_owned()));
            }
            let reply = channel.ask(fcopy::write(sent, &piece))?;
            if reply.status != S_OK {
                let why = meaning(reply.status);
                return Err(Failure::Failed(format!("copy, at byte {sent}: {why}")));
            }
            sent += most;
            let quarters = sent * 4 / size;
            if quarters > told && size >= SMALL {
                told = quarters;
                self.say(&format!("  {} %", quarters * 25));
            }
        }
        Ok(())
    }
}

/// Opens a file; gives its size, too. Opening anything but a file might block.
fn open(path: &Path) -> std::io::Result<(File, u64)> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("not a file"));
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// The file's folder and name in the guest; `None` if one is too long.
fn place(file: &Path, destination: Option<String>) -> Option<(String, String)> {
    let destination = destination.unwrap_or_else(|| "/tmp/".to_owned());
    let at = destination.rfind('/')? + 1;
    let (folder, name) = destination.split_at(at);
    let name = match name {
        "" => file.file_name()?.to_string_lossy().into_owned(),
        name => name.to_owned(),
    };
    let fits = |text: &str| text.encode_utf16().count() < NAME / 2;
    (fits(folder) && fits(&name)).then(|| (folder.to_owned(), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_folder_or_a_file() {
        let file = Path::new("some/file.bin");
        let at = |destination: &str| place(file, Some(destination.to_owned())).unwrap();
        assert_eq!(place(file, None), Some(("/tmp/".into(), "file.bin".into())));
        assert_eq!(at("/srv/"), ("/srv/".into(), "file.bin".into()));
        assert_eq!(at("/srv/other"), ("/srv/".into(), "other".into()));
        assert_eq!(at("/other"), ("/".into(), "other".into()));
        assert_eq!(place(file, Some(format!("/{}", "x".repeat(260)))), None);
    }
}
