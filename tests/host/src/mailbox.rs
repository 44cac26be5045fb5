// SPDX-License-Identifier: GPL-2.0

//! The mailbox of the guest's agent (`tests/guest/agent.c`): memory for a command line, and for its output. The mailbox
//! is the end of the guest's memory. The memory map hides it from the guest's kernel.

use std::io;

use crate::memory::GuestMemory;

/// Size of the mailbox in bytes. The agent has the same constant.
pub const SIZE: u64 = 2 << 20;
/// Bytes in front of a command line: its length.
const COMMAND_HEADER: u64 = 4;
/// Bytes in front of an output: the status and the output's length.
const ANSWER_HEADER: u64 = 8;

/// The mailbox's address: the end of the memory that the guest's kernel knows of.
pub fn address(memory: &GuestMemory) -> u64 {
    memory.len() - SIZE
}

/// Writes a command line for the agent. Fails if the line does not fit.
pub fn put_command(memory: &GuestMemory, line: &str) -> io::Result<()> {
    let at = address(memory);
    if line.len() as u64 > SIZE - COMMAND_HEADER {
        return Err(io::Error::other(
            "the command line does not fit into the mailbox",
        ));
    }
    memory.write(at + COMMAND_HEADER, line.as_bytes())?;
    Ok(memory.store_u32(at, line.len() as u32)?)
}

/// Reads the agent's answer: status and output. Fails if the answer is malformed.
pub fn take_answer(memory: &GuestMemory) -> io::Result<(i32, Vec<u8>)> {
    let at = address(memory);
    let (status, length) = (memory.load_u32(at)?, memory.load_u32(at + 4)?);
    let output = memory.read_vec(at + ANSWER_HEADER, length as usize)?;
    Ok((status as i32, output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_a_command_and_then_its_answer() {
        let memory = GuestMemory::new(2 * SIZE).unwrap();
        put_command(&memory, "uname -r").unwrap();
        assert_eq!(memory.read_vec(SIZE, 12).unwrap(), b"\x08\0\0\0uname -r");
        memory.write(SIZE, b"\x02\0\0\0\x03\0\0\0ab\n").unwrap();
        assert_eq!(take_answer(&memory).unwrap(), (2, b"ab\n".to_vec()));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let memory = GuestMemory::new(SIZE).unwrap();
        let longest = "x".repeat(SIZE as usize - 4);
        put_command(&memory, &longest).unwrap();
        put_command(&memory, &format!("{longest}x")).unwrap_err();
        memory.store_u32(4, SIZE as u32 - 7).unwrap();
        take_answer(&memory).unwrap_err();
    }
}
