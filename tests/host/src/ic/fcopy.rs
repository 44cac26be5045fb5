// SPDX-License-Identifier: GPL-2.0

//! Messages of the guest service interface: a file is started, written in pieces, and completed or cancelled.
//!
//! Source: `struct hv_fcopy_hdr`, `hv_start_fcopy` and `hv_do_fcopy` of `include/uapi/linux/hyperv.h`.

use super::text::utf16;
use super::text::utf16_text;
use crate::bytes::put;
use crate::bytes::u32_at;
use crate::bytes::u64_at;

/// Operation: starts a file.
pub const START: u32 = 0;
/// Operation: writes a piece of the file.
pub const WRITE: u32 = 1;
/// Operation: completes the file.
pub const COMPLETE: u32 = 2;
/// Operation: cancels the file.
pub const CANCEL: u32 = 3;

/// Flag of START: replace an existing file.
pub const OVERWRITE: u32 = 1;
/// Flag of START: create missing folders.
pub const CREATE_PATH: u32 = 2;

/// Size of the largest piece in bytes.
pub const PIECE: usize = 6144;

const HEADER: usize = 36;
const NAME: usize = 36;
const PATH: usize = 556;
const NAME_BYTES: usize = 520;
const FLAGS: usize = 1076;
const SIZE: usize = 1080;
const START_LENGTH: usize = 1088;
const OFFSET: usize = 40;
const DATA_SIZE: usize = 48;
const DATA: usize = 52;
const WRITE_LENGTH: usize = DATA + PIECE;

/// Starts the file `name` in `folder`. The path of the folder ends in a slash: the daemons create the folders before
/// each slash.
pub fn start(folder: &str, name: &str, flags: u32, size: u64) -> Vec<u8> {
    let mut body = vec![0; START_LENGTH];
    put(&mut body, 0, &START.to_le_bytes());
    for (at, text) in [(NAME, name), (PATH, folder)] {
        let mut text = utf16(text);
        text.truncate(NAME_BYTES);
        put(&mut body, at, &text);
    }
    put(&mut body, FLAGS, &flags.to_le_bytes());
    put(&mut body, SIZE, &size.to_le_bytes());
    body
}

/// Writes a piece of the file. Inference: a host sends the whole structure, even with a short piece.
pub fn write(offset: u64, piece: &[u8]) -> Vec<u8> {
    let mut body = vec![0; WRITE_LENGTH];
    put(&mut body, 0, &WRITE.to_le_bytes());
    put(&mut body, OFFSET, &offset.to_le_bytes());
    put(&mut body, DATA_SIZE, &(piece.len() as u32).to_le_bytes());
    put(&mut body, DATA, piece);
    body
}

/// An operation without arguments: [`COMPLETE`], [`CANCEL`], or an unknown one.
pub fn end(operation: u32) -> Vec<u8> {
    let mut body = vec![0; HEADER];
    put(&mut body, 0, &operation.to_le_bytes());
    body
}

pub(super) fn describe(body: &[u8]) -> String {
    let name = |at: usize| {
        let bytes = body.get(at..at + NAME_BYTES);
        bytes.map_or("(unreadable)".to_owned(), |bytes| {
            format!("{:?}", utf16_text(bytes))
        })
    };
    match u32_at(body, 0) {
        Some(START) => format!(
            "START {} in {} flags {} size {}",
            name(NAME),
            name(PATH),
            u32_at(body, FLAGS).unwrap_or(0),
            u64_at(body, SIZE).unwrap_or(0)
        ),
        Some(WRITE) => format!(
            "WRITE {} bytes at {}",
            u32_at(body, DATA_SIZE).unwrap_or(0),
            u64_at(body, OFFSET).unwrap_or(0)
        ),
        Some(COMPLETE) => "COMPLETE".to_owned(),
        Some(CANCEL) => "CANCEL".to_owned(),
        Some(operation) => format!("operation {operation}"),
        None => format!("{} bytes", body.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_protocol() {
        let start = start("/tmp", "äb", OVERWRITE, 10);
        assert_eq!(start.len(), 1088);
        assert_eq!(start[36..42], [0xe4, 0, b'b', 0, 0, 0]);
        assert_eq!(start[556..558], [b'/', 0]);
        assert_eq!((start[1076], start[1080]), (1, 10));
        assert_eq!(describe(&start), "START \"äb\" in \"/tmp\" flags 1 size 10");
        let write = write(6144, b"xyz");
        assert_eq!(write.len(), 6196);
        assert_eq!(
            (write[0], write[41], write[48], write[52]),
            (1, 0x18, 3, b'x')
        );
        assert_eq!(describe(&write), "WRITE 3 bytes at 6144");
        assert_eq!(describe(&end(CANCEL)), "CANCEL");
    }
}
