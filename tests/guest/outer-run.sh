#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# outer-run.sh CMD...: runs a shell command line in the outer guest, where /dev/kvm works (in software), with the project at
# the same path and in the same current folder. Prints its output immediately. The exit status is that of the command, 124
# after a time-out, or 125 if the guest died.
#   OUTER_TIMEOUT  seconds until the guest is killed (600)
#   OUTER_ARGS     further arguments for QEMU, such as -icount ...
#   OUTER_APPEND   further parameters of the kernel command line
#   OUTER_INPUT    if set, the guest's /dev/ttyS0 reads the standard input of this script
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../../rust/kdir/lib.sh"
what=outer-run
[ $# -gt 0 ] || die "no command given" "usage: $0 'SHELL LINE'"
for file in guest/outer.cpio kernel/amd64/vmlinux; do
	[ -e "$build/$file" ] || die "there is no build/$file" "make guests creates it"
done

# Run at most one guest per processor of this machine: each guest keeps about one processor busy.
slot=1
while exec 8>"$build/vm.$slot.lock" && ! flock -n 8; do
	if [ "$slot" -ge "$(nproc)" ]; then
		echo "outer-run: waiting for another virtual machine to finish" >&2
		flock 8
		break
	fi
	slot=$((slot + 1))
done

job=$build/guest/outer.$$
dir=$PWD
case $dir/ in
"$top"/*) ;;
*) dir=$top ;;
esac
printf 'cd %q\n%s\n' "$dir" "$*" >"$job.cmd"
rm -f "$job.status"
pid=
# shellcheck disable=SC2317 # called by trap
finish()
{
	if [ -n "$pid" ]; then
		kill "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	fi
	rm -f "$job.cmd" "$job.status"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

if [ -n "${OUTER_INPUT:-}" ]; then
	exec 7<&0
else
	exec 7</dev/null
fi

# nohz=off highres=off: an emulated processor sometimes misses an interrupt until the next interrupt arrives. A periodic
# timer soon sends another one. If each tick programs the next one, a missed tick is the last.
# One processor: with two, an interrupt of the other processor sometimes arrives during an exit from the inner guest. Then
# host and guest get each other's registers.
# shellcheck disable=SC2086
"$top/rust/kdir/enter" timeout -k 5 "${OUTER_TIMEOUT:-600}" \
	qemu-system-x86_64 -machine q35 -accel tcg -cpu EPYC,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-topoext,-nrip-save,-xsavec \
	-m 4G -nodefaults -no-user-config -display none -no-reboot \
	-serial stdio \
	-virtfs "local,path=$top,mount_tag=project,security_model=none,multidevs=remap" \
	-kernel "$build/kernel/amd64/vmlinux" -initrd "$build/guest/outer.cpio" \
	-append "console=ttyS0 quiet loglevel=2 panic=-1 mitigations=off nokaslr nohz=off highres=off outer.dir=$top outer.job=$job ${OUTER_APPEND:-}" \
	${OUTER_ARGS:-} <&7 &
pid=$!
status=0
wait "$pid" || status=$?
pid=
if [ -e "$job.status" ]; then
	exit "$(cat "$job.status")"
fi
if [ "$status" = 124 ]; then
	echo "outer-run: ended after ${OUTER_TIMEOUT:-600} s" >&2
	exit 124
fi
echo "outer-run: the outer guest ended without a result (QEMU's status $status)" >&2
exit 125
