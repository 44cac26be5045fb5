// SPDX-License-Identifier: GPL-2.0

//! Exits of a processor from the guest to the host: `struct kvm_run`.

use std::io;

use super::bindings;
use super::ioctl_value;
use super::Vcpu;
use super::RUN;

/// Why a virtual processor left the guest.
#[derive(Debug)]
pub enum VmExit<'a> {
    /// The guest reads from an I/O port: one or more accesses of 1, 2 or 4 bytes.
    PortIn {
        /// The port.
        port: u16,
        /// Bytes of one access.
        size: usize,
        /// The buffer for the answer, `size` bytes per access.
        data: &'a mut [u8],
    },
    /// The guest writes to an I/O port.
    PortOut {
        /// The port.
        port: u16,
        /// Bytes of one access.
        size: usize,
        /// The written bytes, `size` per access.
        data: &'a [u8],
    },
    /// The guest reads an address without memory.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// The buffer for the answer.
        data: &'a mut [u8],
    },
    /// The guest writes to an address without memory.
    MmioWrite {
        /// Guest physical address.
        address: u64,
    },
    /// The guest has written SCONTROL, SIEFP or SIMP. The exit has all three.
    Synic {
        /// SCONTROL: bit 0 enables the controller.
        control: u64,
        /// SIEFP: the address of the event flags page. Bit 0 enables the page.
        event_page: u64,
        /// SIMP: the address of the message page. Bit 0 enables the page.
        message_page: u64,
    },
    /// A hypercall for the host: see [`Vcpu::hypercall_exit`].
    Hypercall,
    /// Triple fault.
    Shutdown,
    /// The guest asked KVM for a reset (`HV_X64_MSR_RESET`).
    Reset,
    /// The guest reported a crash through `HV_X64_MSR_CRASH_CTL`.
    Crash,
    /// A signal, or HLT where KVM has no interrupt controller. The host does nothing.
    Interrupted,
    /// Any other exit.
    Unknown(String),
}

impl Vcpu {
    /// Runs the guest until its next exit. The answer to an exit must be in place before the next call.
    pub fn run(&mut self) -> io::Result<VmExit<'_>> {
        if let Err(error) = ioctl_value(&self.fd, "KVM_RUN", RUN, 0) {
            return match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(VmExit::Interrupted),
                _ => Err(error),
            };
        }
        // SAFETY: The mapping is live, KVM does not access it outside KVM_RUN, and `&mut self` excludes others.
        // References are made to single members only: other threads have a reference to `immediate_exit`.
        let reason = unsafe { (*self.run).exit_reason };
        // SAFETY: Each function is called for its `exit_reason`.
        Ok(unsafe {
            match reason {
                bindings::KVM_EXIT_IO => self.port_exit(),
                bindings::KVM_EXIT_MMIO => self.mmio_exit(),
                bindings::KVM_EXIT_HYPERV => self.hyperv_exit(),
                bindings::KVM_EXIT_SYSTEM_EVENT => self.system_event(),
                bindings::KVM_EXIT_INTERNAL_ERROR => self.internal_error(),
                bindings::KVM_EXIT_SHUTDOWN => VmExit::Shutdown,
                bindings::KVM_EXIT_HLT
                | bindings::KVM_EXIT_INTR
                | bindings::KVM_EXIT_IRQ_WINDOW_OPEN => VmExit::Interrupted,
                other => VmExit::Unknown(format!("KVM exit reason {other}")),
            }
        })
    }

    /// An access to an I/O port.
    ///
    /// # Safety
    ///
    /// `exit_reason` is `KVM_EXIT_IO`.
    unsafe fn port_exit(&mut self) -> VmExit<'_> {
        // SAFETY: As in `run`. The caller guarantees that KVM has written this member of the union.
        let io = unsafe { (*self.run).__bindgen_anon_1.io };
        let size = usize::from(io.size);
        let length = size * io.count as usize;
        assert!(
            io.data_offset as usize + length <= self.area.length(),
            "KVM's I/O data lies in its page"
        );
        let base = self.run.cast::<u8>();
        // SAFETY: The data was checked to be in the mapping. Nothing else references that part of the mapping.
        let data =
            unsafe { std::slice::from_raw_parts_mut(base.add(io.data_offset as usize), length) };
        let port = io.port;
        match u32::from(io.direction) {
            bindings::KVM_EXIT_IO_IN => VmExit::PortIn { port, size, data },
            _ => VmExit::PortOut { port, size, data },
        }
    }

    /// An access to an address without memory.
    ///
    /// # Safety
    ///
    /// `exit_reason` is `KVM_EXIT_MMIO`.
    unsafe fn mmio_exit(&mut self) -> VmExit<'_> {
        // SAFETY: As in `run`. The caller guarantees that KVM has written this member of the union.
        let mmio = unsafe { &mut (*self.run).__bindgen_anon_1.mmio };
        let length = (mmio.len as usize).min(mmio.data.len());
        let address = mmio.phys_addr;
        match mmio.is_write {
            0 => VmExit::MmioRead {
                address,
                data: &mut mmio.data[..length],
            },
            _ => VmExit::MmioWrite { address },
        }
    }

    /// An exit of KVM's Hyper-V enlightenments.
    ///
    /// # Safety
    ///
    /// `exit_reason` is `KVM_EXIT_HYPERV`.
    unsafe fn hyperv_exit(&mut self) -> VmExit<'_> {
        // SAFETY: As in `run`. The caller guarantees that KVM has written this member of the union.
        let hyperv = unsafe { &mut (*self.run).__bindgen_anon_1.hyperv };
        match hyperv.type_ {
            bindings::KVM_EXIT_HYPERV_SYNIC => {
                // SAFETY: `type_` says that this member is valid.
                let synic = unsafe { hyperv.u.synic };
                VmExit::Synic {
                    control: synic.control,
                    event_page: synic.evt_page,
                    message_page: synic.msg_page,
                }
            }
            bindings::KVM_EXIT_HYPERV_HCALL => VmExit::Hypercall,
            other => VmExit::Unknown(format!("KVM_EXIT_HYPERV type {other}")),
        }
    }

    /// An event of the whole machine: a reset or a crash.
    ///
    /// # Safety
    ///
    /// `exit_reason` is `KVM_EXIT_SYSTEM_EVENT`.
    unsafe fn system_event(&mut self) -> VmExit<'_> {
        // SAFETY: As in `run`. The caller guarantees that KVM has written this member of the union.
        let event = unsafe { (*self.run).__bindgen_anon_1.system_event.type_ };
        match event {
            bindings::KVM_SYSTEM_EVENT_RESET => VmExit::Reset,
            bindings::KVM_SYSTEM_EVENT_CRASH => VmExit::Crash,
            other => VmExit::Unknown(format!("KVM_EXIT_SYSTEM_EVENT type {other}")),
        }
    }

    /// An internal error of KVM.
    ///
    /// # Safety
    ///
    /// `exit_reason` is `KVM_EXIT_INTERNAL_ERROR`.
    unsafe fn internal_error(&mut self) -> VmExit<'_> {
        // SAFETY: As in `run`. The caller guarantees that KVM has written this member of the union.
        let internal = unsafe { (*self.run).__bindgen_anon_1.internal };
        VmExit::Unknown(format!(
            "KVM_EXIT_INTERNAL_ERROR suberror {} data {:x?}",
            internal.suberror,
            &internal.data[..(internal.ndata as usize).min(internal.data.len())]
        ))
    }

    /// The hypercall of the last exit: input value (TLFS, "Hypercall Input Value"), two parameters, and the place for
    /// the result. `None` unless the last exit was [`VmExit::Hypercall`].
    pub fn hypercall_exit(&mut self) -> Option<(u64, [u64; 2], &mut u64)> {
        let run = self.run;
        // SAFETY: The mapping is live, KVM does not access it outside KVM_RUN, and `&mut self` excludes others.
        // References are made to single members only: other threads have a reference to `immediate_exit`.
        if unsafe { (*run).exit_reason } != bindings::KVM_EXIT_HYPERV {
            return None;
        }
        // SAFETY: As above. `exit_reason` says that this member is valid.
        let hyperv = unsafe { &mut (*run).__bindgen_anon_1.hyperv };
        if hyperv.type_ != bindings::KVM_EXIT_HYPERV_HCALL {
            return None;
        }
        // SAFETY: `type_` says that this member is valid.
        let hcall = unsafe { &mut hyperv.u.hcall };
        Some((hcall.input, hcall.params, &mut hcall.result))
    }
}
