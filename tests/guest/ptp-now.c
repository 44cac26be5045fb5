// SPDX-License-Identifier: GPL-2.0
/*
 * ptp-now DEVICE: reads a PTP clock and prints its time. Right before and right after the reading,
 * writes to an I/O port, at which the emulated host reads its own clock (tests/host/src/ports.rs).
 */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define LOOK 0x560

int main(int argc, char **argv)
{
	struct timespec now;
	int fd, ports;

	if (argc != 2)
		return 2;
	fd = open(argv[1], O_RDONLY);
	ports = open("/dev/port", O_WRONLY);
	if (fd < 0 || ports < 0) {
		perror(fd < 0 ? argv[1] : "/dev/port");
		return 1;
	}
	/* The first round brings all pages into memory. The second one counts. */
	for (int i = 0; i < 2; i++) {
		/* The clock id of a file, see clock_getres(2). */
		if (pwrite(ports, "", 1, LOOK) != 1 ||
		    clock_gettime((~(clockid_t)fd << 3) | 3, &now) ||
		    pwrite(ports, "", 1, LOOK) != 1) {
			perror("ptp-now");
			return 1;
		}
	}
	printf("%lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
	return 0;
}
