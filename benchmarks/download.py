"""Downloads against nginx on the same file: rate, CPU per GB, small ranges with the token check, stalled readers.

Run: python benchmarks/download.py [--rounds 5]. Both servers alternate; a figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import sys

if not __package__:
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import argparse
import socket
import statistics
import time
from urllib.parse import urlsplit

from benchmarks._side_by_side import Load, Rival, h2load, rivals

CONNECTIONS = 50
WHOLE_REQUESTS = 400
RANGE_REQUESTS = 20_000
STALLED_READERS = 300
RANGE = "range: bytes=1048576-1052671"

RATE_GOAL = 0.8
CPU_GOAL = 1.3
RANGE_GOAL = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with rivals() as (flota, nginx):
        for way in ("tls", "h2c"):
            pairs = alternate(flota, nginx, way, rounds, requests=WHOLE_REQUESTS)
            verdict(f"4 MiB, {way}: rate", [a.bytes_per_s / b.bytes_per_s for a, b in pairs], at_least=RATE_GOAL)
            verdict(f"4 MiB, {way}: CPU per GB", [a.cpu_s_per_gb / b.cpu_s_per_gb for a, b in pairs], at_most=CPU_GOAL)
            print("   ", ", ".join(f"{a.bytes_per_s / 1e6:.0f}:{b.bytes_per_s / 1e6:.0f} MB/s" for a, b in pairs))
        for way in ("h2c", "tls"):
            pairs = alternate(flota, nginx, way, rounds, requests=RANGE_REQUESTS, headers=(RANGE,))
            ratios = [a.requests_per_s / b.requests_per_s for a, b in pairs]
            verdict(f"4 KiB ranges, {way}, token checked: rate", ratios, at_least=RANGE_GOAL)
            print("   ", ", ".join(f"{a.requests_per_s:.0f}:{b.requests_per_s:.0f} per s" for a, b in pairs))
        stalled(flota)


def alternate(
    flota: Rival, nginx: Rival, way: str, rounds: int, *, requests: int, headers: tuple[str, ...] = ()
) -> list[tuple[Load, Load]]:
    """Return one pair of runs a round, after one of each to warm up."""
    for rival in (flota, nginx):
        h2load(rival, way, requests=CONNECTIONS, connections=CONNECTIONS, headers=headers)
    pairs = []
    for number in range(rounds):
        order = (flota, nginx) if number % 2 == 0 else (nginx, flota)
        loads = {
            rival.name: h2load(rival, way, requests=requests, connections=CONNECTIONS, headers=headers)
            for rival in order
        }
        pairs.append((loads["flota"], loads["nginx"]))
    return pairs


def stalled(flota: Rival) -> None:
    """Open readers that take a header and nothing more; print what they cost and that others are served."""
    parts = urlsplit(flota.urls["h1"])
    before = flota.resident_mib()
    request = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    readers = []
    for _ in range(STALLED_READERS):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((parts.hostname, parts.port))
        reader.sendall(request)
        reader.recv(64)
        readers.append(reader)
    time.sleep(1)
    cost = flota.resident_mib() - before
    load = h2load(flota, "h1", requests=50, connections=1, headers=(RANGE,))
    print(f"{STALLED_READERS} stalled readers: {cost:.0f} MiB more; others: {load.requests_per_s:.0f} req/s")
    for reader in readers:
        reader.close()


def verdict(what: str, ratios: list[float], *, at_least: float | None = None, at_most: float | None = None) -> None:
    """Print the median of the ratios beside its goal."""
    ratio = statistics.median(ratios)
    met = ratio >= at_least if at_least is not None else ratio <= (at_most or 0)
    goal = f">= {at_least}" if at_least is not None else f"<= {at_most}"
    print(f"{what}: {ratio:.2f} of nginx (goal {goal}: {'met' if met else 'NOT MET'})", flush=True)


if __name__ == "__main__":
    main()
