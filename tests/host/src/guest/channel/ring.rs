// SPDX-License-Identifier: GPL-2.0

//! A channel's rings: signals, indices and other control words.

use super::ChannelHandle;
use crate::guest::Error;
use crate::guest::Result;
use crate::ring::Indices;
use crate::ring::RingError;
use crate::ring::Word;

impl ChannelHandle<'_> {
    /// Signals the guest without need.
    pub fn signal(&self) -> Result<()> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, link| open.signal(link)))
            .ok_or_else(|| self.not_open())
    }

    /// The indices of both rings: host-to-guest, guest-to-host.
    pub fn indices(&self) -> Result<(Indices, Indices)> {
        let indices = self
            .guest
            .with_bus(|bus| {
                bus.with_open(self.service, |open, _| {
                    Ok((open.to_guest().indices()?, open.to_host().indices()?))
                })
            })
            .ok_or_else(|| self.not_open())?;
        indices.map_err(|error: RingError| error.into())
    }

    /// Waits until the guest has read all packets and stored its read index.
    pub fn wait_read(&self) -> Result<()> {
        let service = self.service;
        self.guest
            .wait_bus(&format!("{service}: empty ring"), |bus| {
                let used = bus.with_open(service, |open, _| open.to_guest().used());
                matches!(used, Some(Ok(0))).then_some(())
            })
    }

    /// Bytes of data in the host-to-guest ring.
    pub fn ring_size(&self) -> Result<u32> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, _| open.to_guest().size()))
            .ok_or_else(|| self.not_open())
    }

    /// Writes any value to a control word: of the guest-to-host ring if `to_host`, else of the host-to-guest ring.
    pub fn set_control(&self, to_host: bool, word: Word, value: u32) -> Result<()> {
        self.guest
            .with_bus(|bus| {
                bus.with_open(self.service, |open, _| match to_host {
                    true => open.to_host().set_control(word, value),
                    false => open.to_guest().set_control(word, value),
                })
            })
            .ok_or_else(|| self.not_open())?
            .map_err(Error::from)
    }

    /// Writes any write index to the host-to-guest ring.
    pub fn set_write_index(&self, value: u32) -> Result<()> {
        self.guest
            .with_bus(|bus| {
                bus.with_open(self.service, |open, _| {
                    open.to_guest().set_write_index(value)
                })
            })
            .ok_or_else(|| self.not_open())?
            .map_err(Error::from)
    }

    /// Writes any read index to the guest-to-host ring.
    pub fn set_read_index(&self, value: u32) -> Result<()> {
        self.guest
            .with_bus(|bus| {
                bus.with_open(self.service, |open, _| open.to_host().set_read_index(value))
            })
            .ok_or_else(|| self.not_open())?
            .map_err(Error::from)
    }
}
