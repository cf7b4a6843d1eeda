"""How a device is to take an update: asked first or not, urgently or not, inside maintenance windows or at any time.

One table says what a device is told. It is hawkBit's, because its clients know these words best; the other dialects use
the part that they can express.

Source: docs/reference/hawkbit-ddi.md, "How urgent, and when".
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from flota.errors import InvalidInput
from flota.fleet.maintenance_windows import ZONE_LABEL, MaintenanceSchedule, parse_schedule, window_state

NO_MAINTENANCE: Final = "none"
"""A rollout's maintenance window that says: at any time, whatever the type says."""


class Urgency(enum.StrEnum):
    """A rollout's action type. TIMEFORCED is soft until its time has come, forced from then on."""

    FORCED = "forced"
    SOFT = "soft"
    TIMEFORCED = "timeforced"
    DOWNLOADONLY = "downloadonly"


class Handling(enum.StrEnum):
    """What a device is to do with a download, or with an installation."""

    SKIP = "skip"
    ATTEMPT = "attempt"
    FORCED = "forced"


class Window(enum.Enum):
    """Where an update stands to its maintenance windows."""

    NONE = "none"
    OPEN = "open"
    CLOSED = "closed"


_U, _W, _H = Urgency, Window, Handling

HANDLING: Final[Mapping[tuple[Urgency, Window], tuple[Handling, Handling]]] = {
    (_U.FORCED, _W.NONE): (_H.FORCED, _H.FORCED),
    (_U.FORCED, _W.OPEN): (_H.FORCED, _H.FORCED),
    (_U.FORCED, _W.CLOSED): (_H.FORCED, _H.SKIP),
    (_U.SOFT, _W.NONE): (_H.ATTEMPT, _H.ATTEMPT),
    (_U.SOFT, _W.OPEN): (_H.ATTEMPT, _H.ATTEMPT),
    (_U.SOFT, _W.CLOSED): (_H.ATTEMPT, _H.SKIP),
    (_U.DOWNLOADONLY, _W.NONE): (_H.FORCED, _H.SKIP),
}
"""(download, update). TIMEFORCED is looked up as what it is at the moment; what is only downloaded needs no window."""


@dataclass(frozen=True, slots=True)
class UpdateRules:
    """How the devices of one rollout are to take it; `forced_at` belongs to TIMEFORCED alone."""

    urgency: Urgency = Urgency.FORCED
    forced_at: datetime | None = None
    confirm: bool = False
    maintenance: MaintenanceSchedule | None = None
    download_ahead: bool = False


class Stage(enum.Enum):
    """What a device is shown of an action that is its turn."""

    ASK = "ask"
    """The action waits for the device's agreement."""
    TELL = "tell"
    """The device is told to download, and perhaps to install."""
    WAIT = "wait"
    """Nothing: the maintenance window is closed."""


@dataclass(frozen=True, slots=True)
class Showing:
    """What a device is shown; it may be otherwise from `valid_until` on (None: only something that happens changes it).

    `opens_at` is when the closed window opens.
    """

    stage: Stage
    download: Handling
    update: Handling
    window: Window
    valid_until: datetime | None = None
    opens_at: datetime | None = None


@functools.lru_cache(maxsize=1024)
def schedule_of(text: str) -> MaintenanceSchedule:
    """Return the schedule in a text that was checked when it was stored."""
    return parse_schedule(text)


@functools.lru_cache(maxsize=4096)
def _schedule_at(text: str, zone: str) -> MaintenanceSchedule:
    return schedule_of(text).for_device({ZONE_LABEL: zone})


def rules_for(
    *,
    urgency: Urgency,
    forced_at: datetime | None,
    rollout_confirm: bool | None,
    rollout_maintenance: str | None,
    type_confirm: bool,
    type_maintenance: str | None,
    download_ahead: bool,
    device_zone: str = "",
) -> UpdateRules:
    """Return the rules of a rollout over a type's own, for a device: None on the rollout's side takes the type's.

    `device_zone` is the device's label `timezone`, for windows in its own time.
    """
    maintenance = type_maintenance if rollout_maintenance is None else rollout_maintenance
    return UpdateRules(
        urgency=urgency,
        forced_at=forced_at,
        confirm=type_confirm if rollout_confirm is None else rollout_confirm,
        maintenance=None if maintenance in (None, NO_MAINTENANCE) else _schedule_at(maintenance, device_zone),
        download_ahead=download_ahead,
    )


def check_rules(*, urgency: Urgency, forced_at: datetime | None, maintenance: str | None) -> None:
    """Raise `InvalidInput` unless these go together and the maintenance window can be read."""
    if (urgency is Urgency.TIMEFORCED) != (forced_at is not None):
        raise InvalidInput(
            "timeforced and the time from which on it is forced go together",
            expected="both or neither",
            found=f"{urgency}, {'a time' if forced_at else 'no time'}",
        )
    if maintenance is not None and maintenance != NO_MAINTENANCE:
        parse_schedule(maintenance)


def show_update(rules: UpdateRules, *, agreed: bool, now: datetime) -> Showing:
    """Return what a device is shown of an action whose turn it is; `agreed` = it confirmed, or does so by itself."""
    urgency, moments = rules.urgency, []
    if urgency is Urgency.TIMEFORCED and rules.forced_at is not None:
        is_time = now >= rules.forced_at
        urgency = Urgency.FORCED if is_time else Urgency.SOFT
        if not is_time:
            moments.append(rules.forced_at)
    window, opens_at = Window.NONE, None
    if rules.maintenance is not None and urgency is not Urgency.DOWNLOADONLY:
        state = window_state(rules.maintenance, now=now)
        window = Window.OPEN if state.is_open else Window.CLOSED
        opens_at = None if state.is_open else state.until
        moments.append(state.until)
    download, update = HANDLING[urgency, window]
    if rules.confirm and not agreed:
        stage = Stage.ASK
    elif window is Window.CLOSED and not rules.download_ahead:
        stage = Stage.WAIT
    else:
        stage = Stage.TELL
    return Showing(stage, download, update, window, min(moments, default=None), opens_at)
