"""A device's small store and its fuses as chips of a sweep: each change is one operation, whole or not at all."""

from __future__ import annotations

import hashlib
import json

from flota.virtual.flash import Cut, CutPhase, FlashOperation, FlashOperationKind, Power
from flota.virtual.nvs import NonVolatileStore, Value


class PoweredStore(NonVolatileStore):
    """A `NonVolatileStore` in memory whose commits count as operations of the board's power."""

    def __init__(self, name: str, power: Power) -> None:
        super().__init__()
        self.name = name
        self._power = power
        self._digest: tuple[dict[str, Value], int] | None = None

    def get(self, key: str) -> Value:
        """Return the value. Raises `PowerCut` without power."""
        self._power.check()
        return super().get(key)

    def set(self, key: str, value: Value) -> None:
        """Store a value, unless the power goes before or after."""
        self._power.check()
        before = self._values
        if before.get(key) == value:
            return
        super().set(key, value)
        after, self._values = self._values, before
        data = json.dumps(after, sort_keys=True).encode()
        operation, cut = self._power.announce(FlashOperationKind.COMMIT, self.name, 0, data)
        if cut is not None:
            self.leave(operation, cut)
            self._power.fail(operation, cut)
        self._values = after

    def save(self) -> object:
        """Return the values; they are never changed in place."""
        return self._values

    def load(self, snapshot: object) -> None:
        """Become what it was."""
        assert isinstance(snapshot, dict)
        self._values = snapshot

    def fingerprint(self) -> int:
        """Return the digest of the values."""
        if self._digest is None or self._digest[0] is not self._values:
            text = json.dumps(self._values, sort_keys=True)
            number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest())
            self._digest = (self._values, number)
        return self._digest[1]

    def leave(self, operation: FlashOperation, cut: Cut) -> None:
        """Become what it was before the operation, or what it is after it."""
        if cut.phase is CutPhase.AFTER:
            self._values = json.loads(operation.after)
