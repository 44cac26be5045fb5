// SPDX-License-Identifier: GPL-2.0

//! Heartbeat messages. The host sends a sequence number. The guest answers with the next number and, from 3.0 on, the
//! state of its applications.

use std::time::Duration;

use crate::bytes::u32_at;
use crate::bytes::u64_at;

/// The interval between beats. Inference.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// Size of the reserved area in a host's beat, in bytes. Inference: from the definition of the message. The C structure
/// has 28 bytes.
pub const RESERVED: usize = 4;

/// The body of a beat: sequence number, application state 0, and `reserved` bytes.
pub fn body(sequence: u64, reserved: usize) -> Vec<u8> {
    let mut body = sequence.to_le_bytes().to_vec();
    body.resize(8 + 4 + reserved, 0);
    body
}

/// The sequence number in a body.
pub fn sequence(body: &[u8]) -> Option<u64> {
    u64_at(body, 0)
}

/// The application state in a body: 0 unknown, 1 healthy, 2 critical, 3 stopped.
pub fn application_state(body: &[u8]) -> Option<u32> {
    u32_at(body, 8)
}

pub(super) fn describe(body: &[u8]) -> String {
    match (sequence(body), application_state(body)) {
        (Some(sequence), Some(state)) => format!("sequence {sequence} state {state}"),
        (Some(sequence), None) => format!("sequence {sequence}"),
        _ => format!("{} bytes", body.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_is_as_long_as_a_hosts() {
        assert_eq!(body(3, RESERVED).len(), 16);
        assert_eq!(sequence(&body(3, 0)), Some(3));
        assert_eq!(application_state(&body(3, 0)), Some(0));
        assert_eq!(describe(&[0; 9]), "sequence 0");
    }
}
