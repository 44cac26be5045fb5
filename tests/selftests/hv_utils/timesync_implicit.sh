#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The parameter timesync_implicit can be read and changed at run time, and accepts only boolean values.
DIR=$(dirname "$(readlink -f "$0")")
# shellcheck source=common.sh
. "$DIR/common.sh"
require_driver

param=/sys/module/hv_utils/parameters/timesync_implicit

takes()
{
	echo "$1" >$param && [ "$(cat $param)" = "$1" ]
}

refuses()
{
	value=$(cat $param)
	! echo "$1" 2>/dev/null >$param && [ "$(cat $param)" = "$value" ]
}

ktap_print_header
ktap_set_plan 4

old=$(cat $param)
ktap_test_result "all users can read it, root can write it" test "$(stat -c %a $param)" = 644
ktap_test_result "it accepts Y" takes Y
ktap_test_result "it refuses other values" refuses maybe
ktap_test_result "it accepts N" takes N
echo "$old" >$param

ktap_finished
