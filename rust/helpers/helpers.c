// SPDX-License-Identifier: GPL-2.0

#include <linux/hyperv.h>
#include <linux/interrupt.h>
#include <linux/ptp_clock_kernel.h>
#include <linux/ratelimit.h>
#include <linux/timekeeping.h>
#include <asm/mshyperv.h>
#include <clocksource/hyperv_timer.h>

#include "helpers.h"

void rust_helper_device_lock(struct device *dev)
{
	device_lock(dev);
}

void rust_helper_device_unlock(struct device *dev)
{
	device_unlock(dev);
}

/*
 * Reads the processor's counter and the reference time at one moment. False where
 * the hypervisor does not say how they go together, which on arm64 the kernel does
 * not ask it.
 */
bool rust_helper_hv_read_counters(struct system_counterval_t *processor, u64 *reference)
{
	processor->cs_id = CSID_X86_TSC;
	processor->use_nsecs = false;
	return hv_read_tsc_page_tsc(hv_get_tsc_page(), &processor->cycles, reference);
}

u64 rust_helper_hv_read_reference_counter(void)
{
	return hv_read_reference_counter();
}

bool rust_helper_in_hardirq(void)
{
	return in_hardirq();
}

/* Functions in the header where the kernel has no PTP clocks. */
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

void rust_helper_virt_mb(void)
{
	/* What it is for is said by its callers. */
	virt_mb();
}

/* Have the channel's callback called soon, as if the host had signalled. */
void rust_helper_vmbus_schedule(struct vmbus_channel *channel)
{
	tasklet_schedule(&channel->callback_event);
}

/*
 * As rust_helper_vmbus_schedule(), from process context: the callback runs
 * before this returns, unless it is running elsewhere.
 */
void rust_helper_vmbus_wake(struct vmbus_channel *channel)
{
	local_bh_disable();
	tasklet_schedule(&channel->callback_event);
	local_bh_enable();
}
