// SPDX-License-Identifier: GPL-2.0

//! Files in `hv_utils/`, in the directory of each device in sysfs: `HvUtils::ATTRIBUTES` lists them.

use crate::{
    binding::BoundService,
    daemon,
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

/// Messages of the host that got an answer, or are to get one.
pub(crate) fn requests(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", this.facts.requests())
}

/// Answers that were sent.
pub(crate) fn replies(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", this.facts.replies())
}

/// Answers that say that a request failed.
pub(crate) fn refused(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", this.facts.refused())
}

/// Packets that were dropped without an answer.
pub(crate) fn ignored(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", this.facts.ignored())
}

/// Returns whether a daemon does the work of the service.
pub(crate) fn has_daemon(this: Pin<&BoundService<'_>>) -> bool {
    this.work.is_some()
}

/// What is known of the daemon's work.
fn work<'a>(this: &'a Pin<&BoundService<'_>>) -> Result<&'a daemon::Facts> {
    this.work.as_deref().ok_or(ENODEV)
}

/// Whether a daemon has registered.
pub(crate) fn daemon(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    match work(&this)?.registered() {
        Some(_) => write!(text, "registered"),
        None => write!(text, "absent"),
    }
}

/// Milliseconds since the daemon has registered; `none` without one.
pub(crate) fn daemon_age(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write_or_none(text, work(&this)?.registered())
}

/// Requests for which the daemon, or the kernel, took too long.
pub(crate) fn late(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", work(&this)?.late())
}

/// What the service waits for.
pub(crate) fn state(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", work(&this)?.awaited().name())
}

/// Milliseconds for which it has waited for that.
pub(crate) fn state_age(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write_or_none(text, work(&this)?.awaited_for())
}

/// Returns whether the device is that of backups.
pub(crate) fn has_freezer(this: Pin<&BoundService<'_>>) -> bool {
    this.freezer.is_some()
}

/// The file systems that are frozen for the host; `none` if there are none, `thawing` while the module thaws
/// them. What does not fit into a page is left out.
pub(crate) fn frozen(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    let freezer = this.freezer.as_ref().ok_or(ENODEV)?;
    let mut result = Ok(());
    let mut gap = "";
    let is_known = freezer.for_each_frozen(&mut |super_block| {
        if result.is_ok() {
            result = write!(text, "{gap}{}", format_args!("{}", super_block.name()));
            gap = " ";
        }
    });
    match gap {
        "" if is_known => write!(text, "none"),
        "" => write!(text, "thawing"),
        _ => Ok(()),
    }
}

/// Milliseconds since all was frozen that the host has asked for; `none` if it is not.
pub(crate) fn frozen_age(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    let freezer = this.freezer.as_ref().ok_or(ENODEV)?;
    write_or_none(text, freezer.frozen_for())
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
