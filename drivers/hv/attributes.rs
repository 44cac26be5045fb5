// SPDX-License-Identifier: GPL-2.0

//! Files in `hv_utils/`, in the directory of each device in sysfs: `HvUtils::ATTRIBUTES` lists them.

use crate::{
    binding::BoundService,
    icmsg::Version, //
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
