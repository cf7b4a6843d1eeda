"""The MCU's part of an update as a table, what its firmware hears of, and how firmware may differ.

Source: docs/reference/blynk.md, "What the MCU does" and "What the vendor's reference does".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from flota.errors import Conflict
from flota.protocols.blynk.catalogue import PrefetchStatus

STALL_LIMIT_S: Final = 60.0
"""Without a new chunk for so long, the MCU discards what it has."""
START_TRIES: Final = 4
"""The first, and three more."""


class McuState(enum.StrEnum):
    """Where the MCU is with an update."""

    IDLE = "idle"
    ASKED = "asked"
    """An offer is here; the firmware decides, within the 5 s that the NCP waits."""
    PREPARE = "prepare"
    PREFETCH = "prefetch"
    START = "start"
    RECEIVE = "receive"
    VERIFY = "verify"
    APPLY = "apply"


class McuInput(enum.StrEnum):
    """What can happen to it."""

    OFFERED = "offered"
    DECLINED = "declined"
    ACCEPTED = "accepted"
    PREFETCH_BEGUN = "prefetch begun"
    PREFETCH_ENDED = "prefetch ended"
    START_SENT = "start sent"
    STARTED = "started"
    FINISH_ASKED = "finish asked"
    VERIFIED = "verified"
    DISCARDED = "discarded"


_S, _I = McuState, McuInput

TRANSITIONS: Final[Mapping[tuple[McuState, McuInput], McuState]] = MappingProxyType(
    {
        # A new offer replaces an update under way: the NCP makes one only when it has lost the old one.
        **{
            (state, _I.OFFERED): _S.ASKED
            for state in (_S.IDLE, _S.ASKED, _S.PREPARE, _S.PREFETCH, _S.START, _S.RECEIVE)
        },
        (_S.ASKED, _I.DECLINED): _S.IDLE,
        (_S.ASKED, _I.ACCEPTED): _S.PREPARE,
        (_S.PREPARE, _I.PREFETCH_BEGUN): _S.PREFETCH,
        (_S.PREFETCH, _I.PREFETCH_ENDED): _S.PREPARE,
        (_S.IDLE, _I.START_SENT): _S.START,  # a boot loader that knows from its record what it wants
        (_S.PREPARE, _I.START_SENT): _S.START,
        (_S.START, _I.STARTED): _S.RECEIVE,
        (_S.RECEIVE, _I.FINISH_ASKED): _S.VERIFY,
        (_S.VERIFY, _I.VERIFIED): _S.APPLY,
        **{(state, _I.DISCARDED): _S.IDLE for state in McuState if state not in (_S.IDLE, _S.APPLY)},
    }
)
"""(state, input) -> next state; what is not here cannot happen."""


class WrongStep(Conflict):
    """The firmware asked for something that its update is not ready for; nothing was changed."""

    code = "wrong-step"


@dataclass(frozen=True, slots=True)
class McuPolicy:
    """How a firmware behaves; the defaults are those of a careful one. `chunk` in bytes.

    `repeats_are_taken`: a chunk that is stored already is acknowledged again. `compares`: which of the NCP's digests
    have to be right, as far as the NCP knows them; `needs_crc`: without the CRC-32 the image is refused.
    `asks_digests_early`: after a prefetch already, for the record of a boot loader. `asks_state`: it asks the NCP from
    time to time what its state is, not only whether it is there, and so notices that it has restarted.
    """

    chunk: int = 1024
    repeats_are_taken: bool = True
    start_tries: int = START_TRIES
    stall_limit_s: float | None = STALL_LIMIT_S
    compares: frozenset[str] = frozenset({"md5", "sha256", "crc32"})
    needs_crc: bool = False
    asks_digests_early: bool = False
    asks_state: bool = True


REFERENCE: Final = McuPolicy(
    repeats_are_taken=False,
    start_tries=1,
    stall_limit_s=None,
    compares=frozenset({"crc32"}),
    needs_crc=True,
    asks_state=False,
)
"""The vendor's reference firmware, weaknesses included: it never repeats otaUpdateStart and never gives a stream up."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What otaUpdateAvailable said; `size` in bytes, texts may be empty."""

    filename: str
    size: int
    fw_type: str = ""
    version: str = ""
    build: str = ""


@dataclass(frozen=True, slots=True)
class NcpDigests:
    """Digests of the whole file as the NCP knows them; None = it does not."""

    md5: bytes | None = None
    sha256: bytes | None = None
    crc32: int | None = None


@dataclass(frozen=True, slots=True)
class OfferMade:
    """`accept` or `decline` has to follow, within 5 s; after `accept` `begin`, whenever the moment is right."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class PrefetchEnded:
    """The NCP has the whole file, or why not; and what it says of the file."""

    status: PrefetchStatus
    digests: NcpDigests


@dataclass(frozen=True, slots=True)
class ReceivingBegan:
    """The stream begins at the first byte."""

    size: int
    chunk: int


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    """Program `data` at `offset` bytes of the slot; `chunk_stored` has to follow, within 5 s."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class VerifyImage:
    """All is stored: check it, against these digests too; `verified` has to follow, at once."""

    size: int
    digests: NcpDigests


@dataclass(frozen=True, slots=True)
class ApplyNow:
    """The NCP knows: restart into the new image, some 10 to 100 ms from now."""


@dataclass(frozen=True, slots=True)
class Discarded:
    """The update is over; what was stored of it is of no use."""

    reason: str


McuUpdateEvent = OfferMade | PrefetchEnded | ReceivingBegan | ChunkArrived | VerifyImage | ApplyNow | Discarded
