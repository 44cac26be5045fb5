#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# mainline.sh [build]: called by make mainline. Applies Documentation/mainline/*.patch to the kernel's own hv_utils one by
# one, and builds the module each time. Then tests that the scenarios of the patches fail with the stock module and pass
# with the patched one, and that all other scenarios of C still pass. With "build", runs no scenarios.
set -eu -o pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../rust/kdir/lib.sh"
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/tell.sh"
what=mainline
cd "$top"
enter=$top/rust/kdir/enter
alone mainline
work=$build/mainline
tree=$work/linux
source=$build/linux-source
flavours=(amd64 debug)

# copy: copies the sources of hv_utils, and the makefile of their folder. build_for disables the other modules in it.
copy()
{
	rm -rf "$work"
	mkdir -p "$tree/drivers/hv"
	cp "$source"/drivers/hv/{hv_util,hv_kvp,hv_snapshot,hv_utils_transport}.c "$source"/drivers/hv/{*.h,Makefile} \
		"$tree/drivers/hv/"
}

# apply FILE: applies a patch to the copy. The copy is in the project's folder, but git must not use its repository.
apply()
{
	GIT_CEILING_DIRECTORIES=$work git -C "$tree" apply -v "$top/$1"
}

# clean FILE: checks the patch as for mainline. checkpatch reads standard input, because it would check a file in a git
# repository as a source file.
clean()
{
	"$enter" perl "$source/scripts/checkpatch.pl" --no-tree --strict --quiet --no-summary - <"$1"
}

# build_for FLAVOUR: builds the module from the current state of the copy.
build_for()
{
	local out=$work/$1 said
	mkdir -p "$out"
	rm -f "$out/hv_utils.ko"
	said=$("$enter" make -s -j "$(nproc)" -C "$build/kdir/$1" M="$tree/drivers/hv" MO="$out" W=1 \
		CONFIG_HYPERV= CONFIG_HYPERV_VMBUS= CONFIG_HYPERV_BALLOON= CONFIG_MSHV_ROOT= CONFIG_MSHV_VTL= modules 2>&1)
	echo "$said"
	[ -e "$out/hv_utils.ko" ] && [ -z "$said" ]
}

# image FLAVOUR: makes the initramfs in which the built module is the module "c".
image()
{
	tests/guest/module-cpio.sh "$work/c-$1.cpio" c/hv_utils.ko="$work/$1/hv_utils.ko"
}

# patched: tests that each patch is clean and applies, and that the module then builds.
patched()
{
	local file name
	for file in Documentation/mainline/*.patch; do
		name=$(basename "$file" .patch)
		tell "$name is clean" clean "$file" || true
		tell "$name applies" apply "$file" || return
		tell "$name builds" build_for amd64 || return
	done
	for name in "${flavours[@]}"; do
		tell "the module builds for $name" build_for "$name" && tell "its image for $name" image "$name" || return
	done
}

# scenarios FLAVOUR OPTION...: runs scenarios.
scenarios()
{
	local flavour=$1
	shift
	OUTER_TIMEOUT=3600 "$enter" build/host/scenarios --flavour "$flavour" "$@" 2>&1 | sed -u 's/\r//' || failed=1
}

copy
patched || exit 1
if [ "${1:-}" = build ]; then
	exit "$failed"
fi

# Debian's kernel runs in emulated time, as in make faults.
scenarios amd64 --time emulated mainline
scenarios debug mainline
scenarios amd64 --time emulated --patched "$work/c-amd64.cpio" mainline
scenarios debug --patched "$work/c-debug.cpio" mainline
# The scenarios that C passes without the patches, as in make check.
scenarios amd64 --module c --vcpus 1 --vmbus 6.0 --patched "$work/c-amd64.cpio" check
scenarios amd64 --time emulated --module c --vcpus 1 --vmbus 6.0 --patched "$work/c-amd64.cpio" check
[ "$failed" -eq 0 ]
