// SPDX-License-Identifier: GPL-2.0

//! Commands in the guest, run by its agent (`tests/guest/agent.c`): shell lines, the module, the kernel's log.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Guest;
use super::Result;
use super::TIMEOUT;
use crate::ic::UNIX_EPOCH_1601;
use crate::mailbox;

/// The agent sends this byte when it starts.
const AGENT_READY: u8 = 2;

/// The agent sends this byte when a command line has ended.
const AGENT_DONE: u8 = 1;

/// Binds the built-in drivers to their devices. File copy has a driver of its own. The bus refuses other devices.
const BIND: &str =
    "cd /sys/bus/vmbus/devices && for id in *; do for driver in ../drivers/hv_utils*; do \
     echo $id >$driver/bind; done; done 2>/dev/null; true";

/// Unbinds the built-in drivers from their devices.
const UNBIND: &str = "cd /sys/bus/vmbus/drivers && for device in hv_utils*/*-*; do \
     [ ! -e $device ] || echo ${device#*/} >${device%/*}/unbind || exit; done";

/// The result of a command in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit status.
    pub status: i32,
    /// The output, without the last line feed.
    pub text: String,
}

/// The module that serves in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// This project's module.
    Rust,
    /// The kernel's own module.
    C,
}

impl Module {
    /// "rust" or "c".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
        }
    }

    /// The parameters that make the module offer all its services. (For file copy the guest's kernel also has
    /// `uio_hv_generic`.)
    pub const fn parameters(self) -> &'static str {
        match self {
            Self::Rust => "fcopy_chardev=1",
            Self::C => "",
        }
    }
}

impl Guest {
    /// Waits until the agent has started.
    pub(super) fn wait_agent(&self, timeout: Duration) -> Result<()> {
        self.wait_agent_byte(AGENT_READY, "the guest's agent", timeout)
    }

    /// Runs a shell command line in the guest.
    pub fn sh(&self, command: &str) -> Result<Output> {
        self.sh_within(command, TIMEOUT)
    }

    /// Runs a shell command line with another time-out.
    pub fn sh_within(&self, command: &str, timeout: Duration) -> Result<Output> {
        self.sh_start(command)?;
        let what = format!("`{command}` in the guest");
        self.wait_agent_byte(AGENT_DONE, &what, timeout)?;
        self.busy.store(false, Ordering::Relaxed);
        let (status, output) = mailbox::take_answer(self.machine.shared().memory())?;
        let text = String::from_utf8_lossy(&output);
        Ok(Output {
            status,
            text: text.trim_end_matches('\n').to_owned(),
        })
    }

    /// Starts a command line without waiting for its end. For commands that end the guest.
    pub fn sh_start(&self, command: &str) -> Result<()> {
        let shared = self.machine.shared();
        if self.busy.swap(true, Ordering::Relaxed) {
            return Err(format!("`{command}` cannot run: another command still runs").into());
        }
        mailbox::put_command(shared.memory(), command)?;
        shared.ports().send_to_agent(b"\n");
        self.machine.update_lines();
        Ok(())
    }

    /// Runs a command that must succeed. Returns its output.
    pub fn sh_ok(&self, command: &str) -> Result<String> {
        let output = self.sh(command)?;
        match output.status {
            0 => Ok(output.text),
            status => {
                Err(format!("`{command}` in the guest: status {status}: {}", output.text).into())
            }
        }
    }

    /// Waits until the agent has sent `byte`. `what` describes the event for the error.
    fn wait_agent_byte(&self, byte: u8, what: &str, timeout: Duration) -> Result<()> {
        let shared = self.machine.shared();
        let sent = shared.wait_ports(timeout, |ports| {
            let buffer = ports.agent();
            match buffer.iter().position(|sent| *sent == byte) {
                Some(at) => {
                    buffer.drain(..=at);
                    Some(true)
                }
                None => shared.exit().map(|_| false),
            }
        });
        match sent {
            Some(true) => Ok(()),
            Some(false) => Err(self.error(&format!(
                "the machine stopped ({:?}) while waiting for {what}",
                shared.exit()
            ))),
            None => Err(self.error(&format!("waited {timeout:?} in vain for {what}"))),
        }
    }

    /// The guest's wall clock minus the host's, in seconds. Asks several times and uses the fastest answer. Assumes
    /// that the guest read its clock in the middle of that time.
    pub fn clock_error(&self) -> Result<f64> {
        let mut best = (u64::MAX, 0.0);
        for _ in 0..5 {
            let asked = self.moment().wall;
            let text = self.sh_ok("echo $EPOCHREALTIME")?;
            let took = self.moment().wall - asked;
            let guests: f64 = text
                .trim()
                .parse()
                .map_err(|_| format!("the guest's time is {text:?}"))?;
            let hosts = asked + took / 2 - UNIX_EPOCH_1601;
            if took < best.0 {
                best = (took, guests - hosts as f64 / 1e7);
            }
        }
        Ok(best.1)
    }

    /// The kernel's log, as dmesg prints it.
    pub fn kernel_log(&self) -> Result<String> {
        self.sh_ok("dmesg")
    }

    /// Clears the kernel's log. The next [`Guest::kernel_log`] has only later lines.
    pub fn clear_kernel_log(&self) -> Result<()> {
        self.sh_ok("dmesg -c >/dev/null").map(|_| ())
    }

    /// Inserts a module from the initramfs, with parameters.
    pub fn insmod_with(&self, module: Module, parameters: &str) -> Result<()> {
        let path = format!("/modules/{}/hv_utils.ko", module.name());
        self.sh_ok(&format!("insmod {path} {parameters}"))
            .map(|_| ())
    }

    /// Inserts a module from the initramfs, with all its services. Binds built-in drivers to their devices instead: their
    /// parameters are on the kernel's command line.
    pub fn insmod(&self, module: Module) -> Result<()> {
        match self.config().built_in {
            true => self.sh_ok(BIND).map(|_| ()),
            false => self.insmod_with(module, module.parameters()),
        }
    }

    /// Removes the module. Unbinds built-in drivers from their devices instead.
    pub fn rmmod(&self) -> Result<()> {
        let command = match self.config().built_in {
            true => UNBIND,
            false => "rmmod hv_utils",
        };
        self.sh_ok(command).map(|_| ())
    }
}
