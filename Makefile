# SPDX-License-Identifier: GPL-2.0
#
# The front end. The file Kbuild is for Kbuild itself.

.DEFAULT_GOAL := modules
MAKEFLAGS += --no-builtin-rules --no-print-directory
.NOTPARALLEL:

top     := $(CURDIR)
FLAVOUR ?= amd64
flavours := amd64 cloud-amd64
# The name of the folders in build/ for Debian's kernel of SERIES, SUITE and FLAVOUR.
stock   := $(shell bash -c '. rust/kdir/lib.sh && kernel_id "$$@"' lib "$(FLAVOUR)" "$(SERIES)" "$(SUITE)")
asked   := $(or $(SERIES),$(SUITE))
# Runs a command on Debian 13: on this machine if it is a Debian 13, otherwise in build/root.
enter   := rust/kdir/enter
jobs    := $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))
quiet   := $(if $(V),,-s)

# ---- The module, for any kernel tree of the 7.2 series or newer with Rust metadata

# The headers of the running kernel, preferably those with Rust metadata.
running := $(firstword $(wildcard /usr/src/linux-headers-rust-$(shell uname -r)) /lib/modules/$(shell uname -r)/build)
KDIR    ?= $(if $(asked),build/kdir/$(stock),$(running))

# A tree of make kdir needs the toolchain that built it. The toolchain's root sees only two folders of the machine: the
# project, and during modules_install the destination.
ours    := $(filter $(top)/build/kdir/%,$(abspath $(KDIR)))
install := $(abspath $(INSTALL_MOD_PATH)/lib/modules)
# Objects are never put among the sources, which are shared by the builds for all kernels. build/out gets the module only.
# build/modules gets the module, and the modules that are never installed.
kernel  := $(if $(ours),$(notdir $(ours)),other)
MO      ?= build/out/$(kernel)
tools   := $(if $(ours),$(enter) --for $(ours))
kbuild   = $(tools) $(MAKE) -C $(abspath $(KDIR)) M=$(top) MO=$(abspath $(MO)) EXTRAS= \
	$(if $(INSTALL_MOD_PATH),INSTALL_MOD_PATH=$(abspath $(INSTALL_MOD_PATH))) $(jobs)

have-kdir: $(if $(asked),build/kdir/$(stock)/.ready)
	@rust/kdir/lacks $(abspath $(KDIR)) $(tools) >&2

## modules              builds the module (default target); KDIR= or SERIES= and FLAVOUR=, MO= W=1 CLIPPY=1
modules: have-kdir
	@mkdir -p $(MO)
	+@$(kbuild) modules || { rust/kdir/choose.sh --unfit $(abspath $(KDIR)); exit 1; }
	@cp $(MO)/hv_utils.ko .

## modules_install      installs the module in updates/; KDIR= MO= INSTALL_MOD_PATH=
#  Builds nothing, because root may not have the tools.
modules_install:
	@[ "$$(cat $(MO)/modules.order 2>/dev/null)" = hv_utils.o ] || \
		{ echo "$(MO) does not hold the module: run \"make modules\" with the same KDIR first" >&2; exit 1; }
	@mkdir -p $(install)
	+@$(if $(ours),ENTER_BIND=$(install)) $(kbuild) INSTALL_MOD_DIR=updates DEPMOD=true modules_install
	@$(if $(ours),ENTER_BIND=$(install) $(enter)) rust/kdir/after-install $(MO)/hv_utils.ko $(abspath $(INSTALL_MOD_PATH))

## samples              builds the module and the samples into build/modules; samples are never installed; KDIR=
samples: override MO := build/modules/$(kernel)
samples: have-kdir
	@mkdir -p $(MO)
	+@$(kbuild) EXTRAS=1 modules

## deb                  makes Debian packages in build/deb; FLAVOUR= SERIES= SUITE= select one kernel; KEY= CERT= sign the module
packed  := $(if $(or $(asked),$(filter-out file,$(origin FLAVOUR))),$(stock),$(flavours))
deb: root $(foreach k,$(packed),build/kdir/$(k)/.ready)
	+@$(foreach k,$(packed),$(MAKE) $(quiet) KDIR=build/kdir/$(k) MO=build/out/$(k) modules &&) :
	@KEY=$(KEY) CERT=$(CERT) drivers/packages/deb.sh $(packed)

# ---- For stock Debian kernels: a root with the toolchain, and Rust metadata

## kdir                 makes a KDIR for a kernel of Debian, in build/kdir; SERIES= SUITE= FLAVOUR= UPDATE=1
kdir: root
	@rust/kdir/kdir.sh $(stock)

## kdir-all             makes a KDIR for both flavours, amd64 and cloud-amd64
kdir-all: root
	@$(foreach f,$(flavours),rust/kdir/kdir.sh $(f) &&) :

## root                 installs the toolchain from Debian 13's packages, on this machine or in build/root
root:
	@rust/kdir/root.sh

build/kdir/%/.ready:
	@echo "[2/6] Debian's kernel and its Rust metadata, $* (about 3 min)"
	@rust/kdir/kdir.sh $*

build/kdir/debug/.ready: rust/kdir/debug-kernel.config
	@echo "[2/6] the debug kernel, from Debian's source (10 to 20 min)"
	@rust/kdir/debug-kernel.sh

# ---- For the virtual machines: modules, images and the emulated host

sources := $(shell find Kbuild rust drivers samples tests/modules -type f ! -path 'rust/kdir/*' \
	\( -name Kbuild -o -name '*.rs' -o -name '*.[ch]' -o -name bindgen_parameters \) ! -name '.*' 2>/dev/null)
images  := tests/guest/images.sh rust/kdir/packages tests/packages
pieces  := $(shell find tests/guest tests/selftests -type f)

build/guest/outer.cpio: $(images) tests/guest/outer/init | build/kdir/amd64/.ready
	@echo "[3/6] the outer guest"
	@tests/guest/images.sh outer

build/guest/inner-%.cpio: $(images) $(wildcard tests/guest/inner/*) tests/guest/agent.c $(wildcard tests/guest/ptp-*.c) \
		tests/guest/vsock.c | build/kdir/%/.ready
	@echo "[4/6] the inner guest, $*"
	@tests/guest/images.sh inner-$*

build/guest/daemons-%.cpio: $(images) $(wildcard tests/selftests/hv_utils/*.c) tests/guest/register-by-netlink.c | build/kdir/%/.ready
	@echo "[4/6] the distribution's daemons, $*"
	@tests/guest/images.sh daemons-$*

build/guest/disks-%.cpio: $(images) | build/kdir/%/.ready
	@echo "[4/6] xfs and btrfs, $*"
	@tests/guest/images.sh disks-$*

build/guest/more-%.cpio: $(images) tests/guest/small-daemon.c | build/kdir/%/.ready
	@echo "[4/6] programs for make check-more, $*"
	@tests/guest/images.sh more-$*

build/guest/chrony.cpio: $(images) | build/kdir/amd64/.ready
	@echo "[4/6] chrony"
	@tests/guest/images.sh chrony

# The modules for the tests: hv_utils, the samples and tests/modules, in one folder for each flavour.
build/modules/%/hv_utils.ko: $(sources) build/kdir/%/.ready
	@echo "[5/6] the module, $*"
	@mkdir -p $(@D)
	+@$(enter) --for build/kdir/$* $(MAKE) $(quiet) -C $(top)/build/kdir/$* M=$(top) MO=$(top)/$(@D) EXTRAS=1 $(jobs) modules || \
		{ rust/kdir/choose.sh --unfit build/kdir/$*; exit 1; }
	@touch $@

build/guest/systemd-%.cpio: $(images) $(wildcard tests/guest/systemd/*) tests/guest/agent.c \
		$(wildcard drivers/packages/hv-utils-rust-ssh*) | build/modules/%/hv_utils.ko
	@echo "[4/6] Debian with systemd, $* (about 40 s)"
	@tests/guest/images.sh systemd-$*

# A guest without files of this project: Debian's own initramfs. If this image exists, make check tests the prompt with it.
build/guest/debian-%.cpio: $(images) tests/guest/small/init tests/guest/inner/poweroff | build/kdir/%/.ready
	@echo "Debian's own initramfs, $* (about 2 min)"
	@tests/guest/images.sh debian-$*

build/guest/rust-%.cpio: build/modules/%/hv_utils.ko $(pieces)
	@tests/guest/module-cpio.sh $@ rust/hv_utils.ko=$< \
		$(foreach ko,$(wildcard samples/*.rs tests/modules/*.rs),samples/$(notdir $(ko:.rs=.ko))=$(<D)/$(notdir $(ko:.rs=.ko))) \
		$(foreach f,$(wildcard tests/selftests/hv_utils/*),/selftests/hv_utils/$(notdir $(f))=$(f)) \
		/selftests/kselftest/ktap_helpers.sh=build/linux-source/tools/testing/selftests/kselftest/ktap_helpers.sh

# Both modules without signature, BTF and debug information, for the benchmark. The shell finds the C module: make expands
# wildcards before kdir.sh has unpacked that file.
build/guest/bench-%.cpio: build/modules/%/hv_utils.ko tests/guest/module-cpio.sh
	@tests/guest/module-cpio.sh $@ bare/rust/hv_utils.ko=$< \
		"bare/c/hv_utils.ko=$$(echo build/kernel/$*/lib/modules/*/kernel/drivers/hv/hv_utils.ko*)"

## host                 builds the emulated Hyper-V host and the scenarios, in build/host
host: root
	@echo "[6/6] the emulated host"
	@$(enter) tests/host/build.sh

## guests               builds the guests' images and the modules for both flavours
guest-%: build/guest/outer.cpio build/guest/inner-%.cpio build/guest/daemons-%.cpio build/guest/rust-%.cpio \
	build/guest/bench-%.cpio ;
guests: root build/guest/chrony.cpio $(addprefix guest-,$(flavours)) $(patsubst %,build/guest/disks-%.cpio,$(flavours))

# ---- The two commands

## demo                 boots a stock kernel with this module on the emulated host; SERIES= SUITE= FLAVOUR=
demo: root build/kdir/$(stock)/.ready guest-$(stock) host
	@$(enter) build/host/scenarios --flavour $(stock) demo

## shell                opens a guest's console, and its host's prompt (^]); MODULE=c FLAVOUR= VCPUS= KERNEL= COMMANDS=FILE GUEST=systemd
#  With systemd, Debian's sshd waits for the host. Like a foreign guest, this guest has no agent.
shell-guest := $(if $(filter systemd,$(GUEST)),--kernel $(or $(KERNEL),build/kernel/$(FLAVOUR)/vmlinux) --memory 1024 \
	--initrd build/guest/systemd-$(FLAVOUR).cpio --initrd build/guest/rust-$(FLAVOUR).cpio \
	--append "console=ttyS0 quiet panic=-1 nokaslr pci=off systemd.wants=hv-utils-rust-ssh.socket", \
	--module $(or $(MODULE),rust) $(if $(KERNEL),--kernel $(KERNEL)))
shell: root guest-$(FLAVOUR) $(if $(filter systemd,$(GUEST)),build/guest/systemd-$(FLAVOUR).cpio) host
	@$(enter) env OUTER_TIMEOUT=$${OUTER_TIMEOUT:-86400} build/host/host --flavour $(FLAVOUR) $(shell-guest) \
		$(if $(VCPUS),--vcpus $(VCPUS)) $(if $(COMMANDS),--commands $(COMMANDS))

## check                runs all tests; T=word runs those with the word in their names
check: guests $(if $(filter-out scenarios debug soak,$(T)),,guest-debug) \
		$(if $(filter systemd,$(T)),build/guest/systemd-$(FLAVOUR).cpio) host
	+@if [ -n "$(T)" ] && $(enter) build/host/scenarios list debug | grep -e "$(T)" >/dev/null; then \
		$(MAKE) $(quiet) guest-debug; fi
	@tests/check.sh $(T)

## check-more           runs the scenarios that make check has no time for; T=word runs those with the word in their names (2 min)
check-more: guest-amd64 build/guest/more-amd64.cpio host
	@tests/check.sh more $(T)

## bench                measures the instructions, exits and memory of this module and the kernel's own (15 min)
bench: root guest-$(FLAVOUR) host
	@$(enter) env OUTER_TIMEOUT=3600 build/host/scenarios --flavour $(FLAVOUR) bench

## faults               runs the fault scenarios with C and this module, and writes Documentation/faults.rst (25 min)
faults: root guest-amd64 guest-debug build/guest/chrony.cpio host
	@$(enter) env OUTER_TIMEOUT=3600 build/host/scenarios --time emulated faults
	@$(enter) env OUTER_TIMEOUT=3600 build/host/scenarios --flavour debug faults
	@cp build/results/faults.rst Documentation/faults.rst

## mainline             tests the patches of Documentation/mainline for the C driver (40 min)
mainline: root guest-amd64 guest-debug build/guest/disks-amd64.cpio build/guest/chrony.cpio host
	@tests/mainline.sh
	@cp build/results/mainline.txt Documentation/mainline/results.txt

## check-debug          runs all scenarios on the debug kernel (30 min)
check-debug: root guest-debug build/guest/chrony.cpio host
	@tests/check.sh debug

## check-systemd        boots Debian where udev loads the module and systemd starts the daemons; REPEAT=20 boots 20 times
check-systemd: root guest-$(FLAVOUR) build/guest/systemd-$(FLAVOUR).cpio host
	@FLAVOUR=$(FLAVOUR) tests/check.sh systemd

## check-packages       tests the packages of make deb on a separate Debian 13 (10 min)
check-packages: packed := $(flavours)
check-packages: deb guest-cloud-amd64 host
	@tests/packages.sh
	@tests/guest/images.sh packaged-cloud-amd64
	@FLAVOUR=cloud-amd64 tests/check.sh packaged

## doc                  writes the documents of rust/ to build/doc, and compiles their examples
doc: root build/modules/amd64/hv_utils.ko
	@Documentation/rustdoc.sh

## series               writes this module as patches for the kernel to build/series
series: root build/kdir/amd64/.ready
	@Documentation/series/series.pl

## check-series         tests these patches; STEPS= selects steps: apply build doc boot (45 min)
check-series: series
	@tests/check-series.sh $(STEPS)

## kernels              builds the module for all supported kernels, boots those for x86, prints a table; K=word (1 h at first)
kernels: root host
	@tests/kernels.sh "$(K)"

## soak                 fuzzes the module with hosts and programs on the debug kernel; SOAK=1h sets the time (default 10m)
soak: root guest-debug host
	@SOAK=$(SOAK) tests/check.sh soak

# ---- Cleaning

## clean                removes all files built from this repository, but keeps downloads
#  Kbuild's own clean would remove all object files below this folder, including those of build/root.
clean:
	@rm -rf build/out build/modules build/host build/guest build/check build/deb build/packages/root
	@find . \( -path ./build -o -path ./.git \) -prune -o -type f \( -name '*.[ao]' -o -name '*.ko' \
		-o -name '*.mod' -o -name '*.mod.c' -o -name '*.rmeta' -o -name '*.symvers' -o -name modules.order \
		-o -name '*_generated.rs' -o -name bindgen_flags.mk -o -name '.*.cmd' -o -name '.*.d' \) -exec rm -f {} +

## distclean            also removes the downloaded and rebuilt kernels, and the root
distclean: clean
	@if grep -qs " $(top)/build/" /proc/self/mounts; then \
		echo "something is mounted below build: umount it first" >&2; exit 1; fi
	rm -rf build

## help                 prints this list
help:
	@sed -n 's/^## /  /p' $(firstword $(MAKEFILE_LIST))

.PHONY: modules modules_install samples deb have-kdir kdir kdir-all root host guests demo shell check bench faults mainline check-debug check-more check-systemd check-packages doc series check-series kernels soak clean distclean help
.PRECIOUS: build/kdir/%/.ready build/guest/inner-%.cpio build/guest/daemons-%.cpio build/guest/disks-%.cpio build/guest/more-%.cpio build/guest/rust-%.cpio build/guest/bench-%.cpio build/modules/%/hv_utils.ko
.SECONDARY:
