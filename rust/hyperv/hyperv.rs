// SPDX-License-Identifier: GPL-2.0

//! Abstractions for drivers of Hyper-V's VMBus, and for what such drivers need besides.
//!
//! Everything in here would move to `rust/kernel/` upstream. It knows nothing of any one device,
//! and all unsafe code of this project is in here: a driver on top needs none.

pub mod channel;
pub mod chardev;
pub mod param;
pub mod power;
pub mod ptp;
pub mod ratelimit;
mod ring;
pub mod time;
pub mod vmbus;
pub mod work;

#[doc(hidden)]
pub mod bindings;
