// SPDX-License-Identifier: GPL-2.0

//! File systems that were frozen for a backup. A freeze always ends, whatever happens to the daemon, the host and the
//! device. A backup during which a file system was thawed fails.

use std::time::Duration;
use std::time::Instant;

use host::guest::Result;
use host::ic::vss;
use host::ic::E_FAIL;
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
use crate::scenario::Machine;
use crate::scenario::Scenario;
use crate::timeouts::at;
use crate::vss::freeze;
use crate::vss::Disk;
use crate::vss::HELP;
use crate::vss::NO_ANSWER;
use crate::vss::SPOILT;
use crate::vss::THAWED;

/// The parameter that limits how long file systems stay frozen, in seconds.
const LIMIT: &str = "/sys/module/hv_utils/parameters/vss_freeze_limit";

/// After this many seconds the kernel warns of a blocked task.
const HUNG_TASK: &str = "/proc/sys/kernel/hung_task_timeout_secs";

/// A guest with the modules xfs and btrfs, and enough memory.
const DISKS: Machine = Machine {
    name: "disks",
    change: |config| {
        let inner = config.initrds.iter().find_map(|archive| {
            let name = archive.file_name()?.to_str()?;
            let flavour = name.strip_prefix("inner-")?;
            Some(archive.with_file_name(format!("disks-{flavour}")))
        });
        config
            .initrds
            .extend(inner.filter(|archive| archive.exists()));
        config.memory = 768;
    },
};

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("vss_frozen_before", frozen_before)
        .daemons()
        .rust_only()
        .expects_log(&[HELP]),
    Scenario::new("vss_file_systems", file_systems)
        .machine(DISKS)
        .daemons()
        .rust_only()
        .expects_log(&[HELP]),
    Scenario::new("vss_freezes_twice", freezes_twice).daemons(),
    Scenario::new("vss_unmounts_while_frozen", unmounts).daemons(),
    Scenario::new("vss_thawed_by_hand", thawed_by_hand)
        .daemons()
        .rust_only()
        .expects_log(&[SPOILT]),
    Scenario::new("vss_freeze_times_out_frozen", times_out_frozen)
        .waits()
        .daemons()
        .rust_only()
        .expects_log(&[NO_ANSWER]),
    Scenario::new(
        "vss_rescinded_under_a_stopped_daemon",
        rescinded_under_a_stopped,
    )
    .daemons()
    .rust_only()
    .versions(),
    Scenario::new("vss_mounted_amid_a_freeze", mounted_amid)
        .daemons()
        .rust_only()
        .expects_log(&[HELP]),
    Scenario::new("vss_freeze_that_nobody_read", unread)
        .daemons()
        .rust_only()
        .expects_log(&[NO_ANSWER]),
    Scenario::new("vss_thaw_amid_a_freeze", thaw_amid)
        .daemons()
        .rust_only(),
    Scenario::new("vss_thaw_unanswered", thaw_unanswered)
        .waits()
        .daemons()
        .rust_only()
        .expects_log(&[NO_ANSWER]),
    Scenario::new("vss_freeze_limit", freeze_limit)
        .waits()
        .daemons()
        .rust_only()
        .expects_log(&[HELP, SPOILT]),
    Scenario::new("vss_freeze_limit_values", freeze_limit_values)
        .rust_only()
        .expects_log(&["`86401' invalid for parameter"]),
    Scenario::new("vss_starts_over_while_frozen", starts_over)
        .daemons()
        .rust_only()
        .expects_log(&[HELP, SPOILT]),
    Scenario::new("vss_rescinded_without_a_daemon", rescinded)
        .daemons()
        .rust_only()
        .expects_log(&[HELP]),
    Scenario::new("vss_removed_while_frozen", removed)
        .daemons()
        .rust_only()
        .expects_log(&[HELP]),
    Scenario::new("vss_hibernates_while_frozen", hibernates)
        .daemons()
        .rust_only()
        .expects_log(&["WARNING: kernel/smp.c", SPOILT]),
    Scenario::new("vss_daemon_dies_amid_a_freeze", dies_amid)
        .daemons()
        .rust_only()
        .expects_log(&[NO_ANSWER, SPOILT]),
    Scenario::new("vss_late_freezer", |t| late_freezer(t, End::StartsOver))
        .daemons()
        .rust_only()
        .expects_log(&[NO_ANSWER]),
    Scenario::new("vss_late_freezer_without_a_device", |t| {
        late_freezer(t, End::Unbound)
    })
    .daemons()
    .rust_only()
    .expects_log(&[NO_ANSWER]),
    Scenario::new("vss_late_freezer_without_a_module", |t| {
        late_freezer(t, End::Removed)
    })
    .daemons()
    .rust_only()
    .expects_log(&[NO_ANSWER]),
];

fn begin<'a>(t: &'a Context<'_>) -> Result<Talk<'a>> {
    Talk::begin(t, Service::Vss, daemon::VSS)
}

/// Starts a script as the daemon, and negotiates. The script can wait for a line in `/tmp/go`.
fn begin_with<'a>(t: &'a Context<'_>, script: &str) -> Result<(ShellDaemon, Talk<'a>)> {
    t.sh_ok("rm -f /tmp/go /tmp/frozen /tmp/refused; mkfifo /tmp/go")?;
    let daemon = ShellDaemon::registered(t, Service::Vss, script)?;
    let talk = Talk::with(t, Service::Vss);
    talk.channel.negotiate_all()?;
    Ok((daemon, talk))
}

/// Checks that the log has one line about the thaw of this disk, with this cause.
fn log_says_thawed(t: &Context<'_>, disk: &str, cause: &str) -> Result<()> {
    let line = format!("VSS: thawed {disk} (ext4): {cause}");
    wait_said(t, &line)?;
    let times = t
        .kernel_log()?
        .lines()
        .filter(|text| text.contains(&line))
        .count();
    t.equal(&line, times, 1)
}

/// A file system that was frozen before the host's FREEZE is not thawed with the others.
fn frozen_before(t: &Context<'_>) -> Result<()> {
    let (disk, other) = (Disk::new(t)?, Disk::numbered(t, 1)?);
    let talk = begin(t)?;
    t.sh_ok("fsfreeze --freeze /mnt1")?;
    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    disk.is_written()?;
    other.is_frozen()?;
    t.sh_ok("fsfreeze --unfreeze /mnt1")?;
    other.is_written()?;
    talk.finish()?;
    other.finish()?;
    disk.finish()
}

/// The daemon freezes file systems of each type, and dies. The module thaws them.
fn file_systems(t: &Context<'_>) -> Result<()> {
    if t.sh("[ -e /modules/disks/order ]")?.status != 0 {
        return t.skip("this kernel has no xfs and btrfs");
    }
    t.sh_within(
        "while read -r name rest; do insmod /modules/disks/$name $rest || exit; done </modules/disks/order; \
         rmmod brd; insmod /modules/daemons/brd.ko rd_size=409600",
        Duration::from_secs(120),
    )?;
    let disks = [
        Disk::new(t)?,
        Disk::make(t, 1, "/mnt1", "mkfs.xfs -q -f", "", "xfs -o sync")?,
        Disk::make(t, 2, "/mnt2", "mkfs.btrfs -q -f", "", "btrfs -o sync")?,
    ];
    let talk = begin(t)?;
    let all_are_written = || disks.iter().try_for_each(Disk::is_written);
    let all_are_frozen = || disks.iter().try_for_each(Disk::is_frozen);
    talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    all_are_frozen()?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    all_are_written()?;
    let log = t.kernel_log()?;
    t.check(!log.contains("VSS: thawed"), "the daemon has thawed")?;

    talk.expect("FREEZE", vss::body(vss::FREEZE), S_OK)?;
    daemon::VSS.kill(t)?;
    all_are_frozen()?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    all_are_written()?;
    let log = t.kernel_log()?;
    for disk in ["ram0 (ext4)", "ram1 (xfs)", "ram2 (btrfs)"] {
        let times = log.matches(&format!("VSS: thawed {disk}")).count();
        t.equal(disk, times, 1)?;
    }
    talk.finish()?;
    disks.iter().try_for_each(Disk::finish)
}

/// The host sends FREEZE twice, and THAW once. The file system is thawed.
fn freezes_twice(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    freeze(talk, &disk)?;
    wait_said(t, "VSS: thawed ram0 (ext4): the host freezes once more")?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    disk.is_written()?;
    talk.finish()?;
    disk.finish()
}

/// A file system that the daemon does not freeze can be unmounted while others are frozen. Nobody keeps its device.
fn unmounts(t: &Context<'_>) -> Result<()> {
    let (disk, other) = (Disk::new(t)?, Disk::numbered(t, 1)?);
    let answer = ShellDaemon::write("/tmp/success");
    let script = format!(
        "dd bs=8192 count=1 && fsfreeze --freeze /mnt; {answer}; \
         dd bs=8192 count=1 && fsfreeze --unfreeze /mnt; {answer}; exec sleep 1000"
    );
    let (daemon, talk) = begin_with(t, &script)?;
    freeze(talk, &disk)?;
    other.finish()?;
    disk.is_frozen()?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    disk.is_written()?;
    talk.finish()?;
    daemon.kill(t)?;
    disk.finish()
}

/// Somebody thaws between FREEZE and THAW. The host's THAW fails: the backup is not consistent.
fn thawed_by_hand(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    t.sh_ok("fsfreeze --unfreeze /mnt")?;
    disk.is_written()?;
    talk.expect("THAW", vss::body(vss::THAW), E_FAIL)?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// The daemon hangs amid FREEZE, with one file system frozen. The module thaws it after 15 minutes.
fn times_out_frozen(t: &Context<'_>) -> Result<()> {
    let (disk, other) = (Disk::new(t)?, Disk::numbered(t, 1)?);
    // The writers are blocked for a long time: turn off the kernel's warning.
    t.sh_ok(&format!(
        "echo 0 >{HUNG_TASK}; rm -f /tmp/go; mkfifo /tmp/go"
    ))?;
    let (daemon, talk) = begin_with(t, &two_freezes())?;
    // A busy writer would keep emulated time from being skipped.
    other.stop()?;
    let asked = Instant::now();
    let request = talk.pend(vss::body(vss::FREEZE))?;
    wait_for(t, "[ -e /tmp/read ]")?;
    disk.is_frozen()?;
    at(t, talk, &request, E_FAIL, asked, 900)?;
    disk.is_written()?;
    t.sh_ok("echo >/tmp/go")?;
    wait_for(t, "[ -e /tmp/refused ]")?;
    other.resume()?;
    other.is_written()?;
    t.sh_ok(&format!("echo 120 >{HUNG_TASK}"))?;
    daemon.kill(t)?;
    talk.finish()?;
    other.finish()?;
    disk.finish()
}

/// The host rescinds the device while the daemon is stopped. The module thaws, and does not wait for the daemon.
fn rescinded_under_a_stopped(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    daemon::VSS.stop(t)?;
    talk.channel.rescind()?;
    talk.channel.wait_released()?;
    disk.is_written()?;
    wait_said(t, THAWED)?;
    daemon::VSS.resume(t)?;
    daemon::VSS.wait_gone(t)?;
    disk.is_written()?;
    talk.channel.reoffer()?;
    talk.channel.wait_open()?;
    disk.finish()
}

/// A file system is mounted after the module has recorded the file systems, and before the daemon freezes them. The
/// daemon freezes it, too, and dies. The module thaws it.
fn mounted_amid(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let (daemon, talk) = begin_with(t, &two_freezes())?;
    let request = talk.pend(vss::body(vss::FREEZE))?;
    wait_for(t, "[ -e /tmp/read ]")?;
    let other = Disk::numbered(t, 1)?;
    t.sh_ok("echo >/tmp/go")?;
    talk.promptly("FREEZE", &request, S_OK)?;
    daemon.kill(t)?;
    disk.is_frozen()?;
    other.is_frozen()?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    disk.is_written()?;
    other.is_written()?;
    talk.finish()?;
    other.finish()?;
    disk.finish()
}

/// The daemon has not read FREEZE, and the host negotiates anew. A file system that the administrator froze meanwhile
/// stays frozen.
fn unread(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let (daemon, talk) = begin_with(t, ShellDaemon::READS_NOTHING)?;
    talk.pend(vss::body(vss::FREEZE))?;
    t.sh_ok("fsfreeze --freeze /mnt")?;
    talk.channel.negotiate_all()?;
    disk.is_frozen()?;
    daemon.kill(t)?;
    disk.is_frozen()?;
    t.sh_ok("fsfreeze --unfreeze /mnt")?;
    disk.is_written()?;
    begin(t)?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// The host sends THAW during a long freeze. Both requests are answered. The module thaws right after the freeze.
fn thaw_amid(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    t.sh_ok("rm -f /tmp/go; mkfifo /tmp/go")?;
    let answer = ShellDaemon::write("/tmp/success");
    let script = format!(
        "dd bs=8192 count=1 && : >/tmp/read; read line </tmp/go; fsfreeze --freeze /mnt; {answer}; \
         dd bs=8192 count=1; {answer}; exec sleep 1000"
    );
    let (daemon, talk) = begin_with(t, &script)?;
    let frozen = talk.pend(vss::body(vss::FREEZE))?;
    wait_for(t, "[ -e /tmp/read ]")?;
    let thawed = talk.pend(vss::body(vss::THAW))?;
    disk.is_written()?;
    t.sh_ok("echo >/tmp/go")?;
    talk.promptly("FREEZE", &frozen, S_OK)?;
    talk.promptly("THAW", &thawed, S_OK)?;
    disk.is_written()?;
    log_says_thawed(t, "ram0", "the host asks for it")?;
    talk.finish()?;
    daemon.kill(t)?;
    disk.finish()
}

/// The daemon is stopped after FREEZE. The module waits 30 s for it, and then thaws. The backup is good.
fn thaw_unanswered(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    daemon::VSS.stop(t)?;
    let asked = Instant::now();
    let thaw = talk.pend(vss::body(vss::THAW))?;
    disk.is_frozen()?;
    at(t, talk, &thaw, S_OK, asked, 30)?;
    disk.is_written()?;
    wait_said(t, THAWED)?;
    daemon::VSS.resume(t)?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// When `vss_freeze_limit` is over, the module thaws, with and without a daemon. The host's THAW fails. A new limit
/// takes effect with the next FREEZE.
fn freeze_limit(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    // The writer is blocked for a long time: turn off the kernel's warning.
    t.sh_ok(&format!("echo 0 >{HUNG_TASK}; echo 60 >{LIMIT}"))?;
    freeze(talk, &disk)?;
    t.sh_ok(&format!("echo 120 >{LIMIT}"))?;
    wait(t, 50)?;
    disk.is_frozen()?;
    wait_for_thaw(t, 20)?;
    disk.is_written()?;
    log_says_thawed(t, "ram0", "vss_freeze_limit is over")?;
    talk.expect("THAW after it", vss::body(vss::THAW), E_FAIL)?;
    t.log_has(SPOILT)?;

    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    t.sh_ok(&format!("echo 0 >{LIMIT}"))?;
    t.clear_kernel_log()?;
    wait(t, 110)?;
    disk.is_frozen()?;
    wait_for_thaw(t, 30)?;
    disk.is_written()?;
    talk.expect("THAW after it", vss::body(vss::THAW), E_FAIL)?;

    daemon::VSS.start(t)?;
    freeze(talk, &disk)?;
    wait(t, 1000)?;
    disk.is_frozen()?;
    talk.expect("THAW without a limit", vss::body(vss::THAW), S_OK)?;
    t.sh_ok(&format!("echo 120 >{HUNG_TASK}"))?;
    talk.finish()?;
    disk.finish()
}

/// Sleeps in the guest.
fn wait(t: &Context<'_>, seconds: u64) -> Result<()> {
    t.sh_within(
        &format!("sleep {seconds}"),
        Duration::from_secs(seconds + 60),
    )
    .map(|_| ())
}

/// Waits until the module has thawed, for `seconds` at most. Emulated time is not skipped afterwards: the writer is
/// busy.
fn wait_for_thaw(t: &Context<'_>, seconds: u64) -> Result<()> {
    let output = t.sh_within(
        &format!("timeout {seconds} sh -c 'until dmesg | grep -q \"{THAWED}\"; do sleep 1; done'"),
        Duration::from_secs(seconds + 60),
    )?;
    t.equal("status of the wait for a thaw", output.status, 0)
}

/// `vss_freeze_limit` takes values from 0 to a day.
fn freeze_limit_values(t: &Context<'_>) -> Result<()> {
    t.equal(
        "the default",
        t.sh_ok(&format!("cat {LIMIT}"))?.as_str(),
        "900",
    )?;
    for value in ["0", "1", "86400"] {
        t.sh_ok(&format!("echo {value} >{LIMIT}"))?;
        t.equal(
            "the value",
            t.sh_ok(&format!("cat {LIMIT}"))?.as_str(),
            value,
        )?;
    }
    for value in ["86401", "4294967296", "-1", "x", ""] {
        let output = t.sh(&format!("echo {value} >{LIMIT}"))?;
        t.check(
            output.text.contains("Invalid argument"),
            &format!("{value:?} is invalid ({:?})", output.text),
        )?;
    }
    t.equal(
        "the value",
        t.sh_ok(&format!("cat {LIMIT}"))?.as_str(),
        "86400",
    )?;
    if t.config().built_in {
        return t.sh_ok(&format!("echo 900 >{LIMIT}")).map(|_| ());
    }
    t.unload()?;
    t.load_with("vss_freeze_limit=5")?;
    t.equal("the value", t.sh_ok(&format!("cat {LIMIT}"))?.as_str(), "5")?;
    t.unload()?;
    let loaded = t.load_with("vss_freeze_limit=86401");
    t.check(loaded.is_err(), "the module refuses 86401")?;
    t.log_has("`86401' invalid for parameter")?;
    t.load()
}

/// The host negotiates anew while file systems are frozen, and the daemon is stopped or dead. The module thaws.
fn starts_over(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    daemon::VSS.stop(t)?;
    talk.channel.negotiate_all()?;
    disk.is_written()?;
    log_says_thawed(t, "ram0", "the host has started over")?;
    daemon::VSS.resume(t)?;
    talk.expect("THAW after it", vss::body(vss::THAW), E_FAIL)?;

    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    disk.is_frozen()?;
    talk.channel.negotiate_all()?;
    disk.is_written()?;
    talk.finish()?;
    disk.finish()
}

/// The host rescinds the device while file systems are frozen, and the daemon is dead. The module thaws.
fn rescinded(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    disk.is_frozen()?;
    talk.channel.rescind()?;
    talk.channel.wait_released()?;
    disk.is_written()?;
    wait_said(t, THAWED)?;
    talk.channel.reoffer()?;
    talk.channel.wait_open()?;
    disk.finish()
}

/// The module is removed while file systems are frozen, and the daemon is dead. The module thaws.
fn removed(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    daemon::VSS.kill(t)?;
    disk.is_frozen()?;
    t.unload()?;
    wait_said(t, THAWED)?;
    disk.is_written()?;
    t.load()?;
    talk.channel.wait_open()?;
    disk.finish()
}

/// The guest hibernates while file systems are frozen. The module thaws before user space is frozen. The host's THAW
/// fails afterwards.
fn hibernates(t: &Context<'_>) -> Result<()> {
    let disk = Disk::new(t)?;
    let talk = begin(t)?;
    freeze(talk, &disk)?;
    hibernation::hibernate(t)?;
    disk.is_written()?;
    log_says_thawed(t, "ram0", "the guest hibernates")?;
    let log = t.kernel_log()?;
    let frozen = log.find("Freezing user space processes");
    t.check(
        frozen.is_some_and(|at| log[..at].contains(THAWED)),
        "the disk is thawed before user space is frozen",
    )?;
    talk.channel.wait_open()?;
    talk.channel.negotiate_all()?;
    talk.expect("THAW after it", vss::body(vss::THAW), E_FAIL)?;
    t.log_has(SPOILT)?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    talk.finish()?;
    disk.finish()
}

/// The script of a daemon that freezes `/mnt`, waits for `/tmp/go`, freezes `/mnt1`, and answers. It thaws nothing.
fn two_freezes() -> String {
    format!(
        "dd bs=8192 count=1 && fsfreeze --freeze /mnt && : >/tmp/read; read line </tmp/go; \
         fsfreeze --freeze /mnt1; : >/tmp/frozen; {answer} || : >/tmp/refused; exec sleep 1000",
        answer = ShellDaemon::write("/tmp/success"),
    )
}

/// The daemon dies amid FREEZE, between two file systems. FREEZE fails, and nothing stays frozen.
fn dies_amid(t: &Context<'_>) -> Result<()> {
    let (disk, other) = (Disk::new(t)?, Disk::numbered(t, 1)?);
    let (daemon, talk) = begin_with(t, &two_freezes())?;
    let request = talk.pend(vss::body(vss::FREEZE))?;
    wait_for(t, "[ -e /tmp/read ]")?;
    disk.is_frozen()?;
    // With C the wait below is in vain. Without a writer it takes no time, as emulated time is skipped.
    other.stop()?;
    daemon.kill(t)?;
    talk.promptly("FREEZE", &request, E_FAIL)?;
    disk.is_written()?;
    other.resume()?;
    other.is_written()?;
    log_says_thawed(t, "ram0", "the freeze has failed")?;
    t.log_has("VSS: no answer from the daemon, which has gone: FREEZE fails, status 0x80004005")?;
    talk.expect("THAW after it", vss::body(vss::THAW), E_FAIL)?;
    let log = t.kernel_log()?;
    t.equal("lines about the backup", log.matches(SPOILT).count(), 1)?;
    talk.finish()?;
    other.finish()?;
    disk.finish()
}

/// The event that ends a freeze before the daemon does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The host negotiates.
    StartsOver,
    /// The device is unbound.
    Unbound,
    /// The device is unbound, and the module is removed as soon as the daemon has died.
    Removed,
}

/// The daemon hangs amid FREEZE. The host negotiates anew, or the device is unbound. The module thaws the frozen file
/// systems then, and later those that the daemon still freezes. The daemon's late answer is rejected.
fn late_freezer(t: &Context<'_>, end: End) -> Result<()> {
    let (disk, other) = (Disk::new(t)?, Disk::numbered(t, 1)?);
    let (daemon, talk) = begin_with(t, &two_freezes())?;
    talk.pend(vss::body(vss::FREEZE))?;
    wait_for(t, "[ -e /tmp/read ]")?;
    disk.is_frozen()?;
    if end == End::StartsOver {
        talk.channel.negotiate_all()?;
    } else {
        let took = daemon::rebind(t, "unbind", Service::Vss)?;
        t.check(took < PROMPT, &format!("unbinding took {took:?}"))?;
    }
    disk.is_written()?;
    other.is_written()?;
    t.sh_ok("echo >/tmp/go")?;
    wait_for(t, "[ -e /tmp/refused ]")?;
    if end == End::Removed {
        daemon.kill(t)?;
        t.unload()?;
        other.is_written()?;
        t.load()?;
    } else {
        other.is_written()?;
        daemon.kill(t)?;
        if end == End::Unbound {
            daemon::rebind(t, "bind", Service::Vss)?;
        }
    }
    disk.is_written()?;
    log_says_thawed(t, "ram1", "the daemon went on to freeze")?;
    talk.channel.wait_open()?;
    begin(t)?;
    freeze(talk, &disk)?;
    talk.expect("THAW", vss::body(vss::THAW), S_OK)?;
    disk.is_written()?;
    other.finish()?;
    disk.finish()
}
