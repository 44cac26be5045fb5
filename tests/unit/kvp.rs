// SPDX-License-Identifier: GPL-2.0

//! Data exchange: keys, values and addresses.

use std::ops::Range;

use host::bytes::u32_at;
use host::bytes::u64_at;
use host::fuzz;
use host::fuzz::Random;
use host::ic::kvp::value;
use host::ic::text::utf16_sized;
use host::ic::text::utf16_text;
use host::service::Service;

use crate::icmsg::kvp;
use crate::icmsg::Registration;
use crate::icmsg::Status;
use crate::input::body;
use crate::input::only_changed;
use crate::text::daemon_text;
use crate::text::utf8_text;

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
pub(super) fn to_daemon(random: &mut Random) {
    let body = body(Service::Kvp, random);
    let daemon = random.of(&[Registration::Legacy, Registration::Current]);
    let mut message = [0x5a; kvp::DAEMON_LEN];
    let result = kvp::to_daemon(&body, daemon, &mut message);
    let mut other = [0xa5; kvp::DAEMON_LEN];
    assert_eq!(kvp::to_daemon(&body, daemon, &mut other), result);
    let operation = match result {
        Ok(()) => kvp::Operation::parse(&body).expect("an operation that is known"),
        Err(status) => return refused(&body, daemon, status),
    };
    // What the daemon does not read is as it was, all else the same both times.
    let used = if body[0] < 4 { 2580 } else { kvp::DAEMON_LEN };
    assert!(body[1] < 5 || body[0] > 3);
    assert_eq!(message[..used], other[..used]);
    assert!(message[used..].iter().all(|byte| *byte == 0x5a));
    assert_eq!(message[..2], body[..2]);
    assert_eq!(message[2..4], [0, 0]);
    asked(operation, &body, &message);
}

/// The host is told what is wrong with its request.
fn refused(body: &[u8], daemon: Registration, status: Status) {
    match status {
        Status::NOT_SUPPORTED => {
            let legacy = daemon == Registration::Legacy;
            assert!(body[0] > 5 || (legacy && body[0] > 3));
        }
        Status::NO_MORE_ITEMS => {
            assert!(body[0] == 3 && u32_at(body, 4) > Some(i32::MAX as u32));
        }
        status => {
            assert_eq!(status, Status::INVALID_ARGUMENT);
            let needed = [2576, 2576, 520, 2580, 7428, 7428];
            let operation = usize::from(*body.first().unwrap_or(&0));
            let is_short = body.len() < needed[operation];
            assert!(is_short || is_wrong(operation, body));
        }
    }
}

/// Whether a pool, text or value of a request that is long enough is wrong.
fn is_wrong(operation: usize, body: &[u8]) -> bool {
    match operation {
        4 | 5 => ADDRESS_TEXTS
            .iter()
            .any(|room| utf16_text(&body[2..][room.clone()]).len() >= room.len()),
        _ if body[1] > 4 => true,
        0 | 1 => key_and_value(body, operation == 1).is_none(),
        _ => operation == 2 && key_of(&body[8..520], u32_at(body, 4)).is_none(),
    }
}

/// The daemon is asked what the host asks.
fn asked(operation: kvp::Operation, from: &[u8], message: &[u8; kvp::DAEMON_LEN]) {
    let to = &message[4..];
    let size = |at| u32_at(message, 4 + at).map_or(0, |size| size as usize);
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
            assert_eq!(message[4..8], from[4..8]);
            assert!(u32_at(from, 4) <= Some(i32::MAX as u32));
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
pub(super) fn from_daemon(random: &mut Random) {
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
