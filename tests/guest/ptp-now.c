// SPDX-License-Identifier: GPL-2.0
/*
 * ptp-now DEVICE: prints what a PTP clock says. Right before and after reading it, it writes to an
 * I/O port at which the emulated host looks at its own clock (tests/host/src/ports.rs).
 */
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define LOOK 0x560

int main(int argc, char **argv)
{
	struct timespec time;
	int clock, ports, failed = 0;

	if (argc != 2)
		return 2;
	clock = open(argv[1], O_RDONLY);
	ports = open("/dev/port", O_WRONLY);
	if (clock < 0 || ports < 0) {
		perror(clock < 0 ? argv[1] : "/dev/port");
		return 1;
	}
	/* The first time is to have all pages there. */
	for (int i = 0; i < 2; i++) {
		failed |= pwrite(ports, "", 1, LOOK) != 1;
		/* The clock of a file, see clock_getres(2). */
		failed |= clock_gettime((~(clockid_t)clock << 3) | 3, &time) != 0;
		failed |= pwrite(ports, "", 1, LOOK) != 1;
	}
	if (failed) {
		perror("ptp-now");
		return 1;
	}
	printf("%lld%09ld\n", (long long)time.tv_sec, time.tv_nsec);
	return 0;
}
