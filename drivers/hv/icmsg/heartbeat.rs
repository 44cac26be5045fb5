// SPDX-License-Identifier: GPL-2.0

//! Heartbeat messages.
//!
//! | Body offset | Field                                            |
//! | ----------- | ------------------------------------------------ |
//! | 0           | sequence number u64, incremented in the answer   |
//! | 8           | application state u32, since version 3           |
//!
//! The host may leave out any part of the body after the sequence number.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)
//! (`struct heartbeat_msg_data`).

use super::{
    wire,
    Version, //
};

const SEQUENCE: usize = 0;
const APPLICATION_STATE: usize = 8;

/// State of the guest's applications, reported in the answer to a heartbeat.
///
/// The numbers are those of `ApplicationState` in OpenVMM, Microsoft's open-source virtual machine
/// monitor (crate `hyperv_ic_protocol`). The `VMHeartbeatStatus` of PowerShell has other numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum ApplicationState {
    /// User space has written no state.
    Unknown = 0,
    /// The applications work normally.
    Healthy = 1,
    /// An application has failed. A failover cluster may restart or move the virtual machine.
    Critical = 2,
    /// The applications do not run.
    Stopped = 3,
}

impl ApplicationState {
    const ALL: [Self; 4] = [Self::Unknown, Self::Healthy, Self::Critical, Self::Stopped];

    /// Returns the state with this number, `Unknown` if there is none.
    pub(crate) fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Healthy,
            2 => Self::Critical,
            3 => Self::Stopped,
            _ => Self::Unknown,
        }
    }

    /// Returns the state with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Returns the name of the state.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Critical => "critical",
            Self::Stopped => "stopped",
        }
    }
}

/// Changes the heartbeat in `body` into its answer. Returns `None` if `body` is too short for a
/// sequence number.
#[must_use]
pub(crate) fn answer(version: Version, body: &mut [u8], state: ApplicationState) -> Option<()> {
    if body.len() < SEQUENCE + 8 {
        return None;
    }
    let next = wire::u64_at(body, SEQUENCE).wrapping_add(1);
    wire::put_u64(body, SEQUENCE, next);
    if version.major >= 3 && body.len() >= APPLICATION_STATE + 4 {
        wire::put_u32(body, APPLICATION_STATE, state as u32);
    }
    Some(())
}

#[cfg(any(test, CONFIG_KUNIT = "y"))]
#[cfg_attr(not(test), kernel::prelude::kunit_tests(hv_utils_heartbeat))]
mod tests {
    use super::*;

    const V1: Version = Version::new(1, 0);
    const V3: Version = Version::new(3, 0);

    #[test]
    fn the_sequence_number_is_counted_up() {
        let mut body = [0u8; 8];
        wire::put_u64(&mut body, 0, 41);
        assert!(answer(V3, &mut body, ApplicationState::Healthy).is_some());
        assert_eq!(wire::u64_at(&body, 0), 42);
    }

    #[test]
    fn the_sequence_number_wraps() {
        let mut body = [0xffu8; 8];
        assert!(answer(V1, &mut body, ApplicationState::Healthy).is_some());
        assert_eq!(body, [0; 8]);
    }

    #[test]
    fn the_state_is_reported_from_version_3_on() {
        let mut body = [0u8; 40];
        assert!(answer(V3, &mut body, ApplicationState::Healthy).is_some());
        assert_eq!(wire::u32_at(&body, 8), 1);
        assert!(body[12..].iter().all(|byte| *byte == 0));

        let mut body = [0u8; 40];
        assert!(answer(V1, &mut body, ApplicationState::Healthy).is_some());
        assert_eq!(wire::u32_at(&body, 8), 0);
    }

    #[test]
    fn states_have_names_and_numbers() {
        for (number, state) in (0..).zip(ApplicationState::ALL) {
            assert_eq!(state as u32, number);
            assert_eq!(ApplicationState::from_number(number), state);
            assert_eq!(ApplicationState::from_name(state.name()), Some(state));
        }
        assert_eq!(ApplicationState::from_number(4), ApplicationState::Unknown);
        for name in ["", "Healthy", "healthy ", "1"] {
            assert_eq!(ApplicationState::from_name(name), None);
        }
    }

    #[test]
    fn a_body_may_end_in_the_middle_of_the_state() {
        let mut body = [0u8; 11];
        assert!(answer(V3, &mut body, ApplicationState::Healthy).is_some());
        assert_eq!(&body[8..], &[0; 3]);
    }

    #[test]
    fn a_body_without_sequence_number_is_refused() {
        let mut body = [3u8; 7];
        assert!(answer(V3, &mut body, ApplicationState::Healthy).is_none());
        assert_eq!(body, [3; 7]);
    }
}
