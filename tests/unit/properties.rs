// SPDX-License-Identifier: GPL-2.0

//! What holds for the module's pure code (`drivers/hv/icmsg`) whatever it is given: valid messages of the emulated
//! host, mutated, against a second reading of the same bytes by the standard library.
//!
//! Each input follows from a number. The first is `HV_FUZZ_SEED` (1), the others follow it, so that the number of an
//! input that fails repeats it at once. There are `INPUTS` for each property, or as many as fit into
//! `HV_FUZZ_SECONDS` for all of them together.

#[path = "../../drivers/hv/icmsg/mod.rs"]
#[allow(dead_code)]
mod icmsg;

use std::ops::Range;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use host::bytes::u16_at;
use host::bytes::u32_at;
use host::bytes::u64_at;
use host::fuzz;
use host::fuzz::Mutation;
use host::fuzz::Random;
use host::ic::frame::Message;
use host::ic::frame::BODY;
use host::ic::frame::RESPONSE;
use host::ic::frame::TRANSACTION;
use host::ic::kvp::value;
use host::ic::text::utf16;
use host::ic::text::utf16_sized;
use host::ic::text::utf16_text;
use host::ic::Moment;
use host::service::Service;

use icmsg::fcopy;
use icmsg::heartbeat;
use icmsg::kvp;
use icmsg::shutdown;
use icmsg::text;
use icmsg::timesync;
use icmsg::vss;
use icmsg::Registration;
use icmsg::Request;
use icmsg::Status;
use icmsg::Unanswerable;
use icmsg::Version;

/// How many inputs each property is given if no time is.
const INPUTS: u64 = 300_000;

/// Makes an input of random numbers, and panics unless all holds for it.
type Property = fn(&mut Random);

/// What each input is checked against.
const PROPERTIES: [(&str, Property); 9] = [
    ("framing", framing),
    ("negotiation", negotiation),
    ("text", texts),
    ("kvp_to_daemon", kvp_to_daemon),
    ("kvp_from_daemon", kvp_from_daemon),
    ("vss", vss_messages),
    ("fcopy", fcopy_to_daemon),
    ("timesync", times),
    ("shutdown_and_heartbeat", shutdown_and_heartbeat),
];

/// The number of the input that is being looked at.
static SEED: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let first = number("HV_FUZZ_SEED").unwrap_or(1);
    let time = number("HV_FUZZ_SECONDS")
        .map(|seconds| Duration::from_secs(seconds) / PROPERTIES.len() as u32);
    std::panic::set_hook(Box::new(|panic| {
        println!("HV_FUZZ_SEED={}: {panic}", SEED.load(Relaxed));
    }));
    let (mut failed, mut inputs) = (0, 0);
    let begin = Instant::now();
    for (name, property) in PROPERTIES {
        let start = Instant::now();
        let goes_on = |done| match time {
            // Looking at the clock takes as long as some inputs do.
            Some(time) => done % 1024 != 0 || start.elapsed() < time,
            None => done < INPUTS,
        };
        let result = catch_unwind(|| {
            let mut done = 0;
            while goes_on(done) {
                let seed = first.wrapping_add(done);
                SEED.store(seed, Relaxed);
                property(&mut Random::new(seed));
                done += 1;
            }
            done
        });
        match result {
            Ok(done) => {
                inputs += done;
                println!("ok - properties: {name} ({})", rate(done, start.elapsed()));
            }
            Err(_) => {
                failed += 1;
                println!("not ok - properties: {name}");
            }
        }
    }
    println!(
        "# properties: {}, seeds from {first}",
        rate(inputs, begin.elapsed())
    );
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// So many inputs in this time, in words.
fn rate(inputs: u64, took: Duration) -> String {
    let millions = inputs as f64 / took.as_secs_f64() * 60.0 / 1e6;
    format!("{inputs} inputs, {millions:.1} million a minute")
}

/// A valid body of the service, or what mutations make of it.
fn body(service: Service, random: &mut Random) -> Vec<u8> {
    let moment = Moment {
        instant: Instant::now(),
        reference: random.any() >> random.below(64),
        wall: host::ic::UNIX_EPOCH_1601.wrapping_add(random.any() >> random.below(64)),
    };
    let mut body = fuzz::body(service, &moment, random);
    mutate(&mut body, random);
    body
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(4) {
        Mutation::apply(bytes, random);
    }
}

/// Nothing but the bytes of `allowed` has changed.
fn only_changed(before: &[u8], after: &[u8], allowed: &[Range<usize>]) {
    assert_eq!(before.len(), after.len());
    let mut from = 0;
    for part in allowed {
        let start = part.start.min(before.len());
        assert_eq!(before[from..start], after[from..start], "from {from} on");
        from = part.end.min(before.len());
    }
    assert_eq!(before[from..], after[from..], "from {from} on");
}

// Parts of a message's header.
const SIZE: Range<usize> = 18..20;
const STATUS: Range<usize> = 20..24;
const FLAGS: usize = 25;

/// A packet's payload: a request of any service, a negotiation, or what mutations make of it.
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

/// A negotiation, with versions that its service knows and such as nobody does.
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

/// A message is taken for a request, or left as it is; its answer echoes all but size, status and flags, and is none
/// that would be answered.
fn framing(random: &mut Random) {
    let before = payload(random);
    let mut payload = before.clone();
    let len = before.len();
    let (kind, body) = match Request::new(&mut payload) {
        Ok(mut request) => (request.kind(), request.body().len()),
        Err(reason) => {
            match reason {
                Unanswerable::Short { len: told } => assert!(told == len && len < BODY),
                Unanswerable::Response => assert_eq!(before[FLAGS] & 6, RESPONSE),
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

/// The first version of ours that is among theirs.
fn common(ours: &[Version], theirs: &[u8]) -> Option<Version> {
    ours.iter().copied().find(|version| {
        let [major, minor] = [version.major, version.minor].map(u16::to_le_bytes);
        theirs
            .chunks(4)
            .any(|offer| offer == [major, minor].concat())
    })
}

/// What a negotiation is to agree on: a framework and a message version.
fn agreement(body: &[u8], ours: [&[Version]; 2]) -> Option<[Version; 2]> {
    let counts = [u16_at(body, 0)?, u16_at(body, 2)?].map(usize::from);
    if counts.iter().any(|count| *count > icmsg::MAX_VERSIONS) {
        return None;
    }
    let frameworks = body.get(8..8 + counts[0] * 4)?;
    let messages = body.get(8 + counts[0] * 4..8 + (counts[0] + counts[1]) * 4)?;
    Some([common(ours[0], frameworks)?, common(ours[1], messages)?])
}

/// A negotiation agrees on what both know and nothing else, writes that alone, and agrees on the same when what it
/// answers is offered.
fn negotiation(random: &mut Random) {
    const FRAMEWORKS: &[Version] = &[Version::new(3, 0), Version::new(1, 0)];
    let messages: Vec<Version> = (0..random.below(5))
        .map(|_| Version::new(random.below(6) as u16, random.below(3) as u16))
        .collect();
    let service = random.of(&Service::ALL[..6]);
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

/// UTF-16 that may be valid, or end anywhere.
fn any_utf16(random: &mut Random) -> Vec<u8> {
    let mut bytes = utf16(&fuzz::text(random));
    if random.one_in(2) {
        mutate(&mut bytes, random);
    }
    bytes
}

/// Text, up to its NUL or the end.
fn utf8_text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Text comes out as the standard library reads it, ended by a NUL, within its room and nowhere else; and there and
/// back it is the same.
fn texts(random: &mut Random) {
    let from = any_utf16(random);
    let expected = utf16_text(&from);
    let mut to = vec![0xa5; random.of(&[0, 1, expected.len(), expected.len() + 1, 600])];
    match text::utf16_to_utf8(&from, &mut to) {
        Ok(size) => {
            assert_eq!(to[..size - 1], *expected.as_bytes());
            assert_eq!(to[size - 1], 0);
            assert!(to[size..].iter().all(|byte| *byte == 0xa5));
        }
        Err(text::TooLong) => assert!(expected.len() >= to.len()),
    }

    let mut from = expected.clone().into_bytes();
    if random.one_in(2) {
        mutate(&mut from, random);
    }
    let expected = utf8_text(&from);
    let whole = utf16(&expected);
    let mut to = vec![0xa5; random.of(&[2, 3, 5, whole.len(), 600]).max(2)];
    let size = text::utf8_to_utf16(&from, &mut to);
    let fits = utf16_sized(&to, size as u32).expect("text of that size");
    assert!(expected.starts_with(&fits));
    if let Some(next) = expected[fits.len()..].chars().next() {
        assert!(size + next.len_utf16() * 2 > to.len());
    }
    assert!(to[size..].iter().all(|byte| *byte == 0xa5));

    let mut back = vec![0; fits.len() + 1];
    assert_eq!(text::utf16_to_utf8(&to[..size], &mut back), Ok(back.len()));
    assert_eq!(back[..fits.len()], *fits.as_bytes());
    let mut again = vec![0xa5; to.len()];
    assert_eq!(text::utf8_to_utf16(&back, &mut again), size);
    assert_eq!(again, to);
}

/// The text of `room`, which must be ended by a NUL and valid.
fn daemon_text(room: &[u8]) -> &str {
    let text = room
        .split(|byte| *byte == 0)
        .next()
        .filter(|text| text.len() < room.len());
    std::str::from_utf8(text.expect("a NUL")).expect("UTF-8")
}

/// Bytes of a `struct hv_kvp_exchg_msg_value`.
const VALUE_LEN: usize = value::VALUE + value::VALUE_MAX;
/// What of a body about addresses is text.
const ADDRESS_TEXTS: [Range<usize>; 5] = [0..256, 258..2306, 2306..4354, 4354..5378, 5378..7426];

/// The text of `size` bytes in `room`, if it may have as many and does not become too long.
fn key_of(room: &[u8], size: Option<u32>) -> Option<String> {
    let text = utf16_text(room.get(..size? as usize)?);
    (text.len() < room.len()).then_some(text)
}

/// What the daemon is to be told of a key and a value of the host's; `None` where the host is wrong.
fn key_and_value(body: &[u8], has_value: bool) -> Option<(String, String)> {
    let at = |field| u32_at(body, host::ic::kvp::BODY + field);
    let bytes = &body[host::ic::kvp::BODY..];
    let key = key_of(&bytes[value::KEY..value::VALUE], at(value::KEY_SIZE))?;
    if !has_value {
        return Some((key, String::new()));
    }
    let room = &bytes[value::VALUE..VALUE_LEN];
    let size = at(value::VALUE_SIZE).filter(|size| *size as usize <= value::VALUE_MAX);
    let text = match at(value::TYPE)? {
        1 | 2 => key_of(room, size)?,
        4 => size.and(u32_at(room, 0))?.to_string(),
        8 | 11 => size.and(u64_at(room, 0))?.to_string(),
        _ => return None,
    };
    Some((key, text))
}

/// A daemon is asked what the host asks, in UTF-8 ended by NULs, of sizes and pools that exist, whatever was in the
/// memory before; or the host is told what is wrong.
fn kvp_to_daemon(random: &mut Random) {
    let body = body(Service::Kvp, random);
    let daemon = random.of(&[Registration::Legacy, Registration::Current]);
    let mut message = [0x5a; kvp::DAEMON_LEN];
    let result = kvp::to_daemon(&body, daemon, &mut message);
    let mut other = [0xa5; kvp::DAEMON_LEN];
    assert_eq!(kvp::to_daemon(&body, daemon, &mut other), result);
    let operation = match result {
        Ok(()) => kvp::Operation::parse(&body).expect("an operation that is known"),
        Err(Status::NOT_SUPPORTED) => {
            let legacy = daemon == Registration::Legacy;
            return assert!(body[0] > 5 || (legacy && body[0] > 3));
        }
        Err(Status::NO_MORE_ITEMS) => {
            return assert!(body[0] == 3 && u32_at(&body, 4) > Some(i32::MAX as u32))
        }
        Err(status) => {
            assert_eq!(status, Status::INVALID_ARGUMENT);
            let needed = [2576, 2576, 520, 2580, 7428, 7428];
            let operation = usize::from(*body.first().unwrap_or(&0));
            assert!(
                body.len() < needed[operation]
                    || match operation {
                        4 | 5 => ADDRESS_TEXTS.iter().any(|room| utf16_text(
                            &body[2..][room.clone()]
                        )
                        .len()
                            >= room.len()),
                        _ if body[1] > 4 => true,
                        0 | 1 => key_and_value(&body, operation == 1).is_none(),
                        _ => operation == 2 && key_of(&body[8..520], u32_at(&body, 4)).is_none(),
                    }
            );
            return;
        }
    };
    // What the daemon does not read is as it was, all else the same both times.
    let used = if body[0] < 4 { 2580 } else { kvp::DAEMON_LEN };
    assert!(body[1] < 5 || body[0] > 3);
    assert_eq!(message[..used], other[..used]);
    assert!(message[used..].iter().all(|byte| *byte == 0x5a));
    assert_eq!(message[..2], body[..2]);
    assert_eq!(message[2..4], [0, 0]);

    let (from, to) = (&body, &message[4..]);
    let size = |at| u32_at(&message, 4 + at).map_or(0, |size| size as usize);
    match operation {
        kvp::Operation::Get | kvp::Operation::Set => {
            let is_set = operation == kvp::Operation::Set;
            let (key, text) = key_and_value(from, is_set).expect("a valid key");
            assert_eq!(daemon_text(&to[value::KEY..value::VALUE]), key);
            assert_eq!(size(value::KEY_SIZE), key.len() + 1);
            assert_eq!(daemon_text(&to[value::VALUE..VALUE_LEN]), text);
            let expected = if is_set {
                text.len() + 1
            } else {
                value::VALUE_MAX
            };
            assert_eq!(size(value::VALUE_SIZE), expected);
        }
        kvp::Operation::Delete => {
            let key = key_of(&from[8..520], u32_at(from, 4)).expect("a valid key");
            assert_eq!(daemon_text(&to[4..516]), key);
            assert_eq!(size(0), key.len() + 1);
        }
        kvp::Operation::Enumerate => {
            assert_eq!(message[4..8], body[4..8]);
            assert!(u32_at(&body, 4) <= Some(i32::MAX as u32));
        }
        kvp::Operation::GetAddresses => {
            assert_eq!(daemon_text(&to[..256]), utf16_text(&from[2..258]));
            assert_eq!(to[256], from[258]);
            assert!(to[257..7426].iter().all(|byte| *byte == 0));
        }
        kvp::Operation::SetAddresses => {
            for room in ADDRESS_TEXTS {
                assert_eq!(daemon_text(&to[room.clone()]), utf16_text(&from[2..][room]));
            }
            assert_eq!(to[256..258], from[258..260]);
        }
    }
}

/// The host gets the daemon's status; with success, the daemon's text in UTF-16 of the size that is told, cut where
/// there is no room, and nothing else is changed. Set again, it is the same key and value.
fn kvp_from_daemon(random: &mut Random) {
    let mut body = body(Service::Kvp, random);
    let daemon = random.of(&[Registration::Legacy, Registration::Current]);
    let mut answer = [0; kvp::DAEMON_LEN];
    let Ok(()) = kvp::to_daemon(&body, daemon, &mut answer) else {
        return;
    };
    let operation = kvp::Operation::parse(&body).expect("an operation that is known");
    for _ in 0..random.below(4) {
        let at = random.of(&[4, 8, 16, 20, 260, 528, 532, 2310]);
        match random.one_in(3) {
            true => random.fill(&mut answer[at..at + 512]),
            false => {
                let text = fuzz::text(random).repeat(1 + random.below(9));
                let len = text.len().min(2048);
                answer[at..at + len].copy_from_slice(&text.as_bytes()[..len]);
            }
        }
    }
    let status = random.of(&[0, 0, 0, 0x8000_4005, 0x8007_0103]);
    answer[..4].copy_from_slice(&u32::to_le_bytes(status));
    let before = body.clone();
    let result = kvp::from_daemon(daemon, &answer, &mut body);
    if daemon == Registration::Current {
        assert_eq!(result, Status(status));
    }
    if result != Status::OK {
        return assert_eq!(body, before);
    }

    let sized = |room: &[u8], size| utf16_sized(room, size).expect("text of that size");
    let at = match operation {
        kvp::Operation::Set | kvp::Operation::Delete | kvp::Operation::SetAddresses => {
            return assert_eq!(body, before)
        }
        kvp::Operation::GetAddresses => {
            let addresses = 2..7428;
            only_changed(&before, &body, &[addresses]);
            assert_eq!(body[258..260], answer[260..262]);
            for room in ADDRESS_TEXTS {
                let told = utf16_text(&body[2..][room.clone()]);
                assert!(utf8_text(&answer[4..][room.clone()]).starts_with(&told));
                // There is always room for the NUL.
                assert!(told.encode_utf16().count() * 2 < room.len());
            }
            return;
        }
        kvp::Operation::Get => 4,
        kvp::Operation::Enumerate => 8,
    };
    let size = |field| u32_at(&body, at + field).unwrap_or(u32::MAX);
    let key = at + value::KEY..at + value::VALUE;
    let text = at + value::VALUE..at + VALUE_LEN;
    assert_eq!(size(value::TYPE), 1);
    let told = sized(&body[text.clone()], size(value::VALUE_SIZE));
    assert!(utf8_text(&answer[text.clone()]).starts_with(&told));
    if operation == kvp::Operation::Get {
        let fields = [at..at + 4, at + 8..at + 12, text];
        return only_changed(&before, &body, &fields);
    }
    let fields = at..at + VALUE_LEN;
    only_changed(&before, &body, &[fields]);
    let told_key = sized(&body[key.clone()], size(value::KEY_SIZE));
    assert!(utf8_text(&answer[key]).starts_with(&told_key));

    let set = host::ic::kvp::set(0, &told_key, &told);
    let mut message = [0; kvp::DAEMON_LEN];
    match kvp::to_daemon(&set, daemon, &mut message) {
        Ok(()) => {
            assert_eq!(
                daemon_text(&message[4..][value::KEY..value::VALUE]),
                told_key
            );
            assert_eq!(daemon_text(&message[4..][value::VALUE..VALUE_LEN]), told);
        }
        Err(_) => assert!(told_key.len() >= 512 || told.len() >= 2048),
    }
}

/// An operation is passed on under its number; an answer changes the flags alone.
fn vss_messages(random: &mut Random) {
    let mut body = body(Service::Vss, random);
    let number = body.first().copied().unwrap_or(0);
    match vss::Operation::parse(&body) {
        Ok(operation) => {
            assert!(body.len() >= 12 && number <= 6);
            let mut message = [0xa5; vss::DAEMON_LEN];
            operation.write(&mut message);
            assert!(message[1..].iter().all(|byte| *byte == 0));
            assert_eq!(vss::Operation::parse(&message), Ok(operation));
            if operation != vss::Operation::Notice {
                assert_eq!(message[0], number);
            }
            let before = body.clone();
            operation.succeed(&mut body);
            let has_flags = matches!(number, 2 | 3);
            let flags = if has_flags { 8..12 } else { 0..0 };
            only_changed(&before, &body, &[flags]);
            if has_flags {
                assert_eq!(body[8..12], [if number == 2 { 5 } else { 0 }, 0, 0, 0]);
            }
        }
        Err(Status::INVALID_ARGUMENT) => assert!(body.len() < 12),
        Err(status) => assert!(status == Status::NOT_SUPPORTED && number > 6),
    }
    let mut message = [0; vss::DAEMON_LEN];
    random.fill(&mut message);
    message[0] = random.of(&[message[0], 127, 128, 129, 130]);
    let registered = vss::registration(&message);
    assert_eq!(registered.is_some(), matches!(message[0], 128 | 129));
    if let Some(daemon) = registered {
        assert_eq!(vss::version(daemon), message[0]);
        assert!(vss::confirm(daemon, &mut message).is_none_or(|len| len == 4));
    }
}

/// A file's names become text that is ended by a NUL, a piece stays what it is and within its message, and of what was
/// in the memory before nothing is passed on but what is behind a piece.
fn fcopy_to_daemon(random: &mut Random) {
    let mut body = body(Service::FCopy, random);
    if random.one_in(8) {
        // The sizes at which a piece begins to be too long.
        let size = 6140 + random.below(8);
        body.resize(52 + 6140 + random.below(8), 7);
        body[48..52].copy_from_slice(&(size as u32).to_le_bytes());
    }
    let mut message = [0x5a; fcopy::DAEMON_LEN];
    let result = fcopy::to_daemon(&body, &mut message);
    let number = u32_at(&body, 0);
    let size = u32_at(&body, 48).map_or(usize::MAX, |size| size as usize);
    let is_short = |needed: usize| body.len() < needed;
    let (operation, len) = match result {
        Ok(asked) => asked,
        Err(Status::NOT_SUPPORTED) => return assert!(number > Some(3)),
        Err(Status::NAME_TOO_LONG) => {
            let too_long = |at: usize| {
                let name = utf16_text(&body[at..at + 520]);
                name.len() >= 520 || name.split('/').any(|part| part.len() > 255)
            };
            return assert!(number == Some(0) && (too_long(36) || too_long(556)));
        }
        Err(status) => {
            assert_eq!(status, Status::INVALID_ARGUMENT);
            return assert!(
                is_short(36)
                    || match number {
                        Some(0) => is_short(1088),
                        _ => is_short(52) || size > 6144 || is_short(52 + size),
                    }
            );
        }
    };
    assert_eq!(u32_at(&message, 0), number);
    let written = match operation {
        fcopy::Operation::Start => {
            for at in [36, 556] {
                assert_eq!(
                    daemon_text(&message[at..at + 520]),
                    utf16_text(&body[at..at + 520])
                );
            }
            assert_eq!(message[1076..1088], body[1076..1088]);
            len
        }
        fcopy::Operation::Write => {
            assert_eq!(message[40..52 + size], body[40..52 + size]);
            assert_eq!(len, fcopy::DAEMON_LEN);
            52 + size
        }
        fcopy::Operation::Complete | fcopy::Operation::Cancel => {
            assert_eq!(len, 36);
            len
        }
    };
    assert!(message[4..36].iter().all(|byte| *byte == 0));
    assert!(message[written..].iter().all(|byte| *byte == 0x5a));
}

/// A sample tells the time that follows from its numbers, of any size, as long as Unix time in nanoseconds can; it
/// goes on as the reference time does, and ends.
fn times(random: &mut Random) {
    const UNIT: i128 = 100;
    let body = body(Service::TimeSync, random);
    let version = random.of(&[(1, 0), (3, 0), (4, 0), (5, 0)]);
    let version = Version::new(version.0, version.1);
    let mut now = random.any() >> random.below(64);
    let flags = if version.major >= 4 { 16 } else { 24 };
    if random.one_in(2) {
        now = u64_at(&body, 8)
            .unwrap_or(0)
            .wrapping_add(random.any() % 1_000_000);
    }
    let told = body.get(flags).map(|flags| {
        let taken = match version.major {
            4.. => u64_at(&body, 8).unwrap_or(0),
            _ => now,
        };
        let host = i128::from(u64_at(&body, 0).unwrap_or(0));
        let epoch = i128::from(host::ic::UNIX_EPOCH_1601);
        // Counters are ahead of each other by as much as a signed number holds.
        let since = i128::from(now.wrapping_sub(taken) as i64);
        (host - epoch, host - epoch + since, *flags)
    });
    let valid = |units: i128| (0..=i128::from(i64::MAX) / UNIT).contains(&units);
    let expected = told.filter(|(sent, at_now, _)| *sent >= 0 && valid(*at_now));
    let parsed = timesync::TimeSync::parse(version, &body, now);
    assert_eq!(parsed.is_some(), expected.is_some());
    let (Some(parsed), Some((_, at_now, flags))) = (parsed, expected) else {
        return;
    };
    assert_eq!(parsed.sync, flags & 1 != 0);
    let time = |now| parsed.sample.at(now).map(i128::from);
    assert_eq!(time(now), Ok(at_now * UNIT));
    for step in [1, 9_999, 10_001, 6_000_000_000, 6_000_000_001, random.any()] {
        if let Some(later) = now.checked_add(step) {
            let at_later = at_now + i128::from(step);
            let lasts = step <= 6_000_000_000 && valid(at_later);
            let expected = if lasts {
                Ok(at_later * UNIT)
            } else {
                Err(timesync::Stale)
            };
            assert_eq!(time(later), expected);
        }
        if let Some(earlier) = now.checked_sub(step) {
            let expected = if step <= 10_000 {
                Ok(at_now * UNIT)
            } else {
                Err(timesync::Stale)
            };
            assert_eq!(time(earlier), expected);
        }
    }
}

/// A shutdown's text is fit for a line of log; a beat is counted, and the rest of its body left as it is.
fn shutdown_and_heartbeat(random: &mut Random) {
    let mut bytes = body(Service::Shutdown, random);
    if random.one_in(2) {
        let from = random.below(bytes.len());
        random.fill(&mut bytes[from..]);
    }
    match shutdown::Shutdown::parse(&bytes) {
        None => assert!(bytes.len() < 12),
        Some(request) => {
            let field = |at| u32_at(&bytes, at).unwrap_or(0);
            assert_eq!((request.reason, request.timeout), (field(0), field(4)));
            assert_eq!(request.force, field(8) & 1 != 0);
            assert_eq!(
                request.operation.is_some(),
                matches!(field(8) & !1, 0 | 2 | 4)
            );
            let end = bytes.len().min(12 + 2048);
            let said: String = utf16_text(&bytes[12..end])
                .chars()
                .take(200)
                .map(|c| if c.is_control() { '\u{fffd}' } else { c })
                .collect();
            assert_eq!(request.text.to_string(), said);
        }
    }

    let mut beat = body(Service::Heartbeat, random);
    let before = beat.clone();
    let version = Version::new(random.of(&[1, 3]), 0);
    match heartbeat::answer(version, &mut beat, heartbeat::ApplicationState::Healthy) {
        None => {
            assert!(beat.len() < 8);
            assert_eq!(beat, before);
        }
        Some(()) => {
            let sequence = u64_at(&before, 0).map(|sequence| sequence.wrapping_add(1));
            assert_eq!(u64_at(&beat, 0), sequence);
            let has_state = version.major >= 3 && beat.len() >= 12;
            let state = if has_state { 8..12 } else { 8..8 };
            only_changed(&before, &beat, &[0..8, state]);
            if has_state {
                assert_eq!(u32_at(&beat, 8), Some(1));
            }
        }
    }
}
