#!/bin/sh
# Build the sample firmware: one small ELF a version. Usage: build.sh [OUTPUT-DIRECTORY]
# Needs gcc-riscv64-unknown-elf (Debian, Ubuntu). The same source and compiler give the same bytes.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:-$here/built}
prefix=${CROSS_COMPILE:-riscv64-unknown-elf-}
command -v "${prefix}gcc" >/dev/null || { echo "no ${prefix}gcc: apt-get install gcc-riscv64-unknown-elf" >&2; exit 1; }
mkdir -p "$out"
out=$(CDPATH='' cd -- "$out" && pwd)
cd "$here/src"
export LC_ALL=C SOURCE_DATE_EPOCH=0

build() { # VERSION BEHAVIOUR
    constant=$(printf %s "$2" | tr 'a-z-' 'A-Z_')
    # zicsr is part of rv32i in the compiler's default sense of before 2019; newer ones want it named
    "${prefix}gcc" -march=rv32imc_zicsr -mabi=ilp32 -Os -std=c11 -ffreestanding -nostdlib -static \
        -Wall -Wextra -Werror -fno-common -ffunction-sections -fdata-sections -fno-ident \
        -DSAMPLE_VERSION="\"$1\"" -DSAMPLE_BEHAVIOUR="$constant" -DSAMPLE_BEHAVIOUR_NAME="\"$2\"" \
        -Wl,-T,esp32c3.ld -Wl,--gc-sections -Wl,--build-id=none -Wl,-n -Wl,--no-warn-rwx-segments -Wl,--fatal-warnings \
        start.S app_desc.c board.c crc32.c hooks.c main.c -o "$out/sample-$1.elf"
    "${prefix}strip" --strip-all "$out/sample-$1.elf"
    chmod 644 "$out/sample-$1.elf" # nothing to run here
}

build 1.0.0 healthy
build 2.0.0 healthy
build 3.0.0 crash
build 4.0.0 never-confirm
build 5.0.0 lose-network
"${prefix}gcc" --version | head -n 1 >"$out/COMPILER"
