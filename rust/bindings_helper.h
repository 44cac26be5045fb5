/* SPDX-License-Identifier: GPL-2.0 */
/*
 * `bindgen` generates Rust bindings for the declarations in this header. The
 * bindings of the kernel crate exist in addition.
 */

#include <linux/hyperv.h>
#include <linux/ptp_clock_kernel.h>
#include <linux/ratelimit.h>
#include <linux/reboot.h>
#include <linux/workqueue.h>
#include <asm/mshyperv.h>

#include "helpers/helpers.h"
#include "../drivers/hv/hv_utils_trace.h"

/* Macros that bindgen does not evaluate. */
static const u32 RUST_CONST_HELPER_INVALID_RELID = INVALID_RELID;
