// SPDX-License-Identifier: GPL-2.0

//! Volume shadow copy messages.
//!
//! | Body offset | Field                                                       |
//! | ----------- | ----------------------------------------------------------- |
//! | 0           | operation u8                                                |
//! | 8           | flags u32, written in answers to HOT_BACKUP and GET_DM_INFO |
//!
//! The bodies of FREEZE and AUTO_RECOVER have up to 12,500 bytes. They contain a list of disks,
//! which this module ignores. The body of QUERY_GUEST_CLUSTER_INFORMATION (since version 6)
//! contains a cluster's identity at offset 8, followed by the cluster's size and disks. A guest
//! outside a cluster answers with zeroes. No public source code of a host uses this operation.
//!
//! A message to the daemon has the layout of the first 12 bytes of a body. In the daemon's answers,
//! the first 4 bytes are a status.
//!
//! C header: [`include/uapi/linux/hyperv.h`](srctree/include/uapi/linux/hyperv.h)
//! (`struct hv_vss_msg`).

use super::{
    wire,
    Registration,
    Status,
    Version, //
};

/// Size of `struct hv_vss_msg`, the message to and from the daemon, in bytes.
pub(crate) const DAEMON_LEN: usize = 12;

const OPERATION: usize = 0;
const FLAGS: usize = 8;

/// `VSS_HBU_NO_AUTO_RECOVERY`: the backup is consistent, and needs no recovery afterwards.
const NO_AUTO_RECOVERY: u32 = 5;

/// The operation that the host requests; from `enum hv_vss_op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Asks whether the guest can be backed up while it runs.
    HotBackup,
    /// Asks what the guest needs after a backup. The answer is: nothing.
    GetInfo,
    /// Freezes the file systems.
    Freeze,
    /// Thaws the file systems.
    Thaw,
    /// Asks for the cluster that the guest is in. The answer is: none.
    QueryCluster,
    /// An operation that needs no work in Linux: a snapshot set is created, deleted, complete or
    /// recovered.
    Notice,
}

impl Operation {
    /// Reads the operation of the request in `body`, which has the message version `version`.
    ///
    /// Fails with the status for the answer.
    pub(crate) fn parse(version: Version, body: &[u8]) -> Result<Self, Status> {
        if body.len() < DAEMON_LEN {
            return Err(Status::INVALID_ARGUMENT);
        }
        match body[OPERATION] {
            0 | 1 | 4 | 7 => Ok(Self::Notice),
            2 => Ok(Self::HotBackup),
            3 => Ok(Self::GetInfo),
            5 => Ok(Self::Freeze),
            6 => Ok(Self::Thaw),
            8 if version.major >= 6 => Ok(Self::QueryCluster),
            _ => Err(Status::NOT_SUPPORTED),
        }
    }

    /// Returns the name in the log. `NOTICE` stands for four operations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HotBackup => "HOT_BACKUP",
            Self::GetInfo => "GET_DM_INFO",
            Self::Freeze => "FREEZE",
            Self::Thaw => "THAW",
            Self::QueryCluster => "QUERY_GUEST_CLUSTER_INFORMATION",
            Self::Notice => "NOTICE",
        }
    }

    /// Changes the request in `body` into an answer that reports success.
    pub(crate) fn succeed(self, body: &mut [u8]) {
        match self {
            Self::HotBackup => wire::put_u32(body, FLAGS, NO_AUTO_RECOVERY),
            Self::GetInfo => wire::put_u32(body, FLAGS, 0),
            Self::QueryCluster => body[FLAGS..].fill(0),
            Self::Freeze | Self::Thaw | Self::Notice => {}
        }
    }

    /// Writes the question for the daemon: the operation's number.
    pub(crate) fn write(self, message: &mut [u8; DAEMON_LEN]) {
        message.fill(0);
        message[OPERATION] = match self {
            Self::Notice => 0,
            Self::HotBackup => 2,
            Self::GetInfo => 3,
            Self::Freeze => 5,
            Self::Thaw => 6,
            Self::QueryCluster => 8,
        };
    }
}

/// Reads the status from a daemon's answer.
pub(crate) fn status(answer: &[u8]) -> Status {
    Status(wire::u32_native_at(answer, 0))
}

/// `VSS_OP_REGISTER`. The daemon expects no confirmation.
const LEGACY: u8 = 128;
/// `VSS_OP_REGISTER1`. The daemon expects a confirmation.
const CURRENT: u8 = 129;

/// Reads the first message of a daemon. Returns `None` if the message is not a known registration.
pub(crate) fn registration(message: &[u8]) -> Option<Registration> {
    match message[OPERATION] {
        LEGACY => Some(Registration::Legacy),
        CURRENT => Some(Registration::Current),
        _ => None,
    }
}

/// Returns the number with which the daemon has registered.
pub(crate) fn version(registration: Registration) -> u8 {
    match registration {
        Registration::Legacy => LEGACY,
        Registration::Current => CURRENT,
    }
}

/// Writes the confirmation of a registration, and returns its length in bytes. Returns `None` if
/// the daemon expects no confirmation.
pub(crate) fn confirm(registration: Registration, message: &mut [u8]) -> Option<usize> {
    match registration {
        Registration::Legacy => None,
        Registration::Current => {
            wire::put_u32_native(message, 0, u32::from(CURRENT));
            Some(4)
        }
    }
}

#[cfg(any(test, CONFIG_KUNIT = "y"))]
#[cfg_attr(not(test), kernel::prelude::kunit_tests(hv_utils_vss))]
mod tests {
    use super::super::tests::bytes;
    use super::*;

    const V5: Version = Version::new(5, 0);
    const V6: Version = Version::new(6, 0);

    #[test]
    fn clusters_came_with_version_6() {
        let mut body = bytes(0xa5, 7312);
        body[OPERATION] = 8;
        assert_eq!(Operation::parse(V5, &body), Err(Status::NOT_SUPPORTED));
        assert_eq!(Operation::parse(V6, &body), Ok(Operation::QueryCluster));
        Operation::QueryCluster.succeed(&mut body);
        assert_eq!(body[..2], [8, 0xa5]);
        assert!(body[8..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_recovery_is_a_notice() {
        let mut body = bytes(0, 6260);
        body[OPERATION] = 7;
        assert_eq!(Operation::parse(V5, &body), Ok(Operation::Notice));
    }

    #[test]
    fn other_operations_and_short_bodies_are_refused() {
        for number in 9..=255 {
            let body = [number; DAEMON_LEN];
            assert_eq!(Operation::parse(V6, &body), Err(Status::NOT_SUPPORTED));
        }
        let body = [5; DAEMON_LEN - 1];
        assert_eq!(Operation::parse(V6, &body), Err(Status::INVALID_ARGUMENT));
    }

    const OPERATIONS: [(u8, Operation, &str); 6] = [
        (0, Operation::Notice, "NOTICE"),
        (2, Operation::HotBackup, "HOT_BACKUP"),
        (3, Operation::GetInfo, "GET_DM_INFO"),
        (5, Operation::Freeze, "FREEZE"),
        (6, Operation::Thaw, "THAW"),
        (
            8,
            Operation::QueryCluster,
            "QUERY_GUEST_CLUSTER_INFORMATION",
        ),
    ];

    #[test]
    fn operations_have_numbers_and_names() {
        for (number, operation, name) in OPERATIONS {
            let mut body = [0xa5; DAEMON_LEN];
            body[OPERATION] = number;
            assert_eq!(Operation::parse(V6, &body), Ok(operation));
            assert_eq!(operation.name(), name);
            // The daemon gets the number, and nothing else.
            let mut message = [0xa5; DAEMON_LEN];
            operation.write(&mut message);
            assert_eq!(message[OPERATION], number);
            assert!(message[1..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn only_answers_that_have_flags_get_them() {
        for (operation, flags) in [
            (Operation::HotBackup, 5),
            (Operation::GetInfo, 0),
            (Operation::Freeze, 0xa5a5_a5a5),
            (Operation::Thaw, 0xa5a5_a5a5),
            (Operation::Notice, 0xa5a5_a5a5),
        ] {
            let mut body = [0xa5; DAEMON_LEN + 4];
            operation.succeed(&mut body);
            assert_eq!(wire::u32_at(&body, FLAGS), flags);
            assert_eq!(body[..FLAGS], [0xa5; 8]);
            assert_eq!(body[DAEMON_LEN..], [0xa5; 4]);
        }
    }

    #[test]
    fn daemons_register_with_a_number() {
        for (number, known, confirmed) in [
            (128, Registration::Legacy, None),
            (129, Registration::Current, Some(4)),
        ] {
            let mut message = [0xa5; DAEMON_LEN];
            message[OPERATION] = number;
            assert_eq!(registration(&message), Some(known));
            assert_eq!(version(known), number);
            assert_eq!(confirm(known, &mut message), confirmed);
            if confirmed.is_some() {
                assert_eq!(wire::u32_native_at(&message, 0), u32::from(number));
            }
        }
        for number in [0, 5, 127, 130] {
            assert_eq!(registration(&[number; DAEMON_LEN]), None);
        }
    }

    #[test]
    fn an_answer_begins_with_a_status() {
        let mut answer = [0xa5; DAEMON_LEN];
        wire::put_u32_native(&mut answer, 0, Status::FAIL.0);
        assert_eq!(status(&answer), Status::FAIL);
    }
}
