// SPDX-License-Identifier: GPL-2.0

//! Debian as it is installed: udev finds the devices and has the module loaded, systemd starts the daemons.

use std::path::Path;
use std::time::Duration;

use host::guest::Result;
use host::ic::kvp::AUTO;
use host::ic::vss;
use host::ic::S_OK;
use host::machine::Config;
use host::service::Service;

use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;

/// The scenarios of this file. Which of two modules is loaded is depmod's business: one will do.
pub const SCENARIOS: &[Scenario] = &[Scenario::new("systemd", systemd)
    .machine(DEBIAN)
    .unloaded()
    .rust_only()
    .apart()];

/// It has the image with systemd instead of the small one.
const DEBIAN: Machine = Machine {
    name: "debian",
    change: debian,
};

fn debian(config: &mut Config) {
    let name = |archive: &Path| {
        archive
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    // Debian has its own daemons, and /bin is a link there.
    config
        .initrds
        .retain(|archive| !name(archive).starts_with("daemons-"));
    for archive in &mut config.initrds {
        let name = name(archive);
        if let Some(flavour) = name.strip_prefix("inner-") {
            *archive = archive.with_file_name(format!("systemd-{flavour}"));
        }
    }
    // For the image, and what it is unpacked to.
    config.memory = 1024;
}

/// How long what systemd and udev do may take, in seconds.
const LONG: u64 = 300;

/// Nobody inserts the module or starts a daemon, and all of it works.
fn systemd(t: &Context<'_>) -> Result<()> {
    let wait = |command: &str| {
        t.sh_within(
            &format!("timeout {LONG} sh -c 'until {command}; do sleep 1; done'"),
            Duration::from_secs(LONG + 10),
        )
    };
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
    t.equal("status of HOT_BACKUP", reply.status, S_OK)?;
    t.sh_ok("systemctl stop hv-kvp-daemon hv-vss-daemon")
        .map(|_| ())
}
