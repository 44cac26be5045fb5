#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# kdir.sh [ID]: makes a KDIR for Debian's stock kernel with Rust metadata, which the headers package lacks. ID is
# [SERIES-][SUITE-]FLAVOUR (amd64, 7.2-rt-amd64, 7.2-sid-amd64). choose.sh chooses the parts that ID omits. Makes
#   build/linux-source      -> the kernel's source with Debian's patches, for all flavours
#   build/kdir/ID           a KDIR for modules in Rust; complete if it has the file .ready; .suite names the suite of its
#                           tools
#   build/kernel/ID         the stock kernel: vmlinuz, release, System.map, lib/modules/
# If ID has a series or a suite, the name of the source ends with them: build/linux-source-7.2-sid. UPDATE=1 looks for a
# newer kernel even if there is one. The exit status is 3 if the archive has no such kernel.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
id=${1:-amd64}
what="kdir $id"
steps=6
kdir=$build/kdir/$id
kernel=$build/kernel/$id

parse "$id"
other=${of_series:+-$of_series}${of_suite:+-$of_suite}
# The flavours of a series share these two.
source=$build/linux-source$other
resolved=$build/kernel$other.version

if [ -z "${UPDATE:-}" ] && [ -e "$kdir/.ready" ] && [ -e "$kernel/.ready" ] && [ -e "$source/Makefile" ]; then
	exit 0
fi

# Use apt and dpkg of Debian 13.
if [ "${HV_ENTERED:-}" != "$suite" ]; then
	"$top/rust/kdir/root.sh"
	HV_ENTERED='' exec "$top/rust/kdir/enter" env HV_ENTERED="$suite" "$0" "$id"
fi
alone kdir

case $flavour in
*arm64*) architecture=arm64 ;;
*) architecture=amd64 ;;
esac

# choose: writes the choice to $resolved. All flavours of a series use the same choice, so that they share the source.
choose()
{
	# ID omits the usual series and suite. Use SERIES and SUITE only if they belong to this ID.
	if [ "$(kernel_id "$flavour" "${SERIES:-}" "${SUITE:-}")" != "$id" ]; then
		SERIES='' SUITE=''
	fi
	SERIES=${of_series:-${SERIES:-}} SUITE=${of_suite:-${SUITE:-}} "$top/rust/kdir/choose.sh" "$flavour" >"$resolved.new" || {
		status=$?
		rm -f "$resolved.new"
		exit $status
	}
	mv "$resolved.new" "$resolved"
	read -r version abi from <"$resolved"
}

# has NAME: returns whether the archive has the package in this version.
has()
{
	apt-cache madison "$1" | awk -F ' *\\| *' -v version="$version" -v line="$from $1 $version" '$2 == version { print line }' |
		grep -vE -e "${HIDE:-^$}" | grep -q .
}

step "looking for the newest kernel"
read -r version abi from 2>/dev/null <"$resolved" || true
if [ -n "${UPDATE:-}" ] || [ -z "${from:-}" ]; then
	choose
fi
archive "$from" "$architecture"
if ! has "linux-headers-$abi-$flavour"; then
	# If the update fails, choose.sh prints the reason.
	apt-get update >"$build/log/kdir-update.log" 2>&1 || true
	if ! has "linux-headers-$abi-$flavour"; then
		echo "$what: $from has no linux-headers-$abi-$flavour $version any more, if there ever was one"
		choose
		archive "$from" "$architecture"
	fi
fi
series=$(echo "$version" | grep -o '^[0-9]*\.[0-9]*')
# The suite whose tools have built the kernel.
tools=${from%-backports}
release=$abi-$flavour
if [ -n "${UPDATE:-}" ] && [ "$(cat "$kdir/.ready" 2>/dev/null)" = "$version" ] && [ -e "$kernel/.ready" ]; then
	echo "$what: $release ($version) is the newest"
	exit 0
fi

step "downloading the packages of $release ($version)"
debs=("linux-source-$series" "linux-headers-$release" "linux-image-$release")
for name in "linux-modules-$release" "linux-base-$release" "linux-binary-$release"; do
	! has "$name" || debs+=("$name")
done
cd "$build/downloads"
# download NAME: downloads the package, once.
download()
{
	if ! [ -e "$1_$version.ok" ]; then
		logged "deb-$1" apt-get download "$1=$version"
		touch "$1_$version.ok"
	fi
}
for name in "${debs[@]}"; do
	download "$name"
done
# linux-headers-rust of make deb has links to the files of linux-kbuild. That package is made only for this architecture.
if [ "$architecture" = "$(dpkg --print-architecture)" ]; then
	kbuild=$(dpkg-deb -f "linux-headers-${release}_${version//:/%3a}_$architecture.deb" Depends | grep -o 'linux-kbuild-[^ ,]*')
	download "$kbuild"
fi
# unpack NAME DIR: unpacks the package. In names of files, apt replaces ':' in a version with %3a.
unpack()
{
	dpkg-deb -x "$build/downloads/${1}_${version//:/%3a}_"a*.deb "$2"
}
cd "$top"

step "unpacking the kernel and its source"
# Kbuild does not accept all characters in a path.
tree=$build/linux-${version//[!a-z0-9.-]/_}
if [ ! -e "$tree/Makefile" ]; then
	rm -rf "$tree.new"
	mkdir -p "$tree.new"
	dpkg-deb --fsys-tarfile "$build/downloads/linux-source-${series}_${version}_all.deb" |
		tar -xO --wildcards './usr/src/linux-source-*.tar.*' | xz -d -T 0 |
		tar -x -C "$tree.new" --strip-components=1
	mv "$tree.new" "$tree"
fi
ln -sfn "${tree##*/}" "$source"
if [ "$(cat "$kernel/.ready" 2>/dev/null)" != "$version" ]; then
	rm -rf "$kernel" "$kernel.new"
	mkdir -p "$kernel.new"
	for name in "${debs[@]:2}"; do
		unpack "$name" "$kernel.new"
	done
	cd "$kernel.new"
	if [ ! -e lib/modules ]; then
		mkdir -p lib
		mv usr/lib/modules lib/modules
	fi
	for name in vmlinuz System.map config; do
		if [ -e "lib/modules/$release/$name" ]; then
			mv "lib/modules/$release/$name" "$name"
		else
			mv "boot/$name-$release" "$name"
		fi
	done
	rm -rf boot usr etc
	depmod -b . "$release"
	echo "$release" >release
	echo "$version" >.ready
	cd "$top"
	mv "$kernel.new" "$kernel"
fi

step "configuring the source as $release"
headers=$build/headers-$id
rm -rf "$headers"
unpack "linux-headers-$release" "$headers"
headers=$headers/usr/src/linux-headers-$release
want=$(sed -n 's/^CONFIG_RUSTC_VERSION=//p' "$headers/.config")
[ -n "$want" ] || die "$release was built without Rust (no CONFIG_RUSTC_VERSION in its configuration)"
# The compiler that the headers name, such as x86_64-linux-gnu-gcc-14, and its package.
# shellcheck disable=SC2016 # make expands $(CC)
cc=$(printf '%s\n' 'include .kernelvariables' 'cc: ; @echo $(CC)' | make -s -C "$headers" -f - cc)
compiler=$(echo "${cc##* }" | sed 's/^\(.*\)-\(gcc-[0-9]*\)$/\2-\1/; s/_/-/g')
"$top/rust/kdir/root.sh" "$tools" "$compiler"
# run CMD...: runs CMD in the system with these tools.
run()
{
	"$top/rust/kdir/enter" --suite "$tools" "$@"
}
have=$(run "$tree/scripts/rustc-version.sh" rustc)
[ "$want" = "$have" ] || die "$release was built with rustc $want, but $tools has $have" \
	"metadata is only valid for the very same rustc: remove $(root_of "$tools") and run make kdir again"
# Do not reuse a tree of another version: its metadata would be stale.
if [ "$(cat "$kdir/.version" 2>/dev/null)" != "$version" ]; then
	rm -rf "$kdir"
	mkdir -p "$kdir"
	echo "$version" >"$kdir/.version"
fi
rm -f "$kdir/.ready"
cp "$headers/.config" "$kdir/.config"
echo "$tools" >"$kdir/.suite"
# The makefile of Debian's kernel includes this file from the build folder, in this build and in later ones.
cp "$headers/.kernelvariables" "$kdir/.kernelvariables"
options=()
if grep -qx 'CONFIG_COMPAT_VDSO=y' "$headers/.config"; then
	# Only the vDSO needs a 32-bit compiler.
	options=("CC_COMPAT=clang --target=arm-linux-gnueabi" LD_COMPAT=ld.lld)
fi
kmake()
{
	run make -C "$tree" O="$kdir" LOCALVERSION= "${options[@]}" -j "$(nproc)" "$@"
}
logged "kdir-$id-config" kmake olddefconfig
# A lost option could change the input of the symbol mangling. Ignore CC_CAN_LINK: this build links no programs.
changed=$(diff <(grep -vE '_VERSION|CC_CAN_LINK' "$headers/.config") <(grep -vE '_VERSION|CC_CAN_LINK' "$kdir/.config") || true)
[ -z "$changed" ] || printf '%s: the configuration is not quite the same:\n%s\n' "$what" "$changed"
step "rebuilding Rust's metadata for $release (about 75 s)"
logged "kdir-$id-prepare" kmake prepare
logged "kdir-$id-modules" kmake modules_prepare

step "comparing mangled symbols with the packaged Module.symvers"
# Both lists have the symbols that the kernel's own Rust objects export.
rust_objects=$(find "$kdir/rust" -maxdepth 1 -name '*.o' ! -name 'exports.o' | sort)
# shellcheck disable=SC2086
run llvm-nm -g --defined-only $rust_objects | awk '$2 ~ /[TRDBW]/ && $3 ~ /^_R/ { print $3 }' | sort -u >"$kdir/.symbols.built"
awk '$2 ~ /^_R/ && $3 == "vmlinux" { print $2 }' "$headers/Module.symvers" | sort -u >"$kdir/.symbols.packaged"
lost=$(comm -13 "$kdir/.symbols.built" "$kdir/.symbols.packaged" | wc -l)
all=$(wc -l <"$kdir/.symbols.packaged")
[ "$all" -gt 0 ] || die "Module.symvers of $release exports no Rust symbol"
[ "$lost" -eq 0 ] || die "$lost of the $all Rust symbols of $release have other names here: modules would not load" \
	"compare build/kdir/$id/.symbols.built with .symbols.packaged"
# vmlinux has only the kernel's BTF, on which the BTF of the modules is based.
# modules_install calls depmod with System.map.
cp "$headers/Module.symvers" "$kdir/Module.symvers"
cp "$kernel/System.map" "$kdir/System.map"
if [ -e "$headers/vmlinux" ]; then
	cp "$headers/vmlinux" "$kdir/vmlinux"
fi
rm -rf "$build/headers-$id"
echo "$version" >"$kdir/.ready"
echo "$what: ready: $release, $all Rust symbols agree (${SECONDS} s)"
