#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# coverage.sh: builds the unit tests of the module's pure code (drivers/hv/icmsg, drivers/hv/dialogue) so that they count
# which lines run. For each file it prints the lines that did not, and "ok - NAME" or "not ok - NAME"; check.sh calls it.
# The tests themselves (dialogue/model.rs is one) do not count. How many lines the properties run is told, not judged.
set -eu -o pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../rust/kdir/lib.sh"
what=coverage
if [ "${HV_ENTERED:-}" != "$suite" ]; then
	exec "$top/rust/kdir/enter" "$0" "$@"
fi
cd "$top"
out=$build/check/coverage
rm -rf "$out"
mkdir -p "$out"

# counting NAME SOURCE OPTION...: builds a program that counts its lines in NAME.profraw, and runs it.
counting()
{
	local name=$1 source=$2
	shift 2
	if ! rustc --edition 2021 -A dead_code -C instrument-coverage --crate-name "$name" -o "$out/$name" "$@" "$source" \
		>"$out/$name.log" 2>&1 || ! LLVM_PROFILE_FILE=$out/$name.profraw "$out/$name" >>"$out/$name.log" 2>&1; then
		tail -n 20 "$out/$name.log" | sed 's/^/    /'
		echo "not ok - coverage: $name runs"
	fi
}

# lines NAME PROGRAM...: "FILE LINE COUNT" for each line with code, from the profiles of these programs, in NAME.lines.
lines()
{
	local name=$1 profiles=("${@:2}") objects=()
	shift
	llvm-profdata merge -sparse -o "$out/$name.profdata" "${profiles[@]/%/.profraw}"
	while [ $# -gt 1 ]; do
		shift
		objects+=(-object "$1")
	done
	llvm-cov export --format=lcov -instr-profile "$out/$name.profdata" "${profiles[0]}" "${objects[@]}" |
		awk -F '[:,]' -v top="$top/" '
		$1 == "SF" { file = index($2, top) == 1 ? substr($2, length(top) + 1) : $2 }
		$1 == "DA" { print file, $2, $3 }' >"$out/$name.lines"
}

# judge FILE: its lines that no unit test runs, and the result.
judge()
{
	awk -v file="$1" '
	FILENAME == ARGV[3] {
		if (/^mod tests \{$/) exit
		source[FNR] = $0
		last = FNR
		next
	}
	$1 == file && FILENAME == ARGV[2] { others = "; properties run %d" }
	$1 == file { count[FILENAME == ARGV[1] ? "unit" : "properties", $2] = $3; is_code[$2] }
	END {
		for (line = 1; line <= last; line++) {
			if (!(line in is_code)) continue
			total++
			if (count["properties", line] > 0) properties++
			if (count["unit", line] > 0) unit++
			else print "    " file ":" line ": " source[line]
		}
		printf "%s - coverage: %s (%d of %d lines" others ")\n",
			(total > 0 && unit == total) ? "ok" : "not ok", file, unit, total, properties
	}' "$out/unit.lines" "$out/properties.lines" "$1"
}

for part in icmsg dialogue; do
	counting "$part" "drivers/hv/$part/mod.rs" --test
done
HV_FUZZ_SECONDS=${HV_FUZZ_SECONDS:-1} counting properties tests/unit/properties.rs -O --extern "host=$build/host/libhost.rlib"
lines unit "$out/icmsg" "$out/dialogue"
lines properties "$out/properties"
while read -r file; do
	judge "$file"
done < <(find drivers/hv/icmsg drivers/hv/dialogue -name '*.rs' ! -name model.rs | LC_ALL=C sort)
