// SPDX-License-Identifier: GPL-2.0
/*
 * small-daemon kvp|vss: a daemon that answers each question with success. When KVP enumerates, the
 * daemon answers with the same pair each time.
 *
 * Calls the kernel without a C library, so that gcc can make a 32-bit program without further
 * packages.
 */
#include <asm/auxvec.h>
#include <asm/unistd.h>
#include <linux/auxvec.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/hyperv.h>
#include <linux/poll.h>

#if __SIZEOF_POINTER__ == 4
/*
 * The kernel's entry for system calls. Not int $0x80: there, the kernel reads a register of the
 * APIC, which QEMU's nested virtualization reports as an exit during the delivery of an interrupt.
 */
long system_call;

/* The auxiliary vector, which follows the environment, has the entry. */
static void find_entry(long *environment)
{
	while (*environment++)
		;
	for (; environment[0] != AT_NULL; environment += 2) {
		if (environment[0] == AT_SYSINFO)
			system_call = environment[1];
	}
}

static long ask(long number, long a, long b, long c)
{
	long result;

	asm volatile("call *system_call"
		     : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}

asm(".globl _start\n_start:\n\tmovl %esp, %eax\n\tpushl %eax\n\tcall start\n");
#else
static void find_entry(long *environment)
{
}

static long ask(long number, long a, long b, long c)
{
	long result;

	asm volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c)
		     : "rcx", "r11", "memory");
	return result;
}

asm(".globl _start\n_start:\n\tmovq %rsp, %rdi\n\tcall start\n");
#endif

static void leave(int status)
{
	for (;;)
		ask(__NR_exit, status, 0, 0);
}

static unsigned int copy(void *to, const char *from)
{
	unsigned int size = 0;

	do {
		((char *)to)[size] = from[size];
	} while (from[size++]);
	return size;
}

static void say(const char *text, unsigned int size)
{
	ask(__NR_write, 1, (long)text, size);
}

#define SAY(text) say(text "\n", sizeof(text))

static union {
	struct hv_kvp_msg kvp;
	struct hv_vss_msg vss;
} message;

/* Waits for a message, and reads it. */
static void take(int device)
{
	struct pollfd poll = { .fd = device, .events = POLLIN };

	if (ask(__NR_poll, (long)&poll, 1, -1) != 1 || poll.revents != POLLIN) {
		SAY("the wait for a message failed");
		leave(2);
	}
	if (ask(__NR_read, device, (long)&message, sizeof(message)) <= 0) {
		SAY("the read of a message failed");
		leave(3);
	}
}

static void give(int device, long size)
{
	if (ask(__NR_write, device, (long)&message, size) != size) {
		SAY("the write of a message failed");
		leave(4);
	}
}

/* Fills in the answer to the question in the message. */
static void answer(int is_kvp)
{
	struct hv_kvp_exchg_msg_value *pair = &message.kvp.body.kvp_enum_data.data;
	int operation = message.kvp.kvp_hdr.operation;

	if (!is_kvp) {
		message.vss.error = HV_S_OK;
		return;
	}
	message.kvp.error = HV_S_OK;
	if (operation == KVP_OP_ENUMERATE) {
		pair->value_type = REG_SZ;
		pair->key_size = copy(pair->key, "Daemon");
		pair->value_size = copy(pair->value, "small");
	}
}

/* The stack has the number of arguments, the arguments, and NULL. */
void start(long *stack)
{
	const char *service = (const char *)stack[2];
	int is_kvp = stack[0] == 2 && service[0] == 'k';
	long size = is_kvp ? sizeof(message.kvp) : sizeof(message.vss);
	int device;

	find_entry(stack + stack[0] + 2);
	device = ask(__NR_open, (long)(is_kvp ? "/dev/vmbus/hv_kvp" : "/dev/vmbus/hv_vss"),
		     O_RDWR, 0);
	if (device < 0) {
		SAY("there is no device");
		leave(1);
	}
	if (is_kvp)
		message.kvp.kvp_hdr.operation = KVP_OP_REGISTER1;
	else
		message.vss.vss_hdr.operation = VSS_OP_REGISTER1;
	give(device, size);
	take(device);
	SAY("registered");
	for (;;) {
		take(device);
		answer(is_kvp);
		give(device, size);
		SAY("answered");
	}
}
