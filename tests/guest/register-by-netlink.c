// SPDX-License-Identifier: GPL-2.0
/*
 * Registers as the KVP daemon over the connector. With the driver in C, any user can do this.
 */
#include <linux/connector.h>
#include <linux/hyperv.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NOBODY 65534

int main(void)
{
	static struct {
		struct nlmsghdr header;
		struct cn_msg message;
		struct hv_kvp_msg kvp;
	} packet;
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	int netlink = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_CONNECTOR);

	packet.header.nlmsg_len = sizeof(packet);
	packet.header.nlmsg_type = NLMSG_DONE;
	packet.message.id.idx = CN_KVP_IDX;
	packet.message.id.val = CN_KVP_VAL;
	packet.message.len = sizeof(packet.kvp);
	packet.kvp.kvp_hdr.operation = KVP_OP_REGISTER1;
	if (netlink < 0 || setuid(NOBODY) ||
	    sendto(netlink, &packet, sizeof(packet), 0, (struct sockaddr *)&kernel,
		   sizeof(kernel)) < 0) {
		perror("register-by-netlink");
		return 1;
	}
	return 0;
}
