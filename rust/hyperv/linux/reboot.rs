// SPDX-License-Identifier: GPL-2.0

//! Powering the system off and restarting it, in order.
//!
//! C header: [`include/linux/reboot.h`](srctree/include/linux/reboot.h)

use crate::bindings;

/// Has user space power the system off; does it by force where that can't be started.
///
/// May be called in any context: it is the kernel's own work item that does it.
pub fn orderly_poweroff() {
    // SAFETY: Safe to be called in any context.
    unsafe { bindings::orderly_poweroff(true) };
}

/// Has user space restart the system; does it by force where that can't be started.
///
/// May be called in any context: it is the kernel's own work item that does it.
pub fn orderly_reboot() {
    // SAFETY: Safe to be called in any context.
    unsafe { bindings::orderly_reboot() };
}
