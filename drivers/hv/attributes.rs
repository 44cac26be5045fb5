// SPDX-License-Identifier: GPL-2.0

//! The attributes of a device: files in its sysfs directory `hv_utils/`. `HvUtils::ATTRIBUTES`
//! lists them.

use crate::{
    binding::BoundService,
    daemon,
    icmsg::heartbeat::ApplicationState,
    timesync::HostClock, //
};
use core::fmt::Display;
use hyperv::linux::sysfs::Text;
use kernel::prelude::*;

/// Writes a value, or `none` if there is no value.
fn write_or_none(text: &mut Text<'_>, value: Option<impl Display>) -> Result {
    match value {
        Some(value) => write!(text, "{value}"),
        None => write!(text, "none"),
    }
}

/// Shows the message version that host and guest have agreed on; `none` if they have not agreed.
pub(crate) fn version(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write_or_none(text, this.facts.version())
}

/// Shows the number of messages from the host that got or will get an answer.
pub(crate) fn requests(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", this.facts.requests())
}

/// Shows the number of answers that were sent to the host.
pub(crate) fn replies(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", this.facts.replies())
}

/// Shows the number of answers that report a failure, or that no version is common.
pub(crate) fn refused(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", this.facts.refused())
}

/// Shows the number of packets that were dropped without an answer.
pub(crate) fn ignored(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", this.facts.ignored())
}

/// Returns whether the service has a daemon.
pub(crate) fn has_daemon(this: Pin<&BoundService<'_>>) -> bool {
    this.work.is_some()
}

/// Returns the facts about the service's daemon.
///
/// Fails with `ENODEV` if the service has no daemon.
fn work<'a>(this: &'a Pin<&BoundService<'_>>) -> Result<&'a daemon::Facts> {
    this.work.as_deref().ok_or(ENODEV)
}

/// Shows whether a daemon has registered: `registered` or `absent`.
pub(crate) fn daemon(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    match work(&this)?.registered() {
        Some(_) => write!(text, "registered"),
        None => write!(text, "absent"),
    }
}

/// Shows the time since the daemon has registered, in milliseconds; `none` without a daemon.
pub(crate) fn daemon_age(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write_or_none(text, work(&this)?.registered())
}

/// Shows the number of requests for which the daemon or the file systems took too long.
pub(crate) fn late(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", work(&this)?.late())
}

/// Shows the event that the service waits for; see [`daemon::Awaited`].
pub(crate) fn state(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", work(&this)?.awaited().name())
}

/// Shows how long the service has been in its current `state`, in milliseconds.
pub(crate) fn state_age(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    write_or_none(text, work(&this)?.awaited_for())
}

/// Returns whether the device is that of VSS.
pub(crate) fn has_freezer(this: Pin<&BoundService<'_>>) -> bool {
    this.freezer.is_some()
}

/// Shows the block devices of the file systems that are frozen for the host, separated by spaces;
/// `none` if no file system is frozen, `thawing` while the module thaws them. If a name does not
/// fit into a page, the list ends before this name.
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

/// Shows the time since the daemon had frozen all file systems for the host, in milliseconds;
/// `none` unless all of them are still frozen.
pub(crate) fn frozen_age(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    let freezer = this.freezer.as_ref().ok_or(ENODEV)?;
    write_or_none(text, freezer.frozen_for())
}

/// Returns whether the device is that of heartbeat.
pub(crate) fn is_heartbeat(this: Pin<&BoundService<'_>>) -> bool {
    this.health.is_some()
}

/// Shows the state of the guest's applications that user space has set.
pub(crate) fn application_state(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    let health = this.health.as_ref().ok_or(ENODEV)?;
    write!(text, "{}", health.get().name())
}

/// Sets the state of the guest's applications.
///
/// Fails with `EINVAL` if `text` is not the name of a state.
pub(crate) fn set_application_state(this: Pin<&BoundService<'_>>, text: &str) -> Result {
    let health = this.health.as_ref().ok_or(ENODEV)?;
    health.set(ApplicationState::from_name(text).ok_or(EINVAL)?);
    Ok(())
}

/// Returns whether the device is that of time synchronisation.
pub(crate) fn has_host_clock(this: Pin<&BoundService<'_>>) -> bool {
    this.host_clock.is_some()
}

/// Writes the value that `get` returns for the host's clock, or `none`.
fn of_host_clock<T: Display>(
    this: Pin<&BoundService<'_>>,
    text: &mut Text<'_>,
    get: impl FnOnce(&HostClock) -> Option<T>,
) -> Result {
    write_or_none(text, this.host_clock.as_deref().and_then(get))
}

/// Shows the leap indicator in the last sample; `none` if there is no sample or no indicator.
pub(crate) fn leap(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    of_host_clock(this, text, |host| {
        host.quality().map(|quality| quality.leap)
    })
}

/// Shows the stratum in the last sample; `none` if there is no sample or no stratum.
pub(crate) fn stratum(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    of_host_clock(this, text, |host| {
        host.quality().map(|quality| quality.stratum)
    })
}

/// Shows the host's time minus the system's time, in nanoseconds; `none` while the PTP clock cannot
/// be read.
pub(crate) fn offset(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    of_host_clock(this, text, |host| host.offset().ok())
}

/// Shows the age of the last sample in milliseconds; `none` if the age is unknown.
pub(crate) fn age(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    of_host_clock(this, text, |host| host.age().map(|age| age / 10_000))
}

/// Shows the number of samples whose reference time was more than 10 ms ahead of the guest's.
pub(crate) fn samples_ahead(this: Pin<&BoundService<'_>>, text: &mut Text<'_>) -> Result {
    of_host_clock(this, text, |host| Some(host.samples_ahead()))
}
