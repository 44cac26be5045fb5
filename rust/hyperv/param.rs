// SPDX-License-Identifier: GPL-2.0

//! Module parameters that can be changed while the module is loaded.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use core::cell::UnsafeCell;

/// The value of a parameter that is a truth value; made by
/// [`module_param_bool!`](crate::module_param_bool).
#[repr(transparent)]
pub struct Bool(UnsafeCell<bool>);

// SAFETY: A `bool` is read and written by single accesses, by the kernel and by `Bool::get()`.
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

    /// The value now. May be called in any context.
    pub fn get(&self) -> bool {
        // SAFETY: The pointer is valid; the kernel writes nothing but 0 and 1.
        unsafe { self.0.get().read_volatile() }
    }
}

/// Declares a truth value as module parameter: a `static` of type [`Bool`] that root can read and
/// write in `/sys/module/<module>/parameters/`, and everybody can read.
///
/// # Examples
///
/// ```ignore
/// hyperv::module_param_bool!(eager, false, "Do it before it is asked for");
/// ```
#[macro_export]
macro_rules! module_param_bool {
    ($name:ident, $default:literal, $description:literal) => {
        #[allow(non_upper_case_globals)]
        #[doc = $description]
        pub(crate) static $name: $crate::param::Bool = $crate::param::Bool::new($default);

        const _: () = {
            const fn modinfo<const N: usize>(text: &str) -> [u8; N] {
                let mut bytes = [0; N];
                let mut i = 0;
                while i < N {
                    bytes[i] = text.as_bytes()[i];
                    i += 1;
                }
                bytes
            }

            const PARMTYPE: &str = concat!("parmtype=", stringify!($name), ":bool\0");
            const PARM: &str = concat!("parm=", stringify!($name), ":", $description, "\0");

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static PARMTYPE_INFO: [u8; PARMTYPE.len()] = modinfo(PARMTYPE);

            #[link_section = ".modinfo"]
            #[used(compiler)]
            static PARM_INFO: [u8; PARM.len()] = modinfo(PARM);

            #[link_section = "__param"]
            #[used(compiler)]
            static PARAM: ::kernel::module_param::KernelParam =
                ::kernel::module_param::KernelParam::new(::kernel::bindings::kernel_param {
                    name: ::kernel::str::as_char_ptr_in_const_context(::kernel::c_str!(
                        stringify!($name)
                    )),
                    // SAFETY: `__this_module` is constructed by the kernel at load time and will
                    // not be freed until the module is unloaded.
                    mod_: unsafe {
                        ::core::ptr::from_ref(&::kernel::bindings::__this_module).cast_mut()
                    },
                    // SAFETY: Only the address is taken.
                    ops: unsafe { &raw const ::kernel::bindings::param_ops_bool },
                    perm: 0o644,
                    level: -1,
                    flags: 0,
                    __bindgen_anon_1: ::kernel::bindings::kernel_param__bindgen_ty_1 {
                        arg: $name.as_ptr().cast(),
                    },
                });
        };
    };
}
