// SPDX-License-Identifier: GPL-2.0

//! An emulated Hyper-V host: a small virtual machine monitor on KVM's Hyper-V enlightenments that boots a stock Linux
//! kernel and offers it the integration services over VMBus.
//!
//! From the bottom up:
//!
//! - [`kvm`], [`mapping`] and [`memory`] hold all the `unsafe`;
//! - [`boot`], [`acpi`], [`serial`], [`rtc`], [`cpuid`] are the machine that the kernel finds, [`ports`] its I/O ports;
//! - [`hypercall`] and [`synic`] are Hyper-V's own means of communication;
//! - [`vmbus`] is the bus on top of them, [`ring`] its ring buffers;
//! - [`ic`] is what the integration services say, [`service`] who they are;
//! - [`machine`] runs it all, [`snapshot`] is what it can go on from, [`images`] says where its kernel is, [`transcript`] records it;
//! - [`guest`] is what scenarios use, [`mailbox`] how it hands over commands, [`meter`] counts what the guest executes;
//! - [`prompt`] is what someone at a terminal uses: the guest's console, and commands to the host;
//! - [`nested`] runs a program in a QEMU guest where this machine's `/dev/kvm` has no SynIC.

#![warn(missing_docs, unreachable_pub)]

pub mod acpi;
pub mod boot;
pub mod bytes;
pub mod cpuid;
pub mod fuzz;
pub mod guest;
pub mod guid;
pub mod hypercall;
pub mod ic;
pub mod images;
pub mod kvm;
pub mod machine;
pub mod mailbox;
pub mod mapping;
pub mod memory;
pub mod meter;
pub mod nested;
pub mod ports;
pub mod prompt;
pub mod ring;
pub mod rtc;
pub mod serial;
pub mod service;
pub mod snapshot;
pub mod synic;
pub mod transcript;
pub mod vmbus;
