"""Downloads against nginx on the same file: rate, CPU per GB, small ranges with the token check, stalled readers.

Run: python benchmarks/download.py [--rounds 5] [--only tls|h2c|ranges]. The servers alternate; a figure is the median
of the rounds' ratios. Beside it stands the floor: the same ratio for our listeners with a handler that checks nothing,
sends whole files by `pathsend` and parts from memory.
"""

from __future__ import annotations

import sys

if not __package__:
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import argparse
import socket
import statistics
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import h2.connection
import h2.settings
from benchmarks._side_by_side import Load, Rival, h2load, rivals

WAYS = ("tls", "h2c")
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
    parser.add_argument("--only", choices=(*WAYS, "ranges"), help="whole files this way, or small ranges")
    asked = parser.parse_args()
    rounds: int = asked.rounds
    with rivals() as (flota, nginx, bare):
        for way in [way for way in WAYS if asked.only in (None, way)]:
            runs = alternate((flota, nginx, bare), way, rounds, requests=WHOLE_REQUESTS)
            verdict(f"4 MiB, {way}: rate", runs, _bytes_per_s, at_least=RATE_GOAL)
            verdict(f"4 MiB, {way}: CPU per GB", runs, _cpu_s_per_gb, at_most=CPU_GOAL)
            print("   ", ", ".join(" : ".join(f"{load.bytes_per_s / 1e6:.0f}" for load in run) for run in runs), "MB/s")
            print("   ", ", ".join(" : ".join(f"{load.cpu_s_per_gb:.2f}" for load in run) for run in runs), "s/GB")
        if asked.only in WAYS:
            return
        for way in ("h2c", "tls"):
            runs = alternate((flota, nginx, bare), way, rounds, requests=RANGE_REQUESTS, headers=(RANGE,))
            verdict(f"4 KiB ranges, {way}, token checked: rate", runs, _requests_per_s, at_least=RANGE_GOAL)
            print("   ", ", ".join(" : ".join(f"{load.requests_per_s:.0f}" for load in run) for run in runs), "per s")
        if asked.only is not None:
            return
        for way in ("h1", "h2c"):
            stalled(flota, way)


def alternate(
    servers: tuple[Rival, ...], way: str, rounds: int, *, requests: int, headers: tuple[str, ...] = ()
) -> list[tuple[Load, ...]]:
    """Return one run of each server a round, in their order here, after one of each to warm up."""
    for server in servers:
        h2load(server, way, requests=CONNECTIONS, connections=CONNECTIONS, headers=headers)
    runs = []
    for number in range(rounds):
        loads = {
            server.name: h2load(server, way, requests=requests, connections=CONNECTIONS, headers=headers)
            for server in (servers if number % 2 == 0 else servers[::-1])
        }
        runs.append(tuple(loads[server.name] for server in servers))
    return runs


def stalled(flota: Rival, way: str) -> None:
    """Open readers that take a header and nothing more; print what they cost and that others are served."""
    parts = urlsplit(flota.urls[way])
    target = f"{parts.path}?{parts.query}"
    before = flota.resident_mb()
    readers = []
    for _ in range(STALLED_READERS):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((parts.hostname, parts.port))
        reader.sendall(wide_http2_get(target) if way == "h2c" else f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        reader.recv(64)
        readers.append(reader)
    cost = settled_mb(flota) - before
    load = h2load(flota, "h1", requests=50, connections=1, headers=(RANGE,))
    print(f"{STALLED_READERS} stalled readers, {way}: {cost:.0f} MB more; others: {load.requests_per_s:.0f} req/s")
    for reader in readers:
        reader.close()


def settled_mb(server: Rival) -> float:
    """Return its resident memory (MB) once that grows no more: on a busy machine bodies are handed over for seconds."""
    last = 0.0
    while (now := server.resident_mb()) > last + 1:
        last = now
        time.sleep(2)
    return now


def wide_http2_get(target: str) -> bytes:
    """Return what a client sends that asks for `target` and opens its windows as wide as they go: the worst reader."""
    connection = h2.connection.H2Connection()
    widest = (1 << 31) - 1
    connection.local_settings = h2.settings.Settings(
        client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: widest}
    )
    connection.initiate_connection()
    connection.increment_flow_control_window(widest - 65_535)
    request = {":method": "GET", ":path": target, ":scheme": "http", ":authority": "x"}
    connection.send_headers(1, list(request.items()), end_stream=True)
    return connection.data_to_send()


def verdict(
    what: str,
    runs: list[tuple[Load, ...]],
    figure: Callable[[Load], float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    """Print the median of flota's ratios to nginx beside its goal, and that of bare granian."""
    ratio = statistics.median(figure(flota) / figure(nginx) for flota, nginx, _ in runs)
    floor = statistics.median(figure(bare) / figure(nginx) for _, nginx, bare in runs)
    met = ratio >= at_least if at_least is not None else ratio <= (at_most or 0)
    goal = f">= {at_least}" if at_least is not None else f"<= {at_most}"
    said = "met" if met else "NOT MET"
    print(f"{what}: {ratio:.2f} of nginx (goal {goal}: {said}; bare granian {floor:.2f})", flush=True)


def _bytes_per_s(load: Load) -> float:
    return load.bytes_per_s


def _cpu_s_per_gb(load: Load) -> float:
    return load.cpu_s_per_gb


def _requests_per_s(load: Load) -> float:
    return load.requests_per_s


if __name__ == "__main__":
    main()
