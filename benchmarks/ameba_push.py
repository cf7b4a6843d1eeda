"""The AmebaD sender: how fast it is into a sink, and how little it adds to what the board's flash needs.

1. 64 MiB into a process that throws everything away, side by side with a plain `sendall`. Goal: 0.9 of it or more.
2. The update task of the virtual board behind a real socket, its flash on a simulated clock; what is measured is how
   long the board had to wait for bytes. Goal: the whole update takes at most 1.05 of what erase, programming and
   check take alone. Fifty boards at once: gateway_fifty.py.

Usage: python benchmarks/ameba_push.py [MIB] [--json]
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import asyncio
import json
import random
import socket
import statistics
import subprocess
import threading
import time

from flota.boards.catalogue import board as board_named
from flota.images.ameba import pack_ota_file
from flota.lab.sample_firmware import sample_ameba
from flota.protocols.ameba_push import judge_push
from flota.transports.ameba_push import PushConnection
from flota.virtual.agents.ameba_update import UpdateTask
from flota.virtual.ameba_board import AmebaHardware
from flota.virtual.device import AppContext, Identity
from flota.virtual.flash import NorFlash
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.pace import Pace
from flota.virtual.slots import ResetReason, Restart

MIB = 1 << 20
ROUNDS = 7
LOGGED_IMAGE_BYTES = 737_280
"""The image of the vendor's serial log."""

GOAL_SENDER, GOAL_UPDATE = 0.9, 1.05
SINK = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
buffer = bytearray(1 << 20)
while True:
    link, _ = listener.accept()
    start = b""
    while len(start) < 12:
        start += link.recv(12 - len(start))
    left = int.from_bytes(start[8:12], "little")
    while left > 0 and (taken := link.recv_into(buffer)):
        left -= taken
    link.close()
"""


def plain_send(port: int, payload: bytes) -> float:
    """Return the seconds that connect, one `sendall` and the wait for the close take."""
    start = bytes(8) + len(payload).to_bytes(4, "little")
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(start)
        link.sendall(payload)
        while link.recv(4096):
            pass
    return time.perf_counter() - begun


def our_send(port: int, payload: bytes) -> float:
    """Return the same for our sender; the sum of the file is computed before it connects."""
    push = PushConnection("127.0.0.1", port, payload)
    begun = time.perf_counter()
    record = asyncio.run(push.run())
    took = time.perf_counter() - begun
    if record.sent != len(payload):
        raise RuntimeError(judge_push(record).reason)
    return took


def sender_figure(mib: int) -> dict[str, float]:
    """Return the throughputs (MiB/s) of both, and their ratio; the rounds alternate."""
    payload = random.Random(1).randbytes(mib * MIB)
    with subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True) as sink:
        try:
            assert sink.stdout is not None
            port = int(sink.stdout.readline())
            times = [(plain_send(port, payload), our_send(port, payload)) for _ in range(ROUNDS)]
        finally:
            sink.kill()
    plain, ours = (statistics.median(column) for column in zip(*times, strict=True))
    return {"plain_mib_s": mib / plain, "ours_mib_s": mib / ours, "ratio": plain / ours}


class SimulatedClock:
    """Seconds that the board spent on its flash; nobody waits for them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def sleep(self, seconds: float) -> None:
        """Pass the time at once."""
        self.seconds += seconds


async def one_update(image: bytes) -> tuple[float, float]:
    """Return the simulated seconds of the flash, and the real ones that the board waited for bytes."""
    clock = SimulatedClock()
    pace = Pace(1.0, clock.sleep)
    board = board_named("amebad")
    hardware = AmebaHardware(
        board, NorFlash.blank(board.flash_size, write_alignment=1), nvs=NonVolatileStore(), pace=pace
    )
    hardware.flash_app(sample_ameba("1.0.0"))
    report = hardware.boot()
    assert report.slots is not None
    identity = Identity("bench", board.name, "02:00:00:00:00:01", board.name)
    context = AppContext(
        identity, report.slots, NonVolatileStore(), pace, random.Random(1), ResetReason.POWER_ON, lambda *_: None
    )
    await pace.spend(0)
    clock.seconds = 0.0
    loop = asyncio.get_running_loop()
    waited = 0.0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        push = PushConnection("127.0.0.1", port, pack_ota_file(image))
        sender = threading.Thread(target=lambda: asyncio.run(push.run()))
        sender.start()
        link, _ = await loop.sock_accept(listener)
        with link:
            link.setblocking(False)

            async def read() -> bytes:
                nonlocal waited
                begun = time.perf_counter()
                data = await loop.sock_recv(link, 512)
                waited += time.perf_counter() - begun
                return data

            try:
                await UpdateTask(context).take(read)
            except Restart:
                pass
            else:
                raise RuntimeError("the board did not take the image")
        await asyncio.to_thread(sender.join)
    return clock.seconds, waited


def update_figure() -> dict[str, float]:
    """Return what the flash takes, what the update takes, and their ratio."""
    flash, waited = asyncio.run(one_update(sample_ameba("2.0.0", size=LOGGED_IMAGE_BYTES)))
    return {"flash_s": flash, "update_s": flash + waited, "ratio": (flash + waited) / flash}


def main() -> int:
    """Print both figures; exit status 1 if a goal is missed."""
    numbers = [word for word in sys.argv[1:] if word.isdecimal()]
    sender = sender_figure(int(numbers[0]) if numbers else 64)
    update = update_figure()
    if "--json" in sys.argv:
        print(json.dumps({"sender": sender, "update": update}))
    else:
        print(f"plain sendall   {sender['plain_mib_s']:8.0f} MiB/s")
        print(f"our sender      {sender['ours_mib_s']:8.0f} MiB/s   {sender['ratio']:.2f} of it (goal {GOAL_SENDER})")
        print(f"flash alone     {update['flash_s']:8.2f} s       {LOGGED_IMAGE_BYTES} bytes, simulated clock")
        print(f"whole update    {update['update_s']:8.2f} s       {update['ratio']:.3f} of it (goal {GOAL_UPDATE})")
    return int(sender["ratio"] < GOAL_SENDER or update["ratio"] > GOAL_UPDATE)


if __name__ == "__main__":
    sys.exit(main())
