// SPDX-License-Identifier: GPL-2.0

//! Tracepoints of the integration services.
//!
//! `drivers/hv` defines the tracepoints. Calling them needs unsafe code, which `drivers/hv` must
//! not contain. So this module of the crate knows a particular driver, unlike all others.
//!
//! All functions may be called in any context except NMI, but not while timekeeping is suspended.
//! While a tracepoint is disabled, its functions cost one instruction each.
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

/// The time at which a service has accepted a message. `None` if `hv_utils_reply` was disabled at
/// that time.
pub type Start = Option<Instant<Monotonic>>;

/// Returns whether `hv_utils_request` is enabled.
#[inline(always)]
pub fn request_is_on() -> bool {
    raw::hv_utils_request_is_on()
}

/// Returns whether `hv_utils_reply` is enabled.
#[inline(always)]
pub fn reply_is_on() -> bool {
    raw::hv_utils_reply_is_on()
}

/// Returns whether `hv_utils_thawed` is enabled.
#[inline(always)]
pub fn thawed_is_on() -> bool {
    raw::hv_utils_thawed_is_on()
}

/// Returns whether `hv_utils_frozen` is enabled.
#[inline(always)]
pub fn frozen_is_on() -> bool {
    raw::hv_utils_frozen_is_on()
}

/// Returns the current time, to be passed to [`reply`].
#[inline(always)]
pub fn start() -> Start {
    reply_is_on().then(Instant::now)
}

/// Traces the negotiation of a version. `major` and `minor` are the message version, or 0 if host
/// and guest have no version in common.
#[inline(always)]
pub fn negotiation(service: &str, major: u16, minor: u16) {
    let (name, len) = c(service);

    // SAFETY: The name is valid for reads.
    unsafe { raw::hv_utils_negotiation(name, len, major, minor) };
}

/// Traces a message that gets an answer. `kind` is the message type, `len` the length of the
/// packet's payload in bytes.
#[inline(always)]
pub fn request(service: &str, transaction: u64, kind: u16, len: usize) {
    let (name, name_len) = c(service);

    // SAFETY: The name is valid for reads.
    unsafe { raw::hv_utils_request(name, name_len, transaction, kind, len) };
}

/// Traces the answer to a message. `start` is the time at which the service has accepted the
/// message. `status` is an `HRESULT`. `was_sent` says whether the answer is in the outbound ring.
#[inline(always)]
pub fn reply(service: &str, transaction: u64, status: u32, start: Start, was_sent: bool) {
    let latency = start.map_or(0, |start| start.elapsed().as_nanos());
    let (name, len) = c(service);

    // CAST: `CLOCK_MONOTONIC` does not go back.
    // SAFETY: The name is valid for reads.
    unsafe { raw::hv_utils_reply(name, len, transaction, status, latency as u64, was_sent) };
}

/// Traces a question to the daemon. `len` is its length in bytes.
#[inline(always)]
pub fn asked(service: &str, len: usize) {
    let (name, name_len) = c(service);

    // SAFETY: The name is valid for reads.
    unsafe { raw::hv_utils_asked(name, name_len, len) };
}

/// Traces the end of a question to the daemon. `outcome` is "answered", "gone", "timed out" or
/// "given up".
#[inline(always)]
pub fn answered(service: &str, outcome: &str) {
    let ((name, name_len), (outcome, outcome_len)) = (c(service), c(outcome));

    // SAFETY: Both are valid for reads.
    unsafe { raw::hv_utils_answered(name, name_len, outcome, outcome_len) };
}

/// Traces a packet that gets no answer. `reason` is "short", "response" or "not in-band".
#[inline(always)]
pub fn ignored(service: &str, reason: &str) {
    let ((name, name_len), (reason, reason_len)) = (c(service), c(reason));

    // SAFETY: Both are valid for reads.
    unsafe { raw::hv_utils_ignored(name, name_len, reason, reason_len) };
}

/// Traces a file system that was frozen. `device` is the name of its block device.
#[inline(always)]
pub fn frozen(device: &[u8]) {
    let (device, len) = c(device);

    // SAFETY: The name is valid for reads.
    unsafe { raw::hv_utils_frozen(device, len) };
}

/// Traces a file system that was thawed or failed to thaw. `device` is the name of its block
/// device. `cause` says why the file system was thawed, or who thawed the file system.
#[inline(always)]
pub fn thawed(device: &[u8], cause: &str, result: Result) {
    let ((device, device_len), (cause, cause_len)) = (c(device), c(cause));
    let error = result.map_or_else(Error::to_errno, |()| 0);

    // SAFETY: Both are valid for reads.
    unsafe { raw::hv_utils_thawed(device, device_len, cause, cause_len, error) };
}

/// Converts a text to the arguments of a C function: pointer and length.
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
