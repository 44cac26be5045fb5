// SPDX-License-Identifier: GPL-2.0

//! Faults of a host, for scenarios: open requests that fail, and messages that find no buffers.

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

    /// Makes the host refuse the guest's next `count` messages that close the channel of `service`, for lack of buffers
    /// (HV_STATUS_INSUFFICIENT_BUFFERS). The guest then tries again. The host accepts all other messages.
    pub fn refuse_closes(&mut self, service: Service, count: u32) {
        self.refused_closes = (service, count);
    }

    /// The number of messages still to be refused, see [`Bus::refuse_closes`].
    pub fn refused_closes(&self) -> u32 {
        self.refused_closes.1
    }

    /// Whether the host refuses the message.
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
        // Messages of other kinds or channels are accepted.
        assert_eq!(guest.post(3, &[]), [1, 1, 4]);
        guest.post(7, &[2]);
        assert_eq!(guest.bus.refused_closes(), 1);
        let close = [7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(guest.bus.post(1, 1, &close), Status::InsufficientBuffers);
        assert_eq!(guest.bus.refused_closes(), 0);
        assert_eq!(guest.bus.post(1, 1, &close), Status::Success);
    }
}
