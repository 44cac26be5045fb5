// SPDX-License-Identifier: GPL-2.0
/* The tracepoints' code, once in the module. Rust calls them by rust/hyperv/trace.rs. */

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "hv_utils_trace.h"
