// SPDX-License-Identifier: GPL-2.0

//! Counts the instructions that a guest executes. The kernel under the host traces KVM: it measures each stay in the
//! guest and sums up the times. Under QEMU's `-icount shift=0` the TSC counts instructions, and so do these sums. They
//! exclude the host and KVM.

use std::fs;
use std::io;
use std::io::Write;
use std::ops::Add;
use std::ops::Sub;
use std::path::Path;

/// The kernel's tracing directory.
const TRACING: &str = "/sys/kernel/tracing";

/// Counts since the [`Meter`] was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Instructions of the guest's processors under `-icount`, else ticks of the TSC.
    pub instructions: u64,
    /// Exits of the guest's processors to the host or to KVM. Exits for interrupts of the machine below do not count:
    /// the guest does not cause them.
    pub exits: u64,
}

impl Add for Count {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            instructions: self.instructions + more.instructions,
            exits: self.exits + more.exits,
        }
    }
}

impl Sub for Count {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            instructions: self.instructions - earlier.instructions,
            exits: self.exits - earlier.exits,
        }
    }
}

/// The tracing of [`Meter`]: each file, and the text to write to it. A line may refer to the lines before.
const TRIGGERS: [(&str, &str); 4] = [
    (
        "synthetic_events",
        "stay u64 ticks; unsigned int processor; unsigned long rip; unsigned int reason",
    ),
    (
        "events/kvm/kvm_entry/trigger",
        "hist:keys=vcpu_id:entered=common_timestamp",
    ),
    (
        "events/kvm/kvm_exit/trigger",
        "hist:keys=vcpu_id:ticks=common_timestamp-$entered:\
         onmatch(kvm.kvm_entry).stay($ticks,vcpu_id,guest_rip,exit_reason)",
    ),
    (STAY, "hist:keys=reason:vals=ticks"),
];

/// The trigger file of the stays.
const STAY: &str = "events/synthetic/stay/trigger";

/// The reason of a stay's end when an interrupt of the machine below ends it (AMD's `SVM_EXIT_INTR`).
const INTERRUPT: u64 = 0x60;

/// Lists the lengths of the stays that an interrupt ended.
const LENGTHS: &str = "hist:keys=ticks:size=65536 if reason == 0x60";

/// A stay of fewer instructions was ended by an interrupt that was pending at its start.
const AT_ONCE: u64 = 64;

/// Counts from its creation until it is dropped.
pub struct Meter {
    /// Instructions in each measured stay that are KVM's own, between the trace events and the guest.
    overhead: u64,
}

impl Meter {
    /// Starts to count. `act` makes the guest do something, which yields stays for the calibration. Fails if the kernel
    /// has no tracing, or another meter uses it.
    pub fn new<E: From<io::Error>>(act: impl FnOnce() -> Result<(), E>) -> Result<Self, E> {
        write("trace_clock", "x86-tsc")?;
        // From here on, drop() removes the triggers.
        let mut meter = Self { overhead: 0 };
        for (file, text) in TRIGGERS {
            write(file, text)?;
        }
        // An injected interrupt ends its stay before the first instruction: see `kvm::qemu`.
        write(STAY, LENGTHS)?;
        act()?;
        let tables = fs::read_to_string(path("events/synthetic/stay/hist"))?;
        write(STAY, &format!("!{LENGTHS}"))?;
        let lengths = tables.lines().filter_map(|line| entry(line, "ticks", 10));
        meter.overhead = lengths
            .map(|(ticks, _)| ticks)
            .min()
            .ok_or_else(|| io::Error::other("no stay in the guest was ended by an interrupt"))?;
        Ok(meter)
    }

    /// KVM's own instructions in each measured stay.
    pub fn overhead(&self) -> u64 {
        self.overhead
    }

    /// The counts so far, of all processors.
    pub fn read(&self) -> io::Result<Count> {
        let tables = fs::read_to_string(path("events/synthetic/stay/hist"))?;
        parse(&tables, self.overhead)
            .ok_or_else(|| io::Error::other(format!("not understood: {tables}")))
    }

    /// Starts to sample.
    pub fn sample(&self) -> io::Result<Samples<'_>> {
        write(STAY, &self.sampling(":size=65536"))?;
        Ok(Samples(self))
    }

    /// An interrupt that was pending at the entry ends the stay (nearly) at once, and yields no sample. The kernel
    /// identifies the list by its other attributes, not by its size.
    fn sampling(&self, attribute: &str) -> String {
        let least = self.overhead + AT_ONCE;
        format!("hist:keys=rip.hex{attribute} if reason == 0x60 && ticks > {least}")
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // Later triggers refer to earlier ones, so the last go first. The removal of an absent trigger fails
        // harmlessly.
        for (file, text) in TRIGGERS.iter().rev() {
            let name = text.split_once(' ').map_or(*text, |(name, _)| name);
            let text = if *file == TRIGGERS[0].0 { name } else { text };
            let _ = write(file, &format!("!{text}"));
        }
    }
}

/// Samples the guest's instruction pointer, as long as the value lives. Each interrupt of the machine below that ends a
/// stay in the guest yields a sample.
pub struct Samples<'a>(&'a Meter);

impl Samples<'_> {
    /// Stops sampling until [`Samples::go_on`].
    pub fn pause(&self) -> io::Result<()> {
        write(STAY, &self.0.sampling(":pause"))
    }

    /// Continues to sample.
    pub fn go_on(&self) -> io::Result<()> {
        write(STAY, &self.0.sampling(":continue"))
    }

    /// The sampled addresses, with the number of samples at each.
    pub fn read(&self) -> io::Result<Vec<(u64, u64)>> {
        let tables = fs::read_to_string(path("events/synthetic/stay/hist"))?;
        Ok(tables
            .lines()
            .filter_map(|line| entry(line, "rip", 16))
            .collect())
    }
}

impl Drop for Samples<'_> {
    fn drop(&mut self) {
        // If the removal fails, the trigger stays. Nothing can be done about that.
        let _ = write(STAY, &format!("!{}", self.0.sampling("")));
    }
}

/// Parses key and hits of a line such as `{ rip: ffffffff810a2b3c } hitcount:         12`.
fn entry(line: &str, key: &str, radix: u32) -> Option<(u64, u64)> {
    let (value, hits) = line
        .strip_prefix("{ ")?
        .strip_prefix(key)?
        .strip_prefix(':')?
        .split_once('}')?;
    let value = u64::from_str_radix(value.trim(), radix).ok()?;
    let hits = hits.trim().strip_prefix("hitcount:")?.trim();
    Some((value, hits.split_whitespace().next()?.parse().ok()?))
}

fn path(file: &str) -> std::path::PathBuf {
    Path::new(TRACING).join(file)
}

fn write(file: &str, text: &str) -> io::Result<()> {
    let explain =
        |error: io::Error| io::Error::new(error.kind(), format!("{TRACING}/{file}: {error}"));
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(path(file))
        .map_err(explain)?;
    file.write_all(text.as_bytes()).map_err(explain)
}

/// Sums up lines such as `{ reason:        114 } hitcount:        120  ticks:     483200`. Subtracts `overhead` for
/// each stay.
fn parse(tables: &str, overhead: u64) -> Option<Count> {
    let mut count = Count::default();
    for line in tables.lines() {
        let Some((reason, stays)) = entry(line, "reason", 10) else {
            continue;
        };
        let (_, ticks) = line.rsplit_once("ticks:")?;
        let ticks: u64 = ticks.trim().parse().ok()?;
        count.instructions += ticks.checked_sub(stays * overhead)?;
        if reason != INTERRUPT {
            count.exits += stays;
        }
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_up_the_reasons() {
        let table = "# event histogram\n#\n# trigger info: hist:keys=reason:vals=ticks [active]\n#\n\n\
                     { reason:        120 } hitcount:          2  ticks:        800\n\
                     { reason:         96 } hitcount:        100  ticks:     483200\n\nTotals:\n    Hits: 102\n";
        let count = parse(table, 30).unwrap();
        assert_eq!((count.instructions, count.exits), (484_000 - 102 * 30, 2));
        assert_eq!(parse("{ reason: 0 } hitcount: 1 ticks: many", 0), None);
        assert_eq!(parse("{ reason: 0 } hitcount: 1", 0), None);
    }

    #[test]
    fn reads_histograms() {
        let line = "{ rip: ffffffff810a2b3c } hitcount:         12";
        assert_eq!(entry(line, "rip", 16), Some((0xffff_ffff_810a_2b3c, 12)));
        assert_eq!(entry("{ reason: 0 } hitcount: 1", "rip", 16), None);
        assert_eq!(
            entry("{ ticks:  231 } hitcount: 7", "ticks", 10),
            Some((231, 7))
        );
    }
}
