#!/bin/sh
# Rebuild the sample firmware, compare it with the committed files, and run it in an emulator if one is there.
# Exit status 1: the files differ, a program does not behave, or there is no compiler.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
sh "$here/build.sh" "$fresh"

python=${PYTHON:-$here/../../.venv/bin/python}
[ -x "$python" ] || python=python3
if "$python" -c 'import elftools, unicorn' 2>/dev/null; then
    "$python" "$here/emulate.py" "$fresh"
    "$python" "$here/ameba/emulate.py" "$fresh"
    "$python" "$here/nuvoton/emulate.py" "$fresh"
else
    echo "not run in the emulator: $python has no unicorn (pip install unicorn pyelftools)"
fi

if ! cmp -s "$fresh/COMPILER" "$here/built/COMPILER"; then
    echo "built with another compiler, bytes not compared:" >&2
    echo "  committed: $(cat "$here/built/COMPILER")" >&2
    echo "  here:      $(cat "$fresh/COMPILER")" >&2
    exit 0
fi
if ! diff -r "$fresh" "$here/built"; then
    echo "examples/firmware/built is not what the source gives: run examples/firmware/build.sh" >&2
    exit 1
fi
echo "the same: $(ls "$fresh" | grep -c '\.elf$') files by $(paste -sd, "$fresh/COMPILER")"
