// SPDX-License-Identifier: GPL-2.0
/*
 * fuzz [SECONDS [SEED]]: makes random calls on hv_utils' character devices, parameters and
 * attributes, for SECONDS (5) or until SIGINT. Prints the seed. The same seed repeats the decisions
 * of each process, but not their timing.
 *
 * Checks that a second opener is refused, that no read or write exceeds its size, and that all
 * processes end. The caller has to check the kernel's log.
 *
 * Skips a device that a daemon has open.
 *
 * Not for guests that matter: answers a backup's FREEZE without freezing, and sets the state of the
 * guest's applications, on which a cluster may act.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"

#define LONGEST	8192
/* An address without memory. */
#define NOWHERE	((void *)-4096L)
/* Seconds within which a process must end when its time is over. */
#define PATIENCE 20

struct device {
	const char *path;
	/* The length of a daemon's message, and its first byte in two kinds of registration. */
	size_t len;
	unsigned char registration[2];
};

static const struct device devices[] = {
	{ "/dev/vmbus/hv_kvp", 7432, { 100, 4 } },
	{ "/dev/vmbus/hv_vss", 12, { 129, 128 } },
	{ "/dev/vmbus/hv_fcopy", 4, { 1, 0 } },
};

/* The path of the heartbeat's attribute. Only the module in Rust has the attribute. */
static char application_state[512];

/* Missing files are skipped. */
static const char * const parameters[] = {
	"/sys/module/hv_utils/parameters/timesync_implicit",
	"/sys/module/hv_utils/parameters/vss_freeze_limit",
	"/sys/module/hv_utils/parameters/kvp_protocol",
	"/sys/module/hv_utils/parameters/vss_protocol",
	application_state,
};

/* The offsets of the texts in the KVP daemon's message about addresses, and the end of the last. */
static const size_t texts[] = { 262, 2310, 4358, 5382, 7430 };

/* Shared by all processes: counters of the calls, and whether a check has failed. */
enum { OPENS, READS, WRITES, ANSWERS, OTHERS, COUNTS };

static const char * const names[COUNTS] = { "opens", "reads", "writes", "answers", "others" };

struct shared {
	int stop;
	int failed[ARRAY_SIZE(devices)];
	unsigned long count[ARRAY_SIZE(devices)][COUNTS];
};

static struct shared *shared;

/* The state of a pseudorandom number generator (xorshift64*), for each thread. */
static __thread unsigned long long state;

static void seed_with(unsigned long long seed)
{
	state = seed * 0x9e3779b97f4a7c15 + 1;
	if (!state)
		state = 1;
}

static unsigned int below(unsigned int limit)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return ((state * 0x2545f4914f6cdd1d) >> 33) % limit;
}

static int one_in(unsigned int count)
{
	return below(count) == 0;
}

static void fill(unsigned char *bytes, size_t len)
{
	while (len--)
		*bytes++ = below(256);
}

static void counted(int device, int what)
{
	__atomic_add_fetch(&shared->count[device][what], 1, __ATOMIC_RELAXED);
}

static void failed(int device, const char *what)
{
	ksft_print_msg("%s: %s\n", devices[device].path, what);
	__atomic_store_n(&shared->failed[device], 1, __ATOMIC_RELAXED);
}

static int is_over(void)
{
	return __atomic_load_n(&shared->stop, __ATOMIC_RELAXED);
}

static void nothing(int signal)
{
}

static void stop(int signal)
{
	__atomic_store_n(&shared->stop, 1, __ATOMIC_RELAXED);
}

/*
 * Signals only interrupt waiting calls. The first thread of a process gets all signals, unless it
 * blocks them.
 */
static void interrupt_often(void)
{
	struct sigaction action = { .sa_handler = nothing };
	struct itimerval timer = {
		.it_value = { .tv_usec = 20000 },
		.it_interval = { .tv_usec = 20000 },
	};

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

/* Returns the size of a message, a size close to it, or any size. */
static size_t any_size(const struct device *device)
{
	switch (below(4)) {
	case 0:
		return device->len;
	case 1:
		return device->len + below(17) - 8 * (device->len > 8);
	case 2:
		return below(16);
	default:
		return below(LONGEST + 1);
	}
}

static void read_any(int device, int fd, unsigned char *message)
{
	size_t size = any_size(&devices[device]);
	ssize_t done;

	if (size > LONGEST)
		size = LONGEST;
	counted(device, READS);
	switch (below(4)) {
	case 0:
		done = read(fd, NOWHERE, size);
		break;
	case 1:
		done = pread(fd, message, size, below(100000));
		break;
	case 2: {
		struct iovec parts[2] = {
			{ message, size / 3 },
			{ message + size / 3, size - size / 3 },
		};

		done = readv(fd, parts, 2);
		break;
	}
	default:
		done = read(fd, message, size);
	}
	if (done > (ssize_t)size)
		failed(device, "more was read than asked for");
}

static void write_any(int device, int fd, unsigned char *message)
{
	size_t size = any_size(&devices[device]);
	ssize_t done;

	if (size > LONGEST)
		size = LONGEST;
	if (one_in(2))
		fill(message, below(64));
	if (one_in(4))
		message[0] = devices[device].registration[below(2)];
	counted(device, WRITES);
	switch (below(4)) {
	case 0:
		done = write(fd, NOWHERE, size);
		break;
	case 1:
		done = pwrite(fd, message, size, below(100000));
		break;
	case 2: {
		struct iovec parts[2] = {
			{ message, size / 3 },
			{ message + size / 3, size - size / 3 },
		};

		done = writev(fd, parts, 2);
		break;
	}
	default:
		done = write(fd, message, size);
	}
	if (done >= 0 && done > (ssize_t)size)
		failed(device, "more was written than given");
}

/* Registers as a daemon does. */
static void hello(int device, int fd, unsigned char *message)
{
	memset(message, 0, devices[device].len);
	message[0] = devices[device].registration[one_in(4)];
	if (write(fd, message, devices[device].len) > 0)
		(void)!read(fd, message, LONGEST);
}

/* Writes any number of addresses, subnets, gateways and name servers in the KVP daemon's format. */
static void fill_addresses(unsigned char *message)
{
	static const char * const entries[] = {
		"10.9.8.7;", "255.255.255.0;", "fd00::1;", "2001:db8:1:2:3:4:5:6;", "64;", "129;",
		"fe80::2%eth0;", ";", "x", "10.9.8.7",
	};
	/* Mostly of one kind, so that some lists are valid. */
	int i, most, left;

	for (i = 0; i + 1 < ARRAY_SIZE(texts); i++) {
		size_t at = texts[i];

		most = below(ARRAY_SIZE(entries));
		for (left = below(one_in(4) ? 300 : 8); left; left--) {
			const char *entry = entries[one_in(8) ? below(ARRAY_SIZE(entries)) : most];
			size_t len = strlen(entry);

			if (at + len > texts[i + 1])
				break;
			memcpy(message + at, entry, len);
			at += len;
		}
		if (at < texts[i + 1] && !one_in(8))
			message[at] = 0;
	}
}

/* Waits 10 ms for a question, and answers it, right or wrong. */
static void answer(int device, int fd, unsigned char *message)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };
	unsigned int status = one_in(2) ? 0 : 0x80004005;
	int is_about_addresses;

	if (poll(&pollfd, 1, 10) <= 0 || read(fd, message, LONGEST) <= 0)
		return;
	/* KVP_OP_GET_IP_INFO */
	is_about_addresses = device == 0 && message[0] == 4;
	memcpy(message, &status, sizeof(status));
	if (is_about_addresses && !one_in(4))
		fill_addresses(message);
	else if (one_in(4))
		fill(message + 4, below(LONGEST - 4));
	if (write(fd, message, devices[device].len) > 0)
		counted(device, ANSWERS);
}

static void poll_any(int fd)
{
	struct pollfd pollfd = { .fd = fd, .events = below(0x8000) };
	struct epoll_event event = { .events = below(0x20) };
	int set;

	if (one_in(2)) {
		poll(&pollfd, 1, below(20));
		return;
	}
	set = epoll_create1(0);
	epoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
	epoll_wait(set, &event, 1, below(20));
	close(set);
}

/* Makes calls that no daemon makes, or that the devices do not support. */
static void other(int device, int fd)
{
	int ends[2];
	struct stat is;
	void *memory;
	int copy;

	counted(device, OTHERS);
	switch (below(10)) {
	case 0:
		lseek(fd, below(100000), below(5));
		break;
	case 1:
		ioctl(fd, below(65536), below(65536));
		break;
	case 2:
		memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			      below(2) ? MAP_SHARED : MAP_PRIVATE, fd, below(3) * 4096);
		if (memory != MAP_FAILED)
			munmap(memory, 4096);
		break;
	case 3:
		if (pipe(ends))
			break;
		if (one_in(2))
			splice(fd, NULL, ends[1], NULL, below(LONGEST), SPLICE_F_NONBLOCK);
		else if (write(ends[1], &is, sizeof(is)) > 0)
			splice(ends[0], NULL, fd, NULL, below(sizeof(is)) + 1, SPLICE_F_NONBLOCK);
		close(ends[0]);
		close(ends[1]);
		break;
	case 4:
		copy = open("/proc/self/exe", O_RDONLY);
		sendfile(fd, copy, NULL, below(LONGEST));
		close(copy);
		break;
	case 5:
		fcntl(fd, F_SETFL, below(2) ? O_NONBLOCK : 0);
		break;
	case 6:
		copy = dup(fd);
		if (one_in(2))
			poll_any(copy);
		close(copy);
		break;
	case 7:
		fsync(fd);
		(void)!ftruncate(fd, below(100));
		break;
	case 8:
		fcntl(fd, F_SETOWN, getpid());
		fcntl(fd, F_SETFL, O_ASYNC);
		fcntl(fd, F_SETFL, 0);
		break;
	default:
		fstat(fd, &is);
	}
}

static void anything(int device, int fd, unsigned char *message)
{
	switch (below(8)) {
	case 0:
		read_any(device, fd, message);
		break;
	case 1:
		write_any(device, fd, message);
		break;
	case 2:
		poll_any(fd);
		break;
	case 3:
		other(device, fd);
		break;
	case 4:
		hello(device, fd, message);
		break;
	default:
		answer(device, fd, message);
	}
}

struct helper {
	int device;
	int fd;
	unsigned long long seed;
};

/* Runs in a second thread or process that uses the same file. */
static void *help(void *context)
{
	struct helper *helper = context;
	unsigned char message[LONGEST] = {};
	int left;

	seed_with(helper->seed);
	for (left = below(8); left && !is_over(); left--)
		anything(helper->device, helper->fd, message);
	return NULL;
}

/* Opens the device, uses it, and closes it. */
static void live(int device)
{
	static const int ways[] = {
		O_RDWR, O_RDWR, O_RDWR, O_RDWR | O_NONBLOCK, O_RDWR | O_APPEND, O_RDONLY, O_WRONLY,
	};
	struct helper helper = {
		.device = device,
		.fd = open(devices[device].path, ways[below(ARRAY_SIZE(ways))]),
	};
	unsigned char message[LONGEST] = {};
	int fd = helper.fd, left, second, has_thread = 0;
	pthread_t thread;
	pid_t child = -1;

	if (fd < 0) {
		usleep(1000);
		return;
	}
	counted(device, OPENS);
	second = open(devices[device].path, O_RDWR);
	if (second >= 0) {
		failed(device, "a second opener");
		close(second);
	}
	if (!one_in(4))
		hello(device, fd, message);
	helper.seed = below(1 << 30);
	if (one_in(8)) {
		child = fork();
		if (!child) {
			interrupt_often();
			help(&helper);
			_exit(0);
		}
	} else if (one_in(4)) {
		has_thread = !pthread_create(&thread, NULL, help, &helper);
	}
	for (left = below(30); left && !is_over(); left--)
		anything(device, fd, message);
	/* The other thread or process may still use the file. */
	if (one_in(2))
		close(fd);
	if (has_thread) {
		sigset_t alarm;

		sigemptyset(&alarm);
		sigaddset(&alarm, SIGALRM);
		pthread_sigmask(SIG_BLOCK, &alarm, NULL);
		pthread_join(thread, NULL);
		pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
	}
	close(fd);
	if (child > 0 && one_in(4))
		kill(child, SIGKILL);
	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
}

/* Finds the heartbeat's attribute. */
static void find_application_state(void)
{
	static const char drivers[] = "/sys/bus/vmbus/drivers/hv_utils";
	DIR *folder = opendir(drivers);
	struct dirent *entry;

	while (folder && (entry = readdir(folder))) {
		snprintf(application_state, sizeof(application_state),
			 "%s/%s/hv_utils/application_state", drivers, entry->d_name);
		if (!access(application_state, F_OK))
			break;
	}
	if (folder)
		closedir(folder);
}

/* Writes valid and invalid values to the parameters and the attribute. */
static void write_parameters(void)
{
	static const char * const values[] = {
		"Y", "N", "1", "0", "", "\n", "2", "4", "5", "6", "7", "8", "yes please", "on\n",
		"unknown", "healthy\n", "critical", "stopped\n", "stopped ",
	};
	char text[256];
	int fd, i;

	for (i = 0; i < ARRAY_SIZE(parameters); i++) {
		fd = open(parameters[i], below(2) ? O_RDWR : O_WRONLY);
		if (fd < 0)
			continue;
		if (one_in(4)) {
			fill((unsigned char *)text, sizeof(text));
			(void)!write(fd, text, below(sizeof(text)));
		} else {
			const char *value = values[below(ARRAY_SIZE(values))];

			(void)!write(fd, value, strlen(value));
		}
		(void)!pread(fd, text, below(sizeof(text)), below(4));
		close(fd);
	}
	usleep(1000);
}

/* Starts a process that runs live() or write_parameters() until stopped. Returns its pid. */
static pid_t start(int device, unsigned long long seed)
{
	pid_t child = fork();

	if (child)
		return child;
	signal(SIGINT, SIG_IGN);
	seed_with(seed);
	interrupt_often();
	while (!is_over()) {
		if (device < ARRAY_SIZE(devices))
			live(device);
		else
			write_parameters();
	}
	_exit(0);
}

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

/* Returns whether a process ends by itself before this time. */
static int has_ended(pid_t child, double until)
{
	int status;

	while (waitpid(child, &status, WNOHANG) == 0) {
		if (now() > until) {
			kill(child, SIGKILL);
			return 0;
		}
		usleep(10000);
	}
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 5, end;
	unsigned long long seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	char before[ARRAY_SIZE(parameters)][16] = {};
	pid_t children[ARRAY_SIZE(devices) + 1];
	const char *skips[ARRAY_SIZE(devices)] = {};
	int i, what, fd;

	ksft_print_header();
	if (access("/sys/module/hv_utils", F_OK))
		ksft_exit_skip("the module hv_utils is not loaded\n");
	ksft_set_plan(ARRAY_SIZE(devices) + 1);
	ksft_print_msg("seed %llu\n", seed);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED)
		ksft_exit_fail_msg("no memory\n");
	signal(SIGINT, stop);
	find_application_state();
	for (i = 0; i < ARRAY_SIZE(parameters); i++) {
		fd = open(parameters[i], O_RDONLY);
		(void)!read(fd, before[i], sizeof(before[i]) - 1);
		close(fd);
	}
	for (i = 0; i < ARRAY_SIZE(devices); i++) {
		fd = open(devices[i].path, O_RDWR);
		if (fd < 0)
			skips[i] = strerror(errno);
		close(fd);
	}
	for (i = 0; i < ARRAY_SIZE(devices); i++)
		children[i] = skips[i] ? 0 : start(i, seed + i);
	children[i] = start(i, seed + i);
	end = now() + seconds;
	while (!is_over() && now() < end)
		usleep(10000);
	stop(0);
	end = now() + PATIENCE;
	for (i = 0; i < ARRAY_SIZE(devices); i++) {
		if (skips[i]) {
			ksft_test_result_skip("%s: %s\n", devices[i].path, skips[i]);
			continue;
		}
		if (!has_ended(children[i], end))
			failed(i, "a process does not end");
		ksft_print_msg("%s:", devices[i].path);
		for (what = 0; what < COUNTS; what++)
			printf(" %lu %s", shared->count[i][what], names[what]);
		printf("\n");
		ksft_test_result(!shared->failed[i], "%s\n", devices[i].path);
	}
	ksft_test_result(has_ended(children[i], end), "parameters\n");
	for (i = 0; i < ARRAY_SIZE(parameters); i++) {
		fd = open(parameters[i], O_WRONLY);
		(void)!write(fd, before[i], strlen(before[i]));
		close(fd);
	}
	ksft_finished();
}
