#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# compile-example.sh ARGUMENT...: compiles an example to metadata. rustdoc passes the arguments of rustc, and the example
# on stdin.
set -eu
arguments=()
while [ $# -gt 0 ]; do
	case $1 in
	--crate-type | -o) shift ;;
	--crate-type=* | --emit=* | -Clinker=*) ;;
	*) arguments+=("$1") ;;
	esac
	shift
done
# shellcheck disable=SC2086 # a list of arguments
exec rustc "${arguments[@]}" --crate-type lib --emit=metadata --out-dir "$DOC_TESTS" $DOC_ATTRIBUTES
