// SPDX-License-Identifier: GPL-2.0

//! The guest's console.

use super::Guest;
use super::Result;
use super::TIMEOUT;

impl Guest {
    /// What came out of the console since the last power-on.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(self.machine.shared().ports().console()).replace('\r', "")
    }

    /// How many bytes came out of it.
    pub fn console_length(&self) -> usize {
        self.machine.shared().ports().console().len()
    }

    /// Whether the console says this, behind its first `from` bytes.
    pub fn console_says(&self, text: &str, from: usize) -> bool {
        says(self.machine.shared().ports().console(), text, from)
    }

    /// Waits until the console says this, behind its first `from` bytes.
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

/// Whether `console` has `text` behind its first `from` bytes.
fn says(console: &[u8], text: &str, from: usize) -> bool {
    let mut texts = console.get(from..).unwrap_or_default().windows(text.len());
    texts.any(|it| it == text.as_bytes())
}
