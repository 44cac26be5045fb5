// SPDX-License-Identifier: GPL-2.0

//! VMBus messages, in the layouts of `include/linux/hyperv.h`.
//!
//! A message from the guest must have at least the size of its structure. Fact: a host ignores bytes after the
//! structure. (Newer guests append fields.)

use crate::bytes::put;
use crate::bytes::u16_at;
use crate::bytes::u32_at;
use crate::bytes::u64_at;
use crate::bytes::u8_at;
use crate::guid::Guid;

/// The number of user-defined bytes in an offer and in an open request.
pub const USER_DEFINED: usize = 120;

/// Messages from the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromGuest {
    /// 3: requests all offers.
    RequestOffers,
    /// 5: opens a channel.
    OpenChannel {
        /// The channel.
        relid: u32,
        /// The guest's id for the request. The result repeats it.
        open_id: u32,
        /// The GPADL of both rings.
        gpadl: u32,
        /// The processor that gets the channel's interrupts.
        target_vp: u32,
        /// The page in the GPADL at which the host-to-guest ring begins.
        downstream_page: u32,
    },
    /// 7: closes a channel.
    CloseChannel {
        /// The channel.
        relid: u32,
    },
    /// 8: describes memory by its pages.
    GpadlHeader {
        /// The channel.
        relid: u32,
        /// The handle, the guest's choice.
        gpadl: u32,
        /// The length of all ranges in bytes.
        range_length: u16,
        /// The number of ranges.
        range_count: u16,
        /// The first words of the ranges, as many as fit.
        words: Vec<u64>,
    },
    /// 9: continues the ranges.
    GpadlBody {
        /// The body's number.
        number: u32,
        /// The handle.
        gpadl: u32,
        /// The next words of the ranges.
        words: Vec<u64>,
    },
    /// 11: takes a GPADL back.
    GpadlTeardown {
        /// The channel.
        relid: u32,
        /// The handle.
        gpadl: u32,
    },
    /// 13: releases the number of a channel.
    RelidReleased {
        /// The channel.
        relid: u32,
    },
    /// 14: starts a connection.
    InitiateContact {
        /// The version, major in the upper half.
        version: u32,
        /// The processor that gets the host's messages.
        target_vp: u32,
        /// Below 5.0: the interrupt page's address. From 5.0 on: the SINT in byte 0, the VTL in byte 1, and from 6.0 on
        /// feature flags in the upper half.
        interrupt_page_or_target: u64,
        /// Guest physical address of the monitor page for the host's triggers.
        parent_monitor: u64,
        /// Guest physical address of the monitor page for the guest's triggers.
        child_monitor: u64,
    },
    /// 16: ends the connection.
    Unload,
    /// 21: connects to an hv_sock service of the host.
    TlConnect {
        /// The guest's end.
        endpoint: Guid,
        /// The service.
        service: Guid,
    },
    /// 22: moves a channel's interrupts to another processor.
    ModifyChannel {
        /// The channel.
        relid: u32,
        /// The processor.
        target_vp: u32,
    },
}

/// A message that is too short or of an unknown type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// The message is shorter than its structure. (Type 0: shorter than a message header.)
    Short {
        /// The message type.
        kind: u32,
        /// Bytes received.
        length: usize,
    },
    /// The type is unknown, or not a guest's.
    Unknown(u32),
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Short { kind, length } => {
                write!(f, "message of type {kind} has only {length} bytes")
            }
            Self::Unknown(kind) => write!(f, "message type {kind} is unknown"),
        }
    }
}

impl FromGuest {
    /// Decodes a message.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let kind = u32_at(bytes, 0).unwrap_or(0);
        let short = Malformed::Short {
            kind,
            length: bytes.len(),
        };
        if bytes.len() < 8 {
            return Err(short);
        }
        Self::parse_body(kind, bytes)
            .ok_or(short)?
            .ok_or(Malformed::Unknown(kind))
    }

    /// `None` for a short message, `Some(None)` for an unknown type.
    fn parse_body(kind: u32, bytes: &[u8]) -> Option<Option<Self>> {
        let word = |offset| u32_at(bytes, offset);
        let words = |offset: usize| {
            let rest = bytes.get(offset..).unwrap_or(&[]);
            rest.chunks_exact(8)
                .filter_map(|chunk| u64_at(chunk, 0))
                .collect()
        };
        let guid = |offset: usize| bytes.get(offset..offset + 16)?.try_into().ok().map(Guid);
        Some(Some(match kind {
            3 => Self::RequestOffers,
            5 => {
                bytes.get(28 + USER_DEFINED - 1)?;
                Self::OpenChannel {
                    relid: word(8)?,
                    open_id: word(12)?,
                    gpadl: word(16)?,
                    target_vp: word(20)?,
                    downstream_page: word(24)?,
                }
            }
            7 => Self::CloseChannel { relid: word(8)? },
            8 => Self::GpadlHeader {
                relid: word(8)?,
                gpadl: word(12)?,
                range_length: u16_at(bytes, 16)?,
                range_count: u16_at(bytes, 18)?,
                words: words(20),
            },
            9 => Self::GpadlBody {
                number: word(8)?,
                gpadl: word(12)?,
                words: words(16),
            },
            11 => Self::GpadlTeardown {
                relid: word(8)?,
                gpadl: word(12)?,
            },
            13 => Self::RelidReleased { relid: word(8)? },
            14 => Self::InitiateContact {
                version: word(8)?,
                target_vp: word(12)?,
                interrupt_page_or_target: u64_at(bytes, 16)?,
                parent_monitor: u64_at(bytes, 24)?,
                child_monitor: u64_at(bytes, 32)?,
            },
            16 => Self::Unload,
            21 => Self::TlConnect {
                endpoint: guid(8)?,
                service: guid(24)?,
            },
            22 => Self::ModifyChannel {
                relid: word(8)?,
                target_vp: word(12)?,
            },
            _ => return Some(None),
        }))
    }
}

/// What an offer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferKind {
    /// A device.
    Device,
    /// A connection of Hyper-V sockets.
    Socket {
        /// The guest is to accept it; else the guest has asked for it.
        is_for_accept: bool,
    },
}

/// An offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// What it is for.
    pub kind: OfferKind,
    /// The kind of device.
    pub class: Guid,
    /// The device itself.
    pub instance: Guid,
    /// The channel's number.
    pub relid: u32,
    /// The guest's argument to HvSignalEvent.
    pub connection_id: u32,
}

/// Messages from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGuest {
    /// 1: offers a channel.
    Offer(Offer),
    /// 2: rescinds an offer.
    Rescind {
        /// The channel.
        relid: u32,
    },
    /// 4: ends the offers.
    AllOffersDelivered,
    /// 6: answers OpenChannel.
    OpenResult {
        /// The channel.
        relid: u32,
        /// The id of the request.
        open_id: u32,
        /// An NTSTATUS, 0 for success.
        status: u32,
    },
    /// 10: answers GpadlHeader and its bodies.
    GpadlCreated {
        /// The channel.
        relid: u32,
        /// The handle.
        gpadl: u32,
        /// An NTSTATUS, 0 for success.
        status: u32,
    },
    /// 12: answers GpadlTeardown.
    GpadlTorndown {
        /// The handle.
        gpadl: u32,
    },
    /// 15: answers InitiateContact.
    VersionResponse {
        /// Whether the host speaks the version.
        supported: bool,
        /// Whether the host speaks the version but cannot do what the request asks for.
        failed: bool,
        /// From 5.0 on: the connection id for the guest's further messages. Before: the version.
        connection_or_version: u32,
        /// From 6.0 on: the feature flags of both sides.
        features: Option<u32>,
    },
    /// 17: answers Unload.
    UnloadResponse,
    /// 23: answers TlConnect.
    TlConnectResult {
        /// The endpoint in the request.
        endpoint: Guid,
        /// The service in the request.
        service: Guid,
        /// An NTSTATUS, 0 for success.
        status: u32,
    },
    /// 24: answers ModifyChannel from 5.3 on.
    ModifyChannelResponse {
        /// The channel.
        relid: u32,
        /// An NTSTATUS, 0 for success.
        status: u32,
    },
}

/// VMBUS_CHANNEL_ENUMERATE_DEVICE_INTERFACE and VMBUS_CHANNEL_NAMED_PIPE_MODE: the flags of the services' offers.
const OFFER_FLAGS: u16 = 0x0001 | 0x0010;
/// Added to these: VMBUS_CHANNEL_TLNPI_PROVIDER_OFFER
const OFFER_TLNPI_PROVIDER: u16 = 0x2000;
/// VMBUS_PIPE_TYPE_BYTE
const PIPE_MODE_BYTE: u32 = 0;
/// VMBUS_PIPE_TYPE_MESSAGE
const PIPE_MODE_MESSAGE: u32 = 4;
/// The version of the parameters in a socket's offer, since Windows Server 2019.
const SOCKET_PARAMETERS: u32 = 1;
/// The channel has no bit in the monitor pages.
const NO_MONITOR: u8 = 0xff;

impl ToGuest {
    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        let message = |kind: u32, fields: &[u32]| {
            let mut out = Vec::new();
            for value in [kind, 0].iter().chain(fields) {
                out.extend(value.to_le_bytes());
            }
            out
        };
        match self {
            Self::Offer(offer) => {
                let mut out = message(1, &[]);
                put(&mut out, 8, &offer.class.0);
                put(&mut out, 24, &offer.instance.0);
                let (flags, mode) = match offer.kind {
                    OfferKind::Device => (OFFER_FLAGS, PIPE_MODE_MESSAGE),
                    OfferKind::Socket { .. } => {
                        (OFFER_FLAGS | OFFER_TLNPI_PROVIDER, PIPE_MODE_BYTE)
                    }
                };
                put(&mut out, 56, &flags.to_le_bytes());
                put(&mut out, 60, &mode.to_le_bytes());
                if let OfferKind::Socket { is_for_accept } = offer.kind {
                    put(&mut out, 64, &[u8::from(is_for_accept)]);
                    put(&mut out, 66, &SOCKET_PARAMETERS.to_le_bytes());
                }
                put(&mut out, 60 + USER_DEFINED + 4, &offer.relid.to_le_bytes());
                put(&mut out, 188, &[NO_MONITOR, 0]);
                put(&mut out, 190, &1u16.to_le_bytes()); // is_dedicated_interrupt
                put(&mut out, 192, &offer.connection_id.to_le_bytes());
                out
            }
            Self::Rescind { relid } => message(2, &[*relid]),
            Self::AllOffersDelivered => message(4, &[]),
            Self::OpenResult {
                relid,
                open_id,
                status,
            } => message(6, &[*relid, *open_id, *status]),
            Self::GpadlCreated {
                relid,
                gpadl,
                status,
            } => message(10, &[*relid, *gpadl, *status]),
            Self::GpadlTorndown { gpadl } => message(12, &[*gpadl]),
            Self::VersionResponse {
                supported,
                failed,
                connection_or_version,
                features,
            } => {
                // The state of the connection: 0 is success, 2 an unknown failure.
                let state = if *failed { 2 << 8 } else { 0 };
                let mut out = message(15, &[u32::from(*supported) | state, *connection_or_version]);
                if let Some(features) = features {
                    out.extend(features.to_le_bytes());
                }
                out
            }
            Self::UnloadResponse => message(17, &[]),
            Self::TlConnectResult {
                endpoint,
                service,
                status,
            } => {
                let mut out = message(23, &[]);
                put(&mut out, 8, &endpoint.0);
                put(&mut out, 24, &service.0);
                put(&mut out, 40, &status.to_le_bytes());
                out
            }
            Self::ModifyChannelResponse { relid, status } => message(24, &[*relid, *status]),
        }
    }
}

/// The name of the message type, for transcripts.
pub fn name(bytes: &[u8]) -> &'static str {
    match u8_at(bytes, 0).unwrap_or(0) {
        1 => "OFFERCHANNEL",
        2 => "RESCIND_CHANNELOFFER",
        3 => "REQUESTOFFERS",
        4 => "ALLOFFERS_DELIVERED",
        5 => "OPENCHANNEL",
        6 => "OPENCHANNEL_RESULT",
        7 => "CLOSECHANNEL",
        8 => "GPADL_HEADER",
        9 => "GPADL_BODY",
        10 => "GPADL_CREATED",
        11 => "GPADL_TEARDOWN",
        12 => "GPADL_TORNDOWN",
        13 => "RELID_RELEASED",
        14 => "INITIATE_CONTACT",
        15 => "VERSION_RESPONSE",
        16 => "UNLOAD",
        17 => "UNLOAD_RESPONSE",
        21 => "TL_CONNECT_REQUEST",
        22 => "MODIFYCHANNEL",
        23 => "TL_CONNECT_RESULT",
        24 => "MODIFYCHANNEL_RESPONSE",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u32, words: &[u32]) -> Vec<u8> {
        [kind, 0]
            .iter()
            .chain(words)
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    #[test]
    fn guest_messages_are_read_at_their_offsets() {
        assert_eq!(
            FromGuest::parse(&message(14, &[0x60000, 1, 2, 0x10, 3, 4, 5, 6])),
            Ok(FromGuest::InitiateContact {
                version: 0x60000,
                target_vp: 1,
                interrupt_page_or_target: 0x10_0000_0002,
                parent_monitor: 0x4_0000_0003,
                child_monitor: 0x6_0000_0005,
            })
        );
        let mut open = message(5, &[1, 2, 3, 4, 5]);
        open.resize(148, 0);
        assert_eq!(
            FromGuest::parse(&open),
            Ok(FromGuest::OpenChannel {
                relid: 1,
                open_id: 2,
                gpadl: 3,
                target_vp: 4,
                downstream_page: 5
            })
        );
        assert!(FromGuest::parse(&open[..147]).is_err());
        assert_eq!(
            FromGuest::parse(&message(8, &[1, 2, 3 << 16 | 24, 7, 0, 9, 0, 5])),
            Ok(FromGuest::GpadlHeader {
                relid: 1,
                gpadl: 2,
                range_length: 24,
                range_count: 3,
                words: vec![7, 9]
            })
        );
    }

    #[test]
    fn malformed_messages_are_errors() {
        assert_eq!(
            FromGuest::parse(&[]),
            Err(Malformed::Short { kind: 0, length: 0 })
        );
        assert_eq!(
            FromGuest::parse(&message(7, &[])),
            Err(Malformed::Short { kind: 7, length: 8 })
        );
        assert_eq!(
            FromGuest::parse(&message(1, &[0; 50])),
            Err(Malformed::Unknown(1))
        );
        for kind in 0..30 {
            for length in 0..60 {
                let mut bytes = message(kind, &[0; 20]);
                bytes.truncate(length);
                let _ = FromGuest::parse(&bytes);
            }
        }
    }

    #[test]
    fn an_offer_has_the_layout_of_the_guests_structure() {
        let mut offer = Offer {
            kind: OfferKind::Device,
            class: Guid([1; 16]),
            instance: Guid([2; 16]),
            relid: 7,
            connection_id: 0x10007,
        };
        let bytes = ToGuest::Offer(offer.clone()).encode();
        assert_eq!(bytes.len(), 196);
        assert_eq!(bytes[8..24], [1; 16]);
        assert_eq!(bytes[24..40], [2; 16]);
        assert_eq!(u16_at(&bytes, 56), Some(0x11));
        assert_eq!(u32_at(&bytes, 60), Some(4));
        assert_eq!(u32_at(&bytes, 184), Some(7));
        assert_eq!(bytes[188..192], [0xff, 0, 1, 0]);
        assert_eq!(u32_at(&bytes, 192), Some(0x10007));
        for is_for_accept in [false, true] {
            offer.kind = OfferKind::Socket { is_for_accept };
            let bytes = ToGuest::Offer(offer.clone()).encode();
            assert_eq!(bytes.len(), 196);
            assert_eq!(u16_at(&bytes, 56), Some(0x2011));
            assert_eq!(u32_at(&bytes, 60), Some(0));
            assert_eq!(bytes[64..72], [is_for_accept.into(), 0, 1, 0, 0, 0, 0, 0]);
            assert_eq!(u32_at(&bytes, 184), Some(7));
        }
    }

    #[test]
    fn version_responses_grow_with_the_version() {
        let response = |features| {
            ToGuest::VersionResponse {
                supported: true,
                failed: false,
                connection_or_version: 4,
                features,
            }
            .encode()
            .len()
        };
        assert_eq!((response(None), response(Some(0))), (16, 20));
    }
}
