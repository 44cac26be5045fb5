// SPDX-License-Identifier: GPL-2.0

//! Counts and prints results and breakdowns of the emulation. After a breakdown of the QEMU guest, the next QEMU guest
//! continues the count.

use std::time::Instant;

use host::guest::Result;
use host::machine::Exit;
use host::nested;
use host::nested::progress_file;

use crate::log;
use crate::scenario::skip_reason;

/// Maximum number of breakdowns of the emulation in one run.
const BREAKDOWNS: usize = 3;

/// Describes the breakdown if a guest stopped because the emulation of its processors failed: a processor hung, or had
/// a triple fault. With a splat on the console, the kernel is at fault: this is no breakdown. There are no breakdowns
/// where processors are not emulated.
pub fn breakdown(exit: &Exit, console: &str) -> Option<String> {
    breakdown_of(exit, console).filter(|_| nested::is_nested())
}

fn breakdown_of(exit: &Exit, console: &str) -> Option<String> {
    match exit {
        _ if console.lines().any(log::is_splat) => None,
        Exit::Breakdown(what) => Some(what.clone()),
        Exit::TripleFault => Some("a processor gave up without a word".to_owned()),
        _ => None,
    }
}

/// The guest whose emulation broke down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The guest of a scenario.
    Inner,
    /// The QEMU guest that the host runs in.
    Outer,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Inner => "inner",
            Self::Outer => "outer",
        }
    }
}

/// The state of a run, for the next QEMU guest if this one breaks down.
#[derive(Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Jobs of scenarios that have run in all their places.
    jobs: u32,
    /// Results reported.
    number: u32,
    failed: u32,
    boots: u32,
    /// The guests that broke down, each with the scenario.
    breakdowns: Vec<(Level, String)>,
    /// The running scenario.
    running: String,
}

impl Progress {
    fn text(&self) -> String {
        let mut text = format!(
            "{} {} {} {}\n{}\n",
            self.jobs, self.number, self.failed, self.boots, self.running
        );
        for (level, scenario) in &self.breakdowns {
            text.push_str(&format!("{} {scenario}\n", level.name()));
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let numbers: Option<Vec<u32>> = lines
            .next()?
            .split(' ')
            .map(|word| word.parse().ok())
            .collect();
        let [jobs, number, failed, boots] = numbers?[..] else {
            return None;
        };
        let running = lines.next()?.to_owned();
        let breakdowns = lines.map(|line| {
            let (level, scenario) = line.split_once(' ')?;
            let levels = [Level::Inner, Level::Outer];
            let level = levels.into_iter().find(|it| it.name() == level)?;
            Some((level, scenario.to_owned()))
        });
        Some(Self {
            jobs,
            number,
            failed,
            boots,
            breakdowns: breakdowns.collect::<Option<_>>()?,
            running,
        })
    }

    /// Counts a breakdown. Returns whether it is the first in that scenario.
    fn broke(&mut self, level: Level, scenario: &str) -> bool {
        let is_first = !self.breakdowns.iter().any(|(_, name)| name == scenario);
        self.breakdowns.push((level, scenario.to_owned()));
        is_first
    }

    fn count(&self, level: Level) -> usize {
        let all = self.breakdowns.iter();
        all.filter(|(it, _)| *it == level).count()
    }
}

/// Counts and prints results, each with its time.
pub struct Report {
    /// Time of the last result.
    last: Instant,
    /// Jobs of this run so far.
    jobs: u32,
    /// Jobs done in QEMU guests that broke down.
    jobs_before: u32,
    /// The scenario in which the QEMU guest broke down twice.
    twice: Option<String>,
    progress: Progress,
    /// Lines of the running scenario. They count once the scenario has run in all its places.
    held: String,
}

impl Report {
    /// Continues the run of a QEMU guest that broke down, or begins a new run.
    pub fn resumed() -> Self {
        let text = progress_file().and_then(|file| std::fs::read_to_string(file).ok());
        let before = text.map(|text| {
            Progress::parse(&text).unwrap_or_else(|| panic!("no progress of a run: {text:?}"))
        });
        let mut report = Self {
            last: Instant::now(),
            jobs: 0,
            jobs_before: 0,
            twice: None,
            progress: Progress::default(),
            held: String::new(),
        };
        match before {
            None => println!("TAP version 13"),
            Some(progress) => {
                report.jobs_before = progress.jobs;
                report.progress = progress;
                let running = report.progress.running.clone();
                if !report.progress.broke(Level::Outer, &running) {
                    report.twice = Some(running);
                }
                report.save();
            }
        }
        report
    }

    /// Counts a job. Returns whether an earlier QEMU guest did the job.
    pub fn was_done(&mut self) -> bool {
        self.jobs += 1;
        self.jobs <= self.jobs_before
    }

    /// Counts a boot.
    pub fn booted(&mut self) {
        self.progress.boots += 1;
    }

    /// Called when a scenario begins in one of its places. Fails if the QEMU guest broke down twice in the scenario: it
    /// must not run.
    pub fn begins(&mut self, scenario: &str) -> Result<()> {
        if self.progress.running != scenario {
            self.progress.running = scenario.to_owned();
            self.save();
        }
        match self.twice.as_deref() == Some(scenario) {
            true => Err("the QEMU guest broke down in it, for the second time".into()),
            false => Ok(()),
        }
    }

    /// Called when the emulation of the guest's processors broke down. Returns whether the scenario may run again.
    pub fn broke(&mut self, scenario: &str) -> bool {
        let is_first = self.progress.broke(Level::Inner, scenario);
        // Results of the scenario itself do not count until it has run in all its places.
        if self.held.is_empty() {
            self.save();
        }
        is_first
    }

    /// Reports a result.
    pub fn line(&mut self, name: &str, label: &str, result: &Result<()>) {
        let now = Instant::now();
        let took = (now - std::mem::replace(&mut self.last, now)).as_secs_f64();
        self.progress.number += 1;
        let number = self.progress.number;
        let lines = match result {
            Ok(()) => format!("ok {number} {name} {label} {took:.1} s\n"),
            Err(error) => match skip_reason(error) {
                Some(reason) => format!("ok {number} {name} {label} # SKIP {reason}\n"),
                None => {
                    self.progress.failed += 1;
                    let all = error.0.replace('\n', "\n# ");
                    let first = error.0.lines().next().unwrap_or_default();
                    format!("# {all}\nnot ok {number} {name} {label} # {first}\n")
                }
            },
        };
        self.held.push_str(&lines);
    }

    /// Restarts the time of the next result.
    pub fn begin_timing(&mut self) {
        self.last = Instant::now();
    }

    /// Reports the result of a former run, which is kept.
    pub fn kept(&mut self, name: &str, label: &str) {
        self.begin_timing();
        self.progress.number += 1;
        let number = self.progress.number;
        let line = format!("ok {number} {name} {label} # KEPT nothing of it has changed\n");
        self.held.push_str(&line);
    }

    /// Called when a scenario has run in all its places. Prints its lines.
    pub fn settle(&mut self) {
        print!("{}", std::mem::take(&mut self.held));
        self.progress.jobs = self.jobs;
        self.progress.running.clear();
        self.save();
    }

    /// Saves the progress for the next QEMU guest.
    fn save(&self) {
        let Some(file) = progress_file() else {
            return;
        };
        // The rename is atomic: the file is complete whenever this guest breaks down.
        let mut whole = file.as_os_str().to_owned();
        whole.push(".new");
        let saved = std::fs::write(&whole, self.progress.text())
            .and_then(|()| std::fs::rename(&whole, &file));
        if let Err(error) = saved {
            println!("# {}: {error}", file.display());
        }
    }

    /// Prints the closing lines. Returns whether no result failed.
    pub fn end(mut self, start: Instant) -> bool {
        let [inner, outer] = [Level::Inner, Level::Outer].map(|level| self.progress.count(level));
        if inner + outer > BREAKDOWNS {
            let error = format!("more than {BREAKDOWNS}: {:?}", self.progress.breakdowns);
            self.line("breakdowns of the emulation", "", &Err(error.into()));
            print!("{}", self.held);
        }
        let Progress {
            number,
            failed,
            boots,
            ..
        } = self.progress;
        println!("1..{number}");
        println!(
            "# {number} results, {failed} failed, {boots} boots, {:.0} s",
            start.elapsed().as_secs_f64()
        );
        println!(
            "# breakdowns of the emulation: {inner} of the inner guest, {outer} of the outer guest"
        );
        if number == 0 {
            println!("# no scenario ran; some scenarios only run if their whole name is given (see scenarios list)");
        }
        failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPLAT: &str = "[1.0] systemd: x\n[2.0] BUG: unable to handle page fault\n";

    #[test]
    fn what_the_kernel_complained_of_is_no_breakdown() {
        let stuck = Exit::Breakdown("processor 1 stays".to_owned());
        for exit in [&stuck, &Exit::TripleFault] {
            assert!(breakdown_of(exit, "[1.0] booted\n").is_some());
            assert_eq!(breakdown_of(exit, SPLAT), None);
            assert_eq!(
                breakdown_of(exit, "[1.0] Kernel panic - not syncing\n"),
                None
            );
        }
        assert_eq!(breakdown_of(&Exit::Reset, ""), None);
    }

    #[test]
    fn progress_is_read_as_it_was_written() {
        let mut progress = Progress {
            jobs: 5,
            number: 4,
            failed: 1,
            boots: 2,
            ..Progress::default()
        };
        assert_eq!(Progress::parse(&progress.text()).as_ref(), Some(&progress));
        progress.running = "vss_backs_up".to_owned();
        assert!(progress.broke(Level::Inner, "fuzz"));
        assert!(progress.broke(Level::Outer, "vss_backs_up"));
        assert_eq!(Progress::parse(&progress.text()).as_ref(), Some(&progress));
        assert_eq!(Progress::parse(""), None);
        assert_eq!(Progress::parse("1 2 3\n\n"), None);
    }

    #[test]
    fn a_second_breakdown_of_a_scenario_counts() {
        let mut progress = Progress::default();
        assert!(progress.broke(Level::Inner, "fuzz"));
        assert!(progress.broke(Level::Inner, "chardev"));
        assert!(!progress.broke(Level::Outer, "fuzz"));
        assert_eq!(
            (progress.count(Level::Inner), progress.count(Level::Outer)),
            (2, 1)
        );
    }

    fn report(progress: Progress) -> Report {
        Report {
            last: Instant::now(),
            jobs: 0,
            jobs_before: 0,
            twice: None,
            progress,
            held: String::new(),
        }
    }

    #[test]
    fn too_many_breakdowns_fail_the_run() {
        let broken = |times| {
            let mut progress = Progress::default();
            for time in 0..times {
                progress.broke(Level::Inner, &time.to_string());
            }
            report(progress).end(Instant::now())
        };
        assert!(broken(BREAKDOWNS));
        assert!(!broken(BREAKDOWNS + 1));
    }

    #[test]
    fn what_broke_the_outer_guest_twice_is_not_run() {
        let mut report = report(Progress::default());
        report.twice = Some("fuzz".to_owned());
        report.begins("chardev").unwrap();
        report.begins("fuzz").unwrap_err();
        assert_eq!(report.progress.running, "fuzz");
    }
}
