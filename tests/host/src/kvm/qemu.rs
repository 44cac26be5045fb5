// SPDX-License-Identifier: GPL-2.0

//! Works around a bug in QEMU's emulation of SVM, for machines in QEMU.
//!
//! When VMRUN injects an interrupt, QEMU 10 records the vector as the next exception to raise. The record stays until
//! the processor leaves the guest or takes another exception. If the emulation stops in between, QEMU raises that
//! vector again, even with interrupts disabled, and the guest's handler deadlocks with itself. (The emulation stops
//! when another processor needs the translations flushed, or at the end of a time slice under `-icount`.)
//!
//! The workaround forces an exit right after each injection, before any instruction. A perf event on the entry wakes
//! the readers of its buffer, and the kernel does so by an interrupt to itself.

use std::ffi::c_int;
use std::ffi::c_long;
use std::ffi::c_ulong;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use super::bindings;
use super::check;
use super::ioctl;
use crate::mapping::Mapping;

extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

/// `SYS_perf_event_open`
const PERF_EVENT_OPEN: c_long = 298;

/// `PERF_EVENT_IOC_SET_FILTER`
const SET_FILTER: c_ulong = 0x4008_2406;

/// `EVENTINJ.V` of the event that KVM is about to inject.
const FILTER: &[u8] = b"intr_info & 0x80000000\0";

/// The file with the tracepoint's number.
const ID: &str = "/sys/kernel/tracing/events/kvm/kvm_entry/id";

/// A page for the event's state, and a page of data that nobody reads and the kernel overwrites.
const BUFFER: usize = 2 * 4096;

/// Makes the calling thread's virtual processor leave the guest right after each injection, as long as the value lives.
pub struct ExitAfterInjection {
    _event: OwnedFd,
    _buffer: Mapping,
}

impl ExitAfterInjection {
    /// Applies to the calling thread. Fails if the kernel lacks the tracepoint.
    pub fn of_this_thread() -> io::Result<Self> {
        let explain = |error: io::Error| io::Error::new(error.kind(), format!("{ID}: {error}"));
        let id = fs::read_to_string(ID).map_err(explain)?;
        let mut attributes = bindings::perf_event_attr {
            type_: bindings::perf_type_id_PERF_TYPE_TRACEPOINT,
            size: size_of::<bindings::perf_event_attr>() as u32,
            config: id.trim().parse().map_err(io::Error::other)?,
            ..Default::default()
        };
        attributes.__bindgen_anon_1.sample_period = 1;
        attributes.__bindgen_anon_2.wakeup_events = 1;
        // SAFETY: The kernel reads `size` bytes of the structure, which lives until the call returns.
        let fd = unsafe { syscall(PERF_EVENT_OPEN, &mut attributes, 0, -1, -1, 0) };
        let fd = check("perf_event_open", fd as c_int)?;
        // SAFETY: perf_event_open returned a new descriptor without another owner.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: The filter is a zero-terminated string, and the kernel copies it.
        let set = unsafe { ioctl(event.as_raw_fd(), SET_FILTER, FILTER.as_ptr()) };
        check("PERF_EVENT_IOC_SET_FILTER", set)?;
        let buffer = Mapping::shared_read_only(&event, BUFFER)?;
        Ok(Self {
            _event: event,
            _buffer: buffer,
        })
    }
}
