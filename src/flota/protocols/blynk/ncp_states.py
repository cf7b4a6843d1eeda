"""How far an update is that an NCP carries to its MCU: the table of states, and nothing else.

Source: docs/reference/blynk.md, "What the NCP does".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from flota.errors import Conflict


class UpdateState(enum.StrEnum):
    """Where an update is, as the NCP sees it."""

    IDLE = "idle"
    PENDING = "pending"
    """There is a job; the MCU is not asked yet, or is to be asked again."""
    OFFERED = "offered"
    ACCEPTED = "accepted"
    """The MCU took the offer; its otaUpdateStart is awaited."""
    PREFETCHING = "prefetching"
    STREAMING = "streaming"
    FINISHING = "finishing"
    APPLIED = "applied"
    """The MCU said that it applies the image, or nobody knows; its report of a version is awaited."""
    SETTLING = "settling"
    """The new version was reported; it has to stay for a while."""


class UpdateInput(enum.StrEnum):
    """What can happen to an update."""

    JOB_GIVEN = "job given"
    JOB_KEPT_ACCEPTED = "job kept, accepted before a restart"
    JOB_KEPT_APPLIED = "job kept, applied before a restart"
    OFFER_SENT = "offer sent"
    OFFER_TAKEN = "offer taken"
    OFFER_DECLINED = "offer declined"
    TRY_AGAIN = "to be offered again"
    PREFETCH_ASKED = "prefetch asked"
    PREFETCH_ANSWERED = "prefetch answered"
    START_ASKED = "start asked"
    MCU_RESTARTED = "MCU restarted"
    NCP_RESTARTED = "NCP restarted"
    ALL_SENT = "all sent"
    APPLYING = "MCU applies it"
    FINISH_UNANSWERED = "finish unanswered"
    NEW_VERSION = "new version reported"
    OTHER_VERSION = "other version reported"
    SETTLED = "settled"
    FAILED = "failed"
    LEFT_TO_MCU = "left to the MCU"
    """The stream broke; a boot loader that will come back for it decides when."""
    WITHDRAWN = "withdrawn"


_S, _I = UpdateState, UpdateInput

_ALL_OPEN: Final = tuple(state for state in UpdateState if state is not UpdateState.IDLE)
_BEFORE_VERSION: Final = (_S.PENDING, _S.OFFERED, _S.ACCEPTED, _S.PREFETCHING, _S.STREAMING, _S.FINISHING, _S.APPLIED)

TRANSITIONS: Final[Mapping[tuple[UpdateState, UpdateInput], UpdateState]] = MappingProxyType(
    {
        (_S.IDLE, _I.JOB_GIVEN): _S.PENDING,
        (_S.IDLE, _I.JOB_KEPT_ACCEPTED): _S.ACCEPTED,
        (_S.IDLE, _I.JOB_KEPT_APPLIED): _S.APPLIED,
        (_S.IDLE, _I.START_ASKED): _S.STREAMING,  # a boot loader without an app comes back for a job that had failed
        (_S.PENDING, _I.OFFER_SENT): _S.OFFERED,
        (_S.OFFERED, _I.OFFER_TAKEN): _S.ACCEPTED,
        (_S.OFFERED, _I.OFFER_DECLINED): _S.IDLE,
        (_S.STREAMING, _I.OFFER_DECLINED): _S.IDLE,  # it had started inside the call
        (_S.OFFERED, _I.TRY_AGAIN): _S.PENDING,
        (_S.ACCEPTED, _I.TRY_AGAIN): _S.PENDING,
        **{(state, _I.PREFETCH_ASKED): _S.PREFETCHING for state in (_S.PENDING, _S.OFFERED, _S.ACCEPTED)},
        (_S.PREFETCHING, _I.PREFETCH_ANSWERED): _S.ACCEPTED,
        **{(state, _I.START_ASKED): _S.STREAMING for state in _BEFORE_VERSION},
        **{(state, _I.MCU_RESTARTED): _S.PENDING for state in (_S.ACCEPTED, _S.PREFETCHING, _S.STREAMING, _S.OFFERED)},
        (_S.FINISHING, _I.MCU_RESTARTED): _S.APPLIED,
        **{(state, _I.NCP_RESTARTED): _S.ACCEPTED for state in (_S.ACCEPTED, _S.PREFETCHING, _S.STREAMING)},
        (_S.OFFERED, _I.NCP_RESTARTED): _S.PENDING,
        (_S.FINISHING, _I.NCP_RESTARTED): _S.APPLIED,
        (_S.STREAMING, _I.ALL_SENT): _S.FINISHING,
        (_S.FINISHING, _I.APPLYING): _S.APPLIED,
        (_S.FINISHING, _I.FINISH_UNANSWERED): _S.APPLIED,
        **{(state, _I.NEW_VERSION): _S.SETTLING for state in _BEFORE_VERSION},
        (_S.APPLIED, _I.OTHER_VERSION): _S.IDLE,
        (_S.SETTLING, _I.OTHER_VERSION): _S.IDLE,
        (_S.SETTLING, _I.SETTLED): _S.IDLE,
        **{(state, _I.FAILED): _S.IDLE for state in _ALL_OPEN},
        (_S.STREAMING, _I.LEFT_TO_MCU): _S.ACCEPTED,
        (_S.FINISHING, _I.LEFT_TO_MCU): _S.ACCEPTED,
        **{(state, _I.WITHDRAWN): _S.IDLE for state in _ALL_OPEN},
    }
)
"""(state, input) -> next state; what is not here cannot happen."""

MCU_MAY_BE_SILENT: Final = frozenset({_S.ACCEPTED, _S.PREFETCHING, _S.STREAMING, _S.FINISHING, _S.APPLIED})
"""States in which the MCU may erase flash, sit in a boot loader or restart: its silence is no reason to give it up."""

MCU_IS_AT_WORK: Final = frozenset({_S.PREFETCHING, _S.STREAMING, _S.FINISHING})
"""States in which the MCU is heard, but has nothing to be reminded of."""


class WrongInput(Conflict):
    """This cannot happen to an update in this state: a bug of the NCP, and nothing was changed."""

    code = "wrong-input"


def next_state(state: UpdateState, happened: UpdateInput) -> UpdateState:
    """Return the state after `happened`. Raises `WrongInput`."""
    following = TRANSITIONS.get((state, happened))
    if following is None:
        raise WrongInput(f"{happened.value!r} cannot happen to an update that is {state.value}")
    return following
