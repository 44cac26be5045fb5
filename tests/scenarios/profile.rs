// SPDX-License-Identifier: GPL-2.0

//! A profile of the guest's kernel, by samples.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use host::fuzz::Random;
use host::guest::Error;
use host::guest::Guest;
use host::guest::Result;
use host::meter::Meter;

/// Interval between two samples, in microseconds. It is random, to stay out of step with the sampled code.
const INTERVALS: std::ops::Range<usize> = 10..40;

/// Number of instructions to sample. It gives thousands of samples.
const LENGTH: u64 = 100_000_000;

/// Maximum number of functions to print.
const SHOWN: usize = 40;

/// The first address of the kernel's half of the address space.
const KERNEL: u64 = 1 << 63;

/// A preparation before each measurement, if one is needed.
pub type Prepare<'a> = Option<&'a dyn Fn() -> Result<()>>;

/// The sampled addresses, each with its number of samples.
pub struct Profile(Vec<(u64, u64)>);

impl Profile {
    /// Calls `act` again and again, and takes samples of the guest's address meanwhile. `act` takes about
    /// `instructions` of the guest. Calls `prepare` before each `act`, without taking samples.
    pub fn take(
        meter: &Meter,
        instructions: u64,
        prepare: Prepare<'_>,
        mut act: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        let samples = meter.sample()?;
        let (paused, done) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            // Each of this thread's timers causes an interrupt, most of them while the guest runs. Without samples the
            // timers only take time: pause them.
            let timers = scope.spawn(|| {
                no_slack()?;
                let mut random = Random::new(1);
                while !done.load(Ordering::Relaxed) {
                    while paused.load(Ordering::Relaxed) {
                        std::thread::park();
                    }
                    let interval = INTERVALS.start + random.below(INTERVALS.len());
                    std::thread::sleep(Duration::from_micros(interval as u64));
                }
                Ok(())
            });
            let result = (0..=LENGTH / instructions.max(1)).try_for_each(|_| {
                if let Some(prepare) = prepare {
                    paused.store(true, Ordering::Relaxed);
                    let prepared = samples
                        .pause()
                        .map_err(Error::from)
                        .and_then(|()| prepare());
                    paused.store(false, Ordering::Relaxed);
                    timers.thread().unpark();
                    prepared?;
                    samples.go_on()?;
                }
                act()
            });
            done.store(true, Ordering::Relaxed);
            let timers = timers
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a panic")));
            result.and(timers.map_err(Error::from))
        })?;
        Ok(Self(samples.read()?))
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// The share of samples in the kernel, from 0 to 1. The others are in programs.
    pub fn kernel_share(&self) -> f64 {
        let kernel = self.0.iter().filter(|(address, _)| *address >= KERNEL);
        let kernel: u64 = kernel.map(|(_, count)| count).sum();
        kernel as f64 / self.total().max(1) as f64
    }

    /// Prints the functions with the most samples.
    pub fn print(&self, symbols: &Symbols) {
        let mut hits: BTreeMap<&str, u64> = BTreeMap::new();
        for (address, count) in &self.0 {
            let symbol = symbols.0.range(..=address).next_back();
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
    }
}

/// Lets this thread's timers expire in time. By default the kernel may delay them by 50 microseconds.
fn no_slack() -> io::Result<()> {
    let thread = std::fs::read_link("/proc/thread-self")?;
    let number = thread.file_name().unwrap_or_default();
    std::fs::write(Path::new("/proc").join(number).join("timerslack_ns"), "1")
}

/// The functions of the kernel and of modules, by address.
pub struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    /// Reads the functions of the kernel, and of the modules that are inserted in the guest. The kernel's functions are
    /// those of the outer guest: both guests run the same kernel at the same address (`nokaslr`).
    pub fn read(guest: &Guest) -> Result<Self> {
        let kernel = std::fs::read_to_string("/proc/kallsyms")?;
        let mut symbols = Self(BTreeMap::new());
        symbols.add(kernel.lines().filter(|line| !line.ends_with(']')));
        symbols.extend(guest)?;
        Ok(symbols)
    }

    /// Adds the functions of the modules that are inserted in the guest.
    pub fn extend(&mut self, guest: &Guest) -> Result<()> {
        self.add(guest.sh_ok("sed -n '/]$/p' /proc/kallsyms")?.lines());
        Ok(())
    }

    fn add<'a>(&mut self, lines: impl Iterator<Item = &'a str>) {
        for line in lines {
            let mut words = line.splitn(3, ' ');
            let (Some(address), Some(kind), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if let (Ok(address), "t" | "T" | "w" | "W") = (u64::from_str_radix(address, 16), kind) {
                self.0.insert(address, name.replace('\t', " "));
            }
        }
    }
}
