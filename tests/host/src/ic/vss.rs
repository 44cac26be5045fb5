// SPDX-License-Identifier: GPL-2.0

//! Volume shadow copy messages.
//!
//! Source: `struct hv_vss_msg` of `include/uapi/linux/hyperv.h`.

use crate::bytes::u32_at;
use crate::bytes::u8_at;

/// Operation: begins a snapshot set.
pub const CREATE: u8 = 0;
/// Operation: deletes a snapshot set.
pub const DELETE: u8 = 1;
/// Operation: asks whether the guest supports backup while it runs.
pub const HOT_BACKUP: u8 = 2;
/// Operation: asks what to do after a backup.
pub const GET_DM_INFO: u8 = 3;
/// Operation: reports that the backup is complete.
pub const BU_COMPLETE: u8 = 4;
/// Operation: freezes file systems.
pub const FREEZE: u8 = 5;
/// Operation: thaws file systems.
pub const THAW: u8 = 6;
/// Operation: recovers a snapshot. For Windows guests.
pub const AUTO_RECOVER: u8 = 7;
/// Operation: asks for the guest's cluster. From version 6.0 on.
pub const QUERY_CLUSTER: u8 = 8;

/// The flags of a guest that needs no recovery after a backup.
pub const NO_AUTO_RECOVERY: u32 = 5;

/// Size of most bodies in bytes.
const LENGTH: usize = 12;
/// Disks in a list.
const DISKS: usize = 260;
/// Size of a disk's address in bytes: bus, controller, port, target, number.
const DISK: usize = 24;
/// Size of a body with a list of disks: operation, backup type, flags, disks.
const DISKS_LENGTH: usize = 20 + DISKS * DISK;
/// Size of the longest body: a second list, of the shadow copy's disks, follows the first.
pub const LONGEST: usize = DISKS_LENGTH + DISKS * DISK;
/// Size of a cluster query: identity, sizes, a list of disks, a list of the disks' states. Version 7.0 appends the time
/// of the last move.
const CLUSTER_LENGTH: usize = 8 + 16 + 8 + DISKS * DISK + DISKS * 4;

/// The body of a request of version 5.0, or of 6.0 for an operation that 5.0 lacks.
pub fn body(operation: u8) -> Vec<u8> {
    let length = match operation {
        FREEZE | AUTO_RECOVER => DISKS_LENGTH,
        QUERY_CLUSTER => CLUSTER_LENGTH,
        _ => LENGTH,
    };
    let mut body = vec![0; length];
    body[0] = operation;
    body
}

/// The flags in a reply's body.
pub fn flags(body: &[u8]) -> Option<u32> {
    u32_at(body, 8)
}

pub(super) fn describe(body: &[u8]) -> String {
    const NAMES: [&str; 9] = [
        "CREATE",
        "DELETE",
        "HOT_BACKUP",
        "GET_DM_INFO",
        "BU_COMPLETE",
        "FREEZE",
        "THAW",
        "AUTO_RECOVER",
        "QUERY_CLUSTER",
    ];
    match (u8_at(body, 0), flags(body)) {
        (Some(operation), Some(flags)) => match NAMES.get(usize::from(operation)) {
            Some(name) => format!("{name} flags {flags}"),
            None => format!("operation {operation} flags {flags}"),
        },
        _ => format!("{} bytes", body.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_protocol() {
        let mut reply = body(HOT_BACKUP);
        assert_eq!(reply.len(), 12);
        reply[8] = 5;
        assert_eq!(flags(&reply), Some(NO_AUTO_RECOVERY));
        assert_eq!(describe(&reply), "HOT_BACKUP flags 5");
        assert_eq!(body(FREEZE).len(), 6260);
        assert_eq!(body(QUERY_CLUSTER).len(), 7312);
        assert_eq!(LONGEST, 12_500);
        assert_eq!(describe(&body(9)), "operation 9 flags 0");
    }
}
