// SPDX-License-Identifier: GPL-2.0

//! File copy with `hv_fcopy_daemon`, the daemon that uses the character device.

use std::time::Duration;
use std::time::Instant;

use host::guest::Result;
use host::ic::fcopy;
use host::ic::E_DISK_FULL;
use host::ic::E_FAIL;
use host::ic::E_FILE_EXISTS;
use host::ic::E_INVALID_ARGUMENT;
use host::ic::E_NAME_TOO_LONG;
use host::ic::E_NOT_SUPPORTED;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon;
use crate::daemon::ShellDaemon;
use crate::daemon::Talk;
use crate::daemon::PROMPT;
use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;

/// The scenarios of this file. C's file copy has no character device any more.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("fcopy_copies_files", copies_files)
        .everywhere()
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_gigabyte", gigabyte)
        .machine(ROOMY)
        .daemons()
        .rust_only()
        .apart(),
    Scenario::new("fcopy_far_into_a_file", far_into_a_file)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_names", names).daemons().rust_only(),
    Scenario::new("fcopy_what_is_there", what_is_there)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_no_space", no_space)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_cancelled", cancelled)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_cancels_no_copy", cancels_no_copy)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_goes_on_after_an_error", goes_on_after_an_error)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_starts_amid_a_copy", starts_amid_a_copy)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_refuses", refuses)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_daemon_killed", daemon_killed)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_negotiates_amid_a_copy", negotiates_amid_a_copy)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_nothing_to_cancel", nothing_to_cancel)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_unread_start", unread_start)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_daemon_restarted", daemon_restarted)
        .daemons()
        .rust_only(),
    Scenario::new("fcopy_unbound_amid_a_copy", unbound_amid_a_copy)
        .daemons()
        .rust_only()
        .versions(),
    Scenario::new("fcopy_left_to_uio", left_to_uio)
        .daemons()
        .rust_only()
        .unloaded(),
];

/// A machine with memory for a large file: its files are in memory.
const ROOMY: Machine = Machine {
    name: "roomy",
    change: |config| config.memory = 2048,
};

fn begin<'a>(t: &'a Context<'_>) -> Result<Talk<'a>> {
    t.sh_ok("rm -rf /tmp/in; mkdir /tmp/in")?;
    Talk::begin(t, Service::FCopy, daemon::FCOPY)
}

/// Pseudo-random bytes that are the same in every run.
pub fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// The MD5 sum as `md5sum` prints it. The host does not run `md5sum`: a fork at times breaks the emulated processors of
/// a running guest.
fn md5(bytes: &[u8]) -> String {
    const SHIFTS: [[u32; 4]; 4] = [
        [7, 12, 17, 22],
        [5, 9, 14, 20],
        [4, 11, 16, 23],
        [6, 10, 15, 21],
    ];
    let table: Vec<u32> = (1..=64)
        .map(|index| (f64::from(index).sin().abs() * 4_294_967_296.0) as u32)
        .collect();
    let mut padded = bytes.to_vec();
    padded.push(0x80);
    padded.resize((bytes.len() + 9).next_multiple_of(64), 0);
    let end = padded.len() - 8;
    padded[end..].copy_from_slice(&(bytes.len() as u64 * 8).to_le_bytes());

    let mut sum: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    for block in padded.chunks_exact(64) {
        let word = |index: usize| {
            let at = index % 16 * 4;
            u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
        };
        let [mut a, mut b, mut c, mut d] = sum;
        for step in 0..64 {
            let (mixed, index) = match step / 16 {
                0 => ((b & c) | (!b & d), step),
                1 => ((d & b) | (!d & c), 5 * step + 1),
                2 => (b ^ c ^ d, 3 * step + 5),
                _ => (c ^ (b | !d), 7 * step),
            };
            let turned = a
                .wrapping_add(mixed)
                .wrapping_add(table[step])
                .wrapping_add(word(index))
                .rotate_left(SHIFTS[step / 16][step % 4]);
            (a, d, c, b) = (d, c, b, b.wrapping_add(turned));
        }
        for (sum, part) in sum.iter_mut().zip([a, b, c, d]) {
            *sum = sum.wrapping_add(part);
        }
    }
    host::bytes::hex(&sum.map(u32::to_le_bytes).concat())
}

/// Copies a file as a host does: START, a WRITE for each piece, COMPLETE.
pub fn copy(talk: Talk<'_>, folder: &str, name: &str, flags: u32, bytes: &[u8]) -> Result<()> {
    copy_watched(talk, folder, name, flags, bytes, |_| {})
}

/// As [`copy`], and calls `watch` after each piece with the number of copied bytes.
pub fn copy_watched(
    talk: Talk<'_>,
    folder: &str,
    name: &str,
    flags: u32,
    bytes: &[u8],
    mut watch: impl FnMut(usize),
) -> Result<()> {
    let start = fcopy::start(folder, name, flags, bytes.len() as u64);
    talk.expect("START", start, S_OK)?;
    for (index, piece) in bytes.chunks(fcopy::PIECE).enumerate() {
        let offset = index * fcopy::PIECE;
        talk.expect("WRITE", fcopy::write(offset as u64, piece), S_OK)?;
        watch(offset + piece.len());
    }
    talk.expect("COMPLETE", fcopy::end(fcopy::COMPLETE), S_OK)
        .map(|_| ())
}

/// Checks that the guest has the file with this content.
pub fn is_there(t: &Context<'_>, path: &str, bytes: &[u8]) -> Result<()> {
    let said = t.sh_ok(&format!(
        "md5sum <'{path}' | cut -d ' ' -f 1; stat -c %s '{path}'"
    ))?;
    t.equal(path, said, format!("{}\n{}", md5(bytes), bytes.len()))
}

/// The host copies files: empty, one byte, around the size of a piece, and large.
fn copies_files(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    t.log_has("FCopy IC version 1.1")?;
    copies(t, talk)
}

fn copies(t: &Context<'_>, talk: Talk<'_>) -> Result<()> {
    let piece = fcopy::PIECE;
    // With two processors and two layers of emulation, each request waits long for the other processor.
    let large = if t.config().vcpus == 1 {
        10_000_000
    } else {
        1_000_000
    };
    for length in [0, 1, piece - 1, piece, piece + 1, large] {
        let bytes = content(length);
        let name = format!("file{length}");
        let start = Instant::now();
        copy(talk, "/tmp/in/", &name, 0, &bytes)?;
        let took = start.elapsed();
        if length == large {
            println!("# {length} bytes in {:.1} s", took.as_secs_f64());
        }
        is_there(t, &format!("/tmp/in/{name}"), &bytes)?;
        t.sh_ok(&format!("rm /tmp/in/{name}"))?;
    }
    talk.finish()
}

/// The host copies 1 GiB. Compares the checksums of 64 parts.
fn gigabyte(t: &Context<'_>) -> Result<()> {
    const PARTS: usize = 64;
    const PART: usize = 1 << 24;
    let talk = begin(t)?;
    t.sh_ok("mount -t tmpfs -o size=1100m none /tmp/in")?;
    let size = (PARTS * PART) as u64;
    talk.expect("START", fcopy::start("/tmp/in/", "large", 0, size), S_OK)?;
    let begun = Instant::now();
    let mut bytes = content(PART);
    let mut sums = String::new();
    for part in 0..PARTS {
        // Each part differs.
        bytes.rotate_left(1);
        sums.push_str(&format!("{}  -\n", md5(&bytes)));
        for (index, piece) in bytes.chunks(fcopy::PIECE).enumerate() {
            let offset = part * PART + index * fcopy::PIECE;
            talk.expect("WRITE", fcopy::write(offset as u64, piece), S_OK)?;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "# 1 GiB in {took:.0} s: {:.1} MB/s",
        size as f64 / 1e6 / took
    );
    talk.expect("COMPLETE", fcopy::end(fcopy::COMPLETE), S_OK)?;
    let said = t.sh_within(
        &format!(
            "stat -c %s /tmp/in/large; for i in $(seq 0 {}); do \
             dd if=/tmp/in/large bs={PART} skip=$i count=1 2>/dev/null | md5sum; done",
            PARTS - 1
        ),
        Duration::from_secs(600),
    )?;
    t.equal(
        "size and checksums",
        said.text,
        format!("{size}\n{}", sums.trim_end()),
    )?;
    t.sh_ok("umount /tmp/in")?;
    talk.finish()
}

/// The offset of a piece does not fit in 32 bits. Bytes that were not written take no space.
fn far_into_a_file(t: &Context<'_>) -> Result<()> {
    const FAR: u64 = 5_000_000_001;
    let talk = begin(t)?;
    let bytes = content(1000);
    let size = FAR + bytes.len() as u64;
    talk.expect("START", fcopy::start("/tmp/in/", "file", 0, size), S_OK)?;
    talk.expect("WRITE", fcopy::write(FAR, &bytes), S_OK)?;
    talk.expect("COMPLETE", fcopy::end(fcopy::COMPLETE), S_OK)?;
    let said =
        t.sh_ok("stat -c %s /tmp/in/file; tail -c 1000 /tmp/in/file | md5sum; rm /tmp/in/file")?;
    t.equal(
        "size and content",
        said,
        format!("{size}\n{}  -", md5(&bytes)),
    )?;
    talk.finish()
}

/// Files with names in any script and of any length, and in folders that the daemon creates.
fn names(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for name in ["plain", "mit Leerzeichen", "Grüße", "файл", "文件", "😀"] {
        copy(talk, "/tmp/in/", name, 0, b"content")?;
        is_there(t, &format!("/tmp/in/{name}"), b"content")?;
    }
    copy(
        talk,
        "/tmp/in/ein/Ordner/für/",
        "Dateien",
        fcopy::CREATE_PATH,
        b"content",
    )?;
    is_there(t, "/tmp/in/ein/Ordner/für/Dateien", b"content")?;
    // Names and paths of the maximum length, and longer ones.
    let deep = ["文".repeat(40), "件".repeat(40), "名".repeat(20)].join("/");
    let deepest = format!("{}/{}", "件".repeat(85), "文".repeat(84));
    for (folder, name) in [
        ("", "n".repeat(255)),
        ("", "文".repeat(85)),
        (&*deep, "名".repeat(20)),
        (&*deepest, "n".to_owned()),
    ] {
        let folder = format!("/tmp/in/{folder}/");
        copy(talk, &folder, &name, fcopy::CREATE_PATH, b"content")?;
        is_there(t, &format!("{folder}{name}"), b"content")?;
    }
    let long = "文".repeat(86);
    for (folder, name) in [
        ("/tmp/in/".to_owned(), long.clone()),
        ("/tmp/in/".to_owned(), "n".repeat(256)),
        (format!("/tmp/in/{long}/"), "n".to_owned()),
        (format!("/tmp/in/{deepest}/nn/"), "n".to_owned()),
    ] {
        let start = fcopy::start(&folder, &name, fcopy::CREATE_PATH, 1);
        talk.expect("a name that is too long", start, E_NAME_TOO_LONG)?;
    }
    talk.finish()
}

/// An existing file is kept unless the host sets OVERWRITE. A missing folder is an error unless it sets CREATE_PATH.
fn what_is_there(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    copy(talk, "/tmp/in/", "file", 0, b"first, and longer")?;
    let again = fcopy::start("/tmp/in/", "file", 0, 6);
    talk.expect("START of a file that exists", again, E_FILE_EXISTS)?;
    is_there(t, "/tmp/in/file", b"first, and longer")?;
    copy(talk, "/tmp/in/", "file", fcopy::OVERWRITE, b"second")?;
    is_there(t, "/tmp/in/file", b"second")?;
    let missing = fcopy::start("/tmp/in/missing/", "file", 0, 6);
    talk.expect("START in a missing folder", missing, E_FAIL)?;
    talk.finish()
}

/// On a full disk WRITE fails with "disk full", and the host can cancel the copy. (The daemon notices when no byte of a
/// piece can be written.)
fn no_space(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    t.sh_ok("mount -t tmpfs -o size=12k none /tmp/in")?;
    talk.expect("START", fcopy::start("/tmp/in/", "file", 0, 100_000), S_OK)?;
    let bytes = content(fcopy::PIECE);
    let mut status = S_OK;
    for piece in 0..16 {
        let reply = talk.ask(fcopy::write(piece * fcopy::PIECE as u64, &bytes))?;
        status = reply.status;
        if status != S_OK {
            break;
        }
    }
    t.equal("status", status, E_DISK_FULL)?;
    talk.expect("CANCEL", fcopy::end(fcopy::CANCEL), S_OK)?;
    t.sh_ok("umount /tmp/in")?;
    talk.finish()
}

/// A cancelled copy leaves no file.
fn cancelled(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    talk.expect("START", fcopy::start("/tmp/in/", "file", 0, 100_000), S_OK)?;
    talk.expect("WRITE", fcopy::write(0, &content(fcopy::PIECE)), S_OK)?;
    t.sh_ok("[ -e /tmp/in/file ]")?;
    talk.expect("CANCEL", fcopy::end(fcopy::CANCEL), S_OK)?;
    t.sh_ok("[ ! -e /tmp/in/file ]")?;
    copy(talk, "/tmp/in/", "file", 0, b"content")?;
    is_there(t, "/tmp/in/file", b"content")?;
    talk.finish()
}

/// CANCEL without a running copy succeeds. It removes no file: neither older files nor completed ones.
fn cancels_no_copy(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    let cancel = || talk.expect("CANCEL", fcopy::end(fcopy::CANCEL), S_OK);
    cancel()?;
    t.sh_ok("echo before >/tmp/in/before")?;
    let again = fcopy::start("/tmp/in/", "before", 0, 6);
    talk.expect("START of a file that exists", again, E_FILE_EXISTS)?;
    cancel()?;
    copy(talk, "/tmp/in/", "file", 0, b"content")?;
    cancel()?;
    talk.expect("WRITE after it", fcopy::write(0, b"CONTENT"), E_FAIL)?;
    talk.expect("COMPLETE once more", fcopy::end(fcopy::COMPLETE), E_FAIL)?;
    is_there(t, "/tmp/in/before", b"before\n")?;
    is_there(t, "/tmp/in/file", b"content")?;
    talk.finish()?;
    daemon::FCOPY.kill(t)?;
    let request = talk
        .channel
        .request(fcopy::start("/tmp/in/", "next", 0, 1))?;
    talk.channel.send(&request)?;
    talk.promptly("START without a daemon", &request, E_FAIL)?;
    cancel().map(|_| ())
}

/// The host goes on after a WRITE that failed. Further WRITEs and COMPLETE fail.
fn goes_on_after_an_error(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    t.sh_ok("mount -t tmpfs -o size=4k none /tmp/in")?;
    let piece = content(4096);
    talk.expect("START", fcopy::start("/tmp/in/", "file", 0, 12288), S_OK)?;
    talk.expect("the first WRITE", fcopy::write(0, &piece), S_OK)?;
    talk.expect("the second", fcopy::write(4096, &piece), E_DISK_FULL)?;
    t.sh_ok("mount -o remount,size=64k /tmp/in")?;
    talk.expect("the third", fcopy::write(8192, &piece), E_FAIL)?;
    talk.expect("COMPLETE", fcopy::end(fcopy::COMPLETE), E_FAIL)?;
    talk.expect("CANCEL", fcopy::end(fcopy::CANCEL), S_OK)?;
    t.sh_ok("[ ! -e /tmp/in/file ] && umount /tmp/in")?;
    talk.finish()
}

/// The host starts a copy amid another. The unfinished file is removed.
fn starts_amid_a_copy(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    talk.expect("START", fcopy::start("/tmp/in/", "first", 0, 12288), S_OK)?;
    talk.expect("WRITE", fcopy::write(0, &content(4096)), S_OK)?;
    let invalid = fcopy::start("/tmp/in/", &"n".repeat(256), 0, 1);
    talk.expect("START of nothing", invalid, E_NAME_TOO_LONG)?;
    is_there(t, "/tmp/in/first", &content(4096))?;
    copy(talk, "/tmp/in/", "second", 0, b"content")?;
    t.sh_ok("[ ! -e /tmp/in/first ]")?;
    is_there(t, "/tmp/in/second", b"content")?;

    // The daemon dies before it has cancelled the earlier copy.
    talk.expect("START", fcopy::start("/tmp/in/", "third", 0, 12288), S_OK)?;
    daemon::FCOPY.stop(t)?;
    let request = talk.pend(fcopy::start("/tmp/in/", "fourth", 0, 1))?;
    daemon::FCOPY.kill(t)?;
    talk.promptly("START", &request, E_FAIL)?;
    daemon::FCOPY.start(t)?;
    copy(talk, "/tmp/in/", "fifth", 0, b"content")?;
    talk.finish()
}

/// A request that no host sends fails once. The copy goes on.
fn refuses(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    talk.expect("START", fcopy::start("/tmp/in/", "file", 0, 7), S_OK)?;
    for operation in [4, 5, u32::MAX] {
        talk.expect("another operation", fcopy::end(operation), E_NOT_SUPPORTED)?;
    }
    for length in [0, 4, 35] {
        let body = fcopy::end(fcopy::COMPLETE)[..length].to_vec();
        talk.expect("a short one", body, E_INVALID_ARGUMENT)?;
    }
    let short = fcopy::write(0, b"content")[..51].to_vec();
    talk.expect("a short WRITE", short, E_INVALID_ARGUMENT)?;
    for size in [6145u32, 0x8000_0000, u32::MAX] {
        let mut body = fcopy::write(0, b"content");
        body[48..52].copy_from_slice(&size.to_le_bytes());
        talk.expect("a piece that is too long", body, E_INVALID_ARGUMENT)?;
    }
    talk.expect("WRITE", fcopy::write(0, b"content"), S_OK)?;
    talk.expect("COMPLETE", fcopy::end(fcopy::COMPLETE), S_OK)?;
    is_there(t, "/tmp/in/file", b"content")?;
    talk.finish()
}

/// The daemon dies with a WRITE pending. The WRITE fails at once. The next daemon copies the next file.
fn daemon_killed(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    talk.expect("START", fcopy::start("/tmp/in/", "file", 0, 100_000), S_OK)?;
    daemon::FCOPY.stop(t)?;
    let request = talk.pend(fcopy::write(0, &content(fcopy::PIECE)))?;
    daemon::FCOPY.kill(t)?;
    talk.promptly("WRITE", &request, E_FAIL)?;
    talk.expect("nothing to cancel", fcopy::end(fcopy::CANCEL), S_OK)?;
    daemon::FCOPY.start(t)?;
    copy(talk, "/tmp/in/", "file", fcopy::OVERWRITE, b"content")?;
    is_there(t, "/tmp/in/file", b"content")?;
    talk.finish()
}

/// The host negotiates anew amid a copy. The unfinished file is removed: the host has forgotten the copy.
fn negotiates_amid_a_copy(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    talk.expect("START", fcopy::start("/tmp/in/", "file", 0, 100_000), S_OK)?;
    talk.expect("WRITE", fcopy::write(0, &content(fcopy::PIECE)), S_OK)?;
    talk.channel.negotiate_all()?;
    daemon::wait_for(t, "[ ! -e /tmp/in/file ]")?;
    copy(talk, "/tmp/in/", "file", 0, b"content")?;

    // A completed file stays.
    talk.channel.negotiate_all()?;
    copy(talk, "/tmp/in/", "other", 0, b"content")?;
    is_there(t, "/tmp/in/file", b"content")?;
    is_there(t, "/tmp/in/other", b"content")?;
    talk.finish()
}

/// Starts a daemon of before 2015. Once `/tmp/go` exists, it logs and refuses each operation that it is asked.
fn start_refusing(t: &Context<'_>) -> Result<ShellDaemon> {
    let octal = E_FILE_EXISTS
        .to_le_bytes()
        .map(|byte| format!("\\{byte:03o}"));
    let exists = octal.concat();
    t.sh_ok("rm -f /tmp/asked /tmp/go")?;
    let script = format!(
        "until [ -e /tmp/go ]; do sleep 0.02; done; \
         while dd bs=8192 count=1 2>/dev/null | head -c 4 >>/tmp/asked; do printf \"{exists}\" >&0; done"
    );
    ShellDaemon::start(t, "hv_fcopy", "\\000\\000\\000\\000", &script)
}

/// Checks that the daemon was asked these operations, and kills it.
fn end_refusing(t: &Context<'_>, daemon: ShellDaemon, operations: &str) -> Result<()> {
    let asked = t.sh_ok("od -An -v -tu4 /tmp/asked | tr -dc 0-9")?;
    t.equal("operations of the daemon", asked.as_str(), operations)?;
    daemon.kill(t)
}

/// A daemon that refused START is not asked to cancel the copy.
fn nothing_to_cancel(t: &Context<'_>) -> Result<()> {
    let daemon = start_refusing(t)?;
    t.sh_ok("touch /tmp/go")?;
    let talk = Talk::with(t, Service::FCopy);
    for _ in 0..2 {
        talk.channel.negotiate_all()?;
        let start = fcopy::start("/tmp/in/", "file", 0, 6);
        talk.expect("START", start, E_FILE_EXISTS)?;
    }
    end_refusing(t, daemon, "00")?;
    talk.finish()
}

/// A daemon that has not read START is not asked to cancel the copy.
fn unread_start(t: &Context<'_>) -> Result<()> {
    let daemon = start_refusing(t)?;
    let talk = Talk::with(t, Service::FCopy);
    talk.channel.negotiate_all()?;
    talk.pend(fcopy::start("/tmp/in/", "file", 0, 6))?;
    talk.channel.negotiate_all()?;
    t.sh_ok("touch /tmp/go")?;
    let start = fcopy::start("/tmp/in/", "other", 0, 6);
    talk.expect("START", start, E_FILE_EXISTS)?;
    end_refusing(t, daemon, "0")?;
    talk.finish()
}

/// A daemon that starts amid a copy gets no WRITE of it. The daemon of 2023 would write the piece to its own device,
/// and four zeros there are an answer.
fn daemon_restarted(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    talk.expect("START", fcopy::start("/tmp/in/", "file", 0, 4), S_OK)?;
    daemon::FCOPY.kill(t)?;
    daemon::FCOPY.start(t)?;
    talk.expect("WRITE", fcopy::write(0, &[0; 4]), E_FAIL)?;
    talk.expect("COMPLETE", fcopy::end(fcopy::COMPLETE), E_FAIL)?;
    copy(talk, "/tmp/in/", "other", 0, b"content")?;
    is_there(t, "/tmp/in/other", b"content")?;
    talk.finish()
}

/// The device is unbound amid a copy while the daemon hangs.
fn unbound_amid_a_copy(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    talk.expect("START", fcopy::start("/tmp/in/", "file", 0, 100_000), S_OK)?;
    daemon::FCOPY.stop(t)?;
    talk.pend(fcopy::write(0, &content(fcopy::PIECE)))?;
    let took = daemon::rebind(t, "unbind", Service::FCopy)?;
    t.check(took < PROMPT, &format!("unbinding took {took:?}"))?;
    daemon::FCOPY.kill(t)?;
    daemon::rebind(t, "bind", Service::FCopy)?;
    talk.channel.wait_open()?;
    let talk = begin(t)?;
    copy(talk, "/tmp/in/", "file", fcopy::OVERWRITE, b"content")?;
    is_there(t, "/tmp/in/file", b"content")?;
    talk.finish()
}

/// If the kernel has uio_hv_generic, the module leaves the device to it. The order of insertion does not matter. The
/// uio daemon copies the same files. With `fcopy_chardev=1` the driver that comes first gets the device.
fn left_to_uio(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::FCopy);
    let parameter = "/sys/module/hv_utils/parameters/fcopy_chardev";
    let driver = daemon::driver(Service::FCopy);
    t.load_with("")?;
    t.equal(
        "the default",
        t.sh_ok(&format!("cat {parameter}"))?.as_str(),
        "N",
    )?;
    t.sh_ok(&format!("[ ! -e {driver} ] && [ -e /dev/vmbus/hv_kvp ]"))?;
    t.check(!channel.is_open(), "the channel is not open")?;
    insert_uio(t)?;
    copies_over_uio(t)?;
    t.unload()?;
    t.load_with("")?;
    daemon::FCOPY_UIO.kill(t)?;
    copies_over_uio(t)?;
    t.unload()?;
    t.load()?;
    daemon::FCOPY_UIO.kill(t)?;
    copies_over_uio(t)?;
    remove_uio(t)?;
    t.equal(
        "the parameter",
        t.sh_ok(&format!("cat {parameter}"))?.as_str(),
        "Y",
    )?;
    t.sh_ok(&format!("! echo 0 >{parameter}"))?;
    daemon::rebind(t, "bind", Service::FCopy)?;
    channel.wait_open()?;
    // uio_hv_generic has left its rescind callback on the channel, but is gone. A rescind must not call it.
    channel.rescind()?;
    channel.wait_released()?;
    channel.reoffer()?;
    channel.wait_open()?;

    // The administrator gives the device to uio_hv_generic with driver_override.
    insert_uio(t)?;
    let id = Service::FCopy.instance();
    let give = format!(
        "cd /sys/bus/vmbus/devices/{id} && echo {id} >driver/unbind && echo {id} >/sys/bus/vmbus/drivers_probe"
    );
    t.sh_ok(&format!(
        "echo uio_hv_generic >/sys/bus/vmbus/devices/{id}/driver_override && {give}"
    ))?;
    copies_over_uio(t)?;
    remove_uio(t)?;
    t.sh_ok(&format!(
        "echo >/sys/bus/vmbus/devices/{id}/driver_override && echo {id} >/sys/bus/vmbus/drivers_probe"
    ))?;
    channel.wait_open()
}

fn insert_uio(t: &Context<'_>) -> Result<()> {
    t.sh_ok("insmod /modules/daemons/uio.ko && insmod /modules/daemons/uio_hv_generic.ko")
        .map(|_| ())
}

fn remove_uio(t: &Context<'_>) -> Result<()> {
    daemon::FCOPY_UIO.kill(t)?;
    t.sh_ok("rmmod uio_hv_generic uio").map(|_| ())
}

fn copies_over_uio(t: &Context<'_>) -> Result<()> {
    t.sh_ok("rm -rf /tmp/in; mkdir /tmp/in")?;
    daemon::FCOPY_UIO.start(t)?;
    let talk = Talk::with(t, Service::FCopy);
    talk.channel.wait_open()?;
    talk.channel.negotiate_all()?;
    copies(t, talk)
}
