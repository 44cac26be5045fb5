// SPDX-License-Identifier: GPL-2.0

//! A second device of a class, for scenarios. Inference: a host has one device of each class.

use super::Bus;
use crate::guid::Guid;
use crate::ic::device::Mode;
use crate::service::Service;
use crate::vmbus::channel::Channel;

impl Bus {
    /// Plugs in a second device of the class of `service`. Other functions here that name a service concern the first
    /// device. The second device disappears after [`Bus::rescind_second`] and the guest's release.
    pub fn offer_second(&mut self, service: Service, instance: Guid) {
        let mut channel = Channel::new(service);
        channel.instance = instance;
        channel.is_second = true;
        channel.present = false;
        if let Some(first) = self.channel(service) {
            if first.device.mode() == Mode::Script {
                channel.device.script();
            }
        }
        self.channels.push(channel);
        self.plug_in(self.channels.len() - 1);
    }

    /// Exchanges the first and the second device. Fails if there is no second one.
    pub fn swap_second(&mut self, service: Service) -> Result<(), String> {
        let first = self
            .channels
            .iter()
            .position(|channel| channel.service == service && !channel.is_second);
        let (Some(first), Some(second)) = (first, self.second(service)) else {
            return Err(format!("there is no second {service}"));
        };
        self.channels.swap(first, second);
        self.channels[first].is_second = false;
        self.channels[second].is_second = true;
        self.drop_gone();
        Ok(())
    }

    /// Unplugs the second device. Fails if there is none.
    pub fn rescind_second(&mut self, service: Service) -> Result<(), String> {
        let index = self
            .second(service)
            .filter(|&index| self.channels[index].present)
            .ok_or_else(|| format!("there is no second {service}"))?;
        self.unplug(index);
        self.drop_gone();
        Ok(())
    }

    /// How often the guest has opened the second device's channel. `None` if there is no second device.
    pub fn second_opens(&self, service: Service) -> Option<u64> {
        let index = self.second(service)?;
        Some(self.channels[index].opens)
    }

    /// The index of the second device, if there is one.
    pub(super) fn second(&self, service: Service) -> Option<usize> {
        let is_it = |channel: &Channel| channel.is_second && channel.service == service;
        self.channels.iter().position(is_it)
    }

    /// Removes second devices and connections that are unplugged and released.
    pub(super) fn drop_gone(&mut self) {
        self.channels
            .retain(|channel| channel.is_lasting() || channel.present || channel.offered.is_some());
    }
}

#[cfg(test)]
mod tests {
    use crate::bytes::u32_at;
    use crate::service::Service;
    use crate::vmbus::test_guest::TestGuest;

    /// The instance id in the last message, an offer.
    fn offered_instance(guest: &TestGuest) -> Vec<u8> {
        assert_eq!(u32_at(&guest.last(), 0), Some(1));
        guest.last()[24..40].to_vec()
    }

    #[test]
    fn a_class_may_have_a_second_device() {
        let service = Service::Heartbeat;
        let other = Service::Echo.instance();
        let mut guest = TestGuest::new((4, 0));
        guest.open();
        guest.bus.offer_second(service, other);
        assert_eq!(offered_instance(&guest), other.0);
        assert_eq!(guest.bus.second_opens(service), Some(0));
        // The first device works on.
        assert!(guest.bus.channel(service).unwrap().open().is_some());
        guest.bus.rescind_second(service).unwrap();
        assert!(guest.bus.rescind_second(service).is_err());
        assert!(guest.bus.has_unreleased());
        assert_eq!(guest.post(13, &[3]), [0u32; 0]);
        assert_eq!(guest.bus.second_opens(service), None);
        assert!(guest.bus.channel(service).unwrap().open().is_some());

        // After the reset there is one device, with its own instance id.
        guest.bus.offer_second(service, other);
        guest.bus.set_instance(service, other);
        guest.bus.renew(service);
        assert_eq!(guest.post(13, &[3]), [0u32; 0]);
        assert_eq!(guest.bus.second_opens(service), None);
        guest.bus.rescind(service).unwrap();
        assert_eq!(guest.post(13, &[1]), [0u32; 0]);
        guest.bus.reoffer(service).unwrap();
        assert_eq!(offered_instance(&guest), service.instance().0);

        // The second device replaces the first one, which disappears after its release.
        guest.bus.offer_second(service, other);
        guest.bus.rescind(service).unwrap();
        guest.bus.swap_second(service).unwrap();
        assert_eq!(guest.bus.channel(service).unwrap().relid(), Some(3));
        assert_eq!(guest.bus.second_opens(service), Some(0));
        assert_eq!(guest.post(13, &[1]), [0u32; 0]);
        assert_eq!(guest.bus.second_opens(service), None);
        assert!(guest.bus.swap_second(service).is_err());

        // An unplugged second device disappears when the guest disconnects.
        guest.bus.offer_second(service, other);
        guest.bus.rescind_second(service).unwrap();
        guest.bus.reset();
        assert_eq!(guest.bus.second_opens(service), None);
        assert_eq!(guest.errors(), 0);
    }
}
