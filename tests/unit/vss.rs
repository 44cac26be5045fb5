// SPDX-License-Identifier: GPL-2.0

//! Properties of VSS: operations, and registrations of daemons.

use host::fuzz::Random;
use host::service::Service;

use crate::icmsg::vss;
use crate::icmsg::Status;
use crate::icmsg::Version;
use crate::input::body;
use crate::input::only_changed;

/// The daemon gets an operation under its own number, except `Notice`, which has several. An answer changes the flags
/// only. (The answer to a cluster query also zeroes all bytes after the flags.)
pub(super) fn messages(random: &mut Random) {
    let mut body = body(Service::Vss, random);
    let number = body.first().copied().unwrap_or(0);
    let version = Version::new(random.of(&[5, 6, 7]), 0);
    let last = if version.major >= 6 { 8 } else { 7 };
    match vss::Operation::parse(version, &body) {
        Ok(operation) => {
            assert!(body.len() >= 12 && number <= last);
            let mut message = [0xa5; vss::DAEMON_LEN];
            operation.write(&mut message);
            assert!(message[1..].iter().all(|byte| *byte == 0));
            assert_eq!(vss::Operation::parse(version, &message), Ok(operation));
            if operation != vss::Operation::Notice {
                assert_eq!(message[0], number);
            }
            let before = body.clone();
            operation.succeed(&mut body);
            let has_flags = matches!(number, 2 | 3);
            let flags = match number {
                2 | 3 => 8..12,
                8 => 8..body.len(),
                _ => 0..0,
            };
            only_changed(&before, &body, &[flags]);
            if has_flags {
                assert_eq!(body[8..12], [if number == 2 { 5 } else { 0 }, 0, 0, 0]);
            }
            if number == 8 {
                assert!(body[8..].iter().all(|byte| *byte == 0));
            }
        }
        Err(Status::INVALID_ARGUMENT) => assert!(body.len() < 12),
        Err(status) => assert!(status == Status::NOT_SUPPORTED && number > last),
    }
    let mut message = [0; vss::DAEMON_LEN];
    random.fill(&mut message);
    message[0] = random.of(&[message[0], 127, 128, 129, 130]);
    let registered = vss::registration(&message);
    assert_eq!(registered.is_some(), matches!(message[0], 128 | 129));
    if let Some(daemon) = registered {
        assert_eq!(vss::version(daemon), message[0]);
        assert!(vss::confirm(daemon, &mut message).is_none_or(|len| len == 4));
    }
}
