"""NVS on virtual flash: strings read and written with the flash operations of ESP-IDF, in its order.

A power cut between any two of them leaves the old string or the new one; what it leaves besides is cleared up by the
next write, as the chip does when it mounts the partition.
Source: docs/reference/esp-nvs.md; docs/reference/virtual-devices.md, "NVS".
"""

from __future__ import annotations

import functools

from flota.images.esp_nvs import read_string
from flota.images.esp_nvs_format import NvsMissing
from flota.images.esp_nvs_writing import ErasePage, FlashOperation, plan_string_write
from flota.virtual.flash import NorFlash


class FlashNvs:
    """The NVS partition of `size` bytes at `address` of the flash."""

    def __init__(self, flash: NorFlash, address: int, size: int) -> None:
        self._flash = flash
        self._address = address
        self._size = size

    def get_string(self, namespace: str, key: str) -> str | None:
        """Return the string; None if there is none. Raises `NvsError` when the partition or the value is unreadable."""
        try:
            return read_string(self._content(), namespace, key)
        except NvsMissing:
            return None

    def set_string(self, namespace: str, key: str, value: str) -> None:
        """Store the string; does nothing if it is there already. Raises `NvsError`, before any flash operation."""
        for operation in _planned(self._content(), namespace, key, value):
            if isinstance(operation, ErasePage):
                self._flash.erase_sector(self._address + operation.offset)
            else:
                self._flash.program(self._address + operation.offset, operation.data)

    def _content(self) -> bytes:
        return self._flash.read(self._address, self._size)


@functools.lru_cache(maxsize=128)
def _planned(content: bytes, namespace: str, key: str, value: str) -> tuple[FlashOperation, ...]:
    return plan_string_write(content, namespace, key, value)
