#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# debug-kernel.sh: builds the debug kernel (see debug-kernel.config) from the source of the stock kernel. Makes
#   build/kdir/debug      its KDIR; complete if it has the file .ready
#   build/kernel/debug    the kernel: vmlinuz, release, System.map, lib/modules/
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
what="kdir debug"
steps=3
kdir=$build/kdir/debug
kernel=$build/kernel/debug
config=$top/rust/kdir/debug-kernel.config

"$top/rust/kdir/kdir.sh" amd64
read -r version abi _ <"$build/kernel.version"
release=$abi-debug
made="$version $(sha256sum <"$config" | cut -c 1-16)"
if [ "$(cat "$kdir/.ready" 2>/dev/null)" = "$made" ] && [ -e "$kernel/.ready" ]; then
	touch "$kdir/.ready"
	exit 0
fi
if [ "${HV_ENTERED:-}" != "$suite" ]; then
	HV_ENTERED='' exec "$top/rust/kdir/enter" env HV_ENTERED="$suite" "$0"
fi
alone kdir

tree=$(readlink -f "$build/linux-source")
# A tree of another version is not reused, as in kdir.sh.
if [ "$(cat "$kdir/.version" 2>/dev/null)" != "$version" ]; then
	rm -rf "$kdir"
	mkdir -p "$kdir"
	echo "$version" >"$kdir/.version"
fi
rm -f "$kdir/.ready"
# With KASAN, a kernel supports Rust only if it is built with clang.
cat >"$kdir/.kernelvariables" <<END
override KERNELRELEASE = $release
CC = clang
HOSTCC = clang
END
kmake()
{
	make -C "$tree" O="$kdir" LOCALVERSION= -j "$(nproc)" "$@"
}

step "configuring $release"
logged debug-config kmake KCONFIG_ALLCONFIG="$config" tinyconfig
# Without one of these options, the kernel would not detect some faults.
lost=$(grep '^CONFIG_' "$config" | grep -vxFf "$kdir/.config" || true)
[ -z "$lost" ] || die "the configuration lacks: $(echo "$lost" | tr '\n' ' ')" "look for the dependencies of these options"

step "building $release (10 to 20 min)"
logged debug-build kmake bzImage modules

step "installing $release"
rm -rf "$kernel" "$kernel.new"
mkdir -p "$kernel.new"
logged debug-install kmake INSTALL_MOD_PATH="$kernel.new" INSTALL_MOD_STRIP=1 modules_install
rm -f "$kernel.new/lib/modules/$release/build"
cp "$kdir/arch/x86/boot/bzImage" "$kernel.new/vmlinuz"
cp "$kdir/System.map" "$kdir/.config" "$kernel.new/"
echo "$release" >"$kernel.new/release"
echo "$version" >"$kernel.new/.ready"
mv "$kernel.new" "$kernel"
echo "$made" >"$kdir/.ready"
echo "$what: ready: $release (${SECONDS} s)"
