#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# build.sh [--test]: builds the emulated host into build/host, or runs its unit tests.
# Run it with rust/kdir/enter, which provides rustc and bindgen. It needs no cargo and no crates.
#   build/host/libhost.rlib   the host as a library
#   build/host/host           boots and runs one guest (host --help)
#   build/host/scenarios      tests with host and guest (scenarios --help)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
out=$top/build/host
mkdir -p "$out"

# newer TARGET SOURCE...: returns whether TARGET is missing, or older than a file in SOURCE (files or folders).
newer()
{
	local target=$1
	shift
	[ ! -e "$target" ] || [ -n "$(find "$@" -type f -newer "$target" -print -quit)" ]
}

bindings=$out/kvm_bindings.rs
if newer "$bindings" "$here/kvm_wrapper.h" "$here/build.sh"; then
	bindgen "$here/kvm_wrapper.h" --with-derive-default --no-layout-tests --no-doc-comments \
		--allowlist-type 'kvm_.*|perf_event_attr|perf_type_id' --allowlist-var 'KVM_.*' \
		--rust-target 1.85 -o "$bindings.new"
	mv "$bindings.new" "$bindings"
fi

export KVM_BINDINGS=$bindings
flags=(--edition 2021 -D warnings -C opt-level=2 -C debuginfo=line-tables-only -C target-feature=+crt-static)

if [ "${1:-}" = --test ]; then
	if newer "$out/host-tests" "$here/src" "$bindings"; then
		rustc "${flags[@]}" --test --crate-name host -o "$out/host-tests" "$here/src/lib.rs"
	fi
	exec "$out/host-tests"
fi

if newer "$out/libhost.rlib" "$here/src" "$here/build.sh" "$bindings"; then
	rustc "${flags[@]}" --crate-type rlib --crate-name host -o "$out/libhost.rlib" "$here/src/lib.rs"
fi
if newer "$out/host" "$out/libhost.rlib" "$here/src/main.rs"; then
	rustc "${flags[@]}" --extern "host=$out/libhost.rlib" --crate-name host_main -o "$out/host" "$here/src/main.rs"
fi
scenarios=$top/tests/scenarios
if [ -e "$scenarios/main.rs" ] && newer "$out/scenarios" "$out/libhost.rlib" "$scenarios"; then
	rustc "${flags[@]}" --extern "host=$out/libhost.rlib" --crate-name scenarios \
		-o "$out/scenarios" "$scenarios/main.rs"
fi
