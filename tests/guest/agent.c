// SPDX-License-Identifier: GPL-2.0
/*
 * The guest's agent: runs shell command lines for the emulated host, one at a time.
 *
 * Each byte on a serial port costs an exit to the host. So command lines and their output go
 * through a mailbox, which is memory above the guest's own. The second serial port only signals:
 * the agent sends READY when it starts, the host sends a byte when a command line is in the
 * mailbox, and the agent sends DONE when the answer is in the mailbox. A command is the length of
 * the line, and the line. An answer is the exit status as in a shell, the length of the output, and
 * the output.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define READY "\002"
#define DONE "\001"
/* The size of the mailbox, the same as in tests/host/src/mailbox.rs. */
#define SIZE (2 << 20)

union mailbox {
	struct {
		unsigned int length;
		char line[SIZE - 4];
	} command;
	struct {
		unsigned int status;
		unsigned int length;
		char output[SIZE - 8];
	} answer;
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int serial_port(const char *name)
{
	int port = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios settings;

	if (port < 0 || tcgetattr(port, &settings))
		die(name);
	cfmakeraw(&settings);
	cfsetspeed(&settings, B115200);
	if (tcsetattr(port, TCSANOW, &settings))
		die(name);
	return port;
}

/* The kernel command line has the address of the mailbox. */
static union mailbox *map_mailbox(void)
{
	char text[4096] = "", *at;
	int cmdline = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	int memory = open("/dev/mem", O_RDWR | O_CLOEXEC);
	void *mailbox;

	if (cmdline < 0 || read(cmdline, text, sizeof(text) - 1) < 0)
		die("/proc/cmdline");
	at = strstr(text, "agent.mailbox=");
	if (!at) {
		fputs("agent: the host gave no mailbox\n", stderr);
		exit(1);
	}
	mailbox = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory,
		       strtoull(strchr(at, '=') + 1, NULL, 0));
	if (mailbox == MAP_FAILED)
		die("/dev/mem");
	close(cmdline);
	close(memory);
	return mailbox;
}

/* Runs a command line with its output in a file. Returns the status as a shell does. */
static unsigned int run(const char *line, int output)
{
	int status;
	pid_t child = vfork();

	if (!child) {
		if (dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), 0) == 0 &&
		    dup2(output, 1) == 1 && dup2(output, 2) == 2)
			execl("/bin/sh", "sh", "-c", line, NULL);
		_exit(126);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		return 126;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(void)
{
	int port = serial_port("/dev/ttyS1");
	union mailbox *mailbox = map_mailbox();
	char byte;

	if (write(port, READY, 1) != 1)
		die("serial port");
	while (read(port, &byte, 1) == 1) {
		int output = memfd_create("output", MFD_CLOEXEC);
		unsigned int length = mailbox->command.length;
		struct stat printed;
		char *line;

		if (output < 0 || length > sizeof(mailbox->command.line))
			die("a command");
		line = strndup(mailbox->command.line, length);
		mailbox->answer.status = run(line, output);
		free(line);
		if (fstat(output, &printed))
			die("output");
		length = printed.st_size;
		if (length > sizeof(mailbox->answer.output) ||
		    pread(output, mailbox->answer.output, length, 0) != length) {
			fprintf(stderr, "agent: %u bytes of output do not fit\n", length);
			mailbox->answer.status = 125;
			length = 0;
		}
		mailbox->answer.length = length;
		close(output);
		if (write(port, DONE, 1) != 1)
			die("serial port");
	}
	die("serial port");
}
