// SPDX-License-Identifier: GPL-2.0
/* The code of the tracepoints. rust/hyperv/trace.rs calls them. */

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "hv_utils_trace.h"
