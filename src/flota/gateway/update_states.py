"""Where an update is that a gateway carries to a device: the table of stages, and nothing else. Pure.

The stage is written to the journal before the step that it announces, so that a gateway that was killed at any moment
knows what may have happened: `intended` means that bytes may have reached the device.
Source: docs/reference/gateway.md, "Stages".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from flota.errors import Conflict


class Stage(enum.StrEnum):
    """How far an update is."""

    OFFERED = "offered"
    """The server offers it; not a byte was sent."""
    INTENDED = "intended"
    """It is being pushed, or was when the gateway died."""
    DOUBTED = "doubted"
    """A push broke off: nobody knows what the device has. It is looked at before anything else."""
    SENT = "sent"
    """Everything was sent; a sign of life is awaited."""
    DECIDED = "decided"
    """The verdict is recorded. The device is never pushed to again for this action."""
    TOLD = "told"
    """The server has the verdict."""


class Happening(enum.StrEnum):
    """What can happen to an update."""

    LOOKED_AT = "looked-at"
    """The device was looked at and is to be pushed to now."""
    NOT_CONNECTED = "not-connected"
    BROKE_OFF = "broke-off"
    ALL_SENT = "all-sent"
    GATEWAY_DIED = "gateway-died"
    SIGN_OF_LIFE = "sign-of-life"
    ANOTHER_VERSION = "another-version"
    SILENCE = "silence"
    REFUSED = "refused"
    GAVE_UP = "gave-up"
    CANCELED = "canceled"
    SERVER_KNOWS = "server-knows"


TRANSITIONS: Final[Mapping[tuple[Stage, Happening], Stage]] = MappingProxyType(
    {
        (Stage.OFFERED, Happening.LOOKED_AT): Stage.INTENDED,
        (Stage.OFFERED, Happening.REFUSED): Stage.DECIDED,
        (Stage.OFFERED, Happening.GAVE_UP): Stage.DECIDED,
        (Stage.OFFERED, Happening.CANCELED): Stage.TOLD,
        (Stage.INTENDED, Happening.NOT_CONNECTED): Stage.OFFERED,
        (Stage.INTENDED, Happening.BROKE_OFF): Stage.DOUBTED,
        (Stage.INTENDED, Happening.GATEWAY_DIED): Stage.DOUBTED,
        (Stage.INTENDED, Happening.ALL_SENT): Stage.SENT,
        (Stage.DOUBTED, Happening.LOOKED_AT): Stage.INTENDED,
        (Stage.DOUBTED, Happening.SIGN_OF_LIFE): Stage.DECIDED,
        (Stage.DOUBTED, Happening.REFUSED): Stage.DECIDED,
        (Stage.DOUBTED, Happening.GAVE_UP): Stage.DECIDED,
        (Stage.DOUBTED, Happening.CANCELED): Stage.TOLD,
        (Stage.SENT, Happening.SIGN_OF_LIFE): Stage.DECIDED,
        (Stage.SENT, Happening.ANOTHER_VERSION): Stage.DECIDED,
        (Stage.SENT, Happening.SILENCE): Stage.DECIDED,
        (Stage.DECIDED, Happening.SERVER_KNOWS): Stage.TOLD,
        (Stage.TOLD, Happening.SERVER_KNOWS): Stage.TOLD,
    }
)
"""(stage, happening) -> next stage; what is not here cannot happen."""

MAY_PUSH: Final = frozenset({Stage.OFFERED, Stage.DOUBTED})
"""Stages from which a push may begin."""

IS_OVER: Final = frozenset({Stage.DECIDED, Stage.TOLD})


class WrongHappening(Conflict):
    """This cannot happen to an update at this stage: a bug of the gateway, and nothing was changed."""

    code = "wrong-happening"


def next_stage(stage: Stage, happening: Happening) -> Stage:
    """Return the stage after `happening`. Raises `WrongHappening`."""
    following = TRANSITIONS.get((stage, happening))
    if following is None:
        raise WrongHappening(f"{happening.value} cannot happen to an update that is {stage.value}")
    return following
