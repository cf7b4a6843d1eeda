"""Fifty boards at once through one gateway: is any of them left without a byte for 3 s, after which it gives up?

`flota up` and `flota gateway run` are processes of their own; the gateway has 50 boards at addresses of the loopback
network. The boards read as the vendor's library does (512 bytes at once, nothing while they erase), as fast as their
flash would let them, add up what they got, restart, and post their state to the gateway, which is its evidence.
A board's gap is how long one read waited for bytes. Beside it: the same boards fed by 50 threads with `sendall`.

    python benchmarks/gateway_fifty.py [--boards 50] [--json]
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import argparse
import asyncio
import base64
import contextlib
import json
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks._side_by_side import free_port

from flota.client.management import ManagementClient
from flota.images.ameba import pack_ota_file
from flota.lab.local_server import LocalServer
from flota.lab.sample_firmware import sample_ameba
from flota.protocols.ameba_http import OtaState, StatePost, pack_state_request
from flota.protocols.ameba_push import BodyBytes, EraseTarget, ImageComplete, PushReceiver, push_stream_start
from flota.protocols.ameba_push.receiver import READ_SIZE, RECEIVE_LIMIT_S
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners, pack_trust_file
from flota.virtual.agents.ameba_push import RECEIVE_WINDOW_BYTES
from flota.virtual.ameba_board import BODY_BYTES_PER_S, SECTOR_ERASE_S

IMAGE_BYTES = 512 * 1024
SECTOR_BYTES = 4096
PAY_FROM_S = 0.05
"""A board sleeps for what it has read once that is worth it: 50 boards share a core here."""

RESTART_S = 1.0
WITHIN_S = 180.0
GATEWAY_GOAL_MB = 60
NET = 29

CONFIG = """\
server = "{server}"
token_file = "token"
trust = "trust.json"
state = "state"
poll_s = 1
evidence_s = 60
mdns = false
check_ins = "127.0.0.1:{check_ins}"
"""


@dataclass
class Board:
    """Takes one push, then restarts. `longest_gap_s` is the longest wait of a read for bytes."""

    address: str
    port: int
    check_ins: int | None = None
    longest_gap_s: float = 0.0
    bytes_read: int = 0
    complete: bool = False
    reason: str = "nobody came"

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_WINDOW_BYTES)
            listener.setblocking(False)
            listener.bind((self.address, self.port))
            listener.listen(10)
            link, _ = await loop.sock_accept(listener)
        with link:
            link.setblocking(False)
            await self._take(link)
        if self.complete and self.check_ins is not None:
            await asyncio.sleep(RESTART_S)
            await self._check_in()

    async def _take(self, link: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        receiver, total, owed = PushReceiver(), 0, 0.0
        while not receiver.is_done:
            asked = time.monotonic()
            try:
                async with asyncio.timeout(RECEIVE_LIMIT_S):
                    data = await loop.sock_recv(link, READ_SIZE)
            except TimeoutError:
                self.longest_gap_s, self.reason = RECEIVE_LIMIT_S, "silence for 3 s"
                return
            self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - asked)
            if not data:
                self.reason = f"closed after {self.bytes_read} bytes"
                return
            self.bytes_read += len(data)
            owed += len(data) / BODY_BYTES_PER_S
            for event in receiver.feed(data):
                match event:
                    case EraseTarget(length):
                        owed += -(-length // SECTOR_BYTES) * SECTOR_ERASE_S
                    case BodyBytes(_, piece):
                        total += sum(piece)
                    case ImageComplete(signature, _, checksum, _):
                        self.complete = (total + sum(signature)) & 0xFFFF_FFFF == checksum
                        self.reason = "taken" if self.complete else "checksum error"
            if owed >= PAY_FROM_S:
                await asyncio.sleep(owed)
                owed = 0.0

    async def _check_in(self) -> None:
        assert self.check_ins is not None
        _, writer = await asyncio.open_connection("127.0.0.1", self.check_ins, local_addr=(self.address, 0))
        writer.write(pack_state_request("127.0.0.1", StatePost(OtaState.IDLE.value, "2.0.0")))
        await writer.drain()
        writer.close()
        await writer.wait_closed()


class Fleet:
    """Boards in a thread and loop of their own."""

    def __init__(self, count: int, net: int, check_ins: int | None) -> None:
        port = free_port()
        self.boards = [Board(f"127.0.{net}.{number + 1}", port, check_ins) for number in range(count)]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))

    async def _all(self) -> None:
        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(*(board.run() for board in self.boards))

    def __enter__(self) -> Fleet:
        self._thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def figures(self, seconds: float) -> dict[str, float]:
        return {
            "seconds": round(seconds, 2),
            "complete": sum(board.complete for board in self.boards),
            "longest_gap_s": round(max(board.longest_gap_s for board in self.boards), 3),
        }


def through_the_gateway(count: int, file: bytes) -> dict[str, float]:
    """Return what the boards saw behind a real server and gateway, and the gateway's memory."""
    with tempfile.TemporaryDirectory(prefix="flota-bench-") as directory, contextlib.ExitStack() as stack:
        root = Path(directory)
        server = stack.enter_context(LocalServer(root / "server", https=False))
        client = stack.enter_context(server.client())
        check_ins = free_port()
        key = PrivateKey.generate("p256")
        with Fleet(count, NET, check_ins) as fleet:
            prepare(client, key, file, fleet, root, server.address.http, check_ins)
            gateway = stack.enter_context(running_gateway(root))
            begun = time.monotonic()
            rollout = client.create_rollout("lamp@2.0.0", select="type=lamp", name="all").id
            while not client.rollout(rollout).is_final and time.monotonic() - begun < WITHIN_S:
                time.sleep(0.5)
            seconds = time.monotonic() - begun
            status = Path(f"/proc/{gateway.pid}/status").read_text()
            states = [execution.state for execution in client.executions(rollout)]
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    figures = fleet.figures(seconds)
    return figures | {"succeeded": states.count("SUCCEEDED"), "gateway_peak_mb": round(int(peak[1]) * 1024 / 1e6, 1)}


def prepare(
    client: ManagementClient, key: PrivateKey, file: bytes, fleet: Fleet, root: Path, url: str, check_ins: int
) -> None:
    """Make type, devices, a published release and the gateway's files."""
    client.add_type("lamp", "amebad", signers=[key.public_pem])
    lines = [CONFIG.format(server=url, check_ins=check_ins)]
    names = []
    for number, board in enumerate(fleet.boards):
        names.append(f"lamp-{number}")
        client.add_device(names[-1], "lamp")
        place = f'address = "{board.address}"\nport = {board.port}\n'
        lines.append(f'[[device]]\nname = "{names[-1]}"\ntype = "lamp"\n{place}')
    artifact = client.upload_bytes(file, "OTA_All.bin")
    release = client.create_release("lamp", "2.0.0", artifact.sha256, filename="OTA_All.bin")
    signature = key.sign(client.manifest(release.id))
    packed = base64.b64encode(signature.signature).decode()
    client.add_signature(release.id, signature.key_id, signature.algorithm, packed)
    client.publish(release.id)
    token = client.create_gateway_token("bench", devices=names).secret
    assert token is not None
    (root / "token").write_text(token)
    (root / "trust.json").write_bytes(pack_trust_file(TrustedSigners.of([key.public_pem])))
    (root / "gateway.toml").write_text("\n".join(lines))


@contextlib.contextmanager
def running_gateway(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Give a gateway's process."""
    command = [sys.executable, "-m", "flota", "gateway", "run", "--config", str(root / "gateway.toml")]
    with (root / "gateway.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def by_threads(count: int, file: bytes) -> dict[str, float]:
    """Return what the boards saw when 50 threads send to them."""

    def send(board: Board) -> None:
        with socket.create_connection((board.address, board.port)) as link:
            link.sendall(push_stream_start(file))
            link.sendall(file)
            link.recv(1)

    with Fleet(count, NET + 1, None) as fleet:
        begun = time.monotonic()
        threads = [threading.Thread(target=send, args=(board,)) for board in fleet.boards]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - begun
    return fleet.figures(seconds)


def main() -> int:
    """Print the figures; exit status 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boards", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    file = pack_ota_file(sample_ameba("2.0.0", size=IMAGE_BYTES))
    gateway, threads = through_the_gateway(given.boards, file), by_threads(given.boards, file)
    if given.json:
        print(json.dumps({"boards": given.boards, "bytes_each": len(file), "gateway": gateway, "threads": threads}))
    else:
        print(f"{given.boards} boards, {len(file)} bytes each, erase and write at the speed of the vendor's log")
        for name, found in (("gateway", gateway), ("threads", threads)):
            print(
                f"{name:<8} {found['seconds']:7.1f} s   {found['complete']:.0f} complete   "
                f"longest gap {found['longest_gap_s']:.3f} s (goal {RECEIVE_LIMIT_S:g})"
            )
        print(f"gateway  {gateway['gateway_peak_mb']:.1f} MB resident at most (goal {GATEWAY_GOAL_MB})")
    good = gateway["longest_gap_s"] < RECEIVE_LIMIT_S and gateway["succeeded"] == given.boards == gateway["complete"]
    return int(not good or gateway["gateway_peak_mb"] > GATEWAY_GOAL_MB)


if __name__ == "__main__":
    sys.exit(main())
