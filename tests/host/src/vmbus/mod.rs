// SPDX-License-Identifier: GPL-2.0

//! VMBus, from the host's side.
//!
//! [`bus`] has the connection and the life of channels, with a file for each kind of message. [`channel`] is a device
//! on the bus, [`open`] its open channel with the rings. [`message`], [`gpadl`], [`packet`] and [`socket`] are the
//! layouts.

pub mod bus;
pub mod channel;
pub mod gpadl;
pub mod message;
pub mod open;
pub mod packet;
pub mod socket;

#[cfg(test)]
mod test_guest;
