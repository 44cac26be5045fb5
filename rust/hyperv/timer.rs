// SPDX-License-Identifier: GPL-2.0

//! The hypervisor's reference time.
//!
//! C header: [`include/clocksource/hyperv_timer.h`](srctree/include/clocksource/hyperv_timer.h)

use crate::bindings;

/// Reads the partition reference time: the time since the virtual machine was started, in units of
/// 100 ns. It does not advance while the machine is saved. May be called in any context.
pub fn read_reference_counter() -> u64 {
    // SAFETY: Safe to be called in any context.
    unsafe { bindings::rust_helper_hv_reference_counter() }
}
