"""The boot choice of an MCU with one bank, whose boot loader fetches the app from the NCP: app, or fetch. Pure.

    offset  size
    0       4      magic "FLNA"
    4       4      number of the record, the higher one counts
    8       1      state: 1 = done, 2 = pending, 3 = writing
    9       3      reserved, FF
    12      36     app: size (4, FFFFFFFF = none), SHA-256 (32)
    48      40     wanted image: size (4, FFFFFFFF = none), CRC-32 (4), SHA-256 (32)
    88      4      rate of the line (baud) when the record was written
    92      64     firmware type, padded with NUL
    156     64     version of the wanted image, padded with NUL
    220     4      CRC-32 over all before it

Two copies in two sectors that take turns: until the CRC of a new one stands, the old one counts. The app is sound
until WRITING is in the record, which stands before the first erase; from then on only a complete image ends it.
Source: docs/reference/blynk.md, "Virtual boards".
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from flota.errors import InvalidInput

MAGIC: Final = b"FLNA"
TEXT_BYTES: Final = 64
_RECORD: Final = struct.Struct(f"<4sIB3sI32sII32sI{TEXT_BYTES}s{TEXT_BYTES}s")
_CRC: Final = struct.Struct("<I")
RECORD_SIZE: Final = 224
assert _RECORD.size + _CRC.size == RECORD_SIZE

NO_SIZE: Final = 0xFFFF_FFFF
_NO_DIGEST: Final = b"\xff" * 32

CRASHES_MAX: Final = 3
"""So many starts of an app that never reached its NCP, and the boot loader listens for another image."""


class FetchState(enum.IntEnum):
    """How far the boot loader is with the image that is wanted."""

    DONE = 1
    PENDING = 2
    WRITING = 3


@dataclass(frozen=True, slots=True)
class AppEntry:
    """The app in the bank: `size` in bytes, raw SHA-256."""

    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class WantedImage:
    """What the NCP said of the image that it holds: `size` in bytes, CRC-32 and raw SHA-256 of the whole."""

    size: int
    crc32: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class FetchRecord:
    """What outlives the power. `fw_type` is that of this device's firmware; `baud` where the NCP was last heard."""

    state: FetchState = FetchState.DONE
    app: AppEntry | None = None
    wanted: WantedImage | None = None
    baud: int = 0
    fw_type: str = ""
    version: str = ""
    number: int = 0

    def pending(self, wanted: WantedImage, *, baud: int, fw_type: str, version: str) -> FetchRecord:
        """Return the record with which the app hands over to the boot loader; a bank that is half written stays so."""
        state = FetchState.WRITING if self.state is FetchState.WRITING else FetchState.PENDING
        return replace(self, state=state, wanted=wanted, baud=baud, fw_type=fw_type or self.fw_type, version=version)

    def writing(self) -> FetchRecord:
        """Return the record that stands before the first erase: there is no app any more."""
        return replace(self, state=FetchState.WRITING, app=None)

    def done(self) -> FetchRecord:
        """Return the record of a bank that holds the wanted image, complete and verified."""
        assert self.wanted is not None
        return replace(
            self, state=FetchState.DONE, app=AppEntry(self.wanted.size, self.wanted.sha256), wanted=None, version=""
        )

    def abandoned(self) -> FetchRecord:
        """Return the record of a device that keeps its app: nothing was erased."""
        assert self.state is not FetchState.WRITING
        return replace(self, state=FetchState.DONE, wanted=None, version="")


class BootWay(enum.StrEnum):
    """What a boot does."""

    APP = "app"
    FETCH = "fetch"
    """Ask the NCP for the wanted image, for ever once its first sector is erased."""
    LISTEN = "listen"
    """There is no app, or it does not live: wait for an offer."""


def decide(record: FetchRecord, *, app_is_sound: bool, crashes: int) -> BootWay:
    """Return what one boot does. `crashes`: starts of the app since it last reached its NCP, in retained memory."""
    if record.wanted is not None and record.state is not FetchState.DONE:
        return BootWay.FETCH
    return BootWay.APP if app_is_sound and crashes < CRASHES_MAX else BootWay.LISTEN


def fits_the_record(text: str) -> bool:
    """Return whether a firmware type or version has room in the record."""
    return len(text.encode("utf-8")) <= TEXT_BYTES and "\0" not in text


def pack_record(record: FetchRecord) -> bytes:
    """Return the 224 bytes of a record. Raises `InvalidInput` for texts that have no room in it."""
    for text in (record.fw_type, record.version):
        if not fits_the_record(text):
            raise InvalidInput(
                "the text does not fit the boot record", expected=f"at most {TEXT_BYTES} bytes", found=repr(text[:80])
            )
    app, wanted = record.app, record.wanted
    body = _RECORD.pack(
        MAGIC,
        record.number,
        record.state,
        b"\xff" * 3,
        NO_SIZE if app is None else app.size,
        _NO_DIGEST if app is None else app.sha256,
        NO_SIZE if wanted is None else wanted.size,
        0 if wanted is None else wanted.crc32,
        _NO_DIGEST if wanted is None else wanted.sha256,
        record.baud,
        record.fw_type.encode("utf-8"),
        record.version.encode("utf-8"),
    )
    return body + _CRC.pack(zlib.crc32(body))


def parse_record(data: bytes) -> FetchRecord | None:
    """Return the record at the start of a sector, None if there is none that is whole."""
    body, crc = data[: _RECORD.size], data[_RECORD.size : RECORD_SIZE]
    if len(crc) < _CRC.size or body[: len(MAGIC)] != MAGIC or _CRC.unpack(crc)[0] != zlib.crc32(body):
        return None
    _, number, code, _, app_size, app_sha, size, crc32, sha, baud, fw_type, version = _RECORD.unpack(body)
    if code not in _STATES:
        return None
    return FetchRecord(
        _STATES[code],
        None if app_size == NO_SIZE else AppEntry(app_size, app_sha),
        None if size == NO_SIZE else WantedImage(size, crc32, sha),
        baud,
        _text(fw_type),
        _text(version),
        number,
    )


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


_STATES: Final[Mapping[int, FetchState]] = MappingProxyType({state.value: state for state in FetchState})
