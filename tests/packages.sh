#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# packages.sh [WORD]: called by make check-packages. Tests the packages of make deb, on a separate Debian 13 with Debian's
# kernels. Prints "ok - NAME" or "not ok - NAME" for each test. Each test starts in the state that the previous test has
# left. With WORD, stops after the first test with WORD in its name.
#   build/packages/base    Debian 13 with the tools and the downloaded packages; kept
#   build/packages/root    a copy for the tests, which change it; other processes do not see it
# shellcheck disable=SC2317 # test_that calls functions by their names
set -eu -o pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../rust/kdir/lib.sh"
what=check-packages
steps=2
here=$build/packages
base=$here/base
root=$here/root
log=$here/log
failed=0
[ "$(id -u)" = 0 ] || die "making a $suite root needs root's rights" "run it with sudo"
word=${1:-}
# The mounts disappear when this script ends.
if [ "${UNSHARED:-}" != 1 ]; then
	exec unshare --mount --propagation private env UNSHARED=1 "$0" "$@"
fi
alone packages
mkdir -p "$here"

# The kernel of the guest, and the kernel of the upgrade.
old=$(cat "$build/kernel/cloud-amd64/release")
new=$(cat "$build/kernel/amd64/release")
version=$(cat "$build/kdir/amd64/.ready")

# inside ROOT CMD...: runs CMD in ROOT, with the project at the same path, read only. ROOT has no /sys, because modprobe
# would use the list of modules of this machine's kernel.
inside()
{
	# The mounts disappear with the last process in their namespace.
	# shellcheck disable=SC2016
	unshare --mount --propagation private sh -eu -c '
		for dir in /dev /proc; do
			mount --rbind "$dir" "$1$dir"
		done
		mkdir -p "$1$2"
		mount --bind -o ro "$2" "$1$2"
		root=$1
		shift 2
		exec env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
			chroot "$root" "$@"
	' sh "$1" "$top" "${@:2}" </dev/null 9>&-
}

# stub NAME FILE [FIELD]...: makes a package with only the program FILE, and further control fields.
stub()
{
	local tree=$here/stub
	rm -rf "$tree"
	mkdir -p "$tree/DEBIAN" "$tree$(dirname "$2")"
	printf '#!/bin/sh\n' >"$tree$2"
	chmod 755 "$tree$2"
	printf '%s\n' "Package: $1" "Version: 1" "Architecture: all" "Maintainer: nobody <nobody@example.org>" \
		"Description: a stub for tests" "${@:3}" >"$tree/DEBIAN/control"
	dpkg-deb --root-owner-group -Znone -b "$tree" "$here/$1.deb" >/dev/null
	rm -rf "$tree"
}

step "build/packages/base: Debian 13 with rustc and $old (the first run makes it, in two minutes)"
if [ "$(cat "$base/.made" 2>/dev/null)" != "$old $new $version" ]; then
	rm -rf "$base" "$base.new"
	mkdir -p "$base.new"
	sources >"$here/list"
	# Replaces 100 MB of tools for an initramfs.
	stub no-initramfs /usr/sbin/update-initramfs 'Provides: linux-initramfs-tool'
	logged packages-base mmdebstrap --mode=root --variant=apt --architectures=amd64 \
		--include=rustc,bindgen,dkms,openssl,systemd \
		--dpkgopt='force-unsafe-io' --dpkgopt='path-exclude=/usr/share/man/*' \
		--aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
		"$suite" "$base.new" "$here/list"
	cp -L /etc/resolv.conf "$base.new/etc/resolv.conf"
	cp "$here/no-initramfs.deb" "$base.new/root/"
	printf '%s\n' 'Package: linux-*' "Pin: release n=$suite-backports" 'Pin-Priority: 500' \
		>"$base.new/etc/apt/preferences.d/linux"
	logged packages-update inside "$base.new" apt-get update
	logged packages-kernel inside "$base.new" apt-get install -y /root/no-initramfs.deb "linux-image-$old"
	logged packages-download inside "$base.new" apt-get install -y --download-only \
		"linux-image-$new" "linux-headers-$new" "linux-headers-$old" "hyperv-daemons/$suite-backports"
	logged packages-download inside "$base.new" apt-get install -y --download-only \
		"linux-source-$series=$version" rust-src bc bison flex libelf-dev libssl-dev openssl pahole python3-minimal
	# Exclude Rust metadata, in case Debian's headers include it one day.
	printf 'path-exclude=%s\n' '/usr/src/linux-headers-[0-9]*.rmeta' '/usr/lib/modules/*.rmeta' \
		>"$base.new/etc/dpkg/dpkg.cfg.d/no-rust-metadata"
	echo "$old $new $version" >"$base.new/.made"
	mv "$base.new" "$base"
fi

step "testing the packages of build/deb"
clear_root()
{
	umount "$root" 2>/dev/null || true
	rm -rf "$root" "$here/upper" "$here/work"
}

clear_root
mkdir -p "$root" "$here/upper" "$here/work"
# An overlay avoids a copy of 2 GB.
mount -t overlay -o "lowerdir=$base,upperdir=$here/upper,workdir=$here/work" none "$root" 2>/dev/null ||
	cp -a "$base/." "$root/"
stub fcopy-of-debian-12 /usr/sbin/hv_fcopy_daemon
mkdir -p "$root/debs"
cp "$build"/deb/*.deb "$here/fcopy-of-debian-12.deb" "$root/debs/"

# deb NAME: prints the file of the package, as seen in the root.
deb()
{
	(cd "$root" && echo "debs/$1"_*.deb) | sed 's|^|/|'
}

# run CMD...: runs CMD in the root, with its output in the log.
run()
{
	local status=0
	echo "# $*" >>"$log"
	inside "$root" "$@" >>"$log" 2>&1 || status=$?
	echo "# status $status" >>"$log"
	return "$status"
}

# says PATTERN: checks that the log has a line that matches.
says()
{
	grep -q -e "$1" "$log" || { echo "# the log has no \"$1\"" >>"$log"; return 1; }
}

# configured: checks that no package is half installed.
configured()
{
	inside "$root" dpkg --audit >"$log.audit" || { echo "# dpkg --audit failed" >>"$log"; return 1; }
	cat "$log.audit" >>"$log"
	[ ! -s "$log.audit" ]
}

# apt ARGUMENT...: runs apt-get, which must exit with status 0 and leave no package half installed.
apt()
{
	run apt-get -y -o Dpkg::Use-Pty=0 "$@" && configured
}

# picks RELEASE FILE [OPTION]: checks that modprobe would load FILE for the kernel RELEASE, with these options.
picks()
{
	local is
	is=$(inside "$root" modprobe -n -v -S "$1" hv_utils 2>&1 | tail -n 1 | sed 's/ *$//')
	echo "# modprobe -n -v -S $1 hv_utils: $is" >>"$log"
	[ "$is" = "insmod /lib/modules/$1/$2${3:+ $3}" ]
}

kernels_own=kernel/drivers/hv/hv_utils.ko.xz
prebuilt=updates/hv-utils-rust/hv_utils.ko.xz
by_dkms=updates/dkms/hv-utils.ko.xz

# untouched RELEASE: checks that the kernel's files are those of its package.
untouched()
{
	run dpkg --verify "linux-modules-$1" && ! grep -q '^..5\|^missing' "$log"
}

# test_that NAME FUNCTION: runs a test.
test_that()
{
	local start=$SECONDS
	: >"$log"
	if "$2"; then
		echo "ok - packages: $1"
	else
		sed 's/^/    /' "$log" | tail -n 60
		echo "not ok - packages: $1"
		failed=1
	fi
	echo "# $1: $((SECONDS - start)) s" >>"$here/times"
	if [ -n "$word" ] && [[ $1 == *"$word"* ]]; then
		finish
	fi
}

finish()
{
	clear_root
	rm -rf "$here"/{signed,again}
	exit $failed
}

installs()
{
	run dpkg-deb -f "$(deb hv-utils-rust-common)" Recommends && says '^hyperv-daemons (>= 7.2~)$' &&
		picks "$old" "$kernels_own" && apt install "$(deb hv-utils-rust-common)" "$(deb "hv-utils-rust-$old")" &&
		picks "$old" "$prebuilt" && untouched "$old"
}

# depends NAME TEXT...: checks that the package depends on each TEXT.
depends()
{
	local text
	run dpkg-deb -f "$(deb "$1")" Depends || return 1
	for text in "${@:2}"; do
		says "\(^\|, \)$text\(,\|$\)" || return 1
	done
}

goes_with_its_kind()
{
	local is
	is=$(inside "$root" dpkg-deb -f "$(deb hv-utils-rust-common)" Version)
	depends "hv-utils-rust-$old" "hv-utils-rust-common (>= $is)" "linux-modules-$old (>= $version)" &&
		depends hv-utils-rust-dkms "hv-utils-rust-common (>= $is)" "dkms (>= 3.2)" openssl
}

comes_again()
{
	apt install --reinstall "$(deb "hv-utils-rust-$old")" && picks "$old" "$prebuilt" && ! grep 'Secure Boot' "$log"
}

applies_the_rules()
{
	local tool=$root/usr/bin/udevadm
	[ ! -e "$tool" ] || mv "$tool" "$tool.was"
	printf '%s\n' '#!/bin/sh' 'echo "udevadm $*"' >"$tool"
	chmod 755 "$tool"
	mkdir -p "$root/run/systemd/system"
	apt install --reinstall "$(deb hv-utils-rust-common)" &&
		says '^udevadm trigger --action=change --subsystem-match=vmbus --subsystem-match=uio$'
	local status=$?
	rm -r "$tool" "$root/run/systemd/system"
	[ ! -e "$tool.was" ] || mv "$tool.was" "$tool"
	return "$status"
}

warns_of_secure_boot()
{
	local vars=$root/sys/firmware/efi/efivars
	mkdir -p "$vars"
	printf '\6\0\0\0\1' >"$vars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	apt install --reinstall "$(deb "hv-utils-rust-$old")" && says 'Secure Boot will refuse this module'
	local status=$?
	rm -r "$root/sys/firmware"
	return "$status"
}

upgrades_the_kernel()
{
	apt install "linux-image-$new" && picks "$old" "$prebuilt" && picks "$new" "$kernels_own"
}

lacks_metadata()
{
	apt install "$(deb hv-utils-rust-dkms)" "linux-headers-$new" &&
		says "^hv_utils: not built for $new: .*there is no linux-headers-rust-$new" &&
		says "was skipped for module(s) hv_utils" && picks "$new" "$kernels_own"
}

not_of_a_package()
{
	local headers=$root/root/own
	mkdir -p "$headers"
	touch "$headers/Makefile"
	echo CONFIG_RUST=y >"$headers/.config"
	! run /usr/src/hv_utils-1.0/drivers/packages/dkms-build --can 7.3.99-own /root/own &&
		says "^hv_utils: not built for 7.3.99-own: .* the metadata cannot be rebuilt here: no package owns its headers"
}

builds_by_dkms()
{
	apt install "$(deb "linux-headers-rust-$new")" && picks "$new" "$by_dkms" && untouched "$new" &&
		run modinfo -k "$new" hv_utils && says '^vermagic: *'"$new " && says '^signer: *DKMS module signing key'
}

hello()
{
	cp -r "$top/tests/hello" "$root/root/"
	run make -C "/usr/src/linux-headers-rust-$new" M=/root/hello modules && run modinfo /root/hello/hello.ko &&
		says "^vermagic: *$new " && ! grep -i warning "$log"
}

samples()
{
	mkdir -p "$root/root/source" "$root/root/samples"
	tar -c -C "$top" --exclude='*_generated.rs' --exclude='*.ko' Makefile Kbuild rust drivers samples tests/modules |
		tar -x -C "$root/root/source"
	run make -C "/usr/src/linux-headers-rust-$new" M=/root/source MO=/root/samples EXTRAS=1 modules &&
		run modinfo /root/samples/vmbus_echo.ko && says "^vermagic: *$new " && ! grep -i warning "$log"
}

prefers_the_prebuilt()
{
	apt install "linux-headers-$old" "$(deb "linux-headers-rust-$old")" &&
		[ -e "$root/usr/lib/modules/$old/$by_dkms" ] && picks "$old" "$prebuilt"
}

removes_the_prebuilt()
{
	apt remove "hv-utils-rust-$old" && picks "$old" "$by_dkms" && untouched "$old"
}

another_rustc()
{
	local config=$root/usr/src/linux-headers-$new/include/config/auto.conf
	cp "$config" "$config.was"
	run dkms unbuild "hv_utils/1.0" -k "$new"
	sed -i 's/^CONFIG_RUSTC_VERSION_TEXT=.*/CONFIG_RUSTC_VERSION_TEXT="rustc 1.2.3"/' "$config"
	run /etc/kernel/header_postinst.d/dkms "$new" && run /etc/kernel/postinst.d/dkms "$new" &&
		says "^hv_utils: not built for $new: .*was built with rustc 1.2.3, but here is rustc" && picks "$new" "$kernels_own"
	local status=$?
	mv "$config.was" "$config"
	return "$status"
}

fails_to_build()
{
	local file=$root/usr/src/hv_utils-1.0/drivers/hv/hv_utils.rs
	cp "$file" "$file.was"
	echo 'compile_error!("broken on purpose");' >>"$file"
	apt install --reinstall "linux-headers-$new" && says 'bad exit status: 77' && picks "$new" "$kernels_own" &&
		grep -q 'broken on purpose' "$root/var/lib/dkms/hv_utils/1.0/build/make.log" &&
		says 'Consult /var/lib/dkms/hv_utils/1.0/build/make.log'
	local status=$?
	mv "$file.was" "$file"
	return "$status"
}

builds_again()
{
	local cache=$root/var/cache/hv-utils-rust/kdir
	mkdir -p "$cache/6.9.9-gone" "$cache/6.9.9-gone.new" "$cache/$old"
	apt install --reinstall "linux-headers-$new" && picks "$new" "$by_dkms" && [ "$(ls "$cache")" = "$old" ] &&
		rmdir "$cache/$old"
}

# options WORDS: checks the options with which modprobe would load the module.
options()
{
	picks "$new" "$by_dkms" "$1"
}

fcopy_by_debian()
{
	apt install "hyperv-daemons/$suite-backports" && options ""
}

fcopy_by_both()
{
	apt install /debs/fcopy-of-debian-12.deb && options ""
}

fcopy_by_the_old_one()
{
	apt remove hyperv-daemons && options fcopy_chardev=1 &&
		run modprobe -n -v -S "$new" uio_hv_generic && says 'hv-utils.ko.xz fcopy_chardev=1'
}

fcopy_by_neither()
{
	apt remove fcopy-of-debian-12 && options "" && [ ! -L "$root/etc/modprobe.d/hv-utils-rust-fcopy.conf" ]
}

fcopy_by_the_administrator()
{
	local conf=$root/etc/modprobe.d/hv-utils-rust-fcopy.conf
	ln -s /dev/null "$conf"
	apt install /debs/fcopy-of-debian-12.deb && options "" && apt remove fcopy-of-debian-12 &&
		[ "$(readlink "$conf")" = /dev/null ] && rm "$conf"
}

health_is_disabled()
{
	run systemctl is-enabled hv-utils-rust-health.service || true
	says '^disabled$' && run systemctl enable hv-utils-rust-health.service
}

ssh_is_disabled()
{
	run systemctl is-enabled hv-utils-rust-ssh.socket || true
	says '^disabled$' && run systemctl enable hv-utils-rust-ssh.socket
}

units_are_right()
{
	apt install "hyperv-daemons/$suite-backports" &&
		run systemd-analyze verify --man=no hv-utils-rust-health.service hv-kvp-daemon.service hv-vss-daemon.service \
			hv-fcopy-uio-daemon.service hv-utils-rust-ssh.socket && ! grep -qi 'hv-utils-rust.*\(unknown\|ignoring\)' "$log" &&
		[ -e "$root/usr/lib/systemd/system/hv-fcopy-daemon.service.d/50-hv-utils-rust.conf" ]
}

rebuilds_metadata()
{
	apt purge "linux-headers-rust-$new" "hv-utils-rust-$old" &&
		apt install rust-src bc bison flex libelf-dev libssl-dev openssl pahole python3-minimal \
			"linux-source-$series=$version" &&
		run dkms unbuild hv_utils/1.0 -k "$new" && picks "$new" "$kernels_own" &&
		apt install --reinstall "linux-headers-$new" && picks "$new" "$by_dkms"
}

# rebuild ARGUMENT...: runs rebuild-metadata in the root.
rebuild()
{
	run /usr/src/hv_utils-1.0/drivers/packages/rebuild-metadata "$@"
}

rebuilds_without_pahole()
{
	mv "$root/usr/bin/pahole" "$root/root/"
	! rebuild --can "$new" "/usr/src/linux-headers-$new" && says "there is no pahole: apt install pahole"
	local status=$?
	mv "$root/root/pahole" "$root/usr/bin/"
	return "$status"
}

rebuilds_another_configuration()
{
	local headers=/root/other-headers
	mkdir "$root$headers"
	cp -a "$root/usr/src/linux-headers-$new/." "$root$headers/"
	# olddefconfig enables the option again, because other options select it.
	sed -i 's/^CONFIG_ZLIB_INFLATE=.*/# CONFIG_ZLIB_INFLATE is not set/' "$root$headers/.config"
	! rebuild "$new" "$headers" /root/other && says 'the configuration is not quite the same' &&
		says '^> CONFIG_ZLIB_INFLATE=' && [ ! -e "$root/root/other" ]
}

removes_the_kernel()
{
	apt purge "linux-image-$old" "linux-modules-$old" "linux-headers-$old" "linux-base-$old" &&
		[ ! -e "$root/usr/lib/modules/$old" ]
}

removes()
{
	apt remove hv-utils-rust-dkms && picks "$new" "$kernels_own" && untouched "$new"
}

purges()
{
	local left ours
	# shellcheck disable=SC2016 # dpkg-query expands it
	mapfile -t ours < <(inside "$root" dpkg-query -W -f '${Package}\n' 'hv-utils-rust-*' 'linux-headers-rust-*')
	local wants=$root/etc/systemd/system/sys-subsystem-vmbus-devices-heartbeat.device.wants
	apt remove hv-utils-rust-common && [ -L "$wants/hv-utils-rust-health.service" ] || return 1
	apt purge "${ours[@]}" && [ ! -e "$wants" ] && picks "$new" "$kernels_own" && untouched "$new" || return 1
	left=$(cd "$root" && find etc usr var \( -name '*hv-utils*' -o -name '*hv_utils*' -o -name 'linux-headers-rust*' \) \
		! -path "usr/lib/modules/$new/kernel/*" ! -path "usr/src/linux-source*" ! -path 'var/cache/apt/*')
	echo "# left: $left" >>"$log"
	[ -z "$left" ]
}

signs()
{
	local out=$here/signed
	rm -rf "$out" "$out.key" "$out.crt"
	openssl req -new -x509 -nodes -days 10 -subj /CN=me -newkey rsa:2048 -keyout "$out.key" -out "$out.crt" >>"$log" 2>&1 &&
		OUT=$out KEY=$out.key CERT=$out.crt "$top/drivers/packages/deb.sh" --module cloud-amd64 >>"$log" 2>&1 &&
		dpkg-deb -x "$out/hv-utils-rust-$old"_*.deb "$out" &&
		run modinfo -F signer "$out/usr/lib/modules/$old/$prebuilt" && says '^me$' && [ ! -e "$build/deb.keys" ]
}

is_reproducible()
{
	local file
	rm -rf "$here/again"
	# make kdir has downloaded all files, so deb.sh needs no network.
	OUT=$here/again unshare --net "$top/drivers/packages/deb.sh" cloud-amd64 >>"$log" 2>&1 || return 1
	[ "$(find "$here/again" -name '*.deb' | wc -l)" = 4 ] || return 1
	for file in "$here/again"/*.deb; do
		cmp "$file" "$build/deb/${file##*/}" >>"$log" 2>&1 || return 1
	done
}

: >"$here/times"
test_that "the module for one kernel is installed" installs
test_that "a package depends on packages of the same version" goes_with_its_kind
test_that "the package is reinstalled" comes_again
test_that "the udev rules are applied to existing devices" applies_the_rules
test_that "an unsigned module prints a warning about Secure Boot" warns_of_secure_boot
test_that "after a kernel upgrade, the new kernel uses its own module" upgrades_the_kernel
test_that "DKMS skips a kernel without metadata" lacks_metadata
test_that "DKMS skips a kernel that does not come from a package" not_of_a_package
test_that "DKMS builds with linux-headers-rust" builds_by_dkms
test_that "linux-headers-rust builds a module of another project" hello
test_that "linux-headers-rust builds the samples" samples
test_that "modprobe prefers the module for one kernel to that of DKMS" prefers_the_prebuilt
test_that "the module for one kernel is removed" removes_the_prebuilt
test_that "DKMS skips a kernel built with another rustc" another_rustc
test_that "after a failed build, the kernel uses its own module" fails_to_build
test_that "a later build succeeds" builds_again
test_that "fcopy: Debian's daemon alone" fcopy_by_debian
test_that "fcopy: both daemons" fcopy_by_both
test_that "fcopy: the daemon of the character device alone" fcopy_by_the_old_one
test_that "fcopy: neither daemon" fcopy_by_neither
test_that "fcopy: the administrator's link stays" fcopy_by_the_administrator
test_that "the health unit is disabled" health_is_disabled
test_that "the ssh unit is disabled" ssh_is_disabled
test_that "systemd understands the units" units_are_right
test_that "DKMS rebuilds the metadata from linux-source" rebuilds_metadata
test_that "the metadata is not rebuilt without pahole" rebuilds_without_pahole
test_that "the metadata is not rebuilt with another configuration" rebuilds_another_configuration
test_that "the old kernel is removed" removes_the_kernel
test_that "DKMS' package is removed" removes
test_that "nothing is left after purge" purges
test_that "make deb signs" signs
test_that "the packages are reproducible" is_reproducible
finish
