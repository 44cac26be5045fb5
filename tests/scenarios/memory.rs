// SPDX-License-Identifier: GPL-2.0

//! What a module takes of the guest's memory: its own sections, and what it has allocated.
//!
//! Sums such as those of `/proc/slabinfo` also have in them what the kernel keeps in store, and what it needs for any
//! module and for the daemons. So the guest's kernel traces each allocation with the functions that led to it: where
//! the module's are among them it is the module's, until it is freed. That is exact, and the most that is held at any
//! time is seen, however short that is.

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

/// The lines of the table, in the order of [`Bytes`].
pub const ROWS: [&str; 4] = ["text", "data", "allocated at rest", "allocated at its peak"];

/// What one module takes, by row.
type Bytes = [u64; ROWS.len()];

/// Which of them is what is allocated at rest.
const AT_REST: usize = 2;

/// Of what a module held at rest, one of so many bytes may seem to be left after it: the kernel keeps some for what
/// comes next.
const MOST_LEFT: u64 = 500;

/// What both modules take.
pub struct Memory {
    rust: Bytes,
    c: Bytes,
    /// What file copy adds to what this module allocates at rest, which is not in the rows.
    pub file_copy: u64,
}

impl Memory {
    /// Boots guests for it. Nothing in them depends on chance, so one of each is enough.
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

    /// By row: its name, what this module takes, and what its peer does.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        let both = self.rust.into_iter().zip(self.c);
        ROWS.into_iter()
            .zip(both)
            .map(|(row, (rust, c))| (row, rust, c))
    }
}

/// What a module takes that serves these services.
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

    // Whatever a module has allocated is freed with it; if not, not all was traced.
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

/// One of each that both modules serve, and at last two that wait for their daemons at the same time.
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

/// Has the kernel trace what is allocated, with the functions that led to it, and what is freed.
const START: &str = "\
    cd /sys/kernel/tracing && echo 32768 >buffer_size_kb && \
    echo nooverwrite >trace_options && echo sym-offset >trace_options && \
    for event in kmem/kmalloc kmem/kmem_cache_alloc percpu/percpu_alloc_percpu; do \
        echo stacktrace >events/$event/trigger && echo 1 >events/$event/enable || exit; \
    done && \
    for event in kmem/kfree kmem/kmem_cache_free percpu/percpu_free_percpu; do \
        echo 1 >events/$event/enable || exit; \
    done";

/// When what waits for RCU is freed: leaves what was traced so far in a file, of functions only the module's, forgets
/// it, and prints how long the file is.
const TAKE: &str = "\
    echo 1 >/sys/module/rcutree/parameters/do_rcu_barrier && cd /sys/kernel/tracing && echo 0 >tracing_on && \
    grep -E ' [a-z_]+(alloc|free|percpu): |\\[hv_utils\\]' trace >/tmp/trace; \
    grep -h dropped per_cpu/*/stats >>/tmp/trace; : >trace; echo 1 >tracing_on; wc -c </tmp/trace";

/// By what a trace tells the module's functions from others.
const OWN: &str = "[hv_utils]";

/// What was traced since it was last asked for.
fn take(guest: &Guest) -> Result<String> {
    /// As much as the agent can print at once, and some room.
    const PIECE: usize = 1 << 20;
    let length = guest.sh_ok(TAKE)?;
    let length: usize = length
        .trim()
        .parse()
        .map_err(|_| format!("wc says {length:?}"))?;
    let mut text = String::new();
    for piece in 0..length.div_ceil(PIECE) {
        // A last line feed would be taken off, but for the dot.
        let dd = format!("dd if=/tmp/trace bs={PIECE} skip={piece} count=1 2>/dev/null; echo .");
        text += guest.sh_ok(&dd)?.trim_end_matches('.');
    }
    Ok(text)
}

/// What a module has allocated and not freed.
#[derive(Default)]
struct Ledger {
    /// Bytes by address.
    live: HashMap<String, u64>,
    /// All of these.
    held: u64,
    /// The most that was held.
    most: u64,
}

impl Ledger {
    /// Reads what [`TAKE`] prints. The functions that led to an allocation come after its line.
    fn read(&mut self, text: &str) -> Result<()> {
        let mut allocation = None;
        for line in text.lines() {
            if let Some(dropped) = line.strip_prefix("dropped events: ") {
                if dropped != "0" {
                    return Err(format!("the trace had no room for {dropped} events").into());
                }
            }
            if let Some(Event { address, bytes }) = Event::parse(line) {
                // Whatever comes to an address, what was there is no more.
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

/// A line of the trace: something is allocated, or freed.
struct Event<'a> {
    address: &'a str,
    /// So many are allocated there, else what is there is freed.
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
        // The same once more: an address has one owner.
        ledger.read(text).unwrap();
        assert_eq!(ledger.held, 96);
        let text = "a-1 [000] ..... 2.0: percpu_alloc_percpu: call_site=g+0x1/0x2 [hv_utils] ptr=0d bytes_alloc=16\n";
        ledger.read(text).unwrap();
        assert_eq!(ledger.held, 112);
        ledger.read("dropped events: 3\n").unwrap_err();
    }
}
