// SPDX-License-Identifier: GPL-2.0

//! The tracepoints of the integration services. They are the one thing here that is about a module:
//! `drivers/hv`, which defines them, has no unsafe code.
//!
//! All functions may be called in any context but NMI, and not while timekeeping is suspended. While
//! nobody traces, each costs one instruction.
//!
//! C header: `drivers/hv/hv_utils_trace.h`

use crate::linux::tracepoint::declare_trace;
use kernel::{
    ffi::c_char,
    prelude::*,
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// When a service took a message, as far as somebody traces; see [`reply`].
pub type Start = Option<Instant<Monotonic>>;

/// Returns whether somebody traces requests.
#[inline(always)]
pub fn request_is_on() -> bool {
    raw::hv_utils_request_is_on()
}

/// Returns whether somebody traces replies.
#[inline(always)]
pub fn reply_is_on() -> bool {
    raw::hv_utils_reply_is_on()
}

/// Returns whether somebody traces file systems that are thawed.
#[inline(always)]
pub fn thawed_is_on() -> bool {
    raw::hv_utils_thawed_is_on()
}

/// Returns whether somebody traces file systems that are frozen.
#[inline(always)]
pub fn frozen_is_on() -> bool {
    raw::hv_utils_frozen_is_on()
}

/// The present, for [`reply`].
#[inline(always)]
pub fn start() -> Start {
    reply_is_on().then(Instant::now)
}

/// The host has offered versions; both numbers are 0 if none is common.
#[inline(always)]
pub fn negotiation(service: &str, major: u16, minor: u16) {
    let (name, len) = c(service);

    // SAFETY: The name is valid for reads.
    unsafe { raw::hv_utils_negotiation(name, len, major, minor) };
}

/// A message that is answered came in, in a packet of `len` bytes.
#[inline(always)]
pub fn request(service: &str, transaction: u64, kind: u16, len: usize) {
    let (name, name_len) = c(service);

    // SAFETY: The name is valid for reads.
    unsafe { raw::hv_utils_request(name, name_len, transaction, kind, len) };
}

/// A message is answered.
#[inline(always)]
pub fn reply(service: &str, transaction: u64, status: u32, start: Start, was_sent: bool) {
    let latency = start.map_or(0, |start| start.elapsed().as_nanos());
    let (name, len) = c(service);

    // CAST: Time does not go back.
    // SAFETY: The name is valid for reads.
    unsafe { raw::hv_utils_reply(name, len, transaction, status, latency as u64, was_sent) };
}

/// The daemon was asked in a message of `len` bytes.
#[inline(always)]
pub fn asked(service: &str, len: usize) {
    let (name, name_len) = c(service);

    // SAFETY: The name is valid for reads.
    unsafe { raw::hv_utils_asked(name, name_len, len) };
}

/// The daemon has answered, or will not.
#[inline(always)]
pub fn answered(service: &str, outcome: &str) {
    let ((name, name_len), (outcome, outcome_len)) = (c(service), c(outcome));

    // SAFETY: Both are valid for reads.
    unsafe { raw::hv_utils_answered(name, name_len, outcome, outcome_len) };
}

/// A packet is not answered.
#[inline(always)]
pub fn ignored(service: &str, reason: &str) {
    let ((name, name_len), (reason, reason_len)) = (c(service), c(reason));

    // SAFETY: Both are valid for reads.
    unsafe { raw::hv_utils_ignored(name, name_len, reason, reason_len) };
}

/// A file system is frozen.
#[inline(always)]
pub fn frozen(device: &[u8]) {
    let (device, len) = c(device);

    // SAFETY: The name is valid for reads.
    unsafe { raw::hv_utils_frozen(device, len) };
}

/// A file system is thawed, or could not be.
#[inline(always)]
pub fn thawed(device: &[u8], cause: &str, result: Result) {
    let ((device, device_len), (cause, cause_len)) = (c(device), c(cause));
    let error = result.map_or_else(Error::to_errno, |()| 0);

    // SAFETY: Both are valid for reads.
    unsafe { raw::hv_utils_thawed(device, device_len, cause, cause_len, error) };
}

/// A text as C gets it: a pointer and a length.
#[inline(always)]
fn c(text: &(impl AsRef<[u8]> + ?Sized)) -> (*const c_char, usize) {
    let text = text.as_ref();
    (text.as_ptr().cast(), text.len())
}

mod raw {
    use super::*;

    declare_trace! {
        /// # Safety
        ///
        /// The text must be valid for reads.
        pub(super) unsafe fn hv_utils_negotiation, hv_utils_negotiation_is_on(
            service: *const c_char,
            service_len: usize,
            major: u16,
            minor: u16,
        );

        /// # Safety
        ///
        /// The text must be valid for reads.
        pub(super) unsafe fn hv_utils_request, hv_utils_request_is_on(
            service: *const c_char,
            service_len: usize,
            transaction: u64,
            kind: u16,
            len: usize,
        );

        /// # Safety
        ///
        /// The text must be valid for reads.
        pub(super) unsafe fn hv_utils_reply, hv_utils_reply_is_on(
            service: *const c_char,
            service_len: usize,
            transaction: u64,
            status: u32,
            latency: u64,
            was_sent: bool,
        );

        /// # Safety
        ///
        /// The text must be valid for reads.
        pub(super) unsafe fn hv_utils_asked, hv_utils_asked_is_on(
            service: *const c_char,
            service_len: usize,
            len: usize,
        );

        /// # Safety
        ///
        /// The texts must be valid for reads.
        pub(super) unsafe fn hv_utils_answered, hv_utils_answered_is_on(
            service: *const c_char,
            service_len: usize,
            outcome: *const c_char,
            outcome_len: usize,
        );

        /// # Safety
        ///
        /// The texts must be valid for reads.
        pub(super) unsafe fn hv_utils_ignored, hv_utils_ignored_is_on(
            service: *const c_char,
            service_len: usize,
            reason: *const c_char,
            reason_len: usize,
        );

        /// # Safety
        ///
        /// The text must be valid for reads.
        pub(super) unsafe fn hv_utils_frozen, hv_utils_frozen_is_on(
            device: *const c_char,
            device_len: usize,
        );

        /// # Safety
        ///
        /// The texts must be valid for reads.
        pub(super) unsafe fn hv_utils_thawed, hv_utils_thawed_is_on(
            device: *const c_char,
            device_len: usize,
            cause: *const c_char,
            cause_len: usize,
            error: c_int,
        );
    }
}
