// SPDX-License-Identifier: GPL-2.0

//! Hyper-V sockets: the ids of their services, and the packets of a connection.
//!
//! Source: `net/vmw_vsock/hyperv_transport.c`. Linux guests identify a service by its AF_VSOCK port: the first 32 bits of
//! the id. The rest of the id is fixed. Packets have a pipe header, `struct vmpipe_proto_header`: the type 1, and the
//! number of bytes that follow. A packet without bytes ends its direction.

use crate::bytes::u32_at;
use crate::guid::Guid;
use crate::service::Service;
use crate::vmbus::packet::Packet;
use crate::vmbus::packet::DATA_INBAND;

/// The type of a packet with data.
const DATA: u32 = 1;
/// Bytes of the header.
const HEADER: usize = 8;
/// The maximum number of data bytes in a packet.
pub const MOST: usize = 16 << 10;

/// The id of the service at a port.
pub fn service_id(port: u32) -> Guid {
    let mut id = Service::Socket.class();
    id.0[..4].copy_from_slice(&port.to_le_bytes());
    id
}

/// The port of a service. `None` for an id of another kind.
pub fn port(id: &Guid) -> Option<u32> {
    let port = u32_at(&id.0, 0)?;
    (service_id(port) == *id).then_some(port)
}

/// The packet with these bytes, at most [`MOST`]. No bytes make the last packet.
pub fn packet(data: &[u8]) -> Packet {
    let mut payload = Vec::with_capacity(HEADER + data.len());
    payload.extend(DATA.to_le_bytes());
    payload.extend((data.len() as u32).to_le_bytes());
    payload.extend(data);
    Packet::inband(payload)
}

/// The bytes in a packet. Fails if the packet is malformed.
pub fn data(packet: &Packet) -> Result<&[u8], String> {
    if packet.kind != DATA_INBAND {
        return Err(format!("packet of type {}", packet.kind));
    }
    bytes(&packet.payload)
}

fn bytes(payload: &[u8]) -> Result<&[u8], String> {
    let (Some(kind), Some(length)) = (u32_at(payload, 0), u32_at(payload, 4)) else {
        return Err(format!("packet of {} bytes", payload.len()));
    };
    if kind != DATA {
        return Err(format!("pipe packet of type {kind}"));
    }
    match payload.get(HEADER..HEADER.saturating_add(length as usize)) {
        Some(data) if data.len() <= MOST => Ok(data),
        _ => Err(format!("{length} bytes of data in {}", payload.len())),
    }
}

/// One line about a packet's payload.
pub fn describe(payload: &[u8]) -> String {
    match bytes(payload) {
        Ok([]) => "end".to_owned(),
        Ok(data) => format!("{} bytes", data.len()),
        Err(why) => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_in_ids() {
        let id = service_id(0x1234_5678);
        assert_eq!(id.to_string(), "12345678-facb-11e6-bd58-64006a7986d3");
        assert_eq!(port(&id), Some(0x1234_5678));
        assert_eq!(port(&Service::Echo.class()), None);
    }

    #[test]
    fn packets_carry_bytes() {
        let carried = packet(b"hello");
        assert_eq!(carried.payload[..8], [1, 0, 0, 0, 5, 0, 0, 0]);
        // What fills it up in the ring is none of it.
        let read = Packet::decode(&carried.encode()).unwrap();
        assert_eq!(data(&read), Ok(&b"hello"[..]));
        assert_eq!(data(&packet(b"")), Ok(&b""[..]));
        assert_eq!(describe(&read.payload), "5 bytes");
        assert_eq!(describe(&packet(b"").payload), "end");
    }

    #[test]
    fn others_carry_none() {
        let mut wrong = packet(b"hello");
        wrong.kind = 7;
        assert_eq!(data(&wrong), Err("packet of type 7".to_owned()));
        for (payload, why) in [
            (&[1, 0, 0, 0][..], "packet of 4 bytes"),
            (&[2, 0, 0, 0, 0, 0, 0, 0], "pipe packet of type 2"),
            (&[1, 0, 0, 0, 9, 0, 0, 0], "9 bytes of data in 8"),
            (
                &[1, 0, 0, 0, 255, 255, 255, 255],
                "4294967295 bytes of data in 8",
            ),
        ] {
            assert_eq!(data(&Packet::inband(payload.to_vec())), Err(why.to_owned()));
        }
        assert!(data(&packet(&[0; MOST])).is_ok());
        assert!(data(&packet(&[0; MOST + 1])).is_err());
    }
}
