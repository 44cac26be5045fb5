// SPDX-License-Identifier: GPL-2.0

//! The record of everything that host and guest said to each other, with time stamps.
//!
//! One line an entry: host time in seconds since the machine was made, guest reference time in 100 ns units, who
//! spoke, what (decoded), and the bytes in hexadecimal, of which only the beginning where there are many. The
//! normalised form leaves out times and bytes (and with them all ids that differ between two runs), so that two runs
//! can be compared with diff.

use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::Instant;

use crate::bytes::hex;

/// What is longer than so many bytes, as the pieces of a copied file are, is not kept whole.
const WHOLE: usize = 4096;

/// So many entries are kept at least, and twice as many at most.
const KEPT: usize = 1 << 16;

/// What is kept of it, in bytes.
const BEGINNING: usize = 256;

/// Who spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The host, to the guest.
    Host,
    /// The guest, to the host.
    Guest,
    /// Nobody: a remark, such as a timer that ran out or an error that the host saw.
    Note,
    /// A remark about something that the guest must not do.
    Error,
}

/// One entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Nanoseconds of the host's monotonic clock since the transcript began.
    pub host_ns: u64,
    /// The guest's reference time in 100 ns units.
    pub reference: u64,
    /// Who spoke.
    pub speaker: Speaker,
    /// "vmbus" or the service's name.
    pub topic: &'static str,
    /// What was said, without ids that differ between runs.
    pub text: String,
    /// The message or the packet's payload, or the [`BEGINNING`] of it.
    pub bytes: Vec<u8>,
    /// The bytes that it had beyond these.
    pub left_out: usize,
}

impl Entry {
    fn direction(&self) -> &'static str {
        match self.speaker {
            Speaker::Host => "->",
            Speaker::Guest => "<-",
            Speaker::Note => "--",
            Speaker::Error => "!!",
        }
    }

    /// The line of the normalised form.
    pub fn normalised(&self) -> String {
        format!("{} {} {}", self.topic, self.direction(), self.text)
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.host_ns as f64 / 1e9;
        write!(
            f,
            "{seconds:11.6} {:>10} {}",
            self.reference,
            self.normalised()
        )?;
        match (self.bytes.is_empty(), self.left_out) {
            (true, _) => Ok(()),
            (_, 0) => write!(f, " [{}]", hex(&self.bytes)),
            (_, count) => write!(f, " [{} and {count} bytes]", hex(&self.bytes)),
        }
    }
}

/// The record of one machine's life.
pub struct Transcript {
    start: Instant,
    entries: Vec<Entry>,
    /// Older ones, which have been forgotten.
    forgotten: usize,
}

impl Transcript {
    /// An empty one that begins now.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            entries: Vec::new(),
            forgotten: 0,
        }
    }

    /// Adds an entry.
    pub fn add(
        &mut self,
        reference: u64,
        speaker: Speaker,
        topic: &'static str,
        text: String,
        bytes: &[u8],
    ) {
        let host_ns = self.start.elapsed().as_nanos() as u64;
        if self.entries.len() == 2 * KEPT {
            self.entries.drain(..KEPT);
            self.forgotten += KEPT;
        }
        let kept = match bytes.len() {
            length if length > WHOLE => BEGINNING,
            length => length,
        };
        self.entries.push(Entry {
            host_ns,
            reference,
            speaker,
            topic,
            text,
            bytes: bytes[..kept].to_vec(),
            left_out: bytes.len() - kept,
        });
    }

    /// All entries that are kept, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// How many entries there have been.
    pub fn length(&self) -> usize {
        self.forgotten + self.entries.len()
    }

    /// Those from number `from` on, as far as they are kept.
    fn since(&self, from: usize) -> &[Entry] {
        let first = from.saturating_sub(self.forgotten);
        self.entries.get(first..).unwrap_or_default()
    }

    /// Nanoseconds since the beginning.
    pub fn elapsed_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The normalised form of the entries from number `from` on, one a line.
    pub fn normalised(&self, from: usize) -> String {
        let entries = self.since(from).iter();
        entries.fold(String::new(), |mut text, entry| {
            let _ = writeln!(text, "{}", entry.normalised());
            text
        })
    }

    /// Writes the entries from number `from` on into a file.
    pub fn save(&self, path: &Path, from: usize) -> io::Result<()> {
        let text = self
            .since(from)
            .iter()
            .fold(String::new(), |mut text, entry| {
                let _ = writeln!(text, "{entry}");
                text
            });
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, text)
    }
}

impl Default for Transcript {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_normalise_to_the_same() {
        let run = |reference| {
            let mut transcript = Transcript::new();
            transcript.add(
                reference,
                Speaker::Host,
                "vmbus",
                "OFFERCHANNEL heartbeat".into(),
                &[reference as u8],
            );
            transcript.add(
                reference,
                Speaker::Error,
                "heartbeat",
                "surplus".into(),
                &[],
            );
            (
                transcript.normalised(0),
                transcript.entries()[0].to_string(),
            )
        };
        assert_eq!(run(1).0, run(2).0);
        assert_ne!(run(1).1, run(2).1);
        assert_eq!(
            run(1).0,
            "vmbus -> OFFERCHANNEL heartbeat\nheartbeat !! surplus\n"
        );
        assert!(run(3).1.ends_with("[03]"));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut transcript = Transcript::new();
        for number in 0..3 * KEPT {
            let text = format!("{number}");
            transcript.add(0, Speaker::Note, "vmbus", text, &[]);
        }
        let last = 3 * KEPT - 1;
        assert_eq!(transcript.length(), 3 * KEPT);
        assert_eq!(transcript.entries().len(), 2 * KEPT);
        assert_eq!(transcript.normalised(last), format!("vmbus -- {last}\n"));
        assert_eq!(transcript.normalised(last + 1), "");
        let all = transcript.normalised(0);
        assert!(all.starts_with(&format!("vmbus -- {KEPT}\n")));
    }

    #[test]
    fn long_packets_are_cut() {
        let said = |length| {
            let mut transcript = Transcript::new();
            transcript.add(0, Speaker::Host, "fcopy", "WRITE".into(), &vec![1; length]);
            transcript.entries()[0].to_string()
        };
        assert!(said(WHOLE).ends_with(&format!("[{}]", "01".repeat(WHOLE))));
        let beginning = "01".repeat(BEGINNING);
        assert!(said(6000).ends_with(&format!("[{beginning} and 5744 bytes]")));
    }
}
