"""How long `inspect()` takes on a 4 MiB image, against reading and SHA-256-hashing the same file; and `flota --help`.

Goals: at most 3 times as long; under 0.3 s of CPU. Where the processor has instructions for SHA-256, hashing is so
cheap that the ratio is at its worst.
"""

from __future__ import annotations

# ruff: noqa: E402
import sys
from pathlib import Path

# This file is called like a module of the standard library: its directory must not be searched by what follows.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import hashlib
import os
import random
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable

from flota.images.esp_app import pack_app
from flota.images.esp_chips import MIB, chip_named
from flota.images.esp_layout import AppIdentity, MemoryPiece, PackOptions, build_app
from flota.images.inspection import inspect
from flota.images.model import ImageFormat

IMAGE_SIZE = 4 * MIB
RUNS = 5
GOAL_RATIO = 3.0
GOAL_HELP_CPU_S = 0.3


def image_of_size(size: int) -> bytes:
    """An ESP32-C3 app image of exactly `size` bytes: random data, in the proportions of a real Arduino app.

    42 % constants, 48 % code, 7 % RAM, the rest not loaded.
    """
    rng = random.Random(1)
    pieces = [
        MemoryPiece(0x3C00_0120, rng.randbytes(size * 42 // 100 // 4 * 4)),
        MemoryPiece(0x4200_0020, rng.randbytes(size * 48 // 100 // 4 * 4)),
        MemoryPiece(0x4038_0000, rng.randbytes(size * 7 // 100 // 4 * 4)),
    ]
    options = PackOptions(pad_to=size, padding=rng.randbytes(4096))
    chip = chip_named("esp32-c3")
    return pack_app(
        build_app(pieces, chip=chip, entry=0x4200_0020, identity=AppIdentity("1.0", "bench"), options=options)
    )


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process: the file is in the page cache, and other work on the machine must not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def inspect_ratio(path: Path) -> tuple[float, float, float]:
    """Median seconds of hashing and of inspecting (both with reading), and the median of the ratios of the pairs."""
    hashing, inspecting = [], []
    for _ in range(RUNS + 1):
        hashing.append(seconds(lambda: hashlib.sha256(path.read_bytes()).digest()))
        inspecting.append(seconds(lambda: inspect(path.read_bytes())))
    ratios = [ours / theirs for ours, theirs in zip(inspecting[1:], hashing[1:], strict=True)]
    return statistics.median(hashing[1:]), statistics.median(inspecting[1:]), statistics.median(ratios)


def help_cpu_s() -> float:
    """Median CPU seconds (user and system) of `flota --help`."""
    spent = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "flota", "--help"], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(spent)


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "app.bin"
        path.write_bytes(image_of_size(IMAGE_SIZE))
        found = inspect(path.read_bytes())
        assert found.format is ImageFormat.ESP_APP
        assert found.errors == ()
        assert found.file_size == IMAGE_SIZE
        hashing, inspecting, ratio = inspect_ratio(path)
    print(f"read and SHA-256 4 MiB   {hashing * 1000:7.2f} ms CPU")
    print(f"read and inspect 4 MiB   {inspecting * 1000:7.2f} ms CPU")
    print(f"ratio                    {ratio:7.2f}     (goal: at most {GOAL_RATIO})")
    cpu = help_cpu_s()
    print(f"flota --help             {cpu:7.3f} s CPU (goal: under {GOAL_HELP_CPU_S})")
    print(f"machine                  {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    return 0 if ratio <= GOAL_RATIO and cpu < GOAL_HELP_CPU_S else 1


if __name__ == "__main__":
    sys.exit(main())
