// SPDX-License-Identifier: GPL-2.0

//! Where in its kernel a guest spends its instructions, by samples.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use host::fuzz::Random;
use host::guest::Guest;
use host::guest::Result;
use host::meter::Meter;

/// How far samples are apart, in microseconds: it must not go in step with what is sampled.
const INTERVALS: std::ops::Range<usize> = 10..40;

/// So many instructions of the guest show where it is.
const LENGTH: u64 = 60_000_000;

/// As many functions are shown.
const SHOWN: usize = 40;

/// Where the kernel's half of the addresses begins.
const KERNEL: u64 = 1 << 63;

/// Addresses at which the guest was seen, and how often at each.
pub struct Profile(Vec<(u64, u64)>);

impl Profile {
    /// Runs `act` again and again until the guest has executed [`LENGTH`] instructions, and looks where it is meanwhile.
    pub fn take(meter: &Meter, act: impl FnMut() -> Result<()>) -> Result<Self> {
        let samples = meter.sample()?;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Each of this thread's timers is an interrupt, and most come while the guest runs.
            scope.spawn(|| {
                let mut random = Random::new(1);
                while !done.load(Ordering::Relaxed) {
                    let interval = INTERVALS.start + random.below(INTERVALS.len());
                    std::thread::sleep(Duration::from_micros(interval as u64));
                }
            });
            let result = repeat(meter, act);
            done.store(true, Ordering::Relaxed);
            result
        })?;
        Ok(Self(samples.read()?))
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// The part of them, of 1, at which it was in its kernel, not in a program.
    pub fn kernel_share(&self) -> f64 {
        let kernel = self.0.iter().filter(|(address, _)| *address >= KERNEL);
        let kernel: u64 = kernel.map(|(_, count)| count).sum();
        kernel as f64 / self.total().max(1) as f64
    }

    /// Prints in which functions that was. It needs a guest that has its kernel where the outer one has its own, as it
    /// is the same: `nokaslr`.
    pub fn print(&self, guest: &Guest) -> Result<()> {
        let symbols = symbols(guest)?;
        let mut hits: BTreeMap<&str, u64> = BTreeMap::new();
        for (address, count) in &self.0 {
            let symbol = symbols.range(..=address).next_back();
            let name = symbol.map_or("programs", |(_, name)| name);
            *hits.entry(name).or_default() += count;
        }
        let total = self.total();
        let mut hits: Vec<_> = hits.into_iter().collect();
        hits.sort_by_key(|&(name, count)| (std::cmp::Reverse(count), name));
        println!("# {total} samples");
        for (name, count) in hits.iter().take(SHOWN) {
            let percent = 100.0 * *count as f64 / total.max(1) as f64;
            println!("# {percent:5.1} %  {name}");
        }
        Ok(())
    }
}

fn repeat(meter: &Meter, mut act: impl FnMut() -> Result<()>) -> Result<()> {
    let start = meter.read()?.instructions;
    while meter.read()?.instructions - start < LENGTH {
        act()?;
    }
    Ok(())
}

/// The functions of the kernel, and of the modules that the guest has.
fn symbols(guest: &Guest) -> Result<BTreeMap<u64, String>> {
    let kernel = std::fs::read_to_string("/proc/kallsyms")?;
    let modules = guest.sh_ok("grep ']$' /proc/kallsyms")?;
    let mut symbols = BTreeMap::new();
    let kernel = kernel.lines().filter(|line| !line.ends_with(']'));
    for line in kernel.chain(modules.lines()) {
        let mut words = line.splitn(3, ' ');
        let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if let (Ok(address), "t" | "T" | "w" | "W") = (u64::from_str_radix(address, 16), kind) {
            symbols.insert(address, name.replace('\t', " "));
        }
    }
    Ok(symbols)
}
