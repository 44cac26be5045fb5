// SPDX-License-Identifier: GPL-2.0

//! Bindings to the C side: the bindings of the kernel crate, and the additional bindings that
//! `bindgen_parameters` lists.

#![allow(
    clippy::all,
    clippy::cast_lossless,
    clippy::multiple_unsafe_ops_per_block,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

pub use kernel::bindings::*;

use kernel::ffi;

include!(env!("HYPERV_BINDINGS_RS"));
