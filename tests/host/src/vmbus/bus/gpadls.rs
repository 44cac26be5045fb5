// SPDX-License-Identifier: GPL-2.0

//! GPADLs: the guest shares memory with the host, and takes it back.

use super::Bus;
use super::STATUS_SUCCESS;
use super::STATUS_UNSUCCESSFUL;
use crate::vmbus::gpadl::Gpadl;
use crate::vmbus::message::ToGuest;

/// The largest number of a channel's GPADLs.
const GPADLS: usize = 256;

impl Bus {
    /// Handles the header of a GPADL. The GPADL may be complete with it.
    pub(super) fn gpadl_header(&mut self, target_vp: u32, relid: u32, handle: u32, gpadl: Gpadl) {
        let channel = self.by_relid(relid);
        let Some(offered) = channel.and_then(|channel| channel.offered.as_mut()) else {
            self.error("GPADL for a channel that is not offered".to_owned(), &[]);
            return self.gpadl_created(target_vp, relid, handle, STATUS_UNSUCCESSFUL);
        };
        let taken = offered.gpadls.contains_key(&handle);
        if taken || offered.gpadls.len() >= GPADLS {
            let text = match taken {
                true => "GPADL with the handle of another",
                false => "GPADL beyond a channel's limit",
            };
            self.error(text.to_owned(), &[]);
            return self.gpadl_created(target_vp, relid, handle, STATUS_UNSUCCESSFUL);
        }
        let complete = gpadl.is_complete();
        offered.gpadls.insert(handle, gpadl);
        if complete {
            self.gpadl_complete(target_vp, relid, handle);
        }
    }

    /// Handles a body of a GPADL.
    pub(super) fn gpadl_body(&mut self, target_vp: u32, handle: u32, words: &[u64]) {
        // A body does not name its channel: take the incomplete GPADL with this handle.
        let found = self
            .channels
            .iter_mut()
            .filter_map(|channel| channel.offered.as_mut())
            .find_map(|offered| {
                let gpadl = offered.gpadls.get_mut(&handle)?;
                if gpadl.is_complete() {
                    return None;
                }
                gpadl.extend(words);
                Some((offered.relid, gpadl.is_complete()))
            });
        match found {
            Some((relid, true)) => self.gpadl_complete(target_vp, relid, handle),
            Some((_, false)) => {}
            None => self.error("GPADL body without a header".to_owned(), &[]),
        }
    }

    /// Answers a GPADL that is complete.
    fn gpadl_complete(&mut self, target_vp: u32, relid: u32, handle: u32) {
        let channel = self.by_relid(relid);
        let Some(offered) = channel.and_then(|channel| channel.offered.as_mut()) else {
            return;
        };
        let valid = offered.gpadls.get(&handle).is_some_and(Gpadl::is_valid);
        let rescinded = offered.rescinded;
        if valid && !rescinded {
            return self.gpadl_created(target_vp, relid, handle, STATUS_SUCCESS);
        }
        offered.gpadls.remove(&handle);
        if !rescinded {
            self.error("GPADL of impossible ranges".to_owned(), &[]);
        }
        self.gpadl_created(target_vp, relid, handle, STATUS_UNSUCCESSFUL);
    }

    fn gpadl_created(&mut self, target_vp: u32, relid: u32, gpadl: u32, status: u32) {
        let created = ToGuest::GpadlCreated {
            relid,
            gpadl,
            status,
        };
        self.send(target_vp, &created);
    }

    /// Removes a GPADL. If an open channel uses it, the removal waits for the close.
    pub(super) fn gpadl_teardown(&mut self, target_vp: u32, relid: u32, handle: u32) {
        let channel = self.by_relid(relid);
        let Some(offered) = channel.and_then(|channel| channel.offered.as_mut()) else {
            return self.error("teardown for a channel that is not offered".to_owned(), &[]);
        };
        let open = offered.open.as_ref();
        let in_use = open.is_some_and(|open| open.gpadl() == handle);
        match offered.gpadls.get_mut(&handle) {
            Some(gpadl) if gpadl.is_complete() && !gpadl.tearing_down => {
                gpadl.tearing_down = true;
                if in_use {
                    let text = "teardown of an open channel's GPADL: waits for the close";
                    return self.error(text.to_owned(), &[]);
                }
                offered.gpadls.remove(&handle);
                self.send_torn_down(target_vp, &[handle]);
            }
            _ => self.error(
                "teardown of a GPADL that cannot be torn down".to_owned(),
                &[],
            ),
        }
    }

    /// Tells the guest that these GPADLs are removed.
    pub(super) fn send_torn_down(&mut self, target_vp: u32, handles: &[u32]) {
        for &gpadl in handles {
            self.send(target_vp, &ToGuest::GpadlTorndown { gpadl });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u32_at;
    use crate::service::Service;
    use crate::vmbus::test_guest::TestGuest;
    use crate::vmbus::test_guest::GPADL;

    #[test]
    fn a_channel_has_so_many_gpadls() {
        let mut guest = TestGuest::new((6, 0));
        assert!(guest.contact(4, 0));
        guest.post(3, &[]);
        for handle in 1..=257 {
            let header = [1, handle, 1 << 16 | 16, 4096, 0, 16, 0];
            assert_eq!(guest.post(8, &header), [10]);
            let failed = u32_at(&guest.last(), 16) != Some(0);
            assert_eq!(failed, handle == 257);
        }
    }

    #[test]
    fn a_teardown_waits_for_the_close() {
        let mut guest = TestGuest::new((6, 0));
        guest.open();
        assert_eq!(guest.post(11, &[1, GPADL]), [0u32; 0], "rings are in use");
        assert_eq!(guest.post(11, &[1, GPADL]), [0u32; 0]);
        assert_eq!(guest.post(7, &[1]), [12]);
        assert_eq!(guest.post(11, &[1, GPADL]), [0u32; 0], "it is gone");
        assert_eq!(guest.errors(), 3);
        guest.gpadl();
        guest.post(5, &[1, 9, GPADL, 1, 4]);
        guest.post(11, &[1, GPADL]);
        guest.bus.rescind(Service::Heartbeat).unwrap();
        let seen = guest.seen.lock().unwrap();
        let last: Vec<_> = seen.messages.iter().rev().take(2).collect();
        let kinds = last.iter().map(|(_, bytes)| bytes[0]);
        assert_eq!(kinds.collect::<Vec<_>>(), [2, 12]);
    }

    #[test]
    fn gpadls_are_each_channels_own() {
        let mut guest = TestGuest::new((6, 0));
        assert!(guest.contact(4, 0));
        guest.post(3, &[]);
        let header = |relid| [relid, GPADL, 1 << 16 | 16, 4096, 0, 16, 0];
        assert_eq!(guest.post(8, &header(1)), [10]);
        assert_eq!(guest.post(8, &header(2)), [10]);
        assert_eq!(u32_at(&guest.last(), 16), Some(0));
        for (relid, what) in [(1, "a handle taken"), (9, "a channel unknown")] {
            assert_eq!(guest.post(8, &header(relid)), [10], "{what}");
            assert_eq!(u32_at(&guest.last(), 16), Some(STATUS_UNSUCCESSFUL));
        }
        // A range of more bytes than its pages have.
        assert_eq!(guest.post(8, &[1, 5, 1 << 16 | 16, 4097, 0, 16, 0]), [10]);
        assert_eq!(u32_at(&guest.last(), 16), Some(STATUS_UNSUCCESSFUL));
        assert_eq!(guest.post(11, &[1, 5]), [0u32; 0], "it never was");
        // No range.
        assert_eq!(guest.post(8, &[1, 5, 0]), [10]);
        assert_eq!(u32_at(&guest.last(), 16), Some(0));
        // An incomplete GPADL cannot be torn down. If it becomes complete after a rescind, it fails.
        assert_eq!(
            guest.post(8, &[2, 6, 1 << 16 | 24, 8192, 0, 16, 0]),
            [0u32; 0]
        );
        assert_eq!(guest.post(11, &[2, 6]), [0u32; 0]);
        guest.bus.rescind(Service::TimeSync).unwrap();
        assert_eq!(guest.post(9, &[1, 6, 17, 0]), [10]);
        assert_eq!(u32_at(&guest.last(), 16), Some(STATUS_UNSUCCESSFUL));
        assert_eq!(guest.post(11, &[2, GPADL]), [12]);
        assert_eq!(guest.post(11, &[1, GPADL]), [12]);
    }
}
