// SPDX-License-Identifier: GPL-2.0

//! Abstractions for drivers of VMBus devices. [`linux`] holds the abstractions that are not
//! specific to Hyper-V.
//!
//! Upstream, this crate would be part of `rust/kernel/`. It contains all unsafe code of this
//! project, and except for [`trace`], it knows no particular driver. A driver on top of it needs no
//! unsafe code.
//!
//! Safe code cannot leave a callback behind. Dropping a channel closes the channel. Dropping a
//! character device or a PTP clock unregisters the device or clock. If the object was leaked
//! (`mem::forget`), unbinding the VMBus device does the same. A work item either belongs to a
//! channel, or ends when the last driver of the module is unregistered.

#![warn(clippy::multiple_unsafe_ops_per_block)]

pub mod channel;
pub mod compat;
pub mod linux;
pub mod ptp;
pub mod timer;
pub mod trace;
pub mod vmbus;

#[doc(hidden)]
pub mod bindings;
