// SPDX-License-Identifier: GPL-2.0

//! A module's ELF file.

use std::collections::BTreeSet;

use host::guest::Guest;
use host::guest::Result;

/// The end of a signed module's file.
const SIGNED: &[u8] = b"~Module signature appended~\n";

/// Flag of a section that the kernel loads.
const ALLOC: u64 = 2;
/// Flag of a section with code.
const EXECUTED: u64 = 4;

/// A section of the file.
struct Section {
    name: String,
    flags: u64,
    size: u64,
}

/// The parts of a module's file that the benchmark needs.
pub struct Elf {
    sections: Vec<Section>,
    signed: bool,
}

/// Bytes of a module's file that stay in memory after insertion.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Sections with code.
    pub text: u64,
    /// Other sections.
    pub data: u64,
}

impl Elf {
    /// Reads a file in the guest.
    pub fn read(guest: &Guest, path: &str) -> Result<Self> {
        let dump = guest.sh_ok(&format!("od -v -A n -t x1 {path}"))?;
        let file: Vec<u8> = dump
            .split_whitespace()
            .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
            .collect();
        Self::parse(&file).ok_or_else(|| format!("{path} is no module").into())
    }

    /// Parses a 64-bit ELF file.
    fn parse(file: &[u8]) -> Option<Self> {
        let number = |at: u64, bytes: u64| {
            let field = file.get(at as usize..(at + bytes) as usize)?;
            let digits = field.iter().rev();
            Some(digits.fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
        };
        let (first, each, count) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?);
        let names = number(first + number(0x3e, 2)? * each + 0x18, 8)?;
        let section = |index| {
            let section = first + index * each;
            let name = file.get((names + number(section, 4)?) as usize..)?;
            let name = name.split(|byte| *byte == 0).next()?;
            Some(Section {
                name: String::from_utf8_lossy(name).into_owned(),
                flags: number(section + 8, 8)?,
                size: number(section + 0x20, 8)?,
            })
        };
        Some(Self {
            sections: (0..count).map(section).collect::<Option<_>>()?,
            signed: file.ends_with(SIGNED),
        })
    }

    /// The bytes that the kernel's module loader keeps once the module is initialized.
    pub fn kept(&self) -> Kept {
        // The loader frees these sections, which only the loader and the initialization use.
        const READ: [&str; 3] = [".modinfo", "__version", ".init"];
        let mut kept = Kept::default();
        for Section { name, flags, size } in &self.sections {
            if flags & ALLOC == 0 || READ.iter().any(|read| name.starts_with(read)) {
                continue;
            }
            match flags & EXECUTED {
                0 => kept.data += size,
                _ => kept.text += size,
            }
        }
        kept
    }

    /// The parts of the file that are not loaded, such as debug information, BTF or a signature. They cost time at
    /// insertion, and depend on who built the file. Relocations are left out: every module has them.
    fn extras(&self) -> BTreeSet<&str> {
        let sections = self.sections.iter().filter(|section| {
            section.flags & ALLOC == 0
                && !section.name.is_empty()
                && !section.name.starts_with(".rela")
        });
        sections
            .map(|section| section.name.as_str())
            .chain(self.signed.then_some("a signature"))
            .collect()
    }

    /// An error if only one of two files has a part of that kind.
    pub fn same_kind(&self, other: &Self) -> Result<()> {
        let (ours, theirs) = (self.extras(), other.extras());
        let differ: Vec<_> = ours.symmetric_difference(&theirs).copied().collect();
        match differ.as_slice() {
            [] => Ok(()),
            _ => Err(format!(
                "the modules' files differ in kind: one alone has {}",
                differ.join(", ")
            )
            .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, flags, size.
    type Header<'a> = (&'a str, u8, u8);

    /// A file of these sections, and one with their names.
    fn elf(sections: &[Header<'_>], end: &[u8]) -> Elf {
        let sections = [sections, &[(".names", 0, 60)]].concat();
        let mut file = vec![0; 0x40 * (1 + sections.len())];
        let count = sections.len() as u8;
        (file[0x28], file[0x3a], file[0x3c], file[0x3e]) = (0x40, 0x40, count, count - 1);
        let names = file.len();
        for (index, (name, flags, size)) in sections.iter().enumerate() {
            let header = 0x40 * (1 + index);
            file[header] = (file.len() - names) as u8;
            (file[header + 8], file[header + 0x20]) = (*flags, *size);
            file.extend(name.bytes().chain([0]));
        }
        let last = 0x40 * sections.len();
        file[last + 0x18..last + 0x1a].copy_from_slice(&(names as u16).to_le_bytes());
        file.extend(end);
        Elf::parse(&file).unwrap()
    }

    #[test]
    fn adds_up_sections() {
        let sections = [
            ("", 0, 0),
            (".text", 6, 10),
            (".data", 3, 20),
            (".rodata", 2, 30),
            (".init.text", 6, 40),
            (".modinfo", 2, 50),
        ];
        let kept = elf(&sections, b"").kept();
        assert_eq!((kept.text, kept.data), (10, 50));
    }

    #[test]
    fn files_of_the_same_kind() {
        let c = elf(&[("", 0, 0), (".text", 6, 10), (".symtab", 0, 9)], b"");
        let same = elf(
            &[(".data", 3, 8), (".symtab", 0, 7), (".rela.data", 0, 6)],
            b"",
        );
        c.same_kind(&same).unwrap();
        for extra in [".BTF", ".BTF.base", ".debug_info", ".symtab_shndx"] {
            let more = elf(&[(".text", 6, 10), (".symtab", 0, 9), (extra, 0, 5)], b"");
            for (one, other) in [(&c, &more), (&more, &c)] {
                let error = one.same_kind(other).unwrap_err();
                assert!(error.0.ends_with(extra), "{error}");
            }
        }
        let signed = elf(&[(".text", 6, 10), (".symtab", 0, 9)], SIGNED);
        signed.same_kind(&signed).unwrap();
        assert!(signed.same_kind(&c).unwrap_err().0.ends_with("a signature"));
        assert!(c.same_kind(&signed).unwrap_err().0.ends_with("a signature"));
        assert!(elf(&[(".text", 6, 10)], b"").same_kind(&c).is_err());
    }
}
