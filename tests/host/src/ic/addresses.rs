// SPDX-License-Identifier: GPL-2.0

//! KVP messages about an adapter's addresses.
//!
//! Up to version 4.0 addresses are text, from offset 2 of the body. From 5.0 on they are binary, from offset 4:
//!
//! | offset | field                                                                       |
//! | ------ | --------------------------------------------------------------------------- |
//! | 4      | counts of IPv4 and IPv6 addresses, gateways, name servers; u32 each         |
//! | 28     | adapter id u16\[128\]                                                       |
//! | 284    | family u8, DHCP u8                                                          |
//! | 288    | addresses: 64 of IPv4, 64 of IPv6                                           |
//! | 1568   | masks of IPv4 addresses, 64; prefix lengths u32 of IPv6 addresses, 64       |
//! | 2080   | gateways: 5 of IPv4, 5 of IPv6                                              |
//! | 2180   | name servers: 64 of IPv4, 64 of IPv6                                        |
//! | 3460   | origins u16\[128\] of the IPv4 and then the IPv6 addresses                  |
//!
//! Sources: for text, `struct hv_kvp_ip_msg` of `include/uapi/linux/hyperv.h`. Fact: the binary layout, and pool
//! [`GUEST`] in both operations. The 16 bits of an origin are also in the symbols of Windows 10's `icsvc.dll`
//! (`_IC_KVP_EXCHANGE_IP_ADDRESS_VALUE_BINARY`).

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use super::kvp::GET_IP_INFO;
use super::kvp::GUEST;
use super::kvp::SET_IP_INFO;
use super::text::utf16;
use super::text::utf16_text;
use crate::bytes::put;
use crate::bytes::u16_at;
use crate::bytes::u32_at;
use crate::bytes::u8_at;
use crate::service::Version;

/// Size of a body in bytes, in either layout.
pub const LENGTH: usize = 7428;

/// An adapter's addresses. `;` separates the entries of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The adapter: its GUID in a SET_IP_INFO, its MAC address in a GET_IP_INFO.
    pub adapter: String,
    /// 1: IPv4, 2: IPv6, 3: both.
    pub family: u8,
    /// Whether the adapter has its IPv4 address from DHCP.
    pub dhcp: bool,
    /// The addresses.
    pub addresses: String,
    /// The mask (IPv4) or prefix length (IPv6) of each address.
    pub subnets: String,
    /// The gateways.
    pub gateways: String,
    /// The name servers.
    pub name_servers: String,
    /// The origin of each address, IPv4 first: see [`origin`]. The text layout has no origins.
    pub origins: Vec<u16>,
}

/// Origins of addresses.
pub mod origin {
    /// Unknown.
    pub const UNKNOWN: u16 = 0;
    /// Not static, for example from DHCP.
    pub const OTHER: u16 = 1;
    /// Static.
    pub const STATIC: u16 = 2;
}

/// Offsets of numbers in the binary layout, for scenarios that corrupt them.
pub use binary::COUNTS;
pub use binary::PREFIXES;

/// A body in the layout of `version`. `None` if the layout cannot hold the addresses.
pub fn body(version: Version, operation: u8, addresses: &Addresses) -> Option<Vec<u8>> {
    match version >= (5, 0) {
        true => binary::body(operation, addresses),
        false => Some(text::body(operation, addresses)),
    }
}

/// Reads a body in the layout of `version`. `None` if a host rejects the addresses.
pub fn read(version: Version, body: &[u8]) -> Option<Addresses> {
    match version >= (5, 0) {
        true => binary::read(body),
        false => text::read(body),
    }
}

/// Asks for the addresses of the adapter with this MAC address (`00:15:5D:...`).
pub fn get_ip_info(version: Version, mac: &str) -> Vec<u8> {
    match version >= (5, 0) {
        true => binary::get(mac),
        false => {
            let addresses = Addresses {
                adapter: mac.to_owned(),
                ..Addresses::default()
            };
            text::body(GET_IP_INFO, &addresses)
        }
    }
}

/// Sets an adapter's addresses. `None` if the layout cannot hold them.
pub fn set_ip_info(version: Version, addresses: &Addresses) -> Option<Vec<u8>> {
    body(version, SET_IP_INFO, addresses)
}

fn empty(operation: u8) -> Vec<u8> {
    let mut body = vec![0; LENGTH];
    put(&mut body, 0, &[operation, GUEST]);
    body
}

fn text_at(body: &[u8], at: usize, length: usize) -> Option<String> {
    Some(utf16_text(body.get(at..at + length)?))
}

/// The text layout, up to 4.0.
mod text {
    use super::*;

    const ADAPTER: usize = 2;
    const FAMILY: usize = 258;
    const DHCP: usize = 259;
    const LISTS: [usize; 4] = [260, 2308, 4356, 5380];

    pub(super) fn body(operation: u8, addresses: &Addresses) -> Vec<u8> {
        let mut out = empty(operation);
        put(&mut out, ADAPTER, &utf16(&addresses.adapter));
        put(
            &mut out,
            FAMILY,
            &[addresses.family, u8::from(addresses.dhcp)],
        );
        let lists = [
            &addresses.addresses,
            &addresses.subnets,
            &addresses.gateways,
            &addresses.name_servers,
        ];
        for (at, list) in LISTS.into_iter().zip(lists) {
            put(&mut out, at, &utf16(list));
        }
        out
    }

    pub(super) fn read(body: &[u8]) -> Option<Addresses> {
        Some(Addresses {
            adapter: text_at(body, ADAPTER, 256)?,
            family: u8_at(body, FAMILY)?,
            dhcp: u8_at(body, DHCP)? != 0,
            addresses: text_at(body, LISTS[0], 2048)?,
            subnets: text_at(body, LISTS[1], 2048)?,
            gateways: text_at(body, LISTS[2], 1024)?,
            name_servers: text_at(body, LISTS[3], 2048)?,
            origins: Vec::new(),
        })
    }
}

/// The binary layout, from 5.0 on.
mod binary {
    use super::*;

    const ADAPTER: usize = 28;
    const FAMILY: usize = 284;
    const DHCP: usize = 285;
    const MASKS: usize = 1568;
    /// Offset of the prefix lengths.
    pub const PREFIXES: usize = 1824;
    const ORIGINS: usize = 3460;
    /// The end of the origins.
    const END: usize = 3716;

    /// Offsets of the counts of IPv4 and IPv6 addresses, gateways, name servers.
    pub const COUNTS: [usize; 6] = [4, 8, 12, 16, 20, 24];

    /// A pair of arrays, for IPv4 and for IPv6: their counts, offsets and capacity.
    struct List {
        counts: [usize; 2],
        at: [usize; 2],
        room: usize,
    }

    const ADDRESSES: List = List {
        counts: [4, 8],
        at: [288, 544],
        room: 64,
    };
    const GATEWAYS: List = List {
        counts: [12, 16],
        at: [2080, 2100],
        room: 5,
    };
    const NAME_SERVERS: List = List {
        counts: [20, 24],
        at: [2180, 2436],
        room: 64,
    };

    impl List {
        /// Writes addresses. Returns for each address its array (0 or 1) and its index there.
        fn write(&self, body: &mut Vec<u8>, text: &str) -> Option<Vec<(usize, usize)>> {
            let mut counts = [0; 2];
            let places = entries(text).map(|entry| {
                let (list, bytes) = match entry.parse().ok()? {
                    IpAddr::V4(address) => (0, address.octets().to_vec()),
                    IpAddr::V6(address) => (1, address.octets().to_vec()),
                };
                let index = counts[list];
                counts[list] += 1;
                put(body, self.at[list] + index * bytes.len(), &bytes);
                (index < self.room).then_some((list, index))
            });
            let places = places.collect::<Option<_>>()?;
            for (at, count) in self.counts.into_iter().zip(counts) {
                put(body, at, &(count as u32).to_le_bytes());
            }
            Some(places)
        }

        /// The numbers of IPv4 and of IPv6 addresses. `None` if a number exceeds the capacity.
        fn counts(&self, body: &[u8]) -> Option<[usize; 2]> {
            let count = |at| {
                let count = u32_at(body, at)? as usize;
                (count <= self.room).then_some(count)
            };
            Some([count(self.counts[0])?, count(self.counts[1])?])
        }

        fn read(&self, body: &[u8]) -> Option<String> {
            let counts = self.counts(body)?;
            let four = (0..counts[0]).map(|index| v4(body, self.at[0] + index * 4));
            let six = (0..counts[1]).map(|index| v6(body, self.at[1] + index * 16));
            Some(four.chain(six).collect::<Option<Vec<_>>>()?.join(";"))
        }
    }

    fn entries(text: &str) -> impl Iterator<Item = &str> {
        text.split(';').filter(|entry| !entry.is_empty())
    }

    fn v4(body: &[u8], at: usize) -> Option<String> {
        let octets: [u8; 4] = body.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).to_string())
    }

    fn v6(body: &[u8], at: usize) -> Option<String> {
        let octets: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).to_string())
    }

    pub(super) fn get(adapter: &str) -> Vec<u8> {
        let mut out = empty(GET_IP_INFO);
        put(&mut out, ADAPTER, &utf16(adapter));
        out
    }

    pub(super) fn body(operation: u8, addresses: &Addresses) -> Option<Vec<u8>> {
        let mut out = empty(operation);
        put(&mut out, ADAPTER, &utf16(&addresses.adapter));
        put(
            &mut out,
            FAMILY,
            &[addresses.family, u8::from(addresses.dhcp)],
        );
        let places = ADDRESSES.write(&mut out, &addresses.addresses)?;
        for ((list, index), subnet) in places.into_iter().zip(entries(&addresses.subnets)) {
            let (start, bytes) = match list {
                0 => (MASKS, subnet.parse::<Ipv4Addr>().ok()?.octets()),
                _ => (PREFIXES, subnet.parse::<u32>().ok()?.to_le_bytes()),
            };
            put(&mut out, start + index * 4, &bytes);
        }
        GATEWAYS.write(&mut out, &addresses.gateways)?;
        NAME_SERVERS.write(&mut out, &addresses.name_servers)?;
        for (index, origin) in addresses.origins.iter().enumerate() {
            put(&mut out, ORIGINS + index * 2, &origin.to_le_bytes());
        }
        Some(out)
    }

    pub(super) fn read(body: &[u8]) -> Option<Addresses> {
        let body = body.get(..END)?;
        let [four, six] = ADDRESSES.counts(body)?;
        let masks = (0..four).map(|index| v4(body, MASKS + index * 4));
        let prefixes = (0..six).map(|index| Some(u32_at(body, PREFIXES + index * 4)?.to_string()));
        let subnets: Option<Vec<_>> = masks.chain(prefixes).collect();
        let origins = (0..four + six).map(|index| u16_at(body, ORIGINS + index * 2));
        Some(Addresses {
            adapter: text_at(body, ADAPTER, 256)?,
            family: u8_at(body, FAMILY)?,
            dhcp: u8_at(body, DHCP)? != 0,
            addresses: ADDRESSES.read(body)?,
            subnets: subnets?.join(";"),
            gateways: GATEWAYS.read(body)?,
            name_servers: NAME_SERVERS.read(body)?,
            origins: origins.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Addresses {
        Addresses {
            adapter: "{id}".into(),
            family: 3,
            dhcp: true,
            addresses: "10.0.0.1;10.0.0.2;fd00::1".into(),
            subnets: "255.0.0.0;255.255.0.0;64".into(),
            gateways: "10.0.0.9;fe80::9".into(),
            name_servers: "10.0.0.8".into(),
            origins: Vec::new(),
        }
    }

    /// The same addresses with origins.
    fn binary() -> Addresses {
        Addresses {
            origins: vec![origin::OTHER, origin::STATIC, origin::UNKNOWN],
            ..given()
        }
    }

    #[test]
    fn addresses_go_both_ways() {
        for (version, given) in [((3, 0), given()), ((4, 0), given()), ((5, 0), binary())] {
            let body = set_ip_info(version, &given).unwrap();
            assert_eq!(body.len(), LENGTH);
            assert_eq!(body[..2], [SET_IP_INFO, GUEST]);
            assert_eq!(read(version, &body).as_ref(), Some(&given), "{version:?}");
            let body = get_ip_info(version, "00:15");
            assert_eq!(body.len(), LENGTH);
            assert_eq!(body[..2], [GET_IP_INFO, GUEST]);
            let asked = read(version, &body).map(|it| (it.adapter, it.addresses));
            assert_eq!(asked, Some(("00:15".into(), String::new())));
        }
    }

    #[test]
    fn the_binary_layout_is_a_hosts() {
        let body = set_ip_info((5, 0), &binary()).unwrap();
        let counts: Vec<u32> = COUNTS
            .into_iter()
            .filter_map(|at| u32_at(&body, at))
            .collect();
        assert_eq!(counts, [2, 1, 1, 1, 1, 0]);
        assert_eq!(body[28..32], [b'{', 0, b'i', 0]);
        assert_eq!(body[284..288], [3, 1, 0, 0]);
        assert_eq!(body[288..296], [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!((body[544], body[559]), (0xfd, 1));
        assert_eq!(body[1568..1576], [255, 0, 0, 0, 255, 255, 0, 0]);
        assert_eq!(body[1824..1828], [64, 0, 0, 0]);
        assert_eq!(body[2080..2084], [10, 0, 0, 9]);
        assert_eq!((body[2100], body[2115]), (0xfe, 9));
        assert_eq!(body[2180..2184], [10, 0, 0, 8]);
        assert_eq!(body[3460..3468], [1, 0, 2, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn impossible_counts_are_not_read() {
        let mut body = set_ip_info((5, 0), &given()).unwrap();
        for (at, most) in [(4, 64), (8, 64), (12, 5), (16, 5), (20, 64), (24, 64)] {
            let before = body[at];
            body[at] = most;
            assert!(read((5, 0), &body).is_some(), "{at}");
            body[at] = most + 1;
            assert_eq!(read((5, 0), &body), None, "{at}");
            body[at] = before;
        }
        assert_eq!(read((5, 0), &body[..3715]), None);
        let many = Addresses {
            gateways: "10.0.0.1;".repeat(6),
            ..Addresses::default()
        };
        assert_eq!(set_ip_info((5, 0), &many), None);
        let none = Addresses {
            gateways: "nowhere".into(),
            ..Addresses::default()
        };
        assert_eq!(set_ip_info((5, 0), &none), None);
    }
}
