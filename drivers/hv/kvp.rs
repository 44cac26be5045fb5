// SPDX-License-Identifier: GPL-2.0

//! Data exchange (KVP): the host reads and writes key-value pairs and IP settings of the guest,
//! which `hv_kvp_daemon` keeps.

use crate::{
    daemon::{
        Asked,
        DaemonService,
        Info,
        ANSWER_TIMEOUT, //
    },
    icmsg::{
        kvp::{
            self,
            DAEMON_LEN, //
        },
        Kind,
        Registration,
        Status,
        Version, //
    },
    transport::{
        Late,
        Protocol, //
    },
    unique::Unique, //
};
use kernel::time::Delta;

/// What is fixed about the KVP service.
pub(crate) static INFO: Info = Info {
    name: "KVP",
    kind: Kind::KVP,
    frameworks: &[Version::new(3, 0), Version::new(1, 0)],
    versions: &[Version::new(4, 0), Version::new(3, 0), Version::new(1, 0)],
    ring: crate::RING,
    // The host injects IP settings right after the negotiation, and doesn't try again: the daemon
    // has to be there then. Hosts wait for a minute.
    patience: Some(Delta::from_secs(55)),
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

/// The KVP service.
pub(crate) struct Kvp;

impl DaemonService for Kvp {
    fn ask(&mut self, body: &mut [u8], daemon: Option<Registration>, message: &mut [u8]) -> Asked {
        let (Some(daemon), Some(message)) = (daemon, message.first_chunk_mut()) else {
            return Asked::Answered(Status::FAIL);
        };
        match kvp::to_daemon(body, daemon, message) {
            Ok(()) => Asked::Question {
                len: DAEMON_LEN,
                timeout: ANSWER_TIMEOUT,
                late: Late::Dropped,
            },
            Err(status) => Asked::Answered(status),
        }
    }

    fn answered(&mut self, body: &mut [u8], daemon: Registration, answer: &[u8]) -> Asked {
        Asked::Answered(match answer.first_chunk() {
            Some(answer) => kvp::from_daemon(daemon, answer, body),
            None => Status::FAIL,
        })
    }
}
