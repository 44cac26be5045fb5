#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Each device can be unbound and bound again. Unbinding removes the PTP clock.
DIR=$(dirname "$(readlink -f "$0")")
# shellcheck source=common.sh
. "$DIR/common.sh"
require_driver

unbinds()
{
	echo "$1" >"$DRIVER/unbind" && ! is_bound "$1"
}

binds()
{
	echo "$1" >"$DRIVER/bind" && is_bound "$1"
}

has_no_clock()
{
	[ -z "$(ptp_clock)" ]
}

has_clock()
{
	[ -n "$(ptp_clock)" ]
}

ktap_print_header
ktap_set_plan 8

for class in "$HEARTBEAT" "$SHUTDOWN" "$TIMESYNC"; do
	id=$(devices "$class")
	if [ -z "$id" ]; then
		ktap_test_skip "class $class unbinds: the host offers none"
		ktap_test_skip "class $class binds again: the host offers none"
		continue
	fi
	ktap_test_result "class $class unbinds" unbinds "$id"
	if [ "$class" = "$TIMESYNC" ]; then
		ktap_test_result "its PTP clock is gone" has_no_clock
	fi
	ktap_test_result "class $class binds again" binds "$id"
	if [ "$class" = "$TIMESYNC" ]; then
		ktap_test_result "its PTP clock is back" has_clock
	fi
done
if [ -z "$(devices "$TIMESYNC")" ]; then
	ktap_test_skip "its PTP clock is gone: the host offers none"
	ktap_test_skip "its PTP clock is back: the host offers none"
fi

ktap_finished
