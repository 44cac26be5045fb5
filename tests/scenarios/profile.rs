// SPDX-License-Identifier: GPL-2.0

//! Where in its kernel a guest spends its instructions, by samples.

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

/// How far samples are apart, in microseconds: it must not go in step with what is sampled.
const INTERVALS: std::ops::Range<usize> = 10..40;

/// So many instructions of the guest show where it is: there are thousands of samples in them.
const LENGTH: u64 = 100_000_000;

/// As many functions are shown.
const SHOWN: usize = 40;

/// Where the kernel's half of the addresses begins.
const KERNEL: u64 = 1 << 63;

/// What has to be done before each time that something is looked at, if anything.
pub type Prepare<'a> = Option<&'a dyn Fn() -> Result<()>>;

/// Addresses at which the guest was seen, and how often at each.
pub struct Profile(Vec<(u64, u64)>);

impl Profile {
    /// Runs `act`, which takes about so many `instructions` of the guest, again and again, and looks where the guest is
    /// meanwhile; before each time `prepare`, which is not looked at.
    pub fn take(
        meter: &Meter,
        instructions: u64,
        prepare: Prepare<'_>,
        mut act: impl FnMut() -> Result<()>,
    ) -> Result<Self> {
        let samples = meter.sample()?;
        let (paused, done) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            // Each of this thread's timers is an interrupt, and most come while the guest runs. They only take time
            // where no samples are taken.
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

    /// The part of them, of 1, at which it was in its kernel, not in a program.
    pub fn kernel_share(&self) -> f64 {
        let kernel = self.0.iter().filter(|(address, _)| *address >= KERNEL);
        let kernel: u64 = kernel.map(|(_, count)| count).sum();
        kernel as f64 / self.total().max(1) as f64
    }

    /// Prints in which functions that was.
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

/// Has this thread's timers end when they are over: the kernel may be late by 50 microseconds else.
fn no_slack() -> io::Result<()> {
    let thread = std::fs::read_link("/proc/thread-self")?;
    let number = thread.file_name().unwrap_or_default();
    std::fs::write(Path::new("/proc").join(number).join("timerslack_ns"), "1")
}

/// The functions of the kernel and of modules, by address.
pub struct Symbols(BTreeMap<u64, String>);

impl Symbols {
    /// Those of the kernel, and of the modules that the guest has now. It needs a guest that has its kernel where the
    /// outer one has its own, as it is the same: `nokaslr`.
    pub fn read(guest: &Guest) -> Result<Self> {
        let kernel = std::fs::read_to_string("/proc/kallsyms")?;
        let mut symbols = Self(BTreeMap::new());
        symbols.add(kernel.lines().filter(|line| !line.ends_with(']')));
        symbols.extend(guest)?;
        Ok(symbols)
    }

    /// Adds those of modules that the guest has now.
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
