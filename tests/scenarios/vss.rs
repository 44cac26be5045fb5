// SPDX-License-Identifier: GPL-2.0

//! Backups with the distribution's `hv_vss_daemon`. A program writes to the file system, an ext4, all the time.

use std::time::Duration;
use std::time::Instant;

use host::guest::Module;
use host::guest::Result;
use host::ic::frame::Message;
use host::ic::vss;
use host::ic::E_FAIL;
use host::ic::E_INVALID_ARGUMENT;
use host::ic::E_NOT_SUPPORTED;
use host::ic::S_OK;
use host::service::Service;

use crate::attributes::reads;
use crate::daemon;
use crate::daemon::wait_for;
use crate::daemon::wait_said;
use crate::daemon::ShellDaemon;
use crate::daemon::Talk;
use crate::daemon::PROMPT;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// The log text if the daemon has died while file systems are frozen.
pub const HELP: &str = "fsfreeze --unfreeze MOUNTPOINT";
/// The log text if the daemon fails to thaw.
const FAILED: &str = "VSS: the daemon failed: thawing without it";
/// The log text if the module thaws.
pub const THAWED: &str = "VSS: thawed ram0 (ext4)";
/// The log text if a file system was thawed during a backup.
pub const SPOILT: &str = "VSS: the backup is not consistent";
/// Time limit for a write after a thaw. It is shorter than all time-outs.
const SOON: Duration = Duration::from_secs(20);

/// The log text if the daemon has died or hangs.
pub const NO_ANSWER: &str = "VSS: no answer from the daemon";

/// All bytes but the first of a daemon's message, as a format of `printf`.
const ZEROES: &str = "\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000\\000";

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("vss_backs_up", backs_up)
        .everywhere()
        .daemons(),
    Scenario::new("vss_operations", operations).daemons(),
    Scenario::new("vss_unknown_operations", unknown_operations)
        .daemons()
        .rust_only(),
    Scenario::new("vss_protocols", protocols)
        .daemons()
        .rust_only(),
    Scenario::new("vss_backup_flag", backup_flag)
        .daemons()
        .rust_only(),
    // With C the result is chance: the second request overwrites the first, which the daemon works on.
    Scenario::new("vss_queued_requests", queued_requests)
        .daemons()
        .rust_only(),
    Scenario::new("vss_log_is_limited", log_is_limited)
        .daemons()
        .rust_only()
        .expects_log(&[NO_ANSWER, "callbacks suppressed"]),
    Scenario::new("vss_without_a_daemon", without_a_daemon).daemons(),
    Scenario::new("vss_old_daemon", old_daemon)
        .daemons()
        .rust_only(),
    Scenario::new("vss_daemon_fails_to_thaw", daemon_fails_to_thaw)
        .daemons()
        .rust_only()
        .expects_log(&[FAILED, "VSS: the daemon failed: THAW fails"]),
    Scenario::new("vss_daemon_that_does_not_read", daemon_that_does_not_read)
        .daemons()
        .expects_log(&[NO_ANSWER]),
    Scenario::new("vss_daemon_killed_while_frozen", daemon_killed_while_frozen)
        .daemons()
        .rust_only()
        .expects_log(&[HELP, SPOILT]),
    Scenario::new(
        "vss_daemon_killed_over_a_freeze",
        daemon_killed_over_a_freeze,
    )
    .daemons()
    .expects_log(&[NO_ANSWER]),
    Scenario::new(
        "vss_daemon_killed_before_a_freeze",
        daemon_killed_before_a_freeze,
    )
    .daemons()
    .expects_log(&[NO_ANSWER]),
    Scenario::new("vss_negotiates_while_frozen", negotiates_while_frozen)
        .daemons()
        .rust_only(),
    Scenario::new("vss_rescinded_while_frozen", rescinded_while_frozen)
        .daemons()
        .versions(),
    Scenario::new("vss_unbound_while_frozen", unbound_while_frozen)
        .daemons()
        .rust_only()
        .versions(),
    Scenario::new("vss_unbound_over_a_freeze", unbound_over_a_freeze)
        .daemons()
        .rust_only()
        .expects_log(&[NO_ANSWER]),
];

/// A file system on a disk, and a program, the writer, which appends numbers to a file on it.
pub struct Disk<'a> {
    t: &'a Context<'a>,
    /// The disk.
    device: String,
    /// The mount point.
    pub directory: String,
    /// The prefix of the writer's files in `/tmp`.
    name: String,
}

impl<'a> Disk<'a> {
    /// Creates an ext4 at `/mnt`.
    pub fn new(t: &'a Context<'_>) -> Result<Self> {
        Self::make(t, 0, "/mnt", "mkfs.ext4 -q -F", "4M", "ext4 -o sync")
    }

    /// Creates a further ext4, on the disk of that number, which is not 0.
    pub fn numbered(t: &'a Context<'_>, number: u32) -> Result<Self> {
        let directory = format!("/mnt{number}");
        Self::make(
            t,
            number,
            &directory,
            "mkfs.ext4 -q -F",
            "4M",
            "ext4 -o sync",
        )
    }

    /// Creates and mounts the file system, and starts the writer.
    pub fn make(
        t: &'a Context<'_>,
        number: u32,
        directory: &str,
        mkfs: &str,
        size: &str,
        mount: &str,
    ) -> Result<Self> {
        let device = format!("/dev/ram{number}");
        t.sh_ok(&format!(
            "{mkfs} {device} {size} && mkdir -p {directory} && mount -t {mount} {device} {directory}"
        ))?;
        Self::on(t, &device, directory, &format!("disk{number}"))
    }

    /// Starts the writer on a mounted file system. The writer is a shell with low priority, and starts no programs.
    pub fn on(t: &'a Context<'_>, device: &str, directory: &str, name: &str) -> Result<Self> {
        let disk = Self {
            t,
            device: device.to_owned(),
            directory: directory.to_owned(),
            name: format!("/tmp/{name}"),
        };
        let name = &disk.name;
        t.sh_ok(&format!(
            "rm -f {name}.written; setsid sh -c 'renice -n 19 -p $$; echo $$ >{name}.writer; i=0; \
             while i=$((i + 1)); do echo $i >>{directory}/log && echo $i >>{name}.written; done' >/dev/null 2>&1 &"
        ))?;
        disk.is_written()?;
        Ok(disk)
    }

    /// Checks that the writer makes progress within [`SOON`].
    pub fn is_written(&self) -> Result<()> {
        let name = &self.name;
        let since = Instant::now();
        self.t.sh_ok(&format!(
            "touch {name}.written; wc -l <{name}.written >{name}.before"
        ))?;
        wait_for(
            self.t,
            &format!("[ $(wc -l <{name}.written) -gt $(($(cat {name}.before) + 2)) ]"),
        )?;
        let took = since.elapsed();
        self.t.check(
            took < SOON,
            &format!("the writer took {took:?} until its next write"),
        )
    }

    /// Stops the writer.
    pub fn stop(&self) -> Result<()> {
        let name = &self.name;
        self.t
            .sh_ok(&format!("kill -STOP $(cat {name}.writer)"))
            .map(|_| ())
    }

    /// Continues the writer.
    pub fn resume(&self) -> Result<()> {
        let name = &self.name;
        self.t
            .sh_ok(&format!("kill -CONT $(cat {name}.writer)"))
            .map(|_| ())
    }

    /// Checks that the writer is blocked, and that the disk does not change.
    pub fn is_frozen(&self) -> Result<()> {
        let Self { name, device, .. } = self;
        wait_for(
            self.t,
            &format!("grep -q '^State:.D' /proc/$(cat {name}.writer)/status"),
        )?;
        let state = format!("wc -l <{name}.written; head -c 4194304 {device} | crc32");
        let before = self.t.sh_ok(&state)?;
        let after = self.t.sh_ok(&format!("sleep 0.3; {state}"))?;
        self.t.equal("the disk's content", after, before)
    }

    /// Checks that nothing written was lost, also after a remount. Unmounts, and checks that nobody keeps the disk.
    pub fn finish(&self) -> Result<()> {
        self.is_written()?;
        let Self {
            name,
            device,
            directory,
            ..
        } = self;
        self.t.sh_ok(&format!(
            "type=$(awk '$2 == \"{directory}\" {{ print $3 }}' /proc/mounts); kill -9 $(cat {name}.writer); i=0; \
             until umount {directory}; do i=$((i + 1)); [ $i -lt 100 ] || exit 1; \
             sleep 0.02; done 2>/dev/null; mount -t $type {device} {directory}"
        ))?;
        self.t.sh_ok(&format!(
            "last=$(wc -l <{name}.written) && awk -v last=$last '$1 != NR {{ exit 1 }} \
             END {{ if (NR < last || NR > last + 1) exit 1 }}' {directory}/log && umount {directory}"
        ))?;
        // mkfs fails while somebody keeps the device.
        wait_for(
            self.t,
            &format!("mkfs.ext4 -q -F {device} 1M >/dev/null 2>&1"),
        )
    }
}

fn begin<'a>(t: &'a Context<'_>) -> Result<Talk<'a>> {
    Talk::begin(t, Service::Vss, daemon::VSS)
}

/// The message that registers a daemon of this version.
fn hello(version: u8) -> String {
    format!("\\{version:03o}{ZEROES}")
}

/// Sends FREEZE, and checks that the disk is frozen.
pub fn freeze(talk: Talk<'_>, disk: &Disk<'_>) -> Result<()> {
    talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    disk.is_frozen()
}

/// The host makes two backups. Nothing is written between FREEZE and THAW, and nothing is lost.
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

/// Operations that need no action on Linux succeed.
fn operations(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for operation in [
        vss::CREATE,
        vss::DELETE,
        vss::BU_COMPLETE,
        vss::GET_DM_INFO,
        vss::AUTO_RECOVER,
    ] {
        talk.expect(
            &format!("operation {operation}"),
            vss::body(operation),
            S_OK,
        )?;
    }
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    talk.finish()
}

/// Unknown operations fail with "not supported".
fn unknown_operations(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for operation in [vss::QUERY_CLUSTER, 9, 128, 129, 255] {
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

/// The parameter `vss_protocol` sets the newest version of the next negotiation. The answer to QUERY_CLUSTER says that
/// the guest is in no cluster. The longest messages of a host are answered.
fn protocols(t: &Context<'_>) -> Result<()> {
    const PROTOCOL: &str = "/sys/module/hv_utils/parameters/vss_protocol";
    let talk = begin(t)?;
    let mut agreed = 5;
    t.sh_ok(&format!("[ $(cat {PROTOCOL}) = {agreed} ]"))?;
    for newest in [7, 6, 5] {
        t.sh_ok(&format!("echo {newest} >{PROTOCOL}"))?;
        reads(t, Service::Vss, "version", &format!("{agreed}.0"))?;
        let chosen = talk
            .channel
            .negotiate(&[(3, 0)], &[(4, 0), (5, 0), (6, 0), (7, 0)])?;
        t.equal("version", chosen.message, (newest, 0))?;
        agreed = newest;

        let mut query = vss::body(vss::QUERY_CLUSTER);
        if newest == 7 {
            query.extend([0; 8]);
        }
        query[8..].fill(0xa5);
        let status = if newest == 5 { E_NOT_SUPPORTED } else { S_OK };
        let reply = talk.expect("the query of a cluster", query.clone(), status)?;
        if status == S_OK {
            query[8..].fill(0);
        }
        t.check(reply.body == query, "the guest is in no cluster")?;

        for operation in [vss::FREEZE, vss::THAW, vss::AUTO_RECOVER] {
            let mut longest = vss::body(operation);
            longest.resize(vss::LONGEST, 0);
            talk.expect(
                &format!("operation {operation}, the longest"),
                longest,
                S_OK,
            )?;
        }
    }
    for value in ["4", "8", "-1", "x", ""] {
        let output = t.sh(&format!("echo {value} >{PROTOCOL}"))?;
        t.check(
            output.status != 0 && output.text.contains("Invalid argument"),
            &format!("{value:?} is refused"),
        )?;
    }
    talk.finish()
}

/// The answer to HOT_BACKUP has the flag which says that the backup needs no recovery.
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

/// A request that comes while the daemon works on another is answered after it. Each gets its own answer.
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

/// The host negotiates anew amid each request. The module limits its log lines.
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

/// Without a daemon the negotiation succeeds, and backups fail.
fn without_a_daemon(t: &Context<'_>) -> Result<()> {
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    for operation in [vss::HOT_BACKUP, vss::FREEZE, vss::THAW] {
        let request = talk.channel.request(vss::body(operation))?;
        talk.channel.send(&request)?;
        talk.promptly("without a daemon", &request, E_FAIL)?;
    }
    daemon::VSS.start(t)?;
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    talk.finish()
}

/// A daemon of before 2013 registers with 128, reads no reply to its registration, and answers all with success.
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
        "the operation that the daemon was asked",
        t.sh_ok("tail -c 12 /tmp/asked | od -An -tu1 -N1 | tr -d ' '")?
            .as_str(),
        "6",
    )?;
    daemon.kill(t)?;
    talk.expect("without it", vss::body(vss::HOT_BACKUP), E_FAIL)?;
    talk.finish()
}

/// Starts a daemon that freezes /mnt, and fails to thaw it.
fn start_failing_to_thaw(t: &Context<'_>) -> Result<ShellDaemon> {
    let script = format!(
        "while operation=$(dd bs=12 count=1 2>/dev/null | od -An -tu1 -N1 | tr -d \" \"); do \
             [ \"$operation\" = 5 ] && fsfreeze --freeze /mnt && status=000 || status=001; printf \"\\\\$status{ZEROES}\" >&0; \
         done"
    );
    ShellDaemon::registered(t, Service::Vss, &script)
}

/// A daemon freezes, and fails to thaw. The module thaws, and logs it.
fn daemon_fails_to_thaw(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let daemon = start_failing_to_thaw(t)?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    talk.expect("THAW without a FREEZE", vss::body(vss::THAW), 1)?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    disk.is_written()?;
    for text in [FAILED, THAWED] {
        t.log_has(text)?;
    }
    daemon.kill(t)?;
    talk.finish()?;
    disk.finish()
}

/// A daemon registers, and then reads nothing. Requests fail at once.
fn daemon_that_does_not_read(t: &Context<'_>) -> Result<()> {
    let daemon = ShellDaemon::start(t, "hv_vss", &hello(129), "exec sleep 1000")?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), E_FAIL)?;
    daemon.kill(t)?;
    begin(t)?.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    talk.finish()
}

/// The daemon dies between FREEZE and THAW. The file system stays frozen until the host's THAW. Then the module thaws.
fn daemon_killed_while_frozen(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    wait_said(t, HELP)?;
    disk.is_frozen()?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    disk.is_written()?;
    wait_said(t, THAWED)?;
    talk.expect("THAW once more", vss::body(vss::THAW), E_FAIL)?;

    // The next daemon thaws as well.
    daemon::VSS.start(t)?;
    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    daemon::VSS.start(t)?;
    disk.is_frozen()?;
    talk.expect("THAW by the new daemon", vss::body(vss::THAW), S_OK)?;
    disk.is_written()?;

    // The administrator thaws, as the log says. The backup is not consistent then.
    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    t.sh_ok("fsfreeze --unfreeze /mnt")?;
    disk.is_written()?;
    daemon::VSS.start(t)?;
    talk.expect("THAW after all", vss::body(vss::THAW), E_FAIL)?;
    t.log_has(SPOILT)?;
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// The daemon dies after it has read FREEZE. FREEZE fails, and the file system is not frozen.
fn daemon_killed_over_a_freeze(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let hung = ShellDaemon::registered(t, Service::Vss, ShellDaemon::ANSWERS_NOTHING)?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    let request = talk.pend(vss::body(vss::FREEZE))?;
    wait_for(t, "[ -e /tmp/read ]")?;
    hung.kill(t)?;
    talk.promptly("FREEZE", &request, E_FAIL)?;
    disk.is_written()?;
    daemon::VSS.start(t)?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// The daemon dies before it has read FREEZE. FREEZE fails. There is nothing to thaw, and the log has no line about it.
fn daemon_killed_before_a_freeze(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    daemon::VSS.stop(t)?;
    let request = talk.pend(vss::body(vss::FREEZE))?;
    daemon::VSS.kill(t)?;
    talk.promptly("FREEZE", &request, E_FAIL)?;
    daemon::VSS.start(t)?;
    talk.expect("HOT_BACKUP", vss::body(vss::HOT_BACKUP), S_OK)?;
    let log = t.kernel_log()?;
    for text in [HELP, THAWED] {
        t.check(
            !log.contains(text),
            &format!("the log does not say {text:?}"),
        )?;
    }
    talk.finish()?;
    disk.finish()
}

/// The host negotiates anew while file systems are frozen. The module thaws them: the host has forgotten the freeze.
fn negotiates_while_frozen(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    talk.channel.negotiate_all()?;
    disk.is_written()?;
    wait_said(t, THAWED)?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// The host rescinds the device while file systems are frozen. The module or the daemon thaws them.
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

/// The administrator unbinds the device while file systems are frozen and the daemon hangs. The module thaws them.
fn unbound_while_frozen(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    daemon::VSS.stop(t)?;
    let took = daemon::rebind(t, "unbind", Service::Vss)?;
    t.check(took < PROMPT, &format!("unbinding took {took:?}"))?;
    disk.is_written()?;
    wait_said(t, THAWED)?;
    daemon::VSS.resume(t)?;
    daemon::VSS.wait_gone(t)?;
    daemon::rebind(t, "bind", Service::Vss)?;
    talk.channel.wait_open()?;
    disk.finish()
}

/// The device is unbound after the daemon has read FREEZE. It can be bound again when the daemon has died.
fn unbound_over_a_freeze(t: &Context<'_>) -> Result<()> {
    let daemon = ShellDaemon::registered(t, Service::Vss, ShellDaemon::ANSWERS_NOTHING)?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    talk.pend(vss::body(vss::FREEZE))?;
    wait_for(t, "[ -e /tmp/read ]")?;
    daemon::rebind(t, "unbind", Service::Vss)?;
    daemon.kill(t)?;
    daemon::rebind(t, "bind", Service::Vss)?;
    talk.channel.wait_open()
}
