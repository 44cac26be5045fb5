// SPDX-License-Identifier: GPL-2.0

//! The wall clock, and points in time in jiffies.
//!
//! C headers: [`include/linux/jiffies.h`](srctree/include/linux/jiffies.h),
//! [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::{
    bindings,
    linux::rwonce::RwOnce, //
};
use kernel::{
    error::to_result,
    prelude::*,
    time::{
        msecs_to_jiffies,
        ClockSource,
        Delta,
        Jiffies,
        Msecs,
        RealTime, //
    },
};

/// Reads the wall clock: Unix time in nanoseconds. May be called in any context except NMI.
pub fn wall_clock() -> i64 {
    RealTime::ktime_get()
}

/// Steps the wall clock to `unix_time`, in nanoseconds. May sleep.
///
/// Fails with `EINVAL` for times that the kernel rejects: before 1970, less than `CLOCK_MONOTONIC`,
/// or at least `TIME_SETTOD_SEC_MAX`.
pub fn set_wall_clock(unix_time: i64) -> Result {
    // SAFETY: Has no requirements.
    let time = unsafe { bindings::ns_to_timespec64(unix_time) };

    // SAFETY: `time` is valid for reads.
    to_result(unsafe { bindings::do_settimeofday64(&time) })
}

/// A point in time in jiffies, the clock of timers and delayed work. The clock does not advance
/// while the system is suspended. When a timer for a deadline has expired, the deadline is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Jiffies);

impl Deadline {
    /// Creates the deadline `delay` from now, in steps of one jiffy. A negative `delay` counts as
    /// 0. May be called in any context.
    pub fn after(delay: Delta) -> Self {
        let delay = delay.as_millis().clamp(0, i64::from(Msecs::MAX));
        // CAST: `delay` was clamped to the range of the type.
        Self(jiffies().wrapping_add(msecs_to_jiffies(delay as Msecs)))
    }

    /// Returns whether the deadline is over.
    pub fn is_over(self) -> bool {
        self.left() == 0
    }

    /// Returns the number of jiffies until the deadline; 0 if the deadline is over.
    pub(crate) fn left(self) -> Jiffies {
        let left = self.0.wrapping_sub(jiffies());
        // Jiffies wrap. If more than half of the range is left, the deadline is over.
        if left > Jiffies::MAX / 2 {
            0
        } else {
            left
        }
    }

    /// Returns the earlier of two deadlines.
    pub fn min(self, other: Self) -> Self {
        if other.left() < self.left() {
            other
        } else {
            self
        }
    }
}

/// A past point in time in jiffies.
#[derive(Clone, Copy)]
pub struct Moment(Jiffies);

impl Moment {
    /// Returns the current time. May be called in any context.
    pub fn now() -> Self {
        Self(jiffies())
    }

    /// Returns the time since this moment in milliseconds, in steps of one jiffy. Time during which
    /// the system was suspended does not count.
    pub fn age(self) -> u64 {
        let ticks = jiffies().wrapping_sub(self.0);

        // SAFETY: Has no requirements.
        unsafe { bindings::jiffies64_to_msecs(ticks as u64) }
    }
}

/// The moment since which a condition holds, if it holds. One context at a time may write; any
/// context may read.
pub struct Since(RwOnce<Jiffies>);

impl Since {
    /// Represents a condition that does not hold. If the counter of jiffies has this value when the
    /// condition begins to hold, the moment is recorded as one jiffy later.
    const NEVER: Jiffies = 0;

    /// Creates a condition that does not hold.
    pub const fn never() -> Self {
        Self(RwOnce::new(Self::NEVER))
    }

    /// Records that the condition holds from now on. May be called in any context.
    pub fn begin(&self) {
        let Moment(now) = Moment::now();
        self.0.write(if now == Self::NEVER { 1 } else { now });
    }

    /// Records that the condition no longer holds. May be called in any context.
    pub fn end(&self) {
        self.0.write(Self::NEVER);
    }

    /// Returns the moment since which the condition holds, or `None` if it does not hold. May be
    /// called in any context.
    pub fn get(&self) -> Option<Moment> {
        let moment = self.0.read();
        (moment != Self::NEVER).then_some(Moment(moment))
    }
}

/// Returns the current number of jiffies, which wraps.
fn jiffies() -> Jiffies {
    let counter = &raw const bindings::jiffies;

    // SAFETY: The counter may be read at any time.
    unsafe { counter.read_volatile() }
}
