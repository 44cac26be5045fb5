// SPDX-License-Identifier: GPL-2.0
/*
 * Says why this machine's KVM cannot carry the emulated Hyper-V host, and
 * exits with 1; or says nothing and exits with 0. It runs one instruction, as
 * there are machines whose KVM creates a processor but cannot run it.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define CODE	0x1000
#define HLT	0xf4

static int try(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
	return result;
}

int main(void)
{
	struct kvm_userspace_memory_region region = {
		.guest_phys_addr = CODE,
		.memory_size = 0x1000,
	};
	struct kvm_enable_cap synic = { .cap = KVM_CAP_HYPERV_SYNIC2 };
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	struct kvm_sregs sregs;
	struct kvm_run *run;
	int kvm, vm, vcpu, size;
	void *page;

	kvm = try(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_SYNIC2) <= 0) {
		fprintf(stderr, "/dev/kvm: no Hyper-V SynIC\n");
		return 1;
	}
	vm = try(ioctl(kvm, KVM_CREATE_VM, 0), "creating a machine");
	page = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED) {
		perror("memory");
		return 1;
	}
	memset(page, HLT, 0x1000);
	region.userspace_addr = (unsigned long)page;
	try(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "giving it memory");
	vcpu = try(ioctl(vm, KVM_CREATE_VCPU, 0), "creating a processor");
	size = try(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "its size");
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED) {
		perror("its state");
		return 1;
	}
	try(ioctl(vcpu, KVM_GET_SREGS, &sregs), "its registers");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	try(ioctl(vcpu, KVM_SET_SREGS, &sregs), "its registers");
	try(ioctl(vcpu, KVM_SET_REGS, &regs), "its registers");
	/* Without an interrupt controller in the kernel, hlt is an exit. */
	alarm(5);
	try(ioctl(vcpu, KVM_RUN, 0), "running it");
	if (run->exit_reason != KVM_EXIT_HLT) {
		fprintf(stderr, "running it: exit %u\n", run->exit_reason);
		return 1;
	}
	close(vm);
	close(vcpu);

	/* SynIC wants the interrupt controller: that is another machine. */
	vm = try(ioctl(kvm, KVM_CREATE_VM, 0), "creating a machine");
	try(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "interrupt controller");
	vcpu = try(ioctl(vm, KVM_CREATE_VCPU, 0), "creating a processor");
	try(ioctl(vcpu, KVM_ENABLE_CAP, &synic), "Hyper-V SynIC");
	return 0;
}
