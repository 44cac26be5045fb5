// SPDX-License-Identifier: GPL-2.0

//! A processor's thread: it runs the guest and handles its exits.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use super::shared::lock;
use super::shared::Shared;
use super::watch::Seen;
use super::Exit;
use crate::bytes;
use crate::hypercall;
use crate::hypercall::Call;
use crate::hypercall::Status;
use crate::kvm;
use crate::kvm::Vcpu;
use crate::kvm::VmExit;
use crate::ports::Ports;
use crate::synic::Synic;

/// How often a held processor looks for a request to report its place.
const HELD_FOR: Duration = Duration::from_millis(20);

/// A processor, and the parts of the machine that handle its exits.
pub(super) struct Processor {
    pub(super) index: u32,
    pub(super) vcpu: Vcpu,
    pub(super) vm: Arc<kvm::Vm>,
    pub(super) synic: Arc<Mutex<Synic>>,
    pub(super) shared: Arc<Shared>,
    pub(super) stop: Arc<AtomicBool>,
}

impl Processor {
    /// Runs until the machine's run ends.
    pub(super) fn run(&mut self) {
        loop {
            // This comes before the check: it clears a kick, and that kick may announce the run's end.
            self.answer_watch();
            if self.stop.load(Ordering::SeqCst) || self.shared.exit().is_some() {
                return;
            }
            if self.shared.is_paused() {
                self.stand_still();
                continue;
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

    /// Records the processor's current work, for other threads.
    fn doing(&self, what: &'static str) {
        *lock(&self.shared.watches[self.index as usize].doing) = what;
    }

    /// Reports the processor's place, if a thread has asked.
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

    /// The eight bytes at an address of the guest, in hexadecimal.
    fn code_at(&self, rip: u64) -> String {
        let read = |physical| self.shared.memory.read_vec(physical, 8).ok();
        let code = self.vcpu.translate(rip).and_then(read);
        code.map_or_else(|| "unreadable".to_owned(), |code| bytes::hex(&code))
    }

    /// Runs the guest until its next exit, and handles the exit.
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
                shared.announce_ports();
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
            // The guest runs on: it starts its crash kernel, resets, or hangs.
            VmExit::Crash => {
                self.report_crash();
                None
            }
            VmExit::Unknown(text) => Some(Exit::Failed(text)),
        };
        Ok(exit)
    }

    /// Records the crash parameters of the guest (`HV_X64_MSR_CRASH_P0` to `P4`).
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
        self.shared.set_crash(text);
    }

    /// Waits until [`Ports::let_go`] or the end of the machine's run, see [`Ports::hold_at`].
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

    /// Waits until the machine resumes or its run ends.
    fn stand_still(&self) {
        self.doing("standing still");
        self.shared.stand_still(|| {
            self.answer_watch();
            self.stop.load(Ordering::SeqCst) || self.shared.exit().is_some()
        });
    }

    /// Handles a hypercall.
    fn hypercall(&mut self) -> io::Result<Option<Exit>> {
        // The parameter of a slow HvSignalEvent is in its register only, see `hypercall::decode`.
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
            // This host has no other extended hypercalls.
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
