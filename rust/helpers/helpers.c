// SPDX-License-Identifier: GPL-2.0

#include <linux/fs.h>
#include <linux/hyperv.h>
#include <linux/interrupt.h>
#include <linux/mutex.h>
#include <linux/ptp_clock_kernel.h>
#include <linux/ratelimit.h>
#include <linux/timekeeping.h>
#include <asm/mshyperv.h>
#ifdef CONFIG_X86
#include <asm/tsc.h>
#endif
#include <clocksource/hyperv_timer.h>

#include "helpers.h"

/* Serializes the registration and unregistration of the module's drivers. */
static DEFINE_MUTEX(drivers_mutex);

void rust_helper_drivers_lock(void)
{
	mutex_lock(&drivers_mutex);
}

void rust_helper_drivers_unlock(void)
{
	mutex_unlock(&drivers_mutex);
}

void rust_helper_device_lock(struct device *dev)
{
	device_lock(dev);
}

void rust_helper_device_unlock(struct device *dev)
{
	device_unlock(dev);
}

/*
 * Reads the TSC and the reference time at the same time. Returns false if the
 * hypervisor does not provide the relation between them. Always returns false on
 * arm64, where Linux does not use the reference TSC page.
 */
bool rust_helper_hv_read_counters(struct system_counterval_t *processor, u64 *reference)
{
	processor->cs_id = CSID_X86_TSC;
	processor->use_nsecs = false;
	return hv_read_tsc_page_tsc(hv_get_tsc_page(), &processor->cycles, reference);
}

/*
 * Returns whether rust_helper_hv_read_counters() works, and the kernel can use the TSC
 * as its clock source. Linux marks the TSC unstable if Hyper-V does not offer an
 * invariant TSC.
 */
bool rust_helper_hv_relates_counters(void)
{
#ifdef CONFIG_X86
	struct system_counterval_t processor;
	u64 reference;

	return !check_tsc_unstable() && rust_helper_hv_read_counters(&processor, &reference);
#else
	return false;
#endif
}

u64 rust_helper_hv_reference_counter(void)
{
	return hv_read_reference_counter();
}

/*
 * Returns whether a channel's callback was called by vmbus_isr(), not by the channel's
 * tasklet. vmbus_isr() calls callbacks in the interrupt, or in a thread on PREEMPT_RT.
 */
bool rust_helper_in_vmbus_isr(void)
{
	return in_hardirq() || !in_serving_softirq();
}

/* In a kernel without PTP support, the following are inline functions. */
struct ptp_clock *rust_helper_ptp_clock_register(struct ptp_clock_info *info, struct device *parent)
{
	return ptp_clock_register(info, parent);
}

void rust_helper_ptp_clock_unregister(struct ptp_clock *clock)
{
	ptp_clock_unregister(clock);
}

void rust_helper_ptp_read_system_postts(struct ptp_system_timestamp *sts)
{
	ptp_read_system_postts(sts);
}

void rust_helper_ptp_read_system_prets(struct ptp_system_timestamp *sts)
{
	ptp_read_system_prets(sts);
}

void rust_helper_ratelimit_default_init(struct ratelimit_state *rs)
{
	ratelimit_default_init(rs);
}

/* Takes an active reference to a superblock whose s_umount is held. */
bool rust_helper_super_get_active(struct super_block *sb)
{
	return atomic_inc_not_zero(&sb->s_active);
}

/*
 * Returns the number of free bytes in the outbound ring. Returns U32_MAX if the host has
 * corrupted the indices. In this case, sending fails with EIO.
 */
u32 rust_helper_vmbus_bytes_to_write(struct vmbus_channel *channel)
{
	const struct hv_ring_buffer_info *ring = &channel->outbound;

	if (READ_ONCE(ring->ring_buffer->read_index) >= ring->ring_datasize ||
	    READ_ONCE(ring->ring_buffer->write_index) >= ring->ring_datasize)
		return U32_MAX;
	return hv_get_bytes_to_write(ring);
}

/* Schedules the channel's callback, as if the host had signalled. */
void rust_helper_vmbus_schedule(struct vmbus_channel *channel)
{
	tasklet_schedule(&channel->callback_event);
}

/* Asks the host to signal when the outbound ring has room for size bytes, 0 for never. */
void rust_helper_vmbus_set_pending_size(struct vmbus_channel *channel, u32 size)
{
	set_channel_pending_send_size(channel, size);
	/*
	 * The host updates the read index before it reads the pending size. Order the
	 * write of the size before the caller's read of the index.
	 */
	virt_mb();
}

/*
 * rust_helper_vmbus_schedule() for process context: local_bh_enable() usually runs the
 * callback before this function returns.
 */
void rust_helper_vmbus_wake(struct vmbus_channel *channel)
{
	local_bh_disable();
	tasklet_schedule(&channel->callback_event);
	local_bh_enable();
}
