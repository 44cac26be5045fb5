// SPDX-License-Identifier: GPL-2.0

//! A PC's real-time clock (MC146818), read-only. The kernel sets its clock from it at boot.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

/// The clock and its index register.
#[derive(Clone)]
pub struct Rtc {
    index: u8,
    /// Seconds that this clock is ahead of the host's.
    offset: i64,
}

impl Rtc {
    /// A clock that is `offset` seconds ahead of the host's.
    pub fn new(offset: i64) -> Self {
        Self { index: 0, offset }
    }

    /// Port 0x70: selects a register.
    pub fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// Port 0x71: reads the selected register.
    pub fn read(&self) -> u8 {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs() as i64);
        register(self.index, unix + self.offset)
    }
}

/// The value of register `index` at `unix` seconds since 1970.
fn register(index: u8, unix: i64) -> u8 {
    let bcd = |value: i64| (((value / 10) << 4) | (value % 10)) as u8;
    let (year, month, day) = date(unix.div_euclid(86400));
    let second = unix.rem_euclid(86400);
    match index {
        0x00 => bcd(second % 60),
        0x02 => bcd(second / 60 % 60),
        0x04 => bcd(second / 3600),
        0x06 => bcd((unix.div_euclid(86400) + 4).rem_euclid(7) + 1),
        0x07 => bcd(day),
        0x08 => bcd(month),
        0x09 => bcd(year % 100),
        0x32 => bcd(year / 100),
        0x0a => 0x26, // Running, no update in progress.
        0x0b => 0x02, // 24 hours, BCD.
        0x0d => 0x80, // The battery is good.
        _ => 0,
    }
}

/// The Gregorian date of a day, counted from 1970-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    // Years begin in March here, so the leap day is a year's last.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day = days.rem_euclid(146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let month_day = day - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 {
        (month + 3, year)
    } else {
        (month - 9, year + 1)
    };
    (year + era * 400, month, month_day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_date_and_time_in_bcd() {
        // 2026-11-23 03:42:49 UTC, a Monday.
        let at = 1_795_405_369;
        let read: Vec<u8> = [0x32, 9, 8, 7, 4, 2, 0, 6]
            .iter()
            .map(|&index| register(index, at))
            .collect();
        assert_eq!(read, [0x20, 0x26, 0x11, 0x23, 0x03, 0x42, 0x49, 2]);
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
    }
}
