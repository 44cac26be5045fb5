#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# deb.sh [--module] ID...: called by make deb. Makes Debian packages in build/deb (or in OUT), for the kernels with the
# trees build/kdir/ID and the modules in build/out/ID.
#   hv-utils-rust-RELEASE        the module for one kernel
#   linux-headers-rust-RELEASE   the files for modules in Rust that Debian's headers package lacks
#   hv-utils-rust-dkms           the module's source, for DKMS
#   hv-utils-rust-common         the files that both kinds of module package need
# --module omits linux-headers-rust. KEY and CERT are the files of a key and its certificate, and sign the modules.
# The same commit and the same trees give identical packages, byte by byte.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../../rust/kdir/lib.sh"
what=deb
here=$top/drivers/packages
out=${OUT:-$build/deb}
if [ "${HV_ENTERED:-}" != 1 ]; then
	export SOURCE_DATE_EPOCH HEADERS_EPOCH
	: "${SOURCE_DATE_EPOCH:=$(git -c safe.directory="$top" -C "$top" log -1 --format=%ct 2>/dev/null ||
		date -r "$top/dkms.conf" +%s)}"
	# The time of the last commit that changes the contents of linux-headers-rust.
	HEADERS_EPOCH=$(git -c safe.directory="$top" -C "$top" log -1 --format=%ct -- dkms.conf \
		drivers/packages/{compose.sh,headers.postinst,deb.sh} 2>/dev/null) || HEADERS_EPOCH=
	HEADERS_EPOCH=${HEADERS_EPOCH:-$SOURCE_DATE_EPOCH}
	# The root has other files at the caller's paths. Copy the key into the project.
	for file in "${KEY:-}" "${CERT:-}"; do
		[ -z "$file" ] || [ -r "$file" ] || die "cannot read $file"
	done
	keys=$build/deb.keys
	trap 'rm -rf "$keys"' EXIT
	if [ -n "${KEY:-}" ]; then
		[ -n "${CERT:-}" ] || die "KEY needs CERT, its certificate"
		install -d -m 700 "$keys"
		install -m 600 "$KEY" "$keys/key"
		install -m 600 "$CERT" "$keys/cert"
	fi
	"$top/rust/kdir/enter" env HV_ENTERED=1 OUT="$out" ${KEY:+KEY="$keys/key"} ${KEY:+CERT="$keys/cert"} "$0" "$@"
	exit
fi
umask 022
PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d "$build/deb.XXXXXX")
trap 'rm -rf "$work"' EXIT

# The version is that of dkms.conf, followed by the time of the last commit. So newer packages replace older ones.
dkms_version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"$/\1/p' "$top/dkms.conf")
stamped()
{
	echo "$dkms_version+$(date -u -d "@$1" +%Y%m%d.%H%M%S)"
}
version=$(stamped "$SOURCE_DATE_EPOCH")

# config KDIR NAME: prints the value of CONFIG_NAME, without quotes.
config()
{
	sed -n "s/\"//g; s/^CONFIG_$2=//p" "$1/.config"
}

# architecture KDIR: prints Debian's name for the architecture of the kernel.
architecture()
{
	if [ "$(config "$1" X86_64)" = y ]; then
		echo amd64
	elif [ "$(config "$1" ARM64)" = y ]; then
		echo arm64
	else
		die "$1 is for an architecture without Hyper-V kernels in Debian"
	fi
}

# triplet KDIR: prints the prefix of the names of its tools.
triplet()
{
	case $(architecture "$1") in
	amd64) echo x86_64-linux-gnu ;;
	arm64) echo aarch64-linux-gnu ;;
	esac
}

# begin NAME: starts a package.
begin()
{
	name=$1
	tree=$work/$name
	mkdir -p "$tree/DEBIAN" "$tree/usr/share/doc/$name"
}

# script FILE KIND [NAME=VALUE]...: adds a maintainer script, or triggers, and replaces each @NAME@ in it.
script()
{
	local file=$tree/DEBIAN/$2 pair
	cp "$here/$1" "$file"
	for pair in "${@:3}"; do
		sed -i "s|@${pair%%=*}@|${pair#*=}|g" "$file"
	done
}

# put FILE PLACE [MODE]: adds a file.
put()
{
	install -D -m "${3:-644}" "$1" "$tree/$2"
}

# finish VERSION ARCHITECTURE <CONTROL: makes the package. CONTROL has the remaining control fields.
finish()
{
	local deb=$out/${name}_$1_$2.deb
	{
		echo "This package was made by \"make deb\" of hv_utils in Rust."
		echo
		cat "$top/LICENSE"
	} >"$tree/usr/share/doc/$name/copyright"
	cat >"$work/changelog" <<-END
		hv-utils-rust ($version) unstable; urgency=medium

		  * The history is in the repository.

		 -- $maintainer  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
	END
	gzip -9n <"$work/changelog" >"$tree/usr/share/doc/$name/changelog.gz"
	{
		printf '%s\n' "Package: $name" "Source: hv-utils-rust ($version)" "Version: $1" "Architecture: $2" \
			"Maintainer: $maintainer" "Installed-Size: $(find "$tree" -path "$tree/DEBIAN" -prune -o -printf '%y %s\n' |
				awk '{ kib += $1 == "f" ? int(($2 + 1023) / 1024) : 1 } END { print kib }')" \
			"Section: kernel" "Priority: optional"
		cat
	} >"$tree/DEBIAN/control"
	(cd "$tree" && find . -type f ! -path './DEBIAN/*' -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' md5sum) \
		>"$tree/DEBIAN/md5sums"
	rm -f "$out/${name}_"*.deb
	# xz's output depends on the number of threads.
	dpkg-deb --root-owner-group -Zxz --threads-max=2 -b "$tree" "$deb" >/dev/null
	rm -rf "$tree"
	echo "    ${deb#"$top/"} ($(du -k "$deb" | cut -f 1) kB)"
}

# module ID: makes the package with the module for the kernel.
module()
{
	local kdir=$build/kdir/$1 ko=$build/out/$1/hv_utils.ko release place
	release=$(cat "$kdir/include/config/kernel.release")
	[ -e "$ko" ] || die "there is no $ko" "make KDIR=build/kdir/$1 builds it"
	[[ "$(modinfo -F vermagic "$ko") " == "$release "* ]] || die "$ko is not for $release"
	begin "hv-utils-rust-$release"
	place=$tree/usr/lib/modules/$release/updates/hv-utils-rust
	mkdir -p "$place"
	"$(triplet "$kdir")-strip" --strip-debug -o "$place/hv_utils.ko" "$ko"
	if [ -n "${KEY:-}" ]; then
		"$kdir/scripts/sign-file" "$(config "$kdir" MODULE_SIG_HASH)" "$KEY" "$CERT" "$place/hv_utils.ko"
	fi
	# The same compression as for the kernel's own modules.
	xz --check=crc32 --lzma2=dict=1MiB "$place/hv_utils.ko"
	script module.postinst postinst "ABI=$release"
	script module.postrm postrm "ABI=$release"
	finish "$version" "$(architecture "$kdir")" <<-END
		Depends: hv-utils-rust-common (>= $version), kmod, linux-modules-$release (>= $(cat "$kdir/.ready"))
		Enhances: hyperv-daemons
		Description: Hyper-V guest services in Rust, for Linux $release
		 The module hv_utils serves Hyper-V's integration services: heartbeat,
		 shutdown, time synchronisation, data exchange, backup and file copy. It
		 replaces the kernel's own module while this package is installed.
	END
}

# headers ID: makes the package with the files that Debian's headers of the kernel lack.
headers()
{
	local kdir=$build/kdir/$1 source release debian kbuild deb
	release=$(cat "$kdir/include/config/kernel.release")
	debian=$(cat "$kdir/.ready")
	if [ "$(architecture "$kdir")" != "$(dpkg --print-architecture)" ]; then
		echo "    no linux-headers-rust-$release: its procedural macros run on $(dpkg --print-architecture) only"
		return
	fi
	# Compression takes a minute. Skip it if the package with this version exists.
	local -x SOURCE_DATE_EPOCH=$HEADERS_EPOCH
	local version
	version=$(stamped "$HEADERS_EPOCH")
	deb=$out/linux-headers-rust-${release}_$debian+${version}_$(architecture "$kdir").deb
	if [ -e "$deb" ]; then
		echo "    ${deb#"$top/"} (unchanged)"
		return
	fi
	source=$(readlink -f "$kdir/source")
	mkdir -p "$work/root"
	deb=$(downloaded "linux-headers-$release" "$debian")
	dpkg-deb -x "$deb" "$work/root"
	kbuild=$(dpkg-deb -f "$deb" Depends | grep -o 'linux-kbuild-[^ ,]*')
	deb=$(downloaded "$kbuild" "$debian")
	dpkg-deb -x "$deb" "$work/root"
	begin "linux-headers-rust-$release"
	"$here/compose.sh" "$kdir" "$source" "$work/root" "$release" "$tree/usr/src/$name" "/usr/src/$name"
	rm -rf "$work/root"
	script headers.postinst postinst "ABI=$release"
	finish "$debian+$version" "$(architecture "$kdir")" <<-END
		Depends: linux-headers-$release (= $debian)
		Recommends: rustc, bindgen
		Description: Linux $release, for modules in Rust
		 The files that linux-headers-$release lacks to build a module in Rust: the
		 metadata of the kernel's crates and the procedural macros. To build modules
		 in Rust or C, use the tree /usr/src/$name:
		 .
		  make -C /usr/src/$name M=\$PWD
		 .
		 It needs the compiler that built the kernel:
		 $(config "$kdir" RUSTC_VERSION_TEXT).
	END
}

# downloaded PACKAGE VERSION: prints the file of the package. make kdir has downloaded it.
downloaded()
{
	local file
	file=$build/downloads/${1}_${2//:/%3a}_$(dpkg --print-architecture).deb
	[ -e "$file" ] || die "there is no ${file#"$top/"}" \
		"remove .ready from the kernel's folder in build/kdir, and make kdir fetches it"
	echo "$file"
}

# dkms: makes the package with the source.
dkms()
{
	local from file
	begin hv-utils-rust-dkms
	from=usr/src/hv_utils-$dkms_version
	cd "$top"
	find Makefile Kbuild LICENSE dkms.conf rust drivers -type f ! -name '*_generated.rs' ! -name '.*' ! -name '*.o' \
		! -name '*.rmeta' ! -name '*.mk' ! -path rust/kdir/debug-kernel.config | LC_ALL=C sort |
	while read -r file; do
		put "$file" "$from/$file" "$([ -x "$file" ] && echo 755 || echo 644)"
	done
	script dkms.postinst postinst "VERSION=$dkms_version"
	script dkms.prerm prerm "VERSION=$dkms_version"
	script dkms.postrm postrm
	finish "$version" all <<-END
		Depends: hv-utils-rust-common (>= $version), bindgen, dkms (>= 3.2), openssl, rustc
		Suggests: bc, bison, flex, libelf-dev, libssl-dev, pahole, python3-minimal, rust-src
		Enhances: hyperv-daemons
		Description: Hyper-V guest services in Rust, built by DKMS
		 The module hv_utils serves Hyper-V's integration services. DKMS builds it for
		 the running and the newest kernel of the 7.2 or 7.3 series. Each new kernel
		 needs linux-headers-RELEASE and linux-headers-rust-RELEASE, or linux-source
		 in place of the latter. Without them, the kernel uses its own module.
	END
}

# common: makes the package with the common files.
common()
{
	local daemon
	begin hv-utils-rust-common
	put "$here/61-hv-utils-rust.rules" usr/lib/udev/rules.d/61-hv-utils-rust.rules
	put "$here/depmod.conf" usr/lib/depmod.d/hv-utils-rust.conf
	put "$here/fcopy-by-character-device.conf" usr/lib/hv-utils-rust/fcopy-by-character-device.conf
	put "$here/application-state" usr/libexec/hv-utils-rust/application-state 755
	put "$here/hv-utils-rust-health.service" usr/lib/systemd/system/hv-utils-rust-health.service
	for file in hv-utils-rust-ssh.socket hv-utils-rust-ssh@.service; do
		put "$here/$file" "usr/lib/systemd/system/$file"
	done
	for daemon in hv-kvp-daemon hv-vss-daemon hv-fcopy-uio-daemon hv-fcopy-daemon; do
		put "$here/restart-daemon.conf" "usr/lib/systemd/system/$daemon.service.d/50-hv-utils-rust.conf"
	done
	mkdir -p "$tree/usr/share/man/man4"
	gzip -9n <"$top/Documentation/hv_utils.4" >"$tree/usr/share/man/man4/hv_utils.4.gz"
	chmod 644 "$tree/usr/share/man/man4/hv_utils.4.gz"
	for file in README.md Documentation/administration.rst Documentation/services.rst Documentation/ABI/testing/*; do
		put "$top/$file" "usr/share/doc/$name/${file##*/}"
	done
	script common.postinst postinst
	script common.prerm prerm
	script common.postrm postrm
	script common.triggers triggers
	chmod 644 "$tree/DEBIAN/triggers"
	finish "$version" all <<-END
		Recommends: hyperv-daemons (>= 7.2~)
		Description: Hyper-V guest services in Rust, common files
		 Files for the module hv_utils, whether DKMS or a package for one kernel
		 provides it: udev rules that start the daemon for file copy, systemd drop-ins
		 that restart daemons after a crash, a unit that tells the host that the guest
		 is healthy, a unit for ssh from the host (both disabled by default), and
		 documents.
	END
}

maintainer="${DEBFULLNAME:-The hv_utils authors} <${DEBEMAIL:-nobody@example.org}>"
mkdir -p "$out"
echo "deb: version $version${KEY:+, signed}"
common
dkms
with_headers=1
if [ "${1:-}" = --module ]; then
	with_headers=
	shift
fi
for id in "$@"; do
	[ -e "$build/kdir/$id/.ready" ] || die "there is no build/kdir/$id" "make kdir creates it"
	module "$id"
	[ -z "$with_headers" ] || headers "$id"
done
