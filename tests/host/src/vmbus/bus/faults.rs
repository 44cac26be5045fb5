// SPDX-License-Identifier: GPL-2.0

//! Faults of a host that a scenario asks for: opens that fail, and messages that find no buffers.

use super::Bus;
use crate::service::Service;
use crate::vmbus::channel::Channel;
use crate::vmbus::message::FromGuest;

impl Bus {
    /// Answers the next `count` open requests of `service` with `status`.
    pub fn fail_opens(&mut self, service: Service, count: u32, status: u32) {
        if let Some(channel) = self
            .channels
            .iter_mut()
            .find(|channel| channel.service == service)
        {
            channel.fail_opens = (count, status);
        }
    }

    /// Has the guest's next `count` messages that close the channel of `service` find no room with the host
    /// (HV_STATUS_INSUFFICIENT_BUFFERS), after which a guest tries again. All others find it.
    pub fn refuse_closes(&mut self, service: Service, count: u32) {
        self.refused_closes = (service, count);
    }

    /// How many messages are yet to be refused, see [`Bus::refuse_closes`].
    pub fn refused_closes(&self) -> u32 {
        self.refused_closes.1
    }

    /// Whether there is no room for the message.
    pub(super) fn refuses(&mut self, message: &FromGuest) -> bool {
        let (service, count) = self.refused_closes;
        let relid = self.channel(service).and_then(Channel::relid);
        match message {
            FromGuest::CloseChannel { relid: closed } if relid == Some(*closed) && count > 0 => {
                self.refused_closes.1 -= 1;
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::hypercall::Status;
    use crate::service::Service;
    use crate::vmbus::test_guest::TestGuest;

    #[test]
    fn messages_can_be_refused() {
        let mut guest = TestGuest::new((6, 0));
        assert!(guest.contact(4, 0));
        guest.bus.refuse_closes(Service::Heartbeat, 1);
        // Others are taken, of any kind or channel.
        assert_eq!(guest.post(3, &[]), [1, 1, 4]);
        guest.post(7, &[2]);
        assert_eq!(guest.bus.refused_closes(), 1);
        let close = [7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(guest.bus.post(1, 1, &close), Status::InsufficientBuffers);
        assert_eq!(guest.bus.refused_closes(), 0);
        assert_eq!(guest.bus.post(1, 1, &close), Status::Success);
    }
}
