#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# images.sh NAME: makes build/guest/NAME.cpio, the initramfs of a guest, and build/kernel/FLAVOUR/vmlinux, the unpacked
# vmlinuz. NAME is one of
#   outer               the outer guest
#   inner-FLAVOUR       the inner guest
#   daemons-FLAVOUR, disks-FLAVOUR, more-FLAVOUR, chrony
#                       further files, to be appended to inner-FLAVOUR
#   systemd-FLAVOUR     Debian with systemd
#   packaged-FLAVOUR    Debian with packages that apt has installed
#   debian-FLAVOUR      the initramfs of Debian's initramfs-tools, without files of this project
# The images are not compressed: an emulated processor reads them faster than it unpacks them.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../../rust/kdir/lib.sh"
name=${1:?outer, inner-FLAVOUR or another image}
what="image $name"
here=$top/tests/guest
if [ "${HV_ENTERED:-}" != "$suite" ]; then
	exec "$top/rust/kdir/enter" env HV_ENTERED="$suite" "$0" "$@"
fi

case $name in
outer | chrony) flavour=amd64 ;;
inner-*) flavour=${name#inner-} ;;
daemons-*) flavour=${name#daemons-} ;;
disks-*) flavour=${name#disks-} ;;
more-*) flavour=${name#more-} ;;
systemd-*) flavour=${name#systemd-} ;;
packaged-*) flavour=${name#packaged-} ;;
debian-*) flavour=${name#debian-} ;;
*) die "no image is called $name" "there are outer, inner-amd64, daemons-amd64, disks-amd64, more-amd64, chrony, systemd-amd64, packaged-amd64, debian-amd64" ;;
esac
kernel=$build/kernel/$flavour
[ -e "$kernel/.ready" ] || die "there is no build/kernel/$flavour" "make kdir FLAVOUR=$flavour creates it"
release=$(cat "$kernel/release")

mkdir -p "$build/guest"
tree=$(mktemp -d "$build/guest/$name.XXXXXX")
trap 'rm -rf "$tree" "$tree.root"' EXIT
chmod 755 "$tree"

# base: adds Busybox, with links for all its applets.
base()
{
	mkdir -p "$tree"/{bin,dev,etc,proc,root,run,sys,tmp,usr,var,modules}
	ln -s bin "$tree/sbin"
	ln -s ../bin "$tree/usr/bin"
	ln -s ../bin "$tree/usr/sbin"
	cp /bin/busybox "$tree/bin/busybox"
	local applet
	for applet in $("$tree/bin/busybox" --list); do
		[ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
	done
}

# put FILE DEST: copies a module of the kernel, decompressed.
put()
{
	case $1 in
	*.xz) xz -dc "$1" >"$2" ;;
	*.zst) zstd -dcq "$1" >"$2" ;;
	*) cp "$1" "$2" ;;
	esac
}

# modules NAME...: adds the modules and their dependencies to /modules. /modules/order has the order of loading.
modules()
{
	local module kind path file rest
	for module in "$@"; do
		modprobe -d "$kernel" -S "$release" --show-depends "$module" || die "$release has no module $module"
	done >"$tree.order"
	while read -r kind path rest; do
		[ "$kind" = insmod ] || continue
		file=$(basename "$path")
		file=${file%.[xz]*}
		[ ! -e "$tree/modules/$file" ] || continue
		put "$path" "$tree/modules/$file"
		echo "$file $rest"
	done <"$tree.order" >"$tree/modules/order"
	rm -f "$tree.order"
}

# program FILE: adds a program, and its libraries at the paths where it looks for them.
program()
{
	local library
	cp "$1" "$tree/bin/"
	for library in $(ldd "$1" | grep -o '/[^ ]*'); do
		mkdir -p "$tree${library%/*}"
		cp -L "$library" "$tree$library"
	done
}

# fetch SUITE PACKAGE...: downloads the newest version of each package in SUITE, and unpacks it to $debs/SUITE-PACKAGE.
fetch()
{
	local from=$1 package
	shift
	mkdir -p "$debs"
	for package in "$@"; do
		[ ! -e "$debs/$from-$package" ] || continue
		(
			archive "$from"
			[ -n "$(apt-cache madison "$package")" ] || logged "apt-$from" apt-get update
			cd "$build/downloads"
			rm -f "$package"_*.deb
			logged "deb-$package" apt-get download "$package/$from"
			dpkg-deb -x "$package"_*.deb "$debs/$from-$package.new"
			mv "$debs/$from-$package.new" "$debs/$from-$package"
		)
	done
}

# agent FILE: builds the program that runs the emulated host's commands, as FILE.
agent()
{
	gcc -O2 -Wall -static -o "$1" "$here/agent.c"
}

# daemons: adds Debian's daemons, and the programs that they and their tests use.
daemons()
{
	local debs=$build/downloads/daemons from=$suite-backports file name
	# The last release with the file copy daemon for the character device.
	fetch bookworm hyperv-daemons
	fetch "$suite" e2fsprogs libext2fs2t64
	fetch "$from" hyperv-daemons
	mkdir -p "$tree"/{bin,etc,modules/daemons,usr/libexec,var/lib/hyperv}
	for file in "$debs/bookworm-hyperv-daemons/usr/sbin/hv_fcopy_daemon" \
		"$debs/$from-hyperv-daemons/usr/sbin/"hv_{kvp,vss,fcopy_uio}_daemon /bin/bash; do
		program "$file"
	done
	cp -r "$debs/$from-hyperv-daemons/usr/libexec/hypervkvpd" "$tree/usr/libexec/"
	cp -L /etc/os-release "$tree/etc/"
	# For a file system that can be frozen, on a disk that the VSS daemon does not skip.
	cp -L "$debs/$suite-libext2fs2t64/usr/lib/x86_64-linux-gnu/"lib{ext2fs,e2p}.so.2 "$tree/lib/x86_64-linux-gnu/"
	program "$debs/$suite-e2fsprogs/usr/sbin/mke2fs"
	ln -s mke2fs "$tree/bin/mkfs.ext4"
	mkdir -p "$tree/selftests/hv_utils"
	for name in chardev fuzz; do
		gcc -O2 -Wall -static -I"$build/linux-source/tools/testing/selftests" \
			-o "$tree/selftests/hv_utils/$name" "$top/tests/selftests/hv_utils/$name.c" -lpthread
	done
	gcc -O2 -Wall -static -o "$tree/bin/register-by-netlink" "$here/register-by-netlink.c"
	# Busybox's programs cannot set a real-time priority.
	program /usr/bin/chrt
	# dummy: a network interface for addresses.
	modules brd ext4 dummy uio_hv_generic
	mv "$tree/modules/"*.ko "$tree/modules/order" "$tree/modules/daemons/"
}

# disks: adds file systems other than ext4, which the VSS daemon also freezes.
disks()
{
	local debs=$build/downloads/daemons package
	local packages=(xfsprogs libinih1 liburcu8t64 btrfs-progs liblzo2-2)
	fetch "$suite" "${packages[@]}"
	mkdir -p "$tree"/{bin,lib/x86_64-linux-gnu,modules/disks}
	for package in "${packages[@]}"; do
		find "$debs/$suite-$package" -name 'lib*.so.*' -exec cp -a {} "$tree/lib/x86_64-linux-gnu/" \;
	done
	program "$debs/$suite-xfsprogs/usr/sbin/mkfs.xfs"
	program "$debs/$suite-btrfs-progs/usr/sbin/mkfs.btrfs"
	modules xfs btrfs
	mv "$tree/modules/"*.ko "$tree/modules/order" "$tree/modules/disks/"
}

# more: adds programs for the scenarios of make check-more.
more()
{
	local bits
	mkdir -p "$tree/bin"
	# A 32-bit compiler looks for the headers of the 64-bit one elsewhere.
	for bits in 32 64; do
		gcc "-m$bits" -Os -Wall -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie \
			-idirafter /usr/include/x86_64-linux-gnu -o "$tree/bin/small-daemon-$bits" "$here/small-daemon.c"
	done
}

# chrony: adds a time service that reads the PTP clock.
chrony()
{
	local debs=$build/downloads/daemons
	fetch "$suite" chrony libedit2
	mkdir -p "$tree"/{bin,etc,lib/x86_64-linux-gnu}
	cp -L "$debs/$suite-libedit2/usr/lib/x86_64-linux-gnu/libedit.so.2" "$tree/lib/x86_64-linux-gnu/"
	program "$debs/$suite-chrony/usr/sbin/chronyd"
	program "$debs/$suite-chrony/usr/bin/chronyc"
	# chronyd looks up its user.
	echo 'root:x:0:0:root:/:/bin/sh' >"$tree/etc/passwd"
}

# bootstrap VARIANT [OPTION]...: makes a Debian with systemd and the daemons in $tree, with this variant of mmdebstrap.
bootstrap()
{
	sources >"$tree.list"
	logged "image-$name" mmdebstrap --mode=root --variant="$1" --architectures=amd64 \
		--include="systemd-sysv,udev,kmod,e2fsprogs,chrony,hyperv-daemons/$suite-backports" \
		--dpkgopt='force-unsafe-io' --dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' "${@:2}" \
		"$suite" "$tree" "$tree.list"
	rm -rf "$tree.list"
	(cd "$tree" && rm -rf var/lib/apt var/cache var/lib/dpkg boot dev/*)
}

# bootable: makes systemd in $tree the first process, adds the agent, and disables slow units.
bootable()
{
	ln -s usr/lib/systemd/systemd "$tree/init"
	agent "$tree/usr/local/bin/agent"
	install -m 644 "$here/systemd/agent.service" "$tree/etc/systemd/system/"
	mkdir -p "$tree/etc/systemd/system/multi-user.target.wants"
	ln -s ../agent.service "$tree/etc/systemd/system/multi-user.target.wants/"
	# init-chrony enables chrony.
	rm -f "$tree"/etc/systemd/system/{multi-user.target.wants/chrony.service,chronyd.service}
	# Disable logins and the updates of a first boot: under emulation, each unit takes seconds.
	ln -s /dev/null "$tree/etc/systemd/system/getty.target"
	touch "$tree/etc/.updated" "$tree/var/.updated"
}

# ssh_client: makes build/guest/ssh-FLAVOUR with Debian's ssh for the host, its libraries, a key that the guest in $tree
# accepts, and the public key of the guest. The guest gets the package's units, and no sshd that waits for a network.
ssh_client()
{
	local dir=$build/guest/ssh-$flavour library
	rm -rf "$dir" "$dir.new"
	mkdir -p "$dir.new/lib" "$tree/root/.ssh"
	cp "$tree/usr/bin/ssh" "$dir.new/"
	mknod -m 666 "$tree/dev/null" c 1 3
	for library in $(chroot "$tree" ldd /usr/bin/ssh | grep -o '/[^ ]*'); do
		cp -L "$tree$library" "$dir.new/lib/"
	done
	chroot "$tree" ssh-keygen -q -t ed25519 -N '' -C 'the host' -f /root/key
	rm "$tree/dev/null"
	mv "$tree/root/key" "$dir.new/"
	mv "$tree/root/key.pub" "$tree/root/.ssh/authorized_keys"
	chmod 700 "$tree/root/.ssh"
	sed 's/^/guest /' "$tree/etc/ssh/ssh_host_ed25519_key.pub" >"$dir.new/known_hosts"
	mv "$dir.new" "$dir"
	install -m 644 "$top/drivers/packages/hv-utils-rust-ssh"{.socket,@.service} "$tree/usr/lib/systemd/system/"
	find "$tree/etc/systemd/system" -name 'ssh*' -type l -delete
}

# systemd: makes an installed Debian, but without a disk. systemd and udev have to find the devices, load the module that
# depmod prefers, and start the daemons.
systemd()
{
	local made=$build/modules/$flavour/hv_utils.ko modules=$tree/usr/lib/modules/$release module path file
	local debs=$build/downloads/daemons
	[ -e "$made" ] || die "there is no $made" "make guests builds it"
	fetch bookworm hyperv-daemons
	bootstrap essential --include=openssh-server
	mkdir -p "$modules/updates"
	cp "$kernel/lib/modules/$release/modules."{order,builtin*} "$modules/"
	# brd and ext4: for a root that can be frozen. hv_sock: for a session without a network.
	for module in hv_utils uio_hv_generic brd ext4 hv_sock; do
		modprobe -d "$kernel" -S "$release" --show-depends "$module"
	done >"$tree.order"
	while read -r _ path _; do
		file=$modules/kernel/${path#*"/$release/kernel/"}
		mkdir -p "$(dirname "$file")"
		cp "$path" "$file"
	done < <(grep '^insmod' "$tree.order")
	rm -f "$tree.order"
	cp "$made" "$modules/updates/"
	depmod -b "$tree" "$release"
	# The module itself is in rust-FLAVOUR.
	ln -sf /modules/rust/hv_utils.ko "$modules/updates/hv_utils.ko"

	bootable
	ssh_client
	install -m 755 "$here/systemd/"init-{chrony,disk,fcopy} "$tree/usr/local/sbin/"
	# The daemon that Debian 13 no longer has.
	install -m 755 "$debs/bookworm-hyperv-daemons/usr/sbin/hv_fcopy_daemon" "$tree/usr/sbin/"
}

# packaged: makes an installed Debian where apt installs the kernel's modules and this module from packages.
packaged()
{
	local package packages=()
	for package in hv-utils-rust-common "hv-utils-rust-$release"; do
		set -- "$build/deb/$package"_*.deb
		[ -e "$1" ] || die "there is no $1" "make deb makes it"
		packages+=("/debs/${1##*/}")
	done
	# shellcheck disable=SC2016 # mmdebstrap's shell expands $1
	bootstrap apt \
		--customize-hook='mkdir "$1/debs"' --customize-hook="cp $build/deb/hv-utils-rust-*.deb \"\$1/debs/\"" \
		--customize-hook="chroot \"\$1\" apt-get install -y linux-modules-$release/$suite-backports \
			linux-base-$release/$suite-backports ${packages[*]} bpftrace" \
		--customize-hook='chroot "$1" systemctl enable hv-utils-rust-health.service' \
		--customize-hook='rm -r "$1/debs"'
	bootable
}

# debian: adds the unpacked initramfs that Debian's initramfs-tools makes.
debian()
{
	local root=$tree.root modules=$tree.root/usr/lib/modules/$release
	sources >"$tree.list"
	logged "image-$name" mmdebstrap --mode=root --variant=essential --architectures=amd64 \
		--include=initramfs-tools,kmod,udev,busybox --dpkgopt='force-unsafe-io' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' --aptopt='Apt::Install-Recommends "false"' \
		--aptopt='Acquire::Languages "none"' "$suite" "$root" "$tree.list"
	rm -rf "$tree.list"
	mkdir -p "$modules" "$root/boot"
	cp -r "$kernel/lib/modules/$release/." "$modules/"
	cp "$kernel/config" "$root/boot/config-$release"
	depmod -b "$root" "$release"
	# Drivers for the disk of the root, and for the services before the root is mounted.
	printf '%s\n' hv_utils nd_e820 nd_pmem >>"$root/etc/initramfs-tools/modules"
	logged "initramfs-$name" chroot "$root" mkinitramfs -o /initramfs "$release"
	logged "unpack-$name" chroot "$root" unmkinitramfs /initramfs /unpacked
	if [ -d "$root/unpacked/main" ]; then
		mv "$root/unpacked/main/"* "$tree/"
	else
		mv "$root/unpacked/"* "$tree/"
	fi
	rm -rf "$root"
	small_root
}

# small_root: makes build/guest/NAME.ext4, a root file system for debian(). It counts its boots and can be shut down.
small_root()
{
	local debs=$build/deb/daemons root=$tree.root applet
	fetch "$suite" e2fsprogs libext2fs2t64
	mkdir -p "$root"/{bin,sbin,dev,proc,sys,run,etc}
	cp /bin/busybox "$root/bin/"
	for applet in sh mount wc sync sleep; do
		ln -s busybox "$root/bin/$applet"
	done
	install -m 755 "$here/small/init" "$root/sbin/init"
	install -m 755 "$here/inner/poweroff" "$root/sbin/poweroff"
	ln -s poweroff "$root/sbin/reboot"
	ln -s ../bin/busybox "$root/sbin/busybox"
	LD_LIBRARY_PATH=$debs/$suite-libext2fs2t64/usr/lib/x86_64-linux-gnu \
		"$debs/$suite-e2fsprogs/usr/sbin/mke2fs" -q -t ext4 -b 4096 -d "$root" "$build/guest/$name.ext4.new" 32M
	mv "$build/guest/$name.ext4.new" "$build/guest/$name.ext4"
}

# pack: makes the archive. Renames it when it is complete.
pack()
{
	(cd "$tree" && find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0) >"$build/guest/$name.cpio.new"
	mv "$build/guest/$name.cpio.new" "$build/guest/$name.cpio"
}

if [ ! -e "$kernel/vmlinux" ]; then
	"$build/linux-source/scripts/extract-vmlinux" "$kernel/vmlinuz" >"$kernel/vmlinux.new" 2>"$build/log/vmlinux.log" ||
		die "cannot unpack $kernel/vmlinuz" "see $build/log/vmlinux.log"
	mv "$kernel/vmlinux.new" "$kernel/vmlinux"
fi

case $name in
daemons-*) daemons ;;
disks-*) disks ;;
more-*) more ;;
chrony) chrony ;;
systemd-*) systemd ;;
packaged-*) packaged ;;
debian-*) debian ;;
*) base ;;
esac
case $name in
outer)
	modules virtio_pci 9pnet_virtio 9p kvm_amd
	# Removes the signatures: checking them takes a second of emulation.
	strip --strip-debug "$tree"/modules/*.ko
	install -m 755 "$here/outer/init" "$tree/init"
	# ssh looks its user up.
	echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
	;;
inner-*)
	# The in-tree module in C, with which scenarios also run.
	modules hv_utils
	mkdir "$tree/modules/c"
	if [ -e "$tree/modules/hv_utils.ko" ]; then
		mv "$tree/modules/hv_utils.ko" "$tree/modules/c/"
		sed -i '/^hv_utils\.ko/d' "$tree/modules/order"
	fi
	install -m 755 "$here/inner/init" "$tree/init"
	# Hyper-V sockets, which only scenarios about them insert.
	mkdir "$tree/modules/sockets"
	mv "$tree/modules/order" "$tree/modules/order.others"
	modules hv_sock
	mv "$tree/modules/"{vsock,hv_sock}.ko "$tree/modules/order" "$tree/modules/sockets/"
	mv "$tree/modules/order.others" "$tree/modules/order"
	agent "$tree/bin/agent"
	rm "$tree"/bin/{poweroff,reboot,halt}
	install -m 755 "$here/inner/poweroff" "$tree/bin/poweroff"
	ln -s poweroff "$tree/bin/reboot"
	ln -s poweroff "$tree/bin/halt"
	# Clients of the PTP clock.
	program /usr/sbin/phc_ctl
	gcc -O2 -static -o "$tree/bin/testptp" "$build/linux-source/tools/testing/selftests/ptp/testptp.c"
	for program in ptp-now ptp-reads vsock; do
		gcc -O2 -Wall -static -o "$tree/bin/$program" "$here/$program.c"
	done
	;;
esac
pack
echo "$what: ready ($(du -k "$build/guest/$name.cpio" | cut -f 1) KiB)"
