#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# check.sh [WORD]: runs the tests, in steps. make check calls this script after the build. With WORD, runs the step
# of that name, or else the tests with WORD in their names. "check.sh more WORD" runs those of make check-more. A step
# prints "ok - NAME", "not ok - NAME" or "ok - NAME # SKIP REASON" for each of its tests. This script counts them.
set -eu -o pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../rust/kdir/lib.sh"
what=check
if [ "${HV_ENTERED:-}" != "$suite" ]; then
	exec "$top/rust/kdir/enter" env HV_ENTERED="$suite" "$0" "$@"
fi
word=${1:-}
cd "$top"
logs=$build/check
mkdir -p "$logs"
alone check

# files PATTERN...: prints the matching files of the repository, one per line, without files made by a build.
files()
{
	find dkms.conf rust drivers samples tests .ci -type f \( "$@" \) ! -name '*_generated.rs' ! -name '*.mod.c' \
		! -name '.*' | LC_ALL=C sort
}

# each NAME CMD...: runs a test, which passes if CMD succeeds and prints nothing.
each()
{
	local name=$1 out
	shift
	if out=$("$@" 2>&1 </dev/null) && [ -z "$out" ]; then
		echo "ok - $name"
	else
		printf '    %s\n' "${out//$'\n'/$'\n    '}"
		echo "not ok - $name"
	fi
}

step_format()
{
	local file
	while read -r file; do
		each "format: $file" rustfmt --check --quiet --edition 2021 \
			--config-path build/linux-source/.rustfmt.toml "$file"
	done < <(files -name '*.rs')
}

step_shellcheck()
{
	local file
	while read -r file; do
		each "shellcheck: $file" shellcheck -x -P SCRIPTDIR "$file"
	done < <(files ! -name '*.rs' | xargs grep -lE '^#!/bin/(ba)?sh|^# shellcheck shell=')
}

# warnings_of_module FLAVOUR: rebuilds the module with all warnings of the kernel and clippy. Prints the warnings.
warnings_of_module()
{
	local out=$build/check/module-$1
	rm -rf "$out"
	mkdir -p "$out"
	if ! make -s -j "$(nproc)" -C "$build/kdir/$1" M="$top" MO="$out" EXTRAS=1 W=1 CLIPPY=1 modules >"$out.log" 2>&1 ||
	   grep -qiE 'warning|error' "$out.log"; then
		cat "$out.log"
	fi
	[ -e "$out/hv_utils.ko" ] || echo "no hv_utils.ko was built"
}

clippy()
{
	KVM_BINDINGS=$build/host/kvm_bindings.rs clippy-driver --edition 2021 -D warnings --emit metadata \
		-o "$logs/clippy.rmeta" "$@"
}

# remembered NAME KEY CMD...: runs CMD. If CMD has passed before with the same KEY, prints the earlier output instead.
remembered()
{
	local name=$1 key=$2 status=0
	shift 2
	if [ "$(cat "$logs/$name.key" 2>/dev/null)" = "$key" ]; then
		sed -n -e '/^ok .* # SKIP/ { p; d; }' -e 's/^ok - .*/& # KEPT nothing that it tests has changed/p' "$logs/$name.passed"
		return
	fi
	rm -f "$logs/$name.key"
	"$@" 2>&1 | sed -u 's/\r//' | tee "$logs/$name.passed" || status=$?
	[ $status -ne 0 ] || grep -q '^not ok' "$logs/$name.passed" || echo "$key" >"$logs/$name.key"
	return $status
}

step_clippy()
{
	local key
	key=$( (cat "$build"/kdir/*/.ready; find Kbuild rust drivers samples tests -type f -exec sha256sum {} + | sort) |
		sha256sum)
	remembered clippy "$key" all_of_clippy
}

all_of_clippy()
{
	local flavour
	for flavour in amd64 cloud-amd64; do
		each "clippy: module, $flavour" warnings_of_module "$flavour"
	done
	each "clippy: tests/host" clippy --crate-type rlib --crate-name host tests/host/src/lib.rs
	# A name for the type of a test's table would not make the table easier to read.
	each "clippy: tests/scenarios" clippy -A clippy::type_complexity --crate-name scenarios \
		--extern "host=$build/host/libhost.rlib" tests/scenarios/main.rs
	each "clippy: tests/unit" clippy --crate-name properties \
		--extern "host=$build/host/libhost.rlib" tests/unit/properties.rs
}

# samples_in DIR: builds the module, and all modules that are never installed, in DIR.
samples_in()
{
	make -s -j "$(nproc)" -C "$build/kdir/amd64" M="$top" MO="$1" EXTRAS=1 modules >"$1.log" 2>&1
}

# make_in DIR TARGET...: calls make as a user does, with its output in DIR.
make_in()
{
	make -s KDIR=build/kdir/amd64 MO="$1" INSTALL_MOD_PATH="$1/root" "${@:2}" >>"$1.log" 2>&1
}

# installed: tests that modules_install installs the module only, even if the folder has other modules.
installed()
{
	local out=$build/check/install kept=$build/check/kept.ko
	rm -rf "$out" "$kept"
	mkdir -p "$out"
	# make also copies the module to the top folder. Keep the user's module there.
	[ ! -e hv_utils.ko ] || cp -p hv_utils.ko "$kept"
	# shellcheck disable=SC2064 # the variables no longer exist when the trap runs
	trap "if [ -e '$kept' ]; then mv -f '$kept' hv_utils.ko; else rm -f hv_utils.ko; fi" EXIT
	samples_in "$out" || { tail -n 15 "$out.log"; return; }
	if make_in "$out" modules_install || [ -e "$out/root" ]; then
		echo "modules_install accepts a folder with more than the module"
	fi
	make_in "$out" modules || tail -n 15 "$out.log"
	touch "$out.built"
	make_in "$out" modules_install || tail -n 15 "$out.log"
	find "$out" hv_utils.ko -path "$out/root" -prune -o -type f -newer "$out.built" -printf 'modules_install made %p\n'
	find "$out/root" -name '*.ko*' -printf '%P\n' |
		grep -vx 'lib/modules/[^/]*/updates/hv_utils\.ko[.a-z]*' || true
	find "$out/root" -name 'hv_utils.ko*' | grep -q . || echo "no hv_utils.ko was installed"
	says_what_it_installs "$out" "$out.log"
}

# says_what_it_installs DIR LOG: tests the output of modules_install, for a root without a kernel and for a root with the
# kernel's own module.
says_what_it_installs()
{
	local release dir
	release=$(cat build/kernel/amd64/release)
	dir=$1/root/lib/modules/$release
	grep -q '^modprobe finds it after "depmod ' "$2" || echo "modules_install does not say that depmod must run"
	if grep -i warning "$2"; then
		echo "installing into a root without a kernel warns"
	fi
	mkdir -p "$dir/kernel/drivers/hv"
	cp build/kernel/amd64/lib/modules/"$release"/modules.* "$dir/"
	cp build/kernel/amd64/lib/modules/"$release"/kernel/drivers/hv/hv_utils.ko* "$dir/kernel/drivers/hv/"
	make_in "$1" modules_install || tail -n 15 "$2"
	grep -qx "installed: $dir/updates/hv_utils.ko.*" "$2" || echo "modules_install does not name the installed file"
	grep -q "^replaces:  $dir/kernel/drivers/hv/hv_utils.ko.* (which stays where it is)$" "$2" ||
		echo "modules_install does not name the replaced file"
	grep -q "^go back:   rm $dir/updates/hv_utils.ko\* && depmod -b $1/root $release$" "$2" ||
		echo "modules_install does not say how to go back"
	modprobe -d "$1/root" -S "$release" --show-depends hv_utils 2>/dev/null | grep -q "/updates/hv_utils.ko" ||
		echo "modprobe does not find the installed module"
}

step_install()
{
	each "install: only the module" installed
}

step_checkpatch()
{
	local file
	while read -r file; do
		each "checkpatch: $file" perl build/linux-source/scripts/checkpatch.pl \
			--no-tree --strict --terse --quiet --no-summary -f "$file"
	done < <(files -name '*.[ch]')
}

# outside_linux: prints the lines of rust/hyperv/linux that use the rest of the crate, which would not exist upstream.
outside_linux()
{
	awk '
	/^use crate::\{$/ { is_list = 1; next }
	/^};$/ { is_list = 0 }
	is_list && /^    [a-z]/ && !/^    (bindings|compat|linux)[,:]/ ||
	/crate::[a-z]/ && !/crate::(bindings|compat|linux|module_param)/ { print FILENAME ": " $0 }' \
		rust/hyperv/linux/*.rs
}

# series_steps FILE...: prints the steps between kernel series that the files name.
series_steps()
{
	grep -ohE '(hyperv_before|HYPERV_BEFORE)_[0-9_]+' "$@" | LC_ALL=C sort -u
}

# outside_seam: prints the lines outside the seam that check the kernel's version, and the steps that only rust/Kbuild or
# only the seam has.
outside_seam()
{
	find Kbuild rust drivers samples tests/modules -path rust/kdir -prune -o -type f ! -name '*_generated.rs' ! -name '.*' \
		-exec grep -inE 'hyperv_before_|(linux|kernel)_version|utsrelease|patchlevel|sublevel' /dev/null {} + |
		grep -vE '^rust/(Kbuild|hyperv/compat\.rs|helpers/compat\.c):' || true
	diff <(series_steps rust/Kbuild) <(series_steps rust/hyperv/compat.rs rust/helpers/compat.c) || true
}

# too_long: prints files of more than 800 lines (without the unit tests of the module's files) and functions of more than
# 80. rustfmt gives the last line of a function the indentation of its first line.
too_long()
{
	# shellcheck disable=SC2016 # these are awk's
	files -name '*.rs' | xargs awk '
	function judge_file() {
		if (count > 800) print name ": " count " lines"
	}
	FNR == 1 { judge_file(); name = FILENAME; count = 0; is_counted = 1; first = 0 }
	/^mod tests \{$/ && name !~ /^tests\// { is_counted = 0 }
	is_counted { count++ }
	{ match($0, /^ */); indent = substr($0, 1, RLENGTH) }
	!first && /^ *(pub(\([a-z]+\))? )?((const|unsafe|extern "C") )*fn [a-z_0-9]+/ {
		first = FNR
		at = indent
		match($0, /fn [a-z_0-9]+/)
		function_name = substr($0, RSTART, RLENGTH)
	}
	# The function ends: its last line, a declaration, or a function on one line.
	first && ($0 == at "}" || /;$/ && indent == at || FNR == first && /\}$/) {
		if (FNR - first + 1 > 80) print name ": " function_name ": " FNR - first + 1 " lines"
		first = 0
	}
	END { judge_file() }'
}

step_layers()
{
	each "layers: rust/hyperv/linux" outside_linux
	each "layers: the seam for the kernel's version" outside_seam
	each "layers: no file and no function is too long" too_long
}

# Tests that administration.rst has all log messages, attributes, tracepoints and parameters.
step_log_texts()
{
	local file
	while read -r file; do
		each "log texts: $file" perl tests/log-texts.pl Documentation/administration.rst "$file"
	done < <(find drivers/hv rust/hyperv -name '*.rs' ! -name model.rs | LC_ALL=C sort)
	each "log texts: attributes" undescribed '' '^What:.*hv_utils\/([a-z_]+)$' \
		Documentation/ABI/testing/sysfs-bus-vmbus-hv_utils
	each "log texts: tracepoints" undescribed hv_utils: '^TRACE_EVENT\(([a-z_]+),$' drivers/hv/hv_utils_trace.h
	each "log texts: parameters" undescribed '' '^hyperv::module_param_\w+!\(\n    (\w+),$' drivers/hv/parameters.rs
}

# undescribed PREFIX PATTERN FILE: prints the names in FILE that match PATTERN and are missing in administration.rst.
undescribed()
{
	local name names
	names=$(perl -0777 -ne "while (/$2/mg) { print \"\$1\n\" }" "$3")
	[ -n "$names" ] || echo "$3 has none"
	for name in $names; do
		grep -qF "\`\`$1$name\`\`" Documentation/administration.rst || echo "$1$name of $3"
	done
}

# faults_otherwise: prints the differences between faults.rst and the page that make faults would write with the same
# verdicts.
faults_otherwise()
{
	build/host/scenarios list faults <Documentation/faults.rst >"$logs/faults.rst"
	diff Documentation/faults.rst "$logs/faults.rst" || true
	grep -n -- ' - not run$' Documentation/faults.rst || true
}

# Tests that the scenarios in faults.rst and in the table of C's patches exist, and that faults.rst is up to date.
step_faults()
{
	local name
	build/host/scenarios list | sort >"$logs/scenarios"
	# shellcheck disable=SC2016 # these are no command substitutions
	grep -oh '``[a-z0-9_]*``' Documentation/faults.rst Documentation/mainline/results.txt | tr -d '`' | sort -u | while read -r name; do
		each "faults: $name is a scenario" sh -c "grep -qx '$name' '$logs/scenarios' || echo there is none"
	done
	each "faults: Documentation/faults.rst has the faults of tests/scenarios/faults.rs" faults_otherwise
}

# retell STEP <OUTPUT: translates the output of Rust's test runner. Its exit status does not matter: a failure
# has a line, and the last line is missing if the runner itself has failed.
retell()
{
	awk -v step="$1" '
	/^test .* \.\.\. ok$/ { print "ok - " step ": " $2; next }
	/^test .* \.\.\. ignored/ { print "ok - " step ": " $2 " # SKIP ignored"; next }
	/^test .* \.\.\. FAILED$/ { print "not ok - " step ": " $2; next }
	/^test result:/ { whole = 1; next }
	/^running [0-9]+ tests?$/ || /^$/ { next }
	{ print "    " $0 }
	END { if (!whole) print "not ok - " step ": runs to its end" }'
}

step_host()
{
	tests/host/build.sh --test 2>&1 | retell host
	{ rustc --edition 2021 --test -A dead_code --crate-name scenarios --extern "host=$build/host/libhost.rlib" \
		-o "$logs/scenarios-unit" tests/scenarios/main.rs &&
	  "$logs/scenarios-unit" ${pattern:+"$pattern"}; } 2>&1 | retell host
}

# The unit tests of the services' pure code, on this machine.
step_unit()
{
	local part

	for part in icmsg dialogue; do
		{ rustc --edition 2021 --test -A dead_code --crate-name "$part" -o "$logs/unit-$part" "drivers/hv/$part/mod.rs" &&
		  "$logs/unit-$part" ${pattern:+"$pattern"}; } 2>&1 | retell unit
	done
}

# Properties of this code for any input.
step_properties()
{
	rustc --edition 2021 -O -C debug-assertions=on -C overflow-checks=on --crate-name properties \
		--extern "host=$build/host/libhost.rlib" -o "$logs/properties" tests/unit/properties.rs &&
	"$logs/properties"
}

# Which lines of it the unit tests run: all.
step_coverage()
{
	tests/coverage.sh
}

# peer: prints a hash of all files that the results of the C module depend on. The results are kept until the hash changes.
peer()
{
	{
		env | grep -E '^HV_(SLOW|FUZZ)' || true
		sha256sum build/host/scenarios build/kernel/amd64/vmlinuz tests/guest/outer-run.sh tests/selftests/*/* \
			build/guest/{outer,inner-amd64,daemons-amd64,disks-amd64,chrony}.cpio
	} | sha256sum | cut -c 1-32
}

# scenarios FLAVOUR OPTION...: runs scenarios. sed joins the emulated machine's output, which arrives in pieces of lines.
scenarios()
{
	OUTER_TIMEOUT=${OUTER_TIMEOUT:-1800} build/host/scenarios --flavour "$@" check ${pattern:+"$pattern"} 2>&1 |
		sed -u ''
}

# has KIND: returns whether to run scenarios of that kind.
has()
{
	build/host/scenarios list "$1" | grep -e "$pattern" >/dev/null
}

# Uses two machines at a time. The first one runs the scenarios with both modules on amd64, then some on cloud-amd64.
# Meanwhile the second one runs, with this module only, scenarios that depend on two processors or on an old VMBus, races,
# and scenarios for the debug kernel. Then it runs scenarios that wait for minutes, in emulated time and with both modules.
step_scenarios()
{
	local status=0 first key
	key=$(peer)
	{
		scenarios amd64 --whole no --vcpus 2 --vmbus 4.0 || status=$?
		if has debug; then
			scenarios debug --whole no --module rust --vcpus 2 --vmbus 6.0 || status=$?
		fi
		if has waits; then
			scenarios amd64 --time emulated --vcpus 1 --vmbus 6.0 --peer "$key" || status=$?
		fi
		exit $status
	} &
	first=$!
	scenarios amd64 --vcpus 1 --vmbus 6.0 --peer "$key" || status=$?
	scenarios cloud-amd64 --whole no --vcpus 2 --vmbus 5.3 || status=$?
	wait "$first" || status=$?
	return $status
}

# All kernels that are built, except the two that all other tests use.
step_kernels()
{
	local key
	key=$( (sha256sum "$build"/kdir/*/.ready build/host/scenarios "$build"/kdir/*/.symbols.built;
		find Kbuild rust drivers samples tests/modules tests/guest tests/kernels.sh -type f -exec sha256sum {} + | sort) | sha256sum)
	remembered kernels "$key" tests/kernels.sh --built
}

# The choice of a kernel, with archives made by the test.
step_choose()
{
	tests/choose.sh
}

# shell_session NAME [OPTION]...: runs the commands of tests/shell/NAME.commands at the host's prompt. Prints nothing if
# all of them work as expected.
shell_session()
{
	local log=$logs/shell-$1.log
	OUTER_TIMEOUT=1200 build/host/host --commands "tests/shell/$1.commands" "${@:2}" >"$log" 2>&1 </dev/null || tail -n 40 "$log"
}

# foreign_session: tests the prompt with a guest without files of this project.
foreign_session()
{
	shell_session foreign --kernel build/kernel/cloud-amd64/vmlinuz --initrd build/guest/debian-cloud-amd64.cpio \
		--append "console=ttyS0 quiet root=/dev/pmem0 rw pci=conf1" --pmem build/guest/debian-cloud-amd64.ext4 --memory 1024
}

# wrong_input: tests that each wrong line is refused with a text that says what was expected, and does nothing. Prints
# requests that the right commands do not send.
wrong_input()
{
	local log=$logs/shell-wrong.log
	shell_session wrong
	grep '^error' "$log" || true
	[ "$(grep -c '^expected ' "$log")" = "$(grep -c '^!' tests/shell/wrong.commands)" ] || echo "not all input was refused"
	grep -oE '(kvp|vss|fcopy|shutdown) -> .* request .*' build/results/shell-wrong.transcript |
		sed 's/ \[[0-9a-f]*\]$//; / flags 0 reason/d' | grep -v 'negotiate' || true
}

# typed TEXT LOG [NAME=VALUE]...: the host with this standard input; again if the emulation breaks down.
typed()
{
	local status=125 left=3
	while [ $status = 125 ] && [ $left -gt 0 ]; do
		left=$((left - 1))
		status=0
		printf '%b' "$1" | env "${@:3}" build/host/host >"$2" 2>&1 || status=$?
	done
	return $status
}

# Commands whose output is not as it must be, from standard input: the byte 0xff is no end of it, and no text.
failing_lines()
{
	local log=$logs/shell-failing.log status=0
	typed 'help\n= no such line\n! help\nkvp set key \0377\n\0377\nnonsense\nhelp\n= prints this list\n' "$log" || status=$?
	[ $status = 1 ] || echo "it ends with status $status"
	tail -n 1 "$log" | grep -v '^# 5 lines failed$' || true
	grep -c '^expected a line in UTF-8$' "$log" | grep -vx 2 || true
}

# replayed FILE COUNT [LINE]: replays a transcript. Prints nothing if COUNT services answer as recorded, and the output
# has LINE.
replayed()
{
	local log=$logs/shell-${1##*/}.log
	OUTER_TIMEOUT=600 build/host/host --replay "$1" >"$log" 2>&1 </dev/null || true
	if [ "$(grep -c ' 0 differ' "$log")" != "$2" ] || { [ $# -gt 2 ] && ! grep -q "$3" "$log"; }; then
		tail -n 40 "$log"
	fi
}

# spoiled_replay: changes an answer in the transcript, and tests that the replay reports the difference.
spoiled_replay()
{
	sed 's/ = "good day" \[/ = "bad day" [/' tests/shell/replay.transcript >"$logs/spoiled.transcript"
	replayed "$logs/spoiled.transcript" 5 '^kvp: .* 1 differ$'
}

# gone_amid_a_backup: ends the input during a backup. The host must thaw the guest before it ends.
gone_amid_a_backup()
{
	local log=$logs/shell-gone.log
	typed '\0035backup 5m\r' "$log" HV_TERMINAL=1 || echo "it ends with status $?"
	grep -q '^backed up' "$log" || tail -n 40 "$log"
}

# types TEXT: on the terminal.
types()
{
	printf '%b' "$1" >&"${terminal[1]}"
}

# shows TEXT: reads what the terminal shows, up to this text.
shows()
{
	local byte
	while [[ $shown != *"$1"* ]]; do
		if ! IFS= read -r -N 1 -t 180 byte <&"${terminal[0]}"; then
			echo "the terminal does not show \"$1\""
			return 1
		fi
		shown+=$byte
		printf %s "$byte" >>"$log"
	done
	shown=${shown#*"$1"}
}

# The console in both directions, the prompt behind a key, and the terminal's settings afterwards.
# shellcheck disable=SC2016 # the guest's shell expands these
drive_prompt()
{
	shows 'guest:~# ' && types 'stty size; sleep 1000\r' && shows '30 90' &&
	# It ends the program in the guest, not the host.
	types '\0003' && shows 'guest:~# ' && types 'echo "status $?"\r' && shows 'status 130' &&
	types '\0035' && shows 'host> ' && types 'kvp set Greeting "good day"\r' && shows 'in pool external' &&
	# Here it ends the line, which is not carried out.
	types 'stop\0003' && shows 'host> stop' && shows 'host> ' && types 'kvp get Greeting\r' && shows 'Greeting = good day' &&
	types 'backup 5m\r' && shows 'ends the wait' && types 'echo "frozen $((6 * 7))"\r' && shows 'frozen 42' &&
	# Keys behind the one that ends the wait are a command.
	types '\0035kvp list\r' && shows 'backed up: frozen for' && shows '1 pair in pool external' &&
	# Up, then a line that is erased.
	types '\0033[A\r' && shows '1 pair in pool external' && types 'quit\0025help\r' && shows 'prints this list' &&
	types '\0035echo "again $((6 * 7))"\r' && shows 'again 42' &&
	# At the console the guest's shell gets it, and begins again. Before its prompt, the shell discards it.
	shows 'guest:~# ' && types '\0004' && shows 'built-in shell' &&
	types '\0035' && shows 'host> ' && types '\0004' && shows 'the machine is switched off' &&
	shows 'ended with 0' && wait "$script" && diff "$log.before" "$log.after"
}

# A host that is killed leaves neither its terminal raw nor its QEMU guest running.
drive_killed()
{
	local pid job left=300
	shows 'guest:~# ' || return
	pid=$(cat "$log.pid")
	job=$(grep -lF "progress.$pid.reading" build/guest/outer.*.cmd)
	# The guest's shell can be faster than the host.
	until [ "$(stty -g -F "$(cat "$log.tty")")" != "$(cat "$log.before")" ]; do
		left=$((left - 1))
		[ $left -gt 0 ] || { echo "the terminal is not raw"; return 1; }
		sleep 0.2
	done
	left=300
	kill -KILL "$pid"
	shows 'ended with 137' || return
	until [ "$(stty -g -F "$(cat "$log.tty")")" = "$(cat "$log.before")" ] && { [ -z "$job" ] || [ ! -e "$job" ]; }; do
		left=$((left - 1))
		[ $left -gt 0 ] || { echo "the terminal stays raw, or the QEMU guest runs on"; return 1; }
		sleep 0.2
	done
	rm -f "build/guest/progress.$pid.reading"
	types '\r'
	wait "$script"
}

# at_terminal DRIVER: the host at a terminal (script makes one) where DRIVER types; again if the emulation breaks down.
at_terminal()
{
	local log=$logs/shell-$1.log left=3 script shown command
	command="stty rows 30 cols 90; stty -g >$log.before; tty >$log.tty
		sh -c 'echo \$\$ >$log.pid; exec build/host/host'; echo \"ended with \$?\"
		if [ $1 = drive_killed ]; then read -r line; fi; stty -g >$log.after"
	while [ $left -gt 0 ]; do
		left=$((left - 1))
		: >"$log"
		shown=
		coproc terminal { exec script -qc "$command" /dev/null 2>&1; }
		# shellcheck disable=SC2154 # coproc assigns it
		script=$terminal_PID
		if "$1" >"$log.why" 2>&1 && [ ! -s "$log.why" ]; then
			return
		fi
		kill "$script" 2>/dev/null || true
		wait "$script" || true
		grep -q 'ended with 125' "$log" || break
	done
	cat "$log.why"
	tail -n 40 "$log"
}

step_shell()
{
	each "shell: every command" shell_session every &
	each "shell: wrong input" wrong_input
	each "shell: lines that fail" failing_lines
	each "shell: the end of input amid a backup" gone_amid_a_backup
	each "shell: a transcript replayed" replayed tests/shell/replay.transcript 6
	wait
	each "shell: every command, the module in C" shell_session every-c --module c &
	each "shell: a terminal" at_terminal drive_prompt
	each "shell: a killed host" at_terminal drive_killed
	each "shell: a transcript that the guest does not match" spoiled_replay
	wait
	if [ -e build/guest/debian-cloud-amd64.cpio ]; then
		each "shell: a guest without files of this project" foreign_session
	else
		echo "ok - shell: a guest without files of this project # SKIP no image: make build/guest/debian-cloud-amd64.cpio"
	fi
}

# The instructions and exits of cheap requests, compared with the committed baseline and with C.
step_bench()
{
	local key
	key=$( (peer; sha256sum build/guest/{rust,bench}-amd64.cpio) | sha256sum)
	remembered bench "$key" build/host/scenarios bench check
}

# make check-debug: all scenarios on the debug kernel, which takes half an hour.
step_debug()
{
	local status=0
	OUTER_TIMEOUT=5400 scenarios debug --module rust --vcpus 2 --vmbus 6.0 || status=$?
	scenarios debug --time emulated --module rust --vcpus 1 --vmbus 6.0 || status=$?
	return $status
}

# make check-more: the scenarios that make check has no time for.
step_more()
{
	OUTER_TIMEOUT=5400 scenarios amd64 --more yes --vcpus 1 --vmbus 6.0
}

# ssh_session FLAVOUR: runs ssh at the prompt, to Debian's sshd in the guest.
ssh_session()
{
	shell_session ssh --kernel "build/kernel/$1/vmlinux" --memory 1024 --initrd "build/guest/systemd-$1.cpio" \
		--initrd "build/guest/rust-$1.cpio" \
		--append "console=ttyS0 quiet panic=-1 nokaslr pci=off systemd.wants=hv-utils-rust-ssh.socket"
}

# make check-systemd: $REPEAT boots of each kind. Emulation takes minutes.
step_systemd()
{
	local pattern status=0
	for pattern in $(build/host/scenarios list | grep '^systemd'); do
		OUTER_TIMEOUT=3600 scenarios "${FLAVOUR:-amd64}" --module rust --vcpus 2 --vmbus 6.0 \
			--repeat "${REPEAT:-1}" || status=$?
	done
	each "shell: ssh" ssh_session "${FLAVOUR:-amd64}"
	return $status
}

# make check-packages: a boot of a guest where apt has installed the packages.
step_packaged()
{
	local pattern status=0
	for pattern in $(build/host/scenarios list | grep '^packaged'); do
		OUTER_TIMEOUT=3600 scenarios "${FLAVOUR:-cloud-amd64}" --module rust --vcpus 2 --vmbus 6.0 || status=$?
	done
	return $status
}

# make soak: runs all fuzzers on the debug kernel for the time $SOAK (90s, 10m, 1h), and the properties of the pure code for
# a twentieth of that time. Each run has new seeds.
step_soak()
{
	local seconds=${SOAK:-10m} pattern=fuzz
	case $seconds in
	*h) seconds=$((${seconds%h} * 3600)) ;;
	*m) seconds=$((${seconds%m} * 60)) ;;
	*) seconds=$((${seconds%s})) ;;
	esac
	export HV_FUZZ_SEED=${HV_FUZZ_SEED:-$(date +%s)}
	{
		HV_FUZZ_SECONDS=$((seconds / 20)) step_properties
		HV_FUZZ_SECONDS=$seconds OUTER_TIMEOUT=$((seconds + 1800)) \
			scenarios debug --module rust --vcpus 2 --vmbus 6.0
	} | tee "$logs/soak.said"
	awk -v seed="$HV_FUZZ_SEED" '
	/^# properties: / { inputs = $3 }
	/^# fuzz: .*, the last seed/ { messages += $3 }
	/^not ok/ { failed++ }
	END {
		printf "# soak: %d messages through the guest, %d inputs to the pure code, %d failures, seeds from %d\n",
			messages, inputs, failed, seed
	}' "$logs/soak.said"
}

# kind STEP: prints the summary's name for the tests of the step.
kind()
{
	case $1 in
	format | shellcheck | clippy | install | checkpatch | layers | log_texts | faults | choose) echo "source and build" ;;
	host | unit | properties | coverage) echo "unit tests" ;;
	bench) echo "benchmark" ;;
	*) echo "scenarios" ;;
	esac
}

# tally STEP <LOG: prints a line "KIND;passed;failed;skipped;kept" for each kind of test in the step's log. A result that
# was kept from an earlier run counts as kept only. Tests that run inside a scenario are a separate kind.
tally()
{
	awk -v kind="$(kind "$1")" '
	!/^(ok|not ok)/ { next }
	{ of = kind }
	/^(not )?ok - (kunit|selftests): / { of = "KUnit and kselftest" }
	!(of in seen) { seen[of]; order[++kinds] = of }
	/^not ok/ { failed[of]++; next }
	/# KEPT/ { kept[of]++; next }
	toupper($0) ~ /# SKIP/ { skipped[of]++; next }
	{ passed[of]++ }
	END {
		for (number = 1; number <= kinds; number++) {
			of = order[number]
			printf "%s;%d;%d;%d;%d\n", of, passed[of], failed[of], skipped[of], kept[of]
		}
	}'
}

# sum <TALLIES: adds the tallies of each kind.
sum()
{
	awk -F ';' '
	!($1 in seen) { seen[$1]; order[++kinds] = $1 }
	{ for (column = 2; column <= 5; column++) count[$1, column] += $column }
	END {
		for (number = 1; number <= kinds; number++) {
			of = order[number]
			printf "%s;%d;%d;%d;%d\n", of, count[of, 2], count[of, 3], count[of, 4], count[of, 5]
		}
	}'
}

# words <TALLIES: prints the tallies in words.
words()
{
	awk -F ';' '{
		printf "%-20s %4d run, %d failed; %d skipped; %d kept from an earlier run\n", $1 ":", $2 + $3, $3, $4, $5
	}'
}

: >"$logs/tallies"
: >"$logs/seconds"
# run STEP: runs the step, and adds its results to the tallies.
run()
{
	local log=$logs/$1.log start=$SECONDS status=0
	echo "check: $1"
	"step_$1" 2>&1 | tee "$log" || status=$?
	if [ -z "$pattern" ] && { ! grep -qE '^(not )?ok' "$log" || grep -q '^1\.\.0$' "$log"; }; then
		echo "not ok - $1: this step ran no test" | tee -a "$log"
	elif [ "$status" -ne 0 ] && ! grep -q '^not ok' "$log"; then
		echo "not ok - $1: ended with status $status" | tee -a "$log"
	fi
	tally "$1" <"$log" >"$log.tally"
	cat "$log.tally" >>"$logs/tallies"
	echo "check: $1, $((SECONDS - start)) s"
	echo "$((SECONDS - start)) $1" >>"$logs/seconds"
	words <"$log.tally" | sed 's/^/    /'
}

steps=(format shellcheck choose clippy install checkpatch layers log_texts faults host unit properties coverage shell scenarios kernels bench)
pattern=$word
for name in "${steps[@]}" debug more systemd packaged soak; do
	if [ "$name" = "$word" ]; then
		steps=("$word")
		pattern=${2:-}
	fi
done
if [ -n "$pattern" ] && [ "$word" != more ]; then
	steps=(unit scenarios)
fi
for name in "${steps[@]}"; do
	run "$name"
done
if ! [ -s "$logs/tallies" ]; then
	echo "not ok - no test has \"$word\" in its name"
	echo "no test;0;1;0;0" >"$logs/tallies"
fi
for name in "${steps[@]}"; do
	grep '^not ok' "$logs/$name.log" || true
done
# slowest: prints the ten scenarios that took longest, with their seconds.
slowest()
{
	sed -n 's/^ok [0-9]* \(.*\]\) \([0-9.]*\) s$/\2 \1/p' "${steps[@]/#/$logs/}" | sort -rn | head -n 10
}

# breakdowns: prints the number of breakdowns of the emulation, in all machines.
breakdowns()
{
	sed -n 's/^# breakdowns of the emulation: \([0-9]*\) of the inner guest, \([0-9]*\) of the outer.*/\1 \2/p' \
		"${steps[@]/#/$logs/}" | awk '{ count += $1 + $2 } END { print count + 0 }'
}

steps=("${steps[@]/%/.log}")
if [ "$(breakdowns)" -gt 3 ]; then
	echo "not ok - the emulation of processors broke down $(breakdowns) times"
	echo "scenarios;0;1;0;0" >>"$logs/tallies"
fi
# Names the scenarios that the C module failed at first: its chance faults are no failure of this module.
grep -h '^# the C module failed' "${steps[@]/#/$logs/}" || true
echo "check: seconds of each step"
awk '{ printf "%6d s  %s\n", $1, $2 }' "$logs/seconds"
echo "check: the slowest scenarios"
slowest | awk '{ printf "%8.1f s  ", $1; $1 = ""; print substr($0, 2) }'
sum <"$logs/tallies" | words
IFS=' ' read -r passed failed skipped < <(awk -F ';' '{ p += $2; f += $3; s += $4 } END { print p + 0, f + 0, s + 0 }' "$logs/tallies")
echo "$(build/host/scenarios list more | grep -c .) scenarios more: make check-more"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
