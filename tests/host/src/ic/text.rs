// SPDX-License-Identifier: GPL-2.0

//! Text in a host's encoding: UTF-16, little-endian, terminated by a NUL.

/// Encodes a text and its NUL.
pub fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// Decodes a text up to a NUL or the end of `bytes`. Invalid UTF-16 becomes U+FFFD.
pub fn utf16_text(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    char::decode_utf16(units.take_while(|unit| *unit != 0))
        .map(|decoded| decoded.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// Decodes a text of exactly `size` bytes. Fact: a host rejects (here `None`) an odd size, a size beyond `bytes`, a
/// text without a NUL at the end, and invalid UTF-16.
pub fn utf16_sized(bytes: &[u8], size: u32) -> Option<String> {
    let bytes = bytes.get(..usize::try_from(size).ok()?)?;
    if bytes.len() % 2 != 0 {
        return None;
    }
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .collect();
    let (last, text) = units.split_last()?;
    (*last == 0).then(|| String::from_utf16(text).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_both_ways() {
        let bytes = utf16("aß€😀");
        assert_eq!(bytes.len(), 12);
        assert_eq!(utf16_text(&bytes), "aß€😀");
        assert_eq!(utf16_sized(&bytes, 12).as_deref(), Some("aß€😀"));
        assert_eq!(utf16_text(&[0x00, 0xd8, 0x61, 0]), "\u{fffd}a");
    }

    #[test]
    fn a_host_reads_no_text_of_another_size() {
        let bytes = utf16("ab");
        for size in [0, 1, 2, 5, 8] {
            assert_eq!(utf16_sized(&bytes, size), None);
        }
        assert_eq!(utf16_sized(&[0x00, 0xd8, 0, 0], 4), None);
    }
}
