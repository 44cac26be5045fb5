#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The driver has the name that other software expects, and is bound to the devices that the host offers.
DIR=$(dirname "$(readlink -f "$0")")
# shellcheck source=common.sh
. "$DIR/common.sh"
require_driver

ktap_print_header
ktap_set_plan 4

ktap_test_result "the driver is called hv_utils" test -d "$DRIVER"

for class in "$HEARTBEAT" "$SHUTDOWN" "$TIMESYNC"; do
	id=$(devices "$class")
	if [ -z "$id" ]; then
		ktap_test_skip "the device of class $class is bound: the host offers none"
	else
		ktap_test_result "the device of class $class is bound" is_bound "$id"
	fi
done

ktap_finished
