// SPDX-License-Identifier: GPL-2.0

//! Tracepoints of modules.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

/// Declares two functions for each tracepoint: one calls the tracepoint, the other returns whether
/// the tracepoint is enabled. While it is disabled, each function costs one instruction.
///
/// [`kernel::tracepoint::declare_trace!`] is similar. It uses the bindings of the kernel crate,
/// which do not contain the tracepoints of modules, and lacks the second function.
///
/// All functions are inlined. A module that calls none of them does not need the tracepoints.
macro_rules! declare_trace {
    ($(
        $(#[$attr:meta])*
        $pub:vis unsafe fn $name:ident, $is_on:ident($($argname:ident : $argtyp:ty),* $(,)?);
    )*) => {$(
        $( #[$attr] )*
        #[inline(always)]
        $pub unsafe fn $name($($argname : $argtyp),*) {
            #[cfg(CONFIG_TRACEPOINTS)]
            if $is_on() {
                kernel::macros::paste! {
                    // SAFETY: The caller guarantees that it is okay to call this tracepoint.
                    unsafe { $crate::bindings::[< rust_do_trace_ $name >]($($argname),*) };
                }
            }

            #[cfg(not(CONFIG_TRACEPOINTS))]
            {
                // If tracepoints are disabled, insert a trivial use of each argument
                // to avoid unused argument warnings.
                $( let _unused = $argname; )*
            }
        }

        /// Returns whether the tracepoint is enabled.
        #[inline(always)]
        #[allow(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        #[cfg_attr(not(CONFIG_TRACEPOINTS), allow(dead_code))]
        $pub fn $is_on() -> bool {
            #[cfg(CONFIG_TRACEPOINTS)]
            {
                // SAFETY: It's always okay to query the static key for a tracepoint.
                let is_on = unsafe {
                    kernel::macros::paste! {
                        kernel::jump_label::static_branch_unlikely!(
                            $crate::bindings::[< __tracepoint_ $name >],
                            $crate::bindings::tracepoint,
                            key
                        )
                    }
                };
                is_on
            }

            #[cfg(not(CONFIG_TRACEPOINTS))]
            false
        }
    )*}
}

pub(crate) use declare_trace;
