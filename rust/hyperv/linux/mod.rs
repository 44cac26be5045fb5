// SPDX-License-Identifier: GPL-2.0

//! Abstractions that the kernel crate lacks, and that are not specific to Hyper-V.
//!
//! Upstream, each file here would extend or become the file of the same name in `rust/kernel/`;
//! `super_block.rs` would be in `rust/kernel/fs/`. Of this crate, the files here use only the
//! bindings, [`compat`](crate::compat) and each other, so that each can be sent to its maintainer.
//! `tests/check.sh` checks this rule. The queues of `workqueue.rs` exist while a driver is
//! registered: the bus abstraction calls `driver_registers()` and `driver_unregistered()`.

pub(crate) mod devres;
pub mod miscdevice;
pub mod module;
pub mod module_param;
pub mod ratelimit;
pub mod reboot;
pub mod rwonce;
pub mod super_block;
pub mod suspend;
pub mod sysfs;
pub mod time;
pub(crate) mod tracepoint;
pub mod workqueue;
