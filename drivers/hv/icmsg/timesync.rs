// SPDX-License-Identifier: GPL-2.0

//! Time synchronisation messages, and calculations with the samples of the host's time.
//!
//! | Body offset | Before version 4          | Body offset | Version 4                        |
//! | ----------- | ------------------------- | ----------- | -------------------------------- |
//! | 0           | host's time u64           | 0           | host's time u64                  |
//! | 8           | guest's time u64          | 8           | reference time of the sample u64 |
//! | 16          | round trip time u64       | 16          | flags u8                         |
//! | 24          | flags u8                  | 17          | leap indicator u8, stratum u8    |
//!
//! Times are in units of 100 ns. The host's time begins in 1601. The reference time begins with the
//! start of the virtual machine. Leap indicator and stratum are those of NTP and describe the
//! host's clock. Hosts that do not know these values send 0.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)
//! (`struct ictimesync_data`, `struct ictimesync_ref_data`).

use super::{
    wire,
    Version, //
};

const HOST_TIME: usize = 0;
const REFERENCE_TIME: usize = 8;
const FLAGS_V4: usize = 16;
const LEAP: usize = 17;
const STRATUM: usize = 18;
const FLAGS_V1: usize = 24;

/// The guest shall step its clock.
const FLAG_SYNC: u8 = 1;

/// 1970-01-01 as the host's time, in units of 100 ns.
const UNIX_EPOCH: u64 = 116_444_736_000_000_000;

/// Number of nanoseconds per unit of the host's time and the reference time.
const NSEC_PER_UNIT: u64 = 100;

/// The latest Unix time that fits into an `i64` of nanoseconds, in units of 100 ns: in the year
/// 2262.
const LATEST: u64 = i64::MAX as u64 / NSEC_PER_UNIT;

/// Age after which a sample is not used any more: 600 s, in units of 100 ns.
const STALE: u64 = 600 * 10_000_000;

/// Maximum difference between the reference times that two processors read: 1 ms, in units of 100
/// ns.
const APART: u64 = 10_000;

/// A sample is counted as ahead if its reference time is more than this ahead of the guest's: 10
/// ms, in units of 100 ns.
const AHEAD: u64 = 100_000;

/// The contents of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeSync {
    /// The sample of the host's time.
    pub(crate) sample: Sample,
    /// Whether the guest shall step its clock. Hosts set this after a boot or a restore.
    pub(crate) sync: bool,
    /// The quality of the host's clock. `None` before version 4, or if the message is too short.
    pub(crate) quality: Option<Quality>,
    /// How far the sample's reference time is ahead of the guest's, in units of 100 ns, if more
    /// than 10 ms; otherwise 0. The two reference times drift apart in this case, so the sample
    /// counts as taken now.
    pub(crate) ahead: u64,
}

/// The quality of the host's clock: whether this clock is synchronised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quality {
    /// NTP's leap indicator. 0: no leap second is near. 1: the last minute of the day has 61
    /// seconds. 2: the last minute has 59 seconds. 3: the clock is not synchronised.
    pub(crate) leap: u8,
    /// NTP's stratum: the number of servers between the clock and a reference clock, plus 1.
    pub(crate) stratum: u8,
}

impl TimeSync {
    /// Reads the message in `body`, which was received at reference time `now`.
    ///
    /// Returns `None` if the message is too short, or if the host's time is before 1970 or after
    /// 2262: such times do not fit into Unix time in nanoseconds.
    pub(crate) fn parse(version: Version, body: &[u8], now: u64) -> Option<Self> {
        let (flags, taken) = if version.major >= 4 {
            (
                *body.get(FLAGS_V4)?,
                // Since version 4, the sample contains the time at which it was taken.
                wire::u64_at(body, REFERENCE_TIME),
            )
        } else {
            (*body.get(FLAGS_V1)?, now)
        };
        let since_epoch = wire::u64_at(body, HOST_TIME).checked_sub(UNIX_EPOCH)?;
        // A sample from the future counts as taken now: only the reference times can be wrong.
        let age = now.saturating_sub(taken);
        let ahead = taken.saturating_sub(now);
        let unix_time = since_epoch
            .checked_add(age)
            .filter(|units| *units <= LATEST)?;
        Some(Self {
            sample: Sample {
                offset: unix_time.wrapping_sub(now),
                reference: now,
            },
            sync: flags & FLAG_SYNC != 0,
            quality: Quality::read(version, body),
            ahead: if ahead > AHEAD { ahead } else { 0 },
        })
    }
}

impl Quality {
    /// Reads the quality from the message in `body`, if the message contains it.
    fn read(version: Version, body: &[u8]) -> Option<Self> {
        match (body.get(LEAP), body.get(STRATUM)) {
            (Some(&leap), Some(&stratum)) if version.major >= 4 => Some(Self { leap, stratum }),
            _ => None,
        }
    }
}

/// The host's time at a reference time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Unix time minus the reference time, in units of 100 ns, modulo 2^64.
    pub(crate) offset: u64,
    /// The reference time, in units of 100 ns.
    pub(crate) reference: u64,
}

/// The error if a sample is too old, or is from before the reference time was set back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale;

impl Sample {
    /// Returns the age of the sample at reference time `now`, both in units of 100 ns.
    ///
    /// Fails if the reference time was set back by more than 1 ms.
    #[inline(always)]
    pub(crate) fn age(&self, now: u64) -> Result<u64, Stale> {
        // Processors may read slightly different reference times. A greater difference means that
        // the reference time was set back. Then the age is unknown.
        match now.checked_sub(self.reference) {
            Some(age) => Ok(age),
            None if self.reference - now <= APART => Ok(0),
            None => Err(Stale),
        }
    }

    /// Returns the host's time at reference time `now` (units of 100 ns), as Unix time in
    /// nanoseconds.
    ///
    /// Fails as [`Sample::age`] does, if the sample is more than 600 s old, or if the host's time
    /// is after 2262.
    pub(crate) fn at(&self, now: u64) -> Result<i64, Stale> {
        let age = self.age(now)?;
        if age > STALE {
            return Err(Stale);
        }
        let unix_time = self.offset.wrapping_add(self.reference + age);
        if unix_time > LATEST {
            return Err(Stale);
        }
        // CAST: The value is at most `LATEST * NSEC_PER_UNIT`, which fits.
        Ok((unix_time * NSEC_PER_UNIT) as i64)
    }
}

#[cfg(any(test, CONFIG_KUNIT = "y"))]
#[cfg_attr(not(test), kernel::prelude::kunit_tests(hv_utils_timesync))]
mod tests {
    use super::*;

    const V3: Version = Version::new(3, 0);
    const V4: Version = Version::new(4, 0);
    /// 2026-01-01 00:00:00 UTC, in seconds.
    const SECONDS: u64 = 1_767_225_600;
    const HOST: u64 = UNIX_EPOCH + SECONDS * 10_000_000;

    fn message(host: u64, reference: u64, flags: u8) -> [u8; 32] {
        let mut body = [0u8; 32];
        wire::put_u64(&mut body, HOST_TIME, host);
        wire::put_u64(&mut body, REFERENCE_TIME, reference);
        body[FLAGS_V4] = flags;
        body
    }

    fn time_at(parsed: Option<TimeSync>, now: u64) -> Result<i64, Stale> {
        parsed.map_or(Err(Stale), |message| message.sample.at(now))
    }

    #[test]
    fn the_epochs_differ() {
        let parsed = TimeSync::parse(V4, &message(HOST, 5_000, 0), 5_000);
        assert_eq!(time_at(parsed, 5_000), Ok(SECONDS as i64 * 1_000_000_000));
    }

    #[test]
    fn version_4_says_when_the_sample_was_taken() {
        // Taken at 5000, read at 8000, asked at 9000: 4000 units of 100 ns later.
        let parsed = TimeSync::parse(V4, &message(HOST, 5_000, 0), 8_000);
        let expected = SECONDS as i64 * 1_000_000_000 + 400_000;
        assert_eq!(time_at(parsed, 9_000), Ok(expected));
    }

    #[test]
    fn a_sample_from_the_future_was_taken_now() {
        const HOUR: u64 = 3600 * 10_000_000;
        let expected = Ok(SECONDS as i64 * 1_000_000_000);
        for (taken, ahead) in [
            (5_000, 0),
            (5_001, 0),
            (5_000 + AHEAD, 0),
            (5_001 + AHEAD, AHEAD + 1),
            (5_000 + HOUR, HOUR),
            (u64::MAX, u64::MAX - 5_000),
        ] {
            for flags in [0, FLAG_SYNC] {
                let parsed = TimeSync::parse(V4, &message(HOST, taken, flags), 5_000);
                assert_eq!(time_at(parsed, 5_000), expected);
                assert_eq!(parsed.map(|message| message.ahead), Some(ahead));
            }
        }
    }

    #[test]
    fn version_4_says_how_good_the_clock_is() {
        let mut body = message(HOST, 0, 0);
        (body[LEAP], body[STRATUM]) = (3, 16);
        let quality =
            |version, body: &[u8]| TimeSync::parse(version, body, 0).map(|message| message.quality);
        let expected = Quality {
            leap: 3,
            stratum: 16,
        };
        assert_eq!(quality(V4, &body), Some(Some(expected)));
        assert_eq!(quality(V4, &body[..STRATUM]), Some(None));
        assert_eq!(quality(V3, &body), Some(None));
    }

    #[test]
    fn older_versions_count_from_when_they_are_read() {
        let mut body = message(HOST, 1, 0);
        body[FLAGS_V1] = FLAG_SYNC;
        let parsed = TimeSync::parse(V3, &body, 8_000);
        assert_eq!(time_at(parsed, 8_000), Ok(SECONDS as i64 * 1_000_000_000));
        assert_eq!(parsed.map(|message| message.sync), Some(true));
    }

    #[test]
    fn only_sync_steps_the_clock() {
        for (flags, sync) in [(0, false), (1, true), (2, false), (3, true)] {
            let parsed = TimeSync::parse(V4, &message(HOST, 0, flags), 0);
            assert_eq!(parsed.map(|message| message.sync), Some(sync));
        }
    }

    #[test]
    fn short_bodies_are_refused() {
        let body = message(HOST, 0, 0);
        assert!(TimeSync::parse(V4, &body[..16], 0).is_none());
        assert!(TimeSync::parse(V4, &body[..17], 0).is_some());
        assert!(TimeSync::parse(V3, &body[..24], 0).is_none());
        assert!(TimeSync::parse(V3, &body[..25], 0).is_some());
    }

    #[test]
    fn times_that_unix_time_cannot_tell_are_refused() {
        assert!(TimeSync::parse(V4, &message(UNIX_EPOCH - 1, 0, 1), 0).is_none());
        assert!(TimeSync::parse(V4, &message(UNIX_EPOCH, 0, 1), 0).is_some());
        assert!(TimeSync::parse(V4, &message(u64::MAX, 0, 1), 0).is_none());
        assert!(TimeSync::parse(V4, &message(HOST, 0, 1), 1 << 63).is_none());
    }

    #[test]
    fn a_sample_goes_stale() {
        let taken = 1_000_000;
        let parsed = TimeSync::parse(V4, &message(HOST, taken, 0), taken);
        assert!(time_at(parsed, taken + STALE).is_ok());
        assert_eq!(time_at(parsed, taken + 1 + STALE), Err(Stale));
        assert_eq!(time_at(parsed, taken - APART), time_at(parsed, taken));
        assert_eq!(time_at(parsed, taken - APART - 1), Err(Stale));
        let age = |now| parsed.map(|message| message.sample.age(now));
        assert_eq!(age(taken + 1 + STALE), Some(Ok(STALE + 1)));
        assert_eq!(age(taken - APART), Some(Ok(0)));
        assert_eq!(age(taken - APART - 1), Some(Err(Stale)));
    }

    #[test]
    fn no_time_is_later_than_the_latest() {
        // A sample of the latest time but for a second.
        const SECOND: u64 = 10_000_000;
        let parsed = TimeSync::parse(V4, &message(UNIX_EPOCH + LATEST - SECOND, 0, 0), 0);
        let latest = Ok((LATEST * NSEC_PER_UNIT) as i64);
        assert_eq!(time_at(parsed, SECOND), latest);
        assert_eq!(time_at(parsed, SECOND + 1), Err(Stale));
    }
}
