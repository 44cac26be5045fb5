// SPDX-License-Identifier: GPL-2.0

//! Commands about the machine: on, off, saved, and the host's clock.

use std::time::Duration;
use std::time::Instant;

use super::session::expected;
use super::session::meaning;
use super::session::Failure;
use super::session::Outcome;
use super::session::Power;
use super::session::Session;
use crate::guest::TIMEOUT;
use crate::ic::shutdown;
use crate::ic::S_OK;
use crate::machine::Exit;
use crate::service::Service;

/// How long to wait until a guest that has agreed to hibernate does so.
const HIBERNATION: Duration = Duration::from_secs(10);

impl Session {
    /// Switches the machine on.
    pub(super) fn switch_on(&mut self) -> Outcome {
        match self.power {
            Power::Off => {
                self.boot_again()?;
                self.say("started");
                Ok(())
            }
            Power::On => expected("a machine that is off: this one runs"),
            Power::Saved => expected("a machine that is off: restore goes on with this one"),
        }
    }

    /// Sends a shutdown request; gives how the guest ended within `timeout`, and after how many seconds.
    fn shut_down(&self, flags: u32, timeout: Duration) -> Outcome<Option<(Exit, f64)>> {
        let asked = Instant::now();
        let channel = self.ready(Service::Shutdown)?;
        channel.start_request(shutdown::body(flags, "asked at the host's prompt"))?;
        // The guest may be off before the host looks at the reply.
        match channel.wait_reply() {
            Ok(reply) if reply.status != S_OK => {
                return Err(Failure::Failed(format!(
                    "shutdown: {}",
                    meaning(reply.status)
                )))
            }
            Err(error) if self.guest.exit().is_none() => return Err(error.into()),
            _ => {}
        }
        let end = asked + timeout;
        loop {
            if let Some(exit) = self.guest.exit() {
                return Ok(Some((exit, asked.elapsed().as_secs_f64())));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            let _ = self.guest.wait_exit(Duration::from_millis(500));
        }
    }

    /// Stop-VM.
    pub(super) fn stop(&mut self, force: bool) -> Outcome {
        let flags = if force { shutdown::FORCE } else { 0 };
        match self.shut_down(flags, TIMEOUT)? {
            Some((Exit::PowerOff, seconds)) => {
                self.power = Power::Off;
                self.say(&format!("stopped: powered off after {seconds:.1} s"));
                Ok(())
            }
            Some((exit, _)) => Err(Failure::Failed(format!("the guest ended with {exit:?}"))),
            None => Err(Failure::Failed(
                "the guest agreed, but has not powered off".to_owned(),
            )),
        }
    }

    /// Restart-VM.
    pub(super) fn restart(&mut self) -> Outcome {
        match self.shut_down(shutdown::RESTART | shutdown::FORCE, TIMEOUT)? {
            Some((Exit::Reset, seconds)) => {
                self.power = Power::Off;
                self.boot_again()?;
                self.say(&format!("restarted: reset after {seconds:.1} s"));
                Ok(())
            }
            Some((exit, _)) => Err(Failure::Failed(format!("the guest ended with {exit:?}"))),
            None => Err(Failure::Failed(
                "the guest agreed, but has not restarted".to_owned(),
            )),
        }
    }

    /// Asks the guest to hibernate. It agrees if the machine can; then its user space has to act.
    pub(super) fn hibernate(&mut self) -> Outcome {
        match self.shut_down(shutdown::HIBERNATE, HIBERNATION)? {
            Some((Exit::S4, seconds)) => {
                self.power = Power::Off;
                self.say(&format!("hibernated after {seconds:.1} s"));
            }
            Some((exit, _)) => {
                return Err(Failure::Failed(format!("the guest ended with {exit:?}")));
            }
            None => self.say(
                "the guest agreed, and runs on: nothing in it has acted on the kernel's event",
            ),
        }
        Ok(())
    }

    /// Save-VM: stops the machine where it is.
    pub(super) fn save(&mut self) -> Outcome {
        self.runs()?;
        self.guest.pause()?;
        self.power = Power::Saved;
        self.saved_at = Some(Instant::now());
        self.say("saved: the machine stands still");
        Ok(())
    }

    /// Start-VM of a saved machine.
    pub(super) fn restore(&mut self) -> Outcome {
        if self.power != Power::Saved {
            return expected("a saved machine: save saves this one");
        }
        self.guest.resume()?;
        if let Some(saved_at) = self.saved_at.take() {
            self.since += saved_at.elapsed();
        }
        self.power = Power::On;
        self.say("restored: the guest runs, and time sync and data exchange negotiate again");
        Ok(())
    }

    /// Moves the host's clock.
    pub(super) fn clock(&mut self, step: i64) -> Outcome {
        self.offset = self.offset.saturating_add(step);
        self.set_offset();
        self.say(&format!(
            "the host's clock is {:+} s from this machine's; the next time sample tells the guest",
            self.offset
        ));
        Ok(())
    }

    /// Gives time sync the clock that commands have moved.
    pub(super) fn set_offset(&self) {
        let offset = self.offset.saturating_mul(10_000_000);
        self.guest.with_bus(|bus| {
            bus.with_device(Service::TimeSync, |device, _| {
                device.set_wall_offset(offset)
            })
        });
    }

    /// Puts the host to sleep, and its machine with it: the host's clock goes on, the guest stands still.
    pub(super) fn sleep(&mut self, time: Duration) -> Outcome {
        self.runs()?;
        self.guest.pause()?;
        self.offset = self.offset.saturating_add(time.as_secs() as i64);
        self.set_offset();
        self.guest.resume()?;
        self.say(&format!(
            "the host has slept: its clock is {} s ahead of the guest's until time sync sets that",
            time.as_secs()
        ));
        Ok(())
    }
}
