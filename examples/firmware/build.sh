#!/bin/sh
# Build the sample firmware: one small ELF a version (for AmebaD: and a core; for Nuvoton: and a board). Usage: build.sh [OUTPUT-DIRECTORY]
# Needs gcc-riscv64-unknown-elf and gcc-arm-none-eabi (Debian, Ubuntu). The same source and compilers give the same bytes.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
out=${1:-$here/built}
prefix=${CROSS_COMPILE:-riscv64-unknown-elf-}
arm=${CROSS_COMPILE_ARM:-arm-none-eabi-}
command -v "${prefix}gcc" >/dev/null || { echo "no ${prefix}gcc: apt-get install gcc-riscv64-unknown-elf" >&2; exit 1; }
command -v "${arm}gcc" >/dev/null || { echo "no ${arm}gcc: apt-get install gcc-arm-none-eabi" >&2; exit 1; }
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

build_ameba() { # CORE CPU VERSION BEHAVIOUR OUTPUT
    constant=$(printf %s "$4" | tr 'a-z-' 'A-Z_')
    "${arm}gcc" -mcpu="$2" -mthumb -mfloat-abi=soft -Os -std=c11 -ffreestanding -nostdlib -static \
        -Wall -Wextra -Werror -fno-common -ffunction-sections -fdata-sections -fno-ident -I "$here/src" \
        -DSAMPLE_VERSION="\"$3\"" -DSAMPLE_BEHAVIOUR="$constant" -DSAMPLE_BEHAVIOUR_NAME="\"$4\"" \
        -Wl,-T,"$1.ld" -Wl,--gc-sections -Wl,--build-id=none -Wl,-n -Wl,--no-warn-rwx-segments -Wl,--fatal-warnings \
        board.c ../src/crc32.c "$1.c" -lgcc -o "$out/$5.elf"
    "${arm}strip" --strip-all "$out/$5.elf"
    chmod 644 "$out/$5.elf"
}

cd "$here/ameba"
build_ameba km0 cortex-m23 0 healthy ameba-km0 # one for all versions, as the Arduino core has one prebuilt
build_ameba km4 cortex-m33 1.0.0 healthy ameba-km4-1.0.0
build_ameba km4 cortex-m33 2.0.0 healthy ameba-km4-2.0.0
build_ameba km4 cortex-m33 3.0.0 crash ameba-km4-3.0.0

build_nuvoton() { # BOARD CPU VERSION BEHAVIOUR [DEFINE]
    constant=$(printf %s "$4" | tr 'a-z-' 'A-Z_')
    # the M487's image begins at address 0, which the compiler would take for a null pointer
    "${arm}gcc" -mcpu="$2" -mthumb -mfloat-abi=soft -Os -std=c11 -ffreestanding -nostdlib -static \
        -fno-delete-null-pointer-checks -Wall -Wextra -Werror -fno-common -ffunction-sections -fdata-sections \
        -fno-ident -I "$here/src" -DSAMPLE_BOARD="\"$1\"" ${5:+"$5"} \
        -DSAMPLE_VERSION="\"$3\"" -DSAMPLE_BEHAVIOUR="$constant" -DSAMPLE_BEHAVIOUR_NAME="\"$4\"" \
        -Wl,-T,"$1.ld" -Wl,--gc-sections -Wl,--build-id=none -Wl,-n -Wl,--no-warn-rwx-segments -Wl,--fatal-warnings \
        board.c ../src/crc32.c app.c -lgcc -o "$out/$1-$3.elf"
    "${arm}strip" --strip-all "$out/$1-$3.elf"
    chmod 644 "$out/$1-$3.elf"
}

cd "$here/nuvoton"
build_nuvoton_versions() { # BOARD CPU [DEFINE]
    build_nuvoton "$1" "$2" 1.0.0 healthy "${3-}"
    build_nuvoton "$1" "$2" 1.0.1 healthy "${3-}"
    build_nuvoton "$1" "$2" 1.0.2 crash "${3-}"
    build_nuvoton "$1" "$2" 1.0.3 never-confirm "${3-}"
}
build_nuvoton_versions m487 cortex-m4
build_nuvoton_versions m2354 cortex-m23 -DSAMPLE_NON_SECURE
{ "${prefix}gcc" --version | head -n 1; "${arm}gcc" --version | head -n 1; } >"$out/COMPILER"
