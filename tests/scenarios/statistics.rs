// SPDX-License-Identifier: GPL-2.0

//! Statistics of repeated measurements.

use host::meter::Count;

/// The percentiles in the tables.
pub const PERCENTS: [usize; 3] = [10, 50, 90];

/// One measurement: a [`Count`], or a part of one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Instructions of the guest.
    pub instructions: f64,
    /// How often a processor left the guest.
    pub exits: f64,
}

impl From<Count> for Sample {
    fn from(count: Count) -> Self {
        Self {
            instructions: count.instructions as f64,
            exits: count.exits as f64,
        }
    }
}

impl Sample {
    /// The cost of one of the `times` repetitions in this sample. Subtracts `rest` first, which the sample has once.
    pub fn each(self, rest: Self, times: usize) -> Self {
        Self {
            instructions: (self.instructions - rest.instructions) / times as f64,
            exits: (self.exits - rest.exits) / times as f64,
        }
    }
}

/// The statistics of samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// The percentiles of the instructions, at [`PERCENTS`].
    pub percentiles: [f64; PERCENTS.len()],
    /// The mean of the instructions.
    pub mean: f64,
    /// The medians of instructions and of exits. The latter is rounded to hundredths.
    pub median: Sample,
}

impl Statistics {
    /// The statistics of the samples, unless there are none.
    pub fn of(samples: &[Sample]) -> Option<Self> {
        let sorted = |of: fn(&Sample) -> f64| {
            let mut numbers: Vec<f64> = samples.iter().map(of).collect();
            numbers.sort_unstable_by(f64::total_cmp);
            numbers
        };
        let instructions = sorted(|sample| sample.instructions);
        let exits = percentile(&sorted(|sample| sample.exits), 50)?;
        Some(Self {
            percentiles: [
                percentile(&instructions, PERCENTS[0])?,
                percentile(&instructions, PERCENTS[1])?,
                percentile(&instructions, PERCENTS[2])?,
            ],
            mean: instructions.iter().sum::<f64>() / instructions.len() as f64,
            median: Sample {
                instructions: percentile(&instructions, 50)?,
                exits: (exits * 100.0).round() / 100.0,
            },
        })
    }
}

/// The percentile of sorted numbers: the nearest of them.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last * percent + 50) / 100).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(instructions: &[u64]) -> Vec<Sample> {
        let count = |&instructions| Count {
            instructions,
            exits: instructions % 7,
        };
        instructions
            .iter()
            .map(|instructions| Sample::from(count(instructions)))
            .collect()
    }

    #[test]
    fn percentiles_and_the_mean() {
        // The order does not matter. One number is far off: it only changes the mean.
        let mut numbers: Vec<u64> = (0..=100).rev().collect();
        numbers[0] = 10_100;
        let statistics = Statistics::of(&samples(&numbers)).unwrap();
        assert_eq!(statistics.percentiles, [10.0, 50.0, 90.0]);
        assert!((statistics.mean - 50.0 - 10_000.0 / 101.0).abs() < 1e-9);
        assert_eq!(statistics.median.instructions, 50.0);
    }

    #[test]
    fn of_few_and_of_none() {
        let one = Statistics::of(&samples(&[9])).unwrap();
        assert_eq!((one.percentiles, one.mean), ([9.0; 3], 9.0));
        let two = Statistics::of(&samples(&[8, 4])).unwrap();
        assert_eq!((two.percentiles, two.mean), ([4.0, 8.0, 8.0], 6.0));
        assert_eq!(Statistics::of(&[]), None);
    }

    #[test]
    fn exits_have_a_median_of_their_own() {
        // The sample with the median of the instructions has 6 exits.
        let statistics = Statistics::of(&samples(&[70, 76, 78])).unwrap();
        assert_eq!(statistics.median.instructions, 76.0);
        assert_eq!(statistics.median.exits, 1.0);
    }

    #[test]
    fn a_part_of_each() {
        let [all, one] = [samples(&[1_007])[0], samples(&[7])[0]];
        let each = all.each(one, 1_000);
        assert_eq!(each.instructions, 1.0);
        let statistics = Statistics::of(&[each]).unwrap();
        assert_eq!(statistics.median.exits, 0.01);
    }
}
