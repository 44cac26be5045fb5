// SPDX-License-Identifier: GPL-2.0

//! Contact: guest and host negotiate a version of VMBus.

use super::Bus;
use super::Connection;
use super::MESSAGES;
use super::MESSAGES_4;
use crate::service::Version;
use crate::synic::VMBUS_SINT;
use crate::vmbus::message::ToGuest;

/// The VMBus versions of hosts that need no shared interrupt page, oldest first.
const VERSIONS: [Version; 9] = [
    (2, 4),
    (3, 0),
    (4, 0),
    (4, 1),
    (5, 0),
    (5, 1),
    (5, 2),
    (5, 3),
    (6, 0),
];

/// The version in the encoding of messages.
const fn word((major, minor): Version) -> u32 {
    ((major as u32) << 16) | minor as u32
}

impl Bus {
    /// Answers a guest's contact. `receiver` was the interrupt page before 5.0. Since then the field has the guest's
    /// SINT and VTL.
    pub(super) fn contact(
        &mut self,
        connection: u32,
        version: u32,
        target_vp: u32,
        receiver: u64,
        one_monitor_page: bool,
    ) {
        // By [`MESSAGES_4`] a guest states its SINT, and from 5.1 on its VTL. Otherwise it means VMBus' usual ones.
        let [sint, vtl, ..] = receiver.to_le_bytes();
        let chosen = connection == MESSAGES_4;
        let sint = match chosen && version >= word((5, 0)) {
            true => u32::from(sint),
            false => VMBUS_SINT,
        };
        // Another VTL has a host of its own.
        if chosen && version >= word((5, 1)) && vtl != 0 {
            return self.error(format!("contact for VTL {vtl}, which has no host"), &[]);
        }
        if sint != VMBUS_SINT {
            self.error(format!("contact for SINT {sint}, which has no host"), &[]);
            let unsupported = ToGuest::VersionResponse {
                supported: false,
                failed: false,
                connection_or_version: 0,
                features: None,
            };
            return self.send_to(target_vp, sint, &unsupported);
        }
        self.agree(version, target_vp, one_monitor_page);
    }

    /// Starts a connection of the guest's version, if the host speaks it.
    fn agree(&mut self, requested: u32, target_vp: u32, one_monitor_page: bool) {
        if self.connection != Connection::Disconnected {
            // A guest that crashed or used kexec contacts the host without UNLOAD.
            self.note("contact while connected: everything is closed".to_owned());
            self.disconnect();
            self.link.hypervisor.forget_messages();
        }
        let version = ((requested >> 16) as u16, requested as u16);
        let supported = VERSIONS.contains(&version) && version <= self.max_version;
        // Before 3.0 all messages go to processor 0.
        let target_vp = if version >= (3, 0) { target_vp } else { 0 };
        let no_processor = target_vp >= self.link.hypervisor.processors();
        let failed = supported && (no_processor || one_monitor_page);
        if failed {
            let text = "contact with one monitor page, or for an absent processor";
            self.error(text.to_owned(), &[]);
        }
        if supported && !failed {
            self.connection = Connection::Connected {
                version,
                target_vp,
                offered: false,
            };
        }
        let connection_or_version = match supported {
            false => 0,
            // The guest may send later messages by this connection id or by that of the contact.
            true if version >= (5, 0) => MESSAGES,
            true => requested,
        };
        let features = (supported && version >= (6, 0)).then_some(0);
        self.send(
            if no_processor { 0 } else { target_vp },
            &ToGuest::VersionResponse {
                supported,
                failed,
                connection_or_version,
                features,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::bytes::u32_at;
    use crate::hypercall::Status;
    use crate::service::Service;
    use crate::vmbus::bus::Connection;
    use crate::vmbus::test_guest::TestGuest;

    #[test]
    fn versions_are_known_up_to_the_maximum() {
        let mut guest = TestGuest::new((5, 0));
        assert!(!guest.contact(6, 0));
        assert!(!guest.contact(5, 3));
        assert!(!guest.contact(1, 1));
        assert!(!guest.contact(4, 7));
        assert_eq!(guest.bus.connection(), Connection::Disconnected);
        assert!(guest.contact(5, 0));
        // The response goes to the guest's processor, and has the connection id for later messages.
        assert_eq!(guest.seen.lock().unwrap().messages.last().unwrap().0, 1);
        assert_eq!(u32_at(&guest.last(), 12), Some(1));
        let mut guest = TestGuest::new((4, 0));
        assert!(guest.contact(4, 0));
        assert_eq!(u32_at(&guest.last(), 12), Some(0x4_0000));
    }

    #[test]
    fn a_contact_is_for_a_processor_and_one_receiver() {
        let mut guest = TestGuest::new((6, 0));
        // An absent processor. One monitor page without the other.
        for fields in [[9, 2, 0, 0, 0, 0, 0], [1, 2, 0, 0x1000, 0, 0, 0]] {
            assert_eq!(guest.contact_by(4, 0x6_0000, fields), [15]);
            assert_eq!(guest.last()[8..10], [1, 2], "known, but failed");
            assert_eq!(guest.bus.connection(), Connection::Disconnected);
        }
        // By connection id 4 a guest states its SINT, and from 5.1 on its VTL.
        let answered = &[15][..];
        for (version, receiver, answer) in [
            (0x5_0000, 3, answered),
            (0x6_0000, 3, answered),
            (0x5_0001, 2 | 1 << 8, &[]),
            (0x5_0001, 3 | 1 << 8, &[]),
        ] {
            let fields = [1, receiver, 0, 0, 0, 0, 0];
            assert_eq!(guest.contact_by(4, version, fields), answer);
            if answer == answered {
                let seen = guest.seen.lock().unwrap();
                let (vp, response) = seen.messages.last().unwrap();
                assert_eq!((*vp, seen.sint), (1, 3), "to who asked");
                assert_eq!((response.len(), response[8]), (16, 0), "unsupported");
            }
            assert_eq!(guest.contact_by(1, version, fields), [15]);
            assert_eq!(guest.last()[8..10], [1, 0]);
            assert_eq!(guest.seen.lock().unwrap().sint, 2);
        }
        assert_eq!(
            guest.contact_by(4, 0x6_0000, [1, 2, 0, 0x1000, 0, 0x2000, 0]),
            [15]
        );
        assert_eq!(guest.last()[8..10], [1, 0]);
    }

    #[test]
    fn an_old_host_has_no_connection_4() {
        let contact: Vec<u8> = [14u32, 0, 0x60000, 0, 2, 0, 0, 0, 0, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let mut guest = TestGuest::new((4, 1));
        assert_eq!(guest.bus.post(4, 1, &contact), Status::InvalidConnectionId);
        assert_eq!(guest.bus.post(3, 1, &contact), Status::InvalidConnectionId);
        let mut guest = TestGuest::new((5, 0));
        assert_eq!(guest.bus.post(4, 1, &contact), Status::Success);
    }

    #[test]
    fn unload_and_contact_begin_anew() {
        let mut guest = TestGuest::new((6, 0));
        guest.open();
        assert_eq!(guest.post(16, &[]), [17]);
        assert_eq!(guest.bus.connection(), Connection::Disconnected);
        guest.open();
        assert!(guest.contact(4, 0), "as after a crash");
        assert!(guest
            .bus
            .channel(Service::Heartbeat)
            .unwrap()
            .open()
            .is_none());
        guest.post(3, &[]);
        assert_eq!(guest.gpadl(), [10]);
    }
}
