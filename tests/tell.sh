# SPDX-License-Identifier: GPL-2.0
# tell.sh: for scripts that test in many commands. The script sources rust/kdir/lib.sh before.
# shellcheck shell=bash disable=SC2034,SC2154

# Whether a test has failed.
failed=0

# tell NAME CMD...: a test that passes if CMD succeeds. Its output goes to build/log. If it fails, prints the end of it.
tell()
{
	local name=$1 log
	shift
	mkdir -p "$build/log"
	log=$build/log/$what-${name//[^A-Za-z0-9.-]/-}.log
	if "$@" >"$log" 2>&1 </dev/null; then
		echo "ok - $what: $name"
	else
		sed 's/^/    /' "$log" | tail -n 30
		echo "not ok - $what: $name"
		failed=1
		return 1
	fi
}
