"""What a virtual device tells its observer: one event, one line."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class EventKind(enum.StrEnum):
    """What happened on the device."""

    BOOT = "boot"
    REFUSED_IMAGE = "refused-image"
    NOTHING_BOOTS = "nothing-boots"
    PANIC = "panic"
    SELF_TEST = "self-test"
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    RESTART = "restart"
    POWER_CUT = "power-cut"
    POLL = "poll"
    OFFER = "offer"
    PROGRESS = "progress"
    BREAK = "break"
    RESUMED = "resumed"
    VERIFIED = "verified"
    INSTALLED = "installed"
    UPDATE_FAILED = "update-failed"
    ROLLED_BACK = "rolled-back"
    REPORTED = "reported"
    CANCELED = "canceled"
    NO_NETWORK = "no-network"
    TROUBLE = "trouble"
    SERIAL = "serial"
    """A line that the device printed on its serial console."""


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """One thing that happened on `device`, as text for people and `facts` for programs."""

    device: str
    kind: EventKind
    text: str
    facts: Mapping[str, str | int | None] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return the event as plain data for a JSON line."""
        return {"device": self.device, "event": self.kind.value, "text": self.text, **self.facts}


Listener = Callable[[DeviceEvent], None]
