// SPDX-License-Identifier: GPL-2.0

//! Volume shadow copy's messages.
//!
//! Source: `struct hv_vss_msg` of `include/uapi/linux/hyperv.h`.

use crate::bytes::u32_at;
use crate::bytes::u8_at;

/// Operation: a snapshot set begins.
pub const CREATE: u8 = 0;
/// Operation: a snapshot set is dropped.
pub const DELETE: u8 = 1;
/// Operation: can the guest be backed up while it runs?
pub const HOT_BACKUP: u8 = 2;
/// Operation: what is to be done after a backup?
pub const GET_DM_INFO: u8 = 3;
/// Operation: the backup is complete.
pub const BU_COMPLETE: u8 = 4;
/// Operation: file systems are to be frozen.
pub const FREEZE: u8 = 5;
/// Operation: file systems are to be thawed.
pub const THAW: u8 = 6;
/// Operation: recovery of a snapshot, which Windows guests know.
pub const AUTO_RECOVER: u8 = 7;
/// Operation: which cluster is the guest in? From version 6.0 on.
pub const QUERY_CLUSTER: u8 = 8;

/// The flags of a guest that needs no recovery after a backup.
pub const NO_AUTO_RECOVERY: u32 = 5;

/// Bytes of the bodies of most operations.
const LENGTH: usize = 12;
/// Disks in a list.
const DISKS: usize = 260;
/// Bytes that say which disk it is: bus, controller, port, target, number.
const DISK: usize = 24;
/// Bytes of a list of disks with the operation, the kind of backup and flags in front of it.
const DISKS_LENGTH: usize = 20 + DISKS * DISK;
/// Bytes of the same with the disks of the shadow copy behind it: no body is longer.
pub const LONGEST: usize = DISKS_LENGTH + DISKS * DISK;
/// Bytes of a query of the cluster: identity, sizes, a list of disks and one of their states. Version 7.0 has the time
/// of the last move behind it.
const CLUSTER_LENGTH: usize = 8 + 16 + 8 + DISKS * DISK + DISKS * 4;

/// The body of a request of version 5.0 or, where it has one of its own, 6.0.
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

/// The flags in a reply.
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
