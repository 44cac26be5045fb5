// SPDX-License-Identifier: GPL-2.0

//! An emulated Hyper-V host: a small virtual machine monitor that uses KVM's Hyper-V enlightenments. It boots a stock
//! Linux kernel and offers the integration services over VMBus.
//!
//! The modules, from the bottom up:
//!
//! - [`kvm`], [`mapping`] and [`memory`] hold all the `unsafe`;
//! - [`boot`], [`acpi`], [`serial`], [`rtc`] and [`cpuid`] are the machine's parts; [`ports`] connects them to I/O
//!   ports;
//! - [`hypercall`] and [`synic`] are the hypervisor's means of communication;
//! - [`vmbus`] is the bus, [`ring`] a ring buffer;
//! - [`ic`] is the host's side of the integration services, [`service`] the list of services;
//! - [`machine`] runs all of these, [`snapshot`] is a saved machine, [`transcript`] records packets;
//! - [`images`] finds the guest's kernel and initramfs;
//! - [`guest`] is the interface for scenarios, [`mailbox`] carries their commands to the guest, [`meter`] counts the
//!   guest's instructions;
//! - [`prompt`] is the interface for a person at a terminal: the guest's console, and commands to the host;
//! - [`nested`] runs the program in a QEMU guest if this machine's `/dev/kvm` has no SynIC.
//!
//! # Facts and inferences
//!
//! Two marks in comments tell how the behaviour of a Windows host is known:
//!
//! - Fact: read in the code of Microsoft's open-source VMM. That VMM has VMBus, and the services KVP, guest shutdown
//!   and time synchronization.
//! - Inference: derived from message definitions and from the C driver (`drivers/hv`). For heartbeat and VSS that VMM
//!   has definitions only, for fcopy nothing.

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
