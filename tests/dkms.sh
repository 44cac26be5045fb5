#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# dkms.sh: tests dkms.conf on a Debian 13 of its own, with Debian's kernel packages; make check-dkms
# calls it. It prints "ok - NAME" or "not ok - NAME" for each test.
#   build/dkms/base    Debian 13 with the tools and the downloaded packages, kept
#   build/dkms/root    a copy of it, which the tests change
# shellcheck disable=SC2317 # test_that calls functions by their names
set -eu -o pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../rust/kdir/lib.sh"
what=check-dkms
steps=3
base=$build/dkms/base
root=$build/dkms/root
log=$build/dkms/log
failed=0
[ "$(id -u)" = 0 ] || die "making a $suite root needs root's rights" "run it with sudo"
alone dkms

# inside ROOT CMD...: runs CMD in ROOT, which sees build/ at the same path.
inside()
{
	# The mounts go with the last process in their namespace.
	# shellcheck disable=SC2016
	unshare --mount --propagation private sh -eu -c '
		for dir in /dev /proc /sys; do
			mount --rbind "$dir" "$1$dir"
		done
		mkdir -p "$1$2"
		mount --bind "$2" "$1$2"
		root=$1
		shift 2
		exec env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
			chroot "$root" "$@"
	' sh "$1" "$build" "${@:2}" </dev/null 9>&-
}

step "build/dkms/base: Debian 13 with rustc (the first run makes it, in a minute)"
if [ ! -e "$base" ]; then
	rm -rf "$base.new"
	mkdir -p "$base.new"
	sources "$suite" >"$build/dkms/list"
	logged dkms-base mmdebstrap --mode=root --variant=apt --architectures=amd64 --include=rustc,bindgen \
		--dpkgopt='force-unsafe-io' --dpkgopt='path-exclude=/usr/share/man/*' \
		--aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
		"$suite" "$base.new" "$build/dkms/list"
	mv "$base.new" "$base"
fi

step "downloading dkms and the headers of the newest $series kernel"
cp -L /etc/resolv.conf "$base/etc/resolv.conf"
logged dkms-update inside "$base" apt-get update
headers=$(inside "$base" apt-cache pkgnames "linux-headers-$series." | grep -x 'linux-headers-[^-]*-amd64' |
	sort -V | tail -n 1) || die "$suite-backports has no headers of the $series series"
release=${headers#linux-headers-}
logged dkms-download inside "$base" apt-get install -y --download-only dkms "$headers"

step "testing with $headers (about a minute)"
rm -rf "$root"
cp -a "$base" "$root"
mkdir "$root/usr/src/hv_utils-1.0"
tar -c -C "$top" --exclude=./build --exclude=./.git --exclude='*.ko' . | tar -x -C "$root/usr/src/hv_utils-1.0"
# Should Debian's headers have Rust metadata one day, they are without it here.
printf 'path-exclude=%s\n' '/usr/src/*.rmeta' '/usr/lib/modules/*.rmeta' '/lib/modules/*.rmeta' \
	>"$root/etc/dpkg/dpkg.cfg.d/no-rust-metadata"
hook=/etc/kernel/header_postinst.d/dkms

# run CMD...: runs CMD in the root. Its output ends up in the log.
run()
{
	echo "# $*" >>"$log"
	inside "$root" "$@" >>"$log" 2>&1 || { echo "# exit status $?" >>"$log"; return 1; }
}

# test_that NAME FUNCTION
test_that()
{
	: >"$log"
	if "$2"; then
		echo "ok - dkms: $1"
	else
		sed 's/^/    /' "$log" | tail -n 40
		echo "not ok - dkms: $1"
		failed=1
	fi
}

# skipped REASON: DKMS skipped the module, for that reason, and all packages are configured.
skipped()
{
	grep -q "^hv_utils: not built for $release: .*$1" "$log" || { echo "# no reason was given" >>"$log"; return 1; }
	grep -q "was skipped for module(s) hv_utils" "$log" || { echo "# it was not skipped" >>"$log"; return 1; }
	inside "$root" dpkg --audit >"$log.audit" || { echo "# dpkg --audit failed" >>"$log"; return 1; }
	cat "$log.audit" >>"$log"
	[ ! -s "$log.audit" ]
}

headers_after_module()
{
	run apt-get install -y dkms && run dkms add hv_utils/1.0 &&
		run apt-get install -y dkms "$headers" && skipped "no Rust metadata"
}

image_hook()
{
	run /etc/kernel/postinst.d/dkms "$release" && skipped "no Rust metadata"
}

module_after_headers()
{
	run dkms remove hv_utils/1.0 --all && run apt-get purge -y dkms "$headers" &&
		run apt-get install -y dkms "$headers" && run dkms add hv_utils/1.0 &&
		run dkms autoinstall -k "$release" && skipped "no Rust metadata"
}

headers_again()
{
	run apt-get install -y --reinstall "$headers" && skipped "no Rust metadata"
}

# use_kdir KERNEL DIR: makes DIR the tree of KERNEL.
use_kdir()
{
	mkdir -p "$root/usr/lib/modules/$1"
	ln -sfn "$2" "$root/usr/lib/modules/$1/build"
}

another_rustc()
{
	local kdir=$root/usr/src/another
	mkdir -p "$kdir/include" "$kdir/rust"
	touch "$kdir/Makefile" "$kdir/rust/libkernel.rmeta" "$kdir/rust/libmacros.so"
	printf '%s\n' CONFIG_RUST=y 'CONFIG_RUSTC_VERSION_TEXT="rustc 1.2.3"' >"$kdir/.config"
	use_kdir "$release" /usr/src/another
	run "$hook" "$release" && skipped "was built with rustc 1.2.3, but here is rustc"
}

# The metadata may be that of another kernel than the newest.
builds()
{
	local kernel
	kernel=$(cat "$build/kernel/amd64/release")
	use_kdir "$kernel" "$build/kdir/amd64"
	run "$hook" "$kernel" &&
		run modinfo "/lib/modules/$kernel/updates/dkms/hv_utils.ko" && grep -q "^vermagic: *$kernel " "$log"
}

test_that "the headers come after the module" headers_after_module
test_that "the image's hook" image_hook
test_that "the module comes after the headers" module_after_headers
test_that "the headers come again" headers_again
test_that "a kernel of another rustc is skipped" another_rustc
test_that "a kernel with Rust metadata gets the module" builds
[ $failed -ne 0 ] || rm -rf "$root"
exit $failed
