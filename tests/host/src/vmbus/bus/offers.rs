// SPDX-License-Identifier: GPL-2.0

//! Offers: which devices are plugged in, and which numbers their channels have.
//!
//! An unplugged device keeps its channel's number until the guest releases the number. If the device is plugged in
//! again before that, it is offered after the release.

use super::Bus;
use super::Connection;
use super::CHANNEL_CONNECTIONS;
use crate::guid::Guid;
use crate::service::Service;
use crate::vmbus::channel::Channel;
use crate::vmbus::channel::Offered;
use crate::vmbus::message::Offer;
use crate::vmbus::message::OfferKind;
use crate::vmbus::message::ToGuest;

impl Bus {
    /// Sets the instance id of the device of `service`, from its next offer on.
    pub fn set_instance(&mut self, service: Service, instance: Guid) {
        if let Some(channel) = self
            .channels
            .iter_mut()
            .find(|channel| channel.service == service)
        {
            channel.instance = instance;
        }
    }

    /// Offers all devices that are plugged in. A connection has one such request.
    pub(super) fn request_offers(&mut self, target_vp: u32) {
        if let Connection::Connected { offered, .. } = &mut self.connection {
            if std::mem::replace(offered, true) {
                return self.error("offers requested twice".to_owned(), &[]);
            }
        }
        for index in 0..self.channels.len() {
            if self.channels[index].present {
                self.offer(index, target_vp);
            }
        }
        self.send(target_vp, &ToGuest::AllOffersDelivered);
    }

    /// Offers a device. Its number is the old one if the guest still holds it, else the lowest free one.
    fn offer(&mut self, index: usize, target_vp: u32) {
        let is_free = |relid: &u32| {
            !self
                .channels
                .iter()
                .any(|channel| channel.relid() == Some(*relid))
        };
        let relid = self.channels[index].relid();
        let relid = relid.or_else(|| (1..).find(is_free)).unwrap_or(1);
        let channel = &mut self.channels[index];
        channel.offered = Some(Offered::new(relid));
        let kind = match channel.socket {
            None => OfferKind::Device,
            Some(socket) => OfferKind::Socket {
                is_for_accept: socket.is_from_host,
            },
        };
        let offer = Offer {
            kind,
            class: channel.class,
            instance: channel.instance,
            relid,
            connection_id: relid + CHANNEL_CONNECTIONS,
        };
        self.send(target_vp, &ToGuest::Offer(offer));
    }

    /// Unplugs a device: rescinds its offer. Fails if the device is not plugged in.
    pub fn rescind(&mut self, service: Service) -> Result<(), String> {
        let index = self
            .channels
            .iter()
            .position(|channel| channel.service == service && !channel.is_second)
            .filter(|&index| self.channels[index].present)
            .ok_or_else(|| format!("{service} is not on the bus"))?;
        self.unplug(index);
        Ok(())
    }

    /// Rescinds the offer of the device at `index`.
    pub(super) fn unplug(&mut self, index: usize) {
        let connection = self.connection;
        let channel = &mut self.channels[index];
        let service = channel.service;
        channel.present = false;
        channel.close();
        let Some(offered) = channel
            .offered
            .as_mut()
            .filter(|offered| !offered.rescinded)
        else {
            return;
        };
        offered.rescinded = true;
        let (relid, torn_down) = (offered.relid, offered.take_torn_down());
        self.note(format!("{service} is unplugged"));
        if let Connection::Connected { target_vp, .. } = connection {
            self.send_torn_down(target_vp, &torn_down);
            self.send(target_vp, &ToGuest::Rescind { relid });
        }
    }

    /// Plugs a device in again. The offer waits for the release of a rescinded one. Fails if the device is plugged in.
    pub fn reoffer(&mut self, service: Service) -> Result<(), String> {
        let index = self
            .channels
            .iter()
            .position(|channel| channel.service == service && !channel.is_second)
            .filter(|&index| !self.channels[index].present)
            .ok_or_else(|| format!("{service} is on the bus, or not a device of this machine"))?;
        self.plug_in(index);
        Ok(())
    }

    /// Plugs in the device at `index`. Offers it now, unless the guest still holds its number.
    pub(super) fn plug_in(&mut self, index: usize) {
        self.channels[index].present = true;
        let waits = self.channels[index].offered.is_some();
        if let (
            Connection::Connected {
                target_vp,
                offered: true,
                ..
            },
            false,
        ) = (self.connection, waits)
        {
            self.offer(index, target_vp);
        }
    }

    /// Whether the guest still holds a rescinded channel.
    pub fn has_unreleased(&self) -> bool {
        self.channels.iter().any(Channel::is_rescinded)
    }

    /// The guest releases a channel's number, and with it the channel's GPADLs.
    pub(super) fn release(&mut self, target_vp: u32, relid: u32) {
        let index = self
            .channels
            .iter()
            .position(|channel| channel.relid() == Some(relid));
        let Some(index) = index else {
            return self.error("release of a channel that is not offered".to_owned(), &[]);
        };
        let channel = &mut self.channels[index];
        if channel.open().is_some() {
            return self.error("release of an open channel".to_owned(), &[]);
        }
        let service = channel.service;
        match (channel.is_rescinded(), channel.present) {
            // The device was plugged in again meanwhile: it keeps its number.
            (true, true) => self.offer(index, target_vp),
            (true, false) => {
                channel.offered = None;
                self.drop_gone();
            }
            // A guest may release a channel that it could use. The channel is offered again in the next connection.
            (false, _) => {
                channel.offered = None;
                channel.present &= channel.socket.is_none();
                self.drop_gone();
                self.note(format!(
                    "{service} is released, though it was not rescinded"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

    use super::*;
    use crate::bytes::u32_at;
    use crate::memory::GuestMemory;
    use crate::vmbus::test_guest::Fake;
    use crate::vmbus::test_guest::Seen;
    use crate::vmbus::test_guest::TestGuest;
    use crate::vmbus::test_guest::GPADL;

    #[test]
    fn offers_come_by_class() {
        let memory = Arc::new(GuestMemory::new(2 << 20).unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let services = [Service::Heartbeat, Service::Shutdown];
        let fake = Box::new(Fake(seen.clone()));
        let bus = Bus::new(memory.clone(), fake, (6, 0), &services);
        let mut guest = TestGuest { memory, bus, seen };
        assert!(guest.contact(4, 0));
        assert_eq!(guest.post(3, &[]), [1, 1, 4]);
        let relid = |service| guest.bus.channel(service).unwrap().relid();
        assert_eq!(relid(Service::Shutdown), Some(1));
        assert_eq!(relid(Service::Heartbeat), Some(2));
    }

    #[test]
    fn a_rescinded_channel_keeps_its_number_until_released() {
        let mut guest = TestGuest::new((6, 0));
        guest.open();
        guest.bus.rescind(Service::Heartbeat).unwrap();
        assert_eq!(u32_at(&guest.last(), 0), Some(2));
        assert!(guest.bus.rescind(Service::Heartbeat).is_err());
        assert!(guest.bus.has_unreleased());
        assert_eq!(guest.post(5, &[1, 9, GPADL, 0, 4]), [0u32; 0]);
        assert_eq!(guest.post(7, &[1]), [0u32; 0]);
        assert_eq!(guest.post(11, &[1, GPADL]), [12]);
        assert_eq!(guest.post(13, &[1]), [0u32; 0]);
        assert!(!guest.bus.has_unreleased());
        guest.bus.reoffer(Service::Heartbeat).unwrap();
        assert_eq!(u32_at(&guest.last(), 0), Some(1));
        assert_eq!(u32_at(&guest.last(), 184), Some(1), "the number is free");
        assert_eq!(guest.errors(), 0);
    }

    #[test]
    fn a_new_offer_waits_for_the_old_ones_release() {
        let mut guest = TestGuest::new((6, 0));
        guest.open();
        guest.bus.rescind(Service::Heartbeat).unwrap();
        guest.bus.reoffer(Service::Heartbeat).unwrap();
        assert_eq!(
            u32_at(&guest.last(), 0),
            Some(2),
            "nothing after the rescind"
        );
        assert!(guest.bus.has_unreleased());
        guest.bus.rescind(Service::Heartbeat).unwrap();
        guest.bus.reoffer(Service::Heartbeat).unwrap();
        assert_eq!(u32_at(&guest.last(), 0), Some(2), "nor for one unseen");
        assert_eq!(guest.post(7, &[1]), [0u32; 0]);
        assert_eq!(guest.post(11, &[1, GPADL]), [12]);
        assert_eq!(guest.post(13, &[1]), [1]);
        assert_eq!(u32_at(&guest.last(), 184), Some(1));
        assert!(!guest.bus.has_unreleased());
        assert_eq!(guest.gpadl(), [10]);
        assert_eq!(guest.post(5, &[1, 9, GPADL, 1, 4]), [6]);
        assert_eq!(guest.errors(), 0);
    }

    #[test]
    fn a_guest_may_release_what_was_not_rescinded() {
        let mut guest = TestGuest::new((6, 0));
        guest.open();
        guest.post(13, &[1]);
        assert_eq!(guest.errors(), 1, "but not while it is open");
        guest.post(7, &[1]);
        assert_eq!(guest.post(13, &[1]), [0u32; 0]);
        assert_eq!(guest.errors(), 1);
        // The number is free, and the GPADL was removed with the channel.
        for (kind, words) in [(5, [1, 9, GPADL, 1, 4]), (11, [1, GPADL, 0, 0, 0])] {
            assert_eq!(guest.post(kind, &words), [0u32; 0]);
        }
        guest.post(13, &[1]);
        assert_eq!(guest.errors(), 4);
        // The next connection has the device again.
        guest.open();
    }
}
