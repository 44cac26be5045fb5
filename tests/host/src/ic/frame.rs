// SPDX-License-Identifier: GPL-2.0

//! The framing of the integration services: pipe header, IC header, body, and the body of a negotiation.
//!
//! Source: `struct vmbuspipe_hdr`, `icmsg_hdr` and `icmsg_negotiate` of `include/linux/hyperv.h`.
//!
//! Fact: the checks of packets and replies, and that a failed check ends the service.

use crate::bytes::put;
use crate::bytes::u16_at;
use crate::bytes::u32_at;
use crate::bytes::u8_at;
use crate::service::Service;
use crate::service::Version;
use crate::vmbus::packet::Packet;
use crate::vmbus::packet::COMPLETION_REQUESTED;
use crate::vmbus::packet::DATA_INBAND;
use crate::vmbus::socket;

/// Offset of the body from the start of the payload.
pub const BODY: usize = 28;
/// Size of the pipe header in bytes.
pub const PIPE: usize = 8;
/// The largest number of bytes after the pipe header, in either direction. Fact.
pub const MAX_MESSAGE: usize = 13312;
/// The message type of negotiations.
pub const NEGOTIATE: u16 = 0;
/// Flag: the message belongs to a transaction.
pub const TRANSACTION: u8 = 1;
/// Flag: a request.
pub const REQUEST: u8 = 2;
/// Flag: a response.
pub const RESPONSE: u8 = 4;
/// The pipe packet type of data.
const PIPE_DATA: u32 = 1;

/// A message: request or reply. A scenario can set all fields, also to values that no host sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Pipe packet type, 1 for data.
    pub pipe_type: u32,
    /// Bytes after the pipe header. `None` stands for the correct number.
    pub pipe_length: Option<u32>,
    /// Framework version.
    pub framework: Version,
    /// Message type: 0 for a negotiation, else the service's.
    pub kind: u16,
    /// Message version.
    pub version: Version,
    /// Size of the body in bytes. `None` stands for the correct number.
    pub size: Option<u16>,
    /// HRESULT.
    pub status: u32,
    /// The IC transaction id, which the reply echoes.
    pub transaction_id: u8,
    /// [`TRANSACTION`], [`REQUEST`], [`RESPONSE`].
    pub flags: u8,
    /// The bytes after the header.
    pub body: Vec<u8>,
}

impl Message {
    /// A request of a host.
    pub fn request(
        kind: u16,
        framework: Version,
        version: Version,
        transaction_id: u8,
        body: Vec<u8>,
    ) -> Self {
        Self {
            pipe_type: PIPE_DATA,
            pipe_length: None,
            framework,
            kind,
            version,
            size: None,
            status: 0,
            transaction_id,
            flags: TRANSACTION | REQUEST,
            body,
        }
    }

    /// A negotiation request with these versions. Fact: the versions in its own header are 0.0.
    pub fn negotiation(framework: &[Version], message: &[Version], transaction_id: u8) -> Self {
        let mut body = Vec::new();
        body.extend((framework.len() as u16).to_le_bytes());
        body.extend((message.len() as u16).to_le_bytes());
        body.extend([0; 4]);
        for (major, minor) in framework.iter().chain(message) {
            body.extend(major.to_le_bytes());
            body.extend(minor.to_le_bytes());
        }
        Self::request(NEGOTIATE, (0, 0), (0, 0), transaction_id, body)
    }

    /// Encodes the message into a payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; BODY];
        let length = (BODY - PIPE + self.body.len()) as u32;
        put(&mut out, 0, &self.pipe_type.to_le_bytes());
        put(
            &mut out,
            4,
            &self.pipe_length.unwrap_or(length).to_le_bytes(),
        );
        put(&mut out, 8, &self.framework.0.to_le_bytes());
        put(&mut out, 10, &self.framework.1.to_le_bytes());
        put(&mut out, 12, &self.kind.to_le_bytes());
        put(&mut out, 14, &self.version.0.to_le_bytes());
        put(&mut out, 16, &self.version.1.to_le_bytes());
        put(
            &mut out,
            18,
            &self.size.unwrap_or(self.body.len() as u16).to_le_bytes(),
        );
        put(&mut out, 20, &self.status.to_le_bytes());
        put(&mut out, 24, &[self.transaction_id, self.flags, 0, 0]);
        out.extend(&self.body);
        out
    }

    /// Decodes a payload. `None` if the payload is shorter than the headers. The body is the whole rest.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        Some(Self {
            pipe_type: u32_at(payload, 0)?,
            pipe_length: Some(u32_at(payload, 4)?),
            framework: (u16_at(payload, 8)?, u16_at(payload, 10)?),
            kind: u16_at(payload, 12)?,
            version: (u16_at(payload, 14)?, u16_at(payload, 16)?),
            size: Some(u16_at(payload, 18)?),
            status: u32_at(payload, 20)?,
            transaction_id: u8_at(payload, 24)?,
            flags: u8_at(payload, 25)?,
            body: payload.get(BODY..)?.to_vec(),
        })
    }

    /// The reply of a correct guest: the request with another status and a reply's flags.
    pub fn reply(&self, status: u32) -> Self {
        Self {
            status,
            flags: TRANSACTION | RESPONSE,
            ..self.clone()
        }
    }
}

/// Why a host rejects a packet or a reply. The rejection ends the service until the channel opens again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// The packet is not in-band data.
    PacketType(u16),
    /// The packet has unknown flags.
    PacketFlags(u16),
    /// The message is shorter than its headers.
    Short(usize),
    /// The pipe packet type is not 1.
    PipeType(u32),
    /// The pipe header claims more bytes than were sent, or more than [`MAX_MESSAGE`].
    PipeLength(u32),
    /// The IC transaction id is not the request's.
    TransactionId {
        /// The request's.
        expected: u8,
        /// The reply's.
        got: u8,
    },
    /// TRANSACTION or RESPONSE is missing.
    Flags(u8),
    /// The IC header claims more bytes than were sent.
    Size(u16),
    /// A negotiation reply's counts are not 1/1: the guest supports no offered version.
    Counts(u16, u16),
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PacketType(kind) => write!(f, "packet of type {kind}"),
            Self::PacketFlags(flags) => write!(f, "packet with flags {flags:#x}"),
            Self::Short(length) => write!(f, "reply of only {length} bytes"),
            Self::PipeType(kind) => write!(f, "reply with pipe packet type {kind}"),
            Self::PipeLength(length) => write!(f, "reply claims {length} bytes in its pipe header"),
            Self::TransactionId { expected, got } => {
                write!(f, "reply to transaction {got}, expected {expected}")
            }
            Self::Flags(flags) => write!(f, "reply with flags {flags:#x}"),
            Self::Size(size) => write!(f, "reply claims a body of {size} bytes"),
            Self::Counts(framework, message) => {
                write!(f, "negotiation reply with counts {framework}/{message}")
            }
        }
    }
}

/// Checks a packet before its message: in-band data with the framing of a pipe. Fact: a host accepts the completion
/// flag, and sends no completion.
pub fn check_packet(packet: &Packet) -> Result<(), Rejection> {
    if packet.kind != DATA_INBAND {
        return Err(Rejection::PacketType(packet.kind));
    }
    if packet.flags & !COMPLETION_REQUESTED != 0 {
        return Err(Rejection::PacketFlags(packet.flags));
    }
    pipe_message(&packet.payload).map(|_| ())
}

/// The bytes after the pipe header, as many as the header claims.
fn pipe_message(payload: &[u8]) -> Result<&[u8], Rejection> {
    let short = Rejection::Short(payload.len());
    let (Some(kind), Some(length)) = (u32_at(payload, 0), u32_at(payload, 4)) else {
        return Err(short);
    };
    if kind != PIPE_DATA {
        return Err(Rejection::PipeType(kind));
    }
    payload[PIPE..]
        .get(..length as usize)
        .filter(|message| message.len() <= MAX_MESSAGE)
        .ok_or(Rejection::PipeLength(length))
}

/// Checks a reply. The body is cut to the size in the header. Fact: a host checks the message type only while it
/// negotiates.
pub fn check_reply(payload: &[u8], transaction_id: u8) -> Result<Message, Rejection> {
    let length = pipe_message(payload)?.len();
    if length < BODY - PIPE {
        return Err(Rejection::Short(PIPE + length));
    }
    let mut reply = Message::parse(payload).ok_or(Rejection::Short(payload.len()))?;
    if reply.transaction_id != transaction_id {
        return Err(Rejection::TransactionId {
            expected: transaction_id,
            got: reply.transaction_id,
        });
    }
    if reply.flags & (TRANSACTION | RESPONSE) != TRANSACTION | RESPONSE {
        return Err(Rejection::Flags(reply.flags));
    }
    let size = reply.size.unwrap_or(0);
    if usize::from(size) > length - (BODY - PIPE) {
        return Err(Rejection::Size(size));
    }
    reply.body.truncate(usize::from(size));
    Ok(reply)
}

/// The versions that a negotiation reply selects: framework, message.
pub fn negotiated(reply: &Message) -> Result<(Version, Version), Rejection> {
    let half = |offset| u16_at(&reply.body, offset).unwrap_or(0);
    if (half(0), half(2)) != (1, 1) || reply.body.len() < 16 {
        return Err(Rejection::Counts(half(0), half(2)));
    }
    Ok(((half(8), half(10)), (half(12), half(14))))
}

/// One line about a payload for the transcript.
pub fn describe(service: Service, payload: &[u8]) -> String {
    if service == Service::Socket {
        return socket::describe(payload);
    }
    let Some(message) = Message::parse(payload) else {
        return format!("{} bytes", payload.len());
    };
    let role = match message.flags {
        3 => "request".to_owned(),
        5 => "reply".to_owned(),
        flags => format!("flags {flags:#x}"),
    };
    let half = |offset| u16_at(&message.body, offset).unwrap_or(0);
    let mut text = if message.kind == NEGOTIATE {
        let (frameworks, messages) = (usize::from(half(0)), usize::from(half(2)));
        let list = |from: usize, count: usize| {
            (from..from + count.min(16))
                .map(|index| format!("{}.{}", half(8 + index * 4), half(10 + index * 4)))
                .collect::<Vec<_>>()
                .join(" ")
        };
        format!(
            "negotiate {role} framework [{}] message [{}]",
            list(0, frameworks),
            list(frameworks, messages)
        )
    } else if message.kind == service.message_type() {
        let body = match service {
            Service::Heartbeat => super::heartbeat::describe(&message.body),
            Service::Shutdown => super::shutdown::describe(&message.body),
            Service::TimeSync => super::timesync::describe(message.version, &message.body),
            Service::Kvp => {
                let is_reply = message.flags & RESPONSE != 0;
                super::kvp::describe(message.version, &message.body, is_reply)
            }
            Service::Vss => super::vss::describe(&message.body),
            Service::FCopy => super::fcopy::describe(&message.body),
            Service::Echo | Service::Socket => format!("{} bytes", message.body.len()),
        };
        format!("{service} {role} {body}")
    } else {
        format!("type {} {role} {} bytes", message.kind, message.body.len())
    };
    if message.status != 0 {
        text.push_str(&format!(" status {:#x}", message.status));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negotiation_has_the_layout_of_the_protocol() {
        let bytes = Message::negotiation(&[(1, 0), (3, 0)], &[(1, 0), (3, 2)], 9).encode();
        assert_eq!(bytes.len(), 28 + 8 + 16);
        assert_eq!(bytes[..8], [1, 0, 0, 0, 44, 0, 0, 0]);
        assert_eq!(bytes[8..20], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!(bytes[24..28], [9, 3, 0, 0]);
        assert_eq!(bytes[28..36], [2, 0, 2, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[48..52], [3, 0, 2, 0]);
        assert_eq!(
            describe(Service::Shutdown, &bytes),
            "negotiate request framework [1.0 3.0] message [1.0 3.2]"
        );
    }

    #[test]
    fn replies_are_accepted_as_by_a_host() {
        let request = Message::request(1, (3, 0), (3, 0), 5, vec![0; 40]);
        let good = request.reply(0);
        let check = |message: &Message| check_reply(&message.encode(), 5).map(|_| ());
        assert_eq!(check(&good), Ok(()));
        let with = |change: fn(&mut Message)| {
            let mut message = good.clone();
            change(&mut message);
            check(&message)
        };
        assert_eq!(with(|m| m.pipe_type = 2), Err(Rejection::PipeType(2)));
        assert_eq!(
            with(|m| m.pipe_length = Some(200)),
            Err(Rejection::PipeLength(200))
        );
        assert_eq!(
            with(|m| m.transaction_id = 6),
            Err(Rejection::TransactionId {
                expected: 5,
                got: 6
            })
        );
        assert_eq!(with(|m| m.flags = 3), Err(Rejection::Flags(3)));
        assert_eq!(with(|m| m.flags = 4), Err(Rejection::Flags(4)));
        assert_eq!(with(|m| m.flags = 7), Ok(()));
        assert_eq!(with(|m| m.size = Some(41)), Err(Rejection::Size(41)));
        assert_eq!(with(|m| m.size = Some(3)), Ok(()));
        assert_eq!(with(|m| m.kind = 3), Ok(()));
        let mut short = good.clone();
        short.size = Some(3);
        assert_eq!(check_reply(&short.encode(), 5).unwrap().body.len(), 3);
        assert_eq!(
            with(|m| m.pipe_length = Some(19)),
            Err(Rejection::Short(27))
        );
        assert_eq!(check_reply(&[0; 7], 5), Err(Rejection::Short(7)));
    }

    #[test]
    fn packets_are_in_band_data_in_a_pipe() {
        let message = Message::request(1, (3, 0), (3, 0), 5, vec![0; 40]);
        let good = Packet::inband(message.encode());
        assert_eq!(check_packet(&good), Ok(()));
        let with = |change: fn(&mut Packet)| {
            let mut packet = good.clone();
            change(&mut packet);
            check_packet(&packet)
        };
        assert_eq!(with(|p| p.flags = 1), Ok(()));
        assert_eq!(with(|p| p.flags = 2), Err(Rejection::PacketFlags(2)));
        assert_eq!(with(|p| p.kind = 9), Err(Rejection::PacketType(9)));
        assert_eq!(with(|p| p.kind = 11), Err(Rejection::PacketType(11)));
        assert_eq!(with(|p| p.payload.truncate(7)), Err(Rejection::Short(7)));
        assert_eq!(with(|p| p.payload[0] = 3), Err(Rejection::PipeType(3)));
        assert_eq!(with(|p| p.payload[4] = 61), Err(Rejection::PipeLength(61)));
        let longest = |length: usize| {
            let message = Message::request(1, (3, 0), (3, 0), 5, vec![0; length - 20]);
            check_packet(&Packet::inband(message.encode()))
        };
        assert_eq!(longest(13312), Ok(()));
        assert_eq!(longest(13313), Err(Rejection::PipeLength(13313)));
    }

    #[test]
    fn a_negotiation_chooses_exactly_one_of_each() {
        let mut reply = Message::negotiation(&[(3, 0)], &[(4, 0)], 0);
        assert_eq!(negotiated(&reply), Ok(((3, 0), (4, 0))));
        let mut short = reply.clone();
        short.body.pop();
        assert_eq!(negotiated(&short), Err(Rejection::Counts(1, 1)));
        reply.body[2] = 2;
        assert_eq!(negotiated(&reply), Err(Rejection::Counts(1, 2)));
        reply.body[..4].fill(0);
        assert_eq!(negotiated(&reply), Err(Rejection::Counts(0, 0)));
    }
}
