// SPDX-License-Identifier: GPL-2.0

//! Data exchange (KVP): the host reads and writes key-value pairs and IP settings of the guest,
//! which `hv_kvp_daemon` keeps.

use crate::{
    daemon::{
        Asked,
        DaemonService,
        ANSWER_TIMEOUT, //
    },
    icmsg::{
        kvp::{
            self,
            Daemon,
            Operation,
            DAEMON_LEN, //
        },
        Kind,
        Status,
        Version, //
    },
    transport::Protocol, //
};
use hyperv::channel::RingSize;
use kernel::{
    prelude::*,
    time::Delta, //
};

/// The KVP service.
pub(crate) struct Kvp;

impl Protocol for Kvp {
    const NAME: &'static str = "KVP";
    const DEVICE: &'static CStr = c"vmbus/hv_kvp";
    const ANSWER_LEN: usize = DAEMON_LEN;

    type Message = [u8; DAEMON_LEN];
    type Registration = Daemon;

    fn register(message: &Self::Message) -> Option<Daemon> {
        Daemon::registration(message)
    }

    fn confirm(registration: Daemon, message: &mut Self::Message) -> Option<usize> {
        registration.confirm(message);
        Some(DAEMON_LEN)
    }
}

impl DaemonService for Kvp {
    const KIND: Kind = Kind::KVP;
    const FRAMEWORKS: &'static [Version] = &[Version::new(3, 0), Version::new(1, 0)];
    const VERSIONS: &'static [Version] =
        &[Version::new(4, 0), Version::new(3, 0), Version::new(1, 0)];
    const RING: RingSize = crate::RING;
    /// The host injects IP settings right after the negotiation, and doesn't try again: the daemon
    /// has to be there then. Hosts wait for a minute.
    const PATIENCE: Delta = Delta::from_secs(55);

    type Operation = Operation;

    fn ask(
        &mut self,
        body: &mut [u8],
        daemon: Option<Daemon>,
        message: &mut Self::Message,
    ) -> Asked<Operation> {
        let Some(daemon) = daemon else {
            return Asked::Answered(Status::FAIL);
        };
        match kvp::to_daemon(body, daemon, message) {
            Ok(operation) => Asked::Question {
                operation,
                len: DAEMON_LEN,
                timeout: ANSWER_TIMEOUT,
            },
            Err(status) => Asked::Answered(status),
        }
    }

    fn answered(
        &mut self,
        operation: Operation,
        daemon: Daemon,
        answer: &Self::Message,
        body: &mut [u8],
    ) -> Status {
        kvp::from_daemon(operation, daemon, answer, body)
    }
}
