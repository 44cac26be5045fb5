// SPDX-License-Identifier: GPL-2.0

//! Module parameters that can be read and changed at run time.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use crate::bindings;
use core::cell::UnsafeCell;
use kernel::prelude::*;

/// The value of a boolean parameter. Created by [`module_param_bool!`](crate::module_param_bool).
#[repr(transparent)]
pub struct Bool(UnsafeCell<bool>);

// SAFETY: The kernel and `Bool::get()` access the `bool` by single reads and writes.
unsafe impl Sync for Bool {}

impl Bool {
    #[doc(hidden)]
    pub const fn new(value: bool) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[doc(hidden)]
    pub const fn as_ptr(&self) -> *mut bool {
        self.0.get()
    }

    /// Returns the current value. May be called in any context.
    pub fn get(&self) -> bool {
        // SAFETY: The pointer is valid. The kernel only writes 0 and 1.
        unsafe { self.0.get().read_volatile() }
    }
}

/// The value of an unsigned integer parameter. Created by
/// [`module_param_uint!`](crate::module_param_uint).
#[repr(transparent)]
pub struct Uint(UnsafeCell<u32>);

// SAFETY: The kernel and `Uint::get()` access the `u32` by single reads and writes.
unsafe impl Sync for Uint {}

impl Uint {
    #[doc(hidden)]
    pub const fn new(value: u32) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[doc(hidden)]
    pub const fn as_ptr(&self) -> *mut u32 {
        self.0.get()
    }

    /// Returns the current value. May be called in any context.
    pub fn get(&self) -> u32 {
        // SAFETY: The pointer is valid.
        unsafe { self.0.get().read_volatile() }
    }
}

/// Sets a parameter from text. Fails with `EINVAL` unless the text is a number from `MIN` to `MAX`.
///
/// # Safety
///
/// `value` must be null or a C string. The argument of `param` must be a `u32`.
#[doc(hidden)]
pub unsafe extern "C" fn set_uint<const MIN: u32, const MAX: u32>(
    value: *const c_char,
    param: *const bindings::kernel_param,
) -> c_int {
    // SAFETY: Guaranteed by the safety requirements of this function.
    match unsafe { bindings::param_set_uint_minmax(value, param, MIN, MAX) } {
        0 => 0,
        // The error is `ERANGE` for more than 32 bits.
        _ => EINVAL.to_errno(),
    }
}

/// Declares an unsigned integer with a range as a module parameter: a `static` of type [`Uint`],
/// and a file in `/sys/module/<module>/parameters/` with mode `$mode`. Values outside the range are
/// rejected (`EINVAL`).
///
/// # Examples
///
/// ```no_run
/// # use kernel::prelude::*;
/// # struct MyModule;
/// # impl kernel::Module for MyModule {
/// #     fn init(_: &'static ThisModule) -> Result<Self> {
/// #         Ok(Self)
/// #     }
/// # }
/// # module! { type: MyModule, name: "my_module", license: "GPL", }
/// hyperv::module_param_uint!(patience, 0o644, 30, 0..=3600, "Seconds to wait");
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! module_param_uint {
    ($name:ident, $mode:literal, $default:expr, $min:literal..=$max:literal, $description:literal) => {
        $crate::module_param!(
            $name,
            $mode,
            $crate::linux::module_param::Uint::new($default),
            $crate::linux::module_param::Uint,
            {
                static OPS: ::kernel::bindings::kernel_param_ops =
                    ::kernel::bindings::kernel_param_ops {
                        flags: 0,
                        set: Some($crate::linux::module_param::set_uint::<$min, $max>),
                        get: Some(::kernel::bindings::param_get_uint),
                        free: None,
                    };
                &raw const OPS
            },
            "uint",
            $description
        );
    };
}

/// Declares a boolean module parameter: a `static` of type [`Bool`], and a file in
/// `/sys/module/<module>/parameters/` with mode `$mode`.
///
/// # Examples
///
/// ```no_run
/// # use kernel::prelude::*;
/// # struct MyModule;
/// # impl kernel::Module for MyModule {
/// #     fn init(_: &'static ThisModule) -> Result<Self> {
/// #         Ok(Self)
/// #     }
/// # }
/// # module! { type: MyModule, name: "my_module", license: "GPL", }
/// hyperv::module_param_bool!(eager, 0o444, false, "Do it before it is asked for");
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! module_param_bool {
    ($name:ident, $mode:literal, $default:expr, $description:literal) => {
        $crate::module_param!(
            $name,
            $mode,
            $crate::linux::module_param::Bool::new($default),
            $crate::linux::module_param::Bool,
            // SAFETY: This only takes the address.
            unsafe { &raw const ::kernel::bindings::param_ops_bool },
            "bool",
            $description
        );
    };
}

/// Common part of the macros above.
#[doc(hidden)]
#[macro_export]
#[allow(
    clippy::crate_in_macro_def,
    reason = "the module is that of the caller"
)]
macro_rules! module_param {
    ($name:ident, $mode:literal, $default:expr, $type:ty, $ops:expr, $kind:literal, $description:literal) => {
        #[allow(non_upper_case_globals)]
        #[doc = $description]
        pub(crate) static $name: $type = $default;

        const _: () = {
            // The names of a built-in module's parameters begin with the module's.
            const MODULE: &[u8] = if cfg!(MODULE) {
                b""
            } else {
                <crate::LocalModule as ::kernel::ModuleMetadata>::NAME.to_bytes()
            };
            const PREFIX: usize = if MODULE.is_empty() {
                0
            } else {
                MODULE.len() + 1
            };

            const fn prefixed<const N: usize>(text: &str) -> [u8; N] {
                let mut bytes = [b'.'; N];
                let mut i = 0;
                while i < MODULE.len() {
                    bytes[i] = MODULE[i];
                    i += 1;
                }
                i = 0;
                while i < text.len() {
                    bytes[PREFIX + i] = text.as_bytes()[i];
                    i += 1;
                }
                bytes
            }

            const PARMTYPE: &str = concat!("parmtype=", stringify!($name), ":", $kind, "\0");
            const PARM: &str = concat!("parm=", stringify!($name), ":", $description, "\0");
            const NAME: &str = concat!(stringify!($name), "\0");

            static NAME_BYTES: [u8; PREFIX + NAME.len()] = prefixed(NAME);

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static PARMTYPE_INFO: [u8; PREFIX + PARMTYPE.len()] = prefixed(PARMTYPE);

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static PARM_INFO: [u8; PREFIX + PARM.len()] = prefixed(PARM);

            #[link_section = "__param"]
            #[used(compiler)]
            static PARAM: ::kernel::module_param::KernelParam =
                ::kernel::module_param::KernelParam::new(::kernel::bindings::kernel_param {
                    name: (&raw const NAME_BYTES).cast(),
                    mod_: $crate::linux::module::this_module().as_ptr(),
                    ops: $ops,
                    perm: $mode,
                    level: -1,
                    flags: 0,
                    __bindgen_anon_1: ::kernel::bindings::kernel_param__bindgen_ty_1 {
                        arg: $name.as_ptr().cast(),
                    },
                });
        };
    };
}
