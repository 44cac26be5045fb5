// SPDX-License-Identifier: GPL-2.0

//! The machine: memory, processors, devices and bus put together, its threads, and how its run ends.
//!
//! Threads: one per processor; one per processor that waits for the guest's EOM; one that makes processors leave the
//! guest now and then; one for timers. A panic in any of them ends the run. Locks: the bus (with all services) before
//! the SynIC; the ports on their own; the exit within any.

use std::io;
use std::panic::catch_unwind;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use crate::acpi;
use crate::boot;
use crate::cpuid;
use crate::hypercall;
use crate::hypercall::Call;
use crate::hypercall::Status;
use crate::kvm;
use crate::kvm::qemu::ExitAfterInjection;
use crate::kvm::state::VcpuState;
use crate::kvm::Kvm;
use crate::kvm::SintLine;
use crate::kvm::Vcpu;
use crate::kvm::VcpuKick;
use crate::kvm::VmExit;
use crate::mailbox;
use crate::memory::GuestMemory;
use crate::nested;
use crate::ports::Ports;
use crate::service::Service;
use crate::service::Version;
use crate::snapshot::Snapshot;
use crate::synic::Hypervisor;
use crate::synic::Synic;
use crate::synic::VMBUS_SINT;
use crate::vmbus::bus;
use crate::vmbus::bus::Bus;

/// The most virtual processors that a machine has.
pub const MAX_VCPUS: u32 = 32;

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Config {
    /// A bzImage.
    pub kernel: PathBuf,
    /// cpio archives, unpacked one over the other.
    pub initrds: Vec<PathBuf>,
    /// Added to the kernel's command line.
    pub command_line: String,
    /// Virtual processors, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Memory in MiB, a multiple of 2.
    pub memory: u64,
    /// The newest VMBus version that the host speaks.
    pub vmbus_max: Version,
    /// The services that it offers.
    pub services: Vec<Service>,
    /// Whether the machine can hibernate (S4).
    pub s4: bool,
    /// Seconds that the machine's clock is ahead of the host's when it boots.
    pub rtc_offset: i64,
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
    /// The guest's processor gave up.
    TripleFault,
    /// The emulation of a processor broke down.
    Breakdown(String),
    /// The host cannot go on.
    Failed(String),
    /// The host stopped it.
    Stopped,
}

/// The command line that every guest gets: a serial console that prints what matters only (each byte of it is an exit),
/// no search for hardware that is not there, and fixed addresses.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet loglevel=5 panic=-1 nokaslr pci=off mitigations=off";

/// Locks, whatever happened to a thread that held the lock: the data is only ever changed as a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whoever waits looks again so often without being woken: where processors are emulated, a wake-up at times gets lost.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A processor that is held looks so often whether someone wants to know where it is.
const HELD_FOR: Duration = Duration::from_millis(20);

/// What the machine's threads share.
pub struct Shared {
    memory: Arc<GuestMemory>,
    bus: Mutex<Bus>,
    bus_changed: Condvar,
    ports: Mutex<Ports>,
    ports_changed: Condvar,
    exit: Mutex<Option<Exit>>,
    exited: Condvar,
    /// What the guest has told the hypervisor of its crash.
    crash: Mutex<Option<String>>,
    ending: AtomicBool,
    /// One for each processor.
    watches: Vec<Watch>,
}

/// What can be seen of a processor from outside.
#[derive(Default)]
struct Watch {
    /// Someone wants to know where it is.
    wanted: AtomicBool,
    /// And that it gets an NMI then.
    nmi: AtomicBool,
    /// The answer.
    seen: Mutex<Option<Seen>>,
    /// Held by the one who wants to know.
    looking: Mutex<()>,
    /// What it is doing.
    doing: Mutex<&'static str>,
}

impl Watch {
    /// Has the processor that `kick` reaches say where it is; `None` if it doesn't. It may get an NMI then.
    fn look(&self, kick: &VcpuKick, nmi: bool) -> Option<Seen> {
        let _one = lock(&self.looking);
        *lock(&self.seen) = None;
        self.nmi.store(nmi, Ordering::SeqCst);
        self.wanted.store(true, Ordering::SeqCst);
        kick.kick();
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            if let Some(seen) = lock(&self.seen).take() {
                return Some(seen);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.wanted.store(false, Ordering::SeqCst);
        None
    }
}

/// Where a processor was when someone wanted to know.
#[derive(Clone)]
struct Seen {
    place: String,
    /// All its registers, if it isn't idle.
    busy_with: Option<String>,
    /// An NMI is on its way to it.
    waits_for_nmi: bool,
}

impl PartialEq for Seen {
    fn eq(&self, other: &Self) -> bool {
        self.busy_with == other.busy_with
    }
}

impl Shared {
    /// As when the machine is off.
    fn new(memory: Arc<GuestMemory>, config: &Config) -> Self {
        let bus = Bus::new(
            memory.clone(),
            Box::new(Nobody),
            config.vmbus_max,
            &config.services,
        );
        Self {
            memory,
            bus: Mutex::new(bus),
            bus_changed: Condvar::new(),
            ports: Mutex::new(Ports::new(config.rtc_offset)),
            ports_changed: Condvar::new(),
            exit: Mutex::new(Some(Exit::Stopped)),
            exited: Condvar::new(),
            crash: Mutex::new(None),
            ending: AtomicBool::new(false),
            watches: (0..config.vcpus).map(|_| Watch::default()).collect(),
        }
    }

    /// The bus, locked; changes are announced when the guard is dropped by [`Shared::announce`].
    pub fn bus(&self) -> MutexGuard<'_, Bus> {
        lock(&self.bus)
    }

    /// Wakes everyone who waits for a change of the bus.
    pub fn announce(&self) {
        self.bus_changed.notify_all();
    }

    /// Waits until `done` gives a value (also after the machine's run has ended, unless the host failed); `None` when
    /// `timeout` has passed.
    pub fn wait_bus<R>(
        &self,
        timeout: Duration,
        mut done: impl FnMut(&mut Bus) -> Option<R>,
    ) -> Option<R> {
        let end = Instant::now() + timeout;
        let mut bus = self.bus();
        loop {
            if let Some(result) = done(&mut bus) {
                return Some(result);
            }
            let left = end.checked_duration_since(Instant::now())?;
            if let Some(Exit::Failed(_)) = self.exit() {
                return None;
            }
            bus = self
                .bus_changed
                .wait_timeout(bus, left.min(LOOK_AGAIN))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The guest's memory, with the agent's mailbox at its end.
    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The ports, locked.
    pub fn ports(&self) -> MutexGuard<'_, Ports> {
        lock(&self.ports)
    }

    /// Has the processor that is held at a port go on, see [`Ports::hold_at`].
    pub fn let_go(&self) {
        self.ports().let_go();
        self.ports_changed.notify_all();
    }

    /// Waits until `done` gives a value; `None` when `timeout` has passed.
    pub fn wait_ports<R>(
        &self,
        timeout: Duration,
        mut done: impl FnMut(&mut Ports) -> Option<R>,
    ) -> Option<R> {
        let end = Instant::now() + timeout;
        let mut ports = self.ports();
        loop {
            if let Some(result) = done(&mut ports) {
                return Some(result);
            }
            let left = end.checked_duration_since(Instant::now())?;
            ports = self
                .ports_changed
                .wait_timeout(ports, left.min(LOOK_AGAIN))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// How the run ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        lock(&self.exit).clone()
    }

    /// Waits for the run's end.
    pub fn wait_exit(&self, timeout: Duration) -> Option<Exit> {
        let end = Instant::now() + timeout;
        let mut exit = lock(&self.exit);
        while exit.is_none() {
            let left = end.checked_duration_since(Instant::now())?;
            exit = self
                .exited
                .wait_timeout(exit, left.min(LOOK_AGAIN))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        exit.clone()
    }

    /// What the guest has told of its crash since the last power-on, if it has.
    pub fn crash(&self) -> Option<String> {
        lock(&self.crash).clone()
    }

    /// Ends the run, if it has not ended, and wakes everyone who waits. The caller holds no lock.
    fn end(&self, exit: Exit) {
        lock(&self.exit).get_or_insert(exit);
        self.exited.notify_all();
        // Who waits for bus or ports has looked at the exit under their locks, and must not miss it after that.
        drop(self.ports());
        self.ports_changed.notify_all();
        drop(self.bus());
        self.bus_changed.notify_all();
    }

    /// Runs a thread's work; a panic in it ends the run with an error that says so.
    fn guard(&self, thread: &str, work: impl FnOnce()) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(work)) else {
            return;
        };
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("for no reason told");
        self.end(Exit::Failed(format!("{thread} panicked: {text}")));
    }
}

/// The SynIC and the clock, as the bus uses them.
struct Platform {
    synic: Arc<Mutex<Synic>>,
    vm: Arc<kvm::Vm>,
    processors: u32,
}

impl Hypervisor for Platform {
    fn post_message(&mut self, vp: u32, sint: u32, payload: &[u8]) {
        lock(&self.synic).post(vp, sint, payload);
    }

    fn is_congested(&self) -> bool {
        lock(&self.synic).is_congested()
    }

    fn signal_event(&mut self, vp: u32, flag: u32) {
        lock(&self.synic).signal(vp, flag);
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn reference_time(&self) -> u64 {
        self.vm.clock().unwrap_or(0) / 100
    }

    fn forget_messages(&mut self) {
        lock(&self.synic).forget();
    }
}

/// A hypervisor that reaches nobody, for a bus without a running machine.
struct Nobody;

impl Hypervisor for Nobody {
    fn post_message(&mut self, _vp: u32, _sint: u32, _payload: &[u8]) {}

    fn is_congested(&self) -> bool {
        false
    }

    fn signal_event(&mut self, _vp: u32, _flag: u32) {}

    fn processors(&self) -> u32 {
        0
    }

    fn reference_time(&self) -> u64 {
        0
    }

    fn forget_messages(&mut self) {}
}

/// How often processors are made to leave the guest. Under emulation one at times stays in it, at one instruction, and
/// takes no interrupt until it has left the guest for any reason.
const NUDGE_INTERVAL: Duration = Duration::from_millis(100);
/// How many times, until it is looked where they are.
const NUDGES: u32 = 10;

/// Where nested paging is emulated for several processors, one at times stays at an instruction for good, takes neither
/// interrupts nor NMIs there, and changes no register. Elsewhere that is the guest's own doing.
#[derive(Clone, Default)]
struct Suspicion {
    last: Option<Seen>,
    /// For how many looks it has been the same.
    looks: u32,
}

impl Suspicion {
    /// After so many looks it gets an NMI, which any software takes.
    const NMI_AFTER: u32 = 4;

    /// Looks where a processor is; once it's certain that it does not get on, says so.
    fn look(&mut self, watch: &Watch, kick: &VcpuKick) -> Option<String> {
        let seen = watch.look(kick, self.looks == Self::NMI_AFTER);
        let same = seen.is_some() && seen == self.last;
        self.looks = match &seen {
            Some(seen) if same && seen.busy_with.is_some() => self.looks + 1,
            _ => 0,
        };
        self.last = seen;
        let last = self.last.as_ref()?;
        // The NMI was sent with the look before the last.
        (self.looks > Self::NMI_AFTER + 1 && last.waits_for_nmi)
            .then(|| format!("stays at {}, and takes no NMI there", last.place))
    }
}

/// One power cycle: the KVM machine and its threads.
struct Run {
    vm: Arc<kvm::Vm>,
    synic: Arc<Mutex<Synic>>,
    /// The processors' threads are to hand over the processors' states when they end.
    saving: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    kicks: Vec<VcpuKick>,
    lines: Arc<Vec<SintLine>>,
    processors: Vec<JoinHandle<io::Result<Option<VcpuState>>>>,
    acknowledgers: Vec<JoinHandle<()>>,
    nudger: Option<JoinHandle<()>>,
    nudging: Arc<AtomicBool>,
}

/// A machine: it keeps its memory, bus and record from one power cycle to the next.
pub struct Machine {
    config: Config,
    kvm: Kvm,
    kernel: Vec<u8>,
    initrds: Vec<Vec<u8>>,
    shared: Arc<Shared>,
    run: Option<Run>,
    timer: Option<JoinHandle<()>>,
}

impl Machine {
    /// Makes a machine, switched off. Errors name the file that cannot be read, what KVM refuses, or what no machine
    /// can have.
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
        let size = config
            .memory
            .saturating_mul(1 << 20)
            .saturating_add(mailbox::SIZE);
        let memory = Arc::new(GuestMemory::new(size)?);
        let shared = Arc::new(Shared::new(memory, &config));
        let timer = std::thread::spawn({
            let shared = shared.clone();
            move || shared.guard("the timers' thread", || run_timers(&shared))
        });
        Ok(Self {
            config,
            kvm,
            kernel,
            initrds,
            shared,
            run: None,
            timer: Some(timer),
        })
    }

    /// What the machine is made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What its threads share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Switches the machine off (if it is on) and on again: everything is as after a reset.
    pub fn power_on(&mut self) -> io::Result<()> {
        self.start(None)
    }

    /// Goes on from a snapshot of this machine, or of one with the same configuration.
    pub fn restore(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.start(Some(snapshot))
    }

    /// Takes a snapshot, and goes on from it. An error if a channel is in use, or the machine is off; where one came
    /// into use while the processors were stopped, the machine is off then.
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
        // What the processors did last counts.
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

    /// The bus' state; an error if it cannot be in a snapshot.
    fn quiet_bus(&self, synic: &Mutex<Synic>) -> io::Result<bus::State> {
        let bus = self.shared.bus();
        if lock(synic).has_waiting_messages() {
            return Err(io::Error::other("messages wait for the guest"));
        }
        bus.state().map_err(io::Error::other)
    }

    /// Makes a new KVM machine and starts it, from a snapshot or as after a reset.
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
            vcpu.set_cpuid(&cpuid::table(&supported, &hyperv, index, vcpus))?;
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
        self.launch(vm, lines, synic, processors)
    }

    /// Loads firmware and kernel, and points processor 0 at it.
    fn load(&self, processor: &Vcpu) -> io::Result<()> {
        let (shared, vcpus) = (&self.shared, self.config.vcpus);
        acpi::load(&shared.memory, vcpus, self.config.s4)?;
        let entry = boot::load(
            &shared.memory,
            &boot::Image {
                kernel: &self.kernel,
                initrds: &self.initrds,
                command_line: &format!(
                    "{COMMAND_LINE} agent.mailbox={:#x} {}",
                    mailbox::address(&shared.memory),
                    self.config.command_line
                ),
                rsdp: acpi::RSDP,
            },
        )?;
        let mut sregs = processor.sregs()?;
        boot::enter_long_mode(&mut sregs);
        processor.set_sregs(&sregs)?;
        processor.set_regs(&boot::registers(entry))
    }

    /// Starts the threads.
    fn launch(
        &mut self,
        vm: Arc<kvm::Vm>,
        lines: Arc<Vec<SintLine>>,
        synic: Arc<Mutex<Synic>>,
        processors: Vec<Vcpu>,
    ) -> io::Result<()> {
        let (shared, vcpus) = (&self.shared, self.config.vcpus);
        let msrs = Arc::new(self.kvm.state_msrs()?);
        let saving = Arc::new(AtomicBool::new(false));
        *lock(&shared.exit) = None;
        *lock(&shared.crash) = None;
        let stop = Arc::new(AtomicBool::new(false));
        let mut run = Run {
            vm: vm.clone(),
            synic: synic.clone(),
            saving: saving.clone(),
            stop: stop.clone(),
            kicks: Vec::new(),
            lines: lines.clone(),
            processors: Vec::new(),
            acknowledgers: Vec::new(),
            nudger: None,
            nudging: Arc::new(AtomicBool::new(true)),
        };
        for vp in 0..vcpus {
            let (lines, synic, stop) = (lines.clone(), synic.clone(), stop.clone());
            let shared = shared.clone();
            run.acknowledgers.push(std::thread::spawn(move || {
                shared.guard(&format!("processor {vp}'s acknowledger"), || {
                    while !stop.load(Ordering::SeqCst) {
                        lines[vp as usize].wait_acknowledged();
                        lock(&synic).acknowledged(vp);
                    }
                });
            }));
        }
        for (index, vcpu) in processors.into_iter().enumerate() {
            let (sender, receiver) = mpsc::channel();
            let (saving, msrs) = (saving.clone(), msrs.clone());
            let mut processor = Processor {
                index: index as u32,
                vcpu,
                vm: vm.clone(),
                synic: synic.clone(),
                shared: shared.clone(),
                stop: stop.clone(),
            };
            run.processors.push(std::thread::spawn(move || {
                let _ = sender.send(processor.vcpu.kicker());
                let shared = processor.shared.clone();
                shared.guard(&format!("processor {index}"), || {
                    let _workaround = nested::is_nested()
                        .then(|| ExitAfterInjection::of_this_thread().expect("perf events"));
                    processor.run();
                });
                // The kick's flag and thread must outlive `Run::end`'s kicks.
                while !processor.stop.load(Ordering::SeqCst) {
                    std::thread::park_timeout(Duration::from_millis(50));
                }
                match saving.load(Ordering::SeqCst) {
                    true => processor.vcpu.state(&msrs).map(Some),
                    false => Ok(None),
                }
            }));
            run.kicks.push(receiver.recv().map_err(io::Error::other)?);
        }
        let (kicks, nudging, shared) = (run.kicks.clone(), run.nudging.clone(), shared.clone());
        run.nudger = Some(std::thread::spawn(move || {
            let mut suspicions = vec![Suspicion::default(); kicks.len()];
            for round in 1u32.. {
                std::thread::park_timeout(NUDGE_INTERVAL);
                if !nudging.load(Ordering::SeqCst) {
                    return;
                }
                kicks.iter().for_each(VcpuKick::nudge);
                if round % NUDGES != 0 || !nested::is_nested() {
                    continue;
                }
                for (index, suspicion) in suspicions.iter_mut().enumerate() {
                    if let Some(what) = suspicion.look(&shared.watches[index], &kicks[index]) {
                        shared.end(Exit::Breakdown(format!("processor {index} {what}")));
                    }
                }
            }
        }));
        self.run = Some(run);
        Ok(())
    }

    /// Switches the machine off, whatever it is doing.
    pub fn power_off(&mut self) {
        if let Some(run) = self.run.take() {
            self.shared.end(Exit::Stopped);
            run.end();
            self.shared.bus().set_hypervisor(Box::new(Nobody));
        }
    }

    /// Where each processor is, one line each: to be told when a guest hangs.
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

    /// Updates the serial ports' interrupt lines after the host has used them.
    pub fn update_lines(&self) {
        if let Some(run) = &self.run {
            let mut ports = self.shared.ports();
            for (line, level) in ports.changed_lines() {
                let _ = run.vm.set_irq(line, level);
            }
        }
    }
}

impl Run {
    /// Ends all threads; gives what those of the processors hand over.
    fn end(self) -> Vec<io::Result<Option<VcpuState>>> {
        self.nudging.store(false, Ordering::SeqCst);
        if let Some(nudger) = self.nudger {
            nudger.thread().unpark();
            let _ = nudger.join();
        }
        // A processor's thread sees either the kick or, entering the guest afterwards, its flag; it ends only once
        // `stop` is set, so that all kicks find their threads.
        for kick in &self.kicks {
            kick.kick();
        }
        self.stop.store(true, Ordering::SeqCst);
        let states = self
            .processors
            .into_iter()
            .map(|thread| thread.join().unwrap_or(Ok(None)))
            .collect();
        for line in self.lines.iter() {
            line.wake();
        }
        for thread in self.acknowledgers {
            let _ = thread.join();
        }
        states
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.power_off();
        {
            let _bus = self.shared.bus();
            self.shared.ending.store(true, Ordering::SeqCst);
        }
        self.shared.announce();
        if let Some(timer) = self.timer.take() {
            let _ = timer.join();
        }
    }
}

fn run_timers(shared: &Shared) {
    let mut bus = shared.bus();
    while !shared.ending.load(Ordering::SeqCst) {
        if bus.due().is_some_and(|due| due <= Instant::now()) {
            bus.tick();
            shared.announce();
        }
        let wait = bus.due().map_or(LOOK_AGAIN, |due| {
            due.saturating_duration_since(Instant::now())
                .min(LOOK_AGAIN)
        });
        bus = shared
            .bus_changed
            .wait_timeout(bus, wait)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
}

/// A processor and what its exits need.
struct Processor {
    index: u32,
    vcpu: Vcpu,
    vm: Arc<kvm::Vm>,
    synic: Arc<Mutex<Synic>>,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
}

impl Processor {
    /// Runs until the machine's run ends.
    fn run(&mut self) {
        loop {
            // Before the check: it takes back a kick, which may have been that of the run's end.
            self.answer_watch();
            if self.stop.load(Ordering::SeqCst) || self.shared.exit().is_some() {
                return;
            }
            match self.step() {
                Ok(None) => {}
                Ok(Some(exit)) => self.shared.end(exit),
                Err(error) => self
                    .shared
                    .end(Exit::Failed(format!("processor {}: {error}", self.index))),
            }
        }
    }

    fn doing(&self, what: &'static str) {
        *lock(&self.shared.watches[self.index as usize].doing) = what;
    }

    /// Tells where the processor is, if someone asked.
    fn answer_watch(&self) {
        let watch = &self.shared.watches[self.index as usize];
        if watch.wanted.swap(false, Ordering::SeqCst) {
            self.vcpu.clear_kick();
            let seen = match self.vcpu.regs() {
                Ok(regs) => Seen {
                    place: format!(
                        "rip {:#x} rsp {:#x} rflags {:#x} code {}",
                        regs.rip,
                        regs.rsp,
                        regs.rflags,
                        self.code_at(regs.rip)
                    ),
                    busy_with: self.vcpu.is_running().then(|| format!("{regs:?}")),
                    waits_for_nmi: self.vcpu.has_nmi_pending(),
                },
                Err(error) => Seen {
                    place: error.to_string(),
                    busy_with: None,
                    waits_for_nmi: false,
                },
            };
            if watch.nmi.swap(false, Ordering::SeqCst) {
                let _ = self.vcpu.send_nmi();
            }
            *lock(&watch.seen) = Some(seen);
        }
    }

    /// What is executed at an address, as bytes in hexadecimal.
    fn code_at(&self, rip: u64) -> String {
        let read = |physical| self.shared.memory.read_vec(physical, 8).ok();
        let code = self.vcpu.translate(rip).and_then(read);
        code.map_or_else(|| "unreadable".to_owned(), |code| crate::bytes::hex(&code))
    }

    /// Runs until the next exit and handles it.
    fn step(&mut self) -> io::Result<Option<Exit>> {
        let shared = self.shared.clone();
        self.doing("running the guest");
        let exit = self.vcpu.run()?;
        let name = match &exit {
            VmExit::PortIn { .. } => "reading a port",
            VmExit::PortOut { .. } => "writing a port",
            VmExit::Synic { .. } => "setting up the SynIC",
            VmExit::Hypercall => "in a hypercall",
            _ => "in another exit",
        };
        *lock(&shared.watches[self.index as usize].doing) = name;
        let exit = match exit {
            VmExit::PortIn { port, size, data } => {
                let mut ports = shared.ports();
                for value in data.chunks_mut(size) {
                    ports.read(port, value);
                }
                for (line, level) in ports.changed_lines() {
                    self.vm.set_irq(line, level)?;
                }
                None
            }
            VmExit::PortOut { port, size, data } => {
                let mut ports = shared.ports();
                let mut exit = None;
                let held_before = ports.holds();
                for value in data.chunks(size) {
                    exit = exit.or(ports.write(port, value));
                }
                for (line, level) in ports.changed_lines() {
                    self.vm.set_irq(line, level)?;
                }
                let is_held = ports.holds() && !held_before;
                drop(ports);
                shared.ports_changed.notify_all();
                if is_held {
                    self.stay();
                }
                exit
            }
            VmExit::MmioRead { data, .. } => {
                data.fill(0xff);
                None
            }
            VmExit::MmioWrite { .. } | VmExit::Interrupted => None,
            VmExit::Synic {
                control,
                event_page,
                message_page,
            } => {
                lock(&self.synic).update(self.index, control, event_page, message_page);
                None
            }
            VmExit::Hypercall => return self.hypercall(),
            VmExit::Shutdown => Some(Exit::TripleFault),
            VmExit::Reset => Some(Exit::Reset),
            // The guest goes on: to its crash kernel, a reset, or nowhere.
            VmExit::Crash => {
                self.report_crash();
                None
            }
            VmExit::Unknown(text) => Some(Exit::Failed(text)),
        };
        Ok(exit)
    }

    /// Records what the guest tells of its crash (`HV_X64_MSR_CRASH_P0` to `P4`).
    fn report_crash(&self) {
        let parameters = (0x4000_0100..=0x4000_0104)
            .map(|msr| format!("{:#x}", self.vcpu.msr(msr).unwrap_or(0)))
            .collect::<Vec<_>>();
        let text = format!(
            "the guest on processor {} reports a crash: {}",
            self.index,
            parameters.join(" ")
        );
        self.shared.bus().error(text.clone(), &[]);
        self.shared.announce();
        *lock(&self.shared.crash) = Some(text);
    }

    /// Stays where it is until it is let go, see [`Ports::hold_at`], or the machine's run ends.
    fn stay(&self) {
        self.doing("being held");
        while !self.stop.load(Ordering::SeqCst) && self.shared.exit().is_none() {
            let held = |ports: &mut Ports| (!ports.holds()).then_some(());
            if self.shared.wait_ports(HELD_FOR, held).is_some() {
                return;
            }
            self.answer_watch();
        }
    }

    fn hypercall(&mut self) -> io::Result<Option<Exit>> {
        // A slow HvSignalEvent's parameter must be read from its register; see `hypercall::decode`.
        let rdx = self.vcpu.regs()?.rdx;
        let Some((input, parameters, result)) = self.vcpu.hypercall_exit() else {
            return Ok(None);
        };
        let status = match hypercall::decode(&self.shared.memory, input, parameters, || rdx) {
            Ok(Call::PostMessage {
                connection,
                kind,
                payload,
            }) => {
                let status = self.shared.bus().post(connection, kind, &payload);
                self.shared.announce();
                status
            }
            Ok(Call::SignalEvent { connection, flag }) => {
                let status = self.shared.bus().signal(connection, flag);
                self.shared.announce();
                status
            }
            // This host has no extended hypercalls beyond the question itself.
            Ok(Call::QueryExtendedCapabilities { output }) => {
                match self.shared.memory.write(output, &[0; 8]) {
                    Ok(()) => Status::Success,
                    Err(_) => Status::InvalidParameter,
                }
            }
            Err(status) => status,
        };
        *result = status as u64;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Arc<Shared> {
        let memory = Arc::new(GuestMemory::new(2 << 20).unwrap());
        let shared = Shared::new(memory, &Config::default());
        *lock(&shared.exit) = None;
        Arc::new(shared)
    }

    #[test]
    fn a_panic_ends_the_run_and_every_wait() {
        const LONG: Duration = Duration::from_secs(60);
        let shared = shared();
        let waits: Vec<_> = (0..3)
            .map(|kind| {
                let shared = shared.clone();
                std::thread::spawn(move || match kind {
                    0 => shared.wait_exit(LONG).is_some(),
                    1 => shared.wait_bus(LONG, |_| None::<()>).is_none(),
                    _ => shared.wait_ports(LONG, |_| shared.exit()).is_some(),
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        shared.guard("processor 7", || {
            let _bus = shared.bus();
            panic!("at {}", "last");
        });
        for wait in waits {
            assert!(wait.join().unwrap());
        }
        assert!(start.elapsed() < LONG / 2);
        let failed = Exit::Failed("processor 7 panicked: at last".to_owned());
        assert_eq!(shared.exit(), Some(failed));
    }

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
