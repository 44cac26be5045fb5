# SPDX-License-Identifier: GPL-2.0
# Shared by the scripts of rust/kdir, drivers/packages and tests: paths, progress lines, logged commands.
# shellcheck shell=bash disable=SC2034

# The folder of the project. All created files are in its folder build/.
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$top/build

# The kernel series that this module is written for, the further series that it supports, and the suites of the archive
# to search, best first.
series=7.3
others=7.2
suites='trixie-backports forky sid'
# The Debian release of the tools and the tests. Its toolchain also builds the kernels of its backports. For a kernel of
# another suite, the toolchain of that suite is used. The file .suite of a KDIR names the suite.
suite=trixie

# parse ID: splits ID into $of_series, $of_suite and $flavour. The first two may be empty.
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

# kernel_id FLAVOUR [SERIES [SUITE]]: prints the name of the kernel's folders in build/. The name omits the usual series and
# suite: those that choose.sh chooses if neither is given.
kernel_id()
{
	local usual
	usual=$(sed -n 's/^\([0-9]*\.[0-9]*\).*/\1/p' "$build/kernel.version" 2>/dev/null || true)
	[ -z "${2:-}" ] || [ "$2" = "${usual:-$series}" ] || printf '%s-' "$2"
	[ -z "${3:-}" ] || [ "$3" = "$suite-backports" ] || printf '%s-' "$3"
	printf '%s\n' "$1"
}

# step TEXT: prints a progress line "$what: [i/$steps] TEXT (at t s)". The caller sets $steps and $what.
step_nr=0
step()
{
	step_nr=$((step_nr + 1))
	printf '%s: [%d/%d] %s (at %d s)\n' "${what:-build}" "$step_nr" "${steps:-1}" "$1" "$SECONDS"
}

# die TEXT [HINT]: prints the error and the remedy, and fails.
die()
{
	printf '%s: error: %s\n' "${what:-build}" "$1" >&2
	if [ $# -gt 1 ]; then
		printf '%s: %s\n' "${what:-build}" "$2" >&2
	fi
	exit 1
}

# logged NAME CMD...: runs CMD with its output in build/log/NAME.log. On failure, prints the end of the output.
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
		die "the mirror's list of packages has expired: the mirror is no longer updated" \
			"to use it anyway: CHECK_VALID_UNTIL=no make ..."
	fi
	die "that step failed; the whole output is in $log" \
	    "correct the cause shown above and run the same command again: finished steps are kept"
}

# expired <LOG: returns whether apt refused a Release file because of its age.
expired()
{
	grep -qE 'Release file for .* is expired|Release file .* expired'
}

# alone NAME: takes the lock NAME, and holds it until this shell ends.
alone()
{
	mkdir -p "$build"
	exec 9>"$build/$1.lock"
	if ! flock -n 9; then
		printf '%s: waiting for another run to finish\n' "${what:-build}"
		flock 9
	fi
}

# codename: prints the codename of this machine's Debian, or none.
codename()
{
	# shellcheck source=/dev/null
	(. /etc/os-release && echo "${VERSION_CODENAME:-none}")
}

# packages SUITE: prints the packages to install in that suite, one per line. Only the usual suite needs those of the tests.
packages()
{
	sed 's/#.*//; /^[[:space:]]*$/d' "$top/rust/kdir/packages"
	[ "$1" != "$suite" ] || sed 's/#.*//; /^[[:space:]]*$/d' "$top/tests/packages"
}

# root_of SUITE: prints the folder of the root with that suite.
root_of()
{
	if [ "$1" = "$suite" ]; then
		echo "$build/root"
	else
		echo "$build/root-$1"
	fi
}

# archives [LABEL]: prints the archives that this machine's apt uses. apt 3 prints nothing before an update.
# shellcheck disable=SC2016 # apt expands $(SITE)
archives()
{
	apt-get indextargets --format '$(SITE)' 'Identifier: Packages' "$@" 2>/dev/null
}

# mirror: prints the Debian mirror that this machine's apt uses. In build/root, prints the mirror that build/root was made
# from.
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
		die "apt has no Debian archive" "add an archive to /etc/apt/sources.list"
	echo "$url"
}

# sources [SUITE]: prints apt's lines for the suite. For the usual suite, also prints the line for its backports.
sources()
{
	local from name option=signed-by=/usr/share/keyrings/debian-archive-keyring.gpg
	if [ -n "${ARCHIVE:-}" ]; then
		# An archive of a test.
		from=$ARCHIVE option=trusted=yes
	else
		from=$(mirror)
	fi
	for name in "${1:-$suite}" $([ "${1:-$suite}" != "$suite" ] || echo "$suite-backports"); do
		echo "deb [$option] $from $name main"
	done
}

# valid: prints apt's option for expired Release files.
valid()
{
	case ${CHECK_VALID_UNTIL:-} in
	no | false | 0) echo 'Acquire::Check-Valid-Until "false";' ;;
	esac
}

# archive SUITE [ARCHITECTURE]: configures apt to use only this suite of the archive, with separate sources and lists. The
# machine's own are not changed. The lists are from the last "apt-get update" with this configuration.
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
