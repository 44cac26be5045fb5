// SPDX-License-Identifier: GPL-2.0

//! File copy messages: those of the host, and what the daemon gets of them.
//!
//! Each begins with the operation (u32) and two ids that nobody uses. `START` names a file, `WRITE`
//! has a piece of it; what they hold is laid out the same for the daemon, but its names are UTF-8.
//!
//! C header: [`include/uapi/linux/hyperv.h`](srctree/include/uapi/linux/hyperv.h)
//! (`struct hv_start_fcopy`, `struct hv_do_fcopy`).

use super::{
    text::utf16_to_utf8,
    wire,
    Registration,
    Status, //
};

/// Size of the longest message to the daemon, `struct hv_do_fcopy`.
pub(crate) const DAEMON_LEN: usize = WRITE_LEN;

/// What a daemon says, its version at first and the status of an operation then, is a number.
pub(crate) const ANSWER_LEN: usize = 4;

const OPERATION: usize = 0;
const HEADER_LEN: usize = 36;

/// `struct hv_start_fcopy`.
mod start {
    use core::ops::Range;

    /// The file's name and the folder's path: `W_MAX_PATH` units of UTF-16 from the host, and as many
    /// bytes of UTF-8 for the daemon.
    pub(super) const NAMES: [Range<usize>; 2] = [36..556, 556..1076];
    /// Bytes of UTF-8 in the name of a file or folder; `NAME_MAX` of Linux.
    pub(super) const COMPONENT_MAX: usize = 255;
    /// Flags (u32) and size of the file (u64).
    pub(super) const FLAGS: usize = 1076;
    pub(super) const SIZE: usize = 1080;
    pub(super) const LEN: usize = 1088;
}

// `struct hv_do_fcopy`.
const WRITE_OFFSET: usize = 40;
const WRITE_SIZE: usize = 48;
const WRITE_DATA: usize = 52;
const WRITE_DATA_MAX: u32 = 6 * 1024;
const WRITE_LEN: usize = WRITE_DATA + WRITE_DATA_MAX as usize;

/// What the host wants; from `enum hv_fcopy_op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A file to be created.
    Start,
    /// A piece of it to be written.
    Write,
    /// The file to be closed: it is whole.
    Complete,
    /// The file to be removed.
    Cancel,
}

impl Operation {
    /// Reads the operation of a host's body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Status> {
        if body.len() < HEADER_LEN {
            return Err(Status::INVALID_ARGUMENT);
        }
        match wire::u32_at(body, OPERATION) {
            0 => Ok(Self::Start),
            1 => Ok(Self::Write),
            2 => Ok(Self::Complete),
            3 => Ok(Self::Cancel),
            _ => Err(Status::NOT_SUPPORTED),
        }
    }

    /// Its name, as hosts call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "START_FILE_COPY",
            Self::Write => "WRITE_TO_FILE",
            Self::Complete => "COMPLETE_FCOPY",
            Self::Cancel => "CANCEL_FCOPY",
        }
    }
}

/// The version of its protocol that a daemon registers with, and that is confirmed to it. The one
/// of before had no number, and expects no confirmation.
const VERSION: u32 = 1;

/// Reads a daemon's first message; `None` if it is no registration that is known.
pub(crate) fn registration(message: &[u8]) -> Option<Registration> {
    match wire::u32_native_at(message, 0) {
        0 => Some(Registration::Legacy),
        VERSION => Some(Registration::Current),
        _ => None,
    }
}

/// Writes what a registration is confirmed with, and returns its size; `None` if nothing is.
pub(crate) fn confirm(registration: Registration, message: &mut [u8]) -> Option<usize> {
    match registration {
        Registration::Legacy => None,
        Registration::Current => {
            wire::put_u32_native(message, 0, VERSION);
            Some(ANSWER_LEN)
        }
    }
}

/// Reads the daemon's answer.
pub(crate) fn status(answer: &[u8]) -> Status {
    Status(wire::u32_native_at(answer, 0))
}

/// Writes the request in the host's `body` as a `message` for the daemon, and returns what it is
/// and its size.
///
/// Fails with the status that the request is to be answered with.
pub(crate) fn to_daemon(
    body: &[u8],
    message: &mut [u8; DAEMON_LEN],
) -> Result<(Operation, usize), Status> {
    let operation = Operation::parse(body)?;
    let len = match operation {
        Operation::Start => start_to_daemon(body, message)?,
        Operation::Write => write_to_daemon(body, message)?,
        Operation::Complete | Operation::Cancel => {
            message[..HEADER_LEN].fill(0);
            HEADER_LEN
        }
    };
    wire::put_u32_native(message, OPERATION, wire::u32_at(body, OPERATION));
    Ok((operation, len))
}

/// Writes the `message` that has the daemon cancel a copy, and returns its size.
pub(crate) fn cancel(message: &mut [u8; DAEMON_LEN]) -> usize {
    message[..HEADER_LEN].fill(0);
    wire::put_u32_native(message, OPERATION, 3);
    HEADER_LEN
}

fn start_to_daemon(body: &[u8], message: &mut [u8; DAEMON_LEN]) -> Result<usize, Status> {
    let body = body.get(..start::LEN).ok_or(Status::INVALID_ARGUMENT)?;
    message[OPERATION + 4..start::LEN].fill(0);
    for name in start::NAMES {
        let room = &mut message[name.clone()];
        let len = utf16_to_utf8(&body[name], room).map_err(|_| Status::NAME_TOO_LONG)?;
        let mut components = room[..len - 1].split(|byte| *byte == b'/');
        if components.any(|component| component.len() > start::COMPONENT_MAX) {
            return Err(Status::NAME_TOO_LONG);
        }
    }
    wire::put_u32_native(message, start::FLAGS, wire::u32_at(body, start::FLAGS));
    wire::put_u64_native(message, start::SIZE, wire::u64_at(body, start::SIZE));
    Ok(start::LEN)
}

fn write_to_daemon(body: &[u8], message: &mut [u8; DAEMON_LEN]) -> Result<usize, Status> {
    if body.len() < WRITE_DATA {
        return Err(Status::INVALID_ARGUMENT);
    }
    let size = wire::u32_at(body, WRITE_SIZE);
    if size > WRITE_DATA_MAX {
        return Err(Status::INVALID_ARGUMENT);
    }
    // CAST: At most `WRITE_DATA_MAX`.
    let data = WRITE_DATA..WRITE_DATA + size as usize;
    let bytes = body.get(data.clone()).ok_or(Status::INVALID_ARGUMENT)?;
    message[OPERATION + 4..WRITE_OFFSET].fill(0);
    wire::put_u64_native(message, WRITE_OFFSET, wire::u64_at(body, WRITE_OFFSET));
    wire::put_u32_native(message, WRITE_SIZE, size);
    message[data].copy_from_slice(bytes);
    Ok(WRITE_LEN)
}

#[cfg(any(test, CONFIG_KUNIT = "y"))]
#[cfg_attr(not(test), kernel::prelude::kunit_tests(hv_utils_fcopy))]
mod tests {
    use super::*;

    /// A `WRITE` of `size` bytes at offset 5, in a body of `N` bytes.
    fn write<const N: usize>(size: u32) -> [u8; N] {
        let mut body = [0x77; N];
        wire::put_u32(&mut body, OPERATION, 1);
        wire::put_u64(&mut body, WRITE_OFFSET, 5);
        wire::put_u32(&mut body, WRITE_SIZE, size);
        body
    }

    #[test]
    fn a_piece_is_passed_on() {
        let mut message = [0; DAEMON_LEN];
        let body: [u8; WRITE_DATA + 8] = write(7);
        assert_eq!(
            to_daemon(&body, &mut message),
            Ok((Operation::Write, WRITE_LEN))
        );
        assert_eq!(wire::u32_native_at(&message, OPERATION), 1);
        assert_eq!(wire::u64_native_at(&message, WRITE_OFFSET), 5);
        assert_eq!(wire::u32_native_at(&message, WRITE_SIZE), 7);
        assert_eq!(message[WRITE_DATA..WRITE_DATA + 7], [0x77; 7]);
        assert_eq!(message[WRITE_DATA + 7], 0);
    }

    #[test]
    fn a_piece_is_no_longer_than_its_message() {
        let mut message = [0; DAEMON_LEN];
        let body: [u8; WRITE_DATA + 8] = write(9);
        assert_eq!(
            to_daemon(&body, &mut message),
            Err(Status::INVALID_ARGUMENT)
        );
        let body: [u8; WRITE_LEN + 8] = write(WRITE_DATA_MAX + 1);
        assert_eq!(
            to_daemon(&body, &mut message),
            Err(Status::INVALID_ARGUMENT)
        );
        let body: [u8; WRITE_LEN + 8] = write(WRITE_DATA_MAX);
        assert_eq!(
            to_daemon(&body, &mut message),
            Ok((Operation::Write, WRITE_LEN))
        );
    }

    #[test]
    fn names_become_utf8() {
        let mut message = [0xff; DAEMON_LEN];
        let mut body = [0; start::LEN];
        body[36..40].copy_from_slice(&[0xe4, 0, b'b', 0]);
        body[556..558].copy_from_slice(b"/\0");
        wire::put_u32(&mut body, start::FLAGS, 3);
        wire::put_u64(&mut body, start::SIZE, 1 << 40);
        assert_eq!(
            to_daemon(&body, &mut message),
            Ok((Operation::Start, start::LEN))
        );
        assert_eq!(&message[36..40], "äb\0".as_bytes());
        assert_eq!(&message[556..558], b"/\0");
        assert_eq!(wire::u32_native_at(&message, start::FLAGS), 3);
        assert_eq!(wire::u64_native_at(&message, start::SIZE), 1 << 40);
    }

    #[test]
    fn names_have_all_of_their_room() {
        /// A `START` with so many times "\u{6587}", which has 3 bytes, as folders of at most `each`.
        fn start(count: usize, each: usize) -> [u8; start::LEN] {
            let mut body = [0; start::LEN];
            let mut at = start::NAMES[1].start;
            for number in 0..count {
                if number > 0 && number % each == 0 {
                    wire::put_u16(&mut body, at, u16::from(b'/'));
                    at += 2;
                }
                wire::put_u16(&mut body, at, 0x6587);
                at += 2;
            }
            body
        }
        let mut message = [0; DAEMON_LEN];
        let mut path =
            |count, each| to_daemon(&start(count, each), &mut message).map(|(_, len)| len);
        // 255 bytes; 511 with a slash; 518 and 521 with two.
        assert_eq!(path(85, 85), Ok(start::LEN));
        assert_eq!(path(86, 86), Err(Status::NAME_TOO_LONG));
        assert_eq!(path(170, 85), Ok(start::LEN));
        assert_eq!(path(172, 85), Ok(start::LEN));
        assert_eq!(path(173, 85), Err(Status::NAME_TOO_LONG));
    }

    #[test]
    fn what_is_short_or_unknown_is_refused() {
        let mut message = [0; DAEMON_LEN];
        for operation in [0, 1, 2, 3] {
            let mut body = [0; HEADER_LEN - 1];
            wire::put_u32(&mut body, OPERATION, operation);
            assert_eq!(
                to_daemon(&body, &mut message),
                Err(Status::INVALID_ARGUMENT)
            );
        }
        let mut body = [0; HEADER_LEN];
        wire::put_u32(&mut body, OPERATION, 3);
        let theirs = to_daemon(&body, &mut message);
        assert_eq!(theirs, Ok((Operation::Cancel, HEADER_LEN)));
        let mut ours = [0x77; DAEMON_LEN];
        assert_eq!(cancel(&mut ours), HEADER_LEN);
        assert_eq!(ours[..HEADER_LEN], message[..HEADER_LEN]);
        wire::put_u32(&mut body, OPERATION, 4);
        assert_eq!(to_daemon(&body, &mut message), Err(Status::NOT_SUPPORTED));
    }
}
