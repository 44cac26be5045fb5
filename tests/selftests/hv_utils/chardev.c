// SPDX-License-Identifier: GPL-2.0
/*
 * Tests the character devices of hv_utils as a daemon uses them: a single opener, whole messages,
 * waiting, and open files after the removal of the device.
 *
 * Skips a device that a daemon has open.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest_harness.h"

#define BUS	"/sys/bus/vmbus"
#define LONGEST	8192

/* An address without memory. */
#define NOWHERE	((void *)-4096L)

FIXTURE(chardev) {
	int fd;
	char id[64];
	unsigned char message[LONGEST];
};

FIXTURE_VARIANT(chardev) {
	const char *path;
	const char *driver;
	const char *class;
	/* The length of a daemon's message, and its first byte in a registration. */
	size_t len;
	unsigned char registration;
	/* The length of the confirmation that the daemon then reads, and its first byte. */
	size_t confirmation;
	unsigned char confirmed;
};

FIXTURE_VARIANT_ADD(chardev, kvp) {
	.path = "/dev/vmbus/hv_kvp",
	.driver = "hv_utils",
	.class = "{a9a0f4e7-5a45-4d96-b827-8a841e8c03e6}",
	.len = 7432,
	.registration = 100,
	.confirmation = 7432,
	.confirmed = 100,
};

FIXTURE_VARIANT_ADD(chardev, vss) {
	.path = "/dev/vmbus/hv_vss",
	.driver = "hv_utils",
	.class = "{35fa2e29-ea23-4236-96ae-3a6ebacba440}",
	.len = 12,
	.registration = 129,
	.confirmation = 4,
	.confirmed = 129,
};

FIXTURE_VARIANT_ADD(chardev, fcopy) {
	.path = "/dev/vmbus/hv_fcopy",
	.driver = "hv_utils_fcopy",
	.class = "{34d14be3-dee4-41c8-9ae7-6b174977c192}",
	.len = 4,
	.registration = 1,
	.confirmation = 4,
	.confirmed = 1,
};

/* Finds the VMBus device of a class. Returns whether there is one. */
static int find_device(const char *class, char *id, size_t size)
{
	char path[512], text[64];
	struct dirent *entry;
	int found = 0;
	FILE *file;
	DIR *dir;

	dir = opendir(BUS "/devices");
	while (dir && !found && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), BUS "/devices/%s/class_id", entry->d_name);
		file = fopen(path, "r");
		if (!file)
			continue;
		if (fgets(text, sizeof(text), file) && !strncmp(text, class, strlen(class))) {
			snprintf(id, size, "%.60s", entry->d_name);
			found = 1;
		}
		fclose(file);
	}
	if (dir)
		closedir(dir);
	return found;
}

/* Writes the device's id to the driver's file "bind" or "unbind". */
static int rebind(const char *driver, const char *name, const char *id)
{
	char path[128];
	ssize_t written;
	int fd;

	snprintf(path, sizeof(path), BUS "/drivers/%s/%s", driver, name);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -1;
	written = write(fd, id, strlen(id));
	close(fd);
	return written == (ssize_t)strlen(id) ? 0 : -1;
}

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

static short ready(int fd, int timeout)
{
	struct pollfd pollfd = {
		.fd = fd,
		.events = POLLIN,
	};

	return poll(&pollfd, 1, timeout) < 0 ? -1 : pollfd.revents;
}

static void nothing(int signal)
{
}

FIXTURE_SETUP(chardev)
{
	char attributes[128];

	memset(self->message, 0, sizeof(self->message));
	self->fd = -1;
	if (!find_device(variant->class, self->id, sizeof(self->id)))
		SKIP(return, "the host offers no device for %s", variant->path);
	/* Only the driver in Rust has attributes. The one in C would hang in some tests. */
	snprintf(attributes, sizeof(attributes), "/sys/bus/vmbus/devices/%s/hv_utils", self->id);
	if (access(attributes, F_OK))
		SKIP(return, "the driver of %s is not the one in Rust", variant->path);
	self->fd = open(variant->path, O_RDWR);
	if (self->fd < 0 && (errno == ENOENT || errno == EBUSY || errno == EACCES))
		SKIP(return, "cannot open %s: %s", variant->path, strerror(errno));
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(chardev)
{
	if (self->fd >= 0)
		close(self->fd);
}

TEST_F(chardev, has_one_opener)
{
	EXPECT_EQ(-1, open(variant->path, O_RDWR));
	EXPECT_EQ(EBUSY, errno);
	close(self->fd);
	self->fd = open(variant->path, O_RDWR);
	EXPECT_LE(0, self->fd);
}

TEST_F(chardev, has_nothing_at_first)
{
	EXPECT_EQ(0, ready(self->fd, 0));
	ASSERT_EQ(0, fcntl(self->fd, F_SETFL, O_NONBLOCK));
	EXPECT_EQ(-1, read(self->fd, self->message, LONGEST));
	EXPECT_EQ(EAGAIN, errno);
}

TEST_F(chardev, takes_whole_registrations_only)
{
	size_t lens[] = { 1, variant->len - 1, variant->len + 1, LONGEST };
	size_t i;

	self->message[0] = variant->registration;
	for (i = 0; i < ARRAY_SIZE(lens); i++) {
		EXPECT_EQ(-1, write(self->fd, self->message, lens[i]));
		EXPECT_EQ(EINVAL, errno);
	}
	EXPECT_EQ(-1, write(self->fd, NOWHERE, variant->len));
	EXPECT_EQ(EFAULT, errno);
	self->message[0] = 99;
	EXPECT_EQ(-1, write(self->fd, self->message, variant->len));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(0, ready(self->fd, 0));
}

TEST_F(chardev, keeps_a_message_until_it_is_read)
{
	self->message[0] = variant->registration;
	ASSERT_EQ(variant->len, write(self->fd, self->message, variant->len));
	EXPECT_EQ(POLLIN, ready(self->fd, 0));
	EXPECT_EQ(-1, read(self->fd, self->message, variant->confirmation - 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, read(self->fd, NOWHERE, LONGEST));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(POLLIN, ready(self->fd, 0));
	ASSERT_EQ(variant->confirmation, read(self->fd, self->message, LONGEST));
	EXPECT_EQ(variant->confirmed, self->message[0]);
	EXPECT_EQ(0, ready(self->fd, 0));
}

/* hv_fcopy_daemon uses only pread() and pwrite(). */
TEST_F(chardev, reads_and_writes_at_any_position)
{
	self->message[0] = variant->registration;
	ASSERT_EQ(variant->len, pwrite(self->fd, self->message, variant->len, 0));
	ASSERT_EQ(variant->confirmation, pread(self->fd, self->message, LONGEST, 77));
	EXPECT_EQ(variant->confirmed, self->message[0]);
}

TEST_F(chardev, takes_no_answer_without_a_question)
{
	self->message[0] = variant->registration;
	ASSERT_EQ(variant->len, write(self->fd, self->message, variant->len));
	/* Refused before and after the confirmation is read. */
	EXPECT_EQ(-1, write(self->fd, self->message, variant->len));
	EXPECT_EQ(EINVAL, errno);
	ASSERT_EQ(variant->confirmation, read(self->fd, self->message, LONGEST));
	EXPECT_EQ(-1, write(self->fd, self->message, variant->len));
	EXPECT_EQ(EINVAL, errno);
}

TEST_F(chardev, forgets_a_daemon_that_closes)
{
	self->message[0] = variant->registration;
	ASSERT_EQ(variant->len, write(self->fd, self->message, variant->len));
	close(self->fd);
	self->fd = open(variant->path, O_RDWR);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(0, ready(self->fd, 0));
	ASSERT_EQ(variant->len, write(self->fd, self->message, variant->len));
	EXPECT_EQ(POLLIN, ready(self->fd, 0));
}

TEST_F(chardev, waits_until_a_signal)
{
	struct sigaction action = { .sa_handler = nothing };
	struct itimerval timer = {
		.it_value = { .tv_usec = 50000 },
		.it_interval = { .tv_usec = 50000 },
	};

	ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &timer, NULL));
	EXPECT_EQ(-1, read(self->fd, self->message, LONGEST));
	EXPECT_EQ(EINTR, errno);
	memset(&timer, 0, sizeof(timer));
	setitimer(ITIMER_REAL, &timer, NULL);
}

/* Waits. The result is the exit status of the waiting process. */
static int wait_reading(int fd)
{
	unsigned char message[LONGEST];

	return read(fd, message, sizeof(message)) < 0 ? errno : 0;
}

static int wait_polling(int fd)
{
	return ready(fd, -1);
}

TEST_F(chardev, is_revoked_when_its_device_goes)
{
	int (*waits[])(int fd) = { wait_reading, wait_polling };
	int expected[] = { ENODEV, POLLERR | POLLHUP };
	pid_t pids[ARRAY_SIZE(waits)];
	double start;
	int status;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(waits); i++) {
		pids[i] = fork();
		ASSERT_LE(0, pids[i]);
		if (!pids[i])
			_exit(waits[i](self->fd));
	}
	usleep(100000);
	start = now();
	EXPECT_EQ(0, rebind(variant->driver, "unbind", self->id));
	EXPECT_GT(5.0, now() - start);
	for (i = 0; i < ARRAY_SIZE(waits); i++) {
		ASSERT_EQ(pids[i], waitpid(pids[i], &status, 0));
		EXPECT_TRUE(WIFEXITED(status));
		EXPECT_EQ(expected[i], WEXITSTATUS(status));
	}
	EXPECT_EQ(-1, read(self->fd, self->message, LONGEST));
	EXPECT_EQ(ENODEV, errno);
	self->message[0] = variant->registration;
	EXPECT_EQ(-1, write(self->fd, self->message, variant->len));
	EXPECT_EQ(ENODEV, errno);
	EXPECT_EQ(POLLERR | POLLHUP, ready(self->fd, 0));
	EXPECT_EQ(-1, access(variant->path, F_OK));

	/* The device returns while the old file is still open. The old file stays revoked. */
	ASSERT_EQ(0, rebind(variant->driver, "bind", self->id));
	EXPECT_EQ(POLLERR | POLLHUP, ready(self->fd, 0));
	close(self->fd);
	self->fd = open(variant->path, O_RDWR);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(variant->len, write(self->fd, self->message, variant->len));
	EXPECT_EQ(POLLIN, ready(self->fd, 0));
}

TEST_HARNESS_MAIN
