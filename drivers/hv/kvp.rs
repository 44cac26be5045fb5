// SPDX-License-Identifier: GPL-2.0

//! Data exchange (KVP): the host reads and writes key-value pairs and IP settings of the guest,
//! which `hv_kvp_daemon` keeps.

use crate::{
    icmsg::kvp::{
        self,
        DAEMON_LEN, //
    },
    prelude::*, //
};

/// Constants of the KVP service.
static INFO: daemon::Info = daemon::Info {
    session: session::Info {
        name: "KVP",
        kind: Kind::KVP,
        frameworks: &[Version::new(3, 0), Version::new(1, 0)],
        versions: &[Version::new(4, 0), Version::new(3, 0), Version::new(1, 0)],
    },
    ring: RING,
    // The host sets keys and IP settings right after the negotiation, once. It waits.
    waits_for_daemon: true,
    unique: Unique::new(),
    protocol: Protocol {
        device: c"vmbus/hv_kvp",
        answer_len: DAEMON_LEN,
        message_len: DAEMON_LEN,
        register: kvp::registration,
        confirm: |registration, message| Some(kvp::confirm(registration, message)),
        connected: |_| {},
    },
};

/// Binds the service to its device.
pub(crate) fn bind<'bound>(dev: &'bound Device<'_>) -> Result<BoundService<'bound>> {
    let service = Kvp {
        until: Deadline::after(ANSWER_TIMEOUT),
        is_asked_again: false,
    };
    BoundService::open_with_daemon(dev, &INFO, KBox::new(service, GFP_KERNEL)?, None)
}

/// The KVP service.
struct Kvp {
    /// Until when the request that is worked on waits for a daemon.
    until: Deadline,
    /// The daemon has gone over that request: the next one is asked, once.
    is_asked_again: bool,
}

impl Kvp {
    /// Asks the daemon about the request in `body`, or waits for a daemon.
    fn ask_daemon(&self, body: &[u8], daemon: Option<Registration>, message: &mut [u8]) -> Next {
        let Some(message) = message.first_chunk_mut() else {
            return Next::Answer(Status::FAIL);
        };
        let Some(daemon) = daemon else {
            return Next::Wait { until: self.until };
        };
        match kvp::to_daemon(body, daemon, message) {
            Ok(()) => Next::Ask {
                len: DAEMON_LEN,
                timeout: ANSWER_TIMEOUT,
                late: Late::Dropped,
            },
            Err(status) => Next::Answer(status),
        }
    }
}

impl DaemonService for Kvp {
    fn ask(&mut self, body: &mut [u8], daemon: Option<Registration>, message: &mut [u8]) -> Next {
        self.until = Deadline::after(ANSWER_TIMEOUT);
        self.is_asked_again = false;
        self.ask_daemon(body, daemon, message)
    }

    fn resume(
        &mut self,
        body: &mut [u8],
        daemon: Option<Registration>,
        message: &mut [u8],
    ) -> Next {
        self.ask_daemon(body, daemon, message)
    }

    fn answered(&mut self, body: &mut [u8], daemon: Registration, answer: &[u8]) -> Next {
        let status = match answer.first_chunk() {
            Some(answer) => kvp::from_daemon(daemon, answer, body),
            None => Status::FAIL,
        };
        Next::Answer(match status {
            // The last daemon has deleted it.
            Status::NO_MORE_ITEMS if self.is_asked_again && kvp::is_delete(body) => Status::OK,
            status => status,
        })
    }

    fn unanswered(&mut self, _: &mut [u8], _: Lost, reason: Reason) -> Next {
        // The last daemon may have done it: repeating is harmless.
        if reason != Reason::Gone || self.is_asked_again {
            return Next::Answer(Status::FAIL);
        }
        self.is_asked_again = true;
        Next::Wait { until: self.until }
    }
}
