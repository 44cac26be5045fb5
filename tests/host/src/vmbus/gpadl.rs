// SPDX-License-Identifier: GPL-2.0

//! GPADLs: lists of page frames that the guest sends to the host, in a header and any number of bodies.
//!
//! Fact: a host ignores the bodies' numbers and appends them in the order of arrival. It ignores words beyond the
//! announced number: some guests always send messages of the full size.

use crate::memory::PAGE_SIZE;

/// A GPADL, perhaps incomplete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpadl {
    /// Number of 64-bit words that the header announces.
    expected: usize,
    range_count: u16,
    words: Vec<u64>,
    /// Whether the guest has torn down the GPADL while an open channel uses it. Then the GPADL lasts until the close.
    pub(super) tearing_down: bool,
}

impl Gpadl {
    /// Creates a GPADL from its header.
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

    /// Appends the words of a body.
    pub fn extend(&mut self, words: &[u64]) {
        let room = self.expected - self.words.len();
        self.words.extend(&words[..words.len().min(room)]);
    }

    /// Whether all words have arrived.
    pub fn is_complete(&self) -> bool {
        self.words.len() == self.expected
    }

    /// Whether all ranges are possible: not empty, begun within the first page, and with a page for each part. Whether
    /// the pages are memory is checked when they are used.
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

    /// The page frames of a ring: exactly one range of whole pages. Else `None`.
    pub fn pages(&self) -> Option<&[u64]> {
        let (range, _) = Range::split(&self.words)?;
        let whole = range.offset == 0 && range.length % PAGE_SIZE == 0;
        (self.is_complete() && self.range_count == 1 && whole).then_some(range.pages)
    }
}

/// A range: a length in bytes, an offset in the first page, and the pages.
struct Range<'a> {
    length: u64,
    offset: u64,
    pages: &'a [u64],
}

impl<'a> Range<'a> {
    /// Splits off the first range of `words`. `None` if there is no range, or an impossible one.
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
