// SPDX-License-Identifier: GPL-2.0

//! Connections of Hyper-V sockets, requested by the host or by the guest.
//!
//! Each connection is a channel. The host offers the channel, and the guest opens it: at once if the guest has requested
//! the connection, otherwise if a program listens. If no program listens, the host is not told. The host rescinds the
//! channel when both sides are done.

use super::Bus;
use super::Connection;
use crate::guid::Guid;
use crate::ic::device::State;
use crate::service::Service;
use crate::vmbus::channel::Channel;
use crate::vmbus::channel::Socket;
use crate::vmbus::socket;

/// The maximum number of connections: half of the channels for which a guest has numbers.
const MOST: usize = 1024;

/// The first port in the ids of the host's ends of its connections.
const FIRST_PORT: u32 = 0x8000_0000;

/// The error of a connection that has ended.
const GONE: &str = "the connection is gone";

impl Bus {
    /// Begins to accept connections of the guest to this port.
    pub fn listen(&mut self, port: u32) {
        self.listening.insert(port);
    }

    /// Stops to accept connections to this port. Rescinds those that nobody has claimed.
    pub fn stop_listening(&mut self, port: u32) {
        self.listening.remove(&port);
        while let Some(number) = self.accept(port) {
            self.hang_up(number);
        }
    }

    /// Claims a connection of the guest to this port. Returns the number of the connection, if there is one.
    pub fn accept(&mut self, port: u32) -> Option<u32> {
        let mut sockets = self.channels.iter_mut().filter(|channel| channel.present);
        let socket = sockets.find_map(|channel| {
            let socket = channel.socket.as_mut();
            socket.filter(|socket| socket.is_unclaimed && socket.port == port)
        })?;
        socket.is_unclaimed = false;
        Some(socket.number)
    }

    /// Offers the guest a connection to this port of the guest. Returns the number of the connection. Fails if the guest is
    /// not on the bus.
    pub fn connect(&mut self, port: u32) -> Result<u32, String> {
        if !matches!(self.connection, Connection::Connected { offered: true, .. }) {
            return Err("no guest is on the bus".to_owned());
        }
        if self.sockets() >= MOST {
            return Err(format!("there are {MOST} connections"));
        }
        let instance = socket::service_id(FIRST_PORT | self.connections);
        Ok(self.add_socket(socket::service_id(port), instance, port, true))
    }

    /// Whether the host accepts the connection that the guest requests.
    pub(super) fn accepts(&self, endpoint: &Guid, service: &Guid) -> bool {
        let is_listening = socket::port(service).is_some_and(|port| self.listening.contains(&port));
        // A guest knows a channel by these two.
        let is_taken =
            |channel: &Channel| channel.class == *service && channel.instance == *endpoint;
        is_listening && !self.channels.iter().any(is_taken) && self.sockets() < MOST
    }

    /// Offers the guest the connection that the guest has requested.
    pub(super) fn offer_connection(&mut self, endpoint: Guid, service: Guid) {
        let port = socket::port(&service).unwrap_or_default();
        self.add_socket(service, endpoint, port, false);
    }

    fn add_socket(&mut self, class: Guid, instance: Guid, port: u32, is_from_host: bool) -> u32 {
        let number = self.connections;
        self.connections += 1;
        let mut channel = Channel::new(Service::Socket);
        channel.class = class;
        channel.instance = instance;
        channel.socket = Some(Socket {
            number,
            is_from_host,
            port,
            is_unclaimed: !is_from_host,
            has_ended: false,
        });
        self.channels.push(channel);
        self.plug_in(self.channels.len() - 1);
        number
    }

    /// Rescinds a connection. Bytes in its rings are lost.
    pub fn hang_up(&mut self, number: u32) {
        if let Some(index) = self.socket(number) {
            self.unplug(index);
            self.drop_gone();
        }
    }

    /// The number of connections, with those that are rescinded but not yet released.
    pub fn sockets(&self) -> usize {
        let is_socket = |channel: &&Channel| channel.socket.is_some();
        self.channels.iter().filter(is_socket).count()
    }

    /// The index of the connection's channel, if the host has not rescinded it.
    fn socket(&self, number: u32) -> Option<usize> {
        self.channels.iter().position(|channel| {
            channel.present && channel.socket.is_some_and(|it| it.number == number)
        })
    }

    /// Whether the guest has opened a connection. Fails if the connection is gone, or the guest has closed it.
    pub fn is_connected(&self, number: u32) -> Result<bool, String> {
        let index = self.socket(number).ok_or(GONE)?;
        let channel = &self.channels[index];
        match (channel.open().is_some(), channel.opens) {
            (true, _) => Ok(true),
            (false, 0) => Ok(false),
            _ => Err("the guest has closed the connection".to_owned()),
        }
    }

    /// Sends bytes on a connection. No bytes end the direction. `None` while the ring has no room, or the guest has not
    /// opened the connection yet.
    pub fn send_data(&mut self, number: u32, data: &[u8]) -> Option<Result<(), String>> {
        match self.is_connected(number) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(why) => return Some(Err(why)),
        }
        let index = self.socket(number)?;
        let open = self.channels[index].offered.as_mut()?.open.as_mut()?;
        if open.waiting() > 0 {
            return None;
        }
        let sent = open.send(&mut self.link, socket::packet(data));
        Some(sent.map_err(|error| error.to_string()))
    }

    /// Whether all sent bytes are in the connection's ring.
    pub fn is_sent(&self, number: u32) -> Result<bool, String> {
        let index = self.socket(number).ok_or(GONE)?;
        Ok(self.channels[index]
            .open()
            .is_none_or(|open| open.waiting() == 0))
    }

    /// Takes the bytes that the guest has sent on a connection: no bytes at the end. `None` while nothing has arrived.
    pub fn take_data(&mut self, number: u32) -> Option<Result<Vec<u8>, String>> {
        let is_connected = self.is_connected(number);
        let Some(index) = self.socket(number) else {
            return Some(Err(GONE.to_owned()));
        };
        let channel = &mut self.channels[index];
        if channel.socket.is_some_and(|socket| socket.has_ended) {
            return Some(Ok(Vec::new()));
        }
        let Some(packet) = channel.device.take_received() else {
            return match (channel.device.state(), is_connected) {
                (State::Dead(why), _) => Some(Err(why.clone())),
                (_, Err(why)) => Some(Err(why)),
                _ => None,
            };
        };
        // There may be room for more.
        channel.pump(&mut self.link);
        let data = socket::data(&packet).map(<[u8]>::to_vec);
        if let (Ok([]), Some(socket)) = (data.as_deref(), channel.socket.as_mut()) {
            socket.has_ended = true;
        }
        Some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u32_at;
    use crate::vmbus::packet::Packet;
    use crate::vmbus::test_guest::TestGuest;
    use crate::vmbus::test_guest::GPADL;

    /// A guest that has opened a connection from the host to port 22, as channel 3.
    fn connected() -> (TestGuest, u32) {
        let mut guest = TestGuest::new((6, 0));
        assert!(guest.contact(4, 0));
        assert!(guest.bus.connect(22).is_err(), "it knows of no offers yet");
        guest.post(3, &[]);
        let number = guest.bus.connect(22).unwrap();
        let offer = guest.last();
        assert_eq!(u32_at(&offer, 0), Some(1));
        assert_eq!(offer[8..24], socket::service_id(22).0);
        assert_eq!(offer[64], 1, "the guest is to accept it");
        assert_eq!(u32_at(&offer, 184), Some(3));
        assert_eq!(guest.bus.is_connected(number), Ok(false));
        assert_eq!(guest.bus.send_data(number, b"x"), None);
        assert_eq!(guest.bus.take_data(number), None);
        assert_eq!(guest.gpadl_of(3), [10]);
        assert_eq!(guest.post(5, &[3, 9, GPADL, 0, 4]), [6]);
        assert_eq!(guest.bus.is_connected(number), Ok(true));
        (guest, number)
    }

    /// The message that requests a connection from a guest's port to a host's port.
    fn ask(guest: &mut TestGuest, from: u32, to: u32) -> Vec<u32> {
        let words =
            |id: Guid| -> Vec<u32> { (0..4).filter_map(|at| u32_at(&id.0, at * 4)).collect() };
        let ids = [socket::service_id(from), socket::service_id(to)];
        guest.post(21, &ids.into_iter().flat_map(words).collect::<Vec<_>>())
    }

    #[test]
    fn bytes_go_both_ways() {
        let (mut guest, number) = connected();
        let (up, down) = guest.rings();
        assert_eq!(guest.bus.send_data(number, b"hello"), Some(Ok(())));
        let packet = Packet::decode(&down.read().unwrap().0).unwrap();
        assert_eq!(socket::data(&packet), Ok(&b"hello"[..]));
        for data in [&b"good day"[..], b""] {
            up.write(&socket::packet(data).encode()).unwrap();
        }
        guest.bus.signal(0x1_0003, 0);
        assert_eq!(guest.bus.take_data(number), Some(Ok(b"good day".to_vec())));
        // The guest's end is one for good, and the host may go on.
        for _ in 0..2 {
            assert_eq!(guest.bus.take_data(number), Some(Ok(Vec::new())));
        }
        assert_eq!(guest.bus.send_data(number, b""), Some(Ok(())));
        assert_eq!(guest.errors(), 0);
    }

    #[test]
    fn a_full_ring_is_waited_for() {
        let (mut guest, number) = connected();
        let piece = vec![7; 4096];
        let mut sent = 0;
        while guest.bus.send_data(number, &piece) == Some(Ok(())) {
            sent += 1;
        }
        assert!(sent > 1);
        assert_eq!(guest.bus.is_sent(number), Ok(false));
        let (_, down) = guest.rings();
        for _ in 0..2 {
            down.read().unwrap();
        }
        guest.bus.signal(0x1_0003, 0);
        assert_eq!(guest.bus.is_sent(number), Ok(true));
        assert_eq!(guest.bus.send_data(number, &piece), Some(Ok(())));
    }

    #[test]
    fn a_connection_is_gone_once_it_is_released() {
        let (mut guest, number) = connected();
        assert!(guest.bus.state().is_err(), "no snapshot has it");
        guest.bus.hang_up(number);
        assert_eq!(u32_at(&guest.last(), 0), Some(2));
        assert!(guest.bus.send_data(number, b"x").unwrap().is_err());
        assert!(guest.bus.take_data(number).unwrap().is_err());
        assert!(guest.bus.has_unreleased());
        assert_eq!(guest.bus.sockets(), 1);
        assert_eq!(guest.post(11, &[3, GPADL]), [12]);
        assert_eq!(guest.post(13, &[3]), [0u32; 0]);
        assert_eq!(guest.bus.sockets(), 0);
        assert_eq!(guest.errors(), 0);
        // The next one has its number again, and another id.
        let next = guest.bus.connect(22).unwrap();
        assert_ne!(next, number);
        assert_eq!(u32_at(&guest.last(), 184), Some(3));
        assert_eq!(u32_at(&guest.last(), 24), Some(FIRST_PORT | next));
    }

    #[test]
    fn none_outlives_the_guest() {
        for kind in ["unload", "contact", "reset", "release"] {
            let (mut guest, number) = connected();
            match kind {
                "unload" => assert_eq!(guest.post(16, &[]), [17]),
                "contact" => assert!(guest.contact(4, 0)),
                "reset" => guest.bus.reset(),
                _ => {
                    guest.post(7, &[3]);
                    assert!(guest.bus.is_connected(number).is_err(), "it is closed");
                    assert!(guest.bus.take_data(number).unwrap().is_err());
                    guest.post(13, &[3]);
                }
            }
            assert_eq!(guest.bus.sockets(), 0, "{kind}");
            assert!(guest.bus.take_data(number).unwrap().is_err());
            guest.bus.hang_up(number);
            assert_eq!(guest.errors(), 0);
        }
    }

    #[test]
    fn the_guest_connects_where_the_host_listens() {
        let mut guest = TestGuest::new((6, 0));
        assert!(guest.contact(4, 1));
        guest.post(3, &[]);
        assert_eq!(ask(&mut guest, 1000, 50), [23], "nobody listens");
        assert_eq!(u32_at(&guest.last(), 40), Some(0xc000_0236));
        guest.bus.listen(50);
        assert_eq!(guest.bus.accept(50), None);
        assert_eq!(ask(&mut guest, 1000, 50), [1]);
        let offer = guest.last();
        assert_eq!(offer[8..24], socket::service_id(50).0);
        assert_eq!(offer[24..40], socket::service_id(1000).0);
        assert_eq!(offer[64], 0, "the guest has asked for it");
        assert_eq!(ask(&mut guest, 1000, 50), [23], "there is that one already");
        assert_eq!(ask(&mut guest, 1000, 51), [23], "nobody listens there");
        assert_eq!(ask(&mut guest, 1001, 50), [1]);
        assert_eq!(guest.bus.accept(51), None);
        let first = guest.bus.accept(50).unwrap();
        assert_eq!(guest.bus.is_connected(first), Ok(false));
        // Those that nobody has claimed are taken back.
        guest.bus.stop_listening(50);
        assert_eq!(u32_at(&guest.last(), 0), Some(2));
        assert_eq!(u32_at(&guest.last(), 8), Some(4));
        assert_eq!(guest.bus.accept(50), None);
        assert_eq!(guest.bus.is_connected(first), Ok(false));
        assert_eq!(ask(&mut guest, 1002, 50), [23]);
    }

    #[test]
    fn there_are_so_many_connections() {
        let mut guest = TestGuest::new((6, 0));
        assert!(guest.contact(4, 1));
        guest.post(3, &[]);
        guest.bus.listen(50);
        for _ in 0..MOST {
            guest.bus.connect(22).unwrap();
        }
        assert!(guest.bus.connect(22).is_err());
        assert_eq!(ask(&mut guest, 1000, 50), [23]);
    }

    #[test]
    fn what_is_no_data_is_an_error() {
        let (mut guest, number) = connected();
        let (up, _) = guest.rings();
        up.write(&Packet::inband(vec![2, 0, 0, 0, 0, 0, 0, 0]).encode())
            .unwrap();
        guest.bus.signal(0x1_0003, 0);
        let taken = guest.bus.take_data(number);
        assert_eq!(taken, Some(Err("pipe packet of type 2".to_owned())));
        // A ring that cannot be read ends it.
        guest.memory.store_u32(16 * 4096, 4).unwrap();
        guest.bus.signal(0x1_0003, 0);
        assert!(guest.bus.take_data(number).unwrap().is_err());
    }
}
