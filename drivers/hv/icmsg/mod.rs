// SPDX-License-Identifier: GPL-2.0

//! Messages of the integration services (IC): the header and the version negotiation, which all
//! services share.
//!
//! This code works on byte slices only. It uses neither the kernel nor the channel. So KUnit in the
//! kernel and programs in user space can test it.
//!
//! A message is the payload of an in-band VMBus packet. All numbers are little-endian:
//!
//! | Offset | Field                    | Offset | Field                                  |
//! | ------ | ------------------------ | ------ | -------------------------------------- |
//! | 0      | pipe flags u32           | 18     | size of the body u16                   |
//! | 4      | pipe message size u32    | 20     | status u32                             |
//! | 8      | framework version u16 x2 | 24     | IC transaction id u8                   |
//! | 12     | message type u16         | 25     | flags u8                               |
//! | 14     | message version u16 x2   | 28     | body                                   |
//!
//! The service changes the request into its answer in place. The answer repeats the request, except
//! the flags, the status, the body size if necessary, and the parts of the body that the service
//! writes.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h) (`struct vmbuspipe_hdr`,
//! `struct icmsg_hdr`, `struct icmsg_negotiate`).

pub(crate) mod addresses;
pub(crate) mod fcopy;
pub(crate) mod heartbeat;
pub(crate) mod kvp;
pub(crate) mod shutdown;
pub(crate) mod text;
pub(crate) mod timesync;
pub(crate) mod vss;
pub(crate) mod wire;

use core::fmt;

/// Size of the pipe header (8) and the IC header (20), in bytes. The body follows.
pub(crate) const HEADER_LEN: usize = 28;

/// Maximum number of framework versions, and of message versions, in a negotiation; from
/// `IC_VERSION_NEGOTIATION_MAX_VER_COUNT`.
pub(crate) const MAX_VERSIONS: usize = 100;

// Offsets in a message.
const PIPE_SIZE: usize = 4;
const PIPE_HEADER_LEN: usize = 8;
const TYPE: usize = 12;
const BODY_SIZE: usize = 18;
const STATUS: usize = 20;
const FLAGS: usize = 25;

// Flags of a message; from `ICMSGHDRFLAG_*`.
const FLAG_TRANSACTION: u8 = 1;
const FLAG_REQUEST: u8 = 2;
const FLAG_RESPONSE: u8 = 4;

// Offsets in the body of a negotiation.
const FRAMEWORK_COUNT: usize = 0;
const MESSAGE_COUNT: usize = 2;
const VERSIONS: usize = 8;
const VERSION_LEN: usize = 4;

/// Size of the body of the answer to a negotiation, in bytes: two counts, four reserved bytes, and
/// two versions.
const NEGOTIATE_ANSWER_LEN: u16 = 16;

/// A version of the framework or of a service's messages. The framework is the part that all
/// services share: the header and the negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// The major number. Messages with different major numbers may have different layouts.
    pub(crate) major: u16,
    /// The minor number.
    pub(crate) minor: u16,
}

impl Version {
    /// Creates the version `major.minor`.
    pub(crate) const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The type of a message; from `ICMSGTYPE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind(pub(crate) u16);

impl Kind {
    /// A negotiation of versions. The first message on a channel; the host may repeat it at any
    /// time.
    pub(crate) const NEGOTIATE: Self = Self(0);
    /// A heartbeat.
    pub(crate) const HEARTBEAT: Self = Self(1);
    /// A key-value pair operation.
    pub(crate) const KVP: Self = Self(2);
    /// A request to shut down, restart or hibernate.
    pub(crate) const SHUTDOWN: Self = Self(3);
    /// A sample of the host's time.
    pub(crate) const TIMESYNC: Self = Self(4);
    /// A volume shadow copy operation.
    pub(crate) const VSS: Self = Self(5);
    /// A file copy operation.
    pub(crate) const FCOPY: Self = Self(7);
}

/// The status in the answer to a request, an `HRESULT`; from `HV_S_OK`, `HV_E_FAIL` and related
/// constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u32);

impl Status {
    /// Success.
    pub(crate) const OK: Self = Self(0);
    /// An error without a status of its own.
    pub(crate) const FAIL: Self = Self(0x8000_4005);
    /// The guest does not support the request; from `HV_ERROR_NOT_SUPPORTED`.
    pub(crate) const NOT_SUPPORTED: Self = Self(0x8007_0032);
    /// The request is malformed; from `HV_INVALIDARG`.
    pub(crate) const INVALID_ARGUMENT: Self = Self(0x8007_0057);
    /// A name is too long; `ERROR_FILENAME_EXCED_RANGE` of Windows.
    pub(crate) const NAME_TOO_LONG: Self = Self(0x8007_00ce);
    /// The end of an enumeration, or a key that does not exist; from `HV_S_CONT`.
    pub(crate) const NO_MORE_ITEMS: Self = Self(0x8007_0103);

    /// Returns whether the status is a failure for the host.
    pub(crate) fn is_failure(self) -> bool {
        self != Self::OK && self != Self::NO_MORE_ITEMS
    }
}

/// The protocol with which a daemon has registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registration {
    /// The protocol of daemons before 2013.
    Legacy,
    /// The protocol of daemons since 2013.
    Current,
}

/// Why a packet cannot be answered: it contains no message that can become an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswerable {
    /// The packet is shorter than the header of a message.
    Short {
        /// Size of the payload in bytes.
        len: usize,
    },
    /// The message is itself an answer.
    Response,
    /// The packet is not in-band data, as all messages from hosts are.
    OutOfBand,
}

impl Unanswerable {
    /// Returns the name in the trace.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Short { .. } => "short",
            Self::Response => "response",
            Self::OutOfBand => "not in-band",
        }
    }
}

impl fmt::Display for Unanswerable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { len } => write!(f, "packet of {len} bytes has no message header"),
            Self::Response => f.write_str("message is a response, not a request"),
            Self::OutOfBand => f.write_str("not in-band data"),
        }
    }
}

/// Returns whether the host waits for an answer to the message in `payload`: the message is a
/// request or belongs to a transaction. Other messages get an answer, too, but the host may never
/// read this answer.
pub(crate) fn wants_answer(payload: &[u8]) -> bool {
    payload
        .get(FLAGS)
        .is_some_and(|flags| flags & (FLAG_TRANSACTION | FLAG_REQUEST) != 0)
}

/// Returns the type of the message in `payload`.
///
/// # Panics
///
/// Panics if `payload` is shorter than the header.
pub(crate) fn kind(payload: &[u8]) -> Kind {
    Kind(wire::u16_at(payload, TYPE))
}

/// Returns the status of the answer in `payload`, or [`Status::FAIL`] if `payload` is shorter than
/// the header.
pub(crate) fn status(payload: &[u8]) -> Status {
    match payload.len() < HEADER_LEN {
        true => Status::FAIL,
        false => Status(wire::u32_at(payload, STATUS)),
    }
}

/// Returns whether the answer in `payload` reports a failure, or that no version is common.
pub(crate) fn is_refusal(payload: &[u8]) -> bool {
    status(payload).is_failure()
        || kind(payload) == Kind::NEGOTIATE
            && payload.get(HEADER_LEN..).is_none_or(|body| {
                body.len() < VERSIONS || wire::u16_at(body, FRAMEWORK_COUNT) == 0
            })
}

/// A message that is long enough to be answered.
///
/// # Invariants
///
/// The slice holds at least [`HEADER_LEN`] bytes.
#[derive(Debug)]
pub(crate) struct Request<'a>(&'a mut [u8]);

impl<'a> Request<'a> {
    /// Creates a request from the payload of an in-band packet.
    ///
    /// Packets are padded to a multiple of 8 bytes. The pipe header contains the size of the
    /// message. If this size is not possible, the message ends with the packet.
    ///
    /// The body size in the IC header is not needed to find the body, but hosts refuse an answer
    /// with a wrong body size. So a size beyond the end of the message is reduced.
    pub(crate) fn new(payload: &'a mut [u8]) -> Result<Self, Unanswerable> {
        let len = payload.len();
        if len < HEADER_LEN {
            return Err(Unanswerable::Short { len });
        }
        if payload[FLAGS] & (FLAG_REQUEST | FLAG_RESPONSE) == FLAG_RESPONSE {
            return Err(Unanswerable::Response);
        }
        let end = usize::try_from(wire::u32_at(payload, PIPE_SIZE))
            .ok()
            .and_then(|size| size.checked_add(PIPE_HEADER_LEN))
            .filter(|end| (HEADER_LEN..=len).contains(end))
            .unwrap_or(len);
        let message = &mut payload[..end];
        let room = end - HEADER_LEN;
        if usize::from(wire::u16_at(message, BODY_SIZE)) > room {
            // CAST: `room` is less than the value of a `u16`.
            wire::put_u16(message, BODY_SIZE, room as u16);
        }
        Ok(Self(message))
    }

    /// Returns the type of the message.
    pub(crate) fn kind(&self) -> Kind {
        Kind(wire::u16_at(self.0, TYPE))
    }

    /// Returns the body: the bytes after the header.
    pub(crate) fn body(&mut self) -> &mut [u8] {
        &mut self.0[HEADER_LEN..]
    }

    /// Changes the request into an answer with this status.
    pub(crate) fn answer(self, status: Status) {
        wire::put_u32(self.0, STATUS, status.0);
        self.0[FLAGS] = FLAG_TRANSACTION | FLAG_RESPONSE;
    }

    /// Changes a negotiation into its answer. Returns the message version that was agreed on.
    ///
    /// `frameworks` and `messages` are the versions that the guest supports, best first. Selects
    /// from each list the first version that the host offers, too. Versions must match exactly. If
    /// there is no common version, or the counts in the request exceed its size, the answer has
    /// counts of 0, and the result is `None`.
    ///
    /// A request that is too short for the counts is answered with [`Status::FAIL`].
    pub(crate) fn negotiate(
        mut self,
        frameworks: &[Version],
        messages: &[Version],
    ) -> Option<Version> {
        let body = self.body();
        if body.len() < VERSIONS {
            self.answer(Status::FAIL);
            return None;
        }
        let agreed = agree(body, frameworks, messages);
        let count = u16::from(agreed.is_some());
        wire::put_u16(body, FRAMEWORK_COUNT, count);
        wire::put_u16(body, MESSAGE_COUNT, count);
        if let Some((framework, message)) = agreed {
            // The request contains at least two versions, so the body has room for two.
            put_version(body, 0, framework);
            put_version(body, 1, message);
        }
        if body.len() >= usize::from(NEGOTIATE_ANSWER_LEN) {
            wire::put_u16(self.0, BODY_SIZE, NEGOTIATE_ANSWER_LEN);
        }
        self.answer(Status::OK);
        agreed.map(|(_, message)| message)
    }
}

/// Selects a framework version and a message version from those offered in `body`. Returns `None`
/// if no pair is common to both sides.
fn agree(body: &[u8], frameworks: &[Version], messages: &[Version]) -> Option<(Version, Version)> {
    let framework_count = usize::from(wire::u16_at(body, FRAMEWORK_COUNT));
    let message_count = usize::from(wire::u16_at(body, MESSAGE_COUNT));
    if framework_count > MAX_VERSIONS || message_count > MAX_VERSIONS {
        return None;
    }
    let offered = body.get(VERSIONS..)?;
    let (theirs, rest) = offered.split_at_checked(framework_count * VERSION_LEN)?;
    let framework = first_common(frameworks, theirs)?;
    let theirs = rest.get(..message_count * VERSION_LEN)?;
    Some((framework, first_common(messages, theirs)?))
}

/// Returns the first of `ours` that is also in the host's list `theirs`.
fn first_common(ours: &[Version], theirs: &[u8]) -> Option<Version> {
    ours.iter().copied().find(|version| {
        theirs
            .chunks_exact(VERSION_LEN)
            .any(|offer| Version::new(wire::u16_at(offer, 0), wire::u16_at(offer, 2)) == *version)
    })
}

/// Writes `version` to the list of versions in the body of a negotiation.
fn put_version(body: &mut [u8], index: usize, version: Version) {
    let at = VERSIONS + index * VERSION_LEN;
    wire::put_u16(body, at, version.major);
    wire::put_u16(body, at + 2, version.minor);
}

#[cfg(any(test, CONFIG_KUNIT = "y"))]
#[cfg_attr(not(test), kernel::prelude::kunit_tests(hv_utils_icmsg))]
mod tests {
    use super::*;

    /// Bytes on the heap.
    #[cfg(test)]
    pub(super) type Bytes = Vec<u8>;
    #[cfg(not(test))]
    pub(super) type Bytes = kernel::alloc::KVec<u8>;

    /// Returns `len` bytes of this value, for long messages: KUnit runs tests on a kernel stack of
    /// 16 KiB.
    pub(super) fn bytes(value: u8, len: usize) -> Bytes {
        #[cfg(test)]
        return vec![value; len];
        #[cfg(not(test))]
        return Bytes::from_elem(value, len, kernel::alloc::flags::GFP_KERNEL).unwrap();
    }

    const FRAMEWORKS: [Version; 2] = [Version::new(3, 0), Version::new(1, 0)];
    const MESSAGES: [Version; 2] = [Version::new(3, 2), Version::new(1, 0)];

    /// Returns a packet of `N` bytes: a negotiation that lists `versions`, frameworks first.
    fn negotiation<const N: usize>(
        frameworks: u16,
        messages: u16,
        versions: &[Version],
    ) -> [u8; N] {
        let mut packet = [0xa5; N];
        wire::put_u16(&mut packet, TYPE, 0);
        wire::put_u16(&mut packet, BODY_SIZE, (N - HEADER_LEN) as u16);
        wire::put_u32(&mut packet, STATUS, 0);
        packet[24] = 7;
        packet[FLAGS] = FLAG_TRANSACTION | FLAG_REQUEST;
        wire::put_u16(&mut packet, HEADER_LEN, frameworks);
        wire::put_u16(&mut packet, HEADER_LEN + 2, messages);
        for (index, version) in versions.iter().enumerate() {
            put_version(&mut packet[HEADER_LEN..], index, *version);
        }
        packet
    }

    fn negotiate(packet: &mut [u8]) -> Option<Version> {
        match Request::new(packet) {
            Ok(request) => request.negotiate(&FRAMEWORKS, &MESSAGES),
            Err(_) => None,
        }
    }

    /// What is still to be shown of a text.
    struct Rest<'a>(&'a str);

    impl fmt::Write for Rest<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 = self.0.strip_prefix(text).ok_or(fmt::Error)?;
            Ok(())
        }
    }

    /// Returns whether `value` is shown as `text`. Needs no memory for the text.
    pub(super) fn shows(value: impl fmt::Display, text: &str) -> bool {
        let mut rest = Rest(text);
        fmt::write(&mut rest, format_args!("{value}")).is_ok() && rest.0.is_empty()
    }

    fn counts(packet: &[u8]) -> (u16, u16) {
        (
            wire::u16_at(packet, HEADER_LEN),
            wire::u16_at(packet, HEADER_LEN + 2),
        )
    }

    #[test]
    fn a_short_packet_cannot_be_answered() {
        for len in 0..HEADER_LEN {
            let mut packet = [0u8; HEADER_LEN];
            let result = Request::new(&mut packet[..len]);
            assert_eq!(result.err(), Some(Unanswerable::Short { len }));
        }
        assert!(Request::new(&mut [0u8; HEADER_LEN]).is_ok());
    }

    #[test]
    fn a_response_is_not_answered() {
        let mut packet = [0u8; HEADER_LEN];
        packet[FLAGS] = FLAG_TRANSACTION | FLAG_RESPONSE;
        assert_eq!(
            Request::new(&mut packet).err(),
            Some(Unanswerable::Response)
        );
    }

    #[test]
    fn answers_are_wanted_to_requests_and_in_transactions() {
        let mut packet = [0u8; HEADER_LEN];
        assert!(!wants_answer(&packet));
        assert!(!wants_answer(&packet[..FLAGS]));
        for flags in [
            FLAG_TRANSACTION,
            FLAG_REQUEST,
            FLAG_TRANSACTION | FLAG_REQUEST,
        ] {
            packet[FLAGS] = flags;
            assert!(wants_answer(&packet));
        }
    }

    #[test]
    fn an_answer_echoes_the_request() {
        let mut packet = [0x5au8; 40];
        packet[FLAGS] = FLAG_TRANSACTION | FLAG_REQUEST;
        wire::put_u16(&mut packet, BODY_SIZE, 12);
        let mut expected = packet;
        if let Ok(request) = Request::new(&mut packet) {
            request.answer(Status::FAIL);
        }
        expected[FLAGS] = 5;
        wire::put_u32(&mut expected, STATUS, 0x8000_4005);
        assert_eq!(packet, expected);
    }

    #[test]
    fn the_status_is_that_of_the_answer() {
        for expected in [Status::OK, Status::NO_MORE_ITEMS, Status::INVALID_ARGUMENT] {
            let mut packet = [0x5au8; HEADER_LEN];
            packet[FLAGS] = FLAG_REQUEST;
            if let Ok(request) = Request::new(&mut packet) {
                request.answer(expected);
            }
            assert_eq!(status(&packet), expected);
            assert_eq!(status(&packet[1..]), Status::FAIL);
        }
    }

    #[test]
    fn a_refusal_is_a_failure_or_no_version() {
        let refuses = |kind: Kind, answer: Status| {
            let mut packet = [0u8; HEADER_LEN];
            wire::put_u16(&mut packet, TYPE, kind.0);
            if let Ok(request) = Request::new(&mut packet) {
                request.answer(answer);
            }
            is_refusal(&packet)
        };
        assert!(!refuses(Kind::KVP, Status::OK));
        assert!(!refuses(Kind::KVP, Status::NO_MORE_ITEMS));
        assert!(refuses(Kind::KVP, Status::FAIL));
        assert!(refuses(Kind::KVP, Status::NOT_SUPPORTED));
        assert!(is_refusal(&[0u8; HEADER_LEN - 1]));
        for (version, is_common) in [(Version::new(3, 2), true), (Version::new(9, 9), false)] {
            let mut packet: [u8; 44] = negotiation(1, 1, &[Version::new(3, 0), version]);
            negotiate(&mut packet);
            assert_eq!(is_refusal(&packet), !is_common);
        }
        let mut short = [0u8; 35];
        negotiate(&mut short);
        assert!(is_refusal(&short));
    }

    #[test]
    fn a_size_beyond_the_packet_is_cut_back() {
        let mut packet = [0u8; 40];
        wire::put_u16(&mut packet, BODY_SIZE, 13);
        assert!(Request::new(&mut packet).is_ok());
        assert_eq!(wire::u16_at(&packet, BODY_SIZE), 12);
    }

    #[test]
    fn padding_is_no_part_of_the_message() {
        let mut packet = [0u8; 40];
        let len = |pipe_size, packet: &mut [u8]| {
            wire::put_u32(packet, PIPE_SIZE, pipe_size);
            wire::put_u16(packet, BODY_SIZE, 0xffff);
            let len = Request::new(packet).map_or(0, |mut request| request.body().len());
            (len, wire::u16_at(packet, BODY_SIZE))
        };
        assert_eq!(len(20, &mut packet), (0, 0));
        assert_eq!(len(27, &mut packet), (7, 7));
        assert_eq!(len(32, &mut packet), (12, 12));
        // Impossible sizes are ignored.
        for pipe_size in [0, 19, 33, u32::MAX] {
            assert_eq!(len(pipe_size, &mut packet), (12, 12));
        }
    }

    #[test]
    fn the_best_common_versions_are_agreed_on() {
        let offer = [
            Version::new(1, 0),
            Version::new(3, 0),
            Version::new(1, 0),
            Version::new(3, 2),
            Version::new(9, 9),
        ];
        let mut packet: [u8; 56] = negotiation(2, 3, &offer);
        assert_eq!(negotiate(&mut packet), Some(Version::new(3, 2)));
        assert_eq!(counts(&packet), (1, 1));
        assert_eq!(wire::u16_at(&packet, BODY_SIZE), NEGOTIATE_ANSWER_LEN);
        assert_eq!(packet[FLAGS], 5);
        assert_eq!(packet[24], 7);
        assert_eq!(&packet[36..44], &[3, 0, 0, 0, 3, 0, 2, 0]);
    }

    #[test]
    fn versions_match_exactly() {
        let offer = [Version::new(3, 0), Version::new(3, 1)];
        let mut packet: [u8; 44] = negotiation(1, 1, &offer);
        assert_eq!(negotiate(&mut packet), None);
        assert_eq!(counts(&packet), (0, 0));
        assert_eq!(wire::u16_at(&packet, BODY_SIZE), NEGOTIATE_ANSWER_LEN);
        assert_eq!(wire::u32_at(&packet, STATUS), 0);
    }

    #[test]
    fn a_message_version_is_no_framework_version() {
        let offer = [Version::new(3, 2), Version::new(3, 0)];
        let mut packet: [u8; 44] = negotiation(1, 1, &offer);
        assert_eq!(negotiate(&mut packet), None);
        let mut packet: [u8; 44] = negotiation(2, 0, &offer);
        assert_eq!(negotiate(&mut packet), None);
        let mut packet: [u8; 44] = negotiation(0, 2, &offer);
        assert_eq!(negotiate(&mut packet), None);
    }

    #[test]
    fn counts_beyond_the_packet_are_refused() {
        let offer = [Version::new(3, 0), Version::new(3, 2)];
        for (frameworks, messages) in [(1, 2), (2, 1), (3, 0), (0xffff, 0xffff), (0, 0)] {
            let mut packet: [u8; 44] = negotiation(frameworks, messages, &offer);
            assert_eq!(negotiate(&mut packet), None);
            assert_eq!(counts(&packet), (0, 0));
            assert_eq!(packet[FLAGS], 5);
        }
    }

    #[test]
    fn a_negotiation_without_counts_is_failed() {
        let mut packet: [u8; 35] = [0u8; 35];
        assert_eq!(negotiate(&mut packet), None);
        assert_eq!(wire::u32_at(&packet, STATUS), Status::FAIL.0);
        assert_eq!(packet[FLAGS], 5);
    }

    #[test]
    fn a_request_says_what_it_asks_for() {
        let mut packet = [0u8; HEADER_LEN];
        wire::put_u16(&mut packet, TYPE, 0x0107);
        assert_eq!(kind(&packet), Kind(0x0107));
        let asked = Request::new(&mut packet).map(|request| request.kind());
        assert_eq!(asked.ok(), Some(Kind(0x0107)));
    }

    #[test]
    fn versions_are_shown_with_both_numbers() {
        assert!(shows(Version::new(3, 2), "3.2"));
        assert!(shows(Version::new(65535, 0), "65535.0"));
        for text in ["", "3", "3.", "3.20", "2.3"] {
            assert!(!shows(Version::new(3, 2), text));
        }
    }

    #[test]
    fn what_cannot_be_answered_has_a_reason() {
        for (reason, name, text) in [
            (
                Unanswerable::Short { len: 27 },
                "short",
                "packet of 27 bytes has no message header",
            ),
            (
                Unanswerable::Response,
                "response",
                "message is a response, not a request",
            ),
            (Unanswerable::OutOfBand, "not in-band", "not in-band data"),
        ] {
            assert_eq!(reason.name(), name);
            assert!(shows(reason, text));
        }
    }
}
