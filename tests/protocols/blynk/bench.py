"""An NCP and an MCU at the two ends of a simulated line, with the least firmware that an update needs."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from flota.protocols.blynk.mcu import Mcu, McuSettings
from flota.protocols.blynk.mcu_states import (
    ApplyNow,
    ChunkArrived,
    McuPolicy,
    OfferMade,
    PrefetchEnded,
    ReceivingBegan,
    VerifyImage,
)
from flota.protocols.blynk.ncp import Ncp, NcpSettings
from flota.protocols.blynk.ncp_job import (
    FileDigests,
    FirmwareInfo,
    JobEnded,
    NcpUpdateSettings,
    NeedBytes,
    Outcome,
    PrefetchWanted,
    StateChanged,
    UpdateJob,
)
from flota.protocols.blynk.ncp_states import UpdateState
from flota.virtual.uart_line import NO_FAULTS, LineEnd, LineFaults, Wire, simulate

OLD = FirmwareInfo("TMPLabcd1234", "1.2.3", "Nov 16 2023 20:35:55", "0.6.4")
NEW = replace(OLD, version="1.2.4", build="Nov 17 2023 10:00:00")
IMAGE = random.Random(3).randbytes(20_082)
RESULT = b"\xaa\x12\xa5"
REBOOT_S = 0.2


def digests_of(image: bytes) -> FileDigests:
    return FileDigests(
        zlib.crc32(image), hashlib.md5(image, usedforsecurity=False).digest(), hashlib.sha256(image).digest()
    )


def job_of(image: bytes, **changes: Any) -> UpdateJob:
    job = UpdateJob(
        "firmware.bin", len(image), NEW.fw_type, NEW.version, NEW.build, digests_of(image), is_prefetched=True
    )
    return replace(job, **changes)


@dataclass
class Bench:
    """`takes(offer)` decides about offers; `holds_back`: bytes are not supplied; `apply` what a true Finish does."""

    image: bytes = IMAGE
    policy: McuPolicy = field(default_factory=McuPolicy)
    update: NcpUpdateSettings = field(default_factory=lambda: NcpUpdateSettings(settle_s=1.0))
    ncp_settings: NcpSettings = field(default_factory=NcpSettings)
    mcu_settings: McuSettings = field(default_factory=lambda: McuSettings(OLD, template_name="Demo"))
    to_ncp: LineFaults = NO_FAULTS
    to_mcu: LineFaults = NO_FAULTS
    number: int = 1
    prefetches: bool = False
    takes: Callable[[OfferMade], bool] = lambda offer: True
    begins: bool = True
    source: bytes | None = None
    boots: FirmwareInfo = NEW
    turnaround_s: float = 0.0

    def __post_init__(self) -> None:
        rng = random.Random(self.number)
        self.now = 0.0
        self.ncp = Ncp(replace(self.ncp_settings, update=self.update), now=0.0)
        settings = replace(self.mcu_settings, policy=self.policy)
        self.mcu = Mcu(settings, now=0.0)
        self.flash = bytearray()
        self.applied: list[bytes] = []
        self.ended: list[JobEnded] = []
        self.states: list[UpdateState] = []
        self.events: list[Any] = []
        self.mcu_events: list[Any] = []
        self.mcu_end = LineEnd(self.mcu, Wire(self.mcu.baud, rng, self.to_ncp), self.mcu.baud, self.turnaround_s)
        self.ncp_end = LineEnd(self.ncp, Wire(self.ncp.baud, rng, self.to_mcu), self.ncp.baud)
        self.mcu_end.handles, self.ncp_end.handles = self._of_mcu, self._of_ncp
        self._told(self.ncp.cloud(True, now=0.0))

    def offer(self, **changes: Any) -> None:
        self._told(self.ncp.offer(job_of(self.image, **changes), now=self.now))

    def run(self, seconds: float, done: Callable[[], bool] | None = None) -> None:
        """Run for so long (simulated); an MCU that applies an image restarts into it."""
        until = self.now + seconds
        while self.now < until and not (done is not None and done()):
            stops = self._stops_at(len(self.applied), done)
            count = len(self.applied)
            self.now = simulate(
                (self.mcu_end, self.ncp_end),
                now=self.now,
                until=until,
                done=stops,
            )
            if len(self.applied) > count:
                self.now = simulate((self.mcu_end, self.ncp_end), now=self.now, until=self.now + 0.05)
                self.restart_mcu(self.boots)

    def _stops_at(self, count: int, done: Callable[[], bool] | None) -> Callable[[], bool]:
        return lambda: len(self.applied) > count or (done is not None and done())

    def run_to_the_end(self, seconds: float = 1000.0) -> Outcome | None:
        self.run(seconds, done=lambda: bool(self.ended))
        return self.ended[0].outcome if self.ended else None

    def restart_mcu(self, info: FirmwareInfo, **changes: Any) -> None:
        self.mcu = Mcu(replace(self.mcu.settings, firmware=info, **changes), now=self.now + REBOOT_S)
        self._new_end(self.mcu_end, self.mcu, self.mcu.baud)

    def restart_ncp(self) -> None:
        """Lose the NCP's memory but for what its events said is to be kept."""
        job, state = self.ncp.update.job, self.ncp.update.state
        self.ncp = Ncp(self.ncp.settings, now=self.now)
        self._new_end(self.ncp_end, self.ncp, self.ncp.baud)
        if job is not None:
            self._told(self.ncp.keep(job, state, now=self.now))
        self._told(self.ncp.cloud(True, now=self.now))

    def _new_end(self, end: LineEnd, party: Any, baud: int) -> None:
        end.wire.cut()
        end.wire.baud = end.baud = baud
        end.party = party
        end.forget()

    def _told(self, events: list[Any]) -> None:
        for event in events:
            self._of_ncp(event, self.now)

    def _of_ncp(self, event: Any, now: float) -> None:
        self.events.append(event)
        following: list[Any] = []
        if isinstance(event, NeedBytes):
            source = self.image if self.source is None else self.source
            data = source[event.offset : event.offset + event.length]
            if len(data) == event.length:
                following = self.ncp.supply(event.offset, data, now=now)
        elif isinstance(event, JobEnded):
            self.ended.append(event)
        elif isinstance(event, StateChanged):
            self.states.append(event.state)
        elif isinstance(event, PrefetchWanted):
            pass
        for one in following:
            self._of_ncp(one, now)

    def _of_mcu(self, event: Any, now: float) -> None:
        self.mcu_events.append(event)
        mcu = self.mcu
        following: list[Any] = []
        if isinstance(event, OfferMade):
            if self.takes(event):
                following = mcu.accept(now=now)
                if self.prefetches:
                    following += mcu.prefetch(now=now)
                elif self.begins:
                    following += mcu.begin(now=now)
            else:
                following = mcu.decline(now=now)
        elif isinstance(event, PrefetchEnded):
            following = mcu.begin(now=now)
        elif isinstance(event, ReceivingBegan):
            self.flash = bytearray()
        elif isinstance(event, ChunkArrived):
            assert event.offset == len(self.flash), "a chunk at another place than the next"
            self.flash += event.data
            following = mcu.chunk_stored(True, now=now)
        elif isinstance(event, VerifyImage):
            known = event.digests
            right = len(self.flash) == event.size and known.crc32 in (None, zlib.crc32(self.flash))
            right = right and known.sha256 in (None, hashlib.sha256(self.flash).digest())
            following = mcu.verified(right, now=now)
        elif isinstance(event, ApplyNow):
            self.applied.append(bytes(self.flash))
        for one in following:
            self._of_mcu(one, now)
