#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# vm.sh CMD [ARGUMENT]...: runs a static program where /dev/kvm works and has Hyper-V's SynIC: here
# if this machine's does, else in the outer guest. VM=here or VM=nested decides instead of the probe.
# T and SOAK are passed on.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../rust/kdir/lib.sh"
what=vm
[ $# -gt 0 ] || die "no command given" "usage: $0 PROGRAM [ARGUMENT]..."

probe=$build/guest/kvm-probe
if [ ! -e "$probe" ] || [ "$top/tests/guest/kvm-probe.c" -nt "$probe" ]; then
	mkdir -p "$build/guest"
	"$top/rust/kdir/enter" gcc-14 -O2 -Wall -static -o "$probe" "$top/tests/guest/kvm-probe.c"
fi

place=${VM:-}
if [ -z "$place" ]; then
	if why=$("$top/rust/kdir/enter" "$probe" 2>&1); then
		place=here
	else
		place=nested
		echo "vm: this machine's KVM is not usable (${why##*$'\n'}): running in QEMU's emulation"
	fi
fi

case $place in
here)
	echo "vm: running on this machine's KVM"
	exec flock "$build/vm.lock" "$top/rust/kdir/enter" timeout -k 5 "${OUTER_TIMEOUT:-600}" "$@"
	;;
nested)
	line=$(printf '%q ' "$@")
	for name in T SOAK; do
		if [ -n "${!name:-}" ]; then
			line="$name=$(printf '%q' "${!name}") $line"
		fi
	done
	exec "$top/tests/guest/outer-run.sh" "$line"
	;;
*)
	die "VM=$place is neither here nor nested"
	;;
esac
