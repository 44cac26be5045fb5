// SPDX-License-Identifier: GPL-2.0

//! Tracepoints of modules.
//!
//! C header: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h)

/// Declares the Rust entry points of tracepoints: [`kernel::tracepoint::declare_trace!`] with this crate's
/// bindings, which have those of modules, and with a function that says whether somebody traces. Either
/// costs one instruction while nobody does.
///
/// All of it is inlined: a module that uses none of the functions need not have the tracepoints.
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

        /// Returns whether somebody traces that.
        #[inline(always)]
        #[allow(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
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
