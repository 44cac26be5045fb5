// SPDX-License-Identifier: GPL-2.0

//! GPADLs: lists of guest pages that the guest hands to the host, sent in one header and any number of bodies.

use crate::memory::PAGE_SIZE;

/// A GPADL, perhaps not all received yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpadl {
    /// 64-bit words that the header announced.
    expected: usize,
    range_count: u16,
    words: Vec<u64>,
}

impl Gpadl {
    /// Begins with a header; `None` if its counts are impossible.
    pub fn new(range_length: u16, range_count: u16, words: &[u64]) -> Option<Self> {
        let expected = usize::from(range_length) / 8;
        if range_length % 8 != 0 || range_count == 0 || expected < 2 * usize::from(range_count) {
            return None;
        }
        let mut gpadl = Self {
            expected,
            range_count,
            words: Vec::new(),
        };
        gpadl.extend(words);
        Some(gpadl)
    }

    /// Adds a body's words; what is more than was announced is ignored.
    pub fn extend(&mut self, words: &[u64]) {
        let room = self.expected - self.words.len();
        self.words.extend(&words[..words.len().min(room)]);
    }

    /// Whether all has been received.
    pub fn is_complete(&self) -> bool {
        self.words.len() == self.expected
    }

    /// The numbers of the pages, if this is one range of whole pages, as rings are.
    pub fn pages(&self) -> Option<&[u64]> {
        let first = *self.words.first()?;
        let (length, offset) = (first as u32, first >> 32);
        let pages = u64::from(length) / PAGE_SIZE;
        let ok = self.is_complete()
            && self.range_count == 1
            && offset == 0
            && u64::from(length) % PAGE_SIZE == 0
            && pages == self.expected as u64 - 1;
        ok.then(|| &self.words[1..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collects_a_header_and_bodies() {
        let mut gpadl = Gpadl::new(8 + 3 * 8, 1, &[3 * 4096, 10]).unwrap();
        assert!(!gpadl.is_complete());
        assert_eq!(gpadl.pages(), None);
        gpadl.extend(&[11, 12, 99]);
        assert!(gpadl.is_complete());
        assert_eq!(gpadl.pages(), Some(&[10, 11, 12][..]));
    }

    #[test]
    fn refuses_impossible_counts() {
        assert_eq!(Gpadl::new(7, 1, &[]), None);
        assert_eq!(Gpadl::new(8, 1, &[0]), None);
        assert_eq!(Gpadl::new(16, 0, &[0, 0]), None);
        let odd = Gpadl::new(16, 1, &[100, 1]).unwrap();
        assert_eq!(odd.pages(), None);
        let offset = Gpadl::new(16, 1, &[4096 | 8 << 32, 1]).unwrap();
        assert_eq!(offset.pages(), None);
    }
}
