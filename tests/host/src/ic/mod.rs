// SPDX-License-Identifier: GPL-2.0

//! The integration services, from the side of a Windows host.
//!
//! [`frame`] is the framing of all services, [`device`] the host's side of one service: negotiation, replies, timers.
//! Each other module has the messages of one service.

pub mod addresses;
pub mod device;
pub mod fcopy;
pub mod frame;
pub mod heartbeat;
pub mod kvp;
pub mod shutdown;
pub mod text;
pub mod timesync;
pub mod vss;

/// The request succeeded.
pub const S_OK: u32 = 0;
/// E_FAIL
pub const E_FAIL: u32 = 0x8000_4005;
/// ERROR_NOT_SUPPORTED as an HRESULT.
pub const E_NOT_SUPPORTED: u32 = 0x8007_0032;
/// E_INVALIDARG
pub const E_INVALID_ARGUMENT: u32 = 0x8007_0057;
/// ERROR_NO_MORE_ITEMS as an HRESULT: the end of an enumeration, or an absent key.
pub const E_NO_MORE_ITEMS: u32 = 0x8007_0103;
/// ERROR_FILE_EXISTS as an HRESULT.
pub const E_FILE_EXISTS: u32 = 0x8007_0050;
/// ERROR_FILENAME_EXCED_RANGE as an HRESULT.
pub const E_NAME_TOO_LONG: u32 = 0x8007_00ce;
/// ERROR_DISK_FULL as an HRESULT.
pub const E_DISK_FULL: u32 = 0x8007_0070;

/// The same moment on all clocks of a host.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The monotonic clock.
    pub instant: std::time::Instant,
    /// The guest's reference time in 100 ns units.
    pub reference: u64,
    /// The wall clock in 100 ns units since 1601-01-01 00:00 UTC.
    pub wall: u64,
}

/// 1970-01-01, in 100 ns units since 1601-01-01.
pub const UNIX_EPOCH_1601: u64 = 116_444_736_000_000_000;

impl Moment {
    /// The current moment, at the guest's `reference` time.
    pub fn now(reference: u64) -> Self {
        let unix = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            instant: std::time::Instant::now(),
            reference,
            wall: UNIX_EPOCH_1601 + (unix.as_nanos() / 100) as u64,
        }
    }
}
