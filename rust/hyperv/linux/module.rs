// SPDX-License-Identifier: GPL-2.0

//! The current module.
//!
//! C header: [`include/linux/init.h`](srctree/include/linux/init.h)

use crate::bindings;
use kernel::ThisModule;

/// Returns the module that this code is part of, `THIS_MODULE` in C.
///
/// This crate is linked into each module that uses it, so callers need not name their module.
pub const fn this_module() -> &'static ThisModule {
    const RAW: *mut bindings::module = &raw mut bindings::__this_module;

    // SAFETY: The module loader constructs `__this_module` before code of the module runs, and
    // keeps it until the module is unloaded. The linker resolves `__this_module` to that of the
    // module that this crate is linked into.
    const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(RAW) };

    &THIS_MODULE
}
