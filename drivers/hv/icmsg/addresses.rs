// SPDX-License-Identifier: GPL-2.0

//! IP settings of a network adapter in key-value pair messages: conversion between the host's
//! messages and the daemon's.
//!
//! The daemon uses UTF-8 text: a `struct hv_kvp_ipaddr_value` with four lists, whose entries are
//! separated by `;`. Up to version 4.0, the host uses the same structure with UTF-16 text. Since
//! version 5.0, the host uses binary numbers at offset 4 of the body, with the following layout.
//! The source is OpenVMM, Microsoft's open-source virtual machine monitor (crate
//! `hyperv_ic_protocol`). Numbers are little-endian. The bytes of an address are in network order.
//!
//! | Offset | Field                                                                            |
//! | ------ | -------------------------------------------------------------------------------- |
//! | 0      | numbers of addresses, gateways and name servers, of IPv4 and IPv6 each, u32 x6   |
//! | 24     | adapter id u16 x128                                                              |
//! | 280    | family u8, DHCP u8, padding u16                                                  |
//! | 284    | addresses: 64 of IPv4, 64 of IPv6                                                |
//! | 1564   | masks of the IPv4 addresses, x64; prefix lengths of the IPv6 addresses, u32 x64  |
//! | 2076   | gateways: 5 of IPv4, 5 of IPv6                                                   |
//! | 2176   | name servers: 64 of IPv4, 64 of IPv6                                             |
//! | 3456   | origins u16 x128: of the IPv4 addresses, directly followed by those of IPv6      |
//!
//! C header: [`include/uapi/linux/hyperv.h`](srctree/include/uapi/linux/hyperv.h)
//! (`struct hv_kvp_ipaddr_value`).

use super::{
    text::{
        utf16_to_utf8,
        utf8_to_utf16, //
    },
    wire,
    Version, //
};
use core::{
    fmt::{
        self,
        Write, //
    },
    net::{
        IpAddr,
        Ipv4Addr, //
    },
    ops::Range,
    str, //
};

/// The layout of `struct hv_kvp_ipaddr_value`. Offsets and sizes are in bytes.
mod text {
    use super::Range;

    pub(super) const ADAPTER: Range<usize> = 0..256;
    pub(super) const FAMILY: usize = 256;
    pub(super) const DHCP: usize = 257;
    pub(super) const ADDRESSES: Range<usize> = 258..2306;
    pub(super) const SUBNETS: Range<usize> = 2306..4354;
    pub(super) const GATEWAYS: Range<usize> = 4354..5378;
    pub(super) const NAME_SERVERS: Range<usize> = 5378..7426;
    pub(super) const LEN: usize = 7426;
}

/// The layout of the host's binary numbers. Offsets are those of the table above, in bytes.
mod binary {
    use super::{
        Field,
        List,
        Range, //
    };

    pub(super) const ADAPTER: Range<usize> = 24..280;
    pub(super) const FAMILY: usize = 280;
    pub(super) const DHCP: usize = 281;
    pub(super) const ADDRESSES: List = List {
        field: Field::Addresses,
        counts: [0, 4],
        at: [284, 540],
        room: 64,
    };
    pub(super) const MASKS: usize = 1564;
    pub(super) const PREFIXES: usize = 1820;
    pub(super) const GATEWAYS: List = List {
        field: Field::Gateways,
        counts: [8, 12],
        at: [2076, 2096],
        room: 5,
    };
    pub(super) const NAME_SERVERS: List = List {
        field: Field::NameServers,
        counts: [16, 20],
        at: [2176, 2432],
        room: 64,
    };
    pub(super) const ORIGINS: usize = 3456;
    pub(super) const LEN: usize = 3712;
}

/// The maximum prefix length of an IPv6 address, in bits.
const MAX_PREFIX: u32 = 128;

/// The origins of addresses.
mod origin {
    /// An origin that has no number of its own, such as DHCP.
    pub(super) const OTHER: u16 = 1;
    pub(super) const STATIC: u16 = 2;
}

/// A part of the IP settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    /// The adapter's id.
    Adapter,
    /// The addresses.
    Addresses,
    /// The masks and prefix lengths of the addresses.
    Subnets,
    /// The gateways.
    Gateways,
    /// The name servers.
    NameServers,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adapter => "adapter's id",
            Self::Addresses => "addresses",
            Self::Subnets => "subnets",
            Self::Gateways => "gateways",
            Self::NameServers => "name servers",
        })
    }
}

/// The family of an address. The number is an index into pairs in this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    V4 = 0,
    /// IPv6.
    V6 = 1,
}

impl Family {
    /// Returns the family of `address`.
    const fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Why IP settings could not be converted. A list that does not fit is an error: it is never
/// truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// A list has more entries than the host's message has room for.
    TooMany {
        /// The list.
        field: Field,
        /// The family of the entries.
        family: Family,
        /// The number of entries that fit.
        room: usize,
    },
    /// A text does not fit into the daemon's message.
    TooLong(Field),
    /// The daemon's text has no NUL.
    Endless(Field),
    /// An entry of the list is not valid.
    Invalid(Field),
    /// The daemon has more subnets than addresses.
    TooManySubnets,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany {
                field,
                family,
                room,
            } => {
                let family = match family {
                    Family::V4 => "IPv4",
                    Family::V6 => "IPv6",
                };
                write!(f, "more than {room} {family} {field}")
            }
            Self::TooLong(field) => write!(f, "too long for the daemon: {field}"),
            Self::Endless(field) => write!(f, "the daemon's text of {field} has no end"),
            Self::Invalid(field) => write!(f, "invalid {field}"),
            Self::TooManySubnets => f.write_str("the daemon has more subnets than addresses"),
        }
    }
}

/// Information that the host's answer lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Omitted {
    /// Number of addresses for which the daemon's text has no subnet. The host gets masks and
    /// prefix lengths of 0 for these.
    pub(crate) subnets: usize,
    /// Number of gateways and name servers in the daemon's text that are not addresses. The host
    /// does not get these.
    pub(crate) not_addresses: usize,
}

impl Omitted {
    /// The answer is complete.
    pub(crate) const NOTHING: Self = Self {
        subnets: 0,
        not_addresses: 0,
    };
}

impl fmt::Display for Omitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "subnets missing: {}, gateways and name servers that are no addresses: {}",
            self.subnets, self.not_addresses
        )
    }
}

/// The layout of IP settings in the host's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// UTF-16 text at offset 2 of the body.
    Text,
    /// Binary numbers at offset 4 of the body.
    Binary,
}

impl Layout {
    /// Returns the layout in messages of this version.
    pub(crate) fn of(version: Version) -> Self {
        match version >= Version::new(5, 0) {
            true => Self::Binary,
            false => Self::Text,
        }
    }

    /// Returns the offset of the IP settings in the body.
    const fn start(self) -> usize {
        match self {
            Self::Text => 2,
            Self::Binary => 4,
        }
    }

    /// Returns the size of the body of a host's message about IP settings, in bytes.
    pub(crate) const fn host_len(self) -> usize {
        self.start()
            + match self {
                Self::Text => text::LEN,
                Self::Binary => binary::LEN,
            }
    }

    /// Converts the host's request in `body` to `to`, a zeroed `struct hv_kvp_ipaddr_value`. With
    /// `is_set`, converts all settings, otherwise only the adapter's id and the family. `body` must
    /// have at least [`Layout::host_len`] bytes.
    pub(crate) fn to_daemon(self, body: &[u8], is_set: bool, to: &mut [u8]) -> Result<(), Error> {
        let from = &body[self.start()..];
        match self {
            Self::Text => text_to_daemon(from, is_set, to),
            Self::Binary => binary_to_daemon(from, is_set, to),
        }
    }

    /// Converts the daemon's answer in `from`, a `struct hv_kvp_ipaddr_value`, to the host's answer
    /// in `body`. [`Layout::to_daemon`] must have accepted `body`. After an error, the answer
    /// contains no addresses.
    pub(crate) fn to_host(self, from: &[u8], body: &mut [u8]) -> Result<Omitted, Error> {
        let to = &mut body[self.start()..];
        match self {
            Self::Text => {
                text_from_daemon(from, to);
                Ok(Omitted::NOTHING)
            }
            Self::Binary => binary_from_daemon(from, to),
        }
    }
}

/// The lists in a `struct hv_kvp_ipaddr_value`.
const TEXT_LISTS: [(Field, Range<usize>); 4] = [
    (Field::Addresses, text::ADDRESSES),
    (Field::Subnets, text::SUBNETS),
    (Field::Gateways, text::GATEWAYS),
    (Field::NameServers, text::NAME_SERVERS),
];

/// See [`Layout::to_daemon`]. `from` and `to` begin with the IP settings, here and below.
fn text_to_daemon(from: &[u8], is_set: bool, to: &mut [u8]) -> Result<(), Error> {
    let mut convert = |field, at: Range<usize>| {
        utf16_to_utf8(&from[at.clone()], &mut to[at]).map_err(|_| Error::TooLong(field))
    };
    convert(Field::Adapter, text::ADAPTER)?;
    if is_set {
        for (field, at) in TEXT_LISTS {
            convert(field, at)?;
        }
        to[text::DHCP] = from[text::DHCP];
    }
    to[text::FAMILY] = from[text::FAMILY];
    Ok(())
}

/// See [`Layout::to_host`].
fn text_from_daemon(from: &[u8], to: &mut [u8]) {
    utf8_to_utf16(&from[text::ADAPTER], &mut to[text::ADAPTER]);
    to[text::FAMILY] = from[text::FAMILY];
    to[text::DHCP] = from[text::DHCP];
    for (_, at) in TEXT_LISTS {
        utf8_to_utf16(&from[at.clone()], &mut to[at]);
    }
}

/// A list of IPv4 addresses and a list of IPv6 addresses in the host's message. Index 0 of a pair
/// is IPv4, index 1 IPv6.
struct List {
    field: Field,
    /// The offsets of the numbers of addresses.
    counts: [usize; 2],
    /// The offsets of the addresses.
    at: [usize; 2],
    /// The number of addresses of each family that fit.
    room: usize,
}

impl List {
    fn too_many(&self, family: Family) -> Error {
        Error::TooMany {
            field: self.field,
            family,
            room: self.room,
        }
    }

    /// Returns the number of addresses of a family in the host's message.
    fn count(&self, from: &[u8], family: Family) -> Result<usize, Error> {
        usize::try_from(wire::u32_at(from, self.counts[family as usize]))
            .ok()
            .filter(|count| *count <= self.room)
            .ok_or(self.too_many(family))
    }

    /// Returns the addresses in the host's message, IPv4 first.
    fn read<'a>(&self, from: &'a [u8]) -> Result<impl Iterator<Item = IpAddr> + 'a, Error> {
        let four = numbers(from, self.at[0], self.count(from, Family::V4)?);
        let six = numbers(from, self.at[1], self.count(from, Family::V6)?);
        Ok(four
            .map(|bytes: [u8; 4]| IpAddr::from(bytes))
            .chain(six.map(|bytes: [u8; 16]| IpAddr::from(bytes))))
    }

    /// Appends an address to the list of its family in the host's message, and increments its count
    /// in `counts`. Returns the index of the address in the list.
    fn push(&self, to: &mut [u8], counts: &mut Counts, address: IpAddr) -> Result<usize, Error> {
        let family = Family::of(&address);
        let count = &mut counts[family as usize];
        let index = *count;
        if index >= self.room {
            return Err(self.too_many(family));
        }
        *count += 1;
        let at = self.at[family as usize];
        match address {
            IpAddr::V4(address) => put(to, at, index, &address.octets()),
            IpAddr::V6(address) => put(to, at, index, &address.octets()),
        }
        Ok(index)
    }

    /// Converts a list in the daemon's text to the host's lists. Returns the numbers of addresses.
    /// Scripts of distributions generate the text, and some entries are not addresses. These
    /// entries are counted in `omitted`.
    fn write(&self, from: &[u8], to: &mut [u8], omitted: &mut usize) -> Result<Counts, Error> {
        let mut counts = Counts::default();
        for entry in entries(self.field, from)? {
            match parse_address(self.field, entry) {
                Ok(address) => _ = self.push(to, &mut counts, address)?,
                Err(_) => *omitted += 1,
            }
        }
        Ok(counts)
    }

    /// Writes the numbers of addresses to the host's message.
    fn put_counts(&self, to: &mut [u8], counts: Counts) {
        for (at, count) in self.counts.into_iter().zip(counts) {
            // CAST: The count is at most `room`.
            wire::put_u32(to, at, count as u32);
        }
    }
}

/// The numbers of IPv4 and IPv6 addresses.
type Counts = [usize; 2];

/// Returns `count` numbers of `N` bytes each, from offset `at` on.
fn numbers<const N: usize>(
    from: &[u8],
    at: usize,
    count: usize,
) -> impl Iterator<Item = [u8; N]> + '_ {
    from[at..at + count * N]
        .chunks_exact(N)
        .map(|bytes| wire::array_at(bytes, 0))
}

/// Writes the element at `index` of an array of numbers that starts at offset `at`.
fn put<const N: usize>(to: &mut [u8], at: usize, index: usize, number: &[u8; N]) {
    to[at + index * N..][..N].copy_from_slice(number);
}

/// See [`Layout::to_daemon`].
fn binary_to_daemon(from: &[u8], is_set: bool, to: &mut [u8]) -> Result<(), Error> {
    utf16_to_utf8(&from[binary::ADAPTER], &mut to[text::ADAPTER])
        .map_err(|_| Error::TooLong(Field::Adapter))?;
    to[text::FAMILY] = from[binary::FAMILY];
    if !is_set {
        return Ok(());
    }
    to[text::DHCP] = from[binary::DHCP];
    let four = binary::ADDRESSES.count(from, Family::V4)?;
    let six = binary::ADDRESSES.count(from, Family::V6)?;
    let addresses = binary::ADDRESSES.read(from)?;
    write_entries(Field::Addresses, addresses, &mut to[text::ADDRESSES])?;

    let mut subnets = Entries::new(Field::Subnets, &mut to[text::SUBNETS]);
    for mask in numbers::<4>(from, binary::MASKS, four) {
        let bits = u32::from_be_bytes(mask);
        // The daemon counts the bits of the mask. If the mask had a hole, the daemon would set
        // another subnet.
        if bits.leading_ones() != bits.count_ones() {
            return Err(Error::Invalid(Field::Subnets));
        }
        subnets.push(&Ipv4Addr::from(mask))?;
    }
    for prefix in numbers(from, binary::PREFIXES, six).map(u32::from_le_bytes) {
        if prefix > MAX_PREFIX {
            return Err(Error::Invalid(Field::Subnets));
        }
        // The daemon expects no `/` before a prefix length, although it writes one.
        subnets.push(&prefix)?;
    }

    let gateways = binary::GATEWAYS.read(from)?;
    write_entries(Field::Gateways, gateways, &mut to[text::GATEWAYS])?;
    let servers = binary::NAME_SERVERS.read(from)?;
    write_entries(Field::NameServers, servers, &mut to[text::NAME_SERVERS])
}

/// See [`Layout::to_host`].
fn binary_from_daemon(from: &[u8], to: &mut [u8]) -> Result<Omitted, Error> {
    to[..binary::ADAPTER.start].fill(0);
    to[binary::FAMILY..binary::LEN].fill(0);

    let mut omitted = Omitted::NOTHING;
    let mut addresses = Counts::default();
    let mut subnets = entries(Field::Subnets, &from[text::SUBNETS])?;
    for entry in entries(Field::Addresses, &from[text::ADDRESSES])? {
        let address = parse_address(Field::Addresses, entry)?;
        let index = binary::ADDRESSES.push(to, &mut addresses, address)?;
        // If there are many subnets, the daemon leaves out the last ones.
        let Some(subnet) = subnets.next() else {
            omitted.subnets += 1;
            continue;
        };
        match address {
            IpAddr::V4(_) => put(to, binary::MASKS, index, &parse_mask(subnet)?.octets()),
            IpAddr::V6(_) => put(
                to,
                binary::PREFIXES,
                index,
                &parse_prefix(subnet)?.to_le_bytes(),
            ),
        }
    }
    if subnets.next().is_some() {
        return Err(Error::TooManySubnets);
    }
    let gateways = binary::GATEWAYS.write(&from[text::GATEWAYS], to, &mut omitted.not_addresses)?;
    let servers =
        binary::NAME_SERVERS.write(&from[text::NAME_SERVERS], to, &mut omitted.not_addresses)?;

    let has_dhcp = from[text::DHCP] != 0;
    to[binary::FAMILY] = from[text::FAMILY];
    to[binary::DHCP] = u8::from(has_dhcp);
    let origin = match has_dhcp {
        true => origin::OTHER,
        false => origin::STATIC,
    };
    for index in 0..addresses.iter().sum() {
        put(to, binary::ORIGINS, index, &origin.to_le_bytes());
    }
    // Write the counts last: after an error, all counts are 0.
    binary::ADDRESSES.put_counts(to, addresses);
    binary::GATEWAYS.put_counts(to, gateways);
    binary::NAME_SERVERS.put_counts(to, servers);
    Ok(omitted)
}

/// Returns the entries of a list in the daemon's text.
fn entries(field: Field, list: &[u8]) -> Result<impl Iterator<Item = &[u8]>, Error> {
    // If the NUL is missing, the end of the last entry may be missing, too.
    let end = list.iter().position(|byte| *byte == 0);
    let list = &list[..end.ok_or(Error::Endless(field))?];
    Ok(list
        .split(|byte| *byte == b';')
        .map(<[u8]>::trim_ascii)
        .filter(|entry| !entry.is_empty()))
}

/// Parses an entry of a list.
fn parse<T: str::FromStr>(field: Field, entry: &[u8]) -> Result<T, Error> {
    str::from_utf8(entry)
        .ok()
        .and_then(|entry| entry.parse().ok())
        .ok_or(Error::Invalid(field))
}

/// Parses an address. Ignores a zone, as in the name server `fe80::1%eth0`: an interface of the
/// guest means nothing to the host.
fn parse_address(field: Field, entry: &[u8]) -> Result<IpAddr, Error> {
    let (address, zone) = match entry.iter().position(|byte| *byte == b'%') {
        Some(at) => (&entry[..at], true),
        None => (entry, false),
    };
    match parse(field, address)? {
        IpAddr::V4(_) if zone => Err(Error::Invalid(field)),
        address => Ok(address),
    }
}

/// Parses the mask of an IPv4 address.
fn parse_mask(entry: &[u8]) -> Result<Ipv4Addr, Error> {
    parse(Field::Subnets, entry)
}

/// Parses the prefix length of an IPv6 address, such as `/64`.
fn parse_prefix(entry: &[u8]) -> Result<u32, Error> {
    let number = entry.strip_prefix(b"/").unwrap_or(entry);
    // `parse()` would accept a `+`.
    if !number.iter().all(u8::is_ascii_digit) {
        return Err(Error::Invalid(Field::Subnets));
    }
    parse(Field::Subnets, number).and_then(|prefix| match prefix <= MAX_PREFIX {
        true => Ok(prefix),
        false => Err(Error::Invalid(Field::Subnets)),
    })
}

/// Writes a list to the daemon's message.
fn write_entries(
    field: Field,
    entries: impl Iterator<Item = IpAddr>,
    to: &mut [u8],
) -> Result<(), Error> {
    let mut list = Entries::new(field, to);
    for entry in entries {
        list.push(&entry)?;
    }
    Ok(())
}

/// A list in the daemon's message that is being written.
struct Entries<'a> {
    field: Field,
    to: &'a mut [u8],
    len: usize,
}

impl<'a> Entries<'a> {
    /// Creates an empty list in `to`, which must be zeroed.
    fn new(field: Field, to: &'a mut [u8]) -> Self {
        Self { field, to, len: 0 }
    }

    /// Appends an entry.
    fn push(&mut self, entry: &dyn fmt::Display) -> Result<(), Error> {
        let separator = if self.len > 0 { ";" } else { "" };
        write!(self, "{separator}{entry}").map_err(|_| Error::TooLong(self.field))
    }
}

impl Write for Entries<'_> {
    /// Leaves at least two zero bytes: the daemon looks for another entry behind the NUL of the
    /// last entry.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        if end + 2 > self.to.len() {
            return Err(fmt::Error);
        }
        self.to[self.len..end].copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[cfg(any(test, CONFIG_KUNIT = "y"))]
#[cfg_attr(not(test), kernel::prelude::kunit_tests(hv_utils_addresses))]
mod tests {
    use super::super::tests::{
        bytes,
        shows, //
    };
    use super::*;

    const BODY_LEN: usize = Layout::Text.host_len();
    const START: usize = Layout::Binary.start();

    /// The daemon's text with addresses of both families, in the order of `getifaddrs()`.
    const LISTS: [(Range<usize>, &[u8]); 4] = [
        (text::ADDRESSES, b"10.0.0.1;10.0.0.2;fd00::1"),
        (text::SUBNETS, b"255.0.0.0;255.255.0.0;/64"),
        (text::GATEWAYS, b"10.0.0.9;fe80::9;"),
        (text::NAME_SERVERS, b"10.0.0.8;fe80::1%eth0;"),
    ];

    fn put_text(to: &mut [u8], at: &Range<usize>, list: &[u8]) {
        to[at.start..][..list.len()].copy_from_slice(list);
    }

    /// Returns the first `N` bytes of a list in the daemon's text.
    fn list<const N: usize>(of: &[u8], at: Range<usize>) -> [u8; N] {
        wire::array_at(of, at.start)
    }

    const WHOLE: Result<Omitted, Error> = Ok(Omitted::NOTHING);

    fn from_daemon(field: Range<usize>, list: &[u8]) -> Result<Omitted, Error> {
        let mut from = bytes(0, text::LEN);
        put_text(&mut from, &field, list);
        Layout::Binary.to_host(&from, &mut bytes(0, BODY_LEN))
    }

    fn host_counts(body: &[u8]) -> [u32; 6] {
        [0, 4, 8, 12, 16, 20].map(|at| wire::u32_at(body, START + at))
    }

    #[test]
    fn the_layouts_are_those_of_the_structures() {
        assert_eq!((text::LEN, BODY_LEN), (7426, 7428));
        assert_eq!(Layout::Binary.host_len(), 3716);
        assert_eq!(Layout::of(Version::new(4, 0)), Layout::Text);
        assert_eq!(Layout::of(Version::new(5, 0)), Layout::Binary);
        for list in [binary::ADDRESSES, binary::GATEWAYS, binary::NAME_SERVERS] {
            assert_eq!(list.at[0] + 4 * list.room, list.at[1]);
        }
        assert_eq!(binary::ADDRESSES.at[1] + 16 * 64, binary::MASKS);
        assert_eq!(binary::MASKS + 4 * 64, binary::PREFIXES);
        assert_eq!(binary::PREFIXES + 4 * 64, binary::GATEWAYS.at[0]);
        assert_eq!(binary::GATEWAYS.at[1] + 16 * 5, binary::NAME_SERVERS.at[0]);
        assert_eq!(binary::NAME_SERVERS.at[1] + 16 * 64, binary::ORIGINS);
        assert_eq!(binary::ORIGINS + 2 * 128, binary::LEN);
    }

    #[test]
    fn text_goes_both_ways() {
        let mut host = bytes(0, BODY_LEN);
        host[2 + text::FAMILY] = 1;
        host[2 + text::DHCP] = 1;
        host[2..6].copy_from_slice(b"{\0i\0");
        for (_, at) in TEXT_LISTS {
            host[2 + at.start..][..6].copy_from_slice(b"1\0.\0;\0");
        }
        let mut daemon = bytes(0, text::LEN);
        assert_eq!(Layout::Text.to_daemon(&host, true, &mut daemon), Ok(()));
        assert_eq!(daemon[..3], *b"{i\0");
        for (_, at) in TEXT_LISTS {
            assert_eq!(&list(&daemon, at), b"1.;\0");
        }
        let mut answer = bytes(0, BODY_LEN);
        assert_eq!(Layout::Text.to_host(&daemon, &mut answer), WHOLE);
        assert_eq!(answer, host);
    }

    #[test]
    fn numbers_go_both_ways() {
        let mut daemon = bytes(0, text::LEN);
        for (at, list) in LISTS {
            put_text(&mut daemon, &at, list);
        }
        daemon[text::FAMILY] = 3;
        let mut host = bytes(0, BODY_LEN);
        host[START + binary::ADAPTER.start..][..4].copy_from_slice(b"{\0i\0");
        assert_eq!(Layout::Binary.to_host(&daemon, &mut host), WHOLE);
        assert_eq!(host_counts(&host), [2, 1, 1, 1, 1, 1]);
        let at = |at: usize| &host[START + at..];
        assert_eq!(at(24)[..4], *b"{\0i\0");
        assert_eq!(at(280)[..4], [3, 0, 0, 0]);
        assert_eq!(at(284)[..9], [10, 0, 0, 1, 10, 0, 0, 2, 0]);
        assert_eq!((at(540)[0], at(540)[15]), (0xfd, 1));
        assert_eq!(at(1564)[..9], [255, 0, 0, 0, 255, 255, 0, 0, 0]);
        assert_eq!(at(1820)[..5], [64, 0, 0, 0, 0]);
        assert_eq!(at(2076)[..4], [10, 0, 0, 9]);
        assert_eq!((at(2096)[0], at(2096)[15]), (0xfe, 9));
        assert_eq!(at(2176)[..4], [10, 0, 0, 8]);
        assert_eq!((at(2432)[0], at(2432)[15]), (0xfe, 1));
        assert_eq!(at(3456)[..8], [2, 0, 2, 0, 2, 0, 0, 0]);

        host[START + binary::DHCP] = 1;
        let mut again = bytes(0, text::LEN);
        assert_eq!(Layout::Binary.to_daemon(&host, true, &mut again), Ok(()));
        assert_eq!(again[..3], *b"{i\0");
        assert_eq!(again[text::FAMILY..text::ADDRESSES.start], [3, 1]);
        let (addresses, subnets) = (text::ADDRESSES, text::SUBNETS);
        assert_eq!(&list(&again, addresses), b"10.0.0.1;10.0.0.2;fd00::1\0");
        assert_eq!(&list(&again, subnets), b"255.0.0.0;255.255.0.0;64\0");
        assert_eq!(&list(&again, text::GATEWAYS), b"10.0.0.9;fe80::9\0");
        assert_eq!(&list(&again, text::NAME_SERVERS), b"10.0.0.8;fe80::1\0");
    }

    #[test]
    fn addresses_from_dhcp_are_of_another_origin() {
        let mut daemon = bytes(0, text::LEN);
        put_text(&mut daemon, &text::ADDRESSES, b"10.0.0.1");
        put_text(&mut daemon, &text::SUBNETS, b"255.0.0.0");
        daemon[text::DHCP] = 1;
        // The answer must not depend on bytes that the host has sent.
        let mut host = bytes(0xff, BODY_LEN);
        assert_eq!(Layout::Binary.to_host(&daemon, &mut host), WHOLE);
        assert_eq!(host_counts(&host), [1, 0, 0, 0, 0, 0]);
        assert_eq!(host[START + binary::DHCP], 1);
        assert_eq!(host[START + binary::ORIGINS..][..4], [1, 0, 0, 0]);
    }

    #[test]
    fn a_get_asks_for_the_adapter_only() {
        let host = bytes(0xff, BODY_LEN);
        let mut daemon = bytes(0, text::LEN);
        assert_eq!(
            Layout::Binary.to_daemon(&host, false, &mut daemon),
            Err(Error::TooLong(Field::Adapter))
        );
        let mut host = bytes(0xff, BODY_LEN);
        host[START + binary::ADAPTER.start..][..4].copy_from_slice(b"a\0\0\0");
        let mut daemon = bytes(0, text::LEN);
        assert_eq!(Layout::Binary.to_daemon(&host, false, &mut daemon), Ok(()));
        assert_eq!(daemon[..2], *b"a\0");
        assert!(daemon[text::DHCP..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_the_host_has_no_room_for_is_refused() {
        for (list, at) in [
            (binary::ADDRESSES, text::ADDRESSES),
            (binary::GATEWAYS, text::GATEWAYS),
            (binary::NAME_SERVERS, text::NAME_SERVERS),
        ] {
            for (family, address, subnet) in [
                (Family::V4, &b"1.2.3.4;"[..], &b"255.0.0.0;"[..]),
                (Family::V6, b"fd00::1;", b"/64;"),
            ] {
                let mut daemon = bytes(0, text::LEN);
                let mut host = bytes(0, BODY_LEN);
                for index in 0..=list.room {
                    put_text(&mut daemon[index * 8..], &at, address);
                    if list.field == Field::Addresses {
                        put_text(&mut daemon[index * subnet.len()..], &text::SUBNETS, subnet);
                    }
                    let result = Layout::Binary.to_host(&daemon, &mut host);
                    let counts = host_counts(&host);
                    if index < list.room {
                        assert_eq!(result, WHOLE);
                        assert_eq!(counts.iter().sum::<u32>() as usize, index + 1);
                    } else {
                        assert_eq!(result, Err(list.too_many(family)));
                        assert_eq!(counts, [0; 6]);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_address_is_no_success() {
        for list in [
            &b"x"[..],
            b"1.2.3",
            b"1.2.3.4.5",
            b"1.2.3.256",
            b"1.2.3.4%eth0",
            b"fe80:::1",
            b"%eth0",
            b"1.2.3.4,1.2.3.5",
            b"\xff",
            b"getifaddrs failed\n",
        ] {
            let invalid = Err(Error::Invalid(Field::Addresses));
            assert_eq!(from_daemon(text::ADDRESSES, list), invalid);
            let omitted = Ok(Omitted {
                subnets: 0,
                not_addresses: 1,
            });
            assert_eq!(from_daemon(text::GATEWAYS, list), omitted);
            assert_eq!(from_daemon(text::NAME_SERVERS, list), omitted);
        }
        assert_eq!(from_daemon(text::GATEWAYS, b";; 1.2.3.4 ;\n;"), WHOLE);
    }

    #[test]
    fn a_name_server_that_is_no_address_hides_no_other() {
        let mut daemon = bytes(0, text::LEN);
        put_text(
            &mut daemon,
            &text::NAME_SERVERS,
            b"1.2.3.4;x;1.2.3.5;;y;::1",
        );
        put_text(&mut daemon, &text::GATEWAYS, b"z;1.2.3.6");
        let mut host = bytes(0, BODY_LEN);
        let omitted = Ok(Omitted {
            subnets: 0,
            not_addresses: 3,
        });
        assert_eq!(Layout::Binary.to_host(&daemon, &mut host), omitted);
        assert_eq!(host_counts(&host), [0, 0, 1, 0, 2, 1]);
        let servers = &host[START + binary::NAME_SERVERS.at[0]..];
        assert_eq!(servers[..9], [1, 2, 3, 4, 1, 2, 3, 5, 0]);
    }

    #[test]
    fn each_address_has_its_subnet() {
        let result = |addresses: &[u8], subnets: &[u8]| {
            let mut daemon = bytes(0, text::LEN);
            put_text(&mut daemon, &text::ADDRESSES, addresses);
            put_text(&mut daemon, &text::SUBNETS, subnets);
            Layout::Binary.to_host(&daemon, &mut bytes(0, BODY_LEN))
        };
        for (addresses, subnets) in [(&b""[..], &b"255.0.0.0"[..]), (b"fd00::1", b"/64;/64")] {
            assert_eq!(result(addresses, subnets), Err(Error::TooManySubnets));
        }
        for (addresses, subnets, count) in [
            (&b"1.2.3.4"[..], &b""[..], 1),
            (b"1.2.3.4;fd00::1", b"255.0.0.0;", 1),
            (b"fd00::1;fd00::2;fd00::3", b"/64", 2),
        ] {
            let omitted = Omitted {
                subnets: count,
                not_addresses: 0,
            };
            assert_eq!(result(addresses, subnets), Ok(omitted));
        }
        for (addresses, subnets) in [
            (&b"1.2.3.4"[..], &b"/8"[..]),
            (b"1.2.3.4", b"255.0.0"),
            (b"fd00::1", b"255.0.0.0"),
            (b"fd00::1", b"/129"),
            (b"fd00::1", b"/+64"),
            (b"fd00::1", b"/"),
            (b"fd00::1", b"/4294967360"),
        ] {
            let invalid = Err(Error::Invalid(Field::Subnets));
            assert_eq!(result(addresses, subnets), invalid);
        }
        assert_eq!(result(b"fd00::1;1.2.3.4", b"128;0.0.0.0"), WHOLE);
    }

    #[test]
    fn text_without_an_end_is_refused() {
        for (field, at) in TEXT_LISTS {
            let mut daemon = bytes(0, text::LEN);
            daemon[at.clone()].fill(b';');
            let mut host = bytes(0, BODY_LEN);
            let result = Layout::Binary.to_host(&daemon, &mut host);
            assert_eq!(result, Err(Error::Endless(field)));
            daemon[at.end - 1] = 0;
            let result = Layout::Binary.to_host(&daemon, &mut host);
            assert_eq!(result, WHOLE);
        }
    }

    #[test]
    fn what_the_host_cannot_have_is_refused() {
        let refused = |host: &[u8], error| {
            let result = Layout::Binary.to_daemon(host, true, &mut bytes(0, text::LEN));
            assert_eq!(result, Err(error));
        };
        for list in [binary::ADDRESSES, binary::GATEWAYS, binary::NAME_SERVERS] {
            for family in [Family::V4, Family::V6] {
                for count in [list.room as u32 + 1, 0x8000_0000, u32::MAX] {
                    let mut host = bytes(0, BODY_LEN);
                    wire::put_u32(&mut host, START + list.counts[family as usize], count);
                    refused(&host, list.too_many(family));
                }
            }
        }
        let mut host = bytes(0, BODY_LEN);
        wire::put_u32(&mut host, START + 4, 1);
        wire::put_u32(&mut host, START + binary::PREFIXES, 129);
        refused(&host, Error::Invalid(Field::Subnets));
    }

    #[test]
    fn a_mask_has_no_hole() {
        for (mask, is_valid) in [
            ([0, 0, 0, 0], true),
            ([255, 255, 254, 0], true),
            ([255, 255, 255, 255], true),
            ([255, 0, 255, 0], false),
            ([0, 0, 0, 1], false),
        ] {
            let mut host = bytes(0, BODY_LEN);
            wire::put_u32(&mut host, START, 1);
            host[START + binary::MASKS..][..4].copy_from_slice(&mask);
            let result = Layout::Binary.to_daemon(&host, true, &mut bytes(0, text::LEN));
            let invalid = Err(Error::Invalid(Field::Subnets));
            assert_eq!(result, if is_valid { Ok(()) } else { invalid });
        }
    }

    #[test]
    fn what_the_daemon_has_no_room_for_is_refused() {
        // The longest IPv6 addresses have 39 characters. The 52nd address has another length.
        let result = |count, last: &[u8]| {
            let mut host = bytes(0, BODY_LEN);
            let (addresses, behind) = (START + 540, START + 540 + 51 * 16);
            host[addresses..START + binary::MASKS].fill(0xff);
            host[behind..behind + 16].fill(0);
            host[behind..behind + last.len()].copy_from_slice(last);
            wire::put_u32(&mut host, START + 4, count);
            let mut daemon = bytes(0, text::LEN);
            let result = Layout::Binary.to_daemon(&host, true, &mut daemon);
            assert_eq!(
                list(&daemon, text::SUBNETS.start - 2..text::SUBNETS.start),
                [0, 0]
            );
            result
        };
        let too_long = Err(Error::TooLong(Field::Addresses));
        assert_eq!(result(51, &[]), Ok(()));
        // "aabb::" and two zero bytes fill the text.
        assert_eq!(result(52, &[0xaa, 0xbb]), Ok(()));
        assert_eq!(result(52, &[0x0a, 0xab, 0x00, 0x0c]), too_long);
        assert_eq!(result(64, &[]), too_long);
    }

    #[test]
    fn what_is_wrong_is_shown_with_its_field() {
        let of = |family, field| Error::TooMany {
            field,
            family,
            room: 64,
        };
        for (error, text) in [
            (
                of(Family::V4, Field::Addresses),
                "more than 64 IPv4 addresses",
            ),
            (
                of(Family::V6, Field::Gateways),
                "more than 64 IPv6 gateways",
            ),
            (
                Error::TooLong(Field::Adapter),
                "too long for the daemon: adapter's id",
            ),
            (
                Error::Endless(Field::NameServers),
                "the daemon's text of name servers has no end",
            ),
            (Error::Invalid(Field::Subnets), "invalid subnets"),
            (
                Error::TooManySubnets,
                "the daemon has more subnets than addresses",
            ),
        ] {
            assert!(shows(error, text));
        }
    }

    #[test]
    fn what_the_answer_lacks_is_shown() {
        let omitted = Omitted {
            subnets: 2,
            not_addresses: 3,
        };
        assert!(shows(
            omitted,
            "subnets missing: 2, gateways and name servers that are no addresses: 3"
        ));
    }
}
