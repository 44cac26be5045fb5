// SPDX-License-Identifier: GPL-2.0

//! Inputs of properties, and a check of their changes.

use std::ops::Range;
use std::time::Instant;

use host::fuzz;
use host::fuzz::Mutation;
use host::fuzz::Random;
use host::ic::Moment;
use host::service::Service;

/// A valid body of the service, perhaps mutated.
pub(super) fn body(service: Service, random: &mut Random) -> Vec<u8> {
    let moment = Moment {
        instant: Instant::now(),
        reference: random.any() >> random.below(64),
        wall: host::ic::UNIX_EPOCH_1601.wrapping_add(random.any() >> random.below(64)),
    };
    let mut body = fuzz::body(service, &moment, random);
    mutate(&mut body, random);
    body
}

/// Applies up to three mutations.
pub(super) fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(4) {
        Mutation::apply(bytes, random);
    }
}

/// Panics if bytes outside `allowed` have changed.
pub(super) fn only_changed(before: &[u8], after: &[u8], allowed: &[Range<usize>]) {
    assert_eq!(before.len(), after.len());
    let mut from = 0;
    for part in allowed {
        let start = part.start.min(before.len());
        assert_eq!(before[from..start], after[from..start], "from {from} on");
        from = part.end.min(before.len());
    }
    assert_eq!(before[from..], after[from..], "from {from} on");
}
