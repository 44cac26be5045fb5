#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# root.sh [SUITE [PACKAGE...]]: makes build/root, a Debian 13 with the toolchain of Debian's kernels, or build/root-SUITE.
# Installs PACKAGEs in addition to those of the lists. If this machine itself has that suite, installs the packages on this
# machine, and makes no root.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
of=${1:-$suite}
shift $(($# > 0))
what=root
steps=2
# Use the sources of the system, not those of archive().
unset APT_CONFIG
root=$(root_of "$of")
name=${root##*/}

wanted()
{
	packages "$of"
	[ $# -eq 0 ] || printf '%s\n' "$@"
}

# missing DIR PACKAGE...: prints the packages that the system in DIR lacks.
missing()
{
	local dir=$1 have
	shift
	have=$(dpkg-query --admindir "$dir/var/lib/dpkg" -W -f '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p')
	wanted "$@" | grep -vxF "$have" || true
}

# install ENTER... -- PACKAGE...: installs packages in the system that the command ENTER enters.
install()
{
	local enter=() options=()
	while [ "$1" != -- ]; do
		enter+=("$1")
		shift
	done
	shift
	[ -z "$(valid)" ] || options=(-o Acquire::Check-Valid-Until=false)
	[ "$(id -u)" = 0 ] || die "these packages are missing: $*" "run as root, or: apt-get install $*"
	logged apt-update "${enter[@]}" apt-get "${options[@]}" update
	logged apt-install "${enter[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get "${options[@]}" install -y --no-install-recommends "$@"
}

if [ "$(codename)" = "$of" ]; then
	dir=/ where="this machine" enter=()
else
	dir=$root where=build/$name enter=("$top/rust/kdir/enter" --suite "$of")
fi

if [ -e "$dir" ]; then
	mapfile -t lacking < <(missing "$dir" "$@")
	if [ ${#lacking[@]} -gt 0 ]; then
		alone "$name"
		steps=1
		step "installing what $where lacks: ${lacking[*]}"
		[ ${#enter[@]} -eq 0 ] || cp -L /etc/resolv.conf "$root/etc/resolv.conf"
		install "${enter[@]}" -- "${lacking[@]}"
	fi
	exit 0
fi

alone "$name"
if [ -e "$root" ]; then
	exit 0
fi
[ "$(id -u)" = 0 ] || die "making a $of root needs root's rights" "run it with sudo"
command -v mmdebstrap >/dev/null || install -- mmdebstrap

step "this machine is not Debian $of: installing $(wanted "$@" | wc -l) packages into build/$name from $(mirror) (about 60 s)"
# A finished root is renamed. So an interrupted run does not leave a folder that looks complete.
rm -rf "$root.new"
mkdir -p "$root.new"
sources "$of" >"$root.list"
options=()
[ -z "$(valid)" ] || options=(--aptopt="$(valid)")
# force-unsafe-io: do not wait for the disk after each file, because an interrupted root is removed.
logged "$name" mmdebstrap --mode=root --variant=apt --architectures=amd64 \
	--include="$(wanted "$@" | paste -s -d ,)" \
	--dpkgopt='force-unsafe-io' \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' "${options[@]}" \
	"$of" "$root.new" "$root.list"

step "renaming it to build/$name"
mv "$root.new" "$root"
echo "root: ready: $(chroot "$root" rustc --version)"
