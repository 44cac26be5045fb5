// SPDX-License-Identifier: GPL-2.0

//! A machine's run, from power-on to power-off: its threads.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

use super::processor::Processor;
use super::shared::lock;
use super::shared::Shared;
use super::watch::Suspicion;
use super::Exit;
use crate::kvm;
use crate::kvm::qemu::ExitAfterInjection;
use crate::kvm::state::VcpuState;
use crate::kvm::SintLine;
use crate::kvm::Vcpu;
use crate::kvm::VcpuKick;
use crate::nested;
use crate::synic::Synic;

/// How often processors are made to leave the guest. An emulated processor at times stays at one instruction and takes
/// no interrupt. Any exit from the guest helps.
const NUDGE_INTERVAL: Duration = Duration::from_millis(100);
/// Nudges between two checks of where the processors are.
const NUDGES: u32 = 10;

/// One power cycle: the KVM machine and its threads.
pub(super) struct Run {
    pub(super) vm: Arc<kvm::Vm>,
    pub(super) synic: Arc<Mutex<Synic>>,
    /// Whether the processors' threads return the processors' states when they end.
    pub(super) saving: Arc<AtomicBool>,
    /// The clock's value in nanoseconds while the machine is paused.
    pub(super) paused_at: Option<u64>,
    stop: Arc<AtomicBool>,
    pub(super) kicks: Vec<VcpuKick>,
    lines: Arc<Vec<SintLine>>,
    processors: Vec<JoinHandle<io::Result<Option<VcpuState>>>>,
    acknowledgers: Vec<JoinHandle<()>>,
    nudger: Option<JoinHandle<()>>,
    nudging: Arc<AtomicBool>,
}

impl Run {
    /// Starts the threads. The machine must be ready to run. `msrs` are the MSRs of a processor's saved state.
    pub(super) fn start(
        shared: &Arc<Shared>,
        vm: Arc<kvm::Vm>,
        synic: Arc<Mutex<Synic>>,
        lines: Arc<Vec<SintLine>>,
        processors: Vec<Vcpu>,
        msrs: Vec<u32>,
    ) -> io::Result<Self> {
        let mut run = Self {
            vm,
            synic,
            saving: Arc::new(AtomicBool::new(false)),
            paused_at: None,
            stop: Arc::new(AtomicBool::new(false)),
            kicks: Vec::new(),
            lines,
            processors: Vec::new(),
            acknowledgers: Vec::new(),
            nudger: None,
            nudging: Arc::new(AtomicBool::new(true)),
        };
        for vp in 0..processors.len() as u32 {
            run.start_acknowledger(shared, vp);
        }
        let msrs = Arc::new(msrs);
        for (index, vcpu) in processors.into_iter().enumerate() {
            run.start_processor(shared, index as u32, vcpu, &msrs)?;
        }
        run.start_nudger(shared);
        Ok(run)
    }

    /// Starts the thread that waits for EOMs of processor `vp`.
    fn start_acknowledger(&mut self, shared: &Arc<Shared>, vp: u32) {
        let (lines, synic, stop) = (self.lines.clone(), self.synic.clone(), self.stop.clone());
        let shared = shared.clone();
        self.acknowledgers.push(std::thread::spawn(move || {
            shared.guard(&format!("processor {vp}'s acknowledger"), || {
                while !stop.load(Ordering::SeqCst) {
                    lines[vp as usize].wait_acknowledged();
                    lock(&synic).acknowledged(vp);
                }
            });
        }));
    }

    /// Starts the thread of a processor.
    fn start_processor(
        &mut self,
        shared: &Arc<Shared>,
        index: u32,
        vcpu: Vcpu,
        msrs: &Arc<Vec<u32>>,
    ) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel();
        let (saving, msrs) = (self.saving.clone(), msrs.clone());
        let mut processor = Processor {
            index,
            vcpu,
            vm: self.vm.clone(),
            synic: self.synic.clone(),
            shared: shared.clone(),
            stop: self.stop.clone(),
        };
        self.processors.push(std::thread::spawn(move || {
            let _ = sender.send(processor.vcpu.kicker());
            let shared = processor.shared.clone();
            shared.guard(&format!("processor {index}"), || {
                let _workaround = nested::is_nested()
                    .then(|| ExitAfterInjection::of_this_thread().expect("perf events"));
                processor.run();
            });
            // Wait here: `Run::end` kicks this thread until it sets `stop`.
            while !processor.stop.load(Ordering::SeqCst) {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            match saving.load(Ordering::SeqCst) {
                true => processor.vcpu.state(&msrs).map(Some),
                false => Ok(None),
            }
        }));
        self.kicks.push(receiver.recv().map_err(io::Error::other)?);
        Ok(())
    }

    /// Starts the thread that nudges processors and detects a stuck one.
    fn start_nudger(&mut self, shared: &Arc<Shared>) {
        let (kicks, nudging, shared) = (self.kicks.clone(), self.nudging.clone(), shared.clone());
        self.nudger = Some(std::thread::spawn(move || {
            let mut suspicions = vec![Suspicion::default(); kicks.len()];
            for round in 1u32.. {
                std::thread::park_timeout(NUDGE_INTERVAL);
                if !nudging.load(Ordering::SeqCst) {
                    return;
                }
                kicks.iter().for_each(VcpuKick::nudge);
                if round % NUDGES != 0 || !nested::is_nested() || shared.is_paused() {
                    continue;
                }
                for (index, suspicion) in suspicions.iter_mut().enumerate() {
                    if let Some(what) = suspicion.look(&shared.watches[index], &kicks[index]) {
                        shared.end(Exit::Breakdown(format!("processor {index} {what}")));
                    }
                }
            }
        }));
    }

    /// Ends all threads. Returns the results of the processors' threads.
    pub(super) fn end(self) -> Vec<io::Result<Option<VcpuState>>> {
        self.nudging.store(false, Ordering::SeqCst);
        if let Some(nudger) = self.nudger {
            nudger.thread().unpark();
            let _ = nudger.join();
        }
        // A processor in the guest sees the kick, a processor outside sees the flag before it enters. The threads end
        // only after `stop` is set, so no kick misses its thread.
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
