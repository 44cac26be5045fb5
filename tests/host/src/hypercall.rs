// SPDX-License-Identifier: GPL-2.0

//! Hypercalls that KVM leaves to this host: decoding and status codes (TLFS, "Hypercall interface" and "Inter-partition
//! communication").

use crate::bytes::u32_at;
use crate::bytes::u64_at;
use crate::memory::GuestMemory;
use crate::memory::PAGE_SIZE;

/// `HV_STATUS`: the low 16 bits of a hypercall's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// HV_STATUS_SUCCESS
    Success = 0,
    /// HV_STATUS_INVALID_HYPERCALL_CODE
    InvalidHypercallCode = 2,
    /// HV_STATUS_INVALID_HYPERCALL_INPUT
    InvalidHypercallInput = 3,
    /// HV_STATUS_INVALID_ALIGNMENT
    InvalidAlignment = 4,
    /// HV_STATUS_INVALID_PARAMETER
    InvalidParameter = 5,
    /// HV_STATUS_INVALID_CONNECTION_ID
    InvalidConnectionId = 0x12,
    /// HV_STATUS_INSUFFICIENT_BUFFERS
    InsufficientBuffers = 0x13,
}

/// Size of the largest message in bytes (`HV_MESSAGE_PAYLOAD_BYTE_COUNT`).
pub const MESSAGE_PAYLOAD: usize = 240;

const POST_MESSAGE: u16 = 0x5c;
const SIGNAL_EVENT: u16 = 0x5d;
const QUERY_EXTENDED_CAPABILITIES: u16 = 0x8001;

const FAST: u64 = 1 << 16;
const CONNECTION_ID: u32 = 0x00ff_ffff;

/// A decoded hypercall.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// HvPostMessage.
    PostMessage {
        /// The connection to post to.
        connection: u32,
        /// The message type: 1 for VMBus.
        kind: u32,
        /// Up to [`MESSAGE_PAYLOAD`] bytes.
        payload: Vec<u8>,
    },
    /// HvSignalEvent.
    SignalEvent {
        /// The connection to signal.
        connection: u32,
        /// The event flag's number relative to the port's base.
        flag: u16,
    },
    /// HvExtCallQueryCapabilities. The answer is 64 bits.
    QueryExtendedCapabilities {
        /// The answer's guest physical address.
        output: u64,
    },
}

/// Decodes a hypercall: its input value and two parameters.
///
/// `original_input` reads the first parameter from the guest's register. For a slow HvSignalEvent, KVM replaces that
/// parameter, an address, by the contents of memory at that address. Other calls keep their parameters.
pub fn decode(
    memory: &GuestMemory,
    input: u64,
    parameters: [u64; 2],
    original_input: impl FnOnce() -> u64,
) -> Result<Call, Status> {
    let fast = input & FAST != 0;
    match input as u16 {
        POST_MESSAGE => {
            if fast {
                return Err(Status::InvalidHypercallInput);
            }
            let block = input_block(memory, parameters[0], 16 + MESSAGE_PAYLOAD)?;
            let word = |offset| u32_at(&block, offset).unwrap_or(0);
            let (connection, kind, length) = (word(0), word(8), word(12) as usize);
            if length > MESSAGE_PAYLOAD || kind & 0x8000_0000 != 0 {
                return Err(Status::InvalidParameter);
            }
            Ok(Call::PostMessage {
                connection: connection & CONNECTION_ID,
                kind,
                payload: block[16..16 + length].to_vec(),
            })
        }
        SIGNAL_EVENT => {
            let value = if fast {
                parameters[0]
            } else {
                let block = input_block(memory, original_input(), 8)?;
                u64_at(&block, 0).unwrap_or(0)
            };
            if value >> 48 != 0 {
                return Err(Status::InvalidHypercallInput);
            }
            Ok(Call::SignalEvent {
                connection: value as u32 & CONNECTION_ID,
                flag: (value >> 32) as u16,
            })
        }
        QUERY_EXTENDED_CAPABILITIES if fast => Err(Status::InvalidHypercallInput),
        QUERY_EXTENDED_CAPABILITIES => {
            let output = parameters[1];
            check_block(output, 8)?;
            Ok(Call::QueryExtendedCapabilities { output })
        }
        _ => Err(Status::InvalidHypercallCode),
    }
}

/// Checks the address of an input or output structure: 8-byte aligned, within a page (TLFS, "Hypercall inputs").
fn check_block(address: u64, length: usize) -> Result<(), Status> {
    match address % 8 == 0 && address % PAGE_SIZE + length as u64 <= PAGE_SIZE {
        true => Ok(()),
        false => Err(Status::InvalidAlignment),
    }
}

/// Reads an input structure.
fn input_block(memory: &GuestMemory, address: u64, length: usize) -> Result<Vec<u8>, Status> {
    check_block(address, length)?;
    memory
        .read_vec(address, length)
        .map_err(|_| Status::InvalidParameter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_with_message(length: u32) -> GuestMemory {
        let memory = GuestMemory::new(2 << 20).unwrap();
        for (offset, value) in [(0, 4), (8, 1), (12, length)] {
            memory.store_u32(0x1000 + offset, value).unwrap();
        }
        memory.write(0x1010, &[7; 240]).unwrap();
        memory
    }

    #[test]
    fn posts_are_read_and_checked() {
        let memory = memory_with_message(3);
        let post = |input, at| decode(&memory, input, [at, 0], || 0);
        assert_eq!(
            post(0x5c, 0x1000),
            Ok(Call::PostMessage {
                connection: 4,
                kind: 1,
                payload: vec![7; 3]
            })
        );
        assert_eq!(
            post(0x5c | FAST, 0x1000),
            Err(Status::InvalidHypercallInput)
        );
        assert_eq!(post(0x5c, 0x1004), Err(Status::InvalidAlignment));
        assert_eq!(post(0x5c, 0x1f08), Err(Status::InvalidAlignment));
        assert_eq!(post(0x5c, 1 << 40), Err(Status::InvalidParameter));
        let long = memory_with_message(241);
        assert_eq!(
            decode(&long, 0x5c, [0x1000, 0], || 0),
            Err(Status::InvalidParameter)
        );
    }

    #[test]
    fn the_answer_about_capabilities_goes_to_an_aligned_place() {
        let memory = GuestMemory::new(2 << 20).unwrap();
        let query = |input, output| decode(&memory, input, [0, output], || 0);
        assert_eq!(
            query(0x8001, 0x1ff8),
            Ok(Call::QueryExtendedCapabilities { output: 0x1ff8 })
        );
        assert_eq!(query(0x8001, 0x1ffc), Err(Status::InvalidAlignment));
        assert_eq!(
            query(0x8001 | FAST, 0x1000),
            Err(Status::InvalidHypercallInput)
        );
    }

    #[test]
    fn signals_are_fast_or_in_memory() {
        let memory = GuestMemory::new(2 << 20).unwrap();
        memory.store_u32(0x2000, 9).unwrap();
        memory.store_u32(0x2004, 1).unwrap();
        let signal = |input, value| decode(&memory, input, [value, 0], || 0x2000);
        assert_eq!(
            signal(0x5d | FAST, 0x3_0000_0005),
            Ok(Call::SignalEvent {
                connection: 5,
                flag: 3
            })
        );
        assert_eq!(
            signal(0x5d, 0x1_0000_0009),
            Ok(Call::SignalEvent {
                connection: 9,
                flag: 1
            })
        );
        assert_eq!(
            signal(0x5d | FAST, 1 << 48),
            Err(Status::InvalidHypercallInput)
        );
        assert_eq!(signal(0x99, 0), Err(Status::InvalidHypercallCode));
    }
}
