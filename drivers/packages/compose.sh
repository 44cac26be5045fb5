#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# compose.sh FULL SOURCE ROOT RELEASE OUT [PLACE]: makes OUT, a tree to build modules in Rust against. OUT has links to the
# files of Debian's headers package for the kernel RELEASE, and copies of the metadata that this package lacks.
#   FULL     a build tree of the kernel, after make prepare
#   SOURCE   the kernel's source
#   ROOT     the folder with the unpacked headers and kbuild packages; empty if they are installed
#   PLACE    the final path of the tree, if not OUT
set -eu
full=$1
source=$2
headers=/usr/src/linux-headers-$4
root=$3
out=$5
place=${6:-$5}

common=$(sed -n 's|^include \(.*\)/Makefile$|\1|p' "$root$headers/Makefile")
kbuild=$(readlink "$root$headers/scripts")
kbuild=$(realpath -ms "$headers/$kbuild")
rm -rf "$out"
mkdir -p "$out/scripts" "$out/rust"
printf '%s\n' "KBUILD_OUTPUT=$place" "include $common/Makefile" >"$out/Makefile"
for file in .config .kernelvariables Module.symvers arch include tools vmlinux; do
	if [ -e "$root$headers/$file" ] || [ -L "$root$headers/$file" ]; then
		ln -s "$headers/$file" "$out/$file"
	fi
done
# Link the files of scripts, not the folder: further files are added to it.
for file in "$root$kbuild"/*; do
	ln -s "$kbuild/${file##*/}" "$out/scripts/"
done
for file in target.json rust_is_available_bindgen_libclang.h; do
	for from in "$full/scripts" "$source/scripts"; do
		if [ -e "$from/$file" ] && [ ! -e "$out/scripts/$file" ]; then
			cp "$from/$file" "$out/scripts/"
		fi
	done
done
cp "$full"/rust/lib*.rmeta "$source/rust/Makefile" "$out/rust/"
# Macros of the kernel crate include these files.
mkdir -p "$out/rust/kernel"
cp "$full"/rust/kernel/generated_arch_*_asm.rs "$out/rust/kernel/"
for file in "$full"/rust/lib*.so; do
	strip --strip-debug -o "$out/rust/${file##*/}" "$file"
done
