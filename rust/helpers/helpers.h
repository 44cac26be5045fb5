/* SPDX-License-Identifier: GPL-2.0 */
/*
 * C code that Rust can't call: inline functions, macros and variables that
 * hold functions.
 */

#ifndef _RUST_HYPERV_HELPERS_H
#define _RUST_HYPERV_HELPERS_H

#include <linux/types.h>

struct ptp_system_timestamp;
struct ratelimit_state;
struct vmbus_channel;

u64 rust_helper_hv_read_reference_counter(void);
bool rust_helper_in_hardirq(void);
void rust_helper_ptp_read_system_postts(struct ptp_system_timestamp *sts);
void rust_helper_ptp_read_system_prets(struct ptp_system_timestamp *sts);
void rust_helper_ratelimit_default_init(struct ratelimit_state *rs);
void rust_helper_virt_mb(void);
void rust_helper_vmbus_schedule(struct vmbus_channel *channel);
void rust_helper_vmbus_wake(struct vmbus_channel *channel);

#endif
