"""What a last hop has to be able to do: one small interface, to be written for every other kind of device.

The gateway asks the server, fetches, verifies, keeps the journal and judges; a driver only knows how its devices are
recognised, how an image reaches them and what can be seen of them. It never decides whether to push.
Source: docs/reference/gateway.md, "Drivers".
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

Progress = Callable[[int, int], None]
"""(bytes that arrived as far as is known, bytes in all); called from the driver's task, must not block."""


@dataclass(frozen=True, slots=True)
class AdoptedDevice:
    """A device that the gateway may push to, as its configuration says.

    `address` (IP address or host name) and `mac` (AA:BB:CC:DD:EE:FF): at least one; without an address the device is
    the one on the network with that MAC. `port` None: the profile's. `token` is a TargetToken of its own, None = the
    gateway's. `board`, `device_type` and `hardware_revision` are what releases are judged against, with the
    binary `partition_table` of ESP boards (None: the board's usual one). `password` is
    what an espota device asks for.
    """

    name: str
    device_type: str
    board: str
    driver: str = "ameba"
    address: str | None = None
    port: int | None = None
    mac: str | None = None
    profile: str = "arduino"
    hardware_revision: str | None = None
    partition_table: bytes | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


class SightingBasis(enum.StrEnum):
    """How it is known that a device is there."""

    FIXED_ADDRESS = "fixed-address"
    """It is configured to be there; nothing was heard."""
    ANNOUNCEMENT = "announcement"
    STATE_POST = "state-post"
    CHECK_IN = "check-in"


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where a device is. `heard_at` and `version_at` in seconds of `time.monotonic`, None = never.

    `version` is what the device last said that it runs.
    """

    address: str
    port: int
    basis: SightingBasis
    heard_at: float | None = None
    version: str | None = None
    version_at: float | None = None


class DeliveryEnd(enum.StrEnum):
    """How a delivery ended, as far as the sender can know."""

    NOT_CONNECTED = "not-connected"
    """Not one byte was sent."""
    BROKEN = "broken"
    """Some bytes were sent: the device has to be looked at before the next try."""
    SENT = "sent"
    """All bytes were sent. Only a sign of life afterwards says what became of them."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One try. `reason` is one sentence for people; `ended_at` seconds of `time.monotonic`."""

    end: DeliveryEnd
    reason: str
    ended_at: float
    sent: int = 0
    total: int = 0


class LastHopDriver(Protocol):
    """How images reach one kind of device."""

    def identify(self, device: AdoptedDevice) -> str:
        """Return in a few words by what the device is recognised.

        Raises `InvalidInput` if this driver cannot serve a device that is configured so. No IO.
        """

    def payload(self, device: AdoptedDevice, file: bytes) -> bytes:
        """Return what goes over the wire for a release's file. Raises an `ImageError` or `Refused`. No IO."""

    def look(self, device: AdoptedDevice) -> Sighting | None:
        """Return where the device is now, None if it is not to be seen. Never connects to it.

        Raises `Refused` when something else is where the device should be.
        """

    async def deliver(self, device: AdoptedDevice, sighting: Sighting, payload: bytes, progress: Progress) -> Delivery:
        """Send the payload to where the device was seen. Never raises for what the device does."""
