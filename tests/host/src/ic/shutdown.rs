// SPDX-License-Identifier: GPL-2.0

//! Guest shutdown messages.

use crate::bytes::put;
use crate::bytes::u32_at;

/// Flag: force the shutdown.
pub const FORCE: u32 = 1;
/// Flag: restart.
pub const RESTART: u32 = 2;
/// Flag: hibernate.
pub const HIBERNATE: u32 = 4;
/// Size of the text area in bytes.
pub const TEXT: usize = 2048;
/// The reason code of a host (SHTDN_REASON_FLAG_PLANNED). Fact.
pub const REASON: u32 = 0x8000_0000;

/// A request's body with a host's reason code and time-out. `text` is stored as UTF-16. Fact: a host's time-out is 0.
pub fn body(flags: u32, text: &str) -> Vec<u8> {
    body_with(REASON, 0, flags, text)
}

/// A request's body: reason code, time-out in seconds, flags, text.
pub fn body_with(reason: u32, timeout: u32, flags: u32, text: &str) -> Vec<u8> {
    let mut body = vec![0; 12 + TEXT];
    for (index, value) in [reason, timeout, flags].into_iter().enumerate() {
        put(&mut body, index * 4, &value.to_le_bytes());
    }
    let units: Vec<u8> = text
        .encode_utf16()
        .take(TEXT / 2 - 1)
        .flat_map(u16::to_le_bytes)
        .collect();
    put(&mut body, 12, &units);
    body
}

pub(super) fn describe(body: &[u8]) -> String {
    match (u32_at(body, 0), u32_at(body, 4), u32_at(body, 8)) {
        (Some(reason), Some(timeout), Some(flags)) => {
            format!("flags {flags} reason {reason:#x} timeout {timeout}")
        }
        _ => format!("{} bytes", body.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_hosts_reason_and_text_area() {
        let body = body(RESTART | FORCE, "by\u{e9}");
        assert_eq!(body.len(), 2060);
        assert_eq!(body[12..20], [b'b', 0, b'y', 0, 0xe9, 0, 0, 0]);
        assert_eq!(describe(&body), "flags 3 reason 0x80000000 timeout 0");
    }
}
