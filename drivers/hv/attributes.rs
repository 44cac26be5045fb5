// SPDX-License-Identifier: GPL-2.0

//! Files in `hv_utils/`, in the directory of each device in sysfs: `HvUtils::ATTRIBUTES` lists them.

use crate::{
    binding::BoundService,
    icmsg::{
        heartbeat::ApplicationState,
        Version, //
    },
};
use hyperv::linux::sysfs::Text;
use kernel::prelude::*;

/// The version of messages that was agreed on with the host; `none` before that.
pub(crate) fn version(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    match this.facts.version() {
        Some(Version { major, minor }) => write!(text, "{major}.{minor}"),
        None => write!(text, "none"),
    }
}

/// Returns whether the device is the heartbeat's.
pub(crate) fn is_heartbeat(this: Pin<&BoundService<'_>>) -> bool {
    this.health.is_some()
}

/// How applications are, as user space has said.
pub(crate) fn application_state(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    let health = this.health.as_ref().ok_or(ENODEV)?;
    write!(text, "{}", health.get().name())
}

/// Says how applications are. Fails with `EINVAL` for other texts than the states' names.
pub(crate) fn set_application_state(this: Pin<&BoundService<'_>>, text: &str) -> Result {
    let health = this.health.as_ref().ok_or(ENODEV)?;
    health.set(ApplicationState::from_name(text).ok_or(EINVAL)?);
    Ok(())
}
