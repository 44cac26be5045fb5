// SPDX-License-Identifier: GPL-2.0

//! The transcript: all messages and packets between host and guest, with time stamps.
//!
//! Each entry is a line: host time in seconds since the machine was created, guest reference time in 100 ns units,
//! speaker, decoded text, and bytes in hexadecimal. Of a long message only the beginning is kept. The normalised form
//! omits times and bytes, and with them all ids that differ between runs. So diff can compare two runs.

use std::fmt::Write;
use std::io;
use std::path::Path;
use std::time::Instant;

use crate::bytes::hex;

/// Messages with more bytes than this are cut, such as pieces of a copied file.
const WHOLE: usize = 4096;

/// The least number of entries that are kept. At most twice as many are kept.
const KEPT: usize = 1 << 16;

/// The number of bytes that are kept of a cut message.
const BEGINNING: usize = 256;

/// Who spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// The host, to the guest.
    Host,
    /// The guest, to the host.
    Guest,
    /// Nobody: a remark, such as an expired timer or an error of the host.
    Note,
    /// A remark about a fault of the guest.
    Error,
}

/// One entry.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Nanoseconds of the host's monotonic clock since the transcript's start.
    pub host_ns: u64,
    /// The guest's reference time in 100 ns units.
    pub reference: u64,
    /// Who spoke.
    pub speaker: Speaker,
    /// "vmbus", or the service's name.
    pub topic: &'static str,
    /// The decoded text, without ids that differ between runs.
    pub text: String,
    /// The bytes of the message or payload. If they were cut, the first [`BEGINNING`] bytes.
    pub bytes: Vec<u8>,
    /// The number of bytes that were cut off.
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

    /// The entry's line in the normalised form.
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

/// The transcript of a machine.
pub struct Transcript {
    start: Instant,
    entries: Vec<Entry>,
    /// The number of older entries that were dropped.
    forgotten: usize,
}

impl Transcript {
    /// An empty transcript that starts now.
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

    /// The number of entries, including dropped ones.
    pub fn length(&self) -> usize {
        self.forgotten + self.entries.len()
    }

    /// The entries from number `from` on, as far as they are kept.
    fn since(&self, from: usize) -> &[Entry] {
        let first = from.saturating_sub(self.forgotten);
        self.entries.get(first..).unwrap_or_default()
    }

    /// Nanoseconds since the transcript's start.
    pub fn elapsed_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The normalised form of the entries from number `from` on, a line each.
    pub fn normalised(&self, from: usize) -> String {
        let entries = self.since(from).iter();
        entries.fold(String::new(), |mut text, entry| {
            let _ = writeln!(text, "{}", entry.normalised());
            text
        })
    }

    /// Writes the entries from number `from` on to a file.
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
