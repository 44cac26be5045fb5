// SPDX-License-Identifier: GPL-2.0
/*
 * ptp-reads DEVICE TIMES: reads a PTP clock TIMES times with clock_gettime(). Does nothing else:
 * other programs that read a PTP clock spend most of their time on output.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv)
{
	struct timespec time;
	int fd;

	if (argc != 3)
		return 2;
	fd = open(argv[1], O_RDONLY);
	if (fd < 0) {
		perror(argv[1]);
		return 1;
	}
	/* The clock id of a file, see clock_getres(2). */
	for (long left = atol(argv[2]); left > 0; left--) {
		if (clock_gettime((~(clockid_t)fd << 3) | 3, &time)) {
			perror("clock_gettime");
			return 1;
		}
	}
	return 0;
}
