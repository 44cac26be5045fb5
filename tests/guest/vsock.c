// SPDX-License-Identifier: GPL-2.0
/*
 * Connections of Hyper-V sockets, which are AF_VSOCK to programs.
 *
 *   vsock listen PORT COUNT COMMAND  accepts COUNT connections of the host's, and runs the shell
 *                                    line COMMAND for each, all at the same time; it goes to the
 *                                    background once it listens
 *   vsock connect PORT COMMAND       connects to the host, and becomes the shell line COMMAND
 *   vsock refused PORT               succeeds if the host does not let it connect
 *   vsock end                        ends what is sent on standard output, which is a connection
 *
 * Standard input and output of a COMMAND are the connection.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

/* Seconds until a connection that nobody answers has failed: if it is to succeed, if not. */
#define PATIENCE 60
#define REFUSED 1

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int open_socket(void)
{
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	return fd;
}

static struct sockaddr_vm address(unsigned int cid, const char *port)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = cid,
		.svm_port = strtoul(port, NULL, 0),
	};

	return address;
}

static void become(int fd, const char *command)
{
	if (dup2(fd, 0) == 0 && dup2(fd, 1) == 1)
		execl("/bin/sh", "sh", "-c", command, NULL);
	die("exec");
}

static int listen_at(const char *port, int count, const char *command)
{
	struct sockaddr_vm here = address(VMADDR_CID_ANY, port);
	int fd = open_socket(), tries = 300;

	/* Whoever listened there before may be about to end. */
	while (bind(fd, (void *)&here, sizeof(here))) {
		if (errno != EADDRINUSE || !tries--)
			die("bind");
		usleep(100000);
	}
	if (listen(fd, count))
		die("listen");
	if (daemon(1, 0))
		die("daemon");
	/* Nobody asks how they end. */
	signal(SIGCHLD, SIG_IGN);
	while (count--) {
		int connection = accept(fd, NULL, NULL);

		if (connection < 0)
			die("accept");
		if (!fork()) {
			signal(SIGCHLD, SIG_DFL);
			become(connection, command);
		}
		close(connection);
	}
	close(fd);
	while (wait(NULL) > 0)
		;
	return 0;
}

/* Connects to the host; the errno is set where that fails. */
static int connect_to(const char *port, long seconds)
{
	struct sockaddr_vm host = address(VMADDR_CID_HOST, port);
	struct timeval timeout = { .tv_sec = seconds };
	int fd = open_socket();

	if (setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &timeout, sizeof(timeout)))
		die("setsockopt");
	return connect(fd, (void *)&host, sizeof(host)) ? -1 : fd;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int fd;

	if (!strcmp(what, "listen") && argc == 5)
		return listen_at(argv[2], atoi(argv[3]), argv[4]);
	if (!strcmp(what, "connect") && argc == 4) {
		fd = connect_to(argv[2], PATIENCE);
		if (fd < 0)
			die("connect");
		become(fd, argv[3]);
	}
	if (!strcmp(what, "refused") && argc == 3)
		return connect_to(argv[2], REFUSED) >= 0;
	if (!strcmp(what, "end") && argc == 2) {
		if (shutdown(1, SHUT_WR))
			die("shutdown");
		return 0;
	}
	fputs("usage: vsock listen PORT COUNT COMMAND | connect PORT COMMAND | refused PORT | end",
	      stderr);
	return 2;
}
