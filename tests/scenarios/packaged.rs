// SPDX-License-Identifier: GPL-2.0

//! Debian with the packages of `make deb`, installed by apt. `make check-packages` creates the image.

use std::time::Duration;
use std::time::Instant;

use host::guest::Result;
use host::ic::heartbeat;
use host::ic::shutdown;
use host::ic::shutdown::FORCE;
use host::ic::S_OK;
use host::machine::Exit;
use host::service::Service;

use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;
use crate::shown;
use crate::systemd;
use crate::systemd::wait;
use crate::systemd::LONG;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("packaged_services", services)
        .machine(PACKAGED)
        .unloaded()
        .rust_only()
        .apart()
        .ends_guest(),
    Scenario::new("packaged_shows_everything", shown::everything)
        .machine(PACKAGED)
        .unloaded()
        .rust_only()
        .apart()
        .expects_log(shown::LOG),
    Scenario::new("packaged_bpftrace", shown::by_bpftrace)
        .machine(PACKAGED)
        .unloaded()
        .rust_only()
        .apart()
        // bpftrace looks there.
        .expects_log(&["Automounting of tracing to debugfs is deprecated"]),
];

/// A machine that boots the image with the packages.
const PACKAGED: Machine = Machine {
    name: "debian with packages",
    change: |config| {
        systemd::debian(config, "packaged-");
        config.memory = 1536;
    },
};

/// The daemons of Debian's package.
const DAEMONS: [&str; 3] = ["hv-kvp-daemon", "hv-vss-daemon", "hv-fcopy-uio-daemon"];

/// The applications' states, as heartbeats have them.
const UNKNOWN: u32 = 0;
const HEALTHY: u32 = 1;

/// Waits until heartbeats report this state of the applications.
fn hears(t: &Context<'_>, state: u32) -> Result<()> {
    let heartbeat = t.channel(Service::Heartbeat);
    let begin = Instant::now();
    loop {
        let request = heartbeat.request(heartbeat::body(1, heartbeat::RESERVED))?;
        let reply = heartbeat.transact(&request)?;
        let is = heartbeat::application_state(&reply.body);
        if is == Some(state) || begin.elapsed() > Duration::from_secs(LONG) {
            return t.equal("the applications' state", is, Some(state));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// All six services work, though nobody starts anything. systemd restarts daemons that die. The host gets the
/// applications' state.
fn services(t: &Context<'_>) -> Result<()> {
    systemd::has_driver(t, "uio_hv_generic")?;
    let failed = t.sh_ok("systemctl --failed --plain --no-legend")?;
    t.equal("units that failed", failed.as_str(), "")?;
    let module = t.sh_ok("modinfo -n hv_utils")?;
    t.check(
        module.contains("/updates/hv-utils-rust/"),
        "modprobe takes the package's module",
    )?;

    for service in [Service::Heartbeat, Service::TimeSync, Service::Shutdown] {
        t.channel(service).wait_negotiated()?;
    }
    t.channel(Service::Heartbeat).script()?;
    hears(t, HEALTHY)?;
    t.sh_ok("systemctl stop hv-utils-rust-health")?;
    hears(t, UNKNOWN)?;
    t.sh_ok("systemctl start hv-utils-rust-health")?;
    hears(t, HEALTHY)?;

    wait(t, "[ -e /dev/ptp_hyperv ]")?;
    for daemon in DAEMONS {
        wait(t, &format!("systemctl --quiet is-active {daemon}"))?;
    }
    works(t)?;
    for daemon in DAEMONS {
        let pid = format!("systemctl show --property=MainPID --value {daemon}");
        let before = t.sh_ok(&pid)?;
        t.sh_ok(&format!("kill -9 {before}"))?;
        wait(
            t,
            &format!("[ $({pid}) != 0 ] && [ $({pid}) != {before} ] && systemctl --quiet is-active {daemon}"),
        )?;
    }

    // The module is removed and inserted. Its units stop, and start again.
    t.sh_ok(&format!(
        "systemctl stop {} && modprobe -r hv_utils",
        DAEMONS[..2].join(" ")
    ))?;
    wait(t, "! systemctl --quiet is-active hv-utils-rust-health")?;
    t.sh_ok("modprobe hv_utils")?;
    t.channel(Service::Heartbeat).negotiate_all()?;
    hears(t, HEALTHY)?;
    for daemon in DAEMONS {
        wait(t, &format!("systemctl --quiet is-active {daemon}"))?;
    }

    let channel = t.channel(Service::Shutdown);
    channel.wait_negotiated()?;
    let reply = channel.ask(shutdown::body(FORCE, "asked by a test"))?;
    t.equal("status of the shutdown", reply.status, S_OK)?;
    t.equal(
        "end",
        t.wait_exit(Duration::from_secs(LONG))?,
        Exit::PowerOff,
    )
}

/// Checks that data exchange, backup and file copy work.
fn works(t: &Context<'_>) -> Result<()> {
    systemd::daemons_work(t)?;
    systemd::copies(t)
}
