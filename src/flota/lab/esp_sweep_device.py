"""ESP32 boards as devices of a sweep: the boot loader, the OTA calls and the very agents that a fleet runs.

The agents' connections are replaced by a server in memory that answers at once; nothing else is.

Source: docs/reference/power-cuts.md, "ESP32 boards".
"""

from __future__ import annotations

import enum
import functools
import random
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import httpx

from flota.boards.catalogue import board as board_named
from flota.boards.model import Board
from flota.errors import InvalidInput
from flota.images.esp_chips import MIB
from flota.images.esp_partitions import PartitionTable, parse_csv
from flota.lab.at_once import REST_S, AtRest, TimelessPace, run_at_once
from flota.lab.cut_scenarios import IMAGE_MIN_BYTES, Scenario, esp_first_image, esp_offers, released
from flota.lab.known_limits import KnownLimit
from flota.lab.oracle import Broken, Oracle, Reason, Region
from flota.lab.powered_store import PoweredStore
from flota.lab.swept_device import Boot, Chip, LifeEnd, Milestone, Offer
from flota.lab.swept_flash import SweptFlash
from flota.protocols.http_range import RangeNotSatisfiable, content_range, parse_range, unsatisfied_content_range
from flota.protocols.viam import (
    HTTP2_FRAME_MAX_BYTES,
    NVS_NAMESPACE,
    NVS_VERSION_KEY,
    DownloadAddress,
    ServiceConfig,
    pack_service_config,
)
from flota.virtual.agents.esp_https_ota import EspHttpsOtaAgent, FetchMode
from flota.virtual.agents.viam_config import MachineConfig
from flota.virtual.agents.viam_link import AnswerHead
from flota.virtual.agents.viam_micro_rdk import MicroRdkAgent
from flota.virtual.boot.esp_idf import BootBuild
from flota.virtual.device import Agent, Identity, VirtualDevice
from flota.virtual.esp_board import SECURE_VERSION_FUSE, EspHardware
from flota.virtual.esp_slots import EspSlots
from flota.virtual.events import DeviceEvent, EventKind
from flota.virtual.hardware import BootReport
from flota.virtual.slots import ResetReason, Restart

URL: Final = "http://server.test:8080/firmware.bin"
SECTOR_BYTES: Final = 4096
SLOT_ALIGNMENT_BYTES: Final = 0x10000
FIRST_SLOT: Final = 0x10000
FLASH_MAX_BYTES: Final = 16 * MIB
PIECE_BYTES: Final = 4096
"""What the server in memory hands to the HTTP client at a time."""


class SweepAgent(enum.StrEnum):
    """Which agent's order of flash operations is swept."""

    MICRO_RDK = "micro-rdk"
    ESP_HTTPS_OTA = "esp-https-ota"
    AMEBA_PUSH = "ameba-push"
    """AmebaD boards, and those only (`flota.lab.ameba_sweep_device`)."""
    AWS_OTA = "aws-ota"
    """`aws-reference` and the Nuvoton boards (`flota.lab.jobs_sweep_device`)."""
    AWS_OTA_WITHOUT_BACKUP = "aws-ota-without-backup"
    """The same in an M487's app that is built with NVT_OTA_WITHOUT_BACKUP_BANK."""
    BLYNK_NCP = "blynk-ncp"
    """Primary MCUs behind an NCP (`flota.lab.dual_mcu_sweep_device`)."""


USUAL_AGENTS: Final[Mapping[str, SweepAgent]] = {"esp32": SweepAgent.MICRO_RDK}
"""The agent of a board's own route; esp_https_ota on all others."""


@dataclass(frozen=True, slots=True)
class EspGeometry:
    """A board's flash for a sweep: its size and table, and the images' size, all in bytes."""

    board: Board
    table: PartitionTable
    image_size: int


def geometry_for(board_name: str, image_size: int | None) -> EspGeometry:
    """Return the board with slots just large enough for images of `image_size`; None = its own table, filled.

    Raises `NotFound` for the board, `InvalidInput` for boards without otadata and for sizes that do not go.
    """
    board = board_named(board_name)
    if board.boot != "esp-otadata" or board.partition_csv is None:
        raise InvalidInput("no power cuts are swept on this board", found=board.name)
    if image_size is None:
        table = parse_csv(
            board.partition_csv, bootloader_offset=board.bootloader_offset, flash_size=board.flash_size or None
        )
        return EspGeometry(board, table, min(row.size for row in table.ota_slots) - SECTOR_BYTES)
    size = image_size // 16 * 16
    slot = (-(-size // SECTOR_BYTES) + 1) * SECTOR_BYTES
    second = FIRST_SLOT + -(-slot // SLOT_ALIGNMENT_BYTES) * SLOT_ALIGNMENT_BYTES
    flash_size = -(-(second + slot) // MIB) * MIB
    if size < IMAGE_MIN_BYTES * 2 or flash_size > FLASH_MAX_BYTES:
        raise InvalidInput(
            "not a size for images of a sweep",
            expected=f"{IMAGE_MIN_BYTES * 2} bytes to about 7 MiB",
            found=f"{image_size} bytes",
        )
    table = parse_csv(
        f"nvs, data, nvs, 0x9000, 0x4000,\notadata, data, ota, 0xd000, 0x2000,\n"
        f"ota_0, app, ota_0, {FIRST_SLOT:#x}, {slot:#x},\nota_1, app, ota_1, {second:#x}, {slot:#x},\n",
        flash_size=flash_size,
    )
    return EspGeometry(replace(board, flash_size=flash_size), table, size)


class EspSweepDevice:
    """An ESP board with its agent, and a server that offers what the scenario says. A `SweptDevice`."""

    writes_slots_while_booting = False

    def __init__(self, geometry: EspGeometry, scenario: Scenario, *, agent: SweepAgent, build: BootBuild) -> None:
        self._chip = geometry.board.chip or ""
        self._scenario = scenario
        self._agent = agent
        self._build = build
        self._image_size = geometry.image_size
        board = geometry.board
        self._flash = SweptFlash(board.flash_size, sector_size=board.sector_size, write_alignment=board.write_alignment)
        self.power = self._flash.power
        self._store = PoweredStore("store", self.power)
        self._fuses = PoweredStore("fuses", self.power)
        self.chips: Mapping[str, Chip] = {"flash": self._flash, "store": self._store, "fuses": self._fuses}
        self._pace = TimelessPace()
        self._hardware = EspHardware(
            board, self._flash, fuses=self._fuses, nvs=self._store, pace=self._pace, build=build
        )
        self._flash.listener = None
        self._hardware.provision(geometry.table)
        self._hardware.flash_app(esp_first_image(self._chip, geometry.image_size))
        whole_slot = agent is SweepAgent.MICRO_RDK
        self.regions: Sequence[Region] = tuple(
            Region(row.label, row.offset, row.size, row.size if whole_slot else SECTOR_BYTES)
            for row in geometry.table.ota_slots
        )
        self.offers: Sequence[Offer] = esp_offers(
            scenario, self._chip, geometry.image_size, secure_versions=build is BootBuild.ANTI_ROLLBACK
        )
        self._identity = Identity("swept", board.name, "02:00:00:00:00:01", board.name)
        self._frames = {offer.version: _pieces(offer.data, HTTP2_FRAME_MAX_BYTES) for offer in self.offers}
        self._events: list[DeviceEvent] = []

    def oracle(self) -> Oracle:
        """Return a judge that knows the first image and all offers."""
        first = released("1.0.0", esp_first_image(self._chip, self._image_size))
        return Oracle([first, *(offer.released for offer in self.offers)], self.regions, {"flash": self._flash})

    def boot(self, milestone: Milestone) -> Boot:
        """Run the boot loader once."""
        report = self._hardware.boot()
        refused = tuple(text.partition(":")[0] for text in report.refused)
        if report.app is None:
            return Boot(None, refused)
        return Boot(report.app.slot, refused, report, unconfirmed=report.app.awaits_confirmation)

    def live(self, boot: Boot, offer: Offer, milestone: Milestone) -> LifeEnd:
        """Live as the app: self-test, confirmation, then the agent, until it restarts or waits for the next poll."""
        report = boot.handle
        assert isinstance(report, BootReport)
        self._events.clear()
        device = VirtualDevice(
            self._identity,
            self._hardware,
            self._store,
            self._agent_for(offer, milestone),
            pace=self._pace,
            rng=random.Random(1),  # noqa: S311 -- jitter of poll periods
            listener=self._events.append,
        )
        try:
            run_at_once(device.run_app(report, ResetReason.POWER_ON))
        except Restart:
            return LifeEnd(False, installed=any(event.kind is EventKind.INSTALLED for event in self._events))
        except AtRest:
            return LifeEnd(True, self._why_it_rests(report, offer))
        raise RuntimeError("an app ended without a restart")

    def limit(self, broken: Broken) -> KnownLimit | None:
        """Return nothing: whatever breaks on this board is a broken promise."""
        return None

    def counter(self) -> int | None:
        """Return the secure version in the fuses, in builds that look at it."""
        if self._build is not BootBuild.ANTI_ROLLBACK:
            return None
        burned = self._fuses.get(SECURE_VERSION_FUSE)
        return burned if isinstance(burned, int) else 0

    def _why_it_rests(self, report: BootReport, offer: Offer) -> Reason | None:
        """Return what on the device says why it does not run the offer; None if it does, or if nothing says it.

        A tag without its image is a reason only where the boot loader can take the image away again: micro-RDK stores
        the tag after the choice of the slot.
        """
        assert isinstance(report.slots, EspSlots)
        if report.slots.running.version == offer.version:
            return None
        if any(event.kind is EventKind.UPDATE_FAILED for event in self._events):
            return Reason.REFUSED
        if report.slots.last_rejected() is not None:
            return Reason.ROLLED_BACK
        nvs = report.slots.nvs
        tag = None if nvs is None else nvs.get_string(NVS_NAMESPACE, NVS_VERSION_KEY)
        return Reason.TAG_ONLY if self._build.rolls_back and tag == offer.version else None

    def _agent_for(self, offer: Offer, milestone: Milestone) -> Agent:
        if self._agent is SweepAgent.MICRO_RDK:

            async def open_link(_: DownloadAddress, __: ssl.SSLContext) -> _MemoryLink:
                return _MemoryLink(offer, self._frames[offer.version], milestone)

            return MicroRdkAgent(_MemoryConfig(offer), tls=_tls(), period_s=REST_S, open_link=open_link)
        client = httpx.AsyncClient(transport=_MemoryServer(offer, milestone), trust_env=False)
        return EspHttpsOtaAgent(URL, client, mode=FetchMode.RESUME, period_s=REST_S, chip=self._chip)


class _MemoryConfig:
    """A machine's configuration that names the offer."""

    def __init__(self, offer: Offer) -> None:
        self._config = MachineConfig([pack_service_config(ServiceConfig(URL, offer.version))], offer.version)

    async def read(self) -> MachineConfig:
        """Return the configuration."""
        return self._config


class _MemoryLink:
    """A connection on which the offered file comes in frames of 16 KiB."""

    def __init__(self, offer: Offer, frames: Sequence[bytes], milestone: Milestone) -> None:
        self._size = len(offer.data)
        self._frames = iter(frames)
        self._milestone: Milestone | None = milestone

    async def get(self) -> AnswerHead:
        """Answer with the file's length."""
        return AnswerHead(200, (("content-length", str(self._size)),))

    async def next_frame(self, limit_s: float) -> bytes | None:
        """Return the next piece; before the first the slot is erased, and nothing but flash matters from there."""
        if self._milestone is not None:
            milestone, self._milestone = self._milestone, None
            milestone("the slot is erased")
        return next(self._frames, None)

    async def close(self) -> None:
        """Forget the connection."""


class _MemoryServer(httpx.AsyncBaseTransport):
    """A server behind an HTTP client: the offered file, whole or from an offset."""

    def __init__(self, offer: Offer, milestone: Milestone) -> None:
        self._data = offer.data
        self._etag = f'"{offer.released.sha256}"'
        self._milestone = milestone

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer with 200, 206 or 416."""
        size = len(self._data)
        headers = {"etag": self._etag}
        try:
            part = parse_range(request.headers.get("range"), size)
        except RangeNotSatisfiable:
            return httpx.Response(416, headers={"content-range": unsatisfied_content_range(size)})
        start = 0 if part is None else part.first
        if part is not None:
            headers["content-range"] = content_range(part, size)
        headers["content-length"] = str(size - start)
        body = _MemoryBody(self._data, start, self._milestone)
        return httpx.Response(200 if part is None else 206, headers=headers, stream=body)


class _MemoryBody(httpx.AsyncByteStream):
    """The body from an offset on, in pieces of one sector."""

    def __init__(self, data: bytes, start: int, milestone: Milestone) -> None:
        self._data = data
        self._start = start
        self._milestone = milestone

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give piece after piece; what was written before a piece is all that matters for the rest.

        Where the request began does not: what the agent has noted of its progress is in its store.
        """
        for offset in range(self._start, len(self._data), PIECE_BYTES):
            self._milestone(f"{offset} bytes are taken")
            yield self._data[offset : offset + PIECE_BYTES]


def _pieces(data: bytes, size: int) -> tuple[bytes, ...]:
    return tuple(data[start : start + size] for start in range(0, len(data), size))


@functools.cache
def _tls() -> ssl.SSLContext:
    """Return a context that no connection of a sweep ever uses."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
