#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# rustdoc.sh: writes the documents of the crate hyperv to build/doc, and compiles their examples. make doc calls it.
# Calls rustdoc with the flags that Kbuild has used for the crate in build/modules/amd64.
set -eu -o pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../rust/kdir/lib.sh"
what=doc
if [ "${HV_ENTERED:-}" != "$suite" ]; then
	exec "$top/rust/kdir/enter" env HV_ENTERED="$suite" "$0" "$@"
fi
built=$build/modules/amd64
tests=$build/doc-tests
cd "$built"

# Take Kbuild's command, without rustc's output files.
line=$(sed -n 's/^savedcmd_[^ ]* := //p' rust/hyperv/.hyperv.o.cmd)
[ -n "$line" ] || die "build/modules/amd64 does not say how Kbuild built the crate" "remove it, and run make doc again"
eval "command=(${line//\$(pound)/#})"
flags=() environment=()
while [ "${command[0]}" != rustc ]; do
	environment+=("${command[0]}")
	command=("${command[@]:1}")
done
for ((i = 1; i < ${#command[@]}; i++)); do
	case ${command[i]} in
	--emit=* | -Zbinary_dep_depinfo=*) ;;
	--crate-type | --out-dir) i=$((i + 1)) ;;
	*) flags+=("${command[i]}") ;;
	esac
done
environment+=(RUSTC_BOOTSTRAP=1 "HYPERV_BINDINGS_RS=$built/rust/bindings_generated.rs")

env "${environment[@]}" rustdoc --crate-name hyperv -D warnings -D rustdoc::all --generate-link-to-definition \
	--output "$build/doc.new" "${flags[@]}"
# Let the links to C headers point to the kernel's source.
find "$build/doc.new" -name '*.html' -exec sed -i "s|href=\"srctree/|href=\"$build/linux-source/|g" {} +
missing=$(grep -rhoE "href=\"$build/linux-source/[^\"]*" "$build/doc.new" | cut -d '"' -f 2 | sort -u |
	while read -r file; do [ -e "$file" ] || echo "$file"; done)
[ -z "$missing" ] || die "there is no" "$missing"

# Compile each example as a crate, against the metadata of hyperv. Nothing runs. While rustdoc collects examples, it
# ignores the attributes in the command line, so use a copy of the crate that contains them.
rm -rf "$tests"
mkdir -p "$tests"
cp -r "$top/rust/hyperv" "$tests/src"
attributes=() rest=()
for flag in "${flags[@]::${#flags[@]}-1}"; do
	case $flag in
	-Zcrate-attr=*) attributes+=("${flag#*=}") ;;
	*) rest+=("$flag") ;;
	esac
done
{
	grep '^//' "$top/rust/hyperv/hyperv.rs"
	printf '#![%s]\n' "${attributes[@]}"
	grep -v '^//' "$top/rust/hyperv/hyperv.rs"
} >"$tests/src/hyperv.rs"
export DOC_TESTS=$tests DOC_ATTRIBUTES="${attributes[*]/#/-Zcrate-attr=}"
env "${environment[@]}" rustdoc --test --no-run --test-builder "$top/Documentation/compile-example.sh" \
	--crate-name hyperv --extern "hyperv=$built/rust/libhyperv.rmeta" -L "$built/rust" "${rest[@]}" \
	"$tests/src/hyperv.rs" >"$tests/log" || { cat "$tests/log"; exit 1; }
grep -q '^test result: ok\. [1-9]' "$tests/log" || die "no example was compiled" "see build/doc-tests/log"
sed -n 's/^test result: \(.*\); 0 measured.*/examples: \1/p' "$tests/log"
rm -rf "$build/doc"
mv "$build/doc.new" "$build/doc"
echo "build/doc/hyperv/index.html"
