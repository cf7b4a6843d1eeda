"""One reader under Atheris, in a process of its own: libFuzzer ends the process when it is done.

Usage: python -m tests.fuzz.coverage_guided NAME [libFuzzer options] [corpus directory]
"""

from __future__ import annotations

import random
import sys

import atheris  # type: ignore[import-not-found,unused-ignore]  # optional: `make fuzz` installs it where it can

with atheris.instrument_imports(include=["flota"]):
    from tests.fuzz.table import BY_NAME


def main() -> None:
    target = BY_NAME[sys.argv.pop(1)]
    repair = target.repair

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        """What libFuzzer would do, and then often the checksums put right."""
        mutated = bytearray(atheris.Mutate(data, max_size))
        if repair is not None and random.Random(number).random() < 0.6:
            repair(mutated)
        return bytes(mutated[:max_size])

    options = {} if repair is None else {"custom_mutator": mutate}
    atheris.Setup(sys.argv, target.run, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
