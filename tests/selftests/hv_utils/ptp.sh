#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The PTP clock is named hyperv, can be read after the host's first sample, and cannot be set.
DIR=$(dirname "$(readlink -f "$0")")
# shellcheck source=common.sh
. "$DIR/common.sh"
require_driver

clock=$(ptp_clock)
[ -n "$clock" ] || skip_all "no PTP clock: the host offers no time synchronisation"
PATH=$PATH:${KSELFTESTS:-$DIR/..}/ptp
command -v testptp >/dev/null || skip_all "no testptp in PATH or in the kernel's selftests (ptp)"

# now: prints the clock's time in seconds. Prints nothing before the host's first sample.
now()
{
	testptp -d "/dev/$clock" -g 2>/dev/null | sed -n 's/^clock time: \([0-9]*\)\..*/\1/p'
}

advances()
{
	before=$(now)
	sleep 2
	after=$(now)
	[ "$before" -lt "$after" ] && [ "$after" -le $((before + 60)) ]
}

# testptp's exit status does not show the failure.
refuses_to_be_set()
{
	testptp -d "/dev/$clock" -T 1000000000 >/dev/null 2>&1
	[ "$(now)" -gt 1577836800 ]
}

ktap_print_header
ktap_set_plan 3

if [ -z "$(now)" ]; then
	ktap_test_skip "the clock is past 2020: the host has sent no sample yet"
	ktap_test_skip "the clock advances: the host has sent no sample yet"
	ktap_test_skip "the clock refuses to be set: the host has sent no sample yet"
else
	ktap_test_result "the clock is past 2020" test "$(now)" -gt 1577836800
	ktap_test_result "the clock advances" advances
	ktap_test_result "the clock refuses to be set" refuses_to_be_set
fi

ktap_finished
