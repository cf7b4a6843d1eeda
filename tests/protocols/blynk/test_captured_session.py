"""The captured update of nine bytes, replayed: each of our two ends in place of the one that was recorded."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

from flota.protocols.blynk.mcu import Mcu, McuSettings
from flota.protocols.blynk.mcu_states import ApplyNow, ChunkArrived, OfferMade, PrefetchEnded, VerifyImage
from flota.protocols.blynk.ncp import LinkCommand, Ncp, NcpSettings, SwitchRate
from flota.protocols.blynk.ncp_job import FileDigests, FirmwareInfo, NcpUpdateSettings, NeedBytes, UpdateJob
from flota.protocols.blynk.ncp_states import UpdateState
from tests.protocols.blynk.vectors import TO_MCU, TO_NCP, session

IMAGE = b"123456789"
OLD = FirmwareInfo("TMPLabcd1234", "1.2.3", "Nov 16 2023 20:35:55", "0.6.4")
JOB = UpdateJob(
    "firmware.bin",
    len(IMAGE),
    "TMPLabcd1234",
    "1.2.4",
    "Nov 17 2023 10:00:00",
    FileDigests(zlib.crc32(IMAGE), hashlib.md5(IMAGE, usedforsecurity=False).digest(), hashlib.sha256(IMAGE).digest()),
    is_prefetched=True,
)
BETWEEN_FRAMES_S = 0.01


class Side:
    """One of our machines, its frames one by one, and its clock."""

    def __init__(self, machine: Ncp | Mcu) -> None:
        self.machine = machine
        self.now = 0.0
        self.frames: list[bytes] = []
        self.rates: list[int] = []
        self.collect()

    def collect(self) -> None:
        command: LinkCommand
        for command in self.machine.link_commands():
            if isinstance(command, SwitchRate):
                self.rates.append(command.baud)
            else:
                self.frames += [piece + b"\xbb" for piece in command.split(b"\xbb")[:-1]]

    def hears(self, frame: bytes) -> None:
        self.now += BETWEEN_FRAMES_S
        self.handle(self.machine.receive(frame, now=self.now))
        self.collect()

    def says(self) -> bytes:
        while not self.frames:
            deadline = self.machine.next_deadline()
            assert deadline is not None, "it has nothing more to say"
            self.now = max(self.now, deadline)
            self.handle(self.machine.deadline_passed(now=self.now))
            self.collect()
        return self.frames.pop(0)

    def handle(self, events: Sequence[object]) -> None:
        """Do what the machine asks its surroundings for."""


class NcpSide(Side):
    machine: Ncp

    def handle(self, events: Sequence[object]) -> None:
        for event in events:
            if isinstance(event, NeedBytes):
                data = IMAGE[event.offset : event.offset + event.length]
                self.handle(self.machine.supply(event.offset, data, now=self.now))


class McuSide(Side):
    machine: Mcu
    flash = b""
    applies = False

    def handle(self, events: Sequence[object]) -> None:
        mcu, now = self.machine, self.now
        for event in events:
            if isinstance(event, OfferMade):
                self.handle(mcu.accept(now=now))
                self.handle(mcu.prefetch(now=now))
            elif isinstance(event, PrefetchEnded):
                self.handle(mcu.begin(now=now))
            elif isinstance(event, ChunkArrived):
                self.flash += event.data
                self.handle(mcu.chunk_stored(True, now=now))
            elif isinstance(event, VerifyImage):
                known = event.digests
                assert known.md5 == hashlib.md5(self.flash, usedforsecurity=False).digest()
                right = known.crc32 == zlib.crc32(self.flash) and known.sha256 == hashlib.sha256(self.flash).digest()
                self.handle(mcu.verified(right, now=now))
            elif isinstance(event, ApplyNow):
                self.applies = True


def test_our_ncp_says_every_frame_that_was_captured() -> None:
    settings = NcpSettings(version="0.6.3", announces_start=False, update=NcpUpdateSettings(chunk_max_bytes=8))
    ncp = NcpSide(Ncp(settings, now=0.0))
    ncp.machine.cloud(True, now=0.0)
    ncp.machine.offer(JOB, now=0.0)
    for number, (direction, frame) in enumerate(session()):
        if direction == TO_NCP:
            ncp.hears(frame)
        else:
            assert ncp.says().hex() == frame.hex(), f"frame {number}"
    assert ncp.rates == [115_200, 38_400], "up as the MCU asked, back when it restarts"
    assert ncp.machine.update.state is UpdateState.APPLIED


def test_our_mcu_says_every_frame_that_was_captured() -> None:
    mcu = McuSide(Mcu(McuSettings(OLD, "TMPLabcd1234", "Updraft Demo"), now=0.0))
    for number, (direction, frame) in enumerate(session()):
        if direction == TO_MCU:
            mcu.hears(frame)
        else:
            assert mcu.says().hex() == frame.hex(), f"frame {number}"
    assert mcu.flash == IMAGE
    assert mcu.applies
    assert mcu.rates == [115_200]
