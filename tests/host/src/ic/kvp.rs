// SPDX-License-Identifier: GPL-2.0

//! KVP messages.
//!
//! A body begins with operation and pool. All other fields begin at offset 4. Fact: a host sends bodies in full size,
//! also where an operation uses a part only. [`super::addresses`] has the operations on addresses.
//!
//! Source: `struct hv_kvp_msg` of `include/uapi/linux/hyperv.h`.

pub use super::addresses::get_ip_info;
pub use super::addresses::origin;
pub use super::addresses::read as addresses;
pub use super::addresses::set_ip_info;
pub use super::addresses::Addresses;
pub use super::addresses::COUNTS;
pub use super::addresses::PREFIXES;
use super::text::utf16;
use super::text::utf16_sized;
use crate::bytes::put;
use crate::bytes::u32_at;
use crate::bytes::u64_at;
use crate::bytes::u8_at;
use crate::service::Version;

/// Operation: get the value of a key.
pub const GET: u8 = 0;
/// Operation: set the value of a key.
pub const SET: u8 = 1;
/// Operation: delete a key.
pub const DELETE: u8 = 2;
/// Operation: get key and value at an index.
pub const ENUMERATE: u8 = 3;
/// Operation: get an adapter's addresses.
pub const GET_IP_INFO: u8 = 4;
/// Operation: set an adapter's addresses.
pub const SET_IP_INFO: u8 = 5;

/// Pool: from the host to the guest.
pub const EXTERNAL: u8 = 0;
/// Pool: from the guest to the host.
pub const GUEST: u8 = 1;
/// Pool: facts about the guest, generated.
pub const AUTO: u8 = 2;
/// Pool: facts about the host, generated.
pub const AUTO_EXTERNAL: u8 = 3;
/// Pool: like [`AUTO`], but internal to the guest.
pub const AUTO_INTERNAL: u8 = 4;

/// Value type REG_SZ.
pub const SZ: u32 = 1;
/// Value type REG_EXPAND_SZ.
pub const EXPAND_SZ: u32 = 2;
/// Value type REG_BINARY. Fact: a host does not send this type.
pub const BINARY: u32 = 3;
/// Value type REG_DWORD.
pub const DWORD: u32 = 4;
/// Value type REG_QWORD.
pub const QWORD: u32 = 11;

/// Size of a body in bytes, except for operations on addresses.
pub const LENGTH: usize = 2580;

/// Offset of the fields behind operation and pool, except for operations on addresses.
pub const BODY: usize = 4;

/// Offsets within a value structure.
pub mod value {
    /// Type (u32).
    pub const TYPE: usize = 0;
    /// Size of the key in bytes (u32). The NUL counts.
    pub const KEY_SIZE: usize = 4;
    /// Size of the value in bytes (u32). A string's NUL counts.
    pub const VALUE_SIZE: usize = 8;
    /// The key.
    pub const KEY: usize = 12;
    /// Bytes reserved for the key.
    pub const KEY_MAX: usize = 512;
    /// The value.
    pub const VALUE: usize = 524;
    /// Bytes reserved for the value.
    pub const VALUE_MAX: usize = 2048;
}

fn body(operation: u8, pool: u8) -> Vec<u8> {
    let mut body = vec![0; LENGTH];
    body[0] = operation;
    body[1] = pool;
    body
}

/// Gets the value of a key.
pub fn get(pool: u8, key: &str) -> Vec<u8> {
    let key = utf16(key);
    set_raw(GET, pool, key.len() as u32, &key, 0, 0, &[])
}

/// Sets a key to a string.
pub fn set(pool: u8, key: &str, text: &str) -> Vec<u8> {
    set_value(pool, key, SZ, &utf16(text))
}

/// Sets a key to a value of any type.
pub fn set_value(pool: u8, key: &str, kind: u32, bytes: &[u8]) -> Vec<u8> {
    let key = utf16(key);
    set_raw(
        SET,
        pool,
        key.len() as u32,
        &key,
        kind,
        bytes.len() as u32,
        bytes,
    )
}

/// A GET or SET with any fields, also with those that no host sends.
pub fn set_raw(
    operation: u8,
    pool: u8,
    key_size: u32,
    key: &[u8],
    kind: u32,
    size: u32,
    bytes: &[u8],
) -> Vec<u8> {
    let mut out = body(operation, pool);
    put(&mut out, BODY + value::TYPE, &kind.to_le_bytes());
    put(&mut out, BODY + value::KEY_SIZE, &key_size.to_le_bytes());
    put(&mut out, BODY + value::VALUE_SIZE, &size.to_le_bytes());
    put(&mut out, BODY + value::KEY, key);
    put(&mut out, BODY + value::VALUE, bytes);
    out
}

/// Deletes a key.
pub fn delete(pool: u8, key: &str) -> Vec<u8> {
    let mut out = body(DELETE, pool);
    let key = utf16(key);
    put(&mut out, BODY, &(key.len() as u32).to_le_bytes());
    put(&mut out, BODY + 4, &key);
    out
}

/// Gets key and value at an index.
pub fn enumerate(pool: u8, index: u32) -> Vec<u8> {
    let mut out = body(ENUMERATE, pool);
    put(&mut out, BODY, &index.to_le_bytes());
    out
}

/// The value in a GET's reply, as text. `None` if a host rejects the value.
pub fn value_of(body: &[u8]) -> Option<String> {
    value_text(body.get(BODY..)?)
}

/// Key and value in an ENUMERATE's reply. `None` if a host rejects them.
pub fn pair(body: &[u8]) -> Option<(String, String)> {
    let at = body.get(BODY + 4..)?;
    let key = at.get(value::KEY..value::KEY + value::KEY_MAX)?;
    let key = utf16_sized(key, u32_at(at, value::KEY_SIZE)?)?;
    Some((key, value_text(at)?))
}

fn value_text(at: &[u8]) -> Option<String> {
    let size = u32_at(at, value::VALUE_SIZE)?;
    match u32_at(at, value::TYPE)? {
        SZ | EXPAND_SZ => utf16_sized(at.get(value::VALUE..value::VALUE + value::VALUE_MAX)?, size),
        DWORD if size == 4 => Some(u32_at(at, value::VALUE)?.to_string()),
        QWORD if size == 8 => Some(u64_at(at, value::VALUE)?.to_string()),
        _ => None,
    }
}

pub(super) fn describe(version: Version, body: &[u8], is_reply: bool) -> String {
    let (Some(operation), Some(pool)) = (u8_at(body, 0), u8_at(body, 1)) else {
        return format!("{} bytes", body.len());
    };
    let rest = body.get(BODY..).unwrap_or_default();
    let shown =
        |text: Option<String>| text.map_or("(unreadable)".to_owned(), |text| format!("{text:?}"));
    let key = |size: usize, at: usize| {
        let key = rest.get(at..(at + value::KEY_MAX).min(rest.len()));
        shown(
            key.zip(u32_at(rest, size))
                .and_then(|(key, size)| utf16_sized(key, size)),
        )
    };
    match operation {
        GET if is_reply => format!(
            "GET pool {pool} {} = {}",
            key(value::KEY_SIZE, value::KEY),
            shown(value_of(body))
        ),
        GET => format!("GET pool {pool} {}", key(value::KEY_SIZE, value::KEY)),
        SET => format!(
            "SET pool {pool} {} = type {} {}",
            key(value::KEY_SIZE, value::KEY),
            u32_at(rest, value::TYPE).unwrap_or(0),
            shown(value_text(rest))
        ),
        DELETE => format!("DELETE pool {pool} {}", key(0, 4)),
        ENUMERATE => {
            let index = u32_at(rest, 0).unwrap_or(0);
            match pair(body).filter(|_| is_reply) {
                Some((key, value)) => format!("ENUMERATE pool {pool} {index} {key:?} = {value:?}"),
                None => format!("ENUMERATE pool {pool} {index}"),
            }
        }
        GET_IP_INFO | SET_IP_INFO => {
            let name = if operation == GET_IP_INFO {
                "GET_IP_INFO"
            } else {
                "SET_IP_INFO"
            };
            match super::addresses::read(version, body) {
                Some(it) => format!(
                    "{name} {:?} family {} dhcp {} {:?} {:?} {:?} {:?} origins {:?}",
                    it.adapter,
                    it.family,
                    it.dhcp,
                    it.addresses,
                    it.subnets,
                    it.gateways,
                    it.name_servers,
                    it.origins
                ),
                None => format!("{name} {} bytes", body.len()),
            }
        }
        _ => format!("operation {operation} pool {pool}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_protocol() {
        let set = set(GUEST, "k", "va");
        assert_eq!(set.len(), LENGTH);
        assert_eq!(set[..4], [SET, GUEST, 0, 0]);
        assert_eq!(set[4..16], [1, 0, 0, 0, 4, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(set[16..20], [b'k', 0, 0, 0]);
        assert_eq!(set[528..534], [b'v', 0, b'a', 0, 0, 0]);
        let delete = delete(AUTO, "k");
        assert_eq!(delete[4..12], [4, 0, 0, 0, b'k', 0, 0, 0]);
        assert_eq!(enumerate(AUTO, 7)[..8], [ENUMERATE, AUTO, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn replies_are_read_as_by_a_host() {
        let mut reply = set(0, "key", "value");
        assert_eq!(value_of(&reply).as_deref(), Some("value"));
        reply[12] = 13; // An odd size.
        assert_eq!(value_of(&reply), None);
        let number = set_value(0, "key", DWORD, &7u32.to_le_bytes());
        assert_eq!(value_of(&number).as_deref(), Some("7"));
        let mut pair_reply = enumerate(AUTO, 1);
        pair_reply.splice(8..8, set(0, "key", "value")[4..].iter().copied());
        assert_eq!(pair(&pair_reply), Some(("key".into(), "value".into())));
        assert_eq!(
            describe((4, 0), &pair_reply, true),
            "ENUMERATE pool 2 1 \"key\" = \"value\""
        );
        assert_eq!(describe((4, 0), &pair_reply, false), "ENUMERATE pool 2 1");
    }
}
