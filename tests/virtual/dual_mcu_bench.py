"""A virtual primary MCU and an NCP at the two ends of a simulated line; of the NCP only what it keeps on its disk."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flota.boards.catalogue import board
from flota.boards.model import BOOT_DUAL_BANK
from flota.lab.sample_mcu import SAMPLE_FW_TYPE, sample_mcu
from flota.lab.simulated_mcu import SimulatedMcu
from flota.protocols.blynk.catalogue import PrefetchStatus
from flota.protocols.blynk.ncp import Ncp, NcpSettings
from flota.protocols.blynk.ncp_job import (
    FileDigests,
    JobEnded,
    NcpUpdateSettings,
    NeedBytes,
    Outcome,
    PrefetchWanted,
    StateChanged,
    UpdateJob,
)
from flota.protocols.blynk.ncp_states import UpdateState
from flota.virtual.agents.blynk_firmware import Conditions, McuBuild
from flota.virtual.dual_bank_board import DualBankHardware
from flota.virtual.flash import NorFlash
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.one_bank_board import OneBankHardware
from flota.virtual.uart_line import NO_FAULTS, LineEnd, LineFaults, Wire, simulate

AB, NCP = "dual-mcu-ab", "dual-mcu-ncp"
BOTH = (AB, NCP)
SIZE = 20_082
RESULT = b"\xaa\x12\xa5"


def image(version: str, behaviour: str = "healthy", size: int = SIZE, fw_type: str = SAMPLE_FW_TYPE) -> bytes:
    return sample_mcu(version, size=size, behaviour=behaviour, fw_type=fw_type)


def job_of(data: bytes, version: str, *, fw_type: str = SAMPLE_FW_TYPE, prefetched: bool = True) -> UpdateJob:
    md5 = hashlib.md5(data, usedforsecurity=False).digest()
    digests = FileDigests(zlib.crc32(data), md5, hashlib.sha256(data).digest())
    return UpdateJob("pump.bin", len(data), fw_type, version, "", digests, is_prefetched=prefetched)


def hardware(name: str, first: bytes) -> DualBankHardware | OneBankHardware:
    declared = board(name)
    flash = NorFlash.blank(declared.flash_size, write_alignment=declared.write_alignment)
    kind = DualBankHardware if declared.boot == BOOT_DUAL_BANK else OneBankHardware
    made = kind(declared, flash, nvs=NonVolatileStore())
    made.flash_app(first)
    made.time.take()
    return made


@dataclass
class DualMcuBench:
    """`supplies(offset)` says whether the NCP has the bytes; `changes(data)` what it sends instead of them."""

    board: str = AB
    build: McuBuild = field(default_factory=lambda: McuBuild(speed=20))
    conditions: Conditions = field(default_factory=Conditions)
    settle_s: float = 2.0
    bauds: frozenset[int] | None = None
    to_ncp: LineFaults = NO_FAULTS
    to_mcu: LineFaults = NO_FAULTS
    number: int = 1
    prefetch: PrefetchStatus | None = PrefetchStatus.DONE
    supplies: Callable[[int], bool] = lambda offset: True
    first: bytes = field(default_factory=lambda: image("1.0.0"))
    start_wait_s: float = 600.0
    report_limit_s: float = 600.0

    def __post_init__(self) -> None:
        rng = random.Random(self.number)
        self.now = 0.0
        self.image = self.first
        self.ended: list[JobEnded] = []
        self.states: list[UpdateState] = []
        self.asked: list[tuple[float, int]] = []
        self.events: list[Any] = []
        self.mcu = SimulatedMcu(hardware(self.board, self.first), self.build, self.conditions)
        self.ncp = self._new_ncp()
        self.mcu_end = LineEnd(self.mcu, Wire(38_400, rng, self.to_ncp), 38_400, bauds=self.build.bauds)
        self.ncp_end = LineEnd(self.ncp, Wire(self.ncp.baud, rng, self.to_mcu), self.ncp.baud, handles=self._of_ncp)
        self._told(self.ncp.cloud(True, now=0.0))

    def _new_ncp(self) -> Ncp:
        update = NcpUpdateSettings(
            settle_s=self.settle_s,
            left_to_boot_loader=self.board == NCP,
            start_wait_s=self.start_wait_s,
            report_limit_s=self.report_limit_s,
        )
        settings = NcpSettings(update=update) if self.bauds is None else NcpSettings(update=update, bauds=self.bauds)
        return Ncp(settings, now=self.now)

    def offer(self, data: bytes, version: str = "2.0.0", **changes: Any) -> None:
        self.image = data
        self.ended.clear()
        self._told(self.ncp.offer(job_of(data, version, **changes), now=self.now))

    def run(self, seconds: float, done: Callable[[], object] = lambda: False) -> None:
        self.now = simulate(
            (self.mcu_end, self.ncp_end), now=self.now, until=self.now + seconds, done=lambda: bool(done())
        )

    def outcome(self, within_s: float = 2000.0) -> Outcome | None:
        self.run(within_s, lambda: self.ended)
        return self.ended[0].outcome if self.ended else None

    def settle(self, seconds: float = 40.0) -> None:
        """Let the MCU come up and stay."""
        self.run(seconds, lambda: self.mcu.confirmed and self.ncp.is_initialized)

    def until_written(self, written: int, within_s: float = 200.0) -> None:
        """Run until the MCU has so many bytes of the stream."""
        self.run(within_s, lambda: self.stored >= written)
        assert self.stored >= written, self.mcu.told[-10:]

    @property
    def stored(self) -> int:
        firmware = self.mcu.firmware
        return 0 if firmware is None else firmware.mcu.update.received  # type: ignore[attr-defined]

    @property
    def runs(self) -> str | None:
        return None if self.mcu.app is None else self.mcu.app.version

    @property
    def running_bytes(self) -> bytes:
        assert self.mcu.app is not None
        return self.mcu.hardware.read_slot(self.mcu.app.slot, self.mcu.app.size)

    def restart_ncp(self) -> None:
        """Kill the NCP: all that is left is the job, its state and the file."""
        job, state = self.ncp.update.job, self.ncp.update.state
        self.ncp = self._new_ncp()
        end = self.ncp_end
        end.wire.cut()
        end.wire.baud = end.baud = self.ncp.baud
        end.party = self.ncp
        end.forget()
        if job is not None:
            self._told(self.ncp.keep(job, state, now=self.now))
        self._told(self.ncp.cloud(True, now=self.now))

    def _told(self, events: list[Any]) -> None:
        for event in events:
            self._of_ncp(event, self.now)

    def _of_ncp(self, event: Any, now: float) -> None:
        self.events.append(event)
        following: list[Any] = []
        if isinstance(event, NeedBytes):
            self.asked.append((now, event.offset))
            if self.supplies(event.offset):
                data = self.image[event.offset : event.offset + event.length]
                following = self.ncp.supply(event.offset, data, now=now)
        elif isinstance(event, JobEnded):
            self.ended.append(event)
        elif isinstance(event, StateChanged):
            self.states.append(event.state)
        elif isinstance(event, PrefetchWanted) and self.prefetch is not None:
            following = self.ncp.prefetched(self.prefetch, now=now)
        for one in following:
            self._of_ncp(one, now)
