// SPDX-License-Identifier: GPL-2.0

//! The firmware's ACPI tables (ACPI specification 6.5, chapters 5 and 20) and the registers of the fixed hardware.
//!
//! The DSDT has the devices that `hv_vmbus` looks for: `_HID "VMBus"`, and a parent whose `_CRS` is the address range
//! for VMBus devices. The names are those of a generation 2 virtual machine (`\_SB.VMOD.VMBS`), whose firmware's source
//! is public. The bus' interrupt line is for guests that ask for one. This host never raises it.

use std::io;
use std::time::Instant;

use crate::memory::GuestMemory;

/// The address of the first table, the root pointer.
pub const RSDP: u64 = 0xe_0000;
const FACS: u64 = RSDP + 0x40;
const TABLES: u64 = RSDP + 0x80;

/// I/O port of the power management event registers: status and enable, 16 bits each.
pub const PM1_EVENT: u16 = 0x400;
/// I/O port of the power management control register, 16 bits.
pub const PM1_CONTROL: u16 = 0x404;
/// I/O port of the power management timer, 32 bits.
pub const PM_TIMER: u16 = 0x408;
/// I/O port of the reset register.
pub const RESET: u16 = 0xcf9;
/// The value that a guest writes to [`RESET`].
pub const RESET_VALUE: u8 = 6;

const SCI_IRQ: u16 = 9;
const VMBUS_IRQ: u8 = 5;
const SLP_TYPE_S4: u8 = 4;
const SLP_TYPE_S5: u8 = 5;
/// The MMIO range for VMBus devices, below 4 GiB.
const MMIO: std::ops::RangeInclusive<u32> = 0xf800_0000..=0xfebf_ffff;

/// AML: each function encodes one term.
mod aml {
    /// Puts PkgLength in front of `body`. The length includes its own bytes.
    fn package_length(body: &[u8]) -> Vec<u8> {
        let with = |extra: usize| body.len() + extra;
        let mut out = if with(1) < 0x40 {
            vec![with(1) as u8]
        } else if with(2) < 0x1000 {
            vec![0x40 | (with(2) & 0xf) as u8, (with(2) >> 4) as u8]
        } else {
            vec![
                0x80 | (with(3) & 0xf) as u8,
                (with(3) >> 4) as u8,
                (with(3) >> 12) as u8,
            ]
        };
        out.extend_from_slice(body);
        out
    }

    fn term(opcode: &[u8], body: Vec<u8>) -> Vec<u8> {
        [opcode, &package_length(&body)].concat()
    }

    /// A name of four characters. A `\` in front stands for the root.
    pub(super) fn path(name: &str) -> Vec<u8> {
        name.as_bytes().to_vec()
    }

    pub(super) fn byte(value: u8) -> Vec<u8> {
        vec![0x0a, value]
    }

    pub(super) fn string(text: &str) -> Vec<u8> {
        [&[0x0d], text.as_bytes(), &[0]].concat()
    }

    pub(super) fn name(name: &str, value: Vec<u8>) -> Vec<u8> {
        [vec![0x08], path(name), value].concat()
    }

    pub(super) fn package(elements: &[Vec<u8>]) -> Vec<u8> {
        term(
            &[0x12],
            [vec![elements.len() as u8], elements.concat()].concat(),
        )
    }

    pub(super) fn buffer(bytes: &[u8]) -> Vec<u8> {
        term(&[0x11], [byte(bytes.len() as u8), bytes.to_vec()].concat())
    }

    pub(super) fn scope(name: &str, terms: &[Vec<u8>]) -> Vec<u8> {
        term(&[0x10], [path(name), terms.concat()].concat())
    }

    pub(super) fn device(name: &str, terms: &[Vec<u8>]) -> Vec<u8> {
        term(&[0x5b, 0x82], [path(name), terms.concat()].concat())
    }

    /// A resource template: the descriptors and an end tag.
    pub(super) fn resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
        buffer(&[descriptors.concat(), vec![0x79, 0]].concat())
    }

    /// IRQ: an ISA line, edge triggered, active high, exclusive.
    pub(super) fn irq(line: u8) -> Vec<u8> {
        let [low, high] = (1u16 << line).to_le_bytes();
        vec![0x23, low, high, 0x01]
    }

    /// DWordMemory: an address range that the device provides to its children.
    pub(super) fn memory_window(range: std::ops::RangeInclusive<u32>) -> Vec<u8> {
        let mut out = vec![0x87, 23, 0];
        // Memory. Producer, positive decode, both ends fixed. Cacheable, writable.
        out.extend([0x00, 0x0c, 0x03]);
        for value in [
            0,
            *range.start(),
            *range.end(),
            0,
            range.end() - range.start() + 1,
        ] {
            out.extend(value.to_le_bytes());
        }
        out
    }
}

/// A table with its header and checksum.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(signature);
    out.extend((36 + body.len() as u32).to_le_bytes());
    out.extend([revision, 0]);
    out.extend(b"VRTUALMICROSFT");
    out.extend(1u32.to_le_bytes());
    out.extend(b"MSFT");
    out.extend(1u32.to_le_bytes());
    out.extend(body);
    out[9] = checksum(&out);
    out
}

/// The byte that makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    0u8.wrapping_sub(
        bytes
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte)),
    )
}

fn dsdt(s4: bool) -> Vec<u8> {
    let sleep = |name, kind| {
        aml::name(
            name,
            aml::package(&[aml::byte(kind), aml::byte(kind), aml::byte(0), aml::byte(0)]),
        )
    };
    let mut terms = sleep("\\_S5_", SLP_TYPE_S5);
    if s4 {
        terms.extend(sleep("\\_S4_", SLP_TYPE_S4));
    }
    let bus = aml::device(
        "VMBS",
        &[
            aml::name("_STA", aml::byte(0x0f)),
            aml::name("_ADR", aml::byte(0)),
            aml::name("_DDN", aml::string("VMBUS")),
            aml::name("_HID", aml::string("VMBus")),
            aml::name("_UID", aml::byte(0)),
            aml::name("_CRS", aml::resources(&[aml::irq(VMBUS_IRQ)])),
        ],
    );
    let module = aml::device(
        "VMOD",
        &[
            aml::name("_HID", aml::string("VMOD")),
            aml::name("_UID", aml::byte(0)),
            aml::name("_CRS", aml::resources(&[aml::memory_window(MMIO)])),
            bus,
        ],
    );
    terms.extend(aml::scope("\\_SB_", &[module]));
    table(b"DSDT", 2, &terms)
}

fn madt(vcpus: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(0xfee0_0000u32.to_le_bytes());
    body.extend(1u32.to_le_bytes()); // The machine has 8259s.
    for vcpu in 0..vcpus as u8 {
        body.extend([0, 8, vcpu, vcpu]);
        body.extend(1u32.to_le_bytes());
    }
    body.extend([1, 12, vcpus as u8, 0]);
    body.extend(0xfec0_0000u32.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // ISA line 0 (timer) is pin 2. The SCI is level triggered, active high.
    for (irq, gsi, flags) in [(0u8, 2u32, 0u16), (SCI_IRQ as u8, u32::from(SCI_IRQ), 0xd)] {
        body.extend([2, 10, 0, irq]);
        body.extend(gsi.to_le_bytes());
        body.extend(flags.to_le_bytes());
    }
    table(b"APIC", 4, &body)
}

fn fadt(dsdt: u64) -> Vec<u8> {
    // WBINVD works; C1 on all processors; no fixed power button or sleep button; a 32-bit timer; a reset register;
    // headless.
    const FLAGS: u32 = 1 | (1 << 2) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 10) | (1 << 12);
    let mut body = vec![0u8; 276 - 36];
    let mut put = |offset: usize, bytes: &[u8]| {
        body[offset - 36..offset - 36 + bytes.len()].copy_from_slice(bytes)
    };
    let io = |port: u16, bytes: u8| {
        let mut address = vec![1, bytes * 8, 0, bytes.min(3)];
        address.extend(u64::from(port).to_le_bytes());
        address
    };
    put(36, &(FACS as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &SCI_IRQ.to_le_bytes());
    put(56, &u32::from(PM1_EVENT).to_le_bytes());
    put(64, &u32::from(PM1_CONTROL).to_le_bytes());
    put(76, &u32::from(PM_TIMER).to_le_bytes());
    put(88, &[4, 2, 0, 4]); // Lengths of these register blocks.
    put(96, &0xffffu16.to_le_bytes()); // No C2 or C3.
    put(98, &0xffffu16.to_le_bytes());
    put(109, &(1u16 | (1 << 2)).to_le_bytes()); // Legacy devices, no VGA.
    put(112, &FLAGS.to_le_bytes());
    put(116, &io(RESET, 1));
    put(128, &[RESET_VALUE]);
    put(140, &dsdt.to_le_bytes());
    put(148, &io(PM1_EVENT, 4));
    put(172, &io(PM1_CONTROL, 2));
    put(208, &io(PM_TIMER, 4));
    table(b"FACP", 6, &body)
}

/// Writes the tables for `vcpus` processors. `s4` adds hibernation.
pub fn load(memory: &GuestMemory, vcpus: u32, s4: bool) -> io::Result<()> {
    let mut next = TABLES;
    let mut place = |bytes: Vec<u8>| -> io::Result<u64> {
        let at = next;
        memory.write(at, &bytes)?;
        next = (at + bytes.len() as u64).next_multiple_of(16);
        Ok(at)
    };
    let dsdt = place(dsdt(s4))?;
    let fadt = place(fadt(dsdt))?;
    let madt = place(madt(vcpus))?;
    let xsdt = place(table(
        b"XSDT",
        1,
        &[fadt.to_le_bytes(), madt.to_le_bytes()].concat(),
    ))?;

    let mut facs = [0u8; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = 64;
    facs[32] = 2;
    memory.write(FACS, &facs)?;

    let mut rsdp = [0u8; 36];
    rsdp[..8].copy_from_slice(b"RSD PTR ");
    rsdp[9..15].copy_from_slice(b"VRTUAL");
    rsdp[15] = 2;
    rsdp[20] = 36;
    rsdp[24..32].copy_from_slice(&xsdt.to_le_bytes());
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    memory.write(RSDP, &rsdp)?;
    Ok(())
}

/// A sleep state that the guest has requested by [`PM1_CONTROL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// S4: suspend to disk.
    S4,
    /// S5: power off.
    S5,
}

/// The registers of the fixed hardware.
#[derive(Clone)]
pub struct PowerManagement {
    enable: u16,
    start: Instant,
}

impl PowerManagement {
    /// The registers after reset.
    pub fn new() -> Self {
        Self {
            enable: 0,
            start: Instant::now(),
        }
    }

    /// Reads the register at `port`, a port of this module.
    pub fn read(&self, port: u16) -> u32 {
        match port {
            PM1_EVENT => u32::from(self.enable) << 16,
            0x402 => u32::from(self.enable),
            PM1_CONTROL => 1, // SCI_EN: always in ACPI mode.
            PM_TIMER => (self.start.elapsed().as_nanos() * 3_579_545 / 1_000_000_000) as u32,
            _ => 0,
        }
    }

    /// Writes the register at `port`. Returns the sleep state that the guest requests by it, if any.
    pub fn write(&mut self, port: u16, value: u32) -> Option<Sleep> {
        const SLP_EN: u32 = 1 << 13;
        match port {
            0x402 => self.enable = value as u16,
            PM1_CONTROL if value & SLP_EN != 0 => match ((value >> 10) & 7) as u8 {
                SLP_TYPE_S4 => return Some(Sleep::S4),
                SLP_TYPE_S5 => return Some(Sleep::S5),
                _ => {}
            },
            _ => {}
        }
        None
    }
}

impl Default for PowerManagement {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_found_and_sums_to_zero() {
        let memory = GuestMemory::new(2 << 20).unwrap();
        load(&memory, 2, true).unwrap();
        let rsdp = memory.read_vec(RSDP, 36).unwrap();
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let table = |at: u64| {
            let length = memory.load_u32(at + 4).unwrap();
            let bytes = memory.read_vec(at, length as usize).unwrap();
            assert_eq!(sum(&bytes), 0, "{}", String::from_utf8_lossy(&bytes[..4]));
            bytes
        };
        let address = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let xsdt = table(address(&rsdp[24..]));
        let fadt = table(address(&xsdt[36..]));
        assert_eq!((&fadt[..4], fadt.len()), (&b"FACP"[..], 276));
        let madt = table(address(&xsdt[44..]));
        assert_eq!(
            (&madt[..4], madt.len()),
            (&b"APIC"[..], 44 + 8 * 2 + 12 + 20)
        );
        let dsdt = table(address(&fadt[140..]));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert!(dsdt.windows(6).any(|bytes| bytes == b"VMBus\0"));
        assert_eq!(&memory.read_vec(FACS, 4).unwrap(), b"FACS");
    }

    #[test]
    fn s4_can_be_left_out() {
        let has_s4 = |table: &[u8]| table.windows(5).any(|bytes| bytes == b"\\_S4_");
        assert!(has_s4(&dsdt(true)));
        assert!(!has_s4(&dsdt(false)));
    }

    #[test]
    fn package_lengths_count_themselves() {
        assert_eq!(aml::package(&[aml::byte(5)]), [0x12, 4, 1, 0x0a, 5]);
        let long = aml::buffer(&[0; 100]);
        assert_eq!(&long[..5], [0x11, 0x40 | 8, 6, 0x0a, 100]);
        assert_eq!(long.len(), 1 + 0x68);
    }

    #[test]
    fn sleep_needs_the_enable_bit() {
        let mut pm = PowerManagement::new();
        assert_eq!(pm.write(PM1_CONTROL, 5 << 10), None);
        assert_eq!(pm.write(PM1_CONTROL, 5 << 10 | 1 << 13), Some(Sleep::S5));
        assert_eq!(pm.write(PM1_CONTROL, 4 << 10 | 1 << 13), Some(Sleep::S4));
        assert_eq!(pm.read(PM1_CONTROL), 1);
    }
}
