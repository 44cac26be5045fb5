// SPDX-License-Identifier: GPL-2.0

//! A machine's state in KVM, read and written: a part of each snapshot.
//!
//! The order of writes is QEMU's (`kvm_arch_put_registers()`). The MSRs are those of KVM's list, and all of the SynIC
//! and the synthetic timers: KVM's list has only one of each group.

use std::ffi::c_ulong;
use std::io;
use std::mem::size_of;

use super::bindings;
use super::ioctl_struct;
use super::ioctl_value;
use super::request;
use super::Kvm;
use super::Regs;
use super::Sregs;
use super::Vcpu;
use super::Vm;
use super::READ;
use super::WRITE;

const GET_MSR_INDEX_LIST: c_ulong = request(READ | WRITE, 0x02, 4);
const GET_IRQCHIP: c_ulong = request(READ | WRITE, 0x62, size_of::<bindings::kvm_irqchip>());
const SET_IRQCHIP: c_ulong = request(READ, 0x63, size_of::<bindings::kvm_irqchip>());
const SET_CLOCK: c_ulong = request(WRITE, 0x7b, size_of::<bindings::kvm_clock_data>());
const GET_MSRS: c_ulong = request(READ | WRITE, 0x88, 8);
const SET_MSRS: c_ulong = request(WRITE, 0x89, 8);
const TRANSLATE: c_ulong = request(READ | WRITE, 0x85, size_of::<bindings::kvm_translation>());
const NMI: c_ulong = request(0, 0x9a, 0);
const GET_LAPIC: c_ulong = request(READ, 0x8e, size_of::<bindings::kvm_lapic_state>());
const SET_LAPIC: c_ulong = request(WRITE, 0x8f, size_of::<bindings::kvm_lapic_state>());
const GET_MP_STATE: c_ulong = request(READ, 0x98, size_of::<bindings::kvm_mp_state>());
const SET_MP_STATE: c_ulong = request(WRITE, 0x99, size_of::<bindings::kvm_mp_state>());
const GET_PIT2: c_ulong = request(READ, 0x9f, size_of::<bindings::kvm_pit_state2>());
const SET_PIT2: c_ulong = request(WRITE, 0xa0, size_of::<bindings::kvm_pit_state2>());
const GET_VCPU_EVENTS: c_ulong = request(READ, 0x9f, size_of::<bindings::kvm_vcpu_events>());
const SET_VCPU_EVENTS: c_ulong = request(WRITE, 0xa0, size_of::<bindings::kvm_vcpu_events>());
const GET_DEBUGREGS: c_ulong = request(READ, 0xa1, size_of::<bindings::kvm_debugregs>());
const SET_DEBUGREGS: c_ulong = request(WRITE, 0xa2, size_of::<bindings::kvm_debugregs>());
const GET_XSAVE: c_ulong = request(READ, 0xa4, size_of::<Xsave>());
const SET_XSAVE: c_ulong = request(WRITE, 0xa5, size_of::<Xsave>());
const GET_XCRS: c_ulong = request(READ, 0xa6, size_of::<bindings::kvm_xcrs>());
const SET_XCRS: c_ulong = request(WRITE, 0xa7, size_of::<bindings::kvm_xcrs>());

/// MSRs that a snapshot needs and KVM's list lacks: SIEFP, SIMP, the SINTs, the synthetic timers.
const HYPERV_MSRS: [std::ops::RangeInclusive<u32>; 3] = [
    0x4000_0082..=0x4000_0083,
    0x4000_0090..=0x4000_009f,
    0x4000_00b0..=0x4000_00b7,
];
/// MSRs that are clocks, or whose writes have side effects: reset, run time, reference time, frequencies.
const NOT_STATE: [u32; 5] = [
    0x4000_0003,
    0x4000_0010,
    0x4000_0020,
    0x4000_0022,
    0x4000_0023,
];

/// `struct kvm_xsave` without its flexible end: this host's processors do not need it.
#[repr(C)]
#[derive(Clone)]
struct Xsave([u32; 1024]);

/// `struct kvm_msrs` with one entry.
#[repr(C)]
struct OneMsr {
    count: u32,
    padding: u32,
    entry: bindings::kvm_msr_entry,
}

/// A processor's state.
#[derive(Clone)]
pub struct VcpuState {
    mp_state: bindings::kvm_mp_state,
    regs: Regs,
    sregs: Sregs,
    xcrs: bindings::kvm_xcrs,
    xsave: Box<Xsave>,
    lapic: bindings::kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    debug: bindings::kvm_debugregs,
    events: bindings::kvm_vcpu_events,
}

/// The state of the interrupt controllers, the timer and the clock.
#[derive(Clone)]
pub struct VmState {
    chips: [bindings::kvm_irqchip; 3],
    pit: bindings::kvm_pit_state2,
    clock: u64,
}

impl Kvm {
    /// The MSRs of a processor's state.
    pub fn state_msrs(&self) -> io::Result<Vec<u32>> {
        #[repr(C)]
        struct List {
            count: u32,
            indices: [u32; 1024],
        }
        let mut list = Box::new(List {
            count: 1024,
            indices: [0; 1024],
        });
        ioctl_struct(
            &self.file,
            "KVM_GET_MSR_INDEX_LIST",
            GET_MSR_INDEX_LIST,
            &mut *list,
        )?;
        let mut msrs = list.indices[..list.count as usize].to_vec();
        msrs.extend(HYPERV_MSRS.into_iter().flatten());
        msrs.retain(|msr| !NOT_STATE.contains(msr));
        msrs.sort_unstable();
        msrs.dedup();
        Ok(msrs)
    }
}

impl Vcpu {
    /// Reads an MSR. `None` if the processor lacks it.
    pub fn msr(&self, index: u32) -> Option<u64> {
        let entry = bindings::kvm_msr_entry {
            index,
            ..Default::default()
        };
        let mut msr = OneMsr {
            count: 1,
            padding: 0,
            entry,
        };
        let read = ioctl_struct(&self.fd, "KVM_GET_MSRS", GET_MSRS, &mut msr);
        read.is_ok_and(|count| count == 1).then_some(msr.entry.data)
    }

    /// Writes an MSR. The error names an MSR that KVM refuses.
    fn set_msr(&self, index: u32, data: u64) -> io::Result<()> {
        let entry = bindings::kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let mut msr = OneMsr {
            count: 1,
            padding: 0,
            entry,
        };
        match ioctl_struct(&self.fd, "KVM_SET_MSRS", SET_MSRS, &mut msr)? {
            1 => Ok(()),
            _ => Err(io::Error::other(format!(
                "KVM refuses {data:#x} for MSR {index:#x}"
            ))),
        }
    }

    /// Whether the processor executes instructions. It does not while it waits for an interrupt or for its start.
    pub fn is_running(&self) -> bool {
        let mut state = bindings::kvm_mp_state::default();
        let read = ioctl_struct(&self.fd, "KVM_GET_MP_STATE", GET_MP_STATE, &mut state);
        read.is_ok() && state.mp_state == bindings::KVM_MP_STATE_RUNNABLE
    }

    /// Whether an NMI is pending for the processor.
    pub fn has_nmi_pending(&self) -> bool {
        let mut events = bindings::kvm_vcpu_events::default();
        let read = ioctl_struct(
            &self.fd,
            "KVM_GET_VCPU_EVENTS",
            GET_VCPU_EVENTS,
            &mut events,
        );
        read.is_ok() && (events.nmi.pending != 0 || events.nmi.injected != 0)
    }

    /// Sends the processor an NMI.
    pub fn send_nmi(&self) -> io::Result<()> {
        ioctl_value(&self.fd, "KVM_NMI", NMI, 0).map(|_| ())
    }

    /// Translates a virtual address to a physical one. `None` if the address is not mapped.
    pub fn translate(&self, address: u64) -> Option<u64> {
        let mut translation = bindings::kvm_translation {
            linear_address: address,
            ..Default::default()
        };
        ioctl_struct(&self.fd, "KVM_TRANSLATE", TRANSLATE, &mut translation).ok()?;
        (translation.valid != 0).then_some(translation.physical_address)
    }

    /// Reads the state. The processor must not run. A pending exit is completed first.
    pub fn state(&mut self, msrs: &[u32]) -> io::Result<VcpuState> {
        self.kick_itself();
        self.run()?;
        self.clear_kick();
        let mut state = VcpuState {
            mp_state: Default::default(),
            regs: self.regs()?,
            sregs: self.sregs()?,
            xcrs: Default::default(),
            xsave: Box::new(Xsave([0; 1024])),
            lapic: Default::default(),
            msrs: msrs
                .iter()
                .filter_map(|&msr| Some((msr, self.msr(msr)?)))
                .collect(),
            debug: Default::default(),
            events: Default::default(),
        };
        ioctl_struct(
            &self.fd,
            "KVM_GET_MP_STATE",
            GET_MP_STATE,
            &mut state.mp_state,
        )?;
        ioctl_struct(&self.fd, "KVM_GET_XCRS", GET_XCRS, &mut state.xcrs)?;
        ioctl_struct(&self.fd, "KVM_GET_XSAVE", GET_XSAVE, &mut *state.xsave)?;
        ioctl_struct(&self.fd, "KVM_GET_LAPIC", GET_LAPIC, &mut state.lapic)?;
        ioctl_struct(
            &self.fd,
            "KVM_GET_DEBUGREGS",
            GET_DEBUGREGS,
            &mut state.debug,
        )?;
        ioctl_struct(
            &self.fd,
            "KVM_GET_VCPU_EVENTS",
            GET_VCPU_EVENTS,
            &mut state.events,
        )?;
        Ok(state)
    }

    /// Writes the state into a new processor.
    pub fn set_state(&self, state: &VcpuState) -> io::Result<()> {
        let mut state = state.clone();
        ioctl_struct(
            &self.fd,
            "KVM_SET_MP_STATE",
            SET_MP_STATE,
            &mut state.mp_state,
        )?;
        self.set_regs(&state.regs)?;
        self.set_sregs(&state.sregs)?;
        ioctl_struct(&self.fd, "KVM_SET_XCRS", SET_XCRS, &mut state.xcrs)?;
        ioctl_struct(&self.fd, "KVM_SET_XSAVE", SET_XSAVE, &mut *state.xsave)?;
        ioctl_struct(&self.fd, "KVM_SET_LAPIC", SET_LAPIC, &mut state.lapic)?;
        for (index, data) in state.msrs {
            // Many MSRs are read-only, or accept only the value they already have.
            if self.msr(index) != Some(data) {
                self.set_msr(index, data)?;
            }
        }
        ioctl_struct(
            &self.fd,
            "KVM_SET_DEBUGREGS",
            SET_DEBUGREGS,
            &mut state.debug,
        )?;
        ioctl_struct(
            &self.fd,
            "KVM_SET_VCPU_EVENTS",
            SET_VCPU_EVENTS,
            &mut state.events,
        )?;
        Ok(())
    }
}

impl Vm {
    /// Reads the state. No processor may run.
    pub fn state(&self) -> io::Result<VmState> {
        let mut state = VmState {
            chips: Default::default(),
            pit: Default::default(),
            clock: self.clock()?,
        };
        for (id, chip) in state.chips.iter_mut().enumerate() {
            chip.chip_id = id as u32;
            ioctl_struct(&self.fd, "KVM_GET_IRQCHIP", GET_IRQCHIP, chip)?;
        }
        ioctl_struct(&self.fd, "KVM_GET_PIT2", GET_PIT2, &mut state.pit)?;
        Ok(state)
    }

    /// Writes the state into a new machine: after the processors' states, before they run. The clock continues from
    /// there.
    pub fn set_state(&self, state: &VmState) -> io::Result<()> {
        let mut state = state.clone();
        for chip in &mut state.chips {
            ioctl_struct(&self.fd, "KVM_SET_IRQCHIP", SET_IRQCHIP, chip)?;
        }
        ioctl_struct(&self.fd, "KVM_SET_PIT2", SET_PIT2, &mut state.pit)?;
        self.set_clock(state.clock)
    }

    /// Sets the clock behind the guest's reference time, in nanoseconds.
    pub fn set_clock(&self, clock: u64) -> io::Result<()> {
        let mut data = bindings::kvm_clock_data {
            clock,
            ..Default::default()
        };
        ioctl_struct(&self.fd, "KVM_SET_CLOCK", SET_CLOCK, &mut data)?;
        Ok(())
    }
}
