// SPDX-License-Identifier: GPL-2.0

//! Properties of time synchronization: samples and their validity.

use host::bytes::u64_at;
use host::fuzz::Random;
use host::service::Service;

use crate::icmsg::timesync;
use crate::icmsg::Version;
use crate::input::body;

/// A sample yields the time that its numbers imply, if that fits Unix time in nanoseconds. The time advances with the
/// reference time until the sample expires.
pub(super) fn times(random: &mut Random) {
    const UNIT: i128 = 100;
    let body = body(Service::TimeSync, random);
    let version = random.of(&[(1, 0), (3, 0), (4, 0), (5, 0)]);
    let version = Version::new(version.0, version.1);
    let mut now = random.any() >> random.below(64);
    let flags = if version.major >= 4 { 16 } else { 24 };
    if random.one_in(2) {
        now = u64_at(&body, 8)
            .unwrap_or(0)
            .wrapping_add(random.any() % 1_000_000)
            .wrapping_sub(random.any() % 1_000_000);
    }
    let told = body.get(flags).map(|flags| {
        let taken = match version.major {
            4.. => u64_at(&body, 8).unwrap_or(0),
            _ => now,
        };
        let host = i128::from(u64_at(&body, 0).unwrap_or(0));
        let epoch = i128::from(host::ic::UNIX_EPOCH_1601);
        let since = i128::from(now) - i128::from(taken);
        // A sample from the future counts as taken now.
        (host - epoch, host - epoch + since.max(0), -since, *flags)
    });
    let valid = |units: i128| (0..=i128::from(i64::MAX) / UNIT).contains(&units);
    let expected = told.filter(|(sent, at_now, ..)| *sent >= 0 && valid(*at_now));
    let parsed = timesync::TimeSync::parse(version, &body, now);
    assert_eq!(parsed.is_some(), expected.is_some());
    let (Some(parsed), Some((_, at_now, ahead, flags))) = (parsed, expected) else {
        return;
    };
    assert_eq!(parsed.sync, flags & 1 != 0);
    let counted = if ahead > 100_000 { ahead } else { 0 };
    assert_eq!(i128::from(parsed.ahead), counted);
    let quality = match body.get(17..19) {
        Some(&[leap, stratum]) if version.major >= 4 => Some(timesync::Quality { leap, stratum }),
        _ => None,
    };
    assert_eq!(parsed.quality, quality);
    let time = |now| parsed.sample.at(now).map(i128::from);
    assert_eq!(time(now), Ok(at_now * UNIT));
    for step in [1, 9_999, 10_001, 6_000_000_000, 6_000_000_001, random.any()] {
        if let Some(later) = now.checked_add(step) {
            let at_later = at_now + i128::from(step);
            let lasts = step <= 6_000_000_000 && valid(at_later);
            let expected = if lasts {
                Ok(at_later * UNIT)
            } else {
                Err(timesync::Stale)
            };
            assert_eq!(time(later), expected);
        }
        if let Some(earlier) = now.checked_sub(step) {
            let expected = if step <= 10_000 {
                Ok(at_now * UNIT)
            } else {
                Err(timesync::Stale)
            };
            assert_eq!(time(earlier), expected);
        }
    }
}
