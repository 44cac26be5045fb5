// SPDX-License-Identifier: GPL-2.0

//! Tools for fuzzers: random numbers, valid messages, mutations.

use std::net::IpAddr;
use std::net::Ipv4Addr;

use crate::ic::fcopy;
use crate::ic::heartbeat;
use crate::ic::kvp;
use crate::ic::shutdown;
use crate::ic::timesync;
use crate::ic::vss;
use crate::ic::Moment;
use crate::service::Service;
use crate::service::Version;

/// A flag that no shutdown request has. A guest refuses a request with it, and stays on.
pub const NO_SHUTDOWN: u8 = 0x80;

/// Pseudo-random numbers from a seed (xorshift64*).
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        // Zero would yield zeroes for ever.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1))
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.any() >> 33) as usize % limit.max(1)
    }

    /// True once in `count` times.
    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Any bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.any().to_le_bytes()[..part.len()]);
        }
    }
}

/// A text with characters of one to four UTF-8 bytes.
pub fn text(random: &mut Random) -> String {
    let length = random.of(&[0, 1, 7, 31, 127]);
    (0..length)
        .map(|_| random.of(&['a', '/', 'ü', '€', '😀']))
        .collect()
}

/// The body of a valid message of the service: any kind, any version.
pub fn body(service: Service, moment: &Moment, random: &mut Random) -> Vec<u8> {
    let pool = random.below(6) as u8;
    match service {
        Service::Shutdown => shutdown::body(u32::from(NO_SHUTDOWN), &text(random)),
        Service::TimeSync => {
            let version = random.of(&[(1, 0), (3, 0), (4, 0)]);
            let flags = random.of(&[timesync::SAMPLE, timesync::SYNC, 0]);
            let body = timesync::body(version, moment, flags);
            match version {
                (4, _) => {
                    let leap = random.of(&[0, 1, 2, 3, 255]);
                    timesync::with_quality(body, leap, random.of(&[0, 1, 15, 16, 255]))
                }
                _ => body,
            }
        }
        Service::Kvp => match random.below(6) {
            0 => kvp::get(pool, &text(random)),
            1 => kvp::set(pool, &text(random), &text(random)),
            2 => kvp::set_value(pool, &text(random), random.below(13) as u32, &[7; 8]),
            3 => kvp::delete(pool, &text(random)),
            4 => kvp::enumerate(pool, random.below(12) as u32),
            _ => {
                let version = random.of(&[(4, 0), (5, 0), (5, 0)]);
                addresses(version, random)
            }
        },
        Service::Vss => backup(random),
        Service::FCopy => match random.below(4) {
            0 => fcopy::start("/tmp/in/", &text(random), random.below(4) as u32, 100_000),
            1 => fcopy::write(random.below(100_000) as u64, &[7; 100]),
            2 => fcopy::end(fcopy::COMPLETE),
            _ => fcopy::end(fcopy::CANCEL),
        },
        Service::Heartbeat | Service::Echo | Service::Socket => {
            heartbeat::body(random.any(), heartbeat::RESERVED)
        }
    }
}

/// The body of a VSS request: any layout from 5.0 to 7.0, empty or filled.
fn backup(random: &mut Random) -> Vec<u8> {
    let operation = random.below(12) as u8;
    let mut body = vss::body(operation);
    let length = match operation {
        // 7.0 appends a time.
        vss::QUERY_CLUSTER => body.len() + random.of(&[0, 8]),
        vss::FREEZE | vss::THAW | vss::AUTO_RECOVER => random.of(&[body.len(), vss::LONGEST]),
        _ => body.len(),
    };
    body.resize(length, 0);
    if random.one_in(2) {
        random.fill(&mut body[8..]);
    }
    body
}

/// The body of a KVP request about addresses, in the layout of `version`. A guest reads it in the layout that was
/// negotiated.
pub fn addresses(version: Version, random: &mut Random) -> Vec<u8> {
    let adapter: String = text(random).chars().take(100).collect();
    if random.one_in(3) {
        return kvp::get_ip_info(version, &adapter);
    }
    let list = |room: usize, random: &mut Random| -> Vec<IpAddr> {
        // About 52 IPv6 addresses fill the longest text.
        let count = random.of(&[0, 1, 2, 5, room / 2, 52, room]).min(room);
        // IPv4 only, IPv6 only, or both.
        let families = random.of(&[&[4][..], &[6], &[4, 6]]);
        // Some addresses have a long run of zeroes, as real ones often do.
        let zeros = random.of(&[0, 0, 32, 60]);
        let mut address = || match random.of(families) {
            4 => IpAddr::V4((random.any() as u32).into()),
            _ => {
                let half = random.any() >> zeros;
                IpAddr::V6(((u128::from(random.any()) << 64) | u128::from(half)).into())
            }
        };
        (0..count).map(|_| address()).collect()
    };
    let joined = |list: &[String]| list.join(";");
    let texts = |list: &[IpAddr]| list.iter().map(IpAddr::to_string).collect::<Vec<_>>();
    let addresses = list(64, random);
    let subnets: Vec<_> = addresses
        .iter()
        .map(|address| match address {
            IpAddr::V4(_) => Ipv4Addr::from(u32::MAX << random.below(32)).to_string(),
            IpAddr::V6(_) => random.below(129).to_string(),
        })
        .collect();
    let info = kvp::Addresses {
        adapter: adapter.clone(),
        family: random.below(4) as u8,
        dhcp: random.one_in(2),
        addresses: joined(&texts(&addresses)),
        subnets: joined(&subnets),
        gateways: joined(&texts(&list(5, random))),
        name_servers: joined(&texts(&list(64, random))),
        origins: Vec::new(),
    };
    kvp::set_ip_info(version, &info).unwrap_or_else(|| kvp::get_ip_info(version, &adapter))
}

/// Ways to change a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    /// One bit flips.
    Bit,
    /// A field gets a special value.
    Field,
    /// The end is cut off.
    Short,
    /// Bytes are appended.
    Long,
    /// Bytes in the middle change.
    Bytes,
}

impl Mutation {
    /// The mutations with their weights: fields matter most.
    const ALL: [Self; 6] = [
        Self::Bit,
        Self::Field,
        Self::Field,
        Self::Short,
        Self::Long,
        Self::Bytes,
    ];

    /// The mutation's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bit => "bit",
            Self::Field => "field",
            Self::Short => "short",
            Self::Long => "long",
            Self::Bytes => "bytes",
        }
    }

    /// Changes a message, and returns how.
    pub fn apply(message: &mut Vec<u8>, random: &mut Random) -> Self {
        let length = message.len();
        let mutation = random.of(&Self::ALL);
        match mutation {
            Self::Bit if length > 0 => message[random.below(length)] ^= 1 << random.below(8),
            Self::Field if length >= 4 => {
                let at = random.below(length.min(64) - 3);
                let value = random.of(&[
                    0,
                    1,
                    length as u32,
                    0x7f,
                    0x80,
                    0xff,
                    0x7fff,
                    0xffff,
                    0x7fff_ffff,
                    0x8000_0000,
                    u32::MAX,
                ]);
                let size = random.of(&[1, 2, 4]);
                message[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
            Self::Short => message.truncate(random.below(length + 1)),
            Self::Long => {
                let more = random.of(&[1, 7, 8, 100, 4000]);
                message.resize(length + more, 0);
                random.fill(&mut message[length..]);
            }
            Self::Bytes => {
                let from = random.below(length);
                let to = from + random.below((length - from).min(64));
                random.fill(&mut message[from..to]);
            }
            // The message is too short for this mutation.
            Self::Bit | Self::Field => {}
        }
        mutation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_it_all() {
        let messages = |seed| -> Vec<Vec<u8>> {
            let mut random = Random::new(seed);
            let mut message = vec![7; 40];
            let mut each = || {
                Mutation::apply(&mut message, &mut random);
                message.clone()
            };
            (0..100).map(|_| each()).collect()
        };
        assert_eq!(messages(5), messages(5));
        assert_ne!(messages(5), messages(6));
    }

    #[test]
    fn each_way_is_taken_from_any_message() {
        let mut random = Random::new(0);
        for length in [0, 1, 3, 4, 100] {
            let mut ways = [0; 6];
            for _ in 0..1000 {
                ways[Mutation::apply(&mut vec![0; length], &mut random) as usize] += 1;
            }
            assert!(ways[..5].iter().all(|count| *count > 50), "{ways:?}");
        }
    }
}
