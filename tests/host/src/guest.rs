// SPDX-License-Identifier: GPL-2.0

//! A running guest, for scenarios: commands by its agent, and a handle for each service's channel.
//!
//! Each wait has a time-out. Its error names the event that did not come. Time-outs only protect against hangs, so they
//! are long: the guest may be emulated twice over.

mod agent;
mod bus;
mod channel;
mod console;
mod error;
pub mod relay;
mod socket;

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
pub use self::socket::Connection;
pub use self::socket::Listener;

/// The time-out of most waits.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// The time-out of a boot.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// A guest that has booted, with a running agent.
pub struct Guest {
    machine: Machine,
    boot_time: Duration,
    /// A command line runs. The agent accepts no other until it ends.
    busy: AtomicBool,
}

impl Guest {
    /// Boots a machine. Waits for the guest's agent, if it has one.
    pub fn boot(config: &Config) -> Result<Self> {
        let mut guest = Self {
            machine: Machine::new(config.clone())?,
            boot_time: Duration::ZERO,
            busy: AtomicBool::new(false),
        };
        guest.restart()?;
        Ok(guest)
    }

    /// Switches the machine off and on, also after [`Exit::Reset`]. Waits for the agent, if there is one.
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

    /// Takes a snapshot of the machine, and continues. Fails if a channel is in use.
    pub fn save(&mut self) -> Result<Snapshot> {
        Ok(self.machine.save()?)
    }

    /// Continues from a snapshot, in any state of the guest. Sets the guest's wall clock to the host's.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.machine.restore(snapshot)?;
        self.busy.store(false, Ordering::Relaxed);
        let now = self.moment().wall - crate::ic::UNIX_EPOCH_1601;
        self.sh_ok(&format!("date -s @{}", now / 10_000_000))
            .map(|_| ())
    }

    /// Switches the machine off, in any state.
    pub fn power_off(&mut self) {
        self.machine.power_off();
    }

    /// Pauses the machine. Its reference time stops, too.
    pub fn pause(&mut self) -> Result<()> {
        Ok(self.machine.pause()?)
    }

    /// Resumes the machine. Services then behave as after a restore on a host.
    pub fn resume(&mut self) -> Result<()> {
        self.machine.resume()?;
        self.save_restore();
        Ok(())
    }

    /// The duration of the last boot, from power-on to the agent.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The machine's configuration.
    pub fn config(&self) -> &Config {
        self.machine.config()
    }

    /// An error with each processor's place and the console's last lines.
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

    /// How the run ended. `None` while it lasts.
    pub fn exit(&self) -> Option<Exit> {
        self.machine.shared().exit()
    }

    /// The guest's crash report since the last boot, if there is one.
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

    /// The host's times at the guest's last two writes to the recording port of [`Ports`](crate::ports::Ports), the
    /// older first.
    pub fn looks(&self) -> [SystemTime; 2] {
        self.machine.shared().ports().looks()
    }

    /// Makes the next processor that writes `byte` to `port` wait in that write, until [`Guest::let_go`].
    pub fn hold_at(&self, port: u16, byte: u8) {
        self.machine.shared().ports().hold_at(port, byte);
    }

    /// Waits until a processor is held in a write.
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

    /// Releases the held processor, if any, and cancels [`Guest::hold_at`].
    pub fn let_go(&self) {
        self.machine.shared().let_go();
    }
}
