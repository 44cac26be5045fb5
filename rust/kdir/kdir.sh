#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# kdir.sh [ID]: gives Debian's stock kernel what its headers package lacks, Rust's metadata. ID is
# FLAVOUR, amd64 (the default) or cloud-amd64, for the series of lib.sh, or SERIES-FLAVOUR. It makes
#   build/linux-source      -> the kernel's source as Debian patched it, for both flavours
#   build/kdir/ID           a KDIR for modules in Rust; .ready in it says that it is finished
#   build/kernel/ID         the stock kernel: vmlinuz, release, System.map, lib/modules/
# For another series the source is build/linux-source-SERIES.
# UPDATE=1 looks for a newer kernel although one is there.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
id=${1:-amd64}
what="kdir $id"
steps=6
kdir=$build/kdir/$id
kernel=$build/kernel/$id

flavour=$id
other=
case $id in
[0-9]*-*)
	series=${id%%-*}
	flavour=${id#*-}
	other=-$series
	;;
esac
# What the flavours of a series share.
source=$build/linux-source$other
resolved=$build/kernel$other.version

case $flavour in
amd64|cloud-amd64) ;;
*) die "no kernel flavour is called $flavour" "there are amd64 and cloud-amd64" ;;
esac

if [ -z "${UPDATE:-}" ] && [ -e "$kdir/.ready" ] && [ -e "$kernel/.ready" ] && [ -e "$source/Makefile" ]; then
	exit 0
fi

# The rest needs the toolchain of the suite.
if [ "${HV_ENTERED:-}" != 1 ]; then
	"$top/rust/kdir/root.sh"
	HV_ENTERED='' exec "$top/rust/kdir/enter" env HV_ENTERED=1 "$0" "$id"
fi
alone kdir

# An apt of our own: neither the machine's sources nor its lists are touched.
apt=$build/apt
write_apt_conf()
{
	mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$build/deb"
	sources >"$apt/sources.list"
	cat >"$apt/apt.conf" <<-END
		Dir::State "$apt/state";
		Dir::State::status "/var/lib/dpkg/status";
		Dir::Cache "$apt/cache";
		Dir::Etc::SourceList "$apt/sources.list";
		Dir::Etc::SourceParts "/dev/null";
		Dir::Etc::Preferences "/dev/null";
		Dir::Etc::PreferencesParts "/dev/null";
		APT::Architecture "amd64";
		APT::Sandbox::User "root";
		Acquire::Languages "none";
	END
	export APT_CONFIG=$apt/apt.conf
}

# candidate NAME: the version of the package in the backports, or nothing.
candidate()
{
	apt-cache madison "$1" | awk -F ' *\\| *' -v s="$suite-backports/" 'index($3, s) { print $2 }' | sort -V | tail -n 1
}

# offered: the series in the backports, in one line.
offered()
{
	local name
	apt-cache pkgnames linux-source- | sort -V | while read -r name; do
		[ -z "$(candidate "$name")" ] || echo "${name#linux-source-}"
	done | paste -s -d ' '
}

# resolve: sets $version (of the packages) and $abi (as in linux-image-ABI-amd64).
resolve()
{
	local name
	version=$(candidate "linux-source-$series")
	[ -n "$version" ] || die "$suite-backports has no kernel of the $series series (no package linux-source-$series)" \
		"it has those of $(offered)"
	abi=
	for name in $(apt-cache pkgnames "linux-headers-$series." | grep -- '-amd64$' | grep -v -e '-cloud-' -e '-rt-' | sort -V); do
		if [ "$(candidate "$name")" = "$version" ]; then
			abi=${name#linux-headers-}
			abi=${abi%-amd64}
		fi
	done
	[ -n "$abi" ] || die "$suite-backports has linux-source-$series $version, but no linux-headers of that version"
}

# One answer for both flavours, so that they share the source.
step "looking for the newest $series kernel in $suite-backports"
write_apt_conf
if [ -n "${UPDATE:-}" ] || [ ! -e "$resolved" ]; then
	logged kdir-update apt-get update
	resolve
	echo "$version $abi" >"$resolved.new"
	mv "$resolved.new" "$resolved"
fi
read -r version abi <"$resolved"
release=$abi-$flavour
if [ -n "${UPDATE:-}" ] && [ "$(cat "$kdir/.ready" 2>/dev/null)" = "$version" ] && [ -e "$kernel/.ready" ]; then
	echo "$what: $release ($version) is the newest"
	exit 0
fi

step "downloading the packages of $release ($version)"
debs=("linux-source-$series" "linux-headers-$release" "linux-image-$release")
for name in "linux-modules-$release" "linux-base-$release" "linux-binary-$release"; do
	if [ -n "$(candidate "$name")" ]; then
		debs+=("$name")
	fi
done
cd "$build/deb"
for name in "${debs[@]}"; do
	if ! [ -e "${name}_$version.ok" ]; then
		# An update of the archive may have taken the version away since it was resolved.
		apt-get update >/dev/null 2>&1 || true
		logged "deb-$name" apt-get download "$name=$version"
		touch "${name}_$version.ok"
	fi
done
# unpack NAME DIR: apt writes a version's ':' as %3a.
unpack()
{
	dpkg-deb -x "$build/deb/${1}_${version//:/%3a}_"a*.deb "$2"
}
cd "$top"

step "unpacking the kernel and its source"
# Kbuild takes no odd characters in a path.
tree=$build/linux-${version//[!a-z0-9.-]/_}
if [ ! -e "$tree/Makefile" ]; then
	rm -rf "$tree.new"
	mkdir -p "$tree.new"
	dpkg-deb --fsys-tarfile "$build/deb/linux-source-${series}_${version}_all.deb" |
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
have=$("$tree/scripts/rustc-version.sh" rustc)
[ -n "$want" ] || die "$release was built without Rust (no CONFIG_RUSTC_VERSION in its configuration)"
[ "$want" = "$have" ] || die "$release was built with rustc $want, but the rustc here is $have" \
	"metadata is only valid for the very same rustc; remove build/root and run make kdir again"
# A tree of another version is not reused: its metadata would be stale.
if [ "$(cat "$kdir/.version" 2>/dev/null)" != "$version" ]; then
	rm -rf "$kdir"
	mkdir -p "$kdir"
	echo "$version" >"$kdir/.version"
fi
rm -f "$kdir/.ready"
cp "$headers/.config" "$kdir/.config"
# Debian's kernel reads this file in its build folder: every later use of it has these too.
cat >"$kdir/.kernelvariables" <<END
override KERNELRELEASE = $release
CC = x86_64-linux-gnu-gcc-14
HOSTCC = gcc-14
END
kmake()
{
	make -C "$tree" O="$kdir" LOCALVERSION= -j "$(nproc)" "$@"
}
logged "kdir-$id-config" kmake olddefconfig
step "rebuilding Rust's metadata for $release (about 75 s)"
logged "kdir-$id-prepare" kmake prepare
logged "kdir-$id-modules" kmake modules_prepare

step "comparing mangled symbols with the packaged Module.symvers"
# Both lists: the symbols exported by the kernel's own Rust objects.
rust_objects=$(find "$kdir/rust" -maxdepth 1 -name '*.o' ! -name 'exports.o' | sort)
# shellcheck disable=SC2086
nm -g --defined-only $rust_objects | awk '$2 ~ /[TRDBW]/ && $3 ~ /^_R/ { print $3 }' | sort -u >"$kdir/.symbols.built"
awk '$2 ~ /^_R/ && $3 == "vmlinux" { print $2 }' "$headers/Module.symvers" | sort -u >"$kdir/.symbols.packaged"
lost=$(comm -13 "$kdir/.symbols.built" "$kdir/.symbols.packaged" | wc -l)
all=$(wc -l <"$kdir/.symbols.packaged")
[ "$all" -gt 0 ] || die "Module.symvers of $release exports no Rust symbol"
[ "$lost" -eq 0 ] || die "$lost of the $all Rust symbols of $release have other names here: modules would not load" \
	"compare build/kdir/$id/.symbols.built with .symbols.packaged"
# vmlinux holds nothing but the kernel's BTF, which that of the modules is based upon.
# System.map is what modules_install calls depmod with.
cp "$headers/Module.symvers" "$kdir/Module.symvers"
cp "$kernel/System.map" "$kdir/System.map"
if [ -e "$headers/vmlinux" ]; then
	cp "$headers/vmlinux" "$kdir/vmlinux"
fi
rm -rf "$build/headers-$id"
echo "$version" >"$kdir/.ready"
echo "$what: ready: $release, $all Rust symbols agree (${SECONDS} s)"
