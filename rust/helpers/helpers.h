/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Wrappers for C code that Rust cannot call directly: inline functions, macros and
 * function pointers in variables.
 */

#ifndef _RUST_HYPERV_HELPERS_H
#define _RUST_HYPERV_HELPERS_H

#include <linux/spinlock_types.h>
#include <linux/types.h>

struct device;
struct file;
struct ptp_clock;
struct ptp_clock_info;
struct ptp_system_timestamp;
struct ratelimit_state;
struct super_block;
struct system_counterval_t;
struct vmbus_channel;

void rust_helper_device_lock(struct device *dev);
void rust_helper_device_unlock(struct device *dev);
/* filp_open() for reading, with the root of the init process. */
struct file *rust_helper_filp_open_init(const char *path);
bool rust_helper_hv_read_counters(struct system_counterval_t *processor, u64 *reference);
u64 rust_helper_hv_reference_counter(void);
bool rust_helper_hv_relates_counters(void);
bool rust_helper_in_vmbus_isr(void);
struct ptp_clock *rust_helper_ptp_clock_register(struct ptp_clock_info *info,
						 struct device *parent);
void rust_helper_ptp_clock_unregister(struct ptp_clock *clock);
void rust_helper_ptp_read_system_postts(struct ptp_system_timestamp *sts);
void rust_helper_ptp_read_system_prets(struct ptp_system_timestamp *sts);
void rust_helper_ratelimit_default_init(struct ratelimit_state *rs);
/* Defined before 7.3 only. */
unsigned long rust_helper_spin_lock_irqsave(spinlock_t *lock);
bool rust_helper_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags);
void rust_helper_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags);
bool rust_helper_super_get_active(struct super_block *sb);
void rust_helper_drivers_lock(void);
void rust_helper_drivers_unlock(void);
u32 rust_helper_vmbus_bytes_to_write(struct vmbus_channel *channel);
void rust_helper_vmbus_schedule(struct vmbus_channel *channel);
void rust_helper_vmbus_set_pending_size(struct vmbus_channel *channel, u32 size);
void rust_helper_vmbus_wake(struct vmbus_channel *channel);

#endif
