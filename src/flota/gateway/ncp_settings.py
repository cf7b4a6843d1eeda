"""What an NCP is told, as a value that goes from the command line to the process that runs for years.

Source: docs/reference/blynk.md, "flota ncp run".
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from flota.boards.catalogue import board as board_named
from flota.boards.model import BOOT_NCP_ASSISTED, Route
from flota.errors import InvalidInput
from flota.gateway.configuration import server_url
from flota.gateway.driver import AdoptedDevice
from flota.gateway.starting import ARENAS
from flota.protocols.blynk.ncp import BOOT_LOADER_AFTER_S, INITIAL_BAUD, SUPPORTED_BAUDS
from flota.protocols.blynk.ncp_job import CHUNK_MAX_BYTES, REPORT_LIMIT_S, SETTLE_S, START_WAIT_S, NcpUpdateSettings
from flota.protocols.ddi import DEFAULT_TENANT

VARIABLE: Final = "FLOTA_NCP_START"
MODULE: Final = "flota.gateway.ncp_process"
DEFAULT_BOARD: Final = "dual-mcu-ab"
CHUNK_MIN_BYTES: Final = 64
DRIVER: Final = "blynk-ncp"


@dataclass(frozen=True, slots=True)
class NcpRunSettings:
    """Everything that `flota ncp run` was told. Paths are absolute texts; `settle_s` None = as the board asks for.

    `token` is the device's own, or a gateway's with `is_gateway_token`. `baud` is the rate that the NCP begins at.
    """

    serial: str
    server: str
    device: str
    state: str
    trust: list[str]
    token: str | None = None
    is_gateway_token: bool = False
    tenant: str = DEFAULT_TENANT
    board: str = DEFAULT_BOARD
    device_type: str | None = None
    hardware_revision: str | None = None
    cacert: str | None = None
    baud: int = INITIAL_BAUD
    max_baud: int = max(SUPPORTED_BAUDS)
    chunk_max_bytes: int = CHUNK_MAX_BYTES
    poll_s: float | None = None
    settle_s: float | None = None
    start_wait_s: float = START_WAIT_S
    report_limit_s: float = REPORT_LIMIT_S
    boot_loader_after_s: float = BOOT_LOADER_AFTER_S
    log_json: bool = False
    log_level: str = "info"
    with_parent: bool = False

    def checked(self) -> NcpRunSettings:
        """Return the same. Raises `InvalidInput` or `NotFound` for what cannot work."""
        server_url(self.server)
        if Route.BLYNK_NCP not in board_named(self.board).routes:
            raise InvalidInput(
                f"{self.board} is no board behind an NCP", expected="dual-mcu-ab or dual-mcu-ncp", found=self.board
            )
        if self.baud not in SUPPORTED_BAUDS:
            expected = ", ".join(str(baud) for baud in sorted(SUPPORTED_BAUDS))
            raise InvalidInput("not a rate of a serial line", expected=expected, found=self.baud)
        if not CHUNK_MIN_BYTES <= self.chunk_max_bytes <= CHUNK_MAX_BYTES:
            raise InvalidInput(
                "not a size of chunks", expected=f"{CHUNK_MIN_BYTES} to {CHUNK_MAX_BYTES}", found=self.chunk_max_bytes
            )
        return self

    def adopted(self) -> AdoptedDevice:
        """Return the device as releases are judged against."""
        board = board_named(self.board)
        return AdoptedDevice(
            name=self.device,
            device_type=self.device_type or board.name,
            board=board.name,
            driver=DRIVER,
            hardware_revision=self.hardware_revision,
        )

    def update_settings(self) -> NcpUpdateSettings:
        """Return the limits of the update: an MCU without a way back needs no time to think better of it."""
        board = board_named(self.board)
        settle_s = self.settle_s if self.settle_s is not None else SETTLE_S if board.rolls_back else 0.0
        return NcpUpdateSettings(
            chunk_max_bytes=self.chunk_max_bytes,
            start_wait_s=self.start_wait_s,
            report_limit_s=self.report_limit_s,
            settle_s=settle_s,
            left_to_boot_loader=board.boot == BOOT_NCP_ASSISTED,
        )

    def bauds(self) -> frozenset[int]:
        """Return the rates that the MCU may ask for."""
        return frozenset(baud for baud in SUPPORTED_BAUDS if baud <= self.max_baud) | {self.baud}


def become_ncp(settings: NcpRunSettings) -> NoReturn:
    """Replace this process by the NCP alone, without the command line's libraries. Raises `OSError`."""
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {"MALLOC_ARENA_MAX": ARENAS, **os.environ, VARIABLE: msgspec.json.encode(settings).decode()}
    os.execve(sys.executable, [sys.executable, "-m", MODULE], environment)  # noqa: S606 - our own program


def settings_from_environment() -> NcpRunSettings:
    """Return what `become_ncp` left, and remove it: it holds a token. Raises `KeyError` if nothing is there."""
    return msgspec.json.decode(os.environ.pop(VARIABLE), type=NcpRunSettings)


def state_directory(settings: NcpRunSettings) -> Path:
    """Return where the journal and the files are."""
    return Path(settings.state)
