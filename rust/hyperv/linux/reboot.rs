// SPDX-License-Identifier: GPL-2.0

//! Orderly poweroff and reboot.
//!
//! C header: [`include/linux/reboot.h`](srctree/include/linux/reboot.h)

use crate::bindings;

/// Powers the system off through user space. If the poweroff program cannot be started, forces the
/// poweroff.
///
/// May be called in any context: a work item of the kernel does the work.
pub fn orderly_poweroff() {
    // SAFETY: Safe to be called in any context.
    unsafe { bindings::orderly_poweroff(true) };
}

/// Reboots the system through user space. If the reboot program cannot be started, forces the
/// reboot.
///
/// May be called in any context: a work item of the kernel does the work.
pub fn orderly_reboot() {
    // SAFETY: Safe to be called in any context.
    unsafe { bindings::orderly_reboot() };
}
