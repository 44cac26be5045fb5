#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# images.sh outer | inner-FLAVOUR: makes build/guest/NAME.cpio, the initramfs of a guest, and
# build/kernel/FLAVOUR/vmlinux, the kernel out of its vmlinuz.
# None is compressed: an emulated processor reads them faster than it unpacks them.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../../rust/kdir/lib.sh"
name=${1:?outer or inner-FLAVOUR}
what="image $name"
here=$top/tests/guest
if [ "${HV_ENTERED:-}" != 1 ]; then
	exec "$top/rust/kdir/enter" env HV_ENTERED=1 "$0" "$@"
fi

case $name in
outer) flavour=amd64 ;;
inner-*) flavour=${name#inner-} ;;
*) die "no image is called $name" "there are outer, inner-amd64 and inner-cloud-amd64" ;;
esac
kernel=$build/kernel/$flavour
[ -e "$kernel/.ready" ] || die "there is no build/kernel/$flavour" "make kdir FLAVOUR=$flavour creates it"
release=$(cat "$kernel/release")

mkdir -p "$build/guest"
tree=$(mktemp -d "$build/guest/$name.XXXXXX")
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"

# Busybox with all its applets by their names.
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

# put FILE DEST: a module of the kernel, decompressed.
put()
{
	case $1 in
	*.xz) xz -dc "$1" >"$2" ;;
	*.zst) zstd -dcq "$1" >"$2" ;;
	*) cp "$1" "$2" ;;
	esac
}

# modules NAME...: those modules and what they need, in the order of loading, into /modules.
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

# program FILE: a program with the libraries it is linked to, each where it looks for them.
program()
{
	local library
	cp "$1" "$tree/bin/"
	for library in $(ldd "$1" | grep -o '/[^ ]*'); do
		mkdir -p "$tree${library%/*}"
		cp -L "$library" "$tree$library"
	done
}

# The archive is put in place only when whole.
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

base
case $name in
outer)
	modules virtio_pci 9pnet_virtio 9p kvm_amd
	# Without their signatures, as checking those takes a second of emulation.
	strip --strip-debug "$tree"/modules/*.ko
	install -m 755 "$here/outer/init" "$tree/init"
	;;
inner-*)
	# The in-tree module in C, which every scenario can be run against as well.
	modules hv_utils
	mkdir "$tree/modules/c"
	mv "$tree/modules/hv_utils.ko" "$tree/modules/c/"
	sed -i '/^hv_utils\.ko/d' "$tree/modules/order"
	install -m 755 "$here/inner/init" "$tree/init"
	install -m 755 "$here/inner/agent" "$tree/bin/agent"
	rm "$tree"/bin/{poweroff,reboot,halt}
	install -m 755 "$here/inner/poweroff" "$tree/bin/poweroff"
	ln -s poweroff "$tree/bin/reboot"
	ln -s poweroff "$tree/bin/halt"
	# Real clients of the PTP clock.
	program /usr/sbin/phc_ctl
	gcc-14 -O2 -static -o "$tree/bin/testptp" "$build/linux-source/tools/testing/selftests/ptp/testptp.c"
	;;
esac
pack
echo "$what: ready ($(du -k "$build/guest/$name.cpio" | cut -f 1) KiB)"
