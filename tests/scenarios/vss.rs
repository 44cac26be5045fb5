// SPDX-License-Identifier: GPL-2.0

//! Backups with the distribution's `hv_vss_daemon`, of an ext4 that is written to all the time.

use std::time::Duration;

use host::guest::Module;
use host::guest::Result;
use host::ic::frame::Message;
use host::ic::vss;
use host::ic::E_FAIL;
use host::ic::E_INVALID_ARGUMENT;
use host::ic::E_NOT_SUPPORTED;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon;
use crate::daemon::wait_for;
use crate::daemon::wait_said;
use crate::daemon::ShellDaemon;
use crate::daemon::Talk;
use crate::daemon::PROMPT;
use crate::hibernation;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// What the log says where nobody is left to thaw.
const HELP: &str = "fsfreeze --unfreeze MOUNTPOINT";
/// What it says of a daemon that cannot.
const FAILED: &str = "VSS: the daemon failed to thaw. Thaw: fsfreeze --unfreeze MOUNTPOINT";
/// What it says where the module sees to that.
const THAWS: &str = "VSS: having the daemon thaw";
/// What it says of a daemon that has died, or hangs.
const NO_ANSWER: &str = "VSS: no answer from the daemon";

/// All of a message to the module but its first byte, as `printf` wants it.
const ZEROES: &str = "\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000";

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("vss_backs_up", backs_up).daemons(),
    Scenario::new("vss_operations", operations).once().daemons(),
    Scenario::new("vss_unknown_operations", unknown_operations)
        .once()
        .daemons()
        .rust_only(),
    Scenario::new("vss_backup_flag", backup_flag)
        .once()
        .daemons()
        .rust_only(),
    // With C it is chance: the second request overwrites the first while the daemon works on that.
    Scenario::new("vss_queued_requests", queued_requests)
        .daemons()
        .rust_only(),
    Scenario::new("vss_log_is_limited", log_is_limited)
        .once()
        .daemons()
        .rust_only()
        .expects_log(&[NO_ANSWER, "callbacks suppressed"]),
    Scenario::new("vss_without_a_daemon", without_a_daemon)
        .once()
        .daemons(),
    Scenario::new("vss_old_daemon", old_daemon)
        .once()
        .daemons()
        .rust_only(),
    Scenario::new("vss_daemon_fails_to_thaw", daemon_fails_to_thaw)
        .daemons()
        .expects_log(&[THAWS, HELP]),
    Scenario::new("vss_daemon_that_does_not_read", daemon_that_does_not_read).daemons(),
    Scenario::new("vss_daemon_killed_while_frozen", daemon_killed_while_frozen)
        .daemons()
        .rust_only()
        .expects_log(&[HELP, THAWS]),
    Scenario::new(
        "vss_daemon_killed_over_a_freeze",
        daemon_killed_over_a_freeze,
    )
    .daemons()
    .expects_log(&[HELP, THAWS, NO_ANSWER]),
    Scenario::new(
        "vss_daemon_killed_before_a_freeze",
        daemon_killed_before_a_freeze,
    )
    .daemons()
    .expects_log(&[NO_ANSWER]),
    Scenario::new("vss_next_daemon_is_told_again", next_daemon_is_told_again)
        .daemons()
        .rust_only()
        .expects_log(&[HELP, THAWS]),
    Scenario::new("vss_hibernates_over_a_thaw", hibernates_over_a_thaw)
        .waits()
        .daemons()
        .rust_only()
        .expects_log(&["WARNING: kernel/smp.c", HELP, THAWS, NO_ANSWER]),
    Scenario::new("vss_negotiates_while_frozen", negotiates_while_frozen)
        .daemons()
        .rust_only()
        .expects_log(&[THAWS]),
    Scenario::new("vss_rescinded_while_frozen", rescinded_while_frozen)
        .daemons()
        .expects_log(&[HELP]),
    Scenario::new("vss_unbound_while_frozen", unbound_while_frozen)
        .daemons()
        .rust_only()
        .expects_log(&[HELP]),
    Scenario::new("vss_unbound_over_a_freeze", unbound_over_a_freeze)
        .daemons()
        .rust_only()
        .expects_log(&[HELP, NO_ANSWER]),
];

/// An ext4 on a disk, and a program that appends numbers to a file on it, one after another.
pub struct Disk<'a> {
    t: &'a Context<'a>,
}

impl<'a> Disk<'a> {
    /// Makes the file system, and starts the program: a shell that starts no programs of its own, and leaves the
    /// processor to others.
    pub fn new(t: &'a Context<'_>) -> Result<Self> {
        t.sh_ok(
            "mkfs.ext4 -q -F /dev/ram0 4M && mkdir -p /mnt && mount -t ext4 -o sync /dev/ram0 /mnt",
        )?;
        t.sh_ok(
            "rm -f /tmp/written; setsid sh -c 'renice -n 19 -p $$; echo $$ >/tmp/writer; i=0; while i=$((i + 1)); do \
             echo $i >>/mnt/log && echo $i >>/tmp/written; done' >/dev/null 2>&1 &",
        )?;
        let disk = Self { t };
        disk.is_written()?;
        Ok(disk)
    }

    /// The writer gets on.
    pub fn is_written(&self) -> Result<()> {
        self.t
            .sh_ok("touch /tmp/written; wc -l </tmp/written >/tmp/before")?;
        wait_for(
            self.t,
            "[ $(wc -l </tmp/written) -gt $(($(cat /tmp/before) + 2)) ]",
        )
    }

    /// The writer does not get on, and nothing on the disk changes.
    fn is_frozen(&self) -> Result<()> {
        let state = "wc -l </tmp/written; head -c 4M /dev/ram0 | crc32";
        let before = self.t.sh_ok(&format!("sleep 0.1; {state}"))?;
        let after = self.t.sh_ok(&format!("sleep 0.3; {state}"))?;
        self.t.equal("what was written", after, before)
    }

    /// Everything that was written is there, after a mount too.
    pub fn finish(&self) -> Result<()> {
        self.is_written()?;
        self.t.sh_ok(
            "kill -9 $(cat /tmp/writer); i=0; until umount /mnt; do i=$((i + 1)); [ $i -lt 100 ] || exit 1; \
             sleep 0.02; done 2>/dev/null; mount -t ext4 /dev/ram0 /mnt",
        )?;
        self.t.sh_ok(
            "last=$(wc -l </tmp/written) && awk -v last=$last '$1 != NR { exit 1 } \
             END { if (NR < last || NR > last + 1) exit 1 }' /mnt/log && umount /mnt",
        )?;
        Ok(())
    }
}

fn begin<'a>(t: &'a Context<'_>) -> Result<Talk<'a>> {
    Talk::begin(t, Service::Vss, daemon::VSS)
}

/// The message with which a daemon of this version registers.
fn hello(version: u8) -> String {
    format!("\\{version:03o}{ZEROES}")
}

/// Freezes, and makes sure of it.
pub fn freeze(talk: Talk<'_>, disk: &Disk<'_>) -> Result<()> {
    talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    disk.is_frozen()
}

/// A backup as a host does it, twice: nothing is written between FREEZE and THAW, and nothing is lost.
fn backs_up(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    let versions = talk.channel.negotiate_all()?;
    t.equal("version", versions.message, (5, 0))?;
    t.log_has("VSS IC version 5.0")?;
    t.log_has("VSS: userspace daemon ver. 129 connected")?;
    for _ in 0..2 {
        let reply = talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
        let flags = match t.module() {
            Module::Rust => vss::NO_AUTO_RECOVERY,
            Module::C => 0,
        };
        t.equal("flags", vss::flags(&reply.body), Some(flags))?;
        let reply = talk.expect("GET_DM_INFO", vss::body(vss::GET_DM_INFO), S_OK)?;
        t.equal("flags", vss::flags(&reply.body), Some(0))?;
        freeze(talk, &disk)?;
        talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
        disk.is_written()?;
    }
    talk.finish()?;
    disk.finish()
}

/// What Linux has nothing to do for succeeds.
fn operations(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for operation in [vss::CREATE, vss::DELETE, vss::BU_COMPLETE, vss::GET_DM_INFO] {
        talk.expect(
            &format!("operation {operation}"),
            vss::body(operation),
            S_OK,
        )?;
    }
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    talk.finish()
}

/// What it does not know, it says so.
fn unknown_operations(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for operation in [vss::AUTO_RECOVER, 8, 128, 129, 255] {
        talk.expect(
            &format!("operation {operation}"),
            vss::body(operation),
            E_NOT_SUPPORTED,
        )?;
    }
    for length in [0, 1, 8] {
        let body = vss::body(vss::FREEZE)[..length].to_vec();
        talk.expect(&format!("{length} bytes"), body, E_INVALID_ARGUMENT)?;
    }
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    talk.finish()
}

/// The answer to HOT_BACKUP says that what is backed up needs no recovery.
fn backup_flag(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    let reply = talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    t.equal(
        "flags",
        vss::flags(&reply.body),
        Some(vss::NO_AUTO_RECOVERY),
    )?;
    talk.finish()
}

/// What comes while a request is in work is answered after it, and neither is taken for the other.
fn queued_requests(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    let info = || talk.channel.request(vss::body(vss::GET_DM_INFO));
    for _ in 0..20 {
        let backup = talk.channel.request(vss::body(vss::HOT_BACKUP))?;
        let info = info()?;
        talk.channel.send_together(&[&backup, &info])?;
        talk.channel.signal()?;
        talk.promptly("HOT_BACKUP", &backup, S_OK)?;
        talk.promptly("GET_DM_INFO", &info, S_OK)?;
    }
    let offer = Message::negotiation(&[(3, 0)], &[(5, 0)], 99);
    let info = info()?;
    talk.channel.send_together(&[&offer, &info])?;
    talk.promptly("the negotiation", &offer, S_OK)?;
    talk.promptly("GET_DM_INFO", &info, S_OK)?;
    talk.finish()
}

/// A host that starts over amid each request fills no log.
fn log_is_limited(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    daemon::VSS.stop(t)?;
    for _ in 0..40 {
        let request = talk.channel.request(vss::body(vss::HOT_BACKUP))?;
        talk.channel.send(&request)?;
        talk.channel.negotiate_all()?;
    }
    let lines = t.sh_ok(&format!("dmesg | grep -c '{NO_ANSWER}'"))?;
    let lines: u32 = lines.trim().parse().unwrap_or(u32::MAX);
    t.check(
        (1..40).contains(&lines),
        &format!("{lines} lines are fewer than 40"),
    )?;
    daemon::VSS.kill(t)?;
    talk.finish()
}

/// Without a daemon there is a negotiation, and no backup.
fn without_a_daemon(t: &Context<'_>) -> Result<()> {
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    for operation in [vss::HOT_BACKUP, vss::FREEZE, vss::THAW] {
        talk.expect("without a daemon", vss::body(operation), E_FAIL)?;
    }
    daemon::VSS.start(t)?;
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    talk.finish()
}

/// A daemon of before 2013, which registers with 128, reads no reply to that, and answers everything with success.
fn old_daemon(t: &Context<'_>) -> Result<()> {
    let script = format!(
        "rm -f /tmp/asked; \
         while :; do dd bs=12 count=1 >>/tmp/asked; printf \"\\000{ZEROES}\" >&0; done"
    );
    let daemon = ShellDaemon::start(t, "hv_vss", &hello(128), &script)?;
    t.log_has("VSS: userspace daemon ver. 128 connected")?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    let reply = talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    t.equal(
        "flags",
        vss::flags(&reply.body),
        Some(vss::NO_AUTO_RECOVERY),
    )?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    t.equal(
        "what it was asked",
        t.sh_ok("tail -c 12 /tmp/asked | od -An -tu1 -N1 | tr -d ' '")?
            .as_str(),
        "6",
    )?;
    daemon.kill(t)?;
    talk.expect("without it", vss::body(vss::HOT_BACKUP), E_FAIL)?;
    talk.finish()
}

/// Starts a daemon that freezes and does not manage to thaw.
fn start_failing_to_thaw(t: &Context<'_>) -> Result<ShellDaemon> {
    let script = format!(
        "while operation=$(dd bs=12 count=1 2>/dev/null | od -An -tu1 -N1 | tr -d \" \"); do \
             [ \"$operation\" = 5 ] && status=000 || status=001; printf \"\\\\$status{ZEROES}\" >&0; \
         done"
    );
    ShellDaemon::registered(t, Service::Vss, &script)
}

/// A daemon that freezes and does not manage to thaw: host and administrator are told, the latter also where the host
/// does not ask.
fn daemon_fails_to_thaw(t: &Context<'_>) -> Result<()> {
    let daemon = start_failing_to_thaw(t)?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    talk.expect("THAW", vss::body(vss::THAW), 1)?;
    wait_said(t, FAILED)?;
    t.clear_kernel_log()?;
    talk.channel.negotiate_all()?;
    wait_said(t, FAILED)?;
    talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    daemon.kill(t)?;
    talk.finish()
}

/// A program that registers and then reads nothing keeps no request waiting.
fn daemon_that_does_not_read(t: &Context<'_>) -> Result<()> {
    let daemon = ShellDaemon::start(t, "hv_vss", &hello(129), "exec sleep 1000")?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), E_FAIL)?;
    daemon.kill(t)?;
    begin(t)?.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    talk.finish()
}

/// The daemon dies between FREEZE and THAW: the log says what to do, the host's THAW fails, the next daemon thaws.
fn daemon_killed_while_frozen(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    wait_said(t, HELP)?;
    talk.expect("THAW", vss::body(vss::THAW), E_FAIL)?;
    disk.is_frozen()?;
    daemon::VSS.start(t)?;
    disk.is_written()?;
    wait_said(t, "VSS: the daemon has thawed")?;

    // The same, and what the log says is done.
    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    t.sh_ok("fsfreeze --unfreeze /mnt")?;
    disk.is_written()?;
    daemon::VSS.start(t)?;
    talk.expect("THAW by the new daemon", vss::body(vss::THAW), S_OK)?;
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// The daemon dies over a FREEZE that it has read: nobody knows how far it came.
fn daemon_killed_over_a_freeze(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let hung = ShellDaemon::registered(t, Service::Vss, ShellDaemon::ANSWERS_NOTHING)?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    let request = talk.pend(vss::body(vss::FREEZE))?;
    wait_for(t, "[ -e /tmp/read ]")?;
    hung.kill(t)?;
    talk.promptly("FREEZE", &request, E_FAIL)?;
    wait_said(t, HELP)?;
    daemon::VSS.start(t)?;
    wait_said(t, "VSS: the daemon has thawed")?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// One that it has not read is not a freeze.
fn daemon_killed_before_a_freeze(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    daemon::VSS.stop(t)?;
    let request = talk.pend(vss::body(vss::FREEZE))?;
    daemon::VSS.kill(t)?;
    talk.promptly("FREEZE", &request, E_FAIL)?;
    daemon::VSS.start(t)?;
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    let log = t.kernel_log()?;
    for text in [HELP, THAWS] {
        t.check(
            !log.contains(text),
            &format!("the log does not say {text:?}"),
        )?;
    }
    talk.finish()
}

/// A daemon that was told to thaw, and did not manage: the next one is told again.
fn next_daemon_is_told_again(t: &Context<'_>) -> Result<()> {
    for host_asks in [false, true] {
        let daemon = start_failing_to_thaw(t)?;
        let talk = Talk::with(t, Service::Vss);
        talk.channel.negotiate_all()?;
        talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
        if host_asks {
            talk.expect("THAW", vss::body(vss::THAW), 1)?;
        } else {
            talk.channel.negotiate_all()?;
        }
        wait_said(t, FAILED)?;
        daemon.kill(t)?;
        daemon::VSS.start(t)?;
        wait_said(t, "VSS: the daemon has thawed")?;
        talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
        talk.finish()?;
        daemon::VSS.kill(t)?;
        t.clear_kernel_log()?;
    }
    Ok(())
}

/// A daemon hangs over what it was told, and the guest hibernates: the host's requests fail until there is another one,
/// and none stays unanswered.
fn hibernates_over_a_thaw(t: &Context<'_>) -> Result<()> {
    let answer = ShellDaemon::write("/tmp/success");
    let script = format!(
        "dd bs=12 count=1; {answer}; {}",
        ShellDaemon::ANSWERS_NOTHING
    );
    let daemon = ShellDaemon::registered(t, Service::Vss, &script)?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    talk.channel.negotiate_all()?;
    wait_for(t, "[ -e /tmp/read ]")?;
    hibernation::hibernate(t)?;
    talk.channel.wait_open()?;
    talk.channel.negotiate_all()?;
    let backup = talk.channel.request(vss::body(vss::HOT_BACKUP))?;
    talk.channel.send(&backup)?;
    talk.within("HOT_BACKUP", &backup, E_FAIL, Duration::from_secs(35))?;
    daemon.kill(t)?;
    daemon::VSS.start(t)?;
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    talk.finish()
}

/// A host that starts over has forgotten that file systems are frozen.
fn negotiates_while_frozen(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    talk.channel.negotiate_all()?;
    disk.is_written()?;
    wait_said(t, "VSS: the daemon has thawed")?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// The host takes the device away while file systems are frozen: the daemon thaws them.
fn rescinded_while_frozen(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    talk.channel.rescind()?;
    talk.channel.wait_released()?;
    disk.is_written()?;
    daemon::VSS.wait_gone(t)?;
    talk.channel.reoffer()?;
    talk.channel.wait_open()?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// So does the administrator, from a daemon that hangs.
fn unbound_while_frozen(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    daemon::VSS.stop(t)?;
    let took = daemon::rebind(t, "unbind", Service::Vss)?;
    t.check(took < PROMPT, &format!("unbinding took {took:?}"))?;
    wait_said(t, HELP)?;
    disk.is_frozen()?;
    daemon::VSS.resume(t)?;
    disk.is_written()?;
    daemon::VSS.wait_gone(t)?;
    daemon::rebind(t, "bind", Service::Vss)?;
    talk.channel.wait_open()?;
    disk.finish()
}

/// A daemon that has read a FREEZE may have done so, whatever comes of the device then.
fn unbound_over_a_freeze(t: &Context<'_>) -> Result<()> {
    let daemon = ShellDaemon::registered(t, Service::Vss, ShellDaemon::ANSWERS_NOTHING)?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    talk.pend(vss::body(vss::FREEZE))?;
    wait_for(t, "[ -e /tmp/read ]")?;
    daemon::rebind(t, "unbind", Service::Vss)?;
    wait_said(t, HELP)?;
    daemon.kill(t)?;
    daemon::rebind(t, "bind", Service::Vss)?;
    talk.channel.wait_open()
}
