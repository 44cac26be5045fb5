// SPDX-License-Identifier: GPL-2.0

//! Properties of file copy: names and pieces.

use host::bytes::u32_at;
use host::fuzz::Random;
use host::ic::text::utf16_text;
use host::service::Service;

use crate::icmsg::fcopy;
use crate::icmsg::Status;
use crate::input::body;
use crate::text::daemon_text;

/// A request for the daemon has the host's names as NUL-terminated text, and the host's piece unchanged. A piece must
/// lie within its message. The memory behind names and piece is untouched.
pub(super) fn to_daemon(random: &mut Random) {
    let mut body = body(Service::FCopy, random);
    if random.one_in(8) {
        // Sizes around the largest piece that fits.
        let size = 6140 + random.below(8);
        body.resize(52 + 6140 + random.below(8), 7);
        body[48..52].copy_from_slice(&(size as u32).to_le_bytes());
    }
    let mut message = [0x5a; fcopy::DAEMON_LEN];
    let result = fcopy::to_daemon(&body, &mut message);
    let number = u32_at(&body, 0);
    let size = u32_at(&body, 48).map_or(usize::MAX, |size| size as usize);
    let is_short = |needed: usize| body.len() < needed;
    let (operation, len) = match result {
        Ok(asked) => asked,
        Err(Status::NOT_SUPPORTED) => return assert!(number > Some(3)),
        Err(Status::NAME_TOO_LONG) => {
            let too_long = |at: usize| {
                let name = utf16_text(&body[at..at + 520]);
                name.len() >= 520 || name.split('/').any(|part| part.len() > 255)
            };
            return assert!(number == Some(0) && (too_long(36) || too_long(556)));
        }
        Err(status) => {
            assert_eq!(status, Status::INVALID_ARGUMENT);
            return assert!(
                is_short(36)
                    || match number {
                        Some(0) => is_short(1088),
                        _ => is_short(52) || size > 6144 || is_short(52 + size),
                    }
            );
        }
    };
    assert_eq!(u32_at(&message, 0), number);
    let written = match operation {
        fcopy::Operation::Start => {
            for at in [36, 556] {
                assert_eq!(
                    daemon_text(&message[at..at + 520]),
                    utf16_text(&body[at..at + 520])
                );
            }
            assert_eq!(message[1076..1088], body[1076..1088]);
            len
        }
        fcopy::Operation::Write => {
            assert_eq!(message[40..52 + size], body[40..52 + size]);
            assert_eq!(len, fcopy::DAEMON_LEN);
            52 + size
        }
        fcopy::Operation::Complete | fcopy::Operation::Cancel => {
            assert_eq!(len, 36);
            len
        }
    };
    assert!(message[4..36].iter().all(|byte| *byte == 0));
    assert!(message[written..].iter().all(|byte| *byte == 0x5a));
}
