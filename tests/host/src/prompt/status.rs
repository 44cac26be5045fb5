// SPDX-License-Identifier: GPL-2.0

//! The machine and its services as tables, as Get-VM and Get-VMIntegrationService print them.

use std::time::Duration;
use std::time::Instant;

use super::session::Outcome;
use super::session::Power;
use super::session::Session;
use crate::guest::ChannelHandle;
use crate::guest::Result;
use crate::ic::device::State;
use crate::service::Service;
use crate::service::Version;

/// A service has lost communication after this time without an answer.
const LOST: Duration = Duration::from_secs(10);

impl Session {
    /// Prints the tables, and how far the clocks are apart.
    pub(super) fn status(&self) -> Outcome {
        self.machine();
        if self.power == Power::Off {
            return Ok(());
        }
        let head = [
            "Service",
            "Enabled",
            "Status",
            "Version",
            "Framework",
            "State",
            "Requests",
            "Replies",
            "Latency",
        ];
        let mut rows = vec![head.map(str::to_owned)];
        for service in Service::INTEGRATION {
            if self.options.config.services.contains(&service) {
                rows.push(row(self.guest.channel(service))?);
            }
        }
        self.say("");
        for line in table(&rows) {
            self.say(&line);
        }
        self.say("");
        if !self.options.config.foreign && self.power == Power::On {
            let offset = self.guest.clock_error()? - self.offset as f64;
            self.say(&format!(
                "the guest's clock is {offset:+.3} s from the host's"
            ));
        }
        if self.offset != 0 {
            self.say(&format!(
                "the host's clock is {:+} s from this machine's",
                self.offset
            ));
        }
        Ok(())
    }

    /// Prints the table of the machine.
    fn machine(&self) {
        let config = &self.options.config;
        let state = match self.power {
            Power::On => "Running",
            Power::Saved => "Saved",
            Power::Off => "Off",
        };
        let (uptime, vmbus) = match self.power {
            Power::Off => ("-".to_owned(), "-".to_owned()),
            _ => {
                let now = self.saved_at.unwrap_or_else(Instant::now);
                let seconds = now.saturating_duration_since(self.since).as_secs();
                let version = self.guest.vmbus_version().map_or("-".to_owned(), version);
                (
                    format!(
                        "{:02}:{:02}:{:02}",
                        seconds / 3600,
                        seconds / 60 % 60,
                        seconds % 60
                    ),
                    version,
                )
            }
        };
        let rows = [
            ["State", "CPUs", "Memory(MiB)", "Uptime", "VMBus"].map(str::to_owned),
            [
                state.to_owned(),
                config.vcpus.to_string(),
                config.memory.to_string(),
                uptime,
                vmbus,
            ],
        ];
        for line in table(&rows) {
            self.say(&line);
        }
    }
}

fn version((major, minor): Version) -> String {
    format!("{major}.{minor}")
}

/// A service's row. Requests and replies count from the host's start; all else is about the channel that is open now.
fn row(channel: ChannelHandle<'_>) -> Result<[String; 9]> {
    let statistics = channel.statistics()?;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let (status, has_contact) = match channel.state()? {
        State::Closed | State::Negotiating => ("No Contact", false),
        State::Ready => ("OK", true),
        State::Waiting { since } if since.elapsed() < LOST => ("OK", true),
        State::Waiting { .. } | State::Dead(_) => ("Lost Communication", true),
    };
    let versions = channel.versions()?.filter(|_| has_contact);
    let state = statistics.application_state.filter(|_| has_contact);
    let state = state.map(|state| {
        let names = ["Unknown", "Healthy", "Critical", "Stopped"];
        names.get(state as usize).unwrap_or(&"?").to_string()
    });
    let latency = statistics.latencies.last().filter(|_| has_contact);
    let is_enabled = if channel.is_present() {
        "True"
    } else {
        "False"
    };
    Ok([
        name(channel.service()).to_owned(),
        is_enabled.to_owned(),
        status.to_owned(),
        or_none(versions.map(|it| version(it.message))),
        or_none(versions.map(|it| version(it.framework))),
        or_none(state),
        statistics.requests.to_string(),
        statistics.replies.to_string(),
        or_none(latency.map(|it| format!("{:.2} ms", it.as_secs_f64() * 1e3))),
    ])
}

/// A service's name in Windows, and in commands.
fn name(service: Service) -> &'static str {
    match service {
        Service::Heartbeat => "Heartbeat (heartbeat)",
        Service::Shutdown => "Shutdown (shutdown)",
        Service::TimeSync => "Time Synchronization (timesync)",
        Service::Kvp => "Key-Value Pair Exchange (kvp)",
        Service::Vss => "VSS (vss)",
        Service::FCopy => "Guest Service Interface (fcopy)",
        Service::Echo => "Echo (echo)",
        Service::Socket => "Sockets (socket)",
    }
}

/// The rows with their columns aligned, and a line under the first.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> Vec<String> {
    let widths: Vec<usize> = (0..COLUMNS)
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let line = |cells: &mut dyn Iterator<Item = String>| {
        let cells: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        lines.push(line(&mut row.iter().cloned()));
        if number == 0 {
            lines.push(line(&mut row.iter().map(|cell| "-".repeat(cell.len()))));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["A", "Bcd"], ["long", "x"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), ["A     Bcd", "-     ---", "long  x"]);
    }
}
