// SPDX-License-Identifier: GPL-2.0

//! The module that code belongs to.
//!
//! C header: [`include/linux/init.h`](srctree/include/linux/init.h)

use crate::bindings;
use kernel::ThisModule;

/// Returns the module that calls this, `THIS_MODULE` in C.
///
/// This crate is linked into each module that uses it. So no caller needs to name its module.
pub const fn this_module() -> &'static ThisModule {
    const RAW: *mut bindings::module = &raw mut bindings::__this_module;

    // SAFETY: The module loader constructs `__this_module` before code of the module runs, and keeps it
    // until the module is unloaded. The linker takes it from the module that this crate is linked into.
    const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(RAW) };

    &THIS_MODULE
}
