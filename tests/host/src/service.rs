// SPDX-License-Identifier: GPL-2.0

//! The integration services: their ids, and the versions that a Windows host offers.
//!
//! Sources: class ids from `include/linux/hyperv.h`. Instance ids are the same on all Windows hosts. Fact for KVP,
//! guest shutdown and time synchronization. The others are in public logs of guests.

use crate::guid::Guid;

/// A version: major, minor.
pub type Version = (u16, u16);

/// An integration service, the device of a sample driver, or Hyper-V sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// vmicheartbeat
    Heartbeat,
    /// vmicshutdown
    Shutdown,
    /// vmictimesync
    TimeSync,
    /// vmickvpexchange
    Kvp,
    /// vmicvss
    Vss,
    /// vmicguestinterface
    FCopy,
    /// Not a service: the device of the driver in `samples/vmbus_echo.rs`. Scenarios lead it.
    Echo,
    /// No service: each connection of Hyper-V sockets has a channel of its own, see [`crate::vmbus::socket`]
    Socket,
}

impl Service {
    /// The integration services.
    pub const INTEGRATION: [Self; 6] = [
        Self::Heartbeat,
        Self::Shutdown,
        Self::TimeSync,
        Self::Kvp,
        Self::Vss,
        Self::FCopy,
    ];

    /// All devices that the host can offer.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::INTEGRATION.into_iter().chain([Self::Echo])
    }

    /// The name in transcripts and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Shutdown => "shutdown",
            Self::TimeSync => "timesync",
            Self::Kvp => "kvp",
            Self::Vss => "vss",
            Self::FCopy => "fcopy",
            Self::Echo => "echo",
            Self::Socket => "socket",
        }
    }

    /// Whether the packets hold messages of integration services.
    pub const fn is_framed(self) -> bool {
        !matches!(self, Self::Echo | Self::Socket)
    }

    /// The class id: the kind of device. The class id of a Hyper-V socket also has the port.
    pub const fn class(self) -> Guid {
        match self {
            Self::Heartbeat => Guid::parse("57164f39-9115-4e78-ab55-382f3bd5422d"),
            Self::Shutdown => Guid::parse("0e0b6031-5213-4934-818b-38d90ced39db"),
            Self::TimeSync => Guid::parse("9527e630-d0ae-497b-adce-e80ab0175caf"),
            Self::Kvp => Guid::parse("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6"),
            Self::Vss => Guid::parse("35fa2e29-ea23-4236-96ae-3a6ebacba440"),
            Self::FCopy => Guid::parse("34d14be3-dee4-41c8-9ae7-6b174977c192"),
            Self::Echo => Guid::parse("7a0e3c4b-5d29-4f0e-9c1e-2f6d8a41b3c7"),
            Self::Socket => Guid::parse("00000000-facb-11e6-bd58-64006a7986d3"),
        }
    }

    /// The instance id: the device itself.
    pub const fn instance(self) -> Guid {
        match self {
            Self::Heartbeat => Guid::parse("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"),
            Self::Shutdown => Guid::parse("b6650ff7-33bc-4840-8048-e0676786f393"),
            Self::TimeSync => Guid::parse("2dd1ce17-079e-403c-b352-a1921ee207ee"),
            Self::Kvp => Guid::parse("242ff919-07db-4180-9c2e-b86cb68c8c55"),
            Self::Vss => Guid::parse("2450ee40-33bf-4fbd-892e-9fb06e9214cf"),
            Self::FCopy => Guid::parse("eb765408-105f-49b6-b4aa-c123b64d17d4"),
            Self::Echo => Guid::parse("0c5a1d7e-93f4-4b2c-8e61-d7b90f3a5c12"),
            Self::Socket => self.class(),
        }
    }

    /// The IC message type of the service's requests.
    pub const fn message_type(self) -> u16 {
        match self {
            Self::Heartbeat => 1,
            Self::Kvp => 2,
            Self::Shutdown => 3,
            Self::TimeSync => 4,
            Self::Vss => 5,
            Self::FCopy => 7,
            Self::Echo | Self::Socket => 0xff,
        }
    }

    /// The framework versions of a host's offer, oldest first. Fact for KVP, guest shutdown and time synchronization,
    /// Inference for the others.
    pub const fn framework_versions(self) -> &'static [Version] {
        match self {
            Self::Vss | Self::FCopy => &[(3, 0)],
            _ => &[(1, 0), (3, 0)],
        }
    }

    /// The message versions of a host's offer, oldest first. Fact: all of guest shutdown, KVP from 3.0 on, time
    /// synchronization 4.0. The rest is inference.
    pub const fn message_versions(self) -> &'static [Version] {
        match self {
            Self::Heartbeat => &[(1, 0), (3, 0)],
            Self::Shutdown => &[(1, 0), (3, 0), (3, 1), (3, 2)],
            Self::TimeSync => &[(1, 0), (3, 0), (4, 0)],
            Self::Kvp => &[(1, 0), (3, 0), (4, 0), (5, 0)],
            Self::Vss => &[(4, 0), (5, 0), (6, 0), (7, 0)],
            Self::FCopy => &[(1, 1)],
            Self::Echo | Self::Socket => &[],
        }
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all()
            .find(|service| service.name() == text)
            .ok_or_else(|| format!("there is no service {text:?}"))
    }
}
