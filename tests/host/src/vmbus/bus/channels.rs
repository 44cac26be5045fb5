// SPDX-License-Identifier: GPL-2.0

//! Channels: the guest opens, moves and closes them.

use super::Bus;
use super::STATUS_SUCCESS;
use super::STATUS_UNSUCCESSFUL;
use crate::ring::Ring;
use crate::service::Version;
use crate::vmbus::channel::Offered;
use crate::vmbus::gpadl::Gpadl;
use crate::vmbus::message::ToGuest;
use crate::vmbus::open::OpenChannel;

/// The processor number of a channel without interrupts.
const NO_PROCESSOR: u32 = u32::MAX;

impl Bus {
    /// Opens a channel with the rings of a GPADL. The host-to-guest ring begins at page `downstream`.
    pub(super) fn open_channel(
        &mut self,
        target_vp: u32,
        relid: u32,
        open_id: u32,
        gpadl: u32,
        vp: u32,
        downstream: u32,
    ) {
        let is_target = self.is_target(vp);
        let memory = self.link.memory.clone();
        let Some(channel) = self.by_relid(relid) else {
            return self.error("open of an unknown channel".to_owned(), &[]);
        };
        // The rescind message is on its way. The guest ignores a result after it.
        if channel.is_rescinded() {
            return;
        }
        if channel.open().is_some() {
            return self.error("open of an open channel".to_owned(), &[]);
        }
        let service = channel.service;
        let Some(offered) = channel.offered.as_mut() else {
            return;
        };
        let rings = offered
            .gpadls
            .get(&gpadl)
            .filter(|gpadl| !gpadl.tearing_down)
            .and_then(Gpadl::pages)
            .and_then(|pages| {
                let (up, down) = pages.split_at_checked(downstream as usize)?;
                let up = Ring::new(memory.clone(), up)?;
                let down = Ring::new(memory, down)?;
                up.begin_reading().and(down.begin_writing()).ok()?;
                Some((up, down))
            });
        let mut status = STATUS_UNSUCCESSFUL;
        if channel.fail_opens.0 > 0 {
            channel.fail_opens.0 -= 1;
            status = channel.fail_opens.1;
        } else if let (Some((to_host, to_guest)), true) = (rings, is_target) {
            status = STATUS_SUCCESS;
            offered.open = Some(OpenChannel::new(
                service, relid, vp, gpadl, to_host, to_guest,
            ));
            channel.opens += 1;
            channel.device.opened();
        } else {
            self.error("open with impossible rings or processor".to_owned(), &[]);
        }
        // Fact: the device sends its first packet before OPENCHANNEL_RESULT reaches the guest.
        if let Some(index) = self
            .channels
            .iter()
            .position(|channel| channel.relid() == Some(relid))
        {
            self.channels[index].pump(&mut self.link);
        }
        self.send(
            target_vp,
            &ToGuest::OpenResult {
                relid,
                open_id,
                status,
            },
        );
    }

    /// Moves a channel's interrupts to another processor, or to none.
    pub(super) fn modify_channel(&mut self, version: Version, target_vp: u32, relid: u32, vp: u32) {
        let valid = self.is_target(vp);
        let open = self
            .by_relid(relid)
            .and_then(|channel| channel.offered.as_mut()?.open.as_mut());
        let status = match open {
            Some(open) if valid => {
                open.set_target_vp(vp);
                STATUS_SUCCESS
            }
            _ => STATUS_UNSUCCESSFUL,
        };
        if status != STATUS_SUCCESS {
            self.error("channel cannot be modified".to_owned(), &[]);
        }
        if version >= (5, 3) {
            self.send(target_vp, &ToGuest::ModifyChannelResponse { relid, status });
        }
    }

    /// Closes a channel. Removes the GPADLs whose teardown waited for the close.
    pub(super) fn close_channel(&mut self, target_vp: u32, relid: u32) {
        let channel = self.by_relid(relid);
        match channel {
            Some(channel) if channel.open().is_some() => {
                channel.close();
                let offered = channel.offered.as_mut();
                let torn_down = offered.map(Offered::take_torn_down).unwrap_or_default();
                self.send_torn_down(target_vp, &torn_down);
            }
            // The host closed the channel with the rescind: there is nothing to do.
            Some(channel) if channel.is_rescinded() => {}
            _ => self.error("close of a channel that is not open".to_owned(), &[]),
        }
    }

    /// Whether `vp` is a processor, or stands for none.
    fn is_target(&self, vp: u32) -> bool {
        vp < self.link.hypervisor.processors() || vp == NO_PROCESSOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u32_at;
    use crate::service::Service;
    use crate::vmbus::test_guest::TestGuest;
    use crate::vmbus::test_guest::DOWN;
    use crate::vmbus::test_guest::GPADL;
    use crate::vmbus::test_guest::UP;

    #[test]
    fn channels_are_closed_torn_down_and_opened_again() {
        let mut guest = TestGuest::new((6, 0));
        guest.open();
        assert_eq!(guest.post(7, &[1]), [0u32; 0]);
        assert_eq!(guest.post(11, &[1, GPADL]), [12]);
        assert_eq!(guest.errors(), 0);
        assert_eq!(guest.gpadl(), [10]);
        assert_eq!(guest.post(5, &[1, 9, GPADL, 1, 4]), [6]);
        assert_eq!(guest.bus.channel(Service::Heartbeat).unwrap().opens(), 2);
        assert_eq!(guest.post(5, &[1, 9, GPADL, 1, 4]), [0u32; 0], "it is open");
        guest.post(7, &[1]);
        assert_eq!(guest.errors(), 1);
        guest.post(7, &[1]);
        assert_eq!(guest.errors(), 2, "it is closed");
    }

    #[test]
    fn impossible_opens_fail() {
        let mut guest = TestGuest::new((6, 0));
        assert!(guest.contact(4, 0));
        guest.post(3, &[]);
        guest.gpadl();
        // An unknown GPADL, no page for a ring, an absent processor.
        for words in [
            [1, 9, 5, 0, 4],
            [1, 9, GPADL, 0, 7],
            [1, 9, GPADL, 0, 0],
            [1, 9, GPADL, 0, 99],
            [1, 9, GPADL, 2, 4],
        ] {
            assert_eq!(guest.post(5, &words), [6], "{words:?}");
            assert_eq!(
                u32_at(&guest.last(), 16),
                Some(STATUS_UNSUCCESSFUL),
                "{words:?}"
            );
        }
        // Pages that are not memory, which the host has not checked before.
        let far = [
            1,
            5,
            1 << 16 | 40,
            4 * 4096,
            0,
            16,
            0,
            17,
            0,
            20,
            0,
            1 << 20,
            0,
        ];
        assert_eq!(guest.post(8, &far), [10]);
        assert_eq!(u32_at(&guest.last(), 16), Some(0));
        guest.post(5, &[1, 9, 5, 0, 2]);
        assert_eq!(u32_at(&guest.last(), 16), Some(STATUS_UNSUCCESSFUL));
        // Rings whose indices are impossible from the start.
        for ring in [&UP, &DOWN] {
            let control = ring[0] * 4096;
            guest.memory.store_u32(control, 4).unwrap();
            guest.post(5, &[1, 9, GPADL, 0, 4]);
            assert_eq!(u32_at(&guest.last(), 16), Some(STATUS_UNSUCCESSFUL));
            guest.memory.store_u32(control, 0).unwrap();
        }
        guest.bus.fail_opens(Service::Heartbeat, 1, 0xc000_0022);
        guest.post(5, &[1, 9, GPADL, 0, 4]);
        assert_eq!(u32_at(&guest.last(), 16), Some(0xc000_0022));
        guest.post(5, &[1, 9, GPADL, 0, 4]);
        assert_eq!(u32_at(&guest.last(), 16), Some(0));
    }

    #[test]
    fn channels_move_and_say_so_from_5_3_on() {
        for (version, answer) in [((4, 0), &[][..]), ((4, 1), &[]), ((5, 3), &[24])] {
            let mut guest = TestGuest::new((6, 0));
            assert!(guest.contact(version.0, version.1));
            guest.post(3, &[]);
            guest.gpadl();
            guest.post(5, &[1, 9, GPADL, 1, 4]);
            assert_eq!(guest.post(22, &[1, 0]), answer);
            let open = guest.bus.channel(Service::Heartbeat).unwrap().open();
            let expected = if version == (4, 0) { 1 } else { 0 };
            assert_eq!(open.unwrap().target_vp(), expected, "{version:?}");
            // An absent processor, no processor, a channel that is not open.
            for (words, ok) in [([1, 9], false), ([1, u32::MAX], true), ([2, 0], false)] {
                assert_eq!(guest.post(22, &words), answer);
                if version == (5, 3) {
                    let status = u32_at(&guest.last(), 12).unwrap();
                    assert_eq!(status == 0, ok, "{words:?}");
                }
            }
        }
    }
}
