#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# choose.sh [FLAVOUR]: chooses the best kernel in the archive that this module can be built for. Prints
#   VERSION ABI SUITE       of the packages: linux-source-SERIES, linux-headers-ABI-FLAVOUR
# and describes the choice in one line on standard error. The series matters more than the suite. lib.sh has the order of
# both. If there is no such kernel, prints the supported series and the contents of the archive, and exits with status 3.
#   SERIES= and SUITE= in the environment select other series and suites.
#   HIDE=REGEX hides lines "SUITE PACKAGE VERSION" of the archive.
#   ARCHIVE=URL replaces the mirror.
# choose.sh --unfit KDIR: called after a failed build for KDIR. Prints a message if the series of KDIR is not supported.
set -eu
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/lib.sh"
what=kernel
supported="$series $others"

if [ "${1:-}" = --unfit ]; then
	of=$(sed -n 's/^\([0-9]*\.[0-9]*\).*/\1/p' "$2/include/config/kernel.release" 2>/dev/null || true)
	case " $supported " in
	*" ${of:-$series} "*) ;;
	*)
		echo "$what: this module is written for Linux ${supported// /, }. What does not fit Linux $of is shown above;" \
			"Documentation/building.rst, \"The series of the kernel\", says how to add a series." >&2
		;;
	esac
	exit 0
fi

flavour=${1:-amd64}
case $flavour in
*arm64*) architecture=arm64 ;;
*) architecture=amd64 ;;
esac
asked=${SERIES:-$supported}
from=${SUITE:-$suites}
[ "${SUITE:-}" != "$suite" ] || from=$suite-backports

lists=$(mktemp -d)
trap 'rm -rf "$lists"' EXIT

# look SUITE: writes the lines of the suite to $lists/SUITE. If the suite cannot be read, writes the reason to
# $lists/SUITE.not.
look()
{
	local names
	[ ! -e "$lists/$1" ] || return 0
	archive "$1" "$architecture"
	if ! apt-get -o APT::Update::Error-Mode=any update >"$lists/log" 2>&1; then
		if expired <"$lists/log"; then
			echo "its Release file has expired (CHECK_VALID_UNTIL=no takes it)" >"$lists/$1.not"
		else
			grep -m 1 '^[EW]: ' "$lists/log" >"$lists/$1.not" || echo "apt-get update failed" >"$lists/$1.not"
		fi
		: >"$lists/$1"
		return 0
	fi
	mapfile -t names < <(apt-cache pkgnames linux-source-; apt-cache pkgnames linux-headers-)
	: >"$lists/all"
	[ ${#names[@]} -eq 0 ] || apt-cache madison "${names[@]}" |
		awk -F ' *\\| *' -v suite="$1" '{ gsub(/ /, "", $1); print suite, $1, $2 }' >"$lists/all"
	grep -vE -e "${HIDE:-^$}" "$lists/all" >"$lists/$1" || true
}

# versions SUITE PACKAGE: prints the versions of the package, newest first.
versions()
{
	awk -v package="$2" '$2 == package { print $3 }' "$lists/$1" | sort -rV
}

# abi_of SUITE VERSION: prints the ABI in the name of this flavour's headers.
abi_of()
{
	awk -v version="$2" -v flavour="-$flavour" '
	$3 == version && $2 ~ "^linux-headers-[0-9][^-]*" flavour "$" {
		sub(/^linux-headers-/, "", $2)
		print substr($2, 1, length($2) - length(flavour))
		exit
	}' "$lists/$1"
}

# offers SUITE: prints the series in the suite, in one line.
offers()
{
	if [ -e "$lists/$1.not" ]; then
		cat "$lists/$1.not"
	else
		sed -n 's/.* linux-source-\([0-9][0-9.]*\) .*/\1/p' "$lists/$1" | sort -uV | paste -s -d ' ' | sed 's/^$/none/'
	fi
}

# without SERIES: prints the suites that lack the series, and those that could not be read.
without()
{
	local name none='' unread=''
	for name in $from; do
		if [ -e "$lists/$name.not" ]; then
			unread="$unread; $name: $(cat "$lists/$name.not")"
		else
			none="$none, $name"
		fi
	done
	echo "no $1${none:+ in ${none#, }}$unread"
}

passed=
for number in $asked; do
	for name in $from; do
		look "$name"
		for version in $(versions "$name" "linux-source-$number"); do
			abi=$(abi_of "$name" "$version")
			[ -n "$abi" ] || continue
			case " $supported " in
			*" $number "*) note= ;;
			*) note="; this module is written for ${supported// /, }: whether it fits is to be seen" ;;
			esac
			echo "$what: Linux $number of $name, $version${passed:+ ($passed)}$note" >&2
			echo "$version $abi $name"
			exit 0
		done
	done
	passed=${passed:+$passed; }$(without "$number")
done

{
	echo "$what: error: the archive has no kernel with the flavour $flavour of Linux ${asked// / or }${SUITE:+ in $SUITE}"
	echo "    this module is for Linux ${supported// /, }; the archive has"
	for name in $from; do
		look "$name"
		echo "    $name: $(offers "$name")"
	done
	for name in $from; do
		found=$(sed -n 's/.* linux-headers-[0-9][^-]*-\([a-z0-9-]*\) .*/\1/p' "$lists/$name" | grep -vx common |
			sort -u | paste -s -d ' ')
		[ -z "$found" ] || echo "    flavours in $name: $found"
	done
} >&2
exit 3
