// SPDX-License-Identifier: GPL-2.0

//! State that the machine's threads share, and waits for its changes.

use std::panic::catch_unwind;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use super::platform::Nobody;
use super::watch::Watch;
use super::Config;
use super::Exit;
use crate::memory::GuestMemory;
use crate::ports::Ports;
use crate::vmbus::bus::Bus;

/// Locks even if a thread panicked while it held the lock: data changes only as a whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits look again after this time: emulated processors at times lose a wake-up.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long a processor may take to leave the guest.
const LONGEST_STEP: Duration = Duration::from_secs(10);

/// How often a paused processor looks for a request or for the end.
const STAND_STILL: Duration = Duration::from_millis(20);

/// State that the machine's threads share.
pub struct Shared {
    pub(super) memory: Arc<GuestMemory>,
    bus: Mutex<Bus>,
    bus_changed: Condvar,
    ports: Mutex<Ports>,
    ports_changed: Condvar,
    exit: Mutex<Option<Exit>>,
    exited: Condvar,
    /// The guest's report of its crash.
    crash: Mutex<Option<String>>,
    ending: AtomicBool,
    /// Whether processors are to pause, and how many have paused.
    pause: Mutex<(bool, usize)>,
    pause_changed: Condvar,
    /// A watch for each processor.
    pub(super) watches: Vec<Watch>,
}

impl Shared {
    /// The state of a machine that is off.
    pub(super) fn new(memory: Arc<GuestMemory>, config: &Config) -> Self {
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
            pause: Mutex::new((false, 0)),
            pause_changed: Condvar::new(),
            watches: (0..config.vcpus).map(|_| Watch::default()).collect(),
        }
    }

    /// Locks the bus. A caller that changes the bus calls [`Shared::announce`] after it drops the guard.
    pub fn bus(&self) -> MutexGuard<'_, Bus> {
        lock(&self.bus)
    }

    /// Wakes all threads that wait for a change of the bus.
    pub fn announce(&self) {
        self.bus_changed.notify_all();
    }

    /// Waits until `done` returns a value. Returns `None` after `timeout`, or if the host has failed. The end of the
    /// machine's run does not end the wait.
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

    /// Locks the ports.
    pub fn ports(&self) -> MutexGuard<'_, Ports> {
        lock(&self.ports)
    }

    /// Wakes all threads that wait for a change of the ports.
    pub(super) fn announce_ports(&self) {
        self.ports_changed.notify_all();
    }

    /// Releases the processor that waits in a write to a port, see [`Ports::hold_at`].
    pub fn let_go(&self) {
        self.ports().let_go();
        self.announce_ports();
    }

    /// Waits until `done` returns a value. Returns `None` after `timeout`.
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

    /// How the run ended. `None` while it lasts.
    pub fn exit(&self) -> Option<Exit> {
        lock(&self.exit).clone()
    }

    /// Waits for the run's end. Returns `None` after `timeout`.
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

    /// The guest's crash report since the last power-on, if there is one.
    pub fn crash(&self) -> Option<String> {
        lock(&self.crash).clone()
    }

    /// Stores the guest's crash report.
    pub(super) fn set_crash(&self, text: String) {
        *lock(&self.crash) = Some(text);
    }

    /// Marks the beginning of a run: not ended, no crash, not paused.
    pub(super) fn begin(&self) {
        *lock(&self.exit) = None;
        *lock(&self.crash) = None;
        *lock(&self.pause) = (false, 0);
    }

    /// Whether processors are to pause.
    pub(super) fn is_paused(&self) -> bool {
        lock(&self.pause).0
    }

    /// Pauses all processors. If one does not pause, all resume and the call fails.
    pub(super) fn pause(&self) -> std::io::Result<()> {
        let end = Instant::now() + LONGEST_STEP;
        let mut pause = lock(&self.pause);
        pause.0 = true;
        while pause.1 < self.watches.len() {
            if Instant::now() >= end || self.exit().is_some() {
                pause.0 = false;
                self.pause_changed.notify_all();
                return Err(std::io::Error::other("a processor does not stop"));
            }
            pause = self.wait_pause(pause, LOOK_AGAIN);
        }
        Ok(())
    }

    /// Resumes all processors.
    pub(super) fn resume(&self) {
        lock(&self.pause).0 = false;
        self.pause_changed.notify_all();
        self.announce();
    }

    /// Pauses the calling processor until the machine resumes. Calls `is_over` now and then, and returns early if it
    /// says so.
    pub(super) fn stand_still(&self, is_over: impl Fn() -> bool) {
        let mut pause = lock(&self.pause);
        pause.1 += 1;
        self.pause_changed.notify_all();
        while pause.0 {
            drop(pause);
            if is_over() {
                pause = lock(&self.pause);
                break;
            }
            pause = lock(&self.pause);
            if pause.0 {
                pause = self.wait_pause(pause, STAND_STILL);
            }
        }
        pause.1 -= 1;
    }

    fn wait_pause<'a>(
        &self,
        pause: MutexGuard<'a, (bool, usize)>,
        timeout: Duration,
    ) -> MutexGuard<'a, (bool, usize)> {
        self.pause_changed
            .wait_timeout(pause, timeout)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Ends the run, if it has not ended, and wakes all waiting threads. The caller must hold no lock.
    pub(super) fn end(&self, exit: Exit) {
        lock(&self.exit).get_or_insert(exit);
        self.exited.notify_all();
        // Threads that wait for bus or ports check the exit under these locks. Take each lock once: then no thread
        // misses the wake-up.
        drop(self.ports());
        self.announce_ports();
        drop(self.bus());
        self.announce();
    }

    /// Runs a thread's work. A panic ends the run with an error.
    pub(super) fn guard(&self, thread: &str, work: impl FnOnce()) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(work)) else {
            return;
        };
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("without a message");
        self.end(Exit::Failed(format!("{thread} panicked: {text}")));
    }

    /// Runs the bus' timers, until [`Shared::end_timers`].
    pub(super) fn run_timers(&self) {
        let mut bus = self.bus();
        while !self.ending.load(Ordering::SeqCst) {
            let due = bus.due().filter(|_| !self.is_paused());
            if due.is_some_and(|due| due <= Instant::now()) {
                bus.tick();
                self.announce();
            }
            let wait = bus
                .due()
                .filter(|_| !self.is_paused())
                .map_or(LOOK_AGAIN, |due| {
                    due.saturating_duration_since(Instant::now())
                        .min(LOOK_AGAIN)
                });
            bus = self
                .bus_changed
                .wait_timeout(bus, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Makes [`Shared::run_timers`] return.
    pub(super) fn end_timers(&self) {
        {
            let _bus = self.bus();
            self.ending.store(true, Ordering::SeqCst);
        }
        self.announce();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Arc<Shared> {
        let memory = Arc::new(GuestMemory::new(2 << 20).unwrap());
        let shared = Shared::new(memory, &Config::default());
        shared.begin();
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
}
