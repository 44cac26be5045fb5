// SPDX-License-Identifier: GPL-2.0

//! What the kernel crate lacks, and what has nothing to do with Hyper-V.
//!
//! Each file here extends the file of `rust/kernel/` that has its name, or would be it upstream;
//! `super_block.rs` would be in `rust/kernel/fs/`. It uses nothing of this crate but the bindings, the
//! seam for the kernel's version ([`compat`](crate::compat)) and the other files here. `tests/check.sh`
//! checks that. So each can be sent to its maintainer. `workqueue.rs` has queues, which a driver's registration
//! creates: a bus calls `driver_registers()` and `driver_unregistered()`.

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
pub mod workqueue;
