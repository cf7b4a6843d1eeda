"""Fifty boards at once through one gateway: is any of them left without a byte for 3 s, after which it gives up?

The peers are plain sinks that read at the speed of a board's flash and note the longest gap between two reads; beside
the gateway's figure stands that of the same sinks fed by 50 independent `sendall` threads.

    python -m benchmarks.gateway_fifty
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time

from flota.gateway.ameba import AmebaDriver
from flota.gateway.driver import AdoptedDevice
from flota.gateway.sightings import SightingBook
from tests.gateway.benches import ota

BOARDS = 50
FILE = ota(size=900_000)
BYTES_PER_S = 150_000.0
"""A board's network and flash together (docs/reference/ameba-push.md)."""

SPEED = 4.0
WINDOW = 16 * 1024
LIMIT_S = 3.0


class Sink:
    """Reads what is pushed to it as slowly as a board; `longest_gap_s` between two reads that brought something."""

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(1)
        self.port = self.listener.getsockname()[1]
        self.longest_gap_s = 0.0
        self.received = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self.listener.setblocking(False)
        connection, _ = await loop.sock_accept(self.listener)
        with connection:
            connection.setblocking(False)
            while self.received < len(FILE) + 12:
                asked = time.monotonic()
                data = await loop.sock_recv(connection, 4096)
                if not data:
                    return
                self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - asked)
                self.received += len(data)
                await asyncio.sleep(len(data) / BYTES_PER_S / SPEED)
        self.listener.close()


def _sinks() -> tuple[list[Sink], threading.Thread]:
    """Run the boards in a loop and thread of their own."""
    sinks = [Sink() for _ in range(BOARDS)]

    async def all_of_them() -> None:
        await asyncio.gather(*(sink.run() for sink in sinks))

    thread = threading.Thread(target=lambda: asyncio.run(all_of_them()))
    thread.start()
    return sinks, thread


async def _through_the_gateway(sinks: list[Sink]) -> float:
    driver = AmebaDriver(SightingBook())
    started = time.monotonic()

    async def one(sink: Sink) -> None:
        device = AdoptedDevice(str(sink.port), "amebad", "amebad", address="127.0.0.1", port=sink.port)
        await asyncio.sleep(random.random() * 0.1)
        sighting = driver.look(device)
        assert sighting is not None
        await driver.deliver(device, sighting, FILE, lambda _done, _total: None)

    await asyncio.gather(*(one(sink) for sink in sinks))
    return time.monotonic() - started


def _by_threads(sinks: list[Sink]) -> float:
    started = time.monotonic()

    def one(sink: Sink) -> None:
        with socket.create_connection(("127.0.0.1", sink.port)) as connection:
            connection.sendall(bytes(12) + FILE)
            connection.recv(1)

    threads = [threading.Thread(target=one, args=(sink,)) for sink in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started


def main() -> None:
    """Print the figures as JSON."""
    figures: dict[str, object] = {"boards": BOARDS, "bytes_each": len(FILE), "limit_s": LIMIT_S}
    for name in ("gateway", "threads"):
        sinks, thread = _sinks()
        seconds = asyncio.run(_through_the_gateway(sinks)) if name == "gateway" else _by_threads(sinks)
        thread.join()
        complete = sum(sink.received == len(FILE) + 12 for sink in sinks)
        gap = max(sink.longest_gap_s for sink in sinks)
        figures[name] = {"seconds": round(seconds, 2), "complete": complete, "longest_gap_s": round(gap, 3)}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
