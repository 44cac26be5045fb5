// SPDX-License-Identifier: GPL-2.0

//! A running guest, as scenarios use it: commands by its agent, and a handle for each service's channel.
//!
//! Every wait has a time-out and fails with an error that names what it waited for; the time-outs only protect against
//! hangs, so they are generous (the guest may be emulated twice over).

mod agent;
mod bus;
mod channel;
mod console;
mod error;

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use crate::ic::Moment;
use crate::machine::Config;
use crate::machine::Exit;
use crate::machine::Machine;
use crate::service::Service;
use crate::snapshot::Snapshot;

pub use self::agent::Module;
pub use self::agent::Output;
pub use self::channel::ChannelHandle;
pub use self::console::ConsoleReader;
pub use self::error::Error;
pub use self::error::Result;

/// How long anything may take before it counts as hanging.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a guest may take to boot.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// A guest that has booted up to its agent.
pub struct Guest {
    machine: Machine,
    boot_time: Duration,
    /// A command line runs, and has not ended: the agent takes no other.
    busy: AtomicBool,
}

impl Guest {
    /// Boots a machine and waits for the guest's agent, if it has one.
    pub fn boot(config: &Config) -> Result<Self> {
        let mut guest = Self {
            machine: Machine::new(config.clone())?,
            boot_time: Duration::ZERO,
            busy: AtomicBool::new(false),
        };
        guest.restart()?;
        Ok(guest)
    }

    /// Switches the machine off and on and waits for the agent, if there is one, as after [`Exit::Reset`].
    pub fn restart(&mut self) -> Result<()> {
        let start = Instant::now();
        self.busy.store(false, Ordering::Relaxed);
        self.machine.power_on()?;
        if !self.config().foreign {
            self.wait_agent(BOOT_TIMEOUT)?;
        }
        self.boot_time = start.elapsed();
        Ok(())
    }

    /// Takes a snapshot of the machine, and goes on. An error if a channel is in use.
    pub fn save(&mut self) -> Result<Snapshot> {
        Ok(self.machine.save()?)
    }

    /// Goes on from a snapshot instead of booting, whatever became of the guest meanwhile. Its wall clock is set to the
    /// host's, as the agent of a real guest would do at once.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.machine.restore(snapshot)?;
        self.busy.store(false, Ordering::Relaxed);
        let now = self.moment().wall - crate::ic::UNIX_EPOCH_1601;
        self.sh_ok(&format!("date -s @{}", now / 10_000_000))
            .map(|_| ())
    }

    /// Switches the machine off, whatever the guest is doing.
    pub fn power_off(&mut self) {
        self.machine.power_off();
    }

    /// Stops the machine where it is; its reference time stands still, too.
    pub fn pause(&mut self) -> Result<()> {
        Ok(self.machine.pause()?)
    }

    /// Has it go on from there, after which services do what they do with a host that has restored a machine.
    pub fn resume(&mut self) -> Result<()> {
        self.machine.resume()?;
        self.save_restore();
        Ok(())
    }

    /// How long the last boot took, from power-on to the agent.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// What the machine is made of.
    pub fn config(&self) -> &Config {
        self.machine.config()
    }

    /// An error with the processors' whereabouts and the console's last lines.
    fn error(&self, text: &str) -> Error {
        let crash = self.machine.shared().crash();
        let crash = crash.map(|crash| format!("\n{crash}")).unwrap_or_default();
        let text = &format!("{text}{crash}\n{}", self.machine.describe_processors());
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n    ");
        match tail.is_empty() {
            true => Error(text.to_owned()),
            false => Error(format!("{text}; the console's last lines:\n    {tail}")),
        }
    }

    /// Waits for the end of the machine's run.
    pub fn wait_exit(&self, timeout: Duration) -> Result<Exit> {
        let exit = self.machine.shared().wait_exit(timeout);
        exit.ok_or_else(|| {
            self.error(&format!(
                "waited {timeout:?} in vain for the machine to stop"
            ))
        })
    }

    /// How the run ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.machine.shared().exit()
    }

    /// What the guest has told the hypervisor of its crash since the last boot, if it has.
    pub fn crash(&self) -> Option<String> {
        self.machine.shared().crash()
    }

    /// The channel of a service.
    pub fn channel(&self, service: Service) -> ChannelHandle<'_> {
        ChannelHandle {
            guest: self,
            service,
        }
    }

    /// The guest's reference time in 100 ns units.
    pub fn reference_time(&self) -> u64 {
        self.machine.shared().bus().reference_time()
    }

    /// Host time and guest reference time, now.
    pub fn moment(&self) -> Moment {
        Moment::now(self.reference_time())
    }

    /// When the guest last had the host look at its clock by [`Ports`](crate::ports::Ports), and when the time before
    /// that: that one first.
    pub fn looks(&self) -> [SystemTime; 2] {
        self.machine.shared().ports().looks()
    }

    /// Has the next processor that writes this byte to this port stay in that write, until [`Guest::let_go`].
    pub fn hold_at(&self, port: u16, byte: u8) {
        self.machine.shared().ports().hold_at(port, byte);
    }

    /// Waits until a processor is held.
    pub fn wait_held(&self) -> Result<()> {
        let shared = self.machine.shared();
        let held = shared.wait_ports(TIMEOUT, |ports| match ports.holds() {
            true => Some(true),
            false => shared.exit().map(|_| false),
        });
        match held {
            Some(true) => Ok(()),
            Some(false) => Err(self.error("the machine stopped before a processor was held")),
            None => Err(self.error("waited in vain for a processor to be held")),
        }
    }

    /// Has the processor that is held go on, and none be held.
    pub fn let_go(&self) {
        self.machine.shared().let_go();
    }
}
