"""The device's small non-volatile store: keys to plain values, each change whole or not at all.

It stands for NVS on an ESP32 (whose entries are atomic) and for a state file elsewhere. A killed process is a power
cut: what `set` returned from is there, what it did not return from is there or not, never in between.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from flota.errors import InvalidInput

NVS_MAX_BYTES: Final = 24 * 1024
"""As large as the usual `nvs` partition of 0x6000 bytes."""

Value = str | int | bool | None | dict[str, "Value"] | list["Value"]


class NonVolatileStore:
    """Keys to JSON values, kept in the file at `path` (None = in memory only).

    `around_commit(moment)` is called with "before" and "after" each change; a test cuts the power there.
    """

    def __init__(self, path: Path | None = None, *, around_commit: Callable[[str], None] | None = None) -> None:
        self._path = path
        self.around_commit = around_commit
        self._values: dict[str, Value] = {}
        if path is not None and path.exists():
            try:
                values = json.loads(path.read_text("utf-8"))
            except ValueError as error:
                raise InvalidInput(f"{path} is not a device's store", found=str(error)) from error
            if not isinstance(values, dict):
                raise InvalidInput(f"{path} is not a device's store", expected="a JSON object")
            self._values = values

    def get(self, key: str) -> Value:
        """Return the value, None if there is none."""
        return self._values.get(key)

    def get_record(self, key: str) -> Mapping[str, Value] | None:
        """Return the value if it is a record, else None."""
        value = self._values.get(key)
        return value if isinstance(value, dict) else None

    def set(self, key: str, value: Value) -> None:
        """Store a value; None removes the key. Raises `InvalidInput` above the store's size."""
        if self._values.get(key) == value:
            return
        values = {name: old for name, old in self._values.items() if name != key}
        if value is not None:
            values[key] = value
        text = json.dumps(values, indent=1, ensure_ascii=False)
        if len(text) > NVS_MAX_BYTES:
            raise InvalidInput(
                "the device's store is full", expected=f"at most {NVS_MAX_BYTES} bytes", found=f"{len(text)} bytes"
            )
        if self.around_commit is not None:
            self.around_commit("before")
        if self._path is not None:
            partial = self._path.with_suffix(".new")
            partial.write_text(text, "utf-8")
            partial.replace(self._path)
        self._values = values
        if self.around_commit is not None:
            self.around_commit("after")
