# SPDX-License-Identifier: GPL-2.0
# Shared by the scripts of rust/kdir and tests: places, progress lines, logged commands.
# shellcheck shell=bash disable=SC2034

# The directory of the project: everything made goes below its build/.
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$top/build

# The kernel series this module is written for, further ones that it builds for, and the Debian release that
# carries them.
series=7.3
others=7.2
suite=trixie

# step TEXT: a progress line "[i/n] TEXT (t s)"; the caller sets $steps, and $what as a name.
step_nr=0
step()
{
	step_nr=$((step_nr + 1))
	printf '%s: [%d/%d] %s (at %d s)\n' "${what:-build}" "$step_nr" "${steps:-1}" "$1" "$SECONDS"
}

# die TEXT [HINT]: says what went wrong, and the way out.
die()
{
	printf '%s: error: %s\n' "${what:-build}" "$1" >&2
	if [ $# -gt 1 ]; then
		printf '%s: %s\n' "${what:-build}" "$2" >&2
	fi
	exit 1
}

# logged NAME CMD...: runs CMD with its output in build/log/NAME.log; shows the end of it on failure.
logged()
{
	local log=$build/log/$1.log
	shift
	mkdir -p "$build/log"
	if "$@" >"$log" 2>&1 </dev/null; then
		return
	fi
	printf '%s: failed: %s\n' "${what:-build}" "$*" >&2
	printf '%s: the last lines of %s:\n' "${what:-build}" "$log" >&2
	tail -n 15 "$log" | sed 's/^/    /' >&2
	die "that step failed; the whole output is in $log" \
	    "correct the cause shown above and run the same command again: finished steps are kept"
}

# alone NAME: waits until no other call holds the lock NAME; held until this shell ends.
alone()
{
	mkdir -p "$build"
	exec 9>"$build/$1.lock"
	if ! flock -n 9; then
		printf '%s: waiting for another run to finish\n' "${what:-build}"
		flock 9
	fi
}

codename()
{
	# shellcheck source=/dev/null
	(. /etc/os-release && echo "${VERSION_CODENAME:-none}")
}

# The packages of the list, one a line.
packages()
{
	sed 's/#.*//; /^[[:space:]]*$/d' "$top/rust/kdir/packages"
}

# missing: those packages of the list that this machine does not have.
missing()
{
	local name
	packages | while read -r name; do
		dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || echo "$name"
	done
}

# archives [LABEL]: where this machine's apt gets packages from; apt 3 tells only after an update.
# shellcheck disable=SC2016 # apt expands $(SITE)
archives()
{
	apt-get indextargets --format '$(SITE)' 'Identifier: Packages' "$@" 2>/dev/null
}

# The mirror this machine's apt already uses for Debian; in build/root, the one it was made from.
mirror()
{
	local url
	if [ "${HV_ENTERED:-}" = 1 ] && [ -s "$build/root.list" ]; then
		awk 'NR == 1 { print $3 }' "$build/root.list"
		return
	fi
	[ -n "$(archives)" ] || logged apt-update apt-get update
	url=$(archives 'Label: Debian' | head -n 1)
	[ -n "$url" ] || url=$(archives | grep -m 1 '/debian/*$') ||
		die "apt knows no archive of Debian's" "name one in /etc/apt/sources.list"
	echo "$url"
}

# sources: apt's lines for the suite and its backports.
sources()
{
	local from
	from=$(mirror)
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $suite main"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $suite-backports main"
}
