// SPDX-License-Identifier: GPL-2.0

//! VMBus as the host speaks it.
//!
//! [`bus`] holds the connection and the channels' life; [`channel`] one open channel with its rings; [`message`],
//! [`gpadl`] and [`packet`] the layouts.

pub mod bus;
pub mod channel;
pub mod gpadl;
pub mod message;
pub mod packet;
