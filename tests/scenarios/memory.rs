// SPDX-License-Identifier: GPL-2.0

//! The memory of a module: its sections, and its allocations.
//!
//! Sums such as those of `/proc/slabinfo` also have the kernel's reserves, and the memory for the module loader and the
//! daemons. So the guest's kernel traces each allocation with its call stack. If a function of the module is on the
//! stack, the allocation counts as the module's until it is freed. This is exact, and shows even a short peak.

use std::collections::HashMap;

use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::ic::heartbeat;
use host::ic::kvp;
use host::ic::timesync;
use host::ic::vss;
use host::ic::S_OK;
use host::service::Service;

use crate::bench::SERVICES;
use crate::daemon;
use crate::daemon::Talk;
use crate::elf::Elf;
use crate::runner::Options;
use crate::scenario::Context;

/// The rows of the table, in the order of [`Bytes`].
pub const ROWS: [&str; 4] = ["text", "data", "allocated at rest", "allocated at its peak"];

/// The bytes of one module, by row.
type Bytes = [u64; ROWS.len()];

/// The index of the row "allocated at rest".
const AT_REST: usize = 2;

/// One byte of this many may seem to be left after the module's removal. The kernel keeps some memory for later use, such as
/// dentries, and does not trace all frees. kmemleak finds leaks, in the scenario `leaks`.
const MOST_LEFT: u64 = 30;

/// The memory of both modules.
pub struct Memory {
    rust: Bytes,
    c: Bytes,
    /// What file copy adds to this module's allocations at rest. The rows are without it.
    pub file_copy: u64,
}

impl Memory {
    /// Boots a guest for each module, and measures. One each is enough: the figures do not depend on chance.
    pub fn measure(options: &Options) -> Result<Self> {
        let rust = bytes(options, Module::Rust, &SERVICES)?;
        let c = bytes(options, Module::C, &SERVICES)?;
        let all = bytes(
            options,
            Module::Rust,
            &[&SERVICES[..], &[Service::FCopy]].concat(),
        )?;
        let file_copy = all[AT_REST] - rust[AT_REST];
        Ok(Self { rust, c, file_copy })
    }

    /// For each row: its name, the bytes of this module, and the bytes of its peer.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        let both = self.rust.into_iter().zip(self.c);
        ROWS.into_iter()
            .zip(both)
            .map(|(row, (rust, c))| (row, rust, c))
    }
}

/// Measures a module that serves these services.
fn bytes(options: &Options, module: Module, services: &[Service]) -> Result<Bytes> {
    let mut config = options.config();
    config.services = services.to_vec();
    let guest = Guest::boot(&config)?;
    let context = Context::new(&guest, module);
    daemon::prepare(&guest)?;
    for &service in services {
        guest.channel(service).script()?;
    }

    guest.sh_ok(START)?;
    guest.insmod(module)?;
    for &service in services {
        guest.channel(service).wait_open()?;
    }
    for service in [Service::Heartbeat, Service::Shutdown, Service::TimeSync] {
        guest.channel(service).negotiate_all()?;
    }
    let kvp = Talk::begin(&context, Service::Kvp, daemon::KVP)?;
    let vss = Talk::begin(&context, Service::Vss, daemon::VSS)?;
    let mut ledger = Ledger::default();
    ledger.read(&take(&guest)?)?;
    let rest = ledger.held;

    ledger.most = rest;
    transactions(&context, kvp, vss)?;
    ledger.read(&take(&guest)?)?;
    let most = ledger.most;
    let path = format!("/modules/{}/hv_utils.ko", module.name());
    let kept = Elf::read(&guest, &path)?.kept();

    // The removal frees all that the module has allocated. If something seems left, the trace is incomplete.
    daemon::end(&guest)?;
    guest.rmmod()?;
    ledger.read(&take(&guest)?)?;
    let (name, left) = (module.name(), ledger.held);
    println!("# memory, {name}: {rest} bytes at rest, {most} at most, {left} after rmmod");
    if rest == 0 || left > rest / MOST_LEFT {
        return Err(format!("memory, {name}: not all allocations were traced").into());
    }
    Ok([kept.text, kept.data, rest, most])
}

/// One transaction of each kind that both modules serve. At the end, two that wait for their daemons at the same time.
fn transactions(t: &Context<'_>, kvp: Talk<'_>, vss: Talk<'_>) -> Result<()> {
    let beats = Talk::with(t, Service::Heartbeat);
    beats.ask(heartbeat::body(0, heartbeat::RESERVED))?;
    let clock = Talk::with(t, Service::TimeSync);
    let version = clock.channel.negotiate_all()?.message;
    clock.ask(timesync::body(version, &t.moment(), timesync::SAMPLE))?;

    let set = kvp::set(kvp::EXTERNAL, "Key", "Value");
    kvp.expect("SET", set.clone(), S_OK)?;
    kvp.expect("GET", kvp::get(kvp::EXTERNAL, "Key"), S_OK)?;
    kvp.expect("ENUMERATE", kvp::enumerate(kvp::EXTERNAL, 0), S_OK)?;
    vss.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    vss.expect("THAW", vss::body(vss::THAW), S_OK)?;

    daemon::KVP.stop(t)?;
    daemon::VSS.stop(t)?;
    let set = kvp.pend(set)?;
    let backup = vss.pend(vss::body(vss::HOT_BACKUP))?;
    daemon::KVP.resume(t)?;
    daemon::VSS.resume(t)?;
    kvp.promptly("SET", &set, S_OK)?;
    vss.promptly("HOT_BACKUP", &backup, S_OK).map(|_| ())
}

/// A command that lets the kernel trace allocations with their call stacks, and frees.
const START: &str = "\
    cd /sys/kernel/tracing && echo 32768 >buffer_size_kb && \
    echo nooverwrite >trace_options && echo sym-offset >trace_options && \
    for event in kmem/kmalloc kmem/kmem_cache_alloc percpu/percpu_alloc_percpu; do \
        echo stacktrace >events/$event/trigger && echo 1 >events/$event/enable || exit; \
    done && \
    for event in kmem/kfree kmem/kmem_cache_free percpu/percpu_free_percpu; do \
        echo 1 >events/$event/enable || exit; \
    done";

/// A command that waits until RCU has freed its objects, and moves the trace to a file. Of the call stacks, the file
/// only has the module's functions. Prints the length of the file.
const TAKE: &str = "\
    echo 1 >/sys/module/rcutree/parameters/do_rcu_barrier && cd /sys/kernel/tracing && echo 0 >tracing_on && \
    grep -E ' [a-z_]+(alloc|free|percpu): |\\[hv_utils\\]' trace >/tmp/trace; \
    grep -h dropped per_cpu/*/stats >>/tmp/trace; : >trace; echo 1 >tracing_on; wc -c </tmp/trace";

/// The mark of the module's functions in the trace.
const OWN: &str = "[hv_utils]";

/// The trace since the last call.
fn take(guest: &Guest) -> Result<String> {
    /// Less than the agent can print at once.
    const PIECE: usize = 1 << 20;
    let length = guest.sh_ok(TAKE)?;
    let length: usize = length
        .trim()
        .parse()
        .map_err(|_| format!("wc says {length:?}"))?;
    let mut text = String::new();
    for piece in 0..length.div_ceil(PIECE) {
        // The agent's output lacks a line feed at the end. The dot keeps it.
        let dd = format!("dd if=/tmp/trace bs={PIECE} skip={piece} count=1 2>/dev/null; echo .");
        text += guest.sh_ok(&dd)?.trim_end_matches('.');
    }
    Ok(text)
}

/// The allocations of a module that are not freed.
#[derive(Default)]
struct Ledger {
    /// Bytes by address.
    live: HashMap<String, u64>,
    /// The sum of all bytes.
    held: u64,
    /// The peak of `held`.
    most: u64,
}

impl Ledger {
    /// Reads a trace of [`TAKE`]. The call stack of an allocation follows its line.
    fn read(&mut self, text: &str) -> Result<()> {
        let mut allocation = None;
        for line in text.lines() {
            if let Some(dropped) = line.strip_prefix("dropped events: ") {
                if dropped != "0" {
                    return Err(format!("the trace had no room for {dropped} events").into());
                }
            }
            if let Some(Event { address, bytes }) = Event::parse(line) {
                // Any event at an address means that the former allocation there is gone.
                self.held -= self.live.remove(address).unwrap_or(0);
                allocation = bytes.map(|bytes| (address, bytes));
            }
            if let Some((address, bytes)) = allocation.take_if(|_| line.contains(OWN)) {
                self.live.insert(address.to_owned(), bytes);
                self.held += bytes;
                self.most = self.most.max(self.held);
            }
        }
        Ok(())
    }
}

/// A line of the trace: an allocation, or a free.
struct Event<'a> {
    address: &'a str,
    /// The size of the allocation. `None` for a free.
    bytes: Option<u64>,
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (_, event) = line.split_once(": ")?;
        let (_, fields) = event.split_once(": ")?;
        let field = |name| {
            fields
                .split(' ')
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Self {
            address: field("ptr")?,
            bytes: field("bytes_alloc").and_then(|bytes| bytes.parse().ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_what_is_allocated_and_freed() {
        let text = "\
             a-1 [000] ..... 1.5: kmalloc: call_site=f+0x1/0x2 ptr=0a bytes_req=90 bytes_alloc=96 node=-1\n \
             => g+0x3/0x4 [hv_utils]\n\
             a-1 [000] ..... 1.6: kmalloc: call_site=f+0x1/0x2 ptr=0b bytes_req=9 bytes_alloc=16 node=-1\n\
             a-1 [000] ..... 1.7: kfree: call_site=g+0x5/0x6 [hv_utils] ptr=0b\n\
             a-1 [000] ..... 1.8: kmalloc: call_site=g+0x1/0x2 [hv_utils] ptr=0c bytes_req=8 bytes_alloc=8 node=-1\n\
             a-1 [000] ..... 1.9: kmem_cache_free: call_site=f+0x1/0x2 ptr=0c name=x\n\
             dropped events: 0\n";
        let mut ledger = Ledger::default();
        ledger.read(text).unwrap();
        assert_eq!((ledger.held, ledger.most), (96, 104));
        // The same trace again: each address counts once.
        ledger.read(text).unwrap();
        assert_eq!(ledger.held, 96);
        let text = "a-1 [000] ..... 2.0: percpu_alloc_percpu: call_site=g+0x1/0x2 [hv_utils] ptr=0d bytes_alloc=16\n";
        ledger.read(text).unwrap();
        assert_eq!(ledger.held, 112);
        ledger.read("dropped events: 3\n").unwrap_err();
    }
}
