// SPDX-License-Identifier: GPL-2.0

//! Properties of text: UTF-16 of hosts, UTF-8 of daemons.

use host::fuzz;
use host::fuzz::Random;
use host::ic::text::utf16;
use host::ic::text::utf16_sized;
use host::ic::text::utf16_text;

use crate::icmsg::text;
use crate::input::mutate;

/// UTF-16, perhaps mutated.
fn any_utf16(random: &mut Random) -> Vec<u8> {
    let mut bytes = utf16(&fuzz::text(random));
    if random.one_in(2) {
        mutate(&mut bytes, random);
    }
    bytes
}

/// Decodes text up to its NUL or the end.
pub(super) fn utf8_text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The text in `room`. Panics unless the text is valid and has a NUL.
pub(super) fn daemon_text(room: &[u8]) -> &str {
    let text = room
        .split(|byte| *byte == 0)
        .next()
        .filter(|text| text.len() < room.len());
    std::str::from_utf8(text.expect("a NUL")).expect("UTF-8")
}

/// Conversions agree with the standard library, add a NUL, and write no other byte. A text converted there and back is
/// the same.
pub(super) fn texts(random: &mut Random) {
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
