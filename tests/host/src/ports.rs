// SPDX-License-Identifier: GPL-2.0

//! The machine's I/O ports: two serial ports, the real-time clock, power management, and a port that records the host's
//! time.

use std::time::SystemTime;

use crate::acpi;
use crate::acpi::PowerManagement;
use crate::acpi::Sleep;
use crate::machine::Exit;
use crate::rtc::Rtc;
use crate::serial::Serial;

const COM1: u16 = 0x3f8;
const COM2: u16 = 0x2f8;
/// The modem control register of the agent's port. The guest's kernel writes 0 to it when it suspends the port.
pub const AGENT_MODEM_CONTROL: u16 = COM2 + 4;
/// A write of any value records the host's time. For `tests/guest/ptp-now.c`. No real machine has this port.
const LOOK: u16 = 0x560;
/// The address register of PCI's configuration space. The space is empty. A kernel with `pci=conf1` surveys PCI's
/// resources if the register is there, and finds persistent memory with them.
const PCI_ADDRESS: u16 = 0xcf8;
/// At least this many bytes of each port's output are kept, at most twice this many.
const KEPT: usize = 4 << 20;
/// Interrupt lines of the serial ports.
const LINES: [u32; 2] = [4, 3];

/// Whether a processor waits in a write to a port, see [`Ports::hold_at`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Hold {
    /// No processor waits, and none will.
    #[default]
    No,
    /// The next processor that writes this byte to this port will wait.
    At(u16, u8),
    /// A processor waits.
    Holds,
}

/// The devices behind the ports.
#[derive(Clone)]
pub struct Ports {
    serial: [Serial; 2],
    /// The interrupt lines' levels that KVM was told last.
    levels: [bool; 2],
    rtc: Rtc,
    power: PowerManagement,
    console: Vec<u8>,
    /// Number of bytes dropped from the start of `console`.
    console_forgotten: usize,
    agent: Vec<u8>,
    looks: [SystemTime; 2],
    pci_address: u32,
    hold: Hold,
}

impl Ports {
    /// The devices after reset. The real-time clock is `rtc_offset` seconds ahead of the host's clock.
    pub fn new(rtc_offset: i64) -> Self {
        Self {
            serial: Default::default(),
            levels: [false; 2],
            rtc: Rtc::new(rtc_offset),
            power: PowerManagement::new(),
            console: Vec::new(),
            console_forgotten: 0,
            agent: Vec::new(),
            looks: [SystemTime::UNIX_EPOCH; 2],
            pci_address: 0,
            hold: Hold::No,
        }
    }

    /// The console's (ttyS0) output since reset. Of a long output, the end.
    pub fn console(&self) -> &[u8] {
        &self.console
    }

    /// The console's output after the first `from` bytes, as far as it is kept, and the number of bytes since reset.
    pub fn console_since(&self, from: usize) -> (&[u8], usize) {
        let end = self.console_forgotten + self.console.len();
        // After a reset the count starts over.
        let from = if from > end { 0 } else { from };
        let start = from.saturating_sub(self.console_forgotten);
        (self.console.get(start..).unwrap_or_default(), end)
    }

    /// The output of the agent's port (ttyS1). The reader removes what it has read.
    pub fn agent(&mut self) -> &mut Vec<u8> {
        &mut self.agent
    }

    /// The host's times at the guest's last two writes to the recording port, the older first.
    pub fn looks(&self) -> [SystemTime; 2] {
        self.looks
    }

    /// Makes the next processor that writes `byte` to `port` wait in that write, until [`Ports::let_go`].
    pub fn hold_at(&mut self, port: u16, byte: u8) {
        self.hold = Hold::At(port, byte);
    }

    /// Whether a processor waits in a write.
    pub fn holds(&self) -> bool {
        self.hold == Hold::Holds
    }

    /// Releases the waiting processor, if any, and cancels [`Ports::hold_at`].
    pub fn let_go(&mut self) {
        self.hold = Hold::No;
    }

    /// Sends bytes to the agent's port.
    pub fn send_to_agent(&mut self, bytes: &[u8]) {
        self.serial[1].receive(bytes);
    }

    /// Sends bytes to the console's port.
    pub fn send_to_console(&mut self, bytes: &[u8]) {
        self.serial[0].receive(bytes);
    }

    /// Interrupt lines that changed since the last call: line and level.
    pub fn changed_lines(&mut self) -> Vec<(u32, bool)> {
        let mut changed = Vec::new();
        for (index, port) in self.serial.iter().enumerate() {
            let level = port.interrupt();
            if level != self.levels[index] {
                self.levels[index] = level;
                changed.push((LINES[index], level));
            }
        }
        changed
    }

    /// The guest reads a port. Absent devices read as all ones.
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        let value = match port {
            COM1..=0x3ff => u32::from(self.serial[0].read(port - COM1)),
            COM2..=0x2ff => u32::from(self.serial[1].read(port - COM2)),
            PCI_ADDRESS if data.len() == 4 => self.pci_address,
            0x71 => u32::from(self.rtc.read()),
            acpi::PM1_EVENT..=0x40b => self.power.read(port),
            _ => u32::MAX,
        };
        for (byte, source) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = source;
        }
    }

    /// The guest writes a port. Returns how the machine's run ends, if the write ends it.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Option<Exit> {
        let mut bytes = [0; 4];
        let length = data.len().min(4);
        bytes[..length].copy_from_slice(&data[..length]);
        let value = u32::from_le_bytes(bytes);
        if self.hold == Hold::At(port, bytes[0]) {
            self.hold = Hold::Holds;
        }
        match port {
            COM1..=0x3ff => {
                self.serial[0].write(port - COM1, bytes[0]);
                let output = self.serial[0].take_output();
                self.console_forgotten += keep(&mut self.console, output);
            }
            COM2..=0x2ff => {
                self.serial[1].write(port - COM2, bytes[0]);
                keep(&mut self.agent, self.serial[1].take_output());
            }
            LOOK => self.looks = [self.looks[1], SystemTime::now()],
            PCI_ADDRESS if length == 4 => self.pci_address = value,
            0x70 => self.rtc.select(bytes[0]),
            // The keyboard controller pulses the reset line.
            0x64 if bytes[0] == 0xfe => return Some(Exit::Reset),
            acpi::RESET if bytes[0] & 4 != 0 => return Some(Exit::Reset),
            acpi::PM1_EVENT..=0x40b => {
                return self.power.write(port, value).map(|sleep| match sleep {
                    Sleep::S4 => Exit::S4,
                    Sleep::S5 => Exit::PowerOff,
                })
            }
            _ => {}
        }
        None
    }
}

/// Appends `bytes` to `kept`. Drops the oldest bytes of a long output, and returns their number.
fn keep(kept: &mut Vec<u8>, bytes: Vec<u8>) -> usize {
    let forgotten = match kept.len() >= 2 * KEPT {
        true => kept.drain(..KEPT).count(),
        false => 0,
    };
    kept.extend(bytes);
    forgotten
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_held_once() {
        let mut ports = Ports::new(0);
        ports.hold_at(AGENT_MODEM_CONTROL, 0);
        ports.write(AGENT_MODEM_CONTROL, &[3]);
        ports.write(COM1 + 4, &[0]);
        assert!(!ports.holds());
        ports.write(AGENT_MODEM_CONTROL, &[0]);
        assert!(ports.holds());
        ports.let_go();
        ports.write(AGENT_MODEM_CONTROL, &[0]);
        assert!(!ports.holds());
    }

    #[test]
    fn pci_is_empty() {
        let mut ports = Ports::new(0);
        let mut read = [0; 4];
        ports.write(PCI_ADDRESS, &[0, 0, 0, 0x80]);
        ports.write(PCI_ADDRESS + 3, &[1]);
        ports.read(PCI_ADDRESS, &mut read);
        assert_eq!(read, [0, 0, 0, 0x80]);
        ports.read(PCI_ADDRESS + 4, &mut read);
        assert_eq!(read, [0xff; 4]);
    }

    #[test]
    fn a_console_that_floods_is_cut() {
        let mut ports = Ports::new(0);
        for number in 0..2 * KEPT + 10 {
            ports.write(COM1, &[number as u8]);
        }
        assert_eq!(ports.console().len(), KEPT + 10);
        assert_eq!(ports.console().last(), Some(&9));
        let all = 2 * KEPT + 10;
        assert_eq!(ports.console_since(all - 2), (&[8, 9][..], all));
        assert_eq!(ports.console_since(0), (ports.console(), all));
        assert_eq!(ports.console_since(all + 1).0.len(), KEPT + 10);
    }
}
