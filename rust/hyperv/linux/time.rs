// SPDX-License-Identifier: GPL-2.0

//! The wall clock, and moments by which delayed work runs.
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

/// Reads the wall clock: Unix time in nanoseconds. May be called in any context but an NMI.
pub fn wall_clock() -> i64 {
    RealTime::ktime_get()
}

/// Steps the wall clock to `unix_time`, in nanoseconds. May sleep.
///
/// Fails with `EINVAL` for a time that the clock can't be set to, e.g. one before the boot of a
/// system that was up longer.
pub fn set_wall_clock(unix_time: i64) -> Result {
    // SAFETY: Has no requirements.
    let time = unsafe { bindings::ns_to_timespec64(unix_time) };

    // SAFETY: `time` is valid for reads.
    to_result(unsafe { bindings::do_settimeofday64(&time) })
}

/// A moment in time, by the clock that timers and delayed work run by: once these have run, the
/// moment is over. It stands still while the system is suspended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Jiffies);

impl Deadline {
    /// The moment `delay` from now. May be called in any context.
    pub fn after(delay: Delta) -> Self {
        let delay = delay.as_millis().clamp(0, i64::from(Msecs::MAX));
        // CAST: Clamped.
        Self(jiffies().wrapping_add(msecs_to_jiffies(delay as Msecs)))
    }

    /// Returns whether that is over.
    pub fn is_over(self) -> bool {
        self.left() == 0
    }

    /// Ticks until then.
    pub(crate) fn left(self) -> Jiffies {
        let left = self.0.wrapping_sub(jiffies());
        // The count goes round: what is more than half of it away is over.
        if left > Jiffies::MAX / 2 {
            0
        } else {
            left
        }
    }

    /// The one of the two that is over first.
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
