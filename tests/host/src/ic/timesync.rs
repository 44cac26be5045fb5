// SPDX-License-Identifier: GPL-2.0

//! Time synchronization messages.

use std::time::Duration;

use super::Moment;
use crate::bytes::u64_at;
use crate::bytes::u8_at;
use crate::service::Version;

/// The interval between samples. Fact.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Flag: step the clock.
pub const SYNC: u8 = 1;
/// Flag: a sample.
pub const SAMPLE: u8 = 2;

/// The host's time at `moment`, in the layout of `version`. Fact: a 4.0 message ends with padding to a multiple of 8
/// bytes, unlike the C structure. Inference: older ones are padded, too.
pub fn body(version: Version, moment: &Moment, flags: u8) -> Vec<u8> {
    let mut body = moment.wall.to_le_bytes().to_vec();
    if version >= (4, 0) {
        body.extend(moment.reference.to_le_bytes());
        body.extend([flags, 0, 0, 0, 0, 0, 0, 0]); // Leap indicator, stratum, reserved.
    } else {
        body.extend([0; 16]); // The child's time and the round trip time.
        body.extend([flags, 0, 0, 0]); // Reserved.
    }
    body
}

/// Sets the quality of the host's clock in a body of version 4: NTP's leap indicator and stratum. Fact: a host sends 0
/// and 0.
pub fn with_quality(mut body: Vec<u8>, leap: u8, stratum: u8) -> Vec<u8> {
    body[17..19].copy_from_slice(&[leap, stratum]);
    body
}

pub(super) fn describe(version: Version, body: &[u8]) -> String {
    let at = if version >= (4, 0) { 16 } else { 24 };
    match (u64_at(body, 0), u8_at(body, at)) {
        (Some(_), Some(SYNC)) => "SYNC".to_owned(),
        (Some(_), Some(SAMPLE)) => "SAMPLE".to_owned(),
        (Some(_), Some(flags)) => format!("flags {flags}"),
        _ => format!("{} bytes", body.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_depends_on_the_version() {
        let moment = Moment {
            instant: std::time::Instant::now(),
            reference: 2,
            wall: 1,
        };
        let new = body((4, 0), &moment, SYNC);
        assert_eq!((new.len(), new[0], new[8], new[16]), (24, 1, 2, 1));
        let good = with_quality(new.clone(), 3, 4);
        assert_eq!((good.len(), &good[16..20]), (24, &[SYNC, 3, 4, 0][..]));
        let old = body((3, 0), &moment, SAMPLE);
        assert_eq!((old.len(), old[24]), (28, 2));
        assert_eq!(describe((4, 0), &new), "SYNC");
        assert_eq!(describe((1, 0), &old), "SAMPLE");
    }
}
