// SPDX-License-Identifier: GPL-2.0

//! `/dev/kvm`: its ioctls as methods of [`Kvm`], [`Vm`] and [`Vcpu`].
//!
//! Structures come from a bindgen run over `<linux/kvm.h>`. Ioctl numbers are computed here, as bindgen does not see
//! function-like macros. `Documentation/virt/kvm/api.rst` in the kernel describes the calls.

use std::ffi::c_int;
use std::ffi::c_ulong;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

use crate::mapping::Mapping;
use crate::memory::GuestMemory;

mod exit;
pub mod qemu;
pub mod state;

#[allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    missing_docs,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks
)]
mod bindings {
    include!(env!("KVM_BINDINGS"));
}

pub use self::exit::VmExit;
pub use bindings::kvm_cpuid_entry2 as CpuidEntry;
pub use bindings::kvm_regs as Regs;
pub use bindings::kvm_segment as Segment;
pub use bindings::kvm_sregs as Sregs;

extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn eventfd(initial: u32, flags: c_int) -> c_int;
    fn signal(number: c_int, handler: usize) -> usize;
    fn pthread_self() -> usize;
    fn pthread_kill(thread: usize, number: c_int) -> c_int;
}

const NONE: c_ulong = 0;
const WRITE: c_ulong = 1;
const READ: c_ulong = 2;

/// `_IOC()` of `<asm-generic/ioctl.h>` with KVM's type 0xAE.
const fn request(direction: c_ulong, number: c_ulong, size: usize) -> c_ulong {
    (direction << 30) | ((size as c_ulong) << 16) | (0xae << 8) | number
}

const GET_API_VERSION: c_ulong = request(NONE, 0x00, 0);
const CREATE_VM: c_ulong = request(NONE, 0x01, 0);
const CHECK_EXTENSION: c_ulong = request(NONE, 0x03, 0);
const GET_VCPU_MMAP_SIZE: c_ulong = request(NONE, 0x04, 0);
const GET_SUPPORTED_CPUID: c_ulong = request(READ | WRITE, 0x05, 8);
const CREATE_VCPU: c_ulong = request(NONE, 0x41, 0);
const SET_USER_MEMORY_REGION: c_ulong = request(
    WRITE,
    0x46,
    size_of::<bindings::kvm_userspace_memory_region>(),
);
const SET_TSS_ADDR: c_ulong = request(NONE, 0x47, 0);
const CREATE_IRQCHIP: c_ulong = request(NONE, 0x60, 0);
const IRQ_LINE: c_ulong = request(WRITE, 0x61, size_of::<bindings::kvm_irq_level>());
const SET_GSI_ROUTING: c_ulong = request(WRITE, 0x6a, 8);
const IRQFD: c_ulong = request(WRITE, 0x76, size_of::<bindings::kvm_irqfd>());
const CREATE_PIT2: c_ulong = request(WRITE, 0x77, size_of::<bindings::kvm_pit_config>());
const GET_CLOCK: c_ulong = request(READ, 0x7c, size_of::<bindings::kvm_clock_data>());
const RUN: c_ulong = request(NONE, 0x80, 0);
const GET_REGS: c_ulong = request(READ, 0x81, size_of::<Regs>());
const SET_REGS: c_ulong = request(WRITE, 0x82, size_of::<Regs>());
const GET_SREGS: c_ulong = request(READ, 0x83, size_of::<Sregs>());
const SET_SREGS: c_ulong = request(WRITE, 0x84, size_of::<Sregs>());
const SET_CPUID2: c_ulong = request(WRITE, 0x90, 8);
const ENABLE_CAP: c_ulong = request(WRITE, 0xa3, size_of::<bindings::kvm_enable_cap>());
const GET_SUPPORTED_HV_CPUID: c_ulong = request(READ | WRITE, 0xc1, 8);

const EFD_CLOEXEC: c_int = 0o2000000;
const SIGUSR1: c_int = 10;

/// The first GSI behind the pins of IO-APIC and PICs. This host's GSIs begin here.
pub const FIRST_FREE_GSI: u32 = 24;

/// Returns an ioctl's result, or the error in `errno` with the call's name in front.
fn check(name: &str, result: c_int) -> io::Result<c_int> {
    if result >= 0 {
        return Ok(result);
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("{name}: {error}")))
}

/// Calls an ioctl whose argument is a number.
fn ioctl_value(
    fd: &impl AsRawFd,
    name: &str,
    number: c_ulong,
    value: c_ulong,
) -> io::Result<c_int> {
    // SAFETY: The requests passed here take a plain number. The kernel follows no pointer.
    check(name, unsafe { ioctl(fd.as_raw_fd(), number, value) })
}

/// Calls an ioctl whose argument is a structure, read or written by the kernel.
///
/// If the request has a flexible array, `argument` is the head of a structure with room for that array.
fn ioctl_struct<T>(
    fd: &impl AsRawFd,
    name: &str,
    number: c_ulong,
    argument: &mut T,
) -> io::Result<c_int> {
    // SAFETY: `argument` is valid for reads and writes, and each caller passes the type that belongs to `number`.
    check(name, unsafe {
        ioctl(fd.as_raw_fd(), number, argument as *mut T)
    })
}

/// A CPUID table in the layout of `struct kvm_cpuid2`, with room for 256 entries.
#[repr(C)]
struct CpuidTable {
    nent: u32,
    padding: u32,
    entries: [CpuidEntry; 256],
}

impl CpuidTable {
    fn new(nent: usize) -> Box<Self> {
        Box::new(Self {
            nent: nent as u32,
            padding: 0,
            entries: [CpuidEntry::default(); 256],
        })
    }

    fn into_vec(self: Box<Self>) -> Vec<CpuidEntry> {
        self.entries[..self.nent as usize].to_vec()
    }
}

/// The opened `/dev/kvm`.
pub struct Kvm {
    file: File,
}

impl Kvm {
    /// Opens `/dev/kvm`. Fails if the file is absent or the API version is not 12.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
        let version = ioctl_value(&file, "KVM_GET_API_VERSION", GET_API_VERSION, 0)?;
        if version != bindings::KVM_API_VERSION as c_int {
            return Err(io::Error::other(format!(
                "KVM speaks API version {version}"
            )));
        }
        Ok(Self { file })
    }

    /// Whether KVM can give a guest a SynIC, Hyper-V's synthetic interrupt controller.
    pub fn has_synic(&self) -> bool {
        ioctl_value(
            &self.file,
            "KVM_CHECK_EXTENSION",
            CHECK_EXTENSION,
            c_ulong::from(bindings::KVM_CAP_HYPERV_SYNIC2),
        )
        .is_ok_and(|value| value > 0)
    }

    /// The CPUID leaves that KVM supports.
    pub fn supported_cpuid(&self) -> io::Result<Vec<CpuidEntry>> {
        let mut table = CpuidTable::new(256);
        ioctl_struct(
            &self.file,
            "KVM_GET_SUPPORTED_CPUID",
            GET_SUPPORTED_CPUID,
            &mut *table,
        )?;
        Ok(table.into_vec())
    }

    /// Creates a virtual machine with KVM's interrupt controllers and timer.
    pub fn create_vm(&self) -> io::Result<Vm> {
        let fd = ioctl_value(&self.file, "KVM_CREATE_VM", CREATE_VM, 0)?;
        // SAFETY: KVM_CREATE_VM returned a new descriptor without another owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let run_size = ioctl_value(&self.file, "KVM_GET_VCPU_MMAP_SIZE", GET_VCPU_MMAP_SIZE, 0)?;
        let vm = Vm {
            fd,
            run_size: run_size as usize,
        };
        // Intel's processors need three pages below 4 GiB.
        ioctl_value(&vm.fd, "KVM_SET_TSS_ADDR", SET_TSS_ADDR, 0xfffb_d000)?;
        ioctl_value(&vm.fd, "KVM_CREATE_IRQCHIP", CREATE_IRQCHIP, 0)?;
        let mut pit = bindings::kvm_pit_config {
            flags: bindings::KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        ioctl_struct(&vm.fd, "KVM_CREATE_PIT2", CREATE_PIT2, &mut pit)?;
        Ok(vm)
    }
}

/// A virtual machine.
pub struct Vm {
    fd: OwnedFd,
    run_size: usize,
}

/// A processor's SynIC interrupt line. The host raises it, and the guest's acknowledgement signals the host.
pub struct SintLine {
    set: EventFd,
    acknowledged: EventFd,
}

impl SintLine {
    /// Injects the interrupt.
    pub fn raise(&self) {
        self.set.signal();
    }

    /// Blocks until the guest writes EOM or EOI for this SINT, or [`SintLine::wake`] is called.
    pub fn wait_acknowledged(&self) {
        self.acknowledged.wait();
    }

    /// Makes [`SintLine::wait_acknowledged`] return.
    pub fn wake(&self) {
        self.acknowledged.signal();
    }
}

impl Vm {
    /// Maps `memory` at guest physical address 0.
    ///
    /// The machine keeps the memory as long as the virtual machine. So the mapping outlives the guest.
    pub fn map_memory(&self, memory: &GuestMemory) -> io::Result<()> {
        let mut region = bindings::kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: memory.len(),
            userspace_addr: memory.host_address(),
        };
        ioctl_struct(
            &self.fd,
            "KVM_SET_USER_MEMORY_REGION",
            SET_USER_MEMORY_REGION,
            &mut region,
        )?;
        Ok(())
    }

    /// Creates virtual processor `index`. Its APIC id is the index.
    pub fn create_vcpu(&self, index: u32) -> io::Result<Vcpu> {
        let fd = ioctl_value(
            &self.fd,
            "KVM_CREATE_VCPU",
            CREATE_VCPU,
            c_ulong::from(index),
        )?;
        // SAFETY: KVM_CREATE_VCPU returned a new descriptor without another owner.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let area = Mapping::shared(&fd, self.run_size)?;
        Ok(Vcpu {
            fd,
            run: area.address().cast(),
            area,
        })
    }

    /// Sets the level of interrupt line `gsi`.
    pub fn set_irq(&self, gsi: u32, level: bool) -> io::Result<()> {
        let mut line = bindings::kvm_irq_level::default();
        line.__bindgen_anon_1.irq = gsi;
        line.level = u32::from(level);
        ioctl_struct(&self.fd, "KVM_IRQ_LINE", IRQ_LINE, &mut line)?;
        Ok(())
    }

    /// Routes the ISA lines as on a PC, and one GSI per processor to SINT `sint`. Returns the processors' SINT lines in
    /// order.
    pub fn connect_sint(&self, vcpus: u32, sint: u32) -> io::Result<Vec<SintLine>> {
        #[repr(C)]
        struct Routing {
            nr: u32,
            flags: u32,
            entries: [bindings::kvm_irq_routing_entry; 128],
        }
        let mut routing = Box::new(Routing {
            nr: 0,
            flags: 0,
            entries: [bindings::kvm_irq_routing_entry::default(); 128],
        });
        let mut add = |entry| {
            routing.entries[routing.nr as usize] = entry;
            routing.nr += 1;
        };
        for gsi in 0..FIRST_FREE_GSI {
            let mut pin = |irqchip, pin| {
                let mut entry = bindings::kvm_irq_routing_entry {
                    gsi,
                    type_: bindings::KVM_IRQ_ROUTING_IRQCHIP,
                    ..Default::default()
                };
                entry.u.irqchip = bindings::kvm_irq_routing_irqchip { irqchip, pin };
                add(entry);
            };
            if gsi < 8 {
                pin(bindings::KVM_IRQCHIP_PIC_MASTER, gsi);
            } else if gsi < 16 {
                pin(bindings::KVM_IRQCHIP_PIC_SLAVE, gsi - 8);
            }
            // The timer's line 0 is pin 2, as in the MADT.
            match gsi {
                0 => pin(bindings::KVM_IRQCHIP_IOAPIC, 2),
                2 => {}
                _ => pin(bindings::KVM_IRQCHIP_IOAPIC, gsi),
            }
        }
        for vcpu in 0..vcpus {
            let mut entry = bindings::kvm_irq_routing_entry {
                gsi: FIRST_FREE_GSI + vcpu,
                type_: bindings::KVM_IRQ_ROUTING_HV_SINT,
                ..Default::default()
            };
            entry.u.hv_sint = bindings::kvm_irq_routing_hv_sint { vcpu, sint };
            add(entry);
        }
        ioctl_struct(
            &self.fd,
            "KVM_SET_GSI_ROUTING",
            SET_GSI_ROUTING,
            &mut *routing,
        )?;

        (0..vcpus)
            .map(|vcpu| {
                let line = SintLine {
                    set: EventFd::new()?,
                    acknowledged: EventFd::new()?,
                };
                let mut irqfd = bindings::kvm_irqfd {
                    fd: line.set.0.as_raw_fd() as u32,
                    gsi: FIRST_FREE_GSI + vcpu,
                    flags: bindings::KVM_IRQFD_FLAG_RESAMPLE,
                    resamplefd: line.acknowledged.0.as_raw_fd() as u32,
                    ..Default::default()
                };
                ioctl_struct(&self.fd, "KVM_IRQFD", IRQFD, &mut irqfd)?;
                Ok(line)
            })
            .collect()
    }

    /// Nanoseconds since the virtual machine's creation. `HV_X64_MSR_TIME_REF_COUNT` is a hundredth of it.
    pub fn clock(&self) -> io::Result<u64> {
        let mut data = bindings::kvm_clock_data::default();
        ioctl_struct(&self.fd, "KVM_GET_CLOCK", GET_CLOCK, &mut data)?;
        Ok(data.clock)
    }
}

/// A virtual processor.
pub struct Vcpu {
    fd: OwnedFd,
    /// The first byte of `area`.
    run: *mut bindings::kvm_run,
    area: Mapping,
}

// SAFETY: The mapping belongs to the processor. All accesses are through `&mut self`, so by one thread at a time.
// `immediate_exit` is the exception: `VcpuKick` accesses it as an atomic.
unsafe impl Send for Vcpu {}

impl Vcpu {
    /// Gives this processor a SynIC with pages in the guest's memory (`KVM_CAP_HYPERV_SYNIC2`).
    pub fn enable_synic(&self) -> io::Result<()> {
        let mut cap = bindings::kvm_enable_cap {
            cap: bindings::KVM_CAP_HYPERV_SYNIC2,
            ..Default::default()
        };
        ioctl_struct(&self.fd, "KVM_ENABLE_CAP(SYNIC2)", ENABLE_CAP, &mut cap)?;
        Ok(())
    }

    /// The Hyper-V CPUID leaves that KVM implements.
    pub fn supported_hv_cpuid(&self) -> io::Result<Vec<CpuidEntry>> {
        let mut table = CpuidTable::new(256);
        ioctl_struct(
            &self.fd,
            "KVM_GET_SUPPORTED_HV_CPUID",
            GET_SUPPORTED_HV_CPUID,
            &mut *table,
        )?;
        Ok(table.into_vec())
    }

    /// Sets the results of the guest's CPUID instruction.
    pub fn set_cpuid(&self, entries: &[CpuidEntry]) -> io::Result<()> {
        let mut table = CpuidTable::new(entries.len());
        table.entries[..entries.len()].copy_from_slice(entries);
        ioctl_struct(&self.fd, "KVM_SET_CPUID2", SET_CPUID2, &mut *table)?;
        Ok(())
    }

    /// Reads the general registers.
    pub fn regs(&self) -> io::Result<Regs> {
        let mut regs = Regs::default();
        ioctl_struct(&self.fd, "KVM_GET_REGS", GET_REGS, &mut regs)?;
        Ok(regs)
    }

    /// Sets the general registers.
    pub fn set_regs(&self, regs: &Regs) -> io::Result<()> {
        ioctl_struct(&self.fd, "KVM_SET_REGS", SET_REGS, &mut regs.clone())?;
        Ok(())
    }

    /// Reads the segment and control registers.
    pub fn sregs(&self) -> io::Result<Sregs> {
        let mut sregs = Sregs::default();
        ioctl_struct(&self.fd, "KVM_GET_SREGS", GET_SREGS, &mut sregs)?;
        Ok(sregs)
    }

    /// Sets the segment and control registers.
    pub fn set_sregs(&self, sregs: &Sregs) -> io::Result<()> {
        ioctl_struct(&self.fd, "KVM_SET_SREGS", SET_SREGS, &mut sregs.clone())?;
        Ok(())
    }

    /// A handle that makes [`Vcpu::run`] return, for other threads. To be called on the thread that runs the processor.
    pub fn kicker(&self) -> VcpuKick {
        // SAFETY: `pthread_self` has no preconditions.
        let thread = unsafe { pthread_self() };
        // SAFETY: `run` points to a live mapping of a `kvm_run`.
        let flag = unsafe { &raw mut (*self.run).immediate_exit };
        VcpuKick { thread, flag }
    }

    /// Makes the next [`Vcpu::run`] return before the guest runs. It only completes a pending exit.
    fn kick_itself(&self) {
        // SAFETY: As in `VcpuKick::kick`.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run).immediate_exit) }
            .store(1, Ordering::SeqCst);
    }

    /// Cancels a [`VcpuKick::kick`]: the processor enters the guest again.
    pub fn clear_kick(&self) {
        // SAFETY: As in `VcpuKick::kick`.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run).immediate_exit) }
            .store(0, Ordering::SeqCst);
    }
}

/// Makes a processor's [`Vcpu::run`] return. Not to be used after the processor or its thread has ended.
#[derive(Clone, Copy)]
pub struct VcpuKick {
    thread: usize,
    flag: *mut u8,
}

// SAFETY: The users keep the processor's thread alive (see `Machine`). All accesses to the flag are atomic.
unsafe impl Send for VcpuKick {}
// SAFETY: As above.
unsafe impl Sync for VcpuKick {}

impl VcpuKick {
    /// Makes the processor leave the guest, or return at once when it next enters the guest.
    pub fn kick(&self) {
        // SAFETY: The flag is a byte in the processor's live mapping, so an atomic access is allowed.
        unsafe { AtomicU8::from_ptr(self.flag) }.store(1, Ordering::SeqCst);
        self.nudge();
    }

    /// Makes a processor in the guest leave it and enter it again.
    pub fn nudge(&self) {
        // SAFETY: The thread lives, see `VcpuKick`. The signal has a handler, see `install_kick_signal`.
        unsafe { pthread_kill(self.thread, SIGUSR1) };
    }
}

/// Installs a handler that does nothing for the signal of [`VcpuKick::kick`].
pub fn install_kick_signal() {
    extern "C" fn nothing(_: c_int) {}
    let handler: extern "C" fn(c_int) = nothing;
    // SAFETY: The handler is async-signal-safe: it does nothing.
    unsafe { signal(SIGUSR1, handler as usize) };
}

/// A Linux eventfd.
struct EventFd(OwnedFd);

impl EventFd {
    fn new() -> io::Result<Self> {
        // SAFETY: `eventfd` has no preconditions.
        let fd: RawFd = check("eventfd", unsafe { eventfd(0, EFD_CLOEXEC) })?;
        // SAFETY: The descriptor is new and has no other owner.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn file(&self) -> io::Result<File> {
        Ok(File::from(self.0.try_clone()?))
    }

    fn signal(&self) {
        use std::io::Write;
        let written = self
            .file()
            .and_then(|mut file| file.write_all(&1u64.to_ne_bytes()));
        debug_assert!(written.is_ok(), "an eventfd takes a signal: {written:?}");
    }

    fn wait(&self) {
        use std::io::Read;
        let mut count = [0; 8];
        let read = self.file().and_then(|mut file| file.read_exact(&mut count));
        debug_assert!(read.is_ok(), "an eventfd gives its count: {read:?}");
    }
}
