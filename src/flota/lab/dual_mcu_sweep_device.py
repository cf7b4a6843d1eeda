"""`dual-mcu-ab` and `dual-mcu-ncp` as devices of a sweep: their boot loaders, their firmware, and a real NCP machine.

Both ends are the real ones, on a line that is simulated without delays; the NCP has power of its own and keeps its job
as `flota ncp run` does, so its record is a chip without operations: what follows a power-on depends on it too.

Source: docs/reference/power-cuts.md, "dual-mcu-ab and dual-mcu-ncp".
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from flota.boards.catalogue import board as board_named
from flota.boards.model import BOOT_DUAL_BANK, Board
from flota.errors import InvalidInput
from flota.lab.cut_scenarios import SMALLER_BY_BYTES, Scenario, released
from flota.lab.known_limits import KnownLimit
from flota.lab.mcu_agents import is_primary_mcu
from flota.lab.oracle import Broken, Oracle, Reason, Region
from flota.lab.sample_mcu import SAMPLE_FW_TYPE, sample_mcu
from flota.lab.swept_device import Boot, Chip, LifeEnd, Milestone, Offer
from flota.lab.swept_flash import SweptFlash
from flota.protocols.blynk.ncp import INITIAL_BAUD, Ncp, NcpSettings
from flota.protocols.blynk.ncp_job import (
    FileDigests,
    JobEnded,
    NcpUpdateSettings,
    NeedBytes,
    Outcome,
    StateChanged,
    UpdateJob,
)
from flota.protocols.blynk.ncp_states import UpdateState
from flota.virtual.agents.blynk_firmware import Conditions, LineParty, McuBuild
from flota.virtual.agents.blynk_loader import NcpLoader
from flota.virtual.agents.blynk_mcu import app_of
from flota.virtual.device import Behaviour, behaviour_of
from flota.virtual.dual_bank_board import DualBankHardware
from flota.virtual.flash import Cut, FlashOperation
from flota.virtual.hardware import BootReport
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.one_bank_board import OneBankHardware, OneBankSlots
from flota.virtual.pace import SPEED_MAX
from flota.virtual.uart_line import LineEnd, Wire, simulate

IMAGE_MIN_BYTES: Final = 12 * 1024
"""The last image of a life is a sector and a bit shorter."""
LIFE_MAX_S: Final = 1500.0
"""Simulated; whoever has found no rest by then finds none."""
LOADER_STAYS_MAX: Final = 5
_SETTLE_S: Final = 0.5
_BUILD: Final = McuBuild(raises_to=None, speed=SPEED_MAX)


@dataclass(frozen=True, slots=True)
class DualMcuGeometry:
    """A board for a sweep and the size of its images (bytes)."""

    board: Board
    image_size: int


def dual_mcu_geometry_for(board_name: str, image_size: int | None) -> DualMcuGeometry:
    """Return the board with images of `image_size` bytes, None = images that fill a slot.

    Raises `NotFound` for the board, `InvalidInput` for another family's and for sizes that do not go.
    """
    board = board_named(board_name)
    if not is_primary_mcu(board):
        raise InvalidInput(f"{board.name} is no primary MCU")
    slot_size = board.slots[0].size
    size = slot_size if image_size is None else image_size
    if not IMAGE_MIN_BYTES <= size <= slot_size:
        raise InvalidInput(
            "not a size for images of a sweep", expected=f"{IMAGE_MIN_BYTES} to {slot_size} bytes", found=image_size
        )
    return DualMcuGeometry(board, size)


@functools.lru_cache(maxsize=16)
def _image(version: str, size: int, behaviour: str | None = None) -> bytes:
    return sample_mcu(version, size=size, behaviour=behaviour or "healthy")


def _offers(scenario: Scenario, size: int) -> tuple[Offer, ...]:
    offers = []
    for number, (version, behaviour, damaged) in enumerate(scenario.offers):
        last = number == len(scenario.offers) - 1
        data = _image(version, size - SMALLER_BY_BYTES if last else size, behaviour)
        if damaged:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        known = released(version, data, bootable=not damaged, lasts=behaviour is None)
        offers.append(Offer(known, version, data))
    return tuple(offers)


@dataclass(frozen=True, slots=True)
class KeptJob:
    """What an NCP has on its disk of one job."""

    state: UpdateState = UpdateState.PENDING
    was_accepted: bool = False
    outcome: Outcome | None = None


class KeptJobs:
    """The NCP's disk: its jobs by version, and which is the present one. It outlives the device's power."""

    def __init__(self) -> None:
        self._jobs: Mapping[str, KeptJob] = {}
        self.present: str | None = None

    def of(self, version: str) -> KeptJob | None:
        """Return the job for a version, None if there was none yet."""
        return self._jobs.get(version)

    def keep(self, version: str, job: KeptJob) -> None:
        """Remember a job as the present one."""
        self.present = version
        self._jobs = {**self._jobs, version: job}

    def save(self) -> object:
        """Return the jobs; they are never changed in place."""
        return self.present, self._jobs

    def load(self, snapshot: object) -> None:
        """Become what it was."""
        assert isinstance(snapshot, tuple)
        self.present, self._jobs = snapshot

    def fingerprint(self) -> int:
        """Return a number that tells records apart."""
        jobs = {version: [job.state, job.was_accepted, job.outcome] for version, job in self._jobs.items()}
        text = json.dumps([self.present, jobs], sort_keys=True).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest())

    def leave(self, operation: FlashOperation, cut: Cut) -> None:
        """Raise: no operation of the device's is this record's."""
        raise AssertionError("the NCP has power of its own")


class DualMcuSweepDevice:
    """The MCU with its NCP. A `SweptDevice`."""

    def __init__(self, geometry: DualMcuGeometry, scenario: Scenario) -> None:
        board = geometry.board
        self._image_size = geometry.image_size
        self._flash = SweptFlash(board.flash_size, sector_size=board.sector_size, write_alignment=board.write_alignment)
        self.power = self._flash.power
        self._kept = KeptJobs()
        self.chips: Mapping[str, Chip] = {"flash": self._flash, "ncp": self._kept}
        two_banks = board.boot == BOOT_DUAL_BANK
        kind = DualBankHardware if two_banks else OneBankHardware
        self._hardware: DualBankHardware | OneBankHardware = kind(board, self._flash, nvs=NonVolatileStore())
        self.writes_slots_while_booting = not two_banks
        self._hardware.flash_app(_image("1.0.0", self._image_size))
        self.regions: Sequence[Region] = tuple(
            Region(slot.name, slot.offset or 0, slot.size, board.sector_size) for slot in board.slots
        )
        self.offers: Sequence[Offer] = _offers(scenario, self._image_size)
        self._announced = {
            offer.version: _image(version, len(offer.data), behaviour)
            for offer, (version, behaviour, _) in zip(self.offers, scenario.offers, strict=True)
        }
        """The files as they were signed: what the NCP knows the digests of."""
        self._update = NcpUpdateSettings(settle_s=_SETTLE_S if two_banks else 0.0, left_to_boot_loader=not two_banks)

    def oracle(self) -> Oracle:
        """Return a judge that knows the first image and all offers."""
        first = released("1.0.0", _image("1.0.0", self._image_size))
        return Oracle([first, *(offer.released for offer in self.offers)], self.regions, {"flash": self._flash})

    def boot(self, milestone: Milestone) -> Boot:
        """Run the boot loader, with the NCP there: one that has to fetch does, and boots again."""
        refused: tuple[str, ...] = ()
        for _ in range(LOADER_STAYS_MAX):
            if isinstance(self._hardware, OneBankHardware):
                self._hardware.crashes = 0  # retained memory, which a cut empties; no image of these lives crashes
            report = self._hardware.boot()
            refused = tuple(text.partition(":")[0] for text in report.refused)
            if report.app is not None:
                return Boot(report.app.slot, refused, report, unconfirmed=report.app.awaits_confirmation)
            if not isinstance(report.slots, OneBankSlots):
                break
            loader = NcpLoader(report.slots, _BUILD, tell=_ignore, now=0.0)
            self._on_the_line(loader, None, lambda _: None, lambda: False)
        return Boot(None, refused)

    def live(self, boot: Boot, offer: Offer, milestone: Milestone) -> LifeEnd:
        """Live as the app: find the NCP, confirm, take the update, until it restarts or the NCP has its verdict."""
        report = boot.handle
        assert isinstance(report, BootReport)
        assert report.app is not None
        assert report.slots is not None
        if behaviour_of(report.app) is Behaviour.CRASH:
            return LifeEnd(False)
        confirmed: list[bool] = []
        app = app_of(
            report.slots, _BUILD, Conditions(), tell=_ignore, now=0.0, on_confirmed=lambda: confirmed.append(True)
        )
        trying = _state_of(self._kept.of(offer.version)) is UpdateState.APPLIED

        def rests() -> bool:
            job = self._kept.of(offer.version)
            return job is not None and job.outcome is not None and bool(app.mcu.phase == "up") and bool(confirmed)

        self._on_the_line(app, offer, milestone, rests)
        job = self._kept.of(offer.version)
        if app.ending is not None:
            installed = not trying and _state_of(job) in (UpdateState.APPLIED, UpdateState.ACCEPTED)
            return LifeEnd(False, installed=installed)
        return LifeEnd(True, _reason(job))

    def limit(self, broken: Broken) -> KnownLimit | None:
        """Return nothing: whatever breaks on this board is a broken promise."""
        return None

    def counter(self) -> int | None:
        """There is no anti-rollback counter."""
        return None

    # --- the NCP ------------------------------------------------------------------------------------------------------

    def _on_the_line(
        self, party: LineParty, offer: Offer | None, milestone: Milestone, rests: Callable[[], bool]
    ) -> None:
        """Run a party and the NCP until the party restarts, or rests. What cuts the power ends it."""
        ncp = Ncp(NcpSettings(announces_start=False, update=self._update, initial_baud=INITIAL_BAUD), now=0.0)
        rng = random.Random(1)  # noqa: S311 -- a line without faults draws nothing
        present = self._kept.present if offer is None else offer.version

        def told(event: Any, now: float) -> None:
            if present is None:
                return
            job = self._kept.of(present) or KeptJob()
            following: Sequence[Any] = ()
            if isinstance(event, NeedBytes):
                milestone(f"bytes from {event.offset}")
                data = next(each.data for each in self.offers if each.version == present)
                following = ncp.supply(event.offset, data[event.offset : event.offset + event.length], now=now)
            elif isinstance(event, JobEnded):
                self._kept.keep(present, replace(job, outcome=event.outcome))
            elif isinstance(event, StateChanged) and job.outcome is None and event.state is not UpdateState.IDLE:
                held = ncp.update.job
                accepted = job.was_accepted or (held is not None and held.was_accepted)
                self._kept.keep(present, replace(job, state=event.state, was_accepted=accepted))
            for each in following:
                told(each, now)

        for event in (*ncp.cloud(True, now=0.0), *self._take_up(ncp, offer, present)):
            told(event, 0.0)
        mcu_end = LineEnd(party, Wire(INITIAL_BAUD, rng), INITIAL_BAUD)
        ncp_end = LineEnd(ncp, Wire(INITIAL_BAUD, rng), INITIAL_BAUD, handles=told)
        simulate((mcu_end, ncp_end), now=0.0, until=LIFE_MAX_S, done=lambda: party.ending is not None or rests())

    def _take_up(self, ncp: Ncp, offer: Offer | None, present: str | None) -> Sequence[Any]:
        """Give the NCP its job: the one on its disk, or the server's new one."""
        if present is None:
            return ()
        kept = self._kept.of(present)
        if kept is None:
            assert offer is not None
            if not self._two_banks and offer.data != self._announced[present]:
                self._kept.keep(present, KeptJob(outcome=Outcome.DECLINED))  # the whole file is checked before
                return ()
            return ncp.offer(self._job(present), now=0.0)
        if kept.outcome is not None and not (kept.was_accepted and self._update.left_to_boot_loader):
            return ()
        job = replace(self._job(present), was_accepted=kept.was_accepted)
        return ncp.keep(job, kept.state, verdict_given=kept.outcome is not None, now=0.0)

    @property
    def _two_banks(self) -> bool:
        return isinstance(self._hardware, DualBankHardware)

    def _job(self, version: str) -> UpdateJob:
        data = self._announced[version]
        md5 = hashlib.md5(data, usedforsecurity=False).digest()
        digests = FileDigests(zlib.crc32(data), md5, hashlib.sha256(data).digest())
        return UpdateJob("image.bin", len(data), SAMPLE_FW_TYPE, version, "", digests, is_prefetched=True)


def _state_of(job: KeptJob | None) -> UpdateState | None:
    return None if job is None else job.state


def _reason(job: KeptJob | None) -> Reason | None:
    if job is None or job.outcome in (None, Outcome.SUCCEEDED):
        return None
    return Reason.ROLLED_BACK if job.outcome is Outcome.ROLLED_BACK else Reason.REFUSED


def _ignore(*said: object, **facts: object) -> None:
    """Hear nothing."""
