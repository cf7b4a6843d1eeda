"""The driver `espota`: ESP boards with ArduinoOTA, which are invited by UDP and fetch the image by TCP.

Unlike on AmebaD the board answers: its last `OK` says that MD5 and image are right and that it restarts. Whether the
new image runs is still known only when the board comes back, since its boot loader may go back to the old one.
Source: docs/reference/espota.md; docs/reference/gateway.md, "Drivers".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from flota.boards.catalogue import board as board_named
from flota.errors import InvalidInput
from flota.gateway.driver import AdoptedDevice, Delivery, DeliveryEnd, Progress, Sighting
from flota.gateway.seen_at import whereabouts
from flota.gateway.sightings import SightingBook
from flota.images.inspection import inspect
from flota.images.model import ImageError, ImageFormat
from flota.protocols.espota import ESP32_PORT
from flota.transports.espota import EspotaLimits, EspotaRecord, EspotaStage, push_espota

DRIVER_NAME: Final = "espota"
FILE_NAME: Final = "firmware.bin"


class EspotaDriver:
    """Pushes by espota; what it sees of devices comes out of the book of sightings."""

    def __init__(
        self,
        book: SightingBook,
        *,
        limits: EspotaLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._book = book
        self._limits = limits
        self._clock = clock

    def identify(self, device: AdoptedDevice) -> str:
        """Return by what the device is recognised. Raises `InvalidInput` or `NotFound` for what cannot be served."""
        if board_named(device.board).boot != "esp-otadata":
            raise InvalidInput(f"{device.name}: {device.board} takes no push of this kind", expected="an ESP board")
        port = port_of(device)
        if device.address is not None:
            return f"fixed address {device.address}, UDP port {port}" + (f", MAC {device.mac}" if device.mac else "")
        if device.mac is None:
            raise InvalidInput(f"{device.name}: neither an address nor a MAC: nothing tells which board it is")
        return f"MAC {device.mac}, UDP port {port}"

    def payload(self, device: AdoptedDevice, file: bytes) -> bytes:
        """Return the app image as it is. Raises an `ImageError` for an image of a whole flash and all else."""
        found = inspect(file).format
        if found is not ImageFormat.ESP_APP:
            raise ImageError("espota writes an app slot", expected=ImageFormat.ESP_APP.value, found=found.value)
        return file

    def look(self, device: AdoptedDevice) -> Sighting | None:
        """Return where the device is: at its fixed address, or where its MAC was last heard."""
        return whereabouts(self._book, device, port_of(device))

    async def deliver(self, device: AdoptedDevice, sighting: Sighting, payload: bytes, progress: Progress) -> Delivery:
        """Push once."""
        record = await push_espota(
            sighting.address,
            sighting.port,
            payload,
            password=device.password,
            filename=FILE_NAME,
            limits=self._limits,
            on_progress=progress,
        )
        return delivery_of(record, self._clock())


def port_of(device: AdoptedDevice) -> int:
    """Return the device's UDP port: its own setting, else that of every ESP32."""
    return device.port or ESP32_PORT


def delivery_of(record: EspotaRecord, ended_at: float) -> Delivery:
    """Return what a push's record means for the gateway; `ended_at` in seconds of the monotonic clock.

    Until the device has connected back nothing was sent, and it goes on listening; so it does after a push that broke.
    """
    if record.taken:
        end = DeliveryEnd.SENT
    elif record.stage in {EspotaStage.INVITED, EspotaStage.ACCEPTED}:
        end = DeliveryEnd.NOT_CONNECTED
    else:
        end = DeliveryEnd.BROKEN
    return Delivery(end, record.reason, ended_at, record.sent, record.total)
