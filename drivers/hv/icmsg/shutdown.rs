// SPDX-License-Identifier: GPL-2.0

//! Shutdown messages.
//!
//! | Body offset | Field                                                        |
//! | ----------- | ------------------------------------------------------------ |
//! | 0           | reason code u32                                              |
//! | 4           | timeout u32, in seconds                                      |
//! | 8           | flags u32: 1 force, 2 restart, 4 hibernate                   |
//! | 12          | text for the log, UTF-16, up to 2048 bytes; may be shorter   |
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)
//! (`struct shutdown_msg_data`).

use super::{
    text,
    wire, //
};
use core::fmt::{
    self,
    Write, //
};

const REASON: usize = 0;
const TIMEOUT: usize = 4;
const FLAGS: usize = 8;
const TEXT: usize = 12;
const TEXT_MAX: usize = 2048;

/// The operation that the host requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Power off.
    PowerOff,
    /// Restart.
    Restart,
    /// Hibernate (suspend to disk).
    Hibernate,
}

/// A shutdown request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shutdown<'a> {
    /// The operation. `None` if the flags do not name a known operation.
    pub(crate) operation: Option<Operation>,
    /// Whether to ignore objections of applications. The kernel always ignores them.
    pub(crate) force: bool,
    /// The reason, a Windows shutdown reason code.
    pub(crate) reason: u32,
    /// Time that applications may take, in seconds.
    pub(crate) timeout: u32,
    /// Text for the log.
    pub(crate) text: Text<'a>,
}

impl<'a> Shutdown<'a> {
    /// Reads the request in `body`. Returns `None` if `body` is too short for the flags.
    pub(crate) fn parse(body: &'a [u8]) -> Option<Self> {
        if body.len() < TEXT {
            return None;
        }
        let flags = wire::u32_at(body, FLAGS);
        let end = body.len().min(TEXT + TEXT_MAX);
        Some(Self {
            operation: match flags & !1 {
                0 => Some(Operation::PowerOff),
                2 => Some(Operation::Restart),
                4 => Some(Operation::Hibernate),
                _ => None,
            },
            force: flags & 1 != 0,
            reason: wire::u32_at(body, REASON),
            timeout: wire::u32_at(body, TIMEOUT),
            text: Text(&body[TEXT..end]),
        })
    }
}

/// UTF-16LE text that ends at its first NUL, or at the end of the slice.
///
/// The text comes from the host and goes to the log. So `Display` replaces invalid and control
/// characters by U+FFFD, and shows at most 200 characters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// Maximum number of characters that `Display` shows.
    const SHOWN: usize = 200;

    /// Returns the characters. Control characters are replaced.
    fn chars(self) -> impl Iterator<Item = char> + 'a {
        text::utf16_chars(self.0).map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.chars()
            .take(Self::SHOWN)
            .try_for_each(|c| f.write_char(c))
    }
}

#[cfg(any(test, CONFIG_KUNIT = "y"))]
#[cfg_attr(not(test), kernel::prelude::kunit_tests(hv_utils_shutdown))]
mod tests {
    use super::super::tests::shows;
    use super::*;

    fn request(flags: u32) -> [u8; 12] {
        let mut body = [0u8; 12];
        wire::put_u32(&mut body, REASON, 0x8000_0000);
        wire::put_u32(&mut body, TIMEOUT, 60);
        wire::put_u32(&mut body, FLAGS, flags);
        body
    }

    fn operation(flags: u32) -> Option<Operation> {
        Shutdown::parse(&request(flags)).and_then(|shutdown| shutdown.operation)
    }

    #[test]
    fn flags_name_the_operation() {
        assert_eq!(operation(0), Some(Operation::PowerOff));
        assert_eq!(operation(1), Some(Operation::PowerOff));
        assert_eq!(operation(2), Some(Operation::Restart));
        assert_eq!(operation(3), Some(Operation::Restart));
        assert_eq!(operation(4), Some(Operation::Hibernate));
        assert_eq!(operation(5), Some(Operation::Hibernate));
        for flags in [6, 7, 8, 9, 0x8000_0000, 0xffff_ffff] {
            assert_eq!(operation(flags), None);
        }
    }

    #[test]
    fn reason_timeout_and_force_are_read() {
        let body = request(1);
        let read = Shutdown::parse(&body).map(|s| (s.reason, s.timeout, s.force));
        assert_eq!(read, Some((0x8000_0000, 60, true)));
    }

    #[test]
    fn a_body_without_flags_is_refused() {
        assert!(Shutdown::parse(&request(0)[..11]).is_none());
    }

    #[test]
    fn text_ends_at_nul_or_end() {
        let text = |bytes| Text(bytes).chars().count();
        assert_eq!(text(&[][..]), 0);
        assert_eq!(text(&b"a\0b\0"[..]), 2);
        assert_eq!(text(&b"a\0b\0\0\0c\0"[..]), 2);
        assert_eq!(text(&b"a\0b"[..]), 1);
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        // A lone surrogate, a newline, an escape, and a surrogate pair.
        let bytes = [0x00, 0xd8, b'\n', 0, 0x1b, 0, 0x3d, 0xd8, 0x00, 0xde];
        let mut shown = Text(&bytes).chars();
        for _ in 0..3 {
            assert_eq!(shown.next(), Some(char::REPLACEMENT_CHARACTER));
        }
        assert_eq!(shown.next(), Some('\u{1f600}'));
        assert_eq!(shown.next(), None);
    }

    #[test]
    fn a_line_of_text_is_shown() {
        const LINE: [u8; Text::SHOWN] = [b'x'; Text::SHOWN];

        let mut body = [0; TEXT + 2 * (Text::SHOWN + 1)];
        for unit in body[TEXT..].chunks_exact_mut(2) {
            unit[0] = b'x';
        }
        let line = core::str::from_utf8(&LINE).unwrap_or_default();
        let shown =
            |body: &[u8], line| Shutdown::parse(body).is_some_and(|read| shows(read.text, line));
        assert!(shown(&body, line));
        assert!(shown(&body[..TEXT + 6], "xxx"));
        assert!(shown(&body[..TEXT], ""));
    }
}
