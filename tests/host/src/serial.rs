// SPDX-License-Identifier: GPL-2.0

//! A 16550A serial port, as far as Linux's 8250 driver uses it (PC16550D data sheet).

use std::collections::VecDeque;

const FIFO: usize = 16;

const IER_RECEIVE: u8 = 1;
const IER_TRANSMIT: u8 = 2;
const LCR_DIVISOR: u8 = 0x80;
const MCR_LOOPBACK: u8 = 0x10;

/// A serial port. Sending takes no time. Received bytes wait until the guest reads them.
#[derive(Clone, Default)]
pub struct Serial {
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    /// The transmitter has become empty, and the guest has not read that cause yet.
    transmit_event: bool,
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl Serial {
    /// Queues bytes for the guest.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend(bytes);
    }

    /// Takes the bytes that the guest has sent since the last call.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Whether the port's interrupt line is high.
    pub fn interrupt(&self) -> bool {
        self.cause() != 1
    }

    /// The interrupt identification register without the FIFO bits.
    fn cause(&self) -> u8 {
        if self.interrupt_enable & IER_RECEIVE != 0 && !self.input.is_empty() {
            // Less than a full FIFO waits: the cause is a character time-out.
            if self.input.len() >= FIFO {
                4
            } else {
                0xc
            }
        } else if self.interrupt_enable & IER_TRANSMIT != 0 && self.transmit_event {
            2
        } else {
            1
        }
    }

    /// The guest reads register `offset` (0 to 7).
    pub fn read(&mut self, offset: u16) -> u8 {
        let divisor = self.line_control & LCR_DIVISOR != 0;
        match offset {
            0 if divisor => self.divisor as u8,
            1 if divisor => (self.divisor >> 8) as u8,
            0 => self.input.pop_front().unwrap_or(0),
            1 => self.interrupt_enable,
            2 => {
                let cause = self.cause();
                if cause == 2 {
                    self.transmit_event = false;
                }
                cause | if self.fifo_control & 1 != 0 { 0xc0 } else { 0 }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => 0x60 | u8::from(!self.input.is_empty()),
            6 if self.modem_control & MCR_LOOPBACK != 0 => {
                let control = self.modem_control;
                ((control & 2) << 3) | ((control & 1) << 5) | ((control & 0xc) << 4)
            }
            6 => 0xb0, // CTS, DSR, DCD
            _ => self.scratch,
        }
    }

    /// The guest writes register `offset` (0 to 7).
    pub fn write(&mut self, offset: u16, value: u8) {
        let divisor = self.line_control & LCR_DIVISOR != 0;
        match offset {
            0 if divisor => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if divisor => self.divisor = self.divisor & 0x00ff | (u16::from(value) << 8),
            0 => {
                if self.modem_control & MCR_LOOPBACK != 0 {
                    // In loopback a full FIFO drops the byte.
                    if self.input.len() < FIFO {
                        self.input.push_back(value);
                    }
                } else {
                    self.output.push(value);
                }
                self.transmit_event = true;
            }
            1 => {
                let enabled = !self.interrupt_enable & value & IER_TRANSMIT != 0;
                self.interrupt_enable = value & 0xf;
                self.transmit_event |= enabled;
            }
            2 => {
                self.fifo_control = value;
                if value & 2 != 0 && self.interrupt_enable == 0 {
                    self.input.clear();
                }
            }
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_and_interrupts_when_empty() {
        let mut port = Serial::default();
        assert!(!port.interrupt());
        port.write(1, IER_TRANSMIT);
        assert!(port.interrupt());
        assert_eq!(port.read(2), 2);
        assert!(!port.interrupt());
        port.write(0, b'x');
        assert!(port.interrupt());
        assert_eq!(port.take_output(), b"x");
    }

    #[test]
    fn receives_until_drained() {
        let mut port = Serial::default();
        port.receive(b"ab");
        assert!(!port.interrupt());
        port.write(1, IER_RECEIVE);
        assert!(port.interrupt());
        assert_eq!(port.read(5) & 1, 1);
        assert_eq!([port.read(0), port.read(0)], *b"ab");
        assert_eq!(port.read(5) & 1, 0);
        assert!(!port.interrupt());
    }

    #[test]
    fn a_loop_has_no_more_than_the_fifo() {
        let mut port = Serial::default();
        port.write(4, MCR_LOOPBACK);
        for value in 0..20 {
            port.write(0, value);
        }
        assert_eq!((port.input.len(), port.read(0)), (FIFO, 0));
    }

    #[test]
    fn has_the_registers_that_drivers_probe() {
        let mut port = Serial::default();
        port.write(7, 0x5a);
        assert_eq!(port.read(7), 0x5a);
        port.write(2, 1);
        assert_eq!(port.read(2) & 0xc0, 0xc0);
        port.write(3, LCR_DIVISOR);
        port.write(0, 1);
        assert_eq!((port.read(0), port.read(1)), (1, 0));
        port.write(3, 3);
        port.write(4, MCR_LOOPBACK | 0xa);
        assert_eq!(port.read(6) & 0xf0, 0x90);
    }
}
