#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The host can power the guest off, restart it and hibernate it. Only the host can start these actions.
# tests/scenarios/shutdown.rs tests them on the emulated host.
DIR=$(dirname "$(readlink -f "$0")")
# shellcheck source=common.sh
. "$DIR/common.sh"
require_driver

skip_all "the host has to start it (Stop-VM, Restart-VM; tests/scenarios/shutdown.rs)"
