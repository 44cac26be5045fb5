// SPDX-License-Identifier: GPL-2.0

//! Connections of Hyper-V sockets, for the host's programs.

use std::sync::Arc;
use std::time::Duration;

use super::Guest;
use super::Result;
use super::TIMEOUT;
use crate::machine::Shared;
use crate::vmbus::bus::Bus;

/// The maximum number of bytes in a packet. The guest's ring has room for more than one such packet.
const PIECE: usize = 8 << 10;

/// The host's end of a connection. Dropping it rescinds the connection.
pub struct Connection {
    shared: Arc<Shared>,
    number: u32,
}

/// A port of the host to which the guest can connect until this is dropped.
pub struct Listener {
    shared: Arc<Shared>,
    port: u32,
}

impl Guest {
    /// Offers the guest a connection to this port of the guest. Fails if the guest is not on the bus.
    pub fn connect(&self, port: u32) -> Result<Connection> {
        Connection::begin(self.machine.shared(), port)
    }

    /// Accepts connections of the guest to this port.
    pub fn listen(&self, port: u32) -> Listener {
        self.with_bus(|bus| bus.listen(port));
        Listener {
            shared: self.machine.shared().clone(),
            port,
        }
    }

    /// Waits until no connection exists, and the guest has released all rescinded ones.
    pub fn wait_no_connections(&self) -> Result<()> {
        self.wait_bus("release of all connections", |bus| {
            (bus.sockets() == 0).then_some(())
        })
    }
}

impl Connection {
    fn new(shared: &Arc<Shared>, number: u32) -> Self {
        Self {
            shared: shared.clone(),
            number,
        }
    }

    /// See [`Guest::connect`].
    pub(super) fn begin(shared: &Arc<Shared>, port: u32) -> Result<Self> {
        let number = shared.bus().connect(port)?;
        shared.announce();
        Ok(Self::new(shared, number))
    }

    /// Waits until `done` returns a value. Fails if the machine stops.
    fn wait<R>(
        &self,
        timeout: Duration,
        what: &str,
        mut done: impl FnMut(&mut Bus) -> Option<std::result::Result<R, String>>,
    ) -> Result<R> {
        let result = self.shared.wait_bus(timeout, |bus| {
            done(bus).or_else(|| {
                let exit = self.shared.exit()?;
                Some(Err(format!("the machine stopped ({exit:?})")))
            })
        });
        // Whoever waits for what this has changed looks now.
        self.shared.announce();
        let in_vain = || Err(format!("waited {timeout:?} in vain"));
        let result = result.unwrap_or_else(in_vain);
        result.map_err(|why| format!("a connection with the guest: {what}: {why}").into())
    }

    /// Waits until the guest has opened the connection.
    pub fn wait_connected(&self) -> Result<()> {
        self.wait_connected_within(TIMEOUT)
    }

    /// [`Connection::wait_connected`] with another time-out.
    pub fn wait_connected_within(&self, timeout: Duration) -> Result<()> {
        self.wait(timeout, "opened", |bus| {
            match bus.is_connected(self.number) {
                Ok(false) => None,
                Ok(true) => Some(Ok(())),
                Err(why) => Some(Err(why)),
            }
        })
    }

    /// Whether the guest has opened the connection.
    pub fn is_connected(&self) -> bool {
        self.shared.bus().is_connected(self.number) == Ok(true)
    }

    /// Sends bytes, and waits until the guest has room for them.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.write_within(bytes, TIMEOUT)
    }

    /// [`Connection::write`] with another time-out.
    pub fn write_within(&self, bytes: &[u8], timeout: Duration) -> Result<()> {
        bytes.chunks(PIECE).try_for_each(|piece| {
            self.wait(timeout, "written", |bus| bus.send_data(self.number, piece))
        })
    }

    /// Ends the direction to the guest.
    pub fn finish(&self) -> Result<()> {
        self.finish_within(TIMEOUT)
    }

    /// [`Connection::finish`] with another time-out.
    pub fn finish_within(&self, timeout: Duration) -> Result<()> {
        self.wait(timeout, "ended", |bus| bus.send_data(self.number, &[]))?;
        self.wait(timeout, "sent", |bus| match bus.is_sent(self.number) {
            Ok(false) => None,
            Ok(true) => Some(Ok(())),
            Err(why) => Some(Err(why)),
        })
    }

    /// Waits for the next bytes from the guest. No bytes at the end.
    pub fn read(&self) -> Result<Vec<u8>> {
        self.read_within(TIMEOUT)
    }

    /// [`Connection::read`] with another time-out.
    pub fn read_within(&self, timeout: Duration) -> Result<Vec<u8>> {
        self.wait(timeout, "read", |bus| bus.take_data(self.number))
    }

    /// Reads all bytes from the guest until the end.
    pub fn read_all(&self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let bytes = self.read()?;
            if bytes.is_empty() {
                return Ok(all);
            }
            all.extend(bytes);
        }
    }

    /// Rescinds the connection. Bytes in its rings are lost.
    pub fn hang_up(&self) {
        self.shared.bus().hang_up(self.number);
        self.shared.announce();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl Listener {
    /// Waits for the next connection of the guest.
    pub fn accept(&self) -> Result<Connection> {
        let number = self
            .shared
            .wait_bus(TIMEOUT, |bus| bus.accept(self.port))
            .ok_or_else(|| {
                format!(
                    "waited {TIMEOUT:?} in vain for a connection to {}",
                    self.port
                )
            })?;
        Ok(Connection::new(&self.shared, number))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.bus().stop_listening(self.port);
        self.shared.announce();
    }
}
