#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# check-series.sh [STEP]...: tests the patches that make series has written. make check-series calls it. Steps:
#   apply   each patch applies, passes checkpatch.pl, and refers only to files and symbols that exist (30 s)
#   build   the tree builds without a warning after each patch that adds code, and in other configurations (25 min)
#   doc     rustdoc, Sphinx and get_abi.py have no warnings about files of the series
#   boot    the last tree's kernel with the driver built in passes scenarios and KUnit (20 min)
# Without arguments, runs all steps. Documentation/testing.rst documents them.
set -eu -o pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/../rust/kdir/lib.sh"
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/tell.sh"
what=check-series
cd "$top"
enter=$top/rust/kdir/enter
series=$build/series
source=$(readlink -f "$build/linux-source")
work=$build/check-series
tree=$work/linux
out=$work/out
# The patches that the tree has, if it has all of them.
applied=$work/applied
alone check-series

patches()
{
	find "$series" -maxdepth 1 -name '*.patch' | LC_ALL=C sort
}

# new_tree: creates a tree of hard links to the kernel's source. git apply replaces files instead of writing to them.
new_tree()
{
	rm -rf "$tree" "$applied"
	mkdir -p "$work"
	cp -al "$source" "$tree"
}

# apply FILE: applies a patch to the tree. git must not find this repository above it.
apply()
{
	GIT_CEILING_DIRECTORIES=$work git -C "$tree" apply -v "$1"
}

# ---- apply

# new_repository: creates a repository with the kernel's files that the patches change.
new_repository()
{
	local file
	rm -rf "$work/am"
	git init --quiet --initial-branch=base "$work/am"
	while read -r file; do
		[ -e "$source/$file" ] || continue
		mkdir -p "$work/am/$(dirname "$file")"
		cp "$source/$file" "$work/am/$file"
	done < <(patches | xargs sed -n 's|^--- a/||p' | LC_ALL=C sort -u)
	am add --force --all
	am commit --quiet -m base
	am tag parent
}

am()
{
	git -C "$work/am" -c user.name=check -c user.email=check@example.invalid -c commit.gpgsign=false "$@"
}

# clean FILE: a patch passes checkpatch.pl. Ignored warnings:
#   MISSING_SIGN_OFF   Submitters add their own: see Documentation/series/README.rst.
#   FILE_PATH_CHANGES  Patterns in MAINTAINERS cover the new files, or the series adds an entry.
#   LONG_LINE          rustfmt formats Rust files, but cannot break patterns of macros and some bounds. make check runs
#                      checkpatch.pl for the C files, without this exception.
# Discard stderr: spdxcheck.py complains there if a Python package is not installed.
clean()
{
	local said status=0
	said=$("$enter" perl "$source/scripts/checkpatch.pl" --root="$source" --strict --quiet --no-summary --show-types \
		--ignore MISSING_SIGN_OFF,FILE_PATH_CHANGES,LONG_LINE - <"$1" 2>/dev/null) || status=$?
	echo "$said"
	[ -z "$said" ] && [ "$status" -eq 0 ]
}

# added PATHSPEC: prints the lines that the patches so far add to these files: the file, a tab, the line.
added()
{
	am diff --unified=0 parent HEAD -- "$1" |
		awk '/^\+\+\+ b\// { file = substr($0, 7) } /^\+[^+]/ { print file "\t" substr($0, 2) }'
}

# have FILE...: the tree has one of the files.
have()
{
	local file
	for file; do
		[ ! -e "$work/am/$file" ] && [ ! -e "$source/$file" ] || return 0
	done
	return 1
}

# absent: prints references of makefiles, Kconfig files, #include and mod lines to what the tree does not have.
absent()
{
	local file line dir word
	while IFS=$'\t' read -r file line; do
		dir=$(dirname "$file")
		for word in ${line#*=}; do
			case $line,$word in
			TARGETS*) have "$dir/$word/Makefile" ;;
			*,*.o) have "$dir/${word%.o}".{rs,c} || grep -q "^${word%.o}-y" "$work/am/$file" ;;
			*,*/) have "$dir/${word}Makefile" ;;
			esac || echo "$file: $word"
		done
	done < <(added '*Makefile')
	while IFS=$'\t' read -r file line; do
		[[ $line =~ ^(pub(\([a-z]*\))?\ )?mod\ ([a-z_]+)\;$ ]] || continue
		word=${BASH_REMATCH[3]}
		dir=$(dirname "$file")
		have {"$dir","${file%.rs}"}/"$word"{.rs,/mod.rs} || echo "$file: mod $word"
	done < <(added '*.rs')
	while IFS=$'\t' read -r file line; do
		dir=$(dirname "$file")
		[[ $line =~ ^\#include\ [\<\"](.*)[\>\"]$ ]] || continue
		word=${BASH_REMATCH[1]}
		have {"$dir",include,include/asm-generic,arch/x86/include,tools/testing/selftests}/"$word" ||
			case $file,$word in tools/*) ;; *) echo "$file: #include $word" ;; esac
	done < <(added '*.[ch]')
	while IFS=$'\t' read -r file line; do
		[[ $line =~ ^[[:space:]]*(depends\ on|select)\  ]] || continue
		grep -oE '\b[A-Z][A-Z0-9_]+\b' <<<"$line" | while read -r word; do
			grep -qx "$word" "$work/symbols" || grep -q "^config $word\$" "$work/am/$file" || echo "$file: $word"
		done
	done < <(added '*Kconfig')
}

# complete: each source file and each helper function is in one patch.
complete()
{
	local taken left
	taken=$(sed -n 's/^take \([^ ]*\) .*/\1/p' Documentation/series/*.txt | LC_ALL=C sort)
	[ -z "$(uniq -d <<<"$taken")" ] || { echo "taken twice:"; uniq -d <<<"$taken"; return 1; }
	# The last pattern has the files that the kernel's own files replace.
	left=$(git ls-files rust/hyperv drivers/hv samples tests/selftests Documentation/ABI | LC_ALL=C sort | comm -23 - <(echo "$taken") |
		grep -vxE 'rust/hyperv/(hyperv|bindings|compat)\.rs|rust/hyperv/linux/(mod|module)\.rs|drivers/hv/Kbuild|samples/(Kbuild|README\.rst)' || true)
	# Kernels before 7.3 need the helper functions spin_*.
	left+=$(grep -ohE '\brust_helper_[a-z_]*' rust/helpers/helpers.h | sed 's/^rust_helper_//' | LC_ALL=C sort -u |
		comm -23 - <(sed -n 's/^helpers [^ ]* [^ ]* [^ ]* //p' Documentation/series/*.txt | tr ' ' '\n' | LC_ALL=C sort -u) |
		grep -v '^spin_' || true)
	[ -z "$left" ] || { echo "$left"; return 1; }
}

step_apply()
{
	local file name said
	tell "no file is left out" complete || true
	find "$source" -name 'Kconfig*' -type f -exec sed -nE 's/^(menu)?config ([A-Z0-9_]+)$/\2/p' {} + >"$work/symbols"
	new_repository
	while read -r file; do
		name=$(basename "$file" .patch)
		name=${name%%-*}
		tell "$name applies" am am --quiet --whitespace=error-all "$file" || return 0
		tell "$name is clean" clean "$file" || true
		said=$(absent)
		tell "$name refers to nothing that is not there" test -z "$said" || echo "$said"
	done < <(patches)
}

# ---- build

# Whether the driver is a module (m) or built in (y).
driver=m

# configuration: prints the debug kernel's configuration without its debugging options, and that of the series.
configuration()
{
	sed -e '/^# What finds faults/,$d' -e '/HYPERV_UTILS/d' rust/kdir/debug-kernel.config
	cat Documentation/series/config
	echo "CONFIG_HYPERV_UTILS_RUST=$driver"
}

kmake()
{
	"$enter" make -s -C "$tree" O="$out" LOCALVERSION= -j "$(nproc)" "$@"
}

# configured LAST: configures the tree. If LAST is not empty, every option must be set.
configured()
{
	local lost
	mkdir -p "$out"
	configuration >"$work/config"
	kmake KCONFIG_ALLCONFIG="$work/config" tinyconfig >/dev/null || return
	[ -n "$1" ] || return 0
	lost=$(grep '^CONFIG_' "$work/config" | grep -vxFf "$out/.config" || true)
	[ -z "$lost" ] || { echo "the configuration lacks: $lost"; return 1; }
}

# without_warning COMMAND...: runs a command that succeeds, and has no warning about a file of the series.
without_warning()
{
	local said
	said=$("$@" 2>&1) || { echo "$said"; return 1; }
	echo "$said"
	! grep -iE -A 8 'warning' <<<"$said" | grep -qF -f <(patches | xargs sed -n 's|^+++ b/||p')
}

# silent TARGET...: makes the targets, without a warning about a file of the series.
silent()
{
	without_warning kmake "$@"
}

# small_frames: no function of the driver, the vmbus module and their tests has a stack frame above the kernel's limit for C.
small_frames()
{
	local limit said
	limit=$(sed -n 's/^CONFIG_FRAME_WARN=//p' "$out/.config")
	# shellcheck disable=SC2016 # these variables are perl's
	said=$("$enter" objdump -d --no-show-raw-insn "$out/drivers/hv/hv_utils_rust/hv_utils_rust.o" "$out/rust/kernel.o" |
		LIMIT=$limit perl -ne '$function = $1 if /^[0-9a-f]+ <(.*)>:/;
			print "$function: ", hex $1, " bytes\n"
				if $function =~ /hv_utils|vmbus/ && /sub +\$0x([0-9a-f]{1,7}),%rsp/ && hex $1 > $ENV{LIMIT}')
	echo "$said"
	[ -n "$limit" ] && [ -z "$said" ]
}

# other OPTION=VALUE...: the last tree builds and links with other options, in a folder of its own.
other()
{
	local out=$work/other option name
	mkdir -p "$out"
	configuration >"$work/other.config"
	for option; do
		name=CONFIG_${option%%=*}
		sed -i "/^$name=/d" "$work/other.config"
		echo "CONFIG_$option" >>"$work/other.config"
	done
	kmake KCONFIG_ALLCONFIG="$work/other.config" tinyconfig >/dev/null || return
	for option; do
		name=CONFIG_${option%%=*}
		case $option in
		*=n) ! grep "^$name=" "$out/.config" ;;
		*) grep -qx "CONFIG_$option" "$out/.config" ;;
		esac || { echo "the configuration lacks $option"; return 1; }
	done
	silent vmlinux modules
}

# Builds the kernel crate and the driver's folders after each patch, then the kernel.
step_build()
{
	local file name targets=(prepare) last
	last=$(patches | tail -n 1)
	new_tree
	while read -r file; do
		name=$(basename "$file" .patch)
		name=${name%%-*}
		tell "$name applies to the tree" apply "$file" || return 0
		grep -qE '^\+\+\+ b/(rust|drivers|samples|include)/' "$file" || continue
		! grep -q '^+++ b/samples/rust/' "$file" || targets+=(samples/rust/)
		! grep -q '^+++ b/drivers/hv/hv_utils_rust/' "$file" || targets+=(drivers/hv/)
		tell "$name is configured" configured "" || true
		tell "$name builds" silent W=1 CLIPPY=1 "${targets[@]}" || true
	done < <(patches)
	patches | xargs cat >"$applied"
	tell "the configuration is as it should be" configured "$last" || true
	tell "the kernel builds" silent bzImage modules || true
	tell "no function has a large stack frame" small_frames || true
	tell "the kernel builds with PTP as a module" other PTP_1588_CLOCK=m || true
	tell "the kernel builds without sleep" other HIBERNATION=n SUSPEND=n || true
	tell "the kernel builds without tracepoints" other FTRACE=n || true
	tell "the kernel builds without VMBus" other HYPERV=n || true
	tell "the selftests build" "$enter" make -s -C "$tree/tools/testing/selftests/hv_utils" OUTPUT="$work" || true
}

# whole_tree: creates the tree with all patches, if it is not there, and configures it.
whole_tree()
{
	local file
	if ! patches | xargs cat | cmp -s - "$applied"; then
		new_tree
		while read -r file; do
			apply "$file" || return
		done < <(patches)
		patches | xargs cat >"$applied"
	fi
	configured last
}

# ---- doc

step_doc()
{
	tell "the tree is configured" whole_tree || return 0
	tell "rustdoc" silent rustdoc || true
	tell "Sphinx is installed" "$top/rust/kdir/root.sh" "$suite" python3-sphinx python3-yaml || return 0
	tell "Sphinx" silent SPHINXDIRS=virt/hyperv htmldocs || true
	tell "the ABI" without_warning "$enter" "$tree/tools/docs/get_abi.py" --dir "$tree/Documentation/ABI" validate || true
}

# ---- boot

# selftests_image: makes the archive with the selftests, which run as a scenario.
selftests_image()
{
	local selftests=$tree/tools/testing/selftests file files=()
	for file in "$selftests"/hv_utils/*; do
		[ ! -f "$file" ] || files+=("/selftests/hv_utils/$(basename "$file")=$file")
	done
	tests/guest/module-cpio.sh "$build/guest/rust-series.cpio" "${files[@]}" \
		"/selftests/kselftest/ktap_helpers.sh=$selftests/kselftest/ktap_helpers.sh"
}

# Boots the kernel as flavour "series", with the driver built in. Runs the scenarios that neither insert nor remove a module.
step_boot()
{
	local kernel=$build/kernel/series
	driver=y
	tell "the tree is configured with the driver built in" whole_tree || return 0
	tell "the kernel builds with the driver" silent bzImage modules || return 0
	rm -rf "$kernel" "$build"/guest/*-series.cpio
	mkdir -p "$kernel"
	tell "the modules are installed" kmake INSTALL_MOD_PATH="$kernel" modules_install || return 0
	cp "$out/arch/x86/boot/bzImage" "$kernel/vmlinuz"
	cp "$out/include/config/kernel.release" "$kernel/release"
	touch "$kernel/.ready"
	tell "the host" make -s host build/guest/outer.cpio || return 0
	tell "the guest's image" tests/guest/images.sh inner-series || return 0
	tell "the daemons' image" tests/guest/images.sh daemons-series || return 0
	tell "the selftests' image" selftests_image || return 0
	OUTER_TIMEOUT=${OUTER_TIMEOUT:-3600} "$enter" build/host/scenarios --flavour series --module rust --vcpus 2 --vmbus 6.0 \
		check 2>&1 </dev/null | sed -u 's/\r//' || failed=1
}

[ -n "$(patches)" ] || die "there are no patches" "make series writes them"
steps=("$@")
[ $# -gt 0 ] || steps=(apply build doc boot)
mkdir -p "$work"
for name in "${steps[@]}"; do
	echo "check-series: $name"
	"step_$name"
done
[ "$failed" -eq 0 ]
