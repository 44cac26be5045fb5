// SPDX-License-Identifier: GPL-2.0

//! GUIDs in the layout of VMBus messages: the first three groups little-endian, the rest in the order of the text.

use std::fmt;

/// A GUID.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// Parses the usual text form (`xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`, lower case). Panics on any other text: in a
    /// constant, a compile error.
    pub const fn parse(text: &str) -> Self {
        let text = text.as_bytes();
        assert!(text.len() == 36);
        // For each byte in memory, the position of its first digit in the text.
        const AT: [usize; 16] = [6, 4, 2, 0, 11, 9, 16, 14, 19, 21, 24, 26, 28, 30, 32, 34];
        let mut out = [0; 16];
        let mut index = 0;
        while index < 16 {
            out[index] = (digit(text[AT[index]]) << 4) | digit(text[AT[index] + 1]);
            index += 1;
        }
        Self(out)
    }
}

const fn digit(character: u8) -> u8 {
    match character {
        b'0'..=b'9' => character - b'0',
        b'a'..=b'f' => character - b'a' + 10,
        _ => panic!("a GUID is written in lower-case hexadecimal digits"),
    }
}

/// For each byte in the text, its index in memory.
const WRITTEN: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

/// GUIDs sort like their texts.
impl Ord for Guid {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let written = |guid: &Self| WRITTEN.map(|at| guid.0[at]);
        written(self).cmp(&written(other))
    }
}

impl PartialOrd for Guid {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, at) in WRITTEN.into_iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                write!(f, "-")?;
            }
            write!(f, "{:02x}", self.0[at])?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_groups_are_little_endian() {
        let text = "57164f39-9115-4e78-ab55-382f3bd5422d";
        let guid = Guid::parse(text);
        assert_eq!(
            guid.0[..8],
            [0x39, 0x4f, 0x16, 0x57, 0x15, 0x91, 0x78, 0x4e]
        );
        assert_eq!(guid.to_string(), text);
        assert!(guid < Guid::parse("58000000-0000-0000-0000-000000000000"));
    }
}
