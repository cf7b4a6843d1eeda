"""Images that were judged and made ready once, for all devices that they are the same for.

Looking through an image takes tens of milliseconds of this machine; done for fifty devices in a row while others are
being pushed to, it would starve them. So it is done once, in a thread, one at a time.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from flota.gateway.driver import AdoptedDevice, LastHopDriver
from flota.gateway.judgement import AcceptedOffer, judge_file

READY_MAX: Final = 2
"""Images kept; a slot has 1 or 2 MB."""


@dataclass(frozen=True, slots=True)
class ReadyImage:
    """What goes over the wire, and what is to be said about it."""

    payload: bytes
    warnings: tuple[str, ...]


_Key = tuple[str, str, str, str, str | None, bytes | None, str]


@dataclass(slots=True)
class ReadyImages:
    """The latest images that passed; refusals are not kept."""

    _ready: OrderedDict[_Key, ReadyImage] = field(default_factory=OrderedDict)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def take(self, device: AdoptedDevice, driver: LastHopDriver, offer: AcceptedOffer, data: bytes) -> ReadyImage:
        """Return the file made ready for a device. Raises what `judge_file` and the driver's `payload` raise.

        All that the judgement depends on is in the key: the bytes, the release's manifest, the device's hardware.
        """
        key = (
            offer.artifact.sha256,
            offer.release.sha256,
            device.driver,
            device.board,
            device.hardware_revision,
            device.partition_table,
            device.profile,
        )
        async with self._lock:
            known = self._ready.get(key)
            if known is None:
                known = await asyncio.to_thread(_make_ready, device, driver, offer, data)
                self._ready[key] = known
                if len(self._ready) > READY_MAX:
                    self._ready.popitem(last=False)
            self._ready.move_to_end(key)
        return known


def _make_ready(device: AdoptedDevice, driver: LastHopDriver, offer: AcceptedOffer, data: bytes) -> ReadyImage:
    warnings = judge_file(data, device, offer.release, sha256=offer.artifact.sha256)
    return ReadyImage(driver.payload(device, data), warnings)
