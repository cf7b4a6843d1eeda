"""Where an adopted device is, out of the book of sightings: the same for every driver that goes by address or MAC."""

from __future__ import annotations

from flota.errors import Refused
from flota.gateway.driver import AdoptedDevice, Sighting, SightingBasis
from flota.gateway.sightings import Heard, SightingBook


class WrongDeviceThere(Refused):
    """Another MAC address than the device's was seen at its address."""

    code = "wrong-device-there"


def whereabouts(book: SightingBook, device: AdoptedDevice, port: int) -> Sighting | None:
    """Return where the device is: at its fixed address, or where its MAC was last heard; None for not to be seen.

    Nothing is connected to. Raises `WrongDeviceThere`.
    """
    if device.address is not None:
        heard = book.at(device.address)
        if heard is None:
            return Sighting(device.address, port, SightingBasis.FIXED_ADDRESS)
        if device.mac is not None and heard.mac is not None and heard.mac != device.mac:
            raise WrongDeviceThere(f"another board is at {device.address}", expected=device.mac, found=heard.mac)
        return _sighting(heard, device.address, port)
    heard = None if device.mac is None else book.with_mac(device.mac)
    return None if heard is None else _sighting(heard, heard.address, port)


def _sighting(heard: Heard, address: str, port: int) -> Sighting:
    return Sighting(address, port, heard.basis, heard.heard_at, heard.version, heard.version_at)
