// SPDX-License-Identifier: GPL-2.0

//! Volume shadow copy messages.
//!
//! | Body offset | Field                                                      |
//! | ----------- | ---------------------------------------------------------- |
//! | 0           | operation u8                                               |
//! | 8           | flags u32, written in answers to HOT_BACKUP and GET_DM_INFO |
//!
//! A daemon's message is the first twelve bytes of it; in its answers the first four are a status.
//!
//! C header: [`include/uapi/linux/hyperv.h`](srctree/include/uapi/linux/hyperv.h)
//! (`struct hv_vss_msg`).

use super::{
    wire,
    Registration,
    Status, //
};

/// Size of a daemon's message, `struct hv_vss_msg`, either way.
pub(crate) const DAEMON_LEN: usize = 12;

const OPERATION: usize = 0;
const FLAGS: usize = 8;

/// `VSS_HBU_NO_AUTO_RECOVERY`: the guest takes a consistent backup without help after it.
const NO_AUTO_RECOVERY: u32 = 5;

/// What the host wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Whether the guest can be backed up while it runs.
    HotBackup,
    /// What the guest needs to be done to it after a backup: nothing.
    GetInfo,
    /// File systems to be frozen.
    Freeze,
    /// File systems to be thawed.
    Thaw,
    /// Nothing that Linux has to do anything for: a snapshot set begins, ends or is done.
    Notice,
}

impl Operation {
    /// Reads the request in `body`.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Status> {
        if body.len() < DAEMON_LEN {
            return Err(Status::INVALID_ARGUMENT);
        }
        match body[OPERATION] {
            0 | 1 | 4 => Ok(Self::Notice),
            2 => Ok(Self::HotBackup),
            3 => Ok(Self::GetInfo),
            5 => Ok(Self::Freeze),
            6 => Ok(Self::Thaw),
            _ => Err(Status::NOT_SUPPORTED),
        }
    }

    /// Its name, as hosts call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HotBackup => "HOT_BACKUP",
            Self::GetInfo => "GET_DM_INFO",
            Self::Freeze => "FREEZE",
            Self::Thaw => "THAW",
            Self::Notice => "NOTICE",
        }
    }

    /// Writes what an answer of success says in the request's `body`.
    pub(crate) fn succeed(self, body: &mut [u8]) {
        match self {
            Self::HotBackup => wire::put_u32(body, FLAGS, NO_AUTO_RECOVERY),
            Self::GetInfo => wire::put_u32(body, FLAGS, 0),
            Self::Freeze | Self::Thaw | Self::Notice => {}
        }
    }

    /// Writes the question for the daemon: the host's number of the operation.
    pub(crate) fn write(self, message: &mut [u8; DAEMON_LEN]) {
        message.fill(0);
        message[OPERATION] = match self {
            Self::Notice => 0,
            Self::HotBackup => 2,
            Self::GetInfo => 3,
            Self::Freeze => 5,
            Self::Thaw => 6,
        };
    }
}

/// Reads the daemon's answer.
pub(crate) fn status(answer: &[u8]) -> Status {
    Status(wire::u32_native_at(answer, 0))
}

/// `VSS_OP_REGISTER`: such a daemon expects no confirmation.
const LEGACY: u8 = 128;
/// `VSS_OP_REGISTER1`.
const CURRENT: u8 = 129;

/// Reads a daemon's first message; `None` if it is no registration that is known.
pub(crate) fn registration(message: &[u8]) -> Option<Registration> {
    match message[OPERATION] {
        LEGACY => Some(Registration::Legacy),
        CURRENT => Some(Registration::Current),
        _ => None,
    }
}

/// The number that a daemon registered with.
pub(crate) fn version(registration: Registration) -> u8 {
    match registration {
        Registration::Legacy => LEGACY,
        Registration::Current => CURRENT,
    }
}

/// Writes what a registration is confirmed with, and returns its size; `None` if nothing is.
pub(crate) fn confirm(registration: Registration, message: &mut [u8]) -> Option<usize> {
    match registration {
        Registration::Legacy => None,
        Registration::Current => {
            wire::put_u32_native(message, 0, u32::from(CURRENT));
            Some(4)
        }
    }
}
