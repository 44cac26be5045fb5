// SPDX-License-Identifier: GPL-2.0

//! Key-value pair messages: conversion between the host's messages and the daemon's.
//!
//! The body of a host's message begins with the operation and the pool (u8 each). The rest begins
//! at offset 4, except for IP settings: see [`addresses`]. A daemon's message begins with the same
//! two bytes and two bytes of padding. The rest begins at offset 4. In the daemon's answers, the
//! first four bytes are a status instead.
//!
//! C header: [`include/uapi/linux/hyperv.h`](srctree/include/uapi/linux/hyperv.h)
//! (`struct hv_kvp_msg`, `struct hv_kvp_ip_msg`).

use super::{
    addresses::{
        self,
        Layout,
        Omitted, //
    },
    text::{
        utf16_to_utf8,
        utf8_to_utf16,
        TooLong, //
    },
    wire,
    Registration,
    Status, //
};

/// Size of `struct hv_kvp_msg`, the message to and from the daemon, in bytes.
pub(crate) const DAEMON_LEN: usize = 7432;

const OPERATION: usize = 0;
const POOL: usize = 1;
/// Number of pools.
const POOLS: u8 = 5;

/// Offset at which the rest of a message begins, except in a host's message about IP settings.
const BODY: usize = 4;

/// `struct hv_kvp_exchg_msg_value`, with offsets from its start. Offsets and sizes are in bytes.
mod value {
    pub(super) const TYPE: usize = 0;
    pub(super) const KEY_SIZE: usize = 4;
    pub(super) const VALUE_SIZE: usize = 8;
    pub(super) const KEY: usize = 12;
    pub(super) const KEY_MAX: usize = 512;
    pub(super) const VALUE: usize = KEY + KEY_MAX;
    pub(super) const VALUE_MAX: usize = 2048;
    pub(super) const LEN: usize = VALUE + VALUE_MAX;
}

/// Types of values, with the numbers of the Windows registry.
mod value_type {
    pub(super) const SZ: u32 = 1;
    pub(super) const EXPAND_SZ: u32 = 2;
    pub(super) const DWORD: u32 = 4;
    /// `REG_U64` in Linux's header, which stands for `QWORD` but has this number.
    pub(super) const LINUX_U64: u32 = 8;
    pub(super) const QWORD: u32 = 11;
}

/// The operation that the host requests; from `enum hv_kvp_exchg_op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Reads the value of a key.
    Get,
    /// Sets the value of a key.
    Set,
    /// Deletes a key.
    Delete,
    /// Reads the key and the value at an index.
    Enumerate,
    /// Reads the IP settings of an adapter.
    GetAddresses,
    /// Sets the IP settings of an adapter.
    SetAddresses,
}

impl Operation {
    /// Reads the operation of the request in `body`.
    ///
    /// Fails with the status for the answer.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, Status> {
        match body.get(OPERATION).ok_or(Status::INVALID_ARGUMENT)? {
            0 => Ok(Self::Get),
            1 => Ok(Self::Set),
            2 => Ok(Self::Delete),
            3 => Ok(Self::Enumerate),
            4 => Ok(Self::GetAddresses),
            5 => Ok(Self::SetAddresses),
            _ => Err(Status::NOT_SUPPORTED),
        }
    }

    /// Returns the name in the log, as hosts call the operation.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Set => "SET",
            Self::Delete => "DELETE",
            Self::Enumerate => "ENUMERATE",
            Self::GetAddresses => "GET_IP_INFO",
            Self::SetAddresses => "SET_IP_INFO",
        }
    }

    /// Returns the size of the body that the operation and its answer need, in bytes.
    fn host_len(self, layout: Layout) -> usize {
        match self {
            Self::Get | Self::Set => BODY + value::LEN,
            Self::Delete => BODY + 4 + value::KEY_MAX,
            Self::Enumerate => BODY + 4 + value::LEN,
            Self::GetAddresses | Self::SetAddresses => layout.host_len(),
        }
    }
}

/// Why a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The status for the answer.
    pub(crate) status: Status,
    /// The reason, if the request is about IP settings.
    pub(crate) why: Option<addresses::Error>,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { status, why: None }
    }
}

impl Refusal {
    /// Returns a function that creates a refusal with this status from an error in IP settings.
    fn addresses(status: Status) -> impl FnOnce(addresses::Error) -> Self {
        move |why| Self {
            status,
            why: Some(why),
        }
    }
}

/// Returns whether the request in `body` deletes a key.
pub(crate) fn is_delete(body: &[u8]) -> bool {
    Operation::parse(body) == Ok(Operation::Delete)
}

/// `KVP_OP_REGISTER`. The daemon's answers have no status: an empty key ends an enumeration. The
/// daemon does not support IP settings.
const LEGACY: u8 = 4;
/// `KVP_OP_REGISTER1`. The daemon's answers begin with a status.
const CURRENT: u8 = 100;

/// Reads the first message of a daemon. Returns `None` if the message is not a known registration.
pub(crate) fn registration(message: &[u8]) -> Option<Registration> {
    match message[OPERATION] {
        LEGACY => Some(Registration::Legacy),
        CURRENT => Some(Registration::Current),
        _ => None,
    }
}

/// Writes the confirmation of a registration, and returns its length in bytes. The confirmation
/// contains the operation of the registration, and the version that the host shows as
/// IntegrationServicesVersion.
pub(crate) fn confirm(registration: Registration, message: &mut [u8]) -> usize {
    const VERSION: &[u8] = b"3.1";

    message.fill(0);
    message[OPERATION] = match registration {
        Registration::Legacy => LEGACY,
        Registration::Current => CURRENT,
    };
    message[BODY..BODY + VERSION.len()].copy_from_slice(VERSION);
    DAEMON_LEN
}

/// Converts the request in `body` to a message for the daemon. `layout` is that of the message
/// version.
///
/// Fails with the status for the answer. If IP settings are the reason, also returns the reason.
pub(crate) fn to_daemon(
    layout: Layout,
    body: &[u8],
    daemon: Registration,
    message: &mut [u8; DAEMON_LEN],
) -> Result<(), Refusal> {
    let operation = Operation::parse(body)?;
    if body.len() < operation.host_len(layout) {
        return Err(Status::INVALID_ARGUMENT.into());
    }
    let is_about_addresses = matches!(operation, Operation::GetAddresses | Operation::SetAddresses);
    if is_about_addresses && daemon == Registration::Legacy {
        return Err(Status::NOT_SUPPORTED.into());
    }
    // The daemon uses the pool as an index without a check.
    if !is_about_addresses && body[POOL] >= POOLS {
        return Err(Status::INVALID_ARGUMENT.into());
    }

    // The daemon does not read the rest of the message.
    let used = if is_about_addresses {
        DAEMON_LEN
    } else {
        BODY + 4 + value::LEN
    };
    message[..used].fill(0);
    message[OPERATION] = body[OPERATION];
    message[POOL] = body[POOL];

    match operation {
        Operation::Get => {
            let (from, to) = (&body[BODY..], &mut message[BODY..]);
            key_to_daemon(from, to, value::KEY_SIZE, value::KEY)?;
            // The number of bytes that the daemon may copy.
            wire::put_u32_native(to, value::VALUE_SIZE, value::VALUE_MAX as u32);
        }
        Operation::Set => {
            let (from, to) = (&body[BODY..], &mut message[BODY..]);
            key_to_daemon(from, to, value::KEY_SIZE, value::KEY)?;
            value_to_daemon(from, to)?;
        }
        Operation::Delete => key_to_daemon(&body[BODY..], &mut message[BODY..], 0, 4)?,
        Operation::Enumerate => {
            // The daemon's index is signed.
            let index = wire::u32_at(body, BODY);
            if i32::try_from(index).is_err() {
                return Err(Status::NO_MORE_ITEMS.into());
            }
            wire::put_u32_native(message, BODY, index);
        }
        Operation::GetAddresses | Operation::SetAddresses => {
            let is_set = operation == Operation::SetAddresses;
            layout
                .to_daemon(body, is_set, &mut message[BODY..])
                .map_err(Refusal::addresses(Status::INVALID_ARGUMENT))?;
        }
    }
    Ok(())
}

/// Converts a key. In both messages, its size is at offset `size`, and its text at offset `text`.
fn key_to_daemon(from: &[u8], to: &mut [u8], size: usize, text: usize) -> Result<(), Status> {
    let from = sized(&from[text..text + value::KEY_MAX], wire::u32_at(from, size))?;
    let len = utf16_to_utf8(from, &mut to[text..text + value::KEY_MAX])?;
    // CAST: The length is at most `KEY_MAX`.
    wire::put_u32_native(to, size, len as u32);
    Ok(())
}

/// Converts the value in a `struct hv_kvp_exchg_msg_value` to text. The daemon stores text only.
fn value_to_daemon(from: &[u8], to: &mut [u8]) -> Result<(), Status> {
    let size = wire::u32_at(from, value::VALUE_SIZE);
    let bytes = sized(&from[value::VALUE..value::LEN], size)?;
    let room = &mut to[value::VALUE..value::LEN];
    let len = match wire::u32_at(from, value::TYPE) {
        value_type::SZ | value_type::EXPAND_SZ => utf16_to_utf8(bytes, room)?,
        value_type::DWORD => decimal(u64::from(wire::u32_at(from, value::VALUE)), room),
        value_type::QWORD | value_type::LINUX_U64 => {
            decimal(wire::u64_at(from, value::VALUE), room)
        }
        _ => return Err(Status::INVALID_ARGUMENT),
    };
    // CAST: The length is at most `VALUE_MAX`.
    wire::put_u32_native(to, value::VALUE_SIZE, len as u32);
    Ok(())
}

/// Returns the first `size` bytes of `bytes`.
fn sized(bytes: &[u8], size: u32) -> Result<&[u8], Status> {
    usize::try_from(size)
        .ok()
        .and_then(|size| bytes.get(..size))
        .ok_or(Status::INVALID_ARGUMENT)
}

/// Writes `number` as decimal text with a NUL. Returns the length in bytes, including the NUL. `to`
/// must have at least 21 bytes.
fn decimal(mut number: u64, to: &mut [u8]) -> usize {
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        // CAST: The value is a digit.
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    let len = digits.len() - first;
    to[..len].copy_from_slice(&digits[first..]);
    to[len] = 0;
    len + 1
}

/// Converts the daemon's `answer` to the answer in `body`. [`to_daemon`] must have accepted `body`
/// with the same layout. For a `GET_IP_INFO`, returns the information that the answer lacks.
///
/// Fails as [`to_daemon`] does, or with the status that the daemon reports.
pub(crate) fn from_daemon(
    layout: Layout,
    daemon: Registration,
    answer: &[u8; DAEMON_LEN],
    body: &mut [u8],
) -> Result<Option<Omitted>, Refusal> {
    let operation = Operation::parse(body)?;
    let status = match daemon {
        Registration::Current => Status(wire::u32_native_at(answer, 0)),
        Registration::Legacy => {
            let is_empty = answer[BODY + 4 + value::KEY] == 0;
            if operation == Operation::Enumerate && is_empty {
                Status::NO_MORE_ITEMS
            } else {
                Status::OK
            }
        }
    };
    if status != Status::OK {
        return Err(status.into());
    }

    match operation {
        Operation::Set | Operation::Delete | Operation::SetAddresses => {}
        Operation::Get => value_to_host(&answer[BODY..], &mut body[BODY..]),
        Operation::Enumerate => {
            let (from, to) = (&answer[BODY + 4..], &mut body[BODY + 4..]);
            let key = value::KEY..value::KEY + value::KEY_MAX;
            let len = utf8_to_utf16(&from[key.clone()], &mut to[key]);
            // CAST: The length is at most `KEY_MAX`.
            wire::put_u32(to, value::KEY_SIZE, len as u32);
            value_to_host(from, to);
        }
        Operation::GetAddresses => {
            return layout
                .to_host(&answer[BODY..], body)
                .map(Some)
                .map_err(Refusal::addresses(Status::FAIL))
        }
    }
    Ok(None)
}

/// Converts the value in a `struct hv_kvp_exchg_msg_value`. All values of the daemon are text.
fn value_to_host(from: &[u8], to: &mut [u8]) {
    let value = value::VALUE..value::LEN;
    let len = utf8_to_utf16(&from[value.clone()], &mut to[value]);
    wire::put_u32(to, value::TYPE, value_type::SZ);
    // CAST: The length is at most `VALUE_MAX`.
    wire::put_u32(to, value::VALUE_SIZE, len as u32);
}

impl From<TooLong> for Status {
    /// The request fails: a truncated key could equal another key.
    fn from(TooLong: TooLong) -> Self {
        Self::INVALID_ARGUMENT
    }
}

#[cfg(any(test, CONFIG_KUNIT = "y"))]
#[cfg_attr(not(test), kernel::prelude::kunit_tests(hv_utils_kvp))]
mod tests {
    use super::super::tests::{
        bytes,
        Bytes, //
    };
    use super::*;

    const BODY_LEN: usize = Layout::Text.host_len();

    // The tests' messages are on the heap: take slices instead of arrays.
    fn to_daemon(
        layout: Layout,
        body: &[u8],
        registration: Registration,
        message: &mut [u8],
    ) -> Result<(), Refusal> {
        super::to_daemon(layout, body, registration, message.try_into().unwrap())
    }

    fn from_daemon(
        layout: Layout,
        registration: Registration,
        answer: &[u8],
        body: &mut [u8],
    ) -> Result<Option<Omitted>, Refusal> {
        super::from_daemon(layout, registration, answer.try_into().unwrap(), body)
    }

    /// Returns a host's body with this operation and pool.
    fn body(operation: u8, pool: u8) -> Bytes {
        let mut body = bytes(0, BODY_LEN);
        (body[OPERATION], body[POOL]) = (operation, pool);
        body
    }

    /// Writes ASCII text as UTF-16 with a NUL. Returns the size in bytes.
    fn put_text(to: &mut [u8], text: &[u8]) -> u32 {
        for (unit, byte) in to.chunks_exact_mut(2).zip(text.iter().chain(&[0])) {
            unit.copy_from_slice(&[*byte, 0]);
        }
        (text.len() as u32 + 1) * 2
    }

    /// Returns a `SET` of the key "k" to a value of this type and size, with these bytes.
    fn set(kind: u32, size: u32, bytes: &[u8]) -> Bytes {
        let mut body = body(1, 0);
        let key_size = put_text(&mut body[BODY + value::KEY..], b"k");
        wire::put_u32(&mut body, BODY + value::KEY_SIZE, key_size);
        wire::put_u32(&mut body, BODY + value::TYPE, kind);
        wire::put_u32(&mut body, BODY + value::VALUE_SIZE, size);
        body[BODY + value::VALUE..][..bytes.len()].copy_from_slice(bytes);
        body
    }

    /// Checks that the daemon is asked to set the value `expected`, a text with its NUL.
    fn value_set(body: &[u8], expected: &[u8]) {
        let mut message = bytes(0xff, DAEMON_LEN);
        assert_eq!(
            to_daemon(Layout::Text, body, Registration::Current, &mut message),
            Ok(())
        );
        let len = wire::u32_native_at(&message, BODY + value::VALUE_SIZE) as usize;
        assert_eq!(&message[BODY + value::VALUE..][..len], expected);
        assert_eq!(&message[BODY + value::KEY..][..2], b"k\0");
        assert_eq!(wire::u32_native_at(&message, BODY + value::KEY_SIZE), 2);
    }

    /// Checks that the request in `body` is refused with this status.
    fn refused(body: &[u8], status: Status) {
        let mut message = bytes(0, DAEMON_LEN);
        assert_eq!(
            to_daemon(Layout::Text, body, Registration::Current, &mut message),
            Err(status.into())
        );
    }

    #[test]
    fn the_layouts_are_those_of_the_c_structures() {
        assert_eq!(value::LEN, 2572);
        assert_eq!(BODY_LEN, 7428);
        assert_eq!(BODY + 4 + value::VALUE, 532);
    }

    #[test]
    fn values_become_text() {
        value_set(&set(1, 4, b"v\0\0\0"), b"v\0");
        value_set(&set(2, 2, b"v\0w\0"), b"v\0");
        value_set(&set(4, 4, &42u32.to_le_bytes()), b"42\0");
        value_set(&set(4, 4, &0u32.to_le_bytes()), b"0\0");
        value_set(
            &set(11, 8, &u64::MAX.to_le_bytes()),
            b"18446744073709551615\0",
        );
        value_set(&set(8, 8, &7u64.to_le_bytes()), b"7\0");
    }

    #[test]
    fn other_values_are_refused() {
        for kind in [0, 3, 5, 7, 9, 10, 12, u32::MAX] {
            refused(&set(kind, 4, &[0; 4]), Status::INVALID_ARGUMENT);
        }
    }

    #[test]
    fn sizes_beyond_the_field_are_refused() {
        refused(&set(1, 2049, &[]), Status::INVALID_ARGUMENT);
        refused(&set(1, u32::MAX, &[]), Status::INVALID_ARGUMENT);
        let mut body = set(1, 2, &[0; 2]);
        wire::put_u32(&mut body, BODY + value::KEY_SIZE, 513);
        refused(&body, Status::INVALID_ARGUMENT);
        // A key that fits in UTF-16, but not in UTF-8.
        let mut body = set(1, 2, &[0; 2]);
        body[BODY + value::KEY..][..512].fill(0x20);
        wire::put_u32(&mut body, BODY + value::KEY_SIZE, 512);
        refused(&body, Status::INVALID_ARGUMENT);
    }

    #[test]
    fn what_the_daemon_would_stumble_over_is_refused() {
        refused(&body(6, 0), Status::NOT_SUPPORTED);
        refused(&body(3, 5), Status::INVALID_ARGUMENT);
        refused(&[], Status::INVALID_ARGUMENT);
        for operation in 0..6 {
            let parsed = Operation::parse(&[operation]);
            let short = parsed.map_or(0, |operation| operation.host_len(Layout::Text) - 1);
            refused(&body(operation, 0)[..short], Status::INVALID_ARGUMENT);
        }
        let mut body = body(3, 0);
        wire::put_u32(&mut body, BODY, 1 << 31);
        refused(&body, Status::NO_MORE_ITEMS);
    }

    #[test]
    fn a_legacy_daemon_is_not_asked_about_addresses() {
        let mut message = bytes(0, DAEMON_LEN);
        for operation in [4, 5] {
            assert_eq!(
                to_daemon(
                    Layout::Text,
                    &body(operation, 0),
                    Registration::Legacy,
                    &mut message
                ),
                Err(Status::NOT_SUPPORTED.into())
            );
        }
    }

    #[test]
    fn a_get_asks_for_the_whole_value_and_returns_it() {
        let mut host = set(0, 0, &[]);
        host[OPERATION] = 0;
        let mut message = bytes(0, DAEMON_LEN);
        let asked = to_daemon(Layout::Text, &host, Registration::Current, &mut message);
        assert_eq!(asked, Ok(()));
        assert_eq!(
            wire::u32_native_at(&message, BODY + value::VALUE_SIZE) as usize,
            value::VALUE_MAX
        );

        wire::put_u32_native(&mut message, 0, 0);
        message[BODY + value::VALUE..][..3].copy_from_slice(b"hi\0");
        let told = from_daemon(Layout::Text, Registration::Current, &message, &mut host);
        assert_eq!(told, Ok(None));
        assert_eq!(&host[BODY + value::VALUE..][..6], b"h\0i\0\0\0");
        assert_eq!(wire::u32_at(&host, BODY + value::VALUE_SIZE), 6);
        assert_eq!(wire::u32_at(&host, BODY + value::TYPE), 1);
    }

    #[test]
    fn an_enumeration_returns_key_and_value() {
        let mut host = body(3, 2);
        let mut message = bytes(0, DAEMON_LEN);
        // Neither text ends with a NUL.
        message[BODY + 4 + value::KEY..][..value::KEY_MAX].fill(b'k');
        message[BODY + 4 + value::VALUE..][..value::VALUE_MAX].fill(b'v');
        let told = from_daemon(Layout::Text, Registration::Current, &message, &mut host);
        assert_eq!(told, Ok(None));
        let at = |offset| wire::u32_at(&host, BODY + 4 + offset) as usize;
        assert_eq!(at(value::KEY_SIZE), value::KEY_MAX);
        assert_eq!(at(value::VALUE_SIZE), value::VALUE_MAX);
        let key = &host[BODY + 4 + value::KEY..][..value::KEY_MAX];
        assert_eq!(key[value::KEY_MAX - 4..], [b'k', 0, 0, 0]);
    }

    #[test]
    fn the_daemons_status_is_passed_on() {
        let mut host = body(3, 2);
        let mut message = bytes(0, DAEMON_LEN);
        wire::put_u32_native(&mut message, 0, Status::NO_MORE_ITEMS.0);
        let mut answer = |daemon| from_daemon(Layout::Text, daemon, &message, &mut host);
        let end = Err(Status::NO_MORE_ITEMS.into());
        assert_eq!(answer(Registration::Current), end);
        // A legacy daemon ends the enumeration with an empty key.
        assert_eq!(answer(Registration::Legacy), end);
        assert_eq!(host, body(3, 2));
    }

    #[test]
    fn addresses_are_laid_out_as_agreed_on() {
        for (layout, adapter) in [(Layout::Text, 2), (Layout::Binary, 4 + 24)] {
            let mut host = body(4, 1);
            put_text(&mut host[adapter..], b"00:15");
            let mut message = bytes(0xff, DAEMON_LEN);
            let asked = to_daemon(layout, &host, Registration::Current, &mut message);
            assert_eq!(asked, Ok(()));
            assert_eq!(&message[BODY..][..6], b"00:15\0");
            assert!(message[BODY + 256..].iter().all(|byte| *byte == 0));

            // A text that cannot be converted to the layout is a failure.
            wire::put_u32_native(&mut message, 0, 0);
            message[BODY + 258..][..2].copy_from_slice(b"x\0");
            let told = from_daemon(layout, Registration::Current, &message, &mut host);
            let why = told.err().and_then(|Refusal { status, why }| {
                assert_eq!(status, Status::FAIL);
                why
            });
            let invalid = addresses::Error::Invalid(addresses::Field::Addresses);
            assert_eq!(why, (layout == Layout::Binary).then_some(invalid));
        }
    }

    #[test]
    fn what_no_daemon_has_room_for_is_refused_with_a_reason() {
        let mut host = body(5, 1);
        wire::put_u32(&mut host, BODY, 65);
        let mut message = bytes(0, DAEMON_LEN);
        let asked = to_daemon(Layout::Binary, &host, Registration::Current, &mut message);
        let (status, why) = asked.map_or_else(|it| (it.status, it.why), |()| (Status::OK, None));
        assert_eq!(status, Status::INVALID_ARGUMENT);
        assert!(why.is_some());
    }

    #[test]
    fn operations_have_numbers_and_names() {
        for (number, operation, name) in [
            (0, Operation::Get, "GET"),
            (1, Operation::Set, "SET"),
            (2, Operation::Delete, "DELETE"),
            (3, Operation::Enumerate, "ENUMERATE"),
            (4, Operation::GetAddresses, "GET_IP_INFO"),
            (5, Operation::SetAddresses, "SET_IP_INFO"),
        ] {
            assert_eq!(Operation::parse(&[number]), Ok(operation));
            assert_eq!(operation.name(), name);
            assert_eq!(is_delete(&[number]), number == 2);
        }
        assert!(!is_delete(&[]));
    }

    #[test]
    fn daemons_register_with_a_number() {
        for (number, known) in [(4, Registration::Legacy), (100, Registration::Current)] {
            let mut message = bytes(0xff, DAEMON_LEN);
            message[OPERATION] = number;
            assert_eq!(registration(&message), Some(known));
            assert_eq!(confirm(known, &mut message), DAEMON_LEN);
            assert_eq!(message[..BODY], [number, 0, 0, 0]);
            assert_eq!(&message[BODY..BODY + 4], b"3.1\0");
            assert!(message[BODY + 4..].iter().all(|byte| *byte == 0));
        }
        for number in [0, 3, 5, 99, 101] {
            assert_eq!(registration(&bytes(number, DAEMON_LEN)), None);
        }
    }

    #[test]
    fn a_delete_names_its_key() {
        let mut host = body(2, 1);
        let size = put_text(&mut host[BODY + 4..], b"k");
        wire::put_u32(&mut host, BODY, size);
        let mut message = bytes(0xff, DAEMON_LEN);
        let asked = to_daemon(Layout::Text, &host, Registration::Legacy, &mut message);
        assert_eq!(asked, Ok(()));
        assert_eq!(message[..2], [2, 1]);
        assert_eq!(wire::u32_native_at(&message, BODY), 2);
        assert_eq!(&message[BODY + 4..][..3], b"k\0\0");
        // The answer says that the key is gone, and no more.
        wire::put_u32_native(&mut message, 0, 0);
        message[BODY..].fill(0xff);
        let told = from_daemon(Layout::Text, Registration::Current, &message, &mut host);
        assert_eq!(told, Ok(None));
        assert_eq!(host[..2], [2, 1]);
        assert_eq!(wire::u32_at(&host, BODY), size);
        assert_eq!(&host[BODY + 4..][..4], b"k\0\0\0");
    }

    #[test]
    fn an_enumeration_has_an_index() {
        let mut host = body(3, 4);
        wire::put_u32(&mut host, BODY, i32::MAX as u32);
        let mut message = bytes(0xff, DAEMON_LEN);
        let asked = to_daemon(Layout::Text, &host, Registration::Current, &mut message);
        assert_eq!(asked, Ok(()));
        assert_eq!(message[..BODY], [3, 4, 0, 0]);
        assert_eq!(wire::u32_native_at(&message, BODY), i32::MAX as u32);
    }

    #[test]
    fn a_legacy_daemon_says_by_its_key_that_there_is_one() {
        let mut host = body(3, 2);
        let mut message = bytes(0, DAEMON_LEN);
        wire::put_u32_native(&mut message, 0, Status::FAIL.0);
        message[BODY + 4 + value::KEY] = b'k';
        let told = from_daemon(Layout::Text, Registration::Legacy, &message, &mut host);
        assert_eq!(told, Ok(None));
        assert_eq!(wire::u32_at(&host, BODY + 4 + value::KEY_SIZE), 4);
        assert_eq!(&host[BODY + 4 + value::KEY..][..4], b"k\0\0\0");
    }
}
