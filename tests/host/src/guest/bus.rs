// SPDX-License-Identifier: GPL-2.0

//! The bus and its transcript, for scenarios.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use super::Error;
use super::Guest;
use super::Result;
use super::TIMEOUT;
use crate::service::Version;
use crate::vmbus::bus::Bus;
use crate::vmbus::bus::Connection;

impl Guest {
    /// The VMBus version of the connection. `None` without a connection.
    pub fn vmbus_version(&self) -> Option<Version> {
        match self.machine.shared().bus().connection() {
            Connection::Connected { version, .. } => Some(version),
            Connection::Disconnected => None,
        }
    }

    /// Reads or changes the bus directly.
    pub fn with_bus<R>(&self, act: impl FnOnce(&mut Bus) -> R) -> R {
        let result = act(&mut self.machine.shared().bus());
        self.machine.shared().announce();
        result
    }

    /// Waits until `done` returns a value. `what` describes the event for the error.
    pub fn wait_bus<R>(&self, what: &str, done: impl FnMut(&mut Bus) -> Option<R>) -> Result<R> {
        self.wait_bus_within(what, TIMEOUT, done)
    }

    /// [`Guest::wait_bus`] with another time-out.
    pub fn wait_bus_within<R>(
        &self,
        what: &str,
        timeout: Duration,
        done: impl FnMut(&mut Bus) -> Option<R>,
    ) -> Result<R> {
        let result = self.machine.shared().wait_bus(timeout, done);
        result.ok_or_else(|| match self.exit() {
            Some(exit) => self.error(&format!(
                "the machine stopped ({exit:?}) while waiting for {what}"
            )),
            None => self.error(&format!("waited {timeout:?} in vain for {what}")),
        })
    }

    /// Waits until `more` further messages of [`refuse_closes`](super::ChannelHandle::refuse_closes) were refused.
    pub fn wait_refused(&self, more: u32) -> Result<()> {
        let before = self.with_bus(|bus| bus.refused_closes());
        self.wait_bus("refusal of the guest's messages", |bus| {
            (bus.refused_closes() + more <= before).then_some(())
        })
    }

    /// Makes services behave as after a save and restore of the machine: as on a host, or as set by
    /// [`set_restore`](crate::ic::device::Device::set_restore). The machine itself runs on.
    pub fn save_restore(&self) {
        self.note("saved and restored");
        let now = Instant::now();
        for service in self.config().services.clone() {
            self.with_bus(|bus| bus.with_device(service, |device, _| device.restored(now)));
        }
    }

    /// The transcript's length, an argument for the functions below.
    pub fn transcript_length(&self) -> usize {
        self.with_bus(|bus| bus.transcript().length())
    }

    /// Adds a remark to the transcript.
    pub fn note(&self, text: &str) {
        self.with_bus(|bus| bus.note(text.to_owned()));
    }

    /// The transcript from entry `from` on, without parts that differ between runs.
    pub fn normalised_transcript(&self, from: usize) -> String {
        self.with_bus(|bus| bus.transcript().normalised(from))
    }

    /// Writes the transcript from entry `from` on to a file.
    pub fn save_transcript(&self, path: &Path, from: usize) -> Result<()> {
        self.with_bus(|bus| bus.transcript().save(path, from))
            .map_err(Error::from)
    }
}
