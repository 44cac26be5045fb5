# SPDX-License-Identifier: GPL-2.0
# Functions that the scripts of rust/kdir and tests share: paths, progress lines, logged commands.
# shellcheck shell=bash disable=SC2034

# The directory of the project. All results are in its build/.
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$top/build

# The kernel series that this module is written for, other series that it can be built for, and the suites of the
# archive that may contain them, best first.
series=7.3
others=7.2
suites='trixie-backports forky sid'
# The Debian release of the tools and the tests. Kernels of its backports are built with its toolchain. Kernels of
# another suite are built with the toolchain of that suite. A KDIR contains the name of the suite in its file .suite.
suite=trixie

# parse ID: sets $flavour, and $of_series and $of_suite if ID contains them.
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

# kernel_id FLAVOUR [SERIES [SUITE]]: prints the ID of a kernel: the name of its directories in build/. The ID does not
# contain the usual series and suite. The usual series is that of the kernel that was chosen without SERIES.
kernel_id()
{
	local usual
	usual=$(sed -n 's/^\([0-9]*\.[0-9]*\).*/\1/p' "$build/kernel.version" 2>/dev/null || true)
	[ -z "${2:-}" ] || [ "$2" = "${usual:-$series}" ] || printf '%s-' "$2"
	[ -z "${3:-}" ] || [ "$3" = "$suite-backports" ] || printf '%s-' "$3"
	printf '%s\n' "$1"
}

# step TEXT: prints a progress line "WHAT: [i/n] TEXT (at t s)". The caller sets $what and $steps.
step_nr=0
step()
{
	step_nr=$((step_nr + 1))
	printf '%s: [%d/%d] %s (at %d s)\n' "${what:-build}" "$step_nr" "${steps:-1}" "$1" "$SECONDS"
}

# die TEXT [HINT]: prints an error and the way out, and exits.
die()
{
	printf '%s: error: %s\n' "${what:-build}" "$1" >&2
	if [ $# -gt 1 ]; then
		printf '%s: %s\n' "${what:-build}" "$2" >&2
	fi
	exit 1
}

# logged NAME CMD...: runs CMD with its output in build/log/NAME.log. On failure, prints the end of the log, and exits.
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

# expired <LOG: returns whether apt has refused a Release file because of its age.
expired()
{
	grep -qE 'Release file for .* is expired|Release file .* expired'
}

# alone NAME: takes the lock NAME, and holds it until this shell ends. Waits if another shell holds the lock.
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

# packages SUITE: prints the packages to be installed in a system of SUITE, one per line. The usual suite also gets the
# packages for the tests.
packages()
{
	sed 's/#.*//; /^[[:space:]]*$/d' "$top/rust/kdir/packages"
	[ "$1" != "$suite" ] || sed 's/#.*//; /^[[:space:]]*$/d' "$top/tests/packages"
}

# root_of SUITE: prints the directory that contains the root of SUITE.
root_of()
{
	if [ "$1" = "$suite" ]; then
		echo "$build/root"
	else
		echo "$build/root-$1"
	fi
}

# archives [FILTER]: prints the archives in this machine's apt configuration. apt 3 knows them only after an update.
# shellcheck disable=SC2016 # apt expands $(SITE)
archives()
{
	apt-get indextargets --format '$(SITE)' 'Identifier: Packages' "$@" 2>/dev/null
}

# mirror: prints the URL of the Debian mirror that this machine's apt uses. In build/root, prints the mirror that the
# root was made from.
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

# sources [SUITE]: prints the lines of sources.list for SUITE, and for its backports if SUITE is the usual suite.
sources()
{
	local from name option=signed-by=/usr/share/keyrings/debian-archive-keyring.gpg
	if [ -n "${ARCHIVE:-}" ]; then
		# A test has made this archive.
		from=$ARCHIVE option=trusted=yes
	else
		from=$(mirror)
	fi
	for name in "${1:-$suite}" $([ "${1:-$suite}" != "$suite" ] || echo "$suite-backports"); do
		echo "deb [$option] $from $name main"
	done
}

# valid: prints apt's configuration for expired Release files.
valid()
{
	case ${CHECK_VALID_UNTIL:-} in
	no | false | 0) echo 'Acquire::Check-Valid-Until "false";' ;;
	esac
}

# archive SUITE [ARCHITECTURE]: makes apt use only this suite of the archive, with sources and lists of its own. The
# lists are those of the last "apt-get update" for this suite.
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
