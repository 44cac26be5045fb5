#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# choose.sh: tests the choice of a kernel, with archives that this script makes: one like Debian's in November 2026, with
# parts of it hidden, and one that has expired. Prints "ok - NAME" or "not ok - NAME" for each test.
set -eu -o pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../rust/kdir/lib.sh"
if [ "${HV_ENTERED:-}" != "$suite" ]; then
	exec "$top/rust/kdir/enter" env HV_ENTERED="$suite" "$0" "$@"
fi
archives=$build/check/archives
rm -rf "$archives"
mkdir -p "$archives"

# release SUITE FLAVOURS SERIES VERSION ABI: adds the packages of a kernel to $list.
release()
{
	local package
	# shellcheck disable=SC2086 # several words
	for package in "linux-source-$3" $(printf "linux-headers-$5-%s\n" $2) linux-headers-amd64; do
		printf '%s\n' "Package: $package" "Version: $4" "Architecture: amd64" "Filename: pool/$package.deb" \
			"Size: 1" "SHA256: $(echo "$package" | sha256sum | cut -c 1-64)" "Description: a kernel" ""
	done >>"$list"
}

# suite_of NAME SUITE VALID-UNTIL: makes the suite with the packages in $list.
suite_of()
{
	local dir=$archives/$1/dists/$2 file=main/binary-amd64/Packages
	mkdir -p "$dir/main/binary-amd64"
	mv "$list" "$dir/$file"
	{
		printf '%s\n' "Origin: Debian" "Suite: $2" "Codename: $2" "Architectures: amd64" "Components: main" \
			"Date: $(date -R -u -d "$3 - 7 days")" "Valid-Until: $(date -R -u -d "$3")" "SHA256:"
		echo " $(sha256sum <"$dir/$file" | cut -c 1-64) $(stat -c %s "$dir/$file") $file"
	} >"$dir/Release"
}

list=$archives/list
all="amd64 cloud-amd64 rt-amd64"
for name in new old; do
	until="now + 6 days"
	release trixie-backports "$all" 7.2 "7.2.9-1~bpo13+1" 7.2.9+deb13
	release trixie-backports "$all" 7.2 "7.2.12-1~bpo13+1" 7.2.12+deb13
	release trixie-backports "$all" 7.3 "7.3.4-1~bpo13+1" 7.3.4+deb13
	suite_of $name trixie-backports "$until"
	[ $name = new ] || until="now - 1 day"
	release forky "$all" 7.2 7.2.12-1 7.2.12+deb14
	release forky amd64 7.4 7.4.1-1 7.4.1+deb14
	suite_of $name forky "$until"
	release sid "$all" 7.2 7.2.13-1 7.2.13+deb14
	suite_of $name sid "$until"
done

# says NAME EXPECTED [VARIABLE=VALUE...] CMD...: tests that CMD prints EXPECTED, standard error included. If CMD fails, the
# last line is "status STATUS".
says()
{
	local name=$1 expected=$2 said
	shift 2
	said=$(env HIDE='' SERIES='' SUITE='' CHECK_VALID_UNTIL='' ARCHIVE="file://$archives/new" "$@" 2>&1 </dev/null) || said="$said
status $?"
	# Remove output that depends on the state of build/.
	said=$(sed '/: waiting for another run/d; / any more, if there ever was one$/d; s/ (at [0-9]* s)$//' <<<"$said")
	if [ "$said" = "$expected" ]; then
		echo "ok - choose: $name"
	else
		diff <(echo "$expected") <(echo "$said") | sed 's/^/    /' || true
		echo "not ok - choose: $name"
	fi
}
choose=$top/rust/kdir/choose.sh

says "the newest of the best series" "\
kernel: Linux 7.3 of trixie-backports, 7.3.4-1~bpo13+1
7.3.4-1~bpo13+1 7.3.4+deb13 trixie-backports" "$choose"
says "a flavour" "\
kernel: Linux 7.3 of trixie-backports, 7.3.4-1~bpo13+1
7.3.4-1~bpo13+1 7.3.4+deb13 trixie-backports" "$choose" rt-amd64
says "another series" "\
kernel: Linux 7.2 of trixie-backports, 7.2.12-1~bpo13+1
7.2.12-1~bpo13+1 7.2.12+deb13 trixie-backports" SERIES=7.2 "$choose"
says "another suite" "\
kernel: Linux 7.2 of sid, 7.2.13-1 (no 7.3 in sid)
7.2.13-1 7.2.13+deb14 sid" SUITE=sid "$choose"
says "the next series" "\
kernel: Linux 7.2 of trixie-backports, 7.2.12-1~bpo13+1 (no 7.3 in trixie-backports, forky, sid)
7.2.12-1~bpo13+1 7.2.12+deb13 trixie-backports" HIDE=7.3 "$choose"
says "an older point release where the newest has no headers" "\
kernel: Linux 7.2 of trixie-backports, 7.2.9-1~bpo13+1
7.2.9-1~bpo13+1 7.2.9+deb13 trixie-backports" SERIES=7.2 HIDE='backports linux-headers-7.2.12' "$choose"
says "the next suite" "\
kernel: Linux 7.2 of forky, 7.2.12-1 (no 7.3 in trixie-backports, forky, sid)
7.2.12-1 7.2.12+deb14 forky" HIDE=trixie-backports "$choose"
says "the last suite" "\
kernel: Linux 7.2 of sid, 7.2.13-1 (no 7.3 in trixie-backports, forky, sid)
7.2.13-1 7.2.13+deb14 sid" HIDE='trixie-backports|forky' "$choose"
says "a series that is newer" "\
kernel: Linux 7.4 of forky, 7.4.1-1; this module is written for 7.3, 7.2: whether it fits is to be seen
7.4.1-1 7.4.1+deb14 forky" SERIES=7.4 "$choose"
says "nothing that fits" "\
kernel: error: the archive has no kernel with the flavour amd64 of Linux 7.3 or 7.2
    this module is for Linux 7.3, 7.2; the archive has
    trixie-backports: none
    forky: 7.4
    sid: none
    flavours in forky: amd64
status 3" HIDE='7\.[23]' "$choose"
says "no such series" "\
kernel: error: the archive has no kernel with the flavour amd64 of Linux 7.5
    this module is for Linux 7.3, 7.2; the archive has
    trixie-backports: 7.2 7.3
    forky: 7.2 7.4
    sid: 7.2
    flavours in trixie-backports: amd64 cloud-amd64 rt-amd64
    flavours in forky: amd64 cloud-amd64 rt-amd64
    flavours in sid: amd64 cloud-amd64 rt-amd64
status 3" SERIES=7.5 "$choose"
says "no such flavour" "\
kernel: error: the archive has no kernel with the flavour odd-amd64 of Linux 7.2 in sid
    this module is for Linux 7.3, 7.2; the archive has
    sid: 7.2
    flavours in sid: amd64 cloud-amd64 rt-amd64
status 3" SERIES=7.2 SUITE=sid "$choose" odd-amd64

old=file://$archives/old
expired="its Release file has expired (CHECK_VALID_UNTIL=no takes it)"
says "suites that have expired" "\
kernel: Linux 7.2 of trixie-backports, 7.2.12-1~bpo13+1 (no 7.3 in trixie-backports; forky: $expired; sid: $expired)
7.2.12-1~bpo13+1 7.2.12+deb13 trixie-backports" ARCHIVE="$old" HIDE=7.3 "$choose"
says "the suite that was asked for has expired" "\
kernel: error: the archive has no kernel with the flavour amd64 of Linux 7.3 or 7.2 in sid
    this module is for Linux 7.3, 7.2; the archive has
    sid: $expired
status 3" ARCHIVE="$old" SUITE=sid "$choose"
says "an expired suite all the same" "\
kernel: Linux 7.2 of sid, 7.2.13-1 (no 7.3 in sid)
7.2.13-1 7.2.13+deb14 sid" ARCHIVE="$old" SUITE=sid CHECK_VALID_UNTIL=no "$choose"

# If the build for an unsupported series fails, a message says that the series is not supported.
mkdir -p "$archives/kdir/include/config"
echo 7.4.1+deb14-amd64 >"$archives/kdir/include/config/kernel.release"
says "a newer series does not fit" "\
kernel: this module is written for Linux 7.3, 7.2. What does not fit Linux 7.4 is shown above; Documentation/building.rst, \
\"The series of the kernel\", says how to add a series." "$choose" --unfit "$archives/kdir"
echo 7.3.9+deb13-amd64 >"$archives/kdir/include/config/kernel.release"
says "a supported series has no excuse" "" "$choose" --unfit "$archives/kdir"

# A kernel that no archive has.
gone="the archive has no kernel with the flavour odd-amd64 of Linux"
says "a KDIR of a kernel that is gone" "\
kdir 7.2-odd-amd64: [1/6] looking for the newest kernel
kernel: error: $gone 7.2
    this module is for Linux 7.3, 7.2; the archive has
    trixie-backports: none
    forky: none
    sid: none
status 3" HIDE=. "$top/rust/kdir/kdir.sh" 7.2-odd-amd64
says "kernels that are gone" "\
kernels: odd-amd64
ok - kernels: odd-amd64 # SKIP gone: $gone 7.3 in trixie-backports
kernels: 7.2-odd-amd64
ok - kernels: 7.2-odd-amd64 # SKIP gone: $gone 7.2 in trixie-backports
not ok - kernels: one of Linux 7.3 passes
not ok - kernels: one of Linux 7.2 passes
# folder           kernel                       rustc    symbols    module   result
# odd-amd64        -                            -        -          -        gone
# 7.2-odd-amd64    -                            -        -          -        gone
status 1" HIDE=. FLAVOURS=odd-amd64 "$top/tests/kernels.sh" backports
says "kernels of a suite that has expired" "\
kernels: sid-odd-amd64
ok - kernels: sid-odd-amd64 # SKIP sid: $expired
# folder           kernel                       rustc    symbols    module   result
# sid-odd-amd64    -                            -        -          -        the archive cannot be read" \
	ARCHIVE="$old" FLAVOURS=odd-amd64 "$top/tests/kernels.sh" sid
says "no further kernel is built" "\
ok - kernels: others than amd64 and cloud-amd64 # SKIP none is built: make kernels builds them" \
	FLAVOURS=odd-amd64 "$top/tests/kernels.sh" --built

# shellcheck disable=SC2016 # the inner shell expands them
packed='make -C "$0" -pn help | sed -n "s/^packed := //p"'
says "make deb packages both flavours" "amd64 cloud-amd64" sh -c "$packed" "$top"
says "make deb SUITE=sid packages sid's kernel" "sid-amd64" SUITE=sid sh -c "$packed" "$top"
