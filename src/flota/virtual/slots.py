"""What an update agent sees of its device's slots, whatever flash or files lie below."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flota.errors import FlotaError


class SlotState(enum.StrEnum):
    """What the boot record says about a slot's image. The names are ESP-IDF's; the two-file board uses the same."""

    NEW = "new"
    PENDING_VERIFY = "pending-verify"
    VALID = "valid"
    INVALID = "invalid"
    ABORTED = "aborted"
    UNDEFINED = "undefined"


class Restart(BaseException):
    """The device restarts now, for the reason given."""

    def __init__(self, reason: ResetReason, text: str = "") -> None:
        super().__init__(text or reason.value)
        self.reason = reason


class ResetReason(enum.StrEnum):
    """Why the app that runs now was started."""

    POWER_ON = "power-on"
    SOFTWARE = "software"
    PANIC = "panic"
    WATCHDOG = "watchdog"
    EXTERNAL = "reset-button"


class BadImage(FlotaError):
    """What was written to a slot is not an image that would boot there."""

    code = "bad-image-in-slot"


@dataclass(frozen=True, slots=True)
class RunningApp:
    """The app that runs. `size` in bytes, digests of exactly those bytes in lower-case hex.

    `validation_hash` is what the device reports as its image's hash (docs/reference/http-update.md).
    `awaits_confirmation` is true until a new app has confirmed itself, in builds that roll back.
    """

    slot: str
    version: str
    size: int
    sha256: str
    md5: str
    validation_hash: str | None = None
    project: str | None = None
    awaits_confirmation: bool = False
    markers: Mapping[str, str] = field(default_factory=dict)


class SlotWriter(Protocol):
    """An image on its way into a slot."""

    @property
    def slot(self) -> str:
        """Name of the slot."""

    @property
    def durable(self) -> int:
        """Bytes of the image that survive a power cut from now on and may be resumed after."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes; takes device time. Raises `FlotaError` if they cannot be an image's."""

    async def finish(self) -> None:
        """Write what is left and verify the image. Raises `BadImage` or `FlotaError`."""

    def abandon(self) -> None:
        """Give up; the slot is not bootable."""


class DeviceSlots(Protocol):
    """The slots of a running device."""

    @property
    def running(self) -> RunningApp:
        """The app that runs."""

    @property
    def rolls_back(self) -> bool:
        """Whether a new app has to confirm itself or is rolled back at the next restart."""

    def next_slot(self) -> str:
        """Name of the slot that the next update goes to."""

    def capacity(self, slot: str) -> int:
        """Bytes that the slot can hold."""

    async def begin(self, slot: str, size: int) -> SlotWriter:
        """Start to write an image of `size` bytes (0 = unknown) into the slot."""

    async def resume(self, slot: str, size: int, written: int) -> SlotWriter:
        """Go on with an image of which `written` bytes, as once reported by `durable`, are in the slot."""

    def read(self, slot: str, length: int) -> bytes:
        """Return the first `length` bytes of the slot."""

    def chosen(self) -> str | None:
        """Return the slot that the boot record names, whether or not its image is good."""

    def set_boot(self, slot: str) -> None:
        """Make the slot the next boot's choice. Raises `FlotaError` if its image does not verify."""

    def confirm(self) -> None:
        """Confirm the running app."""

    def reject(self) -> None:
        """Reject the running app; the caller restarts. Raises `FlotaError` if nothing else could run."""

    def state_of(self, slot: str) -> SlotState | None:
        """Return what the boot record says of the slot, None if nothing."""
