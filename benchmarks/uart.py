"""How fast an image goes over the serial line between an NCP and its MCU, and what fifty such lines cost.

    python benchmarks/uart.py

The line is simulated: bytes take the time that the rate asks for, and the time that both machines really take is added
to the simulated clock. The bound is what framing, escapes and the way there and back of each answer allow: the wire
time of all frames that an update of this image needs, and the turnarounds. Ratio 1 would be a machine of no cost.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import os
import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from flota.protocols.blynk.catalogue import OTA_WRITE
from flota.protocols.blynk.frames import pack_frame
from flota.protocols.blynk.mcu import Mcu, McuSettings
from flota.protocols.blynk.mcu_states import ChunkArrived, McuPolicy, OfferMade, ReceivingBegan, VerifyImage
from flota.protocols.blynk.messages import Invoke, Result, pack_message
from flota.protocols.blynk.ncp import LinkCommand, Ncp, NcpSettings
from flota.protocols.blynk.ncp_job import FileDigests, FirmwareInfo, NcpUpdateSettings, NeedBytes, UpdateJob
from flota.protocols.blynk.ncp_states import UpdateState
from flota.protocols.blynk.values import pack_values
from flota.virtual.uart_line import BITS_A_BYTE, LineEnd, Wire, simulate

IMAGE_SIZE = 512 * 1024
CHUNK = 1520
BAUDS = (115_200, 921_600)
TURNAROUNDS_S = (0.0, 0.002, 0.020)
LINES = 50
INFO = FirmwareInfo("TMPLabcd1234", "1.2.3", "Nov 16 2023 20:35:55", "0.7.0")


@dataclass
class Timed:
    """A machine, and the processor time that it took; the clock that it sees is that much late."""

    machine: Ncp | Mcu
    spent_s: float = 0.0
    on: bool = False
    commands: list[LinkCommand] = field(default_factory=list)

    def receive(self, data: bytes, *, now: float) -> Sequence[object]:
        began = time.process_time()
        events = self.machine.receive(data, now=now)
        self.spent_s += time.process_time() - began
        return events

    def deadline_passed(self, *, now: float) -> Sequence[object]:
        return self.machine.deadline_passed(now=now)

    def next_deadline(self) -> float | None:
        return self.machine.next_deadline()

    def link_commands(self) -> list[LinkCommand]:
        began = time.process_time()
        commands = self.machine.link_commands()
        self.spent_s += time.process_time() - began
        return commands


@dataclass
class Run:
    """One update: seconds of the stream on the simulated clock, and the processor time of the NCP's side."""

    image: bytes
    baud: int
    turnaround_s: float
    began: float | None = None
    ended: float | None = None
    received: int = 0
    ncp_cpu_s: float = 0.0

    def go(self) -> None:
        update = NcpUpdateSettings(settle_s=0)
        self.ncp = Ncp(NcpSettings(update=update), now=0.0)
        self.mcu = Mcu(McuSettings(INFO, raises_to=self.baud, policy=McuPolicy(chunk=CHUNK)), now=0.0)
        rng = random.Random(1)
        self.timed = Timed(self.ncp)
        mcu_end = LineEnd(self.mcu, Wire(self.mcu.baud, rng), self.mcu.baud, self.turnaround_s)
        ncp_end = LineEnd(self.timed, Wire(self.ncp.baud, rng), self.ncp.baud)
        mcu_end.handles, ncp_end.handles = self.of_mcu, self.of_ncp
        digests = FileDigests(zlib.crc32(self.image), bytes(16), bytes(32))
        job = UpdateJob("fw.bin", len(self.image), INFO.fw_type, "1.2.4", "", digests, is_prefetched=True)
        self.ncp.offer(job, now=0.0)
        simulate((mcu_end, ncp_end), now=0.0, until=3600.0, done=lambda: self.ended is not None)
        assert self.ended is not None
        assert self.received == len(self.image)
        self.ncp_cpu_s = self.timed.spent_s

    def of_ncp(self, event: object, now: float) -> None:
        began = time.process_time()
        following: Sequence[object] = ()
        if isinstance(event, NeedBytes):
            following = self.ncp.supply(event.offset, self.image[event.offset : event.offset + event.length], now=now)
        self.timed.spent_s += time.process_time() - began
        for one in following:
            self.of_ncp(one, now)
        if self.ncp.update.state is UpdateState.STREAMING and self.began is None:
            self.began = now
        if self.ncp.update.state is UpdateState.FINISHING and self.ended is None:
            self.ended = now

    def of_mcu(self, event: object, now: float) -> None:
        mcu = self.mcu
        if isinstance(event, OfferMade):
            mcu.accept(now=now)
            mcu.begin(now=now)
        elif isinstance(event, ReceivingBegan):
            self.received = 0
        elif isinstance(event, ChunkArrived):
            self.received += len(event.data)
            mcu.chunk_stored(True, now=now)
        elif isinstance(event, VerifyImage):
            mcu.verified(True, now=now)


def bound_s(image: bytes, baud: int, turnaround_s: float) -> float:
    """Seconds that the frames of the stream take on the wire, with the turnarounds of the MCU."""
    wire, msgid = 0, 2  # the offer was number 1
    for offset in range(0, len(image), CHUNK):
        data = image[offset : offset + CHUNK]
        body = pack_values(OTA_WRITE.args, (offset, data, zlib.crc32(data)))
        wire += len(pack_frame(pack_message(Invoke(OTA_WRITE.uid, msgid, body))))
        wire += len(pack_frame(pack_message(Result(msgid, 0, b"\1"))))
        msgid += 1
    chunks = -(-len(image) // CHUNK)
    return wire * BITS_A_BYTE / baud + chunks * turnaround_s


def main() -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    image = random.Random(7).randbytes(IMAGE_SIZE)
    print(f"{IMAGE_SIZE // 1024} KB, chunks of {CHUNK} bytes; the NCP's processor time is added to the measured time")
    print(f"{'baud':>8} {'turnaround':>10} {'bound':>12} {'measured':>12} {'ratio':>7} {'NCP CPU':>9}")
    for baud in BAUDS:
        for turnaround_s in TURNAROUNDS_S:
            run = Run(image, baud, turnaround_s)
            run.go()
            assert run.began is not None
            assert run.ended is not None
            bound = len(image) / bound_s(image, baud, turnaround_s)
            measured = len(image) / (run.ended - run.began + run.ncp_cpu_s)
            print(
                f"{baud:>8} {turnaround_s * 1000:>7.0f} ms {bound:>8.0f} B/s {measured:>8.0f} B/s"
                f" {measured / bound:>7.4f} {run.ncp_cpu_s:>7.2f} s",
                flush=True,
            )
    print()
    for baud in BAUDS:
        began, simulated = time.process_time(), 0.0
        cpu = 0.0
        for number in range(LINES):
            run = Run(random.Random(number).randbytes(IMAGE_SIZE // 8), baud, 0.0)
            run.go()
            assert run.began is not None
            assert run.ended is not None
            cpu += run.ncp_cpu_s
            simulated = max(simulated, run.ended - run.began)
        both = time.process_time() - began
        print(
            f"{LINES} lines at {baud}: {100 * cpu / simulated:.0f} % of a core for the NCPs, "
            f"{100 * both / simulated:.0f} % with MCUs and the simulated line"
        )


if __name__ == "__main__":
    main()
