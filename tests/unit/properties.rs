// SPDX-License-Identifier: GPL-2.0

//! Properties of the module's pure code (`drivers/hv/icmsg`), for any input. Inputs are valid messages of the emulated
//! host, mutated. The standard library parses the same bytes for comparison.
//!
//! Each input derives from a number, the first one from `HV_FUZZ_SEED` (1). So the number of a failing input repeats
//! the failure at once. Each property gets `INPUTS` inputs. With `HV_FUZZ_SECONDS` all properties together run for that
//! time.

#[path = "../../drivers/hv/icmsg/mod.rs"]
#[allow(dead_code)]
mod icmsg;

mod fcopy;
mod framing;
mod input;
mod kvp;
mod shutdown_and_heartbeat;
mod text;
mod timesync;
mod vss;

use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use host::fuzz::Random;

/// The number of inputs of each property, without `HV_FUZZ_SECONDS`.
const INPUTS: u64 = 300_000;

/// Makes an input from random numbers. Panics if the property does not hold.
type Property = fn(&mut Random);

/// All properties with their names.
const PROPERTIES: [(&str, Property); 9] = [
    ("framing", framing::framing),
    ("negotiation", framing::negotiation),
    ("text", text::texts),
    ("kvp_to_daemon", kvp::to_daemon),
    ("kvp_from_daemon", kvp::from_daemon),
    ("vss", vss::messages),
    ("fcopy", fcopy::to_daemon),
    ("timesync", timesync::times),
    (
        "shutdown_and_heartbeat",
        shutdown_and_heartbeat::shutdown_and_heartbeat,
    ),
];

/// The number of the current input.
static SEED: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let first = number("HV_FUZZ_SEED").unwrap_or(1);
    let time = number("HV_FUZZ_SECONDS")
        .map(|seconds| Duration::from_secs(seconds) / PROPERTIES.len() as u32);
    std::panic::set_hook(Box::new(|panic| {
        println!("HV_FUZZ_SEED={}: {panic}", SEED.load(Relaxed));
    }));
    let (mut failed, mut inputs) = (0, 0);
    let begin = Instant::now();
    for (name, property) in PROPERTIES {
        let start = Instant::now();
        let goes_on = |done| match time {
            // Reading the clock takes as long as some inputs do.
            Some(time) => done % 1024 != 0 || start.elapsed() < time,
            None => done < INPUTS,
        };
        let result = catch_unwind(|| {
            let mut done = 0;
            while goes_on(done) {
                let seed = first.wrapping_add(done);
                SEED.store(seed, Relaxed);
                property(&mut Random::new(seed));
                done += 1;
            }
            done
        });
        match result {
            Ok(done) => {
                inputs += done;
                println!("ok - properties: {name} ({})", rate(done, start.elapsed()));
            }
            Err(_) => {
                failed += 1;
                println!("not ok - properties: {name}");
            }
        }
    }
    println!(
        "# properties: {}, seeds from {first}",
        rate(inputs, begin.elapsed())
    );
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Describes a number of inputs and their rate.
fn rate(inputs: u64, took: Duration) -> String {
    let millions = inputs as f64 / took.as_secs_f64() * 60.0 / 1e6;
    format!("{inputs} inputs, {millions:.1} million a minute")
}
