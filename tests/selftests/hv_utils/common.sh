# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh disable=SC2034
# Shared functions. The tests source this file. DIR is the folder of the test.

# shellcheck source=/dev/null
. "${KSELFTESTS:-$DIR/..}/kselftest/ktap_helpers.sh"

BUS=/sys/bus/vmbus
DRIVER=$BUS/drivers/hv_utils

HEARTBEAT=57164f39-9115-4e78-ab55-382f3bd5422d
SHUTDOWN=0e0b6031-5213-4934-818b-38d90ced39db
TIMESYNC=9527e630-d0ae-497b-adce-e80ab0175caf

# skip_all REASON: skips the whole test.
skip_all()
{
	ktap_print_header
	ktap_skip_all "$@"
	exit "$KSFT_SKIP"
}

# require_driver: skips the test without root, VMBus, or the module.
require_driver()
{
	[ "$(id -u)" = 0 ] || skip_all "not run as root"
	[ -d "$BUS" ] || skip_all "no VMBus: this is not a Hyper-V guest"
	[ -d /sys/module/hv_utils ] || skip_all "the module hv_utils is not loaded"
}

# devices CLASS: prints the ids of the devices of a class that the host offers.
devices()
{
	for device in "$BUS"/devices/*; do
		[ "$(cat "$device/class_id" 2>/dev/null)" = "{$1}" ] && basename "$device"
	done
	return 0
}

# is_bound ID: returns whether a device is bound to hv_utils.
is_bound()
{
	[ -e "$DRIVER/$1" ]
}

# ptp_clock: prints the name of the PTP clock that hv_utils registered, e.g. ptp0, if any.
ptp_clock()
{
	for clock in /sys/class/ptp/*; do
		[ "$(cat "$clock/clock_name" 2>/dev/null)" = hyperv ] && basename "$clock"
	done
	return 0
}
