// SPDX-License-Identifier: GPL-2.0

//! The wall clock, and deadlines of delayed work.
//!
//! C headers: [`include/linux/jiffies.h`](srctree/include/linux/jiffies.h),
//! [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::bindings;
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

/// A point in time of the clock of timers and delayed work, in jiffies. The clock does not advance
/// while the system is suspended. When a timer for a deadline has expired, the deadline is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Jiffies);

impl Deadline {
    /// Creates the deadline `delay` from now. May be called in any context.
    pub fn after(delay: Delta) -> Self {
        let delay = delay.as_millis().clamp(0, i64::from(Msecs::MAX));
        // CAST: `delay` was clamped to the range of the type.
        Self(jiffies().wrapping_add(msecs_to_jiffies(delay as Msecs)))
    }

    /// Returns whether the deadline is over.
    pub fn is_over(self) -> bool {
        self.left() == 0
    }

    /// Returns the number of jiffies until the deadline; 0 if it is over.
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

fn jiffies() -> Jiffies {
    let counter = &raw const bindings::jiffies;

    // SAFETY: The counter may be read at any time.
    unsafe { counter.read_volatile() }
}
