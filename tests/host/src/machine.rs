// SPDX-License-Identifier: GPL-2.0

//! The machine: memory, processors, devices and bus, its threads, and how its run ends.
//!
//! Each processor has a thread, and another thread that waits for the guest's EOM. One thread nudges all processors,
//! and one runs timers. A panic in any thread ends the run.
//!
//! Locks: the bus (with all services) before the SynIC; the ports alone; the exit within any other.

mod platform;
mod processor;
mod run;
mod shared;
mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread::JoinHandle;

use self::platform::Nobody;
use self::platform::Platform;
use self::run::Run;
use self::shared::lock;
use crate::acpi;
use crate::boot;
use crate::cpuid;
use crate::cpuid::Clock;
use crate::kvm;
use crate::kvm::Kvm;
use crate::kvm::Vcpu;
use crate::mailbox;
use crate::memory::GuestMemory;
use crate::ports::Ports;
use crate::service::Service;
use crate::service::Version;
use crate::snapshot::Snapshot;
use crate::synic::Synic;
use crate::synic::VMBUS_SINT;
use crate::vmbus::bus;

pub use self::shared::Shared;

/// The largest number of virtual processors.
pub const MAX_VCPUS: u32 = 32;

/// A machine's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The kernel: a bzImage or a vmlinux.
    pub kernel: PathBuf,
    /// cpio archives. The kernel unpacks them in this order into one file system.
    pub initrds: Vec<PathBuf>,
    /// Appended to the kernel's command line.
    pub command_line: String,
    /// Number of virtual processors, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Memory in MiB, a multiple of 2.
    pub memory: u64,
    /// The newest VMBus version of the host.
    pub vmbus_max: Version,
    /// The services that the host offers.
    pub services: Vec<Service>,
    /// Whether the machine can hibernate (S4).
    pub s4: bool,
    /// How many seconds the machine's clock is ahead of the host's at boot.
    pub rtc_offset: i64,
    /// The guest's clocks.
    pub clock: Clock,
    /// A file whose content is in the guest's persistent memory, `/dev/pmem0`. The guest's writes outlive its resets,
    /// but never reach the file.
    pub persistent: Option<PathBuf>,
    /// The guest is foreign: `command_line` is its kernel's whole command line, and it has no agent.
    pub foreign: bool,
    /// This project's driver is built into the kernel.
    pub built_in: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kernel: PathBuf::new(),
            initrds: Vec::new(),
            command_line: String::new(),
            vcpus: 1,
            memory: 384,
            vmbus_max: (6, 0),
            services: vec![Service::Heartbeat, Service::Shutdown, Service::TimeSync],
            s4: true,
            rtc_offset: 0,
            clock: Clock::Counter,
            persistent: None,
            foreign: false,
            built_in: false,
        }
    }
}

/// How a machine's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// S5.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// S4.
    S4,
    /// Triple fault.
    TripleFault,
    /// The emulation of a processor broke down.
    Breakdown(String),
    /// The host failed.
    Failed(String),
    /// The host stopped the machine.
    Stopped,
}

/// The command line of this project's guests: a serial console with important messages only (each byte is an exit), no
/// search for absent hardware, and fixed addresses.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet loglevel=5 panic=-1 nokaslr pci=off mitigations=off";

/// A machine. Memory, bus and transcript last from one power cycle to the next.
pub struct Machine {
    config: Config,
    kvm: Kvm,
    kernel: Vec<u8>,
    initrds: Vec<Vec<u8>>,
    /// The content of persistent memory while the machine is off.
    persistent: Vec<u8>,
    shared: Arc<Shared>,
    run: Option<Run>,
    timer: Option<JoinHandle<()>>,
}

impl Machine {
    /// Creates a machine, switched off. An error names an unreadable file, KVM's refusal, or an impossible
    /// configuration.
    pub fn new(config: Config) -> io::Result<Self> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            let text = format!("{} processors, not 1 to {MAX_VCPUS}", config.vcpus);
            return Err(io::Error::other(text));
        }
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })
        };
        let kernel = read(&config.kernel)?;
        let initrds = config.initrds.iter().map(read).collect::<io::Result<_>>()?;
        let kvm = Kvm::open()?;
        kvm::install_kick_signal();
        let mut persistent = config.persistent.as_ref().map_or(Ok(Vec::new()), read)?;
        persistent.resize(persistent.len().next_multiple_of(2 << 20), 0);
        let size = config
            .memory
            .saturating_mul(1 << 20)
            .saturating_add(persistent.len() as u64)
            .saturating_add(mailbox::SIZE);
        let memory = Arc::new(GuestMemory::new(size)?);
        let shared = Arc::new(Shared::new(memory, &config));
        let timer = std::thread::spawn({
            let shared = shared.clone();
            move || shared.guard("the timers' thread", || shared.run_timers())
        });
        Ok(Self {
            config,
            kvm,
            kernel,
            initrds,
            persistent,
            shared,
            run: None,
            timer: Some(timer),
        })
    }

    /// The machine's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The state that the machine's threads share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Switches the machine on after a reset. A running machine is switched off first.
    pub fn power_on(&mut self) -> io::Result<()> {
        self.start(None)
    }

    /// Continues from a snapshot of this machine, or of a machine with the same configuration.
    pub fn restore(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.start(Some(snapshot))
    }

    /// Takes a snapshot and continues from it. Fails if the machine is off or a channel is in use. If a channel comes
    /// into use while the processors stop, the machine is off afterwards.
    pub fn save(&mut self) -> io::Result<Snapshot> {
        let off = || io::Error::other("the machine is off");
        let run = self.run.as_ref().ok_or_else(off)?;
        self.quiet_bus(&run.synic)?;
        let run = self.run.take().ok_or_else(off)?;
        run.saving.store(true, Ordering::SeqCst);
        self.shared.end(Exit::Stopped);
        let (vm, synic) = (run.vm.clone(), run.synic.clone());
        let processors = run
            .end()
            .into_iter()
            .collect::<io::Result<Option<Vec<_>>>>()?;
        // Look again: the processors may have used the bus before they stopped.
        let bus = self.quiet_bus(&synic)?;
        let snapshot = Snapshot {
            memory: self.shared.memory.nonzero_pages(),
            processors: processors.ok_or_else(off)?,
            vm: vm.state()?,
            synic: lock(&synic).state(),
            bus,
            ports: self.shared.ports().clone(),
        };
        drop(vm);
        self.restore(&snapshot)?;
        Ok(snapshot)
    }

    /// The bus' state. Fails if the state cannot be in a snapshot.
    fn quiet_bus(&self, synic: &Mutex<Synic>) -> io::Result<bus::State> {
        let bus = self.shared.bus();
        if lock(synic).has_waiting_messages() {
            return Err(io::Error::other("messages wait for the guest"));
        }
        bus.state().map_err(io::Error::other)
    }

    /// Creates a new KVM machine and starts it, from a snapshot or after a reset.
    fn start(&mut self, from: Option<&Snapshot>) -> io::Result<()> {
        self.power_off();
        let shared = &self.shared;
        let vcpus = self.config.vcpus;
        shared.memory.clear();
        *shared.ports() = match from {
            Some(snapshot) => snapshot.ports.clone(),
            None => Ports::new(self.config.rtc_offset),
        };

        let vm = Arc::new(self.kvm.create_vm()?);
        vm.map_memory(&shared.memory)?;
        let supported = self.kvm.supported_cpuid()?;
        let mut processors = Vec::new();
        for index in 0..vcpus {
            let vcpu = vm.create_vcpu(index)?;
            vcpu.enable_synic()?;
            let hyperv = vcpu.supported_hv_cpuid()?;
            vcpu.set_cpuid(&cpuid::table(
                &supported,
                &hyperv,
                index,
                vcpus,
                self.config.clock,
            ))?;
            processors.push(vcpu);
        }
        let lines = Arc::new(vm.connect_sint(vcpus, VMBUS_SINT)?);
        let raise = {
            let lines = lines.clone();
            Box::new(move |vp: u32| lines[vp as usize].raise())
        };
        let synic = Arc::new(Mutex::new(Synic::new(shared.memory.clone(), vcpus, raise)));
        let platform = Platform {
            synic: synic.clone(),
            vm: vm.clone(),
            processors: vcpus,
        };
        match from {
            Some(snapshot) => {
                for (address, bytes) in &snapshot.memory {
                    shared.memory.write(*address, bytes)?;
                }
                lock(&synic).set_state(&snapshot.synic);
                for (processor, state) in processors.iter().zip(&snapshot.processors) {
                    processor.set_state(state)?;
                }
                vm.set_state(&snapshot.vm)?;
                shared.bus().set_state(&snapshot.bus, Box::new(platform));
            }
            None => {
                shared.bus().set_hypervisor(Box::new(platform));
                self.load(&processors[0])?;
            }
        }
        let msrs = self.kvm.state_msrs()?;
        shared.begin();
        self.run = Some(Run::start(shared, vm, synic, lines, processors, msrs)?);
        Ok(())
    }

    /// The end of the memory for the guest's kernel.
    fn memory_end(&self) -> u64 {
        mailbox::address(&self.shared.memory) - self.persistent.len() as u64
    }

    /// Loads firmware tables and kernel, and sets processor 0 to the kernel's entry point.
    fn load(&self, processor: &Vcpu) -> io::Result<()> {
        let (shared, vcpus) = (&self.shared, self.config.vcpus);
        shared.memory.write(self.memory_end(), &self.persistent)?;
        acpi::load(&shared.memory, vcpus, self.config.s4)?;
        let command_line = match self.config.foreign {
            true => self.config.command_line.clone(),
            false => format!(
                "{COMMAND_LINE} agent.mailbox={:#x} {}",
                mailbox::address(&shared.memory),
                self.config.command_line
            ),
        };
        let entry = boot::load(
            &shared.memory,
            &boot::Image {
                kernel: &self.kernel,
                initrds: &self.initrds,
                command_line: &command_line,
                memory_end: self.memory_end(),
                rsdp: acpi::RSDP,
            },
        )?;
        let mut sregs = processor.sregs()?;
        boot::enter_long_mode(&mut sregs);
        processor.set_sregs(&sregs)?;
        processor.set_regs(&boot::registers(entry))
    }

    /// Pauses the processors, the clock and the bus' timers. Fails if the machine is off or paused.
    pub fn pause(&mut self) -> io::Result<()> {
        let run = match &mut self.run {
            Some(run) if run.paused_at.is_none() => run,
            _ => return Err(io::Error::other("the machine does not run")),
        };
        self.shared.pause()?;
        run.paused_at = Some(run.vm.clock()?);
        self.shared.bus().note("stands still".to_owned());
        Ok(())
    }

    /// Resumes a paused machine. Fails if the machine is not paused.
    pub fn resume(&mut self) -> io::Result<()> {
        let stopped = self.run.as_mut().and_then(|run| {
            let clock = run.paused_at.take()?;
            Some((run, clock))
        });
        let (run, clock) = stopped.ok_or_else(|| io::Error::other("the machine is not stopped"))?;
        run.vm.set_clock(clock)?;
        self.shared.resume();
        Ok(())
    }

    /// Switches the machine off, in any state.
    pub fn power_off(&mut self) {
        if let Some(run) = self.run.take() {
            self.shared.end(Exit::Stopped);
            run.end();
            let end = self.memory_end();
            // The range is part of the machine's memory.
            let _ = self.shared.memory.read(end, &mut self.persistent);
            self.shared.bus().set_hypervisor(Box::new(Nobody));
        }
    }

    /// The place of each processor, a line each, for a report on a guest that hangs.
    pub fn describe_processors(&self) -> String {
        let Some(run) = &self.run else {
            return "the machine is off".to_owned();
        };
        let mut lines = Vec::new();
        for (index, (watch, kick)) in self.shared.watches.iter().zip(&run.kicks).enumerate() {
            lines.push(match watch.look(kick, false) {
                Some(seen) => format!("processor {index}: {}", seen.place),
                None => format!(
                    "processor {index} does not answer; last seen: {}",
                    lock(&watch.doing)
                ),
            });
        }
        lines.join("\n")
    }

    /// Updates the serial ports' interrupt lines. To be called after the host has used the ports.
    pub fn update_lines(&self) {
        if let Some(run) = &self.run {
            let mut ports = self.shared.ports();
            for (line, level) in ports.changed_lines() {
                let _ = run.vm.set_irq(line, level);
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_off();
        self.shared.end_timers();
        if let Some(timer) = self.timer.take() {
            let _ = timer.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_number_of_processors() {
        for vcpus in [0, MAX_VCPUS + 1] {
            let config = Config {
                kernel: "/dev/null".into(),
                vcpus,
                ..Default::default()
            };
            let error = Machine::new(config).err().unwrap();
            assert!(error.to_string().contains("processors"), "{error}");
        }
    }
}
