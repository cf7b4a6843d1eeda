"""What an NCP is given to carry, what it says on the way, and how it may end.

Source: docs/reference/blynk.md, "What the NCP does".
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from flota.errors import InvalidInput
from flota.protocols.blynk.catalogue import WRITE_OVERHEAD_BYTES
from flota.protocols.blynk.frames import PAYLOAD_MAX_BYTES
from flota.protocols.blynk.ncp_states import UpdateState
from flota.protocols.blynk.values import Kind, pack_values

CHUNK_MAX_BYTES: Final = PAYLOAD_MAX_BYTES - WRITE_OVERHEAD_BYTES
assert CHUNK_MAX_BYTES == 1520

START_WAIT_S: Final = 600.0
"""For otaUpdateStart after an offer was taken: the MCU may erase, wait for power, or sit in a boot loader."""
REPORT_LIMIT_S: Final = 600.0
"""For the report of a version after the image was applied."""
CONFIRM_WINDOW_S: Final = 60.0
"""An app on trial has so long to confirm itself; then it is reset."""
BRING_UP_LIMIT_S: Final = 30.0
"""From a reset to the report of a version: the boot loader checks the image, and the vendor's references look for the
NCP for 5 or 10 s at a time."""
SETTLE_S: Final = CONFIRM_WINDOW_S + BRING_UP_LIMIT_S
"""An image that never confirms itself is reset and reports again while it has trials left, up to so long after its last
report. After 60 s alone it would pass for one that stays: it reports first, and its reset comes 60 s after its boot."""

_FILE_SIZE_MAX: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class FileDigests:
    """Of the whole file: the raw digests and CRC-32."""

    crc32: int
    md5: bytes
    sha256: bytes


@dataclass(frozen=True, slots=True)
class UpdateJob:
    """One image for the MCU; `size` in bytes. The texts may be empty where nobody knows them.

    `was_accepted`: the MCU once took the offer, so that a boot loader may come back for it.
    """

    filename: str
    size: int
    fw_type: str = ""
    version: str = ""
    build: str = ""
    digests: FileDigests | None = None
    is_prefetched: bool = False
    was_accepted: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.size <= _FILE_SIZE_MAX:
            raise InvalidInput("not the size of an image", expected=f"1 to {_FILE_SIZE_MAX}", found=self.size)
        offer = (self.filename, self.size, self.fw_type, self.version, self.build)
        length = len(pack_values((Kind.STRING, Kind.U32, Kind.STRING, Kind.STRING, Kind.STRING), offer))
        if length > CHUNK_MAX_BYTES:
            raise InvalidInput("the offer does not fit a frame", expected=f"{CHUNK_MAX_BYTES} bytes", found=length)


@dataclass(frozen=True, slots=True)
class FirmwareInfo:
    """What an MCU says that it runs."""

    fw_type: str = ""
    version: str = ""
    build: str = ""
    library: str = ""


@dataclass(frozen=True, slots=True)
class NcpUpdateSettings:
    """Limits in seconds and bytes. `settle_s`: how long a new version has to stay before the update has succeeded.

    `left_to_boot_loader`: the MCU has one bank, its boot loader comes back for the image however long it takes.
    """

    chunk_max_bytes: int = CHUNK_MAX_BYTES
    start_wait_s: float = START_WAIT_S
    report_limit_s: float = REPORT_LIMIT_S
    settle_s: float = SETTLE_S
    left_to_boot_loader: bool = False


class Outcome(enum.StrEnum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    DECLINED = "declined"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The job is in another state; to be written down before anything else happens."""

    state: UpdateState


@dataclass(frozen=True, slots=True)
class NeedBytes:
    """`supply(offset, data)` with `length` bytes has to follow."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class PrefetchWanted:
    """The MCU asked for the whole file to be here; `prefetched` has to follow."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """The MCU has so many bytes of so many."""

    stored: int
    size: int


@dataclass(frozen=True, slots=True)
class RebootDue:
    """The MCU applies the image: the NCP restarts, back at its first rate."""


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The verdict, with one sentence for people."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True)
class Remark:
    """Something for the log."""

    text: str


UpdateEvent = StateChanged | NeedBytes | PrefetchWanted | Progressed | RebootDue | JobEnded | Remark
