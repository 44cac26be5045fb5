# SPDX-License-Identifier: GPL-2.0
# Shared by the scripts of rust/kdir and tests: places, progress lines, logged commands.
# shellcheck shell=bash disable=SC2034

# The directory of the project: everything made goes below its build/.
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$top/build

# The kernel series this module is written for, further ones that it builds for, and the suites of the archive that
# are asked for them: the best first.
series=7.3
others=7.2
suites='trixie-backports forky sid'
# The Debian release that the tools and the tests are of. Kernels of its backports are built with its toolchain, and
# those of another suite with that suite's own: a KDIR names it in its file .suite.
suite=trixie

# parse ID: sets $flavour, and $of_series and $of_suite if the kernel's name begins with these.
parse()
{
	flavour=$1 of_series='' of_suite=''
	case $flavour in
	[0-9]*-*)
		of_series=${flavour%%-*}
		flavour=${flavour#*-}
		;;
	esac
	case $flavour in
	forky-* | sid-* | experimental-*)
		of_suite=${flavour%%-*}
		flavour=${flavour#*-}
		;;
	esac
}

# kernel_id FLAVOUR [SERIES [SUITE]]: how that kernel's folders in build/ are called. The usual series and suite are
# those of the kernel that was chosen when none was named.
kernel_id()
{
	local usual
	usual=$(sed -n 's/^\([0-9]*\.[0-9]*\).*/\1/p' "$build/kernel.version" 2>/dev/null || true)
	[ -z "${2:-}" ] || [ "$2" = "${usual:-$series}" ] || printf '%s-' "$2"
	[ -z "${3:-}" ] || [ "$3" = "$suite-backports" ] || printf '%s-' "$3"
	printf '%s\n' "$1"
}

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
	if expired <"$log"; then
		die "the mirror's list of packages has expired: it was not updated for long" \
			"to use it all the same: CHECK_VALID_UNTIL=no make ..."
	fi
	die "that step failed; the whole output is in $log" \
	    "correct the cause shown above and run the same command again: finished steps are kept"
}

# expired <LOG: whether apt refused a Release file because of its age.
expired()
{
	grep -qE 'Release file for .* is expired|Release file .* expired'
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

# packages SUITE: what is to be installed there, one a line. The tests run on the usual one.
packages()
{
	sed 's/#.*//; /^[[:space:]]*$/d' "$top/rust/kdir/packages"
	[ "$1" != "$suite" ] || sed 's/#.*//; /^[[:space:]]*$/d' "$top/tests/packages"
}

# root_of SUITE: the folder that a system of it is kept in.
root_of()
{
	if [ "$1" = "$suite" ]; then
		echo "$build/root"
	else
		echo "$build/root-$1"
	fi
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
	if [ -n "${HV_ENTERED:-}" ] && [ -s "$build/root.list" ]; then
		awk 'NR == 1 { print $3 }' "$build/root.list"
		return
	fi
	[ -n "$(archives)" ] || logged apt-update apt-get update
	url=$(archives 'Label: Debian' | head -n 1)
	[ -n "$url" ] || url=$(archives | grep -m 1 '/debian/*$') ||
		die "apt knows no archive of Debian's" "name one in /etc/apt/sources.list"
	echo "$url"
}

# sources [SUITE]: apt's lines for it, and for its backports if it is the usual one.
sources()
{
	local from name option=signed-by=/usr/share/keyrings/debian-archive-keyring.gpg
	if [ -n "${ARCHIVE:-}" ]; then
		# One that a test has made.
		from=$ARCHIVE option=trusted=yes
	else
		from=$(mirror)
	fi
	for name in "${1:-$suite}" $([ "${1:-$suite}" != "$suite" ] || echo "$suite-backports"); do
		echo "deb [$option] $from $name main"
	done
}

# valid: what apt is told about Release files that have expired.
valid()
{
	case ${CHECK_VALID_UNTIL:-} in
	no | false | 0) echo 'Acquire::Check-Valid-Until "false";' ;;
	esac
}

# archive SUITE [ARCHITECTURE]: has apt ask that suite of the archive only: neither the machine's sources nor its lists
# are touched. The lists are those of the last "apt-get update".
archive()
{
	local architecture=${2:-amd64}
	local apt=$build/${ARCHIVE:+check/}apt-$1
	[ "$architecture" = amd64 ] || apt=$apt-$architecture
	mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$build/downloads" "$build/log"
	: >"$apt/status"
	sources "$1" | grep " $1 main\$" >"$apt/sources.list"
	{
		valid
		cat <<-END
			Dir::State "$apt/state";
			Dir::State::status "$apt/status";
			Dir::Cache "$apt/cache";
			Dir::Etc::SourceList "$apt/sources.list";
			Dir::Etc::SourceParts "/dev/null";
			Dir::Etc::Preferences "/dev/null";
			Dir::Etc::PreferencesParts "/dev/null";
			APT::Architecture "$architecture";
			APT::Architectures { "$architecture"; };
			APT::Sandbox::User "root";
			Acquire::Languages "none";
		END
	} >"$apt/apt.conf"
	export APT_CONFIG=$apt/apt.conf
}
