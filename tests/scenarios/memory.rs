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
use crate::runner::Options;
use crate::scenario::Context;

/// The lines of the table, in the order of [`Bytes`].
pub const ROWS: [&str; 7] = [
    "text",
    "data",
    "freed once inserted",
    "slab at rest",
    "slab at its peak",
    "percpu at rest",
    "percpu at its peak",
];

/// What one module takes, by row.
type Bytes = [u64; ROWS.len()];

/// Which of them is the slab allocator's at rest.
const SLAB_AT_REST: usize = 3;

/// Of what a module held at rest, one of so many bytes may seem to be left after it: the kernel keeps some for what
/// comes next.
const MOST_LEFT: u64 = 500;

/// What both modules take.
pub struct Memory {
    rust: Bytes,
    c: Bytes,
    /// What file copy adds to this module's slab at rest, which is not in the rows.
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
        let file_copy = all[SLAB_AT_REST] - rust[SLAB_AT_REST];
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
    let (slab, percpu) = (ledger.slab.held, ledger.percpu.held);

    (ledger.slab.most, ledger.percpu.most) = (slab, percpu);
    transactions(&context, kvp, vss)?;
    ledger.read(&take(&guest)?)?;
    let (slab_most, percpu_most) = (ledger.slab.most, ledger.percpu.most);
    let sections = Sections::of(&guest, module)?;

    // Whatever a module has allocated is freed with it; if not, not all was traced.
    daemon::end(&guest)?;
    guest.rmmod()?;
    ledger.read(&take(&guest)?)?;
    let left = ledger.slab.held + ledger.percpu.held;
    let name = module.name();
    println!("# memory, {name}: {slab} bytes at rest, {slab_most} at most, {left} after rmmod");
    let traced = ledger.slab.events > 0 && ledger.percpu.events > 0;
    if !traced || slab == 0 || left > slab / MOST_LEFT {
        return Err(format!("memory, {name}: not all allocations were traced").into());
    }
    Ok([
        sections.text,
        sections.data,
        sections.init,
        slab,
        slab_most,
        percpu,
        percpu_most,
    ])
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
    slab: Account,
    percpu: Account,
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
            if let Some(event) = Event::parse(line) {
                self.account(event.percpu).free(event.address);
                self.account(event.percpu).events += 1;
                allocation = event.bytes.map(|bytes| (event, bytes));
            }
            if let Some((event, bytes)) = allocation.take_if(|_| line.contains(OWN)) {
                self.account(event.percpu).allocate(event.address, bytes);
            }
        }
        Ok(())
    }

    fn account(&mut self, percpu: bool) -> &mut Account {
        match percpu {
            true => &mut self.percpu,
            false => &mut self.slab,
        }
    }
}

/// What is held of one kind of memory.
#[derive(Default)]
struct Account {
    /// Bytes by address.
    live: HashMap<String, u64>,
    /// All of these.
    held: u64,
    /// The most that was held.
    most: u64,
    /// How much was traced, the module's or not.
    events: u64,
}

impl Account {
    fn allocate(&mut self, address: &str, bytes: u64) {
        self.live.insert(address.to_owned(), bytes);
        self.held += bytes;
        self.most = self.most.max(self.held);
    }

    /// Whatever comes to an address, what was there is no more.
    fn free(&mut self, address: &str) {
        self.held -= self.live.remove(address).unwrap_or(0);
    }
}

/// A line of the trace: something is allocated, or freed.
struct Event<'a> {
    percpu: bool,
    address: &'a str,
    /// So many are allocated there, else what is there is freed.
    bytes: Option<u64>,
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (_, event) = line.split_once(": ")?;
        let (name, fields) = event.split_once(": ")?;
        let field = |name| {
            fields
                .split(' ')
                .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        Some(Self {
            percpu: name.contains("percpu"),
            address: field("ptr")?,
            bytes: field("bytes_alloc").and_then(|bytes| bytes.parse().ok()),
        })
    }
}

/// Bytes of a module's file that are in memory once it is inserted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sections {
    /// What is executed.
    text: u64,
    /// What is not.
    data: u64,
    /// What is freed when the module has begun.
    init: u64,
}

impl Sections {
    fn of(guest: &Guest, module: Module) -> Result<Self> {
        let path = format!("/modules/{}/hv_utils.ko", module.name());
        let dump = guest.sh_ok(&format!("od -v -A n -t x1 {path}"))?;
        let file: Vec<u8> = dump
            .split_whitespace()
            .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
            .collect();
        Self::parse(&file).ok_or_else(|| format!("{path} is no module").into())
    }

    /// Reads an ELF file of 64 bits, and takes the sections that the kernel's module loader keeps.
    fn parse(file: &[u8]) -> Option<Self> {
        /// In a section's flags: it is loaded.
        const ALLOC: u64 = 2;
        /// It is executed.
        const EXECUTED: u64 = 4;
        // What the loader itself reads is not kept.
        let kept = |name: &[u8]| !name.starts_with(b".modinfo") && !name.starts_with(b"__version");
        let number = |at: u64, bytes: u64| {
            let field = file.get(at as usize..(at + bytes) as usize)?;
            Some(
                field
                    .iter()
                    .rev()
                    .fold(0, |sum, byte| (sum << 8) | u64::from(*byte)),
            )
        };
        let (first, each, count) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?);
        let names = number(first + number(0x3e, 2)? * each + 0x18, 8)?;
        let mut sections = Self::default();
        for section in (0..count).map(|index| first + index * each) {
            let name = file.get((names + number(section, 4)?) as usize..)?;
            let (flags, size) = (number(section + 8, 8)?, number(section + 0x20, 8)?);
            if flags & ALLOC == 0 || !kept(name) {
                continue;
            }
            if name.starts_with(b".init") {
                sections.init += size;
            } else if flags & EXECUTED != 0 {
                sections.text += size;
            } else {
                sections.data += size;
            }
        }
        Some(sections)
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
        assert_eq!((ledger.slab.held, ledger.slab.most), (96, 104));
        // The same once more: an address has one owner.
        ledger.read(text).unwrap();
        assert_eq!(ledger.slab.held, 96);
        assert_eq!((ledger.slab.events, ledger.percpu.events), (10, 0));
        let text = "a-1 [000] ..... 2.0: percpu_alloc_percpu: call_site=g+0x1/0x2 [hv_utils] ptr=0a bytes_alloc=16\n";
        ledger.read(text).unwrap();
        assert_eq!((ledger.slab.held, ledger.percpu.held), (96, 16));
        ledger.read("dropped events: 3\n").unwrap_err();
    }

    #[test]
    fn adds_up_sections() {
        /// Name, flags, size.
        const SECTIONS: [(&str, u8, u8); 7] = [
            ("", 0, 0),
            (".text", 6, 10),
            (".data", 3, 20),
            (".rodata", 2, 30),
            (".init.text", 6, 40),
            (".modinfo", 2, 50),
            (".names", 0, 60),
        ];
        let mut file = vec![0; 0x40 * (1 + SECTIONS.len())];
        (file[0x28], file[0x3a], file[0x3c], file[0x3e]) = (0x40, 0x40, 7, 6);
        let names = file.len();
        for (index, (name, flags, size)) in SECTIONS.iter().enumerate() {
            let header = 0x40 * (1 + index);
            file[header] = (file.len() - names) as u8;
            (file[header + 8], file[header + 0x20]) = (*flags, *size);
            file.extend(name.bytes().chain([0]));
        }
        file[0x40 * 7 + 0x18..0x40 * 7 + 0x1a].copy_from_slice(&(names as u16).to_le_bytes());
        let (text, data, init) = (10, 50, 40);
        assert_eq!(Sections::parse(&file), Some(Sections { text, data, init }));
        assert_eq!(Sections::parse(&file[..0x200]), None);
    }
}
