// SPDX-License-Identifier: GPL-2.0

//! VMBus as the host speaks it.
//!
//! [`bus`] holds the connection and the channels' life, with a file for each kind of message; [`channel`] is one device
//! on the bus, [`open`] its channel while it is open, with the rings; [`message`], [`gpadl`] and [`packet`] are the
//! layouts.

pub mod bus;
pub mod channel;
pub mod gpadl;
pub mod message;
pub mod open;
pub mod packet;

#[cfg(test)]
mod test_guest;
