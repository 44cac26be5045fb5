// SPDX-License-Identifier: GPL-2.0

//! A packet in a ring: `struct vmpacket_descriptor` of `include/linux/hyperv.h`, and a payload.

use crate::bytes::u16_at;
use crate::bytes::u64_at;

/// VM_PKT_DATA_INBAND
pub const DATA_INBAND: u16 = 6;
/// VM_PKT_COMP
pub const COMPLETION: u16 = 11;
/// Packet flag: the sender requests a completion (VMBUS_DATA_PACKET_FLAG_COMPLETION_REQUESTED).
pub const COMPLETION_REQUESTED: u16 = 1;
const DESCRIPTOR: usize = 16;

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The packet type, mostly [`DATA_INBAND`].
    pub kind: u16,
    /// Packet flags. Only [`COMPLETION_REQUESTED`] exists.
    pub flags: u16,
    /// The VMBus transaction id.
    pub transaction_id: u64,
    /// The payload. In a ring it is padded to a multiple of 8 bytes.
    pub payload: Vec<u8>,
}

impl Packet {
    /// An in-band packet with transaction id 0. Fact: the services' hosts send no other packets.
    pub fn inband(payload: Vec<u8>) -> Self {
        Self {
            kind: DATA_INBAND,
            flags: 0,
            transaction_id: 0,
            payload,
        }
    }

    /// Descriptor and payload in the layout of a ring.
    pub fn encode(&self) -> Vec<u8> {
        let length = (DESCRIPTOR + self.payload.len()).next_multiple_of(8);
        let mut out = Vec::with_capacity(length);
        out.extend(self.kind.to_le_bytes());
        out.extend(((DESCRIPTOR / 8) as u16).to_le_bytes());
        out.extend(((length / 8) as u16).to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        out.extend(self.transaction_id.to_le_bytes());
        out.extend(&self.payload);
        out.resize(length, 0);
        out
    }

    /// Decodes a packet from [`crate::ring::Ring::read`]. `None` if the payload's offset is impossible.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let offset = usize::from(u16_at(bytes, 2)?) * 8;
        if offset < DESCRIPTOR {
            return None;
        }
        Some(Self {
            kind: u16_at(bytes, 0)?,
            flags: u16_at(bytes, 6)?,
            transaction_id: u64_at(bytes, 8)?,
            payload: bytes.get(offset..)?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_ring() {
        let packet = Packet {
            kind: 6,
            flags: 1,
            transaction_id: 77,
            payload: vec![1, 2, 3, 4, 5, 6, 7, 8],
        };
        let bytes = packet.encode();
        assert_eq!(bytes[..8], [6, 0, 2, 0, 3, 0, 1, 0]);
        assert_eq!(Packet::decode(&bytes), Some(packet));
        assert_eq!(Packet::inband(vec![9]).encode().len(), 24);
    }

    #[test]
    fn a_bad_offset_is_no_packet() {
        let mut bytes = Packet::inband(vec![0; 8]).encode();
        bytes[2] = 1;
        assert_eq!(Packet::decode(&bytes), None);
        bytes[2] = 9;
        assert_eq!(Packet::decode(&bytes), None);
    }
}
