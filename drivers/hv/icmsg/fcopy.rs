// SPDX-License-Identifier: GPL-2.0

//! File copy messages: conversion of the host's requests to messages for the daemon.
//!
//! A request begins with the operation (u32) and two ids (16 bytes each), which neither this module
//! nor the daemon uses. `START` names a file. `WRITE` contains a piece of the file. Messages to the
//! daemon have the same layout, but names are in UTF-8.
//!
//! C header: [`include/uapi/linux/hyperv.h`](srctree/include/uapi/linux/hyperv.h)
//! (`struct hv_start_fcopy`, `struct hv_do_fcopy`).

use super::{
    text::utf16_to_utf8,
    wire,
    Registration,
    Status, //
};

/// Size of the longest message to the daemon, `struct hv_do_fcopy`, in bytes.
pub(crate) const DAEMON_LEN: usize = WRITE_LEN;

/// Size of a message from the daemon, in bytes. Each message is a u32: the first message is the
/// version of the daemon's protocol, each further message is the status of an operation.
pub(crate) const ANSWER_LEN: usize = 4;

const OPERATION: usize = 0;
/// Size of the operation and the two ids, in bytes.
const HEADER_LEN: usize = 36;

/// `struct hv_start_fcopy`.
mod start {
    use core::ops::Range;

    /// The name of the file and the path of its directory: `W_MAX_PATH` (260) units of UTF-16 from
    /// the host, 520 bytes of UTF-8 for the daemon.
    pub(super) const NAMES: [Range<usize>; 2] = [36..556, 556..1076];
    /// Maximum size of the name of a file or directory in UTF-8, in bytes: `NAME_MAX` of Linux.
    pub(super) const COMPONENT_MAX: usize = 255;
    /// The flags (u32).
    pub(super) const FLAGS: usize = 1076;
    /// The size of the file in bytes (u64).
    pub(super) const SIZE: usize = 1080;
    pub(super) const LEN: usize = 1088;
}

// `struct hv_do_fcopy`: the offset in the file (u64), the size of the piece (u32), and the piece.
const WRITE_OFFSET: usize = 40;
const WRITE_SIZE: usize = 48;
const WRITE_DATA: usize = 52;
const WRITE_DATA_MAX: u32 = 6 * 1024;
const WRITE_LEN: usize = WRITE_DATA + WRITE_DATA_MAX as usize;

/// The operation that the host requests; from `enum hv_fcopy_op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Creates the file.
    Start,
    /// Writes a piece of the file.
    Write,
    /// Closes the file, which is complete.
    Complete,
    /// Removes the file.
    Cancel,
}

impl Operation {
    /// Reads the operation of the request in `body`.
    ///
    /// Fails with the status for the answer.
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

    /// Returns the name in the log, as hosts call the operation.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Start => "START_FILE_COPY",
            Self::Write => "WRITE_TO_FILE",
            Self::Complete => "COMPLETE_FCOPY",
            Self::Cancel => "CANCEL_FCOPY",
        }
    }
}

/// The protocol version that a daemon registers with, and that confirms the registration. Older
/// daemons register with 0, and expect no confirmation.
const VERSION: u32 = 1;

/// Reads the first message of a daemon. Returns `None` if the message is not a known registration.
pub(crate) fn registration(message: &[u8]) -> Option<Registration> {
    match wire::u32_native_at(message, 0) {
        0 => Some(Registration::Legacy),
        VERSION => Some(Registration::Current),
        _ => None,
    }
}

/// Writes the confirmation of a registration, and returns its length in bytes. Returns `None` if
/// the daemon expects no confirmation.
pub(crate) fn confirm(registration: Registration, message: &mut [u8]) -> Option<usize> {
    match registration {
        Registration::Legacy => None,
        Registration::Current => {
            wire::put_u32_native(message, 0, VERSION);
            Some(ANSWER_LEN)
        }
    }
}

/// Reads the status from a daemon's answer.
pub(crate) fn status(answer: &[u8]) -> Status {
    Status(wire::u32_native_at(answer, 0))
}

/// Converts the request in `body` to a message for the daemon. Returns the operation, and the
/// length of the message in bytes.
///
/// Fails with the status for the answer.
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

/// Writes the message that asks the daemon to cancel a copy. Returns the length of the message in
/// bytes.
pub(crate) fn cancel(message: &mut [u8; DAEMON_LEN]) -> usize {
    message[..HEADER_LEN].fill(0);
    wire::put_u32_native(message, OPERATION, 3);
    HEADER_LEN
}

/// Converts a `START`. Returns the length of the message in bytes.
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

/// Converts a `WRITE`. Returns the length of the message in bytes.
fn write_to_daemon(body: &[u8], message: &mut [u8; DAEMON_LEN]) -> Result<usize, Status> {
    if body.len() < WRITE_DATA {
        return Err(Status::INVALID_ARGUMENT);
    }
    let size = wire::u32_at(body, WRITE_SIZE);
    if size > WRITE_DATA_MAX {
        return Err(Status::INVALID_ARGUMENT);
    }
    // CAST: The size is at most `WRITE_DATA_MAX`.
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
    use super::super::tests::{
        bytes,
        Bytes, //
    };
    use super::*;

    // The tests' messages are on the heap: take slices instead of arrays.
    fn to_daemon(body: &[u8], message: &mut [u8]) -> Result<(Operation, usize), Status> {
        super::to_daemon(body, message.try_into().unwrap())
    }

    fn cancel(message: &mut [u8]) -> usize {
        super::cancel(message.try_into().unwrap())
    }

    /// Returns a `WRITE` of `size` bytes at offset 5, in a body of `len` bytes.
    fn write(len: usize, size: u32) -> Bytes {
        let mut body = bytes(0x77, len);
        wire::put_u32(&mut body, OPERATION, 1);
        wire::put_u64(&mut body, WRITE_OFFSET, 5);
        wire::put_u32(&mut body, WRITE_SIZE, size);
        body
    }

    #[test]
    fn a_piece_is_passed_on() {
        let mut message = bytes(0, DAEMON_LEN);
        let body = write(WRITE_DATA + 8, 7);
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
        let mut message = bytes(0, DAEMON_LEN);
        let body = write(WRITE_DATA + 8, 9);
        assert_eq!(
            to_daemon(&body, &mut message),
            Err(Status::INVALID_ARGUMENT)
        );
        let body = write(WRITE_LEN + 8, WRITE_DATA_MAX + 1);
        assert_eq!(
            to_daemon(&body, &mut message),
            Err(Status::INVALID_ARGUMENT)
        );
        let body = write(WRITE_LEN + 8, WRITE_DATA_MAX);
        assert_eq!(
            to_daemon(&body, &mut message),
            Ok((Operation::Write, WRITE_LEN))
        );
    }

    #[test]
    fn names_become_utf8() {
        let mut message = bytes(0xff, DAEMON_LEN);
        let mut body = bytes(0, start::LEN);
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
        /// Returns a `START` whose path consists of `count` characters of 3 bytes each, with a
        /// slash after every `each` characters.
        fn start(count: usize, each: usize) -> Bytes {
            let mut body = bytes(0, start::LEN);
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
        let mut message = bytes(0, DAEMON_LEN);
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
        let mut message = bytes(0, DAEMON_LEN);
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
        let mut ours = bytes(0x77, DAEMON_LEN);
        assert_eq!(cancel(&mut ours), HEADER_LEN);
        assert_eq!(ours[..HEADER_LEN], message[..HEADER_LEN]);
        wire::put_u32(&mut body, OPERATION, 4);
        assert_eq!(to_daemon(&body, &mut message), Err(Status::NOT_SUPPORTED));
    }

    #[test]
    fn operations_have_numbers_and_names() {
        for (number, operation, name) in [
            (0, Operation::Start, "START_FILE_COPY"),
            (1, Operation::Write, "WRITE_TO_FILE"),
            (2, Operation::Complete, "COMPLETE_FCOPY"),
            (3, Operation::Cancel, "CANCEL_FCOPY"),
        ] {
            let mut body = [0; HEADER_LEN];
            wire::put_u32(&mut body, OPERATION, number);
            assert_eq!(Operation::parse(&body), Ok(operation));
            assert_eq!(operation.name(), name);
        }
    }

    #[test]
    fn a_piece_has_a_size() {
        let mut message = bytes(0, DAEMON_LEN);
        let body = write(WRITE_DATA, 0);
        let asked = to_daemon(&body, &mut message);
        assert_eq!(asked, Ok((Operation::Write, WRITE_LEN)));
        let asked = to_daemon(&body[..WRITE_DATA - 1], &mut message);
        assert_eq!(asked, Err(Status::INVALID_ARGUMENT));
    }

    #[test]
    fn daemons_register_with_a_number() {
        for (number, known, confirmed) in [
            (0, Some(Registration::Legacy), None),
            (1, Some(Registration::Current), Some(ANSWER_LEN)),
            (2, None, None),
        ] {
            let mut message = [0xa5; 8];
            wire::put_u32_native(&mut message, 0, number);
            assert_eq!(registration(&message), known);
            message[..ANSWER_LEN].fill(0xa5);
            assert_eq!(known.and_then(|it| confirm(it, &mut message)), confirmed);
            if confirmed.is_some() {
                assert_eq!(wire::u32_native_at(&message, 0), number);
            }
            assert_eq!(message[ANSWER_LEN..], [0xa5; 4]);
        }
    }

    #[test]
    fn an_answer_is_a_status() {
        let mut answer = [0; ANSWER_LEN];
        wire::put_u32_native(&mut answer, 0, Status::FAIL.0);
        assert_eq!(status(&answer), Status::FAIL);
    }
}
