// SPDX-License-Identifier: GPL-2.0

//! Properties of message headers and negotiations.

use std::ops::Range;

use host::bytes::u16_at;
use host::bytes::u32_at;
use host::fuzz::Random;
use host::ic::frame::Message;
use host::ic::frame::BODY;
use host::ic::frame::RESPONSE;
use host::ic::frame::TRANSACTION;
use host::service::Service;

use crate::icmsg;
use crate::icmsg::Request;
use crate::icmsg::Status;
use crate::icmsg::Unanswerable;
use crate::icmsg::Version;
use crate::input::body;
use crate::input::mutate;
use crate::input::only_changed;

// Fields of a message header.
const SIZE: Range<usize> = 18..20;
const STATUS: Range<usize> = 20..24;
const FLAGS: usize = 25;

/// A payload: a request of any service or a negotiation, perhaps mutated.
fn payload(random: &mut Random) -> Vec<u8> {
    let service = random.of(&[Service::Heartbeat, Service::Shutdown, Service::Vss]);
    let mut payload = match random.one_in(2) {
        true => offer(service, random).encode(),
        false => {
            let kind = service.message_type();
            Message::request(kind, (3, 0), (3, 0), 7, body(service, random)).encode()
        }
    };
    mutate(&mut payload, random);
    payload
}

/// A negotiation with versions that the service supports and others.
fn offer(service: Service, random: &mut Random) -> Message {
    let mut versions = |known: &[(u16, u16)]| -> Vec<(u16, u16)> {
        (0..random.of(&[0, 1, 2, 3, 5, 100, 101]))
            .map(|_| match random.one_in(3) {
                true => (random.below(4) as u16, random.below(2) as u16),
                false => random.of(known),
            })
            .collect()
    };
    let (frameworks, messages) = (
        versions(service.framework_versions()),
        versions(service.message_versions()),
    );
    Message::negotiation(&frameworks, &messages, random.any() as u8)
}

/// A message is either accepted as a request or left unchanged. An answer changes size, status and flags only. An
/// answer is never accepted as a request.
pub(super) fn framing(random: &mut Random) {
    let before = payload(random);
    let mut payload = before.clone();
    let len = before.len();
    let (kind, body) = match Request::new(&mut payload) {
        Ok(mut request) => (request.kind(), request.body().len()),
        Err(reason) => {
            match reason {
                Unanswerable::Short { len: told } => assert!(told == len && len < BODY),
                Unanswerable::Response => assert_eq!(before[FLAGS] & 6, RESPONSE),
                Unanswerable::OutOfBand => panic!("a payload does not say how it came"),
            }
            assert_eq!(payload, before);
            return;
        }
    };
    assert!(len >= BODY && before[FLAGS] & 6 != RESPONSE);
    assert_eq!(Some(kind.0), u16_at(&before, 12));
    let told = u32_at(&before, 4).map_or(0, |size| size as usize + 8);
    let end = if (BODY..=len).contains(&told) {
        told
    } else {
        len
    };
    assert_eq!(BODY + body, end);
    let size = |payload: &[u8]| u16_at(payload, SIZE.start).map_or(0, usize::from);
    assert_eq!(size(&payload), size(&before).min(body));
    only_changed(&before, &payload, &[SIZE]);

    let taken = payload.clone();
    let status = Status(random.any() as u32);
    let again = Request::new(&mut payload).map(|request| request.answer(status));
    assert_eq!(again, Ok(()));
    only_changed(&taken, &payload, &[STATUS, FLAGS..FLAGS + 1]);
    assert_eq!(u32_at(&payload, STATUS.start), Some(status.0));
    assert_eq!(payload[FLAGS], TRANSACTION | RESPONSE);
    let answer = payload.clone();
    assert_eq!(
        Request::new(&mut payload).err(),
        Some(Unanswerable::Response)
    );
    assert_eq!(payload, answer);
}

/// Our first version that is among theirs.
fn common(ours: &[Version], theirs: &[u8]) -> Option<Version> {
    ours.iter().copied().find(|version| {
        let [major, minor] = [version.major, version.minor].map(u16::to_le_bytes);
        theirs
            .chunks(4)
            .any(|offer| offer == [major, minor].concat())
    })
}

/// The framework and message version that a negotiation must select.
fn agreement(body: &[u8], ours: [&[Version]; 2]) -> Option<[Version; 2]> {
    let counts = [u16_at(body, 0)?, u16_at(body, 2)?].map(usize::from);
    if counts.iter().any(|count| *count > icmsg::MAX_VERSIONS) {
        return None;
    }
    let frameworks = body.get(8..8 + counts[0] * 4)?;
    let messages = body.get(8 + counts[0] * 4..8 + (counts[0] + counts[1]) * 4)?;
    Some([common(ours[0], frameworks)?, common(ours[1], messages)?])
}

/// A negotiation selects versions that both sides support, and writes only its answer. If the answer's versions are
/// offered, it selects the same.
pub(super) fn negotiation(random: &mut Random) {
    const FRAMEWORKS: &[Version] = &[Version::new(3, 0), Version::new(1, 0)];
    let messages: Vec<Version> = (0..random.below(5))
        .map(|_| Version::new(random.below(6) as u16, random.below(3) as u16))
        .collect();
    let service = random.of(&Service::INTEGRATION);
    let mut payload = offer(service, random).encode();
    mutate(&mut payload, random);
    let before = payload.clone();
    let Ok(mut request) = Request::new(&mut payload) else {
        return;
    };
    let body = request.body().to_vec();
    let expected = agreement(&body, [FRAMEWORKS, &messages]);
    let agreed = request.negotiate(FRAMEWORKS, &messages);
    assert_eq!(agreed, expected.map(|[_, message]| message));
    let answered = u32_at(&payload, STATUS.start);
    assert_eq!(payload[FLAGS], TRANSACTION | RESPONSE);
    if body.len() < 8 {
        assert_eq!(answered, Some(Status::FAIL.0));
        only_changed(
            &before,
            &payload,
            &[SIZE.start..STATUS.end, FLAGS..FLAGS + 1],
        );
        return;
    }
    assert_eq!(answered, Some(0));
    let written = if agreed.is_some() { 16 } else { 0 };
    only_changed(
        &before,
        &payload,
        &[
            SIZE.start..STATUS.end,
            FLAGS..FLAGS + 1,
            BODY..BODY + 4,
            BODY + 8..BODY + written.max(8),
        ],
    );
    let count = u16::from(agreed.is_some());
    assert_eq!(u16_at(&payload, BODY), Some(count));
    assert_eq!(u16_at(&payload, BODY + 2), Some(count));
    assert!(u16_at(&payload, SIZE.start).is_some_and(|size| usize::from(size) <= body.len()));
    let versions = |at| {
        Some(Version::new(
            u16_at(&payload, at)?,
            u16_at(&payload, at + 2)?,
        ))
    };
    if let Some([framework, message]) = expected {
        assert_eq!(u16_at(&payload, SIZE.start), Some(16));
        assert_eq!(versions(BODY + 8), Some(framework));
        assert_eq!(versions(BODY + 12), Some(message));
    }

    let answer = payload.clone();
    payload[FLAGS] = before[FLAGS];
    let again = Request::new(&mut payload).map(|request| request.negotiate(FRAMEWORKS, &messages));
    assert_eq!(again, Ok(agreed));
    assert_eq!(payload, answer);
}
