// SPDX-License-Identifier: GPL-2.0

#include <linux/hyperv.h>
#include <linux/interrupt.h>
#include <linux/ptp_clock_kernel.h>
#include <linux/ratelimit.h>
#include <asm/mshyperv.h>
#include <clocksource/hyperv_timer.h>

#include "helpers.h"

u64 rust_helper_hv_read_reference_counter(void)
{
	return hv_read_reference_counter();
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

/* Have the channel's callback called soon, as if the host had signalled. */
void rust_helper_vmbus_schedule(struct vmbus_channel *channel)
{
	tasklet_schedule(&channel->callback_event);
}

/*
 * Have the host signal when a packet of @size bytes fits into the outbound
 * ring. Returns true if it does already; a host that made room before it
 * could see the wish does not signal. A size of 0 takes the wish back.
 */
bool rust_helper_vmbus_wait_for_room(struct vmbus_channel *channel, u32 size)
{
	WRITE_ONCE(channel->outbound.ring_buffer->pending_send_sz, size);

	/* The host writes its read index, then reads the wish. */
	virt_mb();

	return hv_get_bytes_to_write(&channel->outbound) > size;
}
