// SPDX-License-Identifier: GPL-2.0

//! Conversion of text between UTF-16LE (host) and UTF-8 (daemons and the log).
//!
//! Invalid parts become U+FFFD. A conversion never writes beyond its buffer, and ends the text with
//! a NUL. The returned sizes are in bytes and include the NUL.

use super::wire;

/// The text does not fit into the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Returns the characters of UTF-16LE text. The text ends at its first NUL, or at the end of
/// `bytes`. A single byte at the end is ignored.
pub(crate) fn utf16_chars(bytes: &[u8]) -> impl Iterator<Item = char> + '_ {
    let units = bytes.chunks_exact(2).map(|unit| wire::u16_at(unit, 0));
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|decoded| decoded.unwrap_or(char::REPLACEMENT_CHARACTER))
}

/// Converts UTF-16LE text to UTF-8. The text ends at the first NUL in `from`, or at the end of
/// `from`. Returns the number of bytes written to `to`.
///
/// Fails if the text and its NUL do not fit into `to`.
pub(crate) fn utf16_to_utf8(from: &[u8], to: &mut [u8]) -> Result<usize, TooLong> {
    let mut len = 0;
    for c in utf16_chars(from) {
        let mut encoded = [0; 4];
        let encoded = c.encode_utf8(&mut encoded).as_bytes();
        let room = to.get_mut(len..len + encoded.len()).ok_or(TooLong)?;
        room.copy_from_slice(encoded);
        len += encoded.len();
    }
    *to.get_mut(len).ok_or(TooLong)? = 0;
    Ok(len + 1)
}

/// Converts UTF-8 text to UTF-16LE. The text ends at the first NUL in `from`, or at the end of
/// `from`. Returns the number of bytes written to `to`. If the text does not fit, cuts it between
/// two characters.
///
/// # Panics
///
/// Panics if `to` is shorter than 2 bytes.
pub(crate) fn utf8_to_utf16(from: &[u8], to: &mut [u8]) -> usize {
    let from = from.split(|byte| *byte == 0).next().unwrap_or(from);
    let mut len = 0;
    for c in from.utf8_chunks().flat_map(|chunk| {
        let invalid = (!chunk.invalid().is_empty()).then_some(char::REPLACEMENT_CHARACTER);
        chunk.valid().chars().chain(invalid)
    }) {
        if len + (c.len_utf16() + 1) * 2 > to.len() {
            break;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            wire::put_u16(to, len, *unit);
            len += 2;
        }
    }
    wire::put_u16(to, len, 0);
    len + 2
}

#[cfg(any(test, CONFIG_KUNIT = "y"))]
#[cfg_attr(not(test), kernel::prelude::kunit_tests(hv_utils_text))]
mod tests {
    use super::*;

    /// "aß€😀" in both encodings.
    const UTF16: [u8; 10] = [0x61, 0, 0xdf, 0, 0xac, 0x20, 0x3d, 0xd8, 0x00, 0xde];
    const UTF8: &[u8] = "aß€😀".as_bytes();

    #[test]
    fn both_ways_end_in_nul() {
        let mut utf8 = [0xff; 16];
        assert_eq!(utf16_to_utf8(&UTF16, &mut utf8), Ok(11));
        assert_eq!(&utf8[..10], UTF8);
        assert_eq!(utf8[10..12], [0, 0xff]);

        let mut utf16 = [0xff; 16];
        assert_eq!(utf8_to_utf16(UTF8, &mut utf16), 12);
        assert_eq!(utf16[..10], UTF16);
        assert_eq!(utf16[10..14], [0, 0, 0xff, 0xff]);
    }

    #[test]
    fn text_ends_at_nul() {
        let mut utf8 = [0xff; 8];
        assert_eq!(utf16_to_utf8(&[0x61, 0, 0, 0, 0x62, 0], &mut utf8), Ok(2));
        let mut utf16 = [0xff; 8];
        assert_eq!(utf8_to_utf16(b"a\0b", &mut utf16), 4);
    }

    #[test]
    fn odd_and_empty_sizes() {
        let mut utf8 = [0xff; 8];
        assert_eq!(utf16_to_utf8(&[], &mut utf8), Ok(1));
        assert_eq!(utf16_to_utf8(&[0x61], &mut utf8), Ok(1));
        assert_eq!(utf16_to_utf8(&[0x61, 0, 0x62], &mut utf8), Ok(2));
        let mut utf16 = [0xff; 2];
        assert_eq!(utf8_to_utf16(b"", &mut utf16), 2);
    }

    #[test]
    fn invalid_text_is_replaced() {
        let mut utf8 = [0xff; 16];
        // A lone high and a lone low surrogate.
        let lone = [0x00, 0xd8, 0x61, 0, 0x00, 0xdc];
        assert_eq!(utf16_to_utf8(&lone, &mut utf8), Ok(8));
        assert_eq!(&utf8[..7], "\u{fffd}a\u{fffd}".as_bytes());

        let mut utf16 = [0xff; 16];
        assert_eq!(utf8_to_utf16(b"a\xff\xe2\x82", &mut utf16), 8);
        assert_eq!(utf16[..6], [0x61, 0, 0xfd, 0xff, 0xfd, 0xff]);
    }

    #[test]
    fn too_long_is_refused_to_utf8() {
        let mut utf8 = [0; 10];
        assert_eq!(utf16_to_utf8(&UTF16, &mut utf8), Err(TooLong));
        assert_eq!(utf16_to_utf8(&UTF16, &mut utf8[..9]), Err(TooLong));
        assert_eq!(utf16_to_utf8(&[], &mut []), Err(TooLong));
    }

    #[test]
    fn too_long_is_cut_to_utf16_between_characters() {
        for (room, size) in [(2, 2), (4, 4), (8, 8), (10, 8), (11, 8), (12, 12)] {
            let mut utf16 = [0xff; 16];
            assert_eq!(utf8_to_utf16(UTF8, &mut utf16[..room]), size);
            assert_eq!(utf16[size - 2..size], [0, 0]);
            assert!(utf16[room..].iter().all(|byte| *byte == 0xff));
        }
    }
}
