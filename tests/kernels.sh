#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# kernels.sh [--built] [WORD]: called by make kernels. Builds the module for all supported kernels, boots the x86 kernels on
# the emulated host, runs the scenarios that are meant for each kernel, and prints a table. Prints "ok - NAME",
# "not ok - NAME" or "ok - NAME # SKIP REASON" for each test. FLAVOURS= in the environment selects other flavours.
#   --built     only kernels that have a KDIR, without the two that all other tests use
#   WORD        only kernels with WORD in "ID SERIES SUITE"
set -eu -o pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../rust/kdir/lib.sh"
what=kernels
logs=$build/check/kernels
mkdir -p "$logs"
cd "$top"
# The rows of the table, and the series of the kernels that pass.
table=$(mktemp)
passing=$(mktemp)
trap 'rm -f "$table" "$passing"' EXIT
enter=$top/rust/kdir/enter

built=
if [ "${1:-}" = --built ]; then
	built=1
	shift
fi
word=${1:-}

# kernels: prints the kernels, one per line: ID SERIES SUITE. The kernel of sid tests the newest compilers.
kernels()
{
	local number flavour flavours=${FLAVOURS:-amd64 cloud-amd64 rt-amd64 arm64 cloud-arm64}
	for number in $series $others; do
		for flavour in $flavours; do
			echo "$(kernel_id "$flavour" "$number") $number $suite-backports"
		done
	done
	echo "$(kernel_id "${flavours%% *}" '' sid) - sid"
}

# tell STATUS NAME [REASON]: prints the line of a test.
tell()
{
	echo "$1 - kernels: $2${3:+ # SKIP $3}"
}

# make_kdir ID SERIES SUITE: makes the KDIR as make kdir does. The exit status is 3 if the archive has no such kernel.
make_kdir()
{
	local number=$2
	[ "$number" != - ] || number=
	SERIES=$number SUITE=$3 "$top/rust/kdir/kdir.sh" "$1" >"$logs/$1.kdir" 2>&1
}

# build_module ID: builds the module with all warnings of the kernel and clippy. Prints warnings and errors.
build_module()
{
	local kdir=$build/kdir/$1 out=$logs/$1
	rm -rf "$out"
	mkdir -p "$out"
	if ! "$enter" --for "$kdir" make -s -j "$(nproc)" -C "$kdir" M="$top" MO="$out" EXTRAS=1 W=1 CLIPPY=1 modules \
		>"$out.log" 2>&1 || grep -qiE 'warning|error' "$out.log"; then
		cat "$out.log"
	fi
	[ -e "$out/hv_utils.ko" ] || echo "no hv_utils.ko was built"
}

# size ID: prints the size of the module without debug information, as Debian installs its own modules, in KiB.
size()
{
	"$enter" --for "$build/kdir/$1" llvm-strip --strip-debug -o "$logs/$1.ko" "$logs/$1/hv_utils.ko"
	echo "$((($(stat -c %s "$logs/$1.ko") + 1023) / 1024))"
}

# boot ID: runs the scenarios that are meant for each kernel.
boot()
{
	make -s "guest-$1" host >"$logs/$1.guest" 2>&1 </dev/null || {
		tail -n 15 "$logs/$1.guest" | sed 's/^/    /'
		tell "not ok" "$1: its guest is made"
		return
	}
	OUTER_TIMEOUT=${OUTER_TIMEOUT:-1800} "$enter" build/host/scenarios --flavour "$1" --module rust --vcpus 2 --vmbus 6.0 \
		check 2>&1 </dev/null | sed -u 's/\r//' || true
}

# row ID RESULT: adds a line to the table.
row()
{
	local kdir=$build/kdir/$1 symbols=- rustc=- kib=- release=-
	if [ -e "$kdir/.ready" ]; then
		release=$(cat "$build/kernel/$1/release")
		rustc=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="rustc \([^ ]*\).*/\1/p' "$kdir/.config")
		symbols=$(comm -12 "$kdir/.symbols.built" "$kdir/.symbols.packaged" | wc -l)/$(wc -l <"$kdir/.symbols.packaged")
		[ ! -e "$logs/$1/hv_utils.ko" ] || kib="$(size "$1") KiB"
	fi
	printf '%-16s %-28s %-8s %-10s %-8s %s\n' "$1" "$release" "$rustc" "$symbols" "$kib" "$2" >>"$table"
}

# check_kernel ID: tests a kernel that has a KDIR.
check_kernel()
{
	local id=$1 release out passed failed
	release=$(cat "$build/kernel/$id/release")
	out=$(build_module "$id")
	if [ -n "$out" ]; then
		printf '    %s\n' "${out//$'\n'/$'\n    '}"
		tell "not ok" "$release builds without a warning"
		row "$id" "FAILED to build"
		return
	fi
	tell ok "$release builds without a warning"
	case $id in
	*arm64)
		row "$id" "ok, not run here"
		passed=1 failed=0
		;;
	*)
		boot "$id" | tee "$logs/$id.boot"
		passed=$(grep '^ok ' "$logs/$id.boot" | grep -vc '# SKIP' || true)
		failed=$(grep -c '^not ok ' "$logs/$id.boot" || true)
		if [ "$passed" -eq 0 ] && [ "$failed" -eq 0 ]; then
			tell "not ok" "$release runs a scenario"
			failed=1
		fi
		if [ "$failed" -eq 0 ]; then
			row "$id" "ok, $passed scenarios"
		else
			row "$id" "FAILED $failed of $((passed + failed)) scenarios"
		fi
		;;
	esac
	if [ "$failed" -eq 0 ]; then
		sed 's/^\([0-9]*\.[0-9]*\).*/\1/' "$build/kdir/$id/.version" >>"$passing"
	fi
}

chosen=$(kernels | grep -e "$word") || die "no kernel has \"$word\" in its line" "the lines are
$(kernels)"
tried=0
while read -r id number from; do
	if [ -n "$built" ]; then
		case $id in
		amd64 | cloud-amd64) continue ;;
		esac
		[ -e "$build/kdir/$id/.ready" ] || continue
	else
		status=0
		echo "kernels: $id"
		make_kdir "$id" "$number" "$from" </dev/null || status=$?
		if [ "$status" -eq 3 ] && unread=$(grep -E "^    $from: (its|[EW]:)" "$logs/$id.kdir"); then
			tell ok "$id" "${unread#    }"
			row "$id" "the archive cannot be read"
			continue
		elif [ "$status" -eq 3 ]; then
			tell ok "$id" "gone: $(grep -m 1 -o 'the archive has no kernel.*' "$logs/$id.kdir")"
			row "$id" gone
			continue
		elif [ "$status" -ne 0 ]; then
			sed 's/^/    /' "$logs/$id.kdir"
			tell "not ok" "$id has a KDIR"
			row "$id" "FAILED: no KDIR"
			tried=$((tried + 1))
			continue
		fi
	fi
	tried=$((tried + 1))
	check_kernel "$id"
done <<<"$chosen"

if [ -n "$built" ] && [ "$tried" -eq 0 ]; then
	tell ok "others than amd64 and cloud-amd64" "none is built: make kernels builds them"
	exit 0
fi
lost=
if [ -z "$built" ]; then
	# At least one kernel of each selected series must pass.
	while read -r number; do
		if grep -qxF "$number" "$passing"; then
			tell ok "one of Linux $number passes"
		else
			tell "not ok" "one of Linux $number passes"
			lost=1
		fi
	done < <(awk '$2 != "-" { print $2 }' <<<"$chosen" | sort -uVr)
fi
printf '# %-16s %-28s %-8s %-10s %-8s %s\n' folder kernel rustc symbols module result
sed 's/^/# /' "$table"
[ -z "$lost" ] && ! grep -q FAILED "$table"
