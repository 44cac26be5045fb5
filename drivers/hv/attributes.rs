// SPDX-License-Identifier: GPL-2.0

//! Files in `hv_utils/`, in the directory of each device in sysfs: `HvUtils::ATTRIBUTES` lists them.

use crate::{
    binding::BoundService,
    icmsg::heartbeat::ApplicationState,
    timesync::HostClock, //
};
use core::fmt::Display;
use hyperv::linux::sysfs::Text;
use kernel::prelude::*;

/// Writes a value; `none` if there is none.
fn write_or_none(text: &mut Text<'_>, value: Option<impl Display>) -> Result {
    match value {
        Some(value) => write!(text, "{value}"),
        None => write!(text, "none"),
    }
}

/// The version of messages that was agreed on with the host; `none` before that.
pub(crate) fn version(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write_or_none(text, this.facts.version())
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

/// Returns whether the device is that of time synchronisation.
pub(crate) fn has_host_clock(this: Pin<&BoundService<'_>>) -> bool {
    this.host_clock.is_some()
}

/// Writes what `get` knows of the host's clock.
fn of_host_clock<T: Display>(
    this: Pin<&BoundService<'_>>,
    text: &mut Text<'_>,
    get: impl FnOnce(&HostClock) -> Option<T>,
) -> Result {
    write_or_none(text, this.host_clock.as_deref().and_then(get))
}

/// The leap indicator in the last sample; `none` without one.
pub(crate) fn leap(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    of_host_clock(this, text, |host| {
        host.quality().map(|quality| quality.leap)
    })
}

/// The stratum in the last sample; `none` without one.
pub(crate) fn stratum(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    of_host_clock(this, text, |host| {
        host.quality().map(|quality| quality.stratum)
    })
}

/// Nanoseconds that the host's clock is ahead of the system's; `none` while the PTP clock is not readable.
pub(crate) fn offset(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    of_host_clock(this, text, |host| host.offset().ok())
}

/// Milliseconds since the last sample came; `none` without one.
pub(crate) fn age(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    of_host_clock(this, text, |host| host.age().map(|age| age / 10_000))
}

/// Number of samples that were taken in the future, by the guest's reference time.
pub(crate) fn samples_ahead(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    of_host_clock(this, text, |host| Some(host.samples_ahead()))
}
