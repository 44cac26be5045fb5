// SPDX-License-Identifier: GPL-2.0

//! Properties of KVP: keys, values and addresses.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::ops::Range;

use host::bytes::u32_at;
use host::bytes::u64_at;
use host::fuzz;
use host::fuzz::Random;
use host::ic::addresses;
use host::ic::kvp::value;
use host::ic::text::utf16_sized;
use host::ic::text::utf16_text;
use host::service::Service;

use crate::icmsg::addresses::Layout;
use crate::icmsg::addresses::Omitted;
use crate::icmsg::kvp;
use crate::icmsg::kvp::Refusal;
use crate::icmsg::Registration;
use crate::icmsg::Status;
use crate::input::body;
use crate::input::only_changed;
use crate::text::daemon_text;
use crate::text::utf8_text;

/// Size of a `struct hv_kvp_exchg_msg_value` in bytes.
const VALUE_LEN: usize = value::VALUE + value::VALUE_MAX;
/// Ranges of the texts in a daemon's body about addresses, and in a host's up to version 4.0.
const ADDRESS_TEXTS: [Range<usize>; 5] = [0..256, 258..2306, 2306..4354, 4354..5378, 5378..7426];

/// The first version with binary addresses.
const NUMBERS: host::service::Version = (5, 0);

/// Either layout of addresses.
fn layout(random: &mut Random) -> Layout {
    random.of(&[Layout::Text, Layout::Binary])
}

/// The text of `size` bytes in `room`. `None` if the size is impossible or the text too long for the daemon.
fn key_of(room: &[u8], size: Option<u32>) -> Option<String> {
    let text = utf16_text(room.get(..size? as usize)?);
    (text.len() < room.len()).then_some(text)
}

/// The key and value that the daemon must get. `None` if the host's request is wrong.
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

/// A request for the daemon has the host's operation and texts, in UTF-8 with NULs, and valid sizes and pools. It does
/// not depend on the memory's old bytes. The status of a refused request names the fault.
pub(super) fn to_daemon(random: &mut Random) {
    let body = body(Service::Kvp, random);
    let (layout, daemon) = (layout(random), registration(random));
    let mut message = [0x5a; kvp::DAEMON_LEN];
    let result = kvp::to_daemon(layout, &body, daemon, &mut message);
    let mut other = [0xa5; kvp::DAEMON_LEN];
    assert_eq!(kvp::to_daemon(layout, &body, daemon, &mut other), result);
    let operation = match result {
        Ok(()) => kvp::Operation::parse(&body).expect("an operation that is known"),
        Err(refusal) => return refused(layout, &body, daemon, refusal),
    };
    // The bytes that the daemon does not read are unchanged. All others are the same in both messages.
    let used = if body[0] < 4 { 2580 } else { kvp::DAEMON_LEN };
    assert!(body[1] < 5 || body[0] > 3);
    assert_eq!(message[..used], other[..used]);
    assert!(message[used..].iter().all(|byte| *byte == 0x5a));
    assert_eq!(message[..2], body[..2]);
    assert_eq!(message[2..4], [0, 0]);
    asked(layout, operation, &body, &message);
}

/// A daemon of any kind. Old ones do not support addresses, and are rare.
fn registration(random: &mut Random) -> Registration {
    match random.one_in(8) {
        true => Registration::Legacy,
        false => Registration::Current,
    }
}

/// Checks a refusal: the status names the fault of the request.
fn refused(layout: Layout, body: &[u8], daemon: Registration, refusal: Refusal) {
    if let Some(why) = refusal.why {
        assert!(body[0] > 3 && !why.to_string().is_empty());
    }
    match refusal.status {
        Status::NOT_SUPPORTED => {
            let legacy = daemon == Registration::Legacy;
            assert!(body[0] > 5 || (legacy && body[0] > 3));
        }
        Status::NO_MORE_ITEMS => {
            assert!(body[0] == 3 && u32_at(body, 4) > Some(i32::MAX as u32));
        }
        status => {
            assert_eq!(status, Status::INVALID_ARGUMENT);
            let addresses = match layout {
                Layout::Text => 7428,
                Layout::Binary => 3716,
            };
            let needed = [2576, 2576, 520, 2580, addresses, addresses];
            let operation = usize::from(*body.first().unwrap_or(&0));
            let is_short = body.len() < needed[operation];
            assert!(is_short || is_wrong(layout, operation, body));
            assert_eq!(refusal.why.is_some(), !is_short && operation > 3);
        }
    }
}

/// Whether a request of sufficient length has a wrong pool, text or value.
fn is_wrong(layout: Layout, operation: usize, body: &[u8]) -> bool {
    match operation {
        4 | 5 if layout == Layout::Binary => {
            let adapter = utf16_text(&body[28..284]);
            adapter.len() >= 256 || (operation == 5 && for_daemon(body).is_none())
        }
        4 | 5 => ADDRESS_TEXTS
            .iter()
            .any(|room| utf16_text(&body[2..][room.clone()]).len() >= room.len()),
        _ if body[1] > 4 => true,
        0 | 1 => key_and_value(body, operation == 1).is_none(),
        _ => operation == 2 && key_of(&body[8..520], u32_at(body, 4)).is_none(),
    }
}

/// The four lists that the daemon must get for a host's binary addresses. `None` if one is wrong, or its text does not
/// leave space for the NUL and another zero.
fn for_daemon(body: &[u8]) -> Option<[String; 4]> {
    let of = addresses::read(NUMBERS, body)?;
    let lists = [of.addresses, of.subnets, of.gateways, of.name_servers];
    let is_valid = lists[1].split(';').all(|subnet| match subnet.parse() {
        Ok(prefix) => (0..=128u32).contains(&prefix),
        // The ones of a mask precede its zeroes.
        Err(_) => subnet.parse().map_or(true, |mask: Ipv4Addr| {
            (!mask.to_bits())
                .checked_add(1)
                .is_none_or(u32::is_power_of_two)
        }),
    });
    let mut rooms = ADDRESS_TEXTS[1..].iter().map(|room| room.len() - 2);
    let fit = lists.iter().all(|list| Some(list.len()) <= rooms.next());
    (is_valid && fit).then_some(lists)
}

/// Checks that the daemon gets the host's request.
fn asked(layout: Layout, operation: kvp::Operation, from: &[u8], message: &[u8; kvp::DAEMON_LEN]) {
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
        kvp::Operation::GetAddresses if layout == Layout::Binary => {
            assert_eq!(daemon_text(&to[..256]), utf16_text(&from[28..284]));
            assert_eq!(to[256], from[284]);
            assert!(to[257..7426].iter().all(|byte| *byte == 0));
        }
        kvp::Operation::SetAddresses if layout == Layout::Binary => {
            assert_eq!(daemon_text(&to[..256]), utf16_text(&from[28..284]));
            assert_eq!(to[256..258], from[284..286]);
            let lists = for_daemon(from).expect("addresses of the host's");
            for (room, list) in ADDRESS_TEXTS[1..].iter().zip(lists) {
                assert_eq!(daemon_text(&to[room.clone()]), list);
                // The daemon reads a byte after the end of its last entry.
                assert_eq!(to[room.end - 1], 0);
            }
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

/// The host gets the daemon's status. On success it also gets the daemon's text in UTF-16 with its size, cut where
/// space ends. No other byte changes. If the host sets the pair again, the daemon gets the same key and value.
pub(super) fn from_daemon(random: &mut Random) {
    let mut body = body(Service::Kvp, random);
    let (layout, daemon) = (layout(random), registration(random));
    let mut answer = [0; kvp::DAEMON_LEN];
    let Ok(()) = kvp::to_daemon(layout, &body, daemon, &mut answer) else {
        return;
    };
    let operation = kvp::Operation::parse(&body).expect("an operation that is known");
    spoil(random, &mut answer);
    if body[0] == 4 && layout == Layout::Binary {
        daemon_addresses(random, &mut answer);
    }
    let status = random.of(&[0, 0, 0, 0x8000_4005, 0x8007_0103]);
    answer[..4].copy_from_slice(&u32::to_le_bytes(status));
    let before = body.clone();
    let result = kvp::from_daemon(layout, daemon, &answer, &mut body);
    if let (kvp::Operation::GetAddresses, Layout::Binary, 0) = (operation, layout, status) {
        return numbers_told(&before, &answer, &body, result);
    }
    if daemon == Registration::Current {
        let told = result.err().map_or(0, |refusal| refusal.status.0);
        assert_eq!(told, status);
    }
    if result.is_err() {
        return assert_eq!(body, before);
    }

    match operation {
        kvp::Operation::Set | kvp::Operation::Delete | kvp::Operation::SetAddresses => {
            assert_eq!(body, before)
        }
        kvp::Operation::GetAddresses => texts_told(&before, &answer, &body),
        kvp::Operation::Get => {
            value_told(4, &answer, &body);
            let text = 4 + value::VALUE..4 + VALUE_LEN;
            only_changed(&before, &body, &[4..8, 12..16, text]);
        }
        kvp::Operation::Enumerate => {
            let told = value_told(8, &answer, &body);
            let fields = 8..8 + VALUE_LEN;
            only_changed(&before, &body, &[fields]);
            is_taken_back(layout, daemon, &answer, &body, &told);
        }
    }
}

/// Corrupts a daemon's answer: texts that are too long, and bytes that are not text.
fn spoil(random: &mut Random, answer: &mut [u8; kvp::DAEMON_LEN]) {
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
}

/// Checks addresses in the text layout: as much of each text as fits with a NUL.
fn texts_told(before: &[u8], answer: &[u8], body: &[u8]) {
    let addresses = 2..7428;
    only_changed(before, body, &[addresses]);
    assert_eq!(body[258..260], answer[260..262]);
    for room in ADDRESS_TEXTS {
        let told = utf16_text(&body[2..][room.clone()]);
        assert!(utf8_text(&answer[4..][room.clone()]).starts_with(&told));
        // The NUL always fits.
        assert!(told.encode_utf16().count() * 2 < room.len());
    }
}

/// Decodes the text in `room`. Its size is the field at `size`.
fn sized(body: &[u8], room: Range<usize>, size: usize) -> String {
    let size = u32_at(body, size).unwrap_or(u32::MAX);
    utf16_sized(&body[room], size).expect("text of that size")
}

/// Checks the value in the structure at `at`: the start of the daemon's value, as text. Returns the value.
fn value_told(at: usize, answer: &[u8], body: &[u8]) -> String {
    let text = at + value::VALUE..at + VALUE_LEN;
    assert_eq!(u32_at(body, at + value::TYPE), Some(1));
    let told = sized(body, text.clone(), at + value::VALUE_SIZE);
    assert!(utf8_text(&answer[text]).starts_with(&told));
    told
}

/// Checks that the host gets the start of the daemon's key, too. If the host sets the pair again, the daemon gets the
/// same key and value.
fn is_taken_back(layout: Layout, daemon: Registration, answer: &[u8], body: &[u8], told: &str) {
    let key = 8 + value::KEY..8 + value::VALUE;
    let told_key = sized(body, key.clone(), 8 + value::KEY_SIZE);
    assert!(utf8_text(&answer[key]).starts_with(&told_key));
    let set = host::ic::kvp::set(0, &told_key, told);
    let mut message = [0; kvp::DAEMON_LEN];
    match kvp::to_daemon(layout, &set, daemon, &mut message) {
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

/// Writes addresses in a daemon's format, correct or not.
fn daemon_addresses(random: &mut Random, answer: &mut [u8]) {
    let body = fuzz::addresses((5, 0), random);
    let Some(of) = addresses::read(NUMBERS, &body) else {
        return;
    };
    // The daemon writes a slash before prefix lengths, and separators after some lists.
    let slash = |subnet: &str| match subnet.contains('.') || subnet.is_empty() {
        true => subnet.to_owned(),
        false => format!("/{subnet}"),
    };
    let subnets: Vec<_> = of.subnets.split(';').map(slash).collect();
    let lists = [
        of.addresses,
        subnets.join(";"),
        of.gateways,
        of.name_servers,
    ];
    answer[4..].fill(0);
    for (room, list) in ADDRESS_TEXTS[1..].iter().zip(lists) {
        let mut list = list + random.of(&["", ";", ";;", "%eth0", ";x", ";1.2.3.4", ";::1;", "\n"]);
        if random.one_in(8) {
            list = list.replace(';', "; ");
        }
        let room = &mut answer[4..][room.clone()];
        let len = list.len().min(room.len());
        room[..len].copy_from_slice(&list.as_bytes()[..len]);
        if random.one_in(16) {
            room[random.below(list.len() + 1).min(len - len.min(1))] = random.any() as u8;
        }
    }
    answer[4 + 256] = random.below(4) as u8;
    answer[4 + 257] = random.below(2) as u8;
}

/// The addresses that the host must get for a daemon's lists, and the omissions. `None` if the lists are wrong.
fn for_host(answer: &[u8]) -> Option<(addresses::Addresses, Omitted)> {
    let list = |room: &Range<usize>| -> Option<Vec<String>> {
        let room = &answer[4..][room.clone()];
        let end = room.iter().position(|byte| *byte == 0)?;
        // An address has no invalid UTF-8. The name of an interface after an address may have some.
        let text = String::from_utf8_lossy(&room[..end]).into_owned();
        let entries = text.split(';').map(|entry| entry.trim_ascii().to_owned());
        Some(entries.filter(|entry| !entry.is_empty()).collect())
    };
    let address = |entry: &String| -> Option<IpAddr> {
        match entry.split_once('%') {
            Some((address, _)) => address.parse().map(IpAddr::V6).ok(),
            None => entry.parse().ok(),
        }
    };
    let mut omitted = Omitted::NOTHING;
    let mut servers = |room| -> Option<Vec<IpAddr>> {
        let list = list(room)?;
        let addresses: Vec<_> = list.iter().filter_map(address).collect();
        omitted.not_addresses += list.len() - addresses.len();
        Some(addresses)
    };
    let by_family = |all: Vec<IpAddr>, room: usize| -> Option<String> {
        let (four, six): (Vec<_>, Vec<_>) = all.into_iter().partition(IpAddr::is_ipv4);
        let fit = four.len() <= room && six.len() <= room;
        let texts: Vec<_> = four.iter().chain(&six).map(IpAddr::to_string).collect();
        fit.then(|| texts.join(";"))
    };
    let gateways = by_family(servers(&ADDRESS_TEXTS[3])?, 5)?;
    let name_servers = by_family(servers(&ADDRESS_TEXTS[4])?, 64)?;
    let all: Vec<_> = list(&ADDRESS_TEXTS[1])?
        .iter()
        .map(address)
        .collect::<Option<_>>()?;
    let mut subnets = list(&ADDRESS_TEXTS[2])?;
    omitted.subnets = all.len().checked_sub(subnets.len())?;
    for address in &all[subnets.len()..] {
        subnets.push(if address.is_ipv4() { "0.0.0.0" } else { "0" }.to_owned());
    }
    let mut masks = Vec::new();
    let mut prefixes = Vec::new();
    for (address, subnet) in all.iter().zip(&subnets) {
        match address {
            IpAddr::V4(_) => masks.push(subnet.parse::<Ipv4Addr>().ok()?.to_string()),
            IpAddr::V6(_) => {
                let number = subnet.strip_prefix('/').unwrap_or(subnet);
                let prefix: u32 = number.parse().ok()?;
                (prefix <= 128 && !number.starts_with('+')).then_some(())?;
                prefixes.push(prefix.to_string());
            }
        }
    }
    masks.append(&mut prefixes);
    let origin = 2 - u16::from(answer[4 + 257] != 0);
    let addresses = addresses::Addresses {
        adapter: String::new(),
        family: answer[4 + 256],
        dhcp: answer[4 + 257] != 0,
        origins: vec![origin; all.len()],
        addresses: by_family(all, 64)?,
        subnets: masks.join(";"),
        gateways,
        name_servers,
    };
    Some((addresses, omitted))
}

/// The host gets the daemon's addresses in binary. If they are wrong, the request fails and the host gets no address.
fn numbers_told(
    before: &[u8],
    answer: &[u8],
    body: &[u8],
    result: Result<Option<Omitted>, Refusal>,
) {
    only_changed(before, body, &[4..28, 284..3716]);
    let read = addresses::read(NUMBERS, body).expect("addresses that a host can read");
    let Some((told, omitted)) = for_host(answer) else {
        let refusal = result.expect_err("wrong addresses");
        assert!(refusal.status == Status::FAIL && refusal.why.is_some());
        assert_eq!(body[4..28], [0; 24]);
        return;
    };
    assert_eq!(result, Ok(Some(omitted)));
    let adapter = utf16_text(&before[28..284]);
    assert_eq!(read, addresses::Addresses { adapter, ..told });
}
