// SPDX-License-Identifier: GPL-2.0

//! Properties of guest shutdown and heartbeat.

use host::bytes::u32_at;
use host::bytes::u64_at;
use host::fuzz::Random;
use host::ic::text::utf16_text;
use host::service::Service;

use crate::icmsg::heartbeat;
use crate::icmsg::shutdown;
use crate::icmsg::Version;
use crate::input::body;
use crate::input::only_changed;

/// A shutdown's text has no control characters, so it fits a line of the log. The answer to a beat changes the number
/// and, from 3.0 on, the state.
pub(super) fn shutdown_and_heartbeat(random: &mut Random) {
    let mut bytes = body(Service::Shutdown, random);
    if random.one_in(2) {
        let from = random.below(bytes.len());
        random.fill(&mut bytes[from..]);
    }
    match shutdown::Shutdown::parse(&bytes) {
        None => assert!(bytes.len() < 12),
        Some(request) => {
            let field = |at| u32_at(&bytes, at).unwrap_or(0);
            assert_eq!((request.reason, request.timeout), (field(0), field(4)));
            assert_eq!(request.force, field(8) & 1 != 0);
            assert_eq!(
                request.operation.is_some(),
                matches!(field(8) & !1, 0 | 2 | 4)
            );
            let end = bytes.len().min(12 + 2048);
            let said: String = utf16_text(&bytes[12..end])
                .chars()
                .take(200)
                .map(|c| if c.is_control() { '\u{fffd}' } else { c })
                .collect();
            assert_eq!(request.text.to_string(), said);
        }
    }

    let mut beat = body(Service::Heartbeat, random);
    let before = beat.clone();
    let version = Version::new(random.of(&[1, 3]), 0);
    let state = heartbeat::ApplicationState::from_number(random.below(5) as u32);
    match heartbeat::answer(version, &mut beat, state) {
        None => {
            assert!(beat.len() < 8);
            assert_eq!(beat, before);
        }
        Some(()) => {
            let sequence = u64_at(&before, 0).map(|sequence| sequence.wrapping_add(1));
            assert_eq!(u64_at(&beat, 0), sequence);
            let has_state = version.major >= 3 && beat.len() >= 12;
            let bytes = if has_state { 8..12 } else { 8..8 };
            only_changed(&before, &beat, &[0..8, bytes]);
            if has_state {
                assert_eq!(u32_at(&beat, 8), Some(state as u32));
            }
        }
    }
}
