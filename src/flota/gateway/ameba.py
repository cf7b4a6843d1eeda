"""The driver `ameba`: boards that wait to be pushed to, as the vendor's Arduino library has it.

The push says nothing about its success (docs/reference/ameba-push.md, "What a push can know"); the gateway waits for a
sign of life afterwards. Devices are recognised by their MAC address or sit at a fixed address, and are never connected
to only to look: a board takes one connection and is deaf after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from flota.boards.catalogue import board as board_named
from flota.boards.model import Route
from flota.errors import InvalidInput
from flota.gateway.driver import AdoptedDevice, Delivery, DeliveryEnd, Progress, Sighting
from flota.gateway.seen_at import whereabouts
from flota.gateway.sightings import SightingBook
from flota.protocols.ameba_push import PushOutcome, PushRecord, PushStage, judge_push, payload_for, profile_named
from flota.transports.ameba_push import PushLimits, push

DRIVER_NAME: Final = "ameba"


class AmebaDriver:
    """Pushes over TCP; what it sees of devices comes out of the book of sightings."""

    def __init__(
        self,
        book: SightingBook,
        *,
        limits: PushLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = book
        self._limits = limits or PushLimits()
        self._clock = clock

    def identify(self, device: AdoptedDevice) -> str:
        """Return by what the device is recognised. Raises `InvalidInput` or `NotFound` for what cannot be served."""
        if Route.AMEBA_PUSH not in board_named(device.board).routes:
            raise InvalidInput(
                f"{device.name}: {device.board} takes no push of this kind", hint="flota lab boards shows the routes."
            )
        port = port_of(device)
        if device.address is not None:
            return f"fixed address {device.address}, port {port}" + (f", MAC {device.mac}" if device.mac else "")
        if device.mac is None:
            raise InvalidInput(f"{device.name}: neither an address nor a MAC: nothing tells which board it is")
        return f"MAC {device.mac}, port {port}"

    def payload(self, device: AdoptedDevice, file: bytes) -> bytes:
        """Return an `OTA_All.bin`, or the bare image where the profile takes that."""
        return payload_for(profile_named(device.profile), file)[0]

    def look(self, device: AdoptedDevice) -> Sighting | None:
        """Return where the device is: at its fixed address, or where its MAC was last heard."""
        return whereabouts(self._book, device, port_of(device))

    async def deliver(self, device: AdoptedDevice, sighting: Sighting, payload: bytes, progress: Progress) -> Delivery:
        """Push once."""
        record = await push(sighting.address, sighting.port, payload, limits=self._limits, on_progress=progress)
        return delivery_of(record, self._clock())


def port_of(device: AdoptedDevice) -> int:
    """Return the device's upload port: its own setting, else its profile's. The announced one is never used."""
    return device.port or profile_named(device.profile).port


def delivery_of(record: PushRecord, ended_at: float) -> Delivery:
    """Return what a push's record means for the gateway; `ended_at` in seconds of the monotonic clock."""
    verdict = judge_push(record)
    if record.stage is PushStage.NOT_CONNECTED:
        end = DeliveryEnd.NOT_CONNECTED
    elif verdict.outcome is PushOutcome.FAILED or record.unacknowledged:
        # handed to our own system is not sent: a board that is busy with another push takes nothing
        end = DeliveryEnd.BROKEN
    else:
        end = DeliveryEnd.SENT
    return Delivery(end, verdict.reason, ended_at, record.sent, record.total)
