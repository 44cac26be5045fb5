#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# module-cpio.sh OUT NAME=FILE...: makes an initramfs to append to that of an inner guest. It has FILE as /modules/NAME, or
# as NAME if NAME begins with a slash. Executables stay executable. Modules are stripped of debug information, as in a
# distribution: a guest loads them faster. Modules in bare/ are also stripped of their signature and type information (BTF),
# which not every build adds. So modules from different builds can be compared.
# For example: module-cpio.sh build/guest/rust-amd64.cpio rust/hv_utils.ko=build/modules/amd64/hv_utils.ko
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../../rust/kdir/lib.sh"
what=module-cpio
[ $# -ge 2 ] || die "too few arguments" "usage: $0 OUT NAME=FILE..."
if [ "${HV_ENTERED:-}" != "$suite" ]; then
	exec "$top/rust/kdir/enter" env HV_ENTERED="$suite" "$0" "$@"
fi
out=$1
shift
mkdir -p "$(dirname "$out")"
tree=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"
for pair in "$@"; do
	name=${pair%%=*}
	file=${pair#*=}
	[ -f "$file" ] || die "there is no $file"
	case $name in
	/*) dest=$tree$name ;;
	*) dest=$tree/modules/$name ;;
	esac
	mkdir -p "$(dirname "$dest")"
	case $file in
	*.xz) xz -dc "$file" >"$dest" ;;
	*) cp "$file" "$dest" ;;
	esac
	case $name in
	# strip also removes a signature, which follows the end of the ELF file.
	bare/*) strip --strip-debug -R .BTF -R .BTF.base "$dest" ;;
	*.ko) strip --strip-debug "$dest" ;;
	esac
done
# Concatenated archives must begin at a multiple of 4 bytes. The size of a cpio archive is a multiple of 512.
(cd "$tree" && find . -mindepth 1 | LC_ALL=C sort | cpio -o -H newc --quiet -R 0:0) >"$out.new"
mv "$out.new" "$out"
