// SPDX-License-Identifier: GPL-2.0

//! The guest's console.

use std::sync::Arc;
use std::time::Duration;

use super::Guest;
use super::Result;
use super::TIMEOUT;
use crate::machine::Shared;

impl Guest {
    /// The console's output since the last power-on.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(self.machine.shared().ports().console()).replace('\r', "")
    }

    /// The length of the console's output in bytes.
    pub fn console_length(&self) -> usize {
        self.machine.shared().ports().console().len()
    }

    /// Types bytes at the console.
    pub fn type_at_console(&self, bytes: &[u8]) {
        self.machine.shared().ports().send_to_console(bytes);
        self.machine.update_lines();
    }

    /// A reader of the console's output, from the start.
    pub fn console_reader(&self) -> ConsoleReader {
        ConsoleReader {
            shared: self.machine.shared().clone(),
            read: 0,
        }
    }

    /// Whether the console's output has `text` after its first `from` bytes.
    pub fn console_says(&self, text: &str, from: usize) -> bool {
        says(self.machine.shared().ports().console(), text, from)
    }

    /// Waits until the console's output has `text` after its first `from` bytes.
    pub fn wait_console(&self, text: &str, from: usize) -> Result<()> {
        let shared = self.machine.shared();
        let said = shared.wait_ports(TIMEOUT, |ports| match says(ports.console(), text, from) {
            true => Some(true),
            false => shared.exit().map(|_| false),
        });
        match said {
            Some(true) => Ok(()),
            _ => Err(self.error(&format!("waited in vain for {text:?} on the console"))),
        }
    }
}

/// Reads the console's output as it comes. For a thread of its own.
pub struct ConsoleReader {
    shared: Arc<Shared>,
    /// The number of bytes read.
    read: usize,
}

impl ConsoleReader {
    /// Waits for output since the last call and returns it. Empty after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Vec<u8> {
        let read = self.read;
        let fresh = self.shared.wait_ports(timeout, |ports| {
            let (bytes, end) = ports.console_since(read);
            (!bytes.is_empty()).then(|| (bytes.to_vec(), end))
        });
        let (bytes, end) = fresh.unwrap_or((Vec::new(), read));
        self.read = end;
        bytes
    }
}

/// Whether `console` has `text` after its first `from` bytes.
fn says(console: &[u8], text: &str, from: usize) -> bool {
    let mut texts = console.get(from..).unwrap_or_default().windows(text.len());
    texts.any(|it| it == text.as_bytes())
}
