#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The host can power the guest off, restart it and have it hibernate. Only the host can begin that:
# on the emulated host it is tests/scenarios/shutdown.rs.
DIR=$(dirname "$(readlink -f "$0")")
# shellcheck source=common.sh
. "$DIR/common.sh"
require_driver

skip_all "the host has to ask for it (Stop-VM, Restart-VM; tests/scenarios/shutdown.rs)"
