#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Makes build/root, a Debian 13 system with the toolchain that Debian's kernels were built with.
# On Debian 13 itself the packages are installed instead, and no root is made.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
what=root
steps=3

install_missing()
{
	[ "$(id -u)" = 0 ] || die "these packages are missing: $*" "run as root, or: apt-get install $*"
	logged apt-update apt-get update
	logged apt-install env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

if [ "$(codename)" = "$suite" ]; then
	mapfile -t lacking < <(missing)
	if [ ${#lacking[@]} -gt 0 ]; then
		alone root
		steps=1
		step "installing what this machine lacks: ${lacking[*]}"
		install_missing "${lacking[@]}"
	fi
	exit 0
fi

stamp=$( (echo "$suite"; packages) | sha256sum | cut -c 1-16)
current()
{
	[ -x "$build/root/usr/bin/rustc" ] && [ "$(cat "$build/root/.stamp" 2>/dev/null)" = "$stamp" ]
}
if current; then
	exit 0
fi
alone root
if current; then
	exit 0
fi
[ "$(id -u)" = 0 ] || die "making a $suite root needs root's rights" "run it with sudo"

step "this machine is not Debian 13 ($suite): its toolchain goes into build/root"
command -v mmdebstrap >/dev/null || install_missing mmdebstrap

step "installing $(packages | wc -l) packages from $(mirror) (about 60 s)"
# A name that only a finished root loses: an interrupted run leaves nothing that looks whole.
rm -rf "$build/root.new" "$build/root.old"
mkdir -p "$build/root.new"
sources >"$build/root.list"
# No need to wait for the disk after each file: an interrupted root is thrown away.
logged root mmdebstrap --mode=root --variant=apt --architectures=amd64 \
	--include="$(packages | paste -s -d ,)" \
	--dpkgopt='force-unsafe-io' \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
	"$suite" "$build/root.new" "$build/root.list"

step "keeping it"
echo "$stamp" >"$build/root.new/.stamp"
if [ -e "$build/root" ]; then
	mv "$build/root" "$build/root.old"
fi
mv "$build/root.new" "$build/root"
rm -rf "$build/root.old"
echo "root: ready: $(chroot "$build/root" rustc --version)"
