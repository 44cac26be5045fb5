// SPDX-License-Identifier: GPL-2.0

//! GPADLs: lists of guest pages that the guest hands to the host, sent in one header and any number of bodies.
//!
//! Bodies carry a number, but a host appends them as they come. What follows the announced words is ignored, since
//! some guests always send messages of the full size.

use crate::memory::PAGE_SIZE;

/// A GPADL, perhaps not all received yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpadl {
    /// 64-bit words that the header announced.
    expected: usize,
    range_count: u16,
    words: Vec<u64>,
    /// The guest wants it back as soon as the channel that uses it is closed.
    pub(super) tearing_down: bool,
}

impl Gpadl {
    /// Begins with a header.
    pub fn new(range_length: u16, range_count: u16, words: &[u64]) -> Self {
        let mut gpadl = Self {
            expected: usize::from(range_length) / 8,
            range_count,
            words: Vec::new(),
            tearing_down: false,
        };
        gpadl.extend(words);
        gpadl
    }

    /// Adds a body's words.
    pub fn extend(&mut self, words: &[u64]) {
        let room = self.expected - self.words.len();
        self.words.extend(&words[..words.len().min(room)]);
    }

    /// Whether all has been received.
    pub fn is_complete(&self) -> bool {
        self.words.len() == self.expected
    }

    /// Whether its ranges are possible: none of them empty, each beginning in its first page and with a page for every
    /// part of it. Whether the pages are memory shows when they are used.
    pub fn is_valid(&self) -> bool {
        let mut rest = &self.words[..];
        self.is_complete()
            && (0..self.range_count).all(|_| match Range::split(rest) {
                Some((_, after)) => {
                    rest = after;
                    true
                }
                None => false,
            })
    }

    /// The numbers of the pages, if this is one range of whole pages, as rings are.
    pub fn pages(&self) -> Option<&[u64]> {
        let (range, _) = Range::split(&self.words)?;
        let whole = range.offset == 0 && range.length % PAGE_SIZE == 0;
        (self.is_complete() && self.range_count == 1 && whole).then_some(range.pages)
    }
}

/// One range: so many bytes, beginning at an offset in the first of its pages.
struct Range<'a> {
    length: u64,
    offset: u64,
    pages: &'a [u64],
}

impl<'a> Range<'a> {
    /// Takes a range off the front of `words`; `None` if none is there, or an impossible one.
    fn split(words: &'a [u64]) -> Option<(Self, &'a [u64])> {
        let (head, rest) = words.split_first()?;
        let (length, offset) = (u64::from(*head as u32), head >> 32);
        if length == 0 || offset >= PAGE_SIZE || u32::try_from(length + offset + PAGE_SIZE).is_err()
        {
            return None;
        }
        let (pages, rest) = rest.split_at_checked((length + offset).div_ceil(PAGE_SIZE) as usize)?;
        let range = Self {
            length,
            offset,
            pages,
        };
        Some((range, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_valid(count: u16, words: &[u64]) -> bool {
        Gpadl::new(words.len() as u16 * 8, count, words).is_valid()
    }

    #[test]
    fn collects_a_header_and_bodies() {
        let mut gpadl = Gpadl::new(8 + 3 * 8, 1, &[3 * 4096, 10]);
        assert!(!gpadl.is_complete());
        assert_eq!(gpadl.pages(), None);
        gpadl.extend(&[11, 12, 99]);
        assert!(gpadl.is_complete());
        assert_eq!(gpadl.pages(), Some(&[10, 11, 12][..]));
        gpadl.extend(&[13]);
        assert_eq!(gpadl.pages(), Some(&[10, 11, 12][..]));
    }

    #[test]
    fn rings_are_one_range_of_whole_pages() {
        let pages = |count, words: &[u64]| {
            Gpadl::new(words.len() as u16 * 8, count, words)
                .pages()
                .map(<[u64]>::to_vec)
        };
        assert_eq!(pages(1, &[4096, 1]), Some(vec![1]));
        assert_eq!(pages(1, &[4096, 1, 2]), Some(vec![1]), "a word too much");
        assert_eq!(pages(2, &[4096, 1, 4096, 2]), None);
        assert_eq!(pages(1, &[100, 1]), None);
        assert_eq!(pages(1, &[4096 | 8 << 32, 1, 2]), None);
    }

    #[test]
    fn ranges_must_be_possible() {
        assert!(is_valid(1, &[4096, 1]));
        assert!(is_valid(1, &[96 | 4000 << 32, 1]));
        assert!(is_valid(2, &[1, 5, 8192, 6, 7]));
        assert!(
            is_valid(0, &[4096, 1]),
            "no range, and none that is impossible"
        );
        assert!(is_valid(1, &[4096, u64::MAX]), "a page past everything");
        assert!(!is_valid(1, &[]), "no words");
        assert!(!is_valid(1, &[0, 1]), "an empty range");
        assert!(!is_valid(1, &[8192, 1]), "a page too few");
        assert!(!is_valid(1, &[4096 | 1 << 32, 1]), "a page too few");
        assert!(!is_valid(1, &[1 | 4096 << 32, 1]), "begins past its page");
        assert!(!is_valid(2, &[4096, 1]), "one range of two");
        assert!(!is_valid(1, &[0xffff_ffff, 1]), "more bytes than exist");
    }
}
