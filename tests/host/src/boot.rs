// SPDX-License-Identifier: GPL-2.0

//! Loads a kernel, its initramfs and its command line into memory, as in the 64-bit boot protocol.
//!
//! Source: `Documentation/arch/x86/boot.rst` and `zero-page.rst` in the kernel tree.

use std::io;

use crate::kvm::Regs;
use crate::kvm::Segment;
use crate::kvm::Sregs;
use crate::mailbox;
use crate::memory::GuestMemory;
use crate::memory::PAGE_SIZE;

const GDT: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
const STACK_TOP: u64 = 0x8ff0;
const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
const COMMAND_LINE_SIZE: usize = 2048;
/// The end of the memory below the hole at 640 KiB.
const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The start of the firmware's tables: 128 KiB below 1 MiB.
const FIRMWARE: u64 = 0xe_0000;
const HIGH_MEMORY: u64 = 0x10_0000;
/// Offset of the 64-bit entry point in the loaded kernel.
const ENTRY_64: u64 = 0x200;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// The type of persistent memory from before ACPI's NFIT (`E820_TYPE_PRAM`). The kernel makes `/dev/pmem0` of it.
const E820_PERSISTENT: u32 = 12;

/// The images to load.
pub struct Image<'a> {
    /// A bzImage, or the vmlinux inside it.
    pub kernel: &'a [u8],
    /// cpio archives. The kernel unpacks them in this order into one file system.
    pub initrds: &'a [Vec<u8>],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// The end of the memory for the kernel. Persistent memory begins here and ends at the mailbox.
    pub memory_end: u64,
    /// Guest physical address of the ACPI root pointer.
    pub rsdp: u64,
}

const TOO_SHORT: &str = "the kernel image is too short";

fn error(text: &str) -> io::Error {
    io::Error::other(text.to_owned())
}

/// A little-endian number of `length` bytes.
fn field(image: &[u8], offset: usize, length: usize) -> io::Result<u64> {
    let bytes = image
        .get(offset..offset + length)
        .ok_or_else(|| error(TOO_SHORT))?;
    Ok(bytes
        .iter()
        .rev()
        .fold(0, |value, byte| (value << 8) | u64::from(*byte)))
}

/// A kernel image of either format, parsed.
struct Kernel<'a> {
    /// Parts of the image with their addresses.
    segments: Vec<(u64, &'a [u8])>,
    /// The end of the memory that the kernel uses before it reads the memory map.
    end: u64,
    /// The entry point of processor 0.
    entry: u64,
    /// The highest address of an initramfs.
    initrd_max: u64,
    /// The setup header, from offset 0x1f1 of the zero page.
    header: Vec<u8>,
}

/// Parses a bzImage, a kernel that unpacks itself.
fn bzimage(kernel: &[u8]) -> io::Result<Kernel<'_>> {
    if field(kernel, 0x202, 4)? != u64::from(u32::from_le_bytes(*b"HdrS"))
        || field(kernel, 0x206, 2)? < 0x20c
    {
        return Err(error(
            "the kernel is no bzImage of boot protocol 2.12 or later",
        ));
    }
    if field(kernel, 0x236, 2)? & 1 == 0 {
        return Err(error("the kernel has no 64-bit entry point"));
    }
    let setup_sectors = match field(kernel, 0x1f1, 1)? {
        0 => 4,
        count => count,
    };
    let code = (setup_sectors as usize + 1) * 512;
    let code = kernel.get(code..).ok_or_else(|| error(TOO_SHORT))?;
    let start = field(kernel, 0x258, 8)?;
    let header_end = 0x202 + field(kernel, 0x201, 1)? as usize;
    Ok(Kernel {
        segments: vec![(start, code)],
        end: start + field(kernel, 0x260, 4)?,
        entry: start + ENTRY_64,
        initrd_max: field(kernel, 0x22c, 4)?,
        header: kernel[0x1f1..header_end].to_vec(),
    })
}

/// Parses a vmlinux, the ELF file inside a bzImage. Its entry point follows the same protocol. The host unpacks it,
/// which saves an emulated guest seconds.
fn vmlinux(kernel: &[u8]) -> io::Result<Kernel<'_>> {
    const PT_LOAD: u64 = 1;
    let table = field(kernel, 0x20, 8)? as usize;
    let mut segments = Vec::new();
    let mut end = 0;
    for index in 0..field(kernel, 0x38, 2)? as usize {
        let at = table + index * 56;
        if field(kernel, at, 4)? != PT_LOAD {
            continue;
        }
        let (offset, address) = (
            field(kernel, at + 8, 8)? as usize,
            field(kernel, at + 24, 8)?,
        );
        let (in_file, in_memory) = (field(kernel, at + 32, 8)?, field(kernel, at + 40, 8)?);
        let bytes = offset
            .checked_add(in_file as usize)
            .and_then(|end| kernel.get(offset..end))
            .ok_or_else(|| error(TOO_SHORT))?;
        segments.push((address, bytes));
        end = end.max(address.saturating_add(in_memory));
    }
    let mut header = vec![0; 0x80];
    let mut put = |offset: usize, bytes: &[u8]| {
        header[offset - 0x1f1..offset - 0x1f1 + bytes.len()].copy_from_slice(bytes);
    };
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x20cu16.to_le_bytes());
    put(0x211, &[1]); // The kernel is loaded high.
    put(0x230, &0x20_0000u32.to_le_bytes());
    Ok(Kernel {
        segments,
        end,
        entry: field(kernel, 0x18, 8)?,
        initrd_max: 0x7fff_ffff,
        header,
    })
}

/// Loads the images. Returns the entry point of processor 0.
///
/// An error names the fault of an image, or says that the memory is too small.
pub fn load(memory: &GuestMemory, image: &Image<'_>) -> io::Result<u64> {
    let kernel = match image.kernel.starts_with(b"\x7fELF") {
        true => vmlinux(image.kernel)?,
        false => bzimage(image.kernel)?,
    };

    let mut initrd = Vec::new();
    for archive in image.initrds {
        initrd.extend_from_slice(archive);
        initrd.resize(initrd.len().next_multiple_of(512), 0);
    }
    let memory_end = image.memory_end;
    let initrd_top = memory_end.min(kernel.initrd_max + 1);
    let initrd_start = initrd_top.saturating_sub(initrd.len() as u64) & !(PAGE_SIZE - 1);
    if initrd_start < kernel.end {
        return Err(error(
            "the guest's memory is too small for its kernel and initramfs",
        ));
    }
    if image.command_line.len() >= COMMAND_LINE_SIZE {
        return Err(error("the command line is too long"));
    }

    for (address, bytes) in kernel.segments {
        memory.write(address, bytes)?;
    }
    memory.write(initrd_start, &initrd)?;
    memory.write(COMMAND_LINE, image.command_line.as_bytes())?;
    memory.write(COMMAND_LINE + image.command_line.len() as u64, &[0])?;

    let mut zero_page = vec![0u8; PAGE_SIZE as usize];
    zero_page[0x1f1..0x1f1 + kernel.header.len()].copy_from_slice(&kernel.header);
    let mut put = |offset: usize, bytes: &[u8]| {
        zero_page[offset..offset + bytes.len()].copy_from_slice(bytes)
    };
    put(0x70, &image.rsdp.to_le_bytes());
    put(0x210, &[0xff]); // A boot loader without an assigned number.
    put(0x218, &(initrd_start as u32).to_le_bytes());
    put(0x21c, &(initrd.len() as u32).to_le_bytes());
    put(0x228, &(COMMAND_LINE as u32).to_le_bytes());
    let mailbox = mailbox::address(memory);
    let mut map = vec![
        (0, LOW_MEMORY_END, E820_RAM),
        (LOW_MEMORY_END, 0xa_0000, E820_RESERVED),
        (FIRMWARE, HIGH_MEMORY, E820_RESERVED),
        (HIGH_MEMORY, memory_end, E820_RAM),
        (memory_end, mailbox, E820_PERSISTENT),
        (mailbox, memory.len(), E820_RESERVED),
    ];
    map.retain(|(from, to, _)| from < to);
    put(0x1e8, &[map.len() as u8]);
    for (index, (from, to, kind)) in map.into_iter().enumerate() {
        let at = 0x2d0 + index * 20;
        put(at, &from.to_le_bytes());
        put(at + 8, &(to - from).to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    memory.write(ZERO_PAGE, &zero_page)?;
    load_page_tables(memory)?;
    for (index, descriptor) in [0u64, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]
        .into_iter()
        .enumerate()
    {
        memory.write(GDT + index as u64 * 8, &descriptor.to_le_bytes())?;
    }
    Ok(kernel.entry)
}

/// Identity-maps the first 4 GiB in pages of 2 MiB.
fn load_page_tables(memory: &GuestMemory) -> io::Result<()> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let pointers = PAGE_TABLES + PAGE_SIZE;
    memory.write(PAGE_TABLES, &(pointers | PRESENT_WRITABLE).to_le_bytes())?;
    for gigabyte in 0..4 {
        let directory = pointers + PAGE_SIZE * (gigabyte + 1);
        memory.write(
            pointers + gigabyte * 8,
            &(directory | PRESENT_WRITABLE).to_le_bytes(),
        )?;
        for entry in 0..512 {
            let page = (gigabyte << 30) + (entry << 21);
            memory.write(
                directory + entry * 8,
                &(page | PRESENT_WRITABLE | LARGE).to_le_bytes(),
            )?;
        }
    }
    Ok(())
}

/// The general registers of processor 0 at `entry`.
pub fn registers(entry: u64) -> Regs {
    Regs {
        rip: entry,
        rsi: ZERO_PAGE,
        rsp: STACK_TOP,
        rflags: 2,
        ..Default::default()
    }
}

/// Switches the state after reset to 64-bit mode, with the page tables and segments of [`load`].
pub fn enter_long_mode(sregs: &mut Sregs) {
    let segment = |selector: u16, code: bool| Segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: if code { 0xb } else { 3 },
        present: 1,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    };
    sregs.cs = segment(0x10, true);
    let data = segment(0x18, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.cr0 = 0x8000_0033; // PG, NE, ET, MP, PE
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = 0x20; // PAE
    sregs.efer = 0x500; // LMA, LME
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Vec<u8> {
        let mut image = vec![0u8; 0x1000];
        image[0x1f1] = 1;
        image[0x201] = 0x70;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        image[0x236] = 1;
        image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x400] = 0x90;
        image
    }

    #[test]
    fn loads_a_kernel_with_two_archives() {
        let memory = GuestMemory::new(32 << 20).unwrap();
        let initrds = [vec![1u8; 5], vec![2u8; 3]];
        let kernel = kernel();
        let image = Image {
            kernel: &kernel,
            initrds: &initrds,
            command_line: "quiet",
            memory_end: 20 << 20,
            rsdp: 0xe0000,
        };
        assert_eq!(load(&memory, &image).unwrap(), 0x100_0200);
        assert_eq!(memory.read_vec(0x100_0000, 1).unwrap(), [0x90]);
        let start = u64::from(memory.load_u32(ZERO_PAGE + 0x218).unwrap());
        assert_eq!(memory.load_u32(ZERO_PAGE + 0x21c).unwrap(), 1024);
        assert_eq!(memory.read_vec(start + 512, 4).unwrap(), [2, 2, 2, 0]);
        assert_eq!(memory.read_vec(COMMAND_LINE, 6).unwrap(), b"quiet\0");
        // Memory, persistent memory, the mailbox.
        let map = [4, 5].map(|entry| {
            let at = ZERO_PAGE + 0x2d0 + (entry - 1) * 20;
            let word = |offset| memory.load_u32(at + offset).unwrap();
            (word(0), word(8), word(16))
        });
        assert_eq!(map[0], (0x10_0000, 19 << 20, E820_RAM));
        assert_eq!(map[1], (20 << 20, 10 << 20, E820_PERSISTENT));
        // 1 GiB + 2 MiB is mapped to itself.
        assert_eq!(
            memory.load_u32(PAGE_TABLES + PAGE_SIZE * 3 + 8).unwrap(),
            0x4020_0083
        );
    }

    #[test]
    fn loads_an_unpacked_kernel() {
        let memory = GuestMemory::new(32 << 20).unwrap();
        let mut kernel = vec![0u8; 0x200];
        kernel[..4].copy_from_slice(b"\x7fELF");
        let fields: [(usize, u64); 6] = [
            (0x18, 0x123_4560),
            (0x20, 0x40),
            (0x48, 0x1f0),
            (0x58, 0x100_0000),
            (0x60, 4),
            (0x68, 0x1000),
        ];
        for (offset, value) in fields {
            kernel[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        }
        kernel[0x38] = 1;
        kernel[0x40] = 1;
        kernel[0x1f0..0x1f4].copy_from_slice(&[5, 6, 7, 8]);
        let image = Image {
            kernel: &kernel,
            initrds: &[],
            command_line: "",
            memory_end: mailbox::address(&memory),
            rsdp: 0,
        };
        assert_eq!(load(&memory, &image).unwrap(), 0x123_4560);
        assert_eq!(memory.read_vec(0x100_0000, 4).unwrap(), [5, 6, 7, 8]);
        assert_eq!(memory.read_vec(ZERO_PAGE + 0x202, 4).unwrap(), b"HdrS");
        let short = Image {
            kernel: &kernel[..0x1f2],
            ..image
        };
        assert!(load(&memory, &short).is_err());
    }

    #[test]
    fn refuses_what_cannot_boot() {
        let memory = GuestMemory::new(16 << 20).unwrap();
        let try_load = |kernel: &[u8]| {
            let image = Image {
                kernel,
                initrds: &[],
                command_line: "",
                memory_end: mailbox::address(&memory),
                rsdp: 0,
            };
            load(&memory, &image).unwrap_err().to_string()
        };
        assert!(try_load(&[]).contains("too short"));
        assert!(try_load(&[0; 0x1000]).contains("no bzImage"));
        assert!(try_load(&kernel()).contains("too small"));
    }
}
