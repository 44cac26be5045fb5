// SPDX-License-Identifier: GPL-2.0

//! Abstractions for drivers of Hyper-V's VMBus. What such drivers need besides is in [`linux`].
//!
//! Everything in here would move to `rust/kernel/` upstream. It knows nothing of any one device,
//! and all unsafe code of this project is in here: a driver on top needs none.
//!
//! Safe code cannot leave a callback behind. A channel, a character device or a PTP clock ends when it
//! is dropped. If it was leaked (`mem::forget`), it ends when its device is unbound. Work items exist
//! only inside channels, or end with the last driver of the module.

#![warn(clippy::multiple_unsafe_ops_per_block)]

pub mod channel;
pub mod compat;
pub mod linux;
pub mod ptp;
pub mod timer;
pub mod vmbus;

#[doc(hidden)]
pub mod bindings;
