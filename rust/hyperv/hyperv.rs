// SPDX-License-Identifier: GPL-2.0

//! Abstractions for drivers of Hyper-V's VMBus, and for what such drivers need besides.
//!
//! Everything in here would move to `rust/kernel/` upstream. It knows nothing of any one device,
//! and all unsafe code of this project is in here: a driver on top needs none.
//!
//! Safe code cannot leave anything behind: channels, character devices and PTP clocks are Devres of
//! the device that they are made for. They end when they are dropped, and when the device is unbound
//! if they were leaked (`mem::forget`). Work items exist only inside channels. What was made last
//! ends first.

#![warn(clippy::multiple_unsafe_ops_per_block)]

pub mod channel;
pub mod chardev;
mod managed;
pub mod param;
pub mod power;
pub mod ptp;
pub mod ratelimit;
pub mod time;
pub mod vmbus;
pub mod work;

#[doc(hidden)]
pub mod bindings;
