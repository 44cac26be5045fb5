// SPDX-License-Identifier: GPL-2.0

//! The guest's CPUID table: a processor under Microsoft's hypervisor.
//!
//! Source: TLFS, "Feature and interface discovery". The feature bits are KVM's (`kvm_get_hv_cpuid()`) without the
//! kernel debugger's. The hypervisor's name is Microsoft's, as on Hyper-V. The table lacks KVM's own signature: Linux
//! would prefer it to Hyper-V's.

use crate::kvm::CpuidEntry;

const VENDOR_AND_MAXIMUM: u32 = 0x4000_0000;
const FEATURES: u32 = 0x4000_0003;
const HINTS: u32 = 0x4000_0004;
const LIMITS: u32 = 0x4000_0005;
const HARDWARE_FEATURES: u32 = 0x4000_0006;
/// Features of nested virtualization on AMD processors.
const SVM: u32 = 0x8000_000a;
const HYPERVISOR_LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;

/// EAX of [`FEATURES`]: the guest has a reference TSC page.
const REFERENCE_TSC: u32 = 1 << 9;
/// EAX of [`FEATURES`]: the TSC is invariant.
const INVARIANT_TSC: u32 = 1 << 15;
/// EBX of [`FEATURES`]: HvDebugging.
const DEBUGGING: u32 = 1 << 11;
/// EDX of [`FEATURES`]: GuestDebugging and the debug MSRs.
const GUEST_DEBUGGING: u32 = (1 << 1) | (1 << 11);

/// EAX of [`HINTS`]: use enlightened VMCSs.
const ENLIGHTENED_VMCS: u32 = 1 << 14;

/// The guest's clocks, beside the slow register of the reference time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The invariant TSC and the reference TSC page: all that KVM supports.
    Counter,
    /// The reference TSC page only. Linux's clock source is `hyperv_clocksource_tsc_page`.
    Page,
    /// Neither. Linux's clock source is `hyperv_clocksource_msr`.
    Register,
}

impl Clock {
    /// Bits in EAX of [`FEATURES`] that the guest does not see.
    const fn hidden(self) -> u32 {
        match self {
            Self::Counter => 0,
            Self::Page => INVARIANT_TSC,
            Self::Register => INVARIANT_TSC | REFERENCE_TSC,
        }
    }
}

/// The table of processor `index` of `count`. `supported` and `hyperv` are the leaves that KVM supports.
pub fn table(
    supported: &[CpuidEntry],
    hyperv: &[CpuidEntry],
    index: u32,
    count: u32,
    clock: Clock,
) -> Vec<CpuidEntry> {
    let mut table: Vec<_> = supported
        .iter()
        .filter(|entry| !HYPERVISOR_LEAVES.contains(&entry.function) && entry.function != SVM)
        .copied()
        .collect();
    for entry in &mut table {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | (index << 24) | (count << 16);
                entry.ecx |= 1 << 31; // A hypervisor is present.
                entry.ecx &= !(1 << 5); // No VMX: no nested virtualization.
                entry.ecx &= !(1 << 21); // No x2APIC: Linux uses the hypercall MSRs instead.
                if count > 1 {
                    entry.edx |= 1 << 28;
                }
            }
            // Extended topology: one thread per core, all cores in one package.
            0xb | 0x1f => {
                entry.edx = index;
                match entry.index {
                    0 => (entry.eax, entry.ebx, entry.ecx) = (0, 1, 1 << 8),
                    1 => (entry.eax, entry.ebx, entry.ecx) = (8, count, (2 << 8) | 1),
                    _ => (entry.eax, entry.ebx) = (0, 0),
                }
            }
            // No SVM: no nested virtualization.
            0x8000_0001 => entry.ecx &= !(1 << 2),
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | count.saturating_sub(1),
            0x8000_001e => (entry.eax, entry.ebx) = (index, index),
            _ => {}
        }
    }
    for entry in hyperv.iter().filter(|entry| entry.function <= LIMITS) {
        let mut entry = *entry;
        match entry.function {
            VENDOR_AND_MAXIMUM => {
                let name = |part: &[u8]| u32::from_le_bytes(part.try_into().expect("four bytes"));
                entry.eax = HARDWARE_FEATURES;
                (entry.ebx, entry.ecx, entry.edx) = (name(b"Micr"), name(b"osof"), name(b"t Hv"));
            }
            HINTS => entry.eax &= !ENLIGHTENED_VMCS,
            FEATURES => {
                entry.eax &= !clock.hidden();
                entry.ebx &= !DEBUGGING;
                entry.edx &= !GUEST_DEBUGGING;
            }
            _ => {}
        }
        table.push(entry);
    }
    table.push(CpuidEntry {
        function: HARDWARE_FEATURES,
        ..Default::default()
    });
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hypervisor_is_microsofts() {
        let leaf = |function, ebx| CpuidEntry {
            function,
            ebx,
            edx: u32::MAX,
            ..Default::default()
        };
        let supported = [
            leaf(1, 0),
            leaf(SVM, 0),
            leaf(0x4000_0000, 1),
            leaf(0x4000_0100, 2),
        ];
        let hyperv = [
            leaf(0x4000_0000, 3),
            leaf(0x4000_0003, u32::MAX),
            leaf(0x4000_0080, 4),
        ];
        let table = table(&supported, &hyperv, 1, 2, Clock::Counter);
        let functions: Vec<_> = table.iter().map(|entry| entry.function).collect();
        assert_eq!(functions, [1, 0x4000_0000, 0x4000_0003, 0x4000_0006]);
        assert_eq!(table[0].ecx >> 31, 1);
        assert_eq!(table[0].ebx >> 24, 1);
        assert_eq!(table[1].ebx.to_le_bytes(), *b"Micr");
        assert_eq!(table[2].ebx & DEBUGGING, 0);
    }

    #[test]
    fn there_is_no_nested_virtualisation() {
        let all = |function| CpuidEntry {
            function,
            eax: u32::MAX,
            ecx: u32::MAX,
            ..Default::default()
        };
        let table = table(
            &[all(1), all(0x8000_0001)],
            &[all(HINTS)],
            0,
            1,
            Clock::Counter,
        );
        assert_eq!(table[0].ecx & (1 << 5), 0);
        assert_eq!(table[1].ecx & (1 << 2), 0);
        assert_eq!(table[2].eax, !ENLIGHTENED_VMCS);
    }
    #[test]
    fn a_guest_has_the_clocks_that_it_is_to_have() {
        for (clock, seen) in [
            (Clock::Counter, INVARIANT_TSC | REFERENCE_TSC),
            (Clock::Page, REFERENCE_TSC),
            (Clock::Register, 0),
        ] {
            let features = CpuidEntry {
                function: FEATURES,
                eax: INVARIANT_TSC | REFERENCE_TSC,
                ..Default::default()
            };
            assert_eq!(table(&[], &[features], 0, 1, clock)[0].eax, seen);
        }
    }
}
