// SPDX-License-Identifier: GPL-2.0

//! Debian as installed: udev loads the module for the devices, and systemd starts the daemons.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use host::guest::relay::Relay;
use host::guest::relay::SSH_PORT;
use host::guest::Error;
use host::guest::Result;
use host::ic::kvp::AUTO;
use host::ic::vss;
use host::ic::S_OK;
use host::ic::UNIX_EPOCH_1601;
use host::machine::Config;
use host::service::Service;

use crate::attributes;
use crate::attributes::reads;
use crate::daemon::Talk;
use crate::fcopy;
use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;
use crate::vss::HELP;

/// The scenarios of this file. depmod decides which of the two modules is loaded, so there are none for C.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("systemd", systemd)
        .machine(DEBIAN)
        .unloaded()
        .rust_only()
        .apart(),
    Scenario::new("systemd_frozen_root", frozen_root)
        .machine(DEBIAN_ON_A_DISK)
        .unloaded()
        .rust_only()
        .apart()
        .expects_log(&[HELP]),
    Scenario::new("systemd_shows_what_happens", shows_what_happens)
        .machine(DEBIAN)
        .unloaded()
        .rust_only()
        .apart(),
    Scenario::new("systemd_copies_over_uio", copies_over_uio)
        .machine(DEBIAN)
        .unloaded()
        .rust_only()
        .apart(),
    Scenario::new(
        "systemd_copies_over_a_character_device",
        copies_over_a_device,
    )
    .machine(DEBIAN_WITH_FCOPY)
    .unloaded()
    .rust_only()
    .apart(),
    Scenario::new("systemd_ssh", ssh)
        .machine(DEBIAN)
        .unloaded()
        .rust_only()
        .apart(),
    Scenario::new("systemd_chrony", chrony)
        .machine(DEBIAN_WITH_CHRONY)
        .unloaded()
        .rust_only()
        .apart(),
];

/// A machine that boots the image with systemd instead of the small image.
const DEBIAN: Machine = Machine {
    name: "debian",
    change: |config| debian(config, IMAGE),
};

/// As [`DEBIAN`], with an ext4 as root file system.
const DEBIAN_ON_A_DISK: Machine = Machine {
    name: "debian on a disk",
    change: |config| {
        debian(config, IMAGE);
        config.command_line += " rdinit=/usr/local/sbin/init-disk";
        config.memory = 1536;
    },
};

/// As [`DEBIAN`], with file copy over the character device.
const DEBIAN_WITH_FCOPY: Machine = Machine {
    name: "debian with fcopy_chardev",
    change: |config| {
        debian(config, IMAGE);
        config.command_line += " rdinit=/usr/local/sbin/init-fcopy";
    },
};

/// As [`DEBIAN`], with chrony.
const DEBIAN_WITH_CHRONY: Machine = Machine {
    name: "debian with chrony",
    change: |config| {
        debian(config, IMAGE);
        config.command_line += " rdinit=/usr/local/sbin/init-chrony";
    },
};

/// The prefix of the image's name. The kernel's flavour follows.
const IMAGE: &str = "systemd-";

/// Configures the machine for an image with systemd. `image` is the prefix of the image's name.
pub fn debian(config: &mut Config, image: &str) {
    let name = |archive: &Path| {
        archive
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    // Debian has its own daemons. Its /bin is a link, which the archive with daemons would replace.
    config
        .initrds
        .retain(|archive| !name(archive).starts_with("daemons-"));
    for archive in &mut config.initrds {
        let name = name(archive);
        if let Some(flavour) = name.strip_prefix("inner-") {
            *archive = archive.with_file_name(format!("{image}{flavour}"));
        }
    }
    // Memory for the image and its content.
    config.memory = 1024;
}

/// Time limit for systemd and udev, in seconds.
pub const LONG: u64 = 300;

/// Waits until a command succeeds.
pub fn wait(t: &Context<'_>, command: &str) -> Result<()> {
    let output = t.sh_within(
        &format!("timeout {LONG} sh -c 'until {command}; do sleep 1; done'"),
        Duration::from_secs(LONG + 10),
    )?;
    t.equal(
        &format!("status of the wait for `{command}`"),
        output.status,
        0,
    )
}

/// The daemon dies while the root file system is frozen. The host's THAW thaws it, and systemd works as before.
fn frozen_root(t: &Context<'_>) -> Result<()> {
    wait(t, "systemctl is-system-running >/dev/null")?;
    t.equal(
        "the root's type",
        t.sh_ok("findmnt -n -o FSTYPE /")?.as_str(),
        "ext4",
    )?;
    wait(t, "systemctl --quiet is-active hv-vss-daemon")?;
    let vss = t.channel(Service::Vss);
    vss.wait_negotiated()?;
    t.sh_ok(
        "setsid sh -c 'while :; do date >>/var/written && echo >>/run/written; sleep 0.1; done' >/dev/null 2>&1 &",
    )?;
    let is_written = "n=$(wc -l </run/written); sleep 2; [ $n -lt $(wc -l </run/written) ]";
    let is_frozen = "n=$(wc -l </run/written); sleep 2; [ $n = $(wc -l </run/written) ]";
    wait(t, "[ -s /run/written ]")?;
    t.equal(
        "status of FREEZE",
        vss.ask(vss::body(vss::FREEZE))?.status,
        S_OK,
    )?;
    t.sh_ok("kill -9 $(cat /sys/fs/cgroup/system.slice/hv-vss-daemon.service/cgroup.procs)")?;
    t.sh_ok(is_frozen)?;
    t.equal(
        "status of THAW",
        vss.ask(vss::body(vss::THAW))?.status,
        S_OK,
    )?;
    t.sh_ok(is_written)?;
    t.log_has("VSS: thawed ram0 (ext4): the host asks for it")?;
    t.sh_ok("systemctl restart hv-vss-daemon")?;
    wait(t, "systemctl --quiet is-active hv-vss-daemon")?;
    for (name, operation) in [("FREEZE", vss::FREEZE), ("THAW", vss::THAW)] {
        t.equal(name, vss.ask(vss::body(operation))?.status, S_OK)?;
    }
    t.sh_ok(is_written)?;
    t.sh_ok("systemctl stop hv-kvp-daemon hv-vss-daemon")
        .map(|_| ())
}

/// The administrator reads sysfs and tracefs with Debian's tools.
fn shows_what_happens(t: &Context<'_>) -> Result<()> {
    wait(t, "systemctl is-system-running >/dev/null")?;
    wait(t, "systemctl --quiet is-active hv-kvp-daemon hv-vss-daemon")?;
    let heartbeat = t.channel(Service::Heartbeat);
    heartbeat.wait_replies(2)?;
    for service in [Service::Kvp, Service::Vss] {
        t.channel(service).wait_negotiated()?;
        reads(t, service, "daemon", "registered")?;
        reads(t, service, "state", "host")?;
        reads(t, service, "late", "0")?;
    }
    reads(t, Service::Vss, "frozen", "none")?;
    for service in [Service::Heartbeat, Service::Kvp] {
        let numbers = ["requests", "replies", "refused", "ignored"]
            .map(|name| format!("$(cat {})", attributes::file(service, name)));
        let [requests, replies, refused, ignored] = numbers;
        t.sh_ok(&format!(
            "[ {requests} -ge 1 ] && [ {replies} -ge 1 ] && [ {refused} = 0 ] && [ {ignored} = 0 ]"
        ))?;
    }
    let vss = t.channel(Service::Vss);
    t.sh_ok("cd /sys/kernel/tracing && echo >trace && echo 1 >events/hv_utils/enable")?;
    t.equal(
        "status of HOT_BACKUP",
        vss.ask(vss::body(vss::HOT_BACKUP))?.status,
        S_OK,
    )?;
    heartbeat.wait_replies(heartbeat.statistics()?.replies + 2)?;
    for line in [
        "hv_utils_request: service=VSS ",
        "hv_utils_asked: service=VSS ",
        "hv_utils_answered: service=VSS outcome=answered",
        "hv_utils_reply: service=VSS .* status=0x0 ",
        "hv_utils_request: service=Heartbeat ",
        "hv_utils_reply: service=Heartbeat .* status=0x0 ",
    ] {
        t.sh_ok(&format!("grep -q '{line}' /sys/kernel/tracing/trace"))
            .map_err(|error| format!("{line:?} is traced: {error}"))?;
    }
    t.sh_ok("echo 0 >/sys/kernel/tracing/events/hv_utils/enable; systemctl stop hv-kvp-daemon hv-vss-daemon")?;
    reads(t, Service::Kvp, "daemon", "absent")?;
    reads(t, Service::Vss, "daemon", "absent")
}

/// Checks that udev has loaded both modules, and that the device of file copy has this driver.
pub fn has_driver(t: &Context<'_>, driver: &str) -> Result<()> {
    wait(t, "udevadm settle --timeout=1")?;
    wait(t, "systemctl is-system-running >/dev/null")?;
    t.sh_ok("[ -e /sys/module/hv_utils ] && [ -e /sys/module/uio_hv_generic ]")?;
    let device = Service::FCopy.instance();
    let bound = t.sh_ok(&format!(
        "basename $(readlink /sys/bus/vmbus/devices/{device}/driver)"
    ))?;
    t.equal("the driver", bound.as_str(), driver)?;
    // journalctl has the log since the boot. The runner has cleared the kernel's log buffer.
    let said = t.sh_ok(
        "journalctl --dmesg --priority=warning --quiet --output=cat | grep -E 'hv_|uio|probe' | grep -v taints; :",
    )?;
    t.equal("warnings", said.as_str(), "")
}

/// The host copies a file to the guest.
pub fn copies(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::FCopy);
    channel.wait_negotiated()?;
    channel.script()?;
    t.sh_ok("mkdir /tmp/in")?;
    fcopy::copy(
        Talk::with(t, Service::FCopy),
        "/tmp/in/",
        "file",
        0,
        b"content",
    )?;
    fcopy::is_there(t, "/tmp/in/file", b"content")
}

/// Debian's daemon for file copy uses `uio_hv_generic`. The daemon works, whichever module is loaded first.
fn copies_over_uio(t: &Context<'_>) -> Result<()> {
    has_driver(t, "uio_hv_generic")?;
    // At the boot the unit may start too early, before udev has created the device, also with C's module.
    t.sh_ok("systemctl start hv-fcopy-uio-daemon && systemctl is-active hv-fcopy-uio-daemon")?;
    copies(t)?;
    t.sh_ok("systemctl stop hv-kvp-daemon hv-vss-daemon hv-fcopy-uio-daemon")
        .map(|_| ())
}

/// The administrator has added two lines to modprobe.d, and starts `hv_fcopy_daemon`. This daemon copies.
fn copies_over_a_device(t: &Context<'_>) -> Result<()> {
    has_driver(t, "hv_utils_fcopy")?;
    t.sh_ok("systemd-run --quiet --unit=hv-fcopy-daemon hv_fcopy_daemon --no-daemon")?;
    wait(
        t,
        "journalctl --quiet --unit=hv-fcopy-daemon --output=cat | grep -q kernel.module.version",
    )?;
    copies(t)?;
    t.sh_ok("systemctl stop hv-kvp-daemon hv-vss-daemon hv-fcopy-daemon")
        .map(|_| ())
}

/// chrony's start waits for the PTP device, at the boot and later, and does not fail. Then chrony follows the host.
fn chrony(t: &Context<'_>) -> Result<()> {
    const IS_SELECTED: &str = "chronyc -n sources | grep -q '^#\\*'";
    wait(t, "udevadm settle --timeout=1")?;
    wait(t, "systemctl --quiet is-active chrony")?;
    wait(t, IS_SELECTED)?;
    let failed = t.sh_ok("systemctl --failed --plain --no-legend")?;
    t.equal("units that failed", failed.as_str(), "")?;

    t.sh_ok("systemctl stop chrony hv-kvp-daemon hv-vss-daemon && modprobe -r hv_utils")?;
    t.sh_ok("udevadm settle && systemctl start --no-block chrony && sleep 5")?;
    t.sh_ok("! systemctl is-active chrony && ! systemctl is-failed chrony")?;
    t.sh_ok("modprobe hv_utils")?;
    wait(t, "systemctl --quiet is-active chrony")?;
    wait(t, IS_SELECTED)?;

    let hours = 9 * 3600;
    let channel = t.channel(Service::TimeSync);
    channel.configure(|device| device.set_wall_offset(hours * 10_000_000))?;
    let now = || (t.moment().wall - UNIX_EPOCH_1601) / 10_000_000 + hours as u64;
    wait(t, &format!("[ $(date +%s) -ge {} ]", now()))?;
    let before = now();
    let date = t.sh_ok("date +%s")?;
    let after = now();
    let at = date.parse().unwrap_or(0);
    t.check(
        (before - 2..=after + 2).contains(&at),
        &format!("the clock is the host's, from {before} to {after} (it says {date:?})"),
    )?;
    wait(t, IS_SELECTED)?;
    t.sh_ok("systemctl stop chrony hv-kvp-daemon hv-vss-daemon")
        .map(|_| ())
}

/// Runs `command` with `input`, and returns its output. Fails if the program fails.
fn output_of(mut command: Command, input: &[u8]) -> Result<Vec<u8>> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn()?;
    let mut pipe = child.stdin.take().ok_or("no standard input")?;
    let output = std::thread::scope(|scope| {
        // A program that fails does not read all of the input.
        scope.spawn(move || pipe.write_all(input));
        child.wait_with_output()
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("{command:?}: {}: {said}", output.status).into()),
    }
}

/// Logs in by ssh, runs a shell line with `input`, and returns its output.
fn logged_in(relay: &Relay, line: &str, input: &[u8]) -> Result<Vec<u8>> {
    let mut command = relay.ssh("root")?;
    command.arg(line);
    output_of(command, input)
}

/// The administrator enables the package's unit. If systemd does not listen by itself, the host's ssh logs in to Debian's
/// sshd through the unit, without a network. If systemd listens, the unit does not start.
fn ssh(t: &Context<'_>) -> Result<()> {
    const UNIT: &str = "hv-utils-rust-ssh.socket";
    const OWN: &str = "sshd-vsock.socket";
    wait(t, "systemctl is-system-running >/dev/null")?;
    let is_enabled = t.sh(&format!("systemctl is-enabled {UNIT}"))?.text;
    t.equal("the unit", is_enabled.as_str(), "disabled")?;
    t.sh_ok(&format!(
        "systemctl stop {OWN}; mkdir -p /etc/systemd/system-generators && \
         ln -s /dev/null /etc/systemd/system-generators/systemd-ssh-generator && \
         systemctl daemon-reload && systemctl --quiet enable --now {UNIT} && systemctl is-active {UNIT}"
    ))?;
    let relay = t.relay(SSH_PORT)?;
    sessions(t, &relay)?;

    t.sh_ok("rm /etc/systemd/system-generators/systemd-ssh-generator; systemctl daemon-reload")?;
    let generated = format!("[ -e /run/systemd/generator/{OWN} ]");
    if t.sh(&generated)?.status == 0 {
        t.sh_ok(&format!(
            "systemctl stop {UNIT} && systemctl start {UNIT} {OWN} && ! systemctl is-active {UNIT}"
        ))?;
        t.equal(
            "user",
            logged_in(&relay, "id -un", b"")?,
            b"root\n".to_vec(),
        )?;
    }
    t.sh_ok(&format!(
        "systemctl --quiet disable {UNIT}; systemctl stop {UNIT} {OWN}"
    ))?;

    drop(relay);
    t.wait_no_connections()?;
    wait(t, NO_SESSIONS)?;
    let failed = t.sh_ok("systemctl --failed --plain --no-legend")?;
    t.equal("units that failed", failed.as_str(), "")?;
    t.sh_ok("systemctl stop hv-kvp-daemon hv-vss-daemon")
        .map(|_| ())
}

/// A shell condition: no session is left, whichever unit has accepted it.
const NO_SESSIONS: &str =
    "[ -z \"$(systemctl list-units --plain --no-legend hv-utils-rust-ssh@* sshd-vsock@*)\" ]";

/// A file goes to the guest and back. Sessions at the same time do not disturb each other. A session ends when the host's
/// ssh is killed.
fn sessions(t: &Context<'_>, relay: &Relay) -> Result<()> {
    let run = |line: &str, input: &[u8]| logged_in(relay, line, input);
    t.equal("user", run("id -un", b"")?, b"root\n".to_vec())?;
    let file: Vec<u8> = (0..250_000u32).flat_map(u32::to_le_bytes).collect();
    let there = run("tee /root/file | sha256sum", &file)?;
    let here = output_of(Command::new("sha256sum"), &file)?;
    t.equal("checksums", there, here)?;
    t.check(run("cat /root/file", b"")? == file, "the file comes back")?;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..3)
            .map(|number| scope.spawn(move || run(&format!("echo {number}"), b"")))
            .collect();
        for (number, one) in (0..).zip(all) {
            let said = one.join().map_err(|_| "a thread has panicked")??;
            t.equal("said", said, format!("{number}\n").into_bytes())?;
        }
        Ok::<_, Error>(())
    })?;
    let mut command = relay.ssh("root")?;
    command.arg("touch /run/here; sleep 1000");
    let mut lasting = command.stdin(Stdio::null()).spawn()?;
    wait(t, "[ -e /run/here ]")?;
    lasting.kill()?;
    lasting.wait()?;
    wait(t, NO_SESSIONS)
}

/// Checks that data exchange and backup work.
pub fn daemons_work(t: &Context<'_>) -> Result<()> {
    let kvp = t.channel(Service::Kvp);
    kvp.wait_negotiated()?;
    let pairs = kvp.enumerate(AUTO)?;
    t.check(
        pairs.contains(&("OSName".to_owned(), "Debian GNU/Linux".to_owned())),
        "the host reads the system's name",
    )?;
    let vss = t.channel(Service::Vss);
    vss.wait_negotiated()?;
    let reply = vss.ask(vss::body(vss::HOT_BACKUP))?;
    t.equal("status of HOT_BACKUP", reply.status, S_OK)
}

/// All services work, though nobody inserts the module or starts a daemon.
fn systemd(t: &Context<'_>) -> Result<()> {
    let wait = |command: &str| wait(t, command);
    wait("udevadm settle --timeout=1")?;
    wait("systemctl is-system-running >/dev/null")?;
    let failed = t.sh_ok("systemctl --failed --plain --no-legend")?;
    t.equal("units that failed", failed.as_str(), "")?;
    let module = t.sh_ok("modinfo -n hv_utils")?;
    t.check(module.contains("/updates/"), "modprobe prefers this module")?;
    t.equal(
        "whether it is out of tree",
        t.sh_ok("cat /sys/module/hv_utils/taint")?.contains('O'),
        true,
    )?;
    for service in [Service::Heartbeat, Service::TimeSync] {
        t.channel(service).wait_negotiated()?;
    }
    for unit in ["hv-kvp-daemon", "hv-vss-daemon"] {
        wait(&format!("systemctl --quiet is-active {unit}"))?;
        t.sh_ok(&format!("systemctl is-active {unit}"))?;
    }
    daemons_work(t)?;
    t.sh_ok("systemctl stop hv-kvp-daemon hv-vss-daemon")
        .map(|_| ())
}
