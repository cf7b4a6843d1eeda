"""Who was heard on the local network, when, and how: announcements, state posts, version check-ins.

Evidence is kept by address, because that is what arrives with each of them. Pure but for nothing: whoever hears tells
the book, with the time. Source: docs/reference/gateway.md, "What counts as a sign of life".
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from flota.gateway.driver import SightingBasis

REMEMBERED_MAX: Final = 2000
"""Addresses; a network that has more is not believed, the oldest go."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The latest of one address. Times are seconds of `time.monotonic`; `host` as announced, lower case."""

    address: str
    heard_at: float
    basis: SightingBasis
    host: str | None = None
    mac: str | None = None
    version: str | None = None
    version_at: float | None = None


class SightingBook:
    """Keeps the latest of every address."""

    def __init__(self) -> None:
        self._by_address: OrderedDict[str, Heard] = OrderedDict()

    def heard(
        self,
        address: str,
        at: float,
        basis: SightingBasis,
        *,
        host: str | None = None,
        mac: str | None = None,
        version: str | None = None,
    ) -> None:
        """Note that something was heard from `address` now; facts that it leaves out stay as they were."""
        before = self._by_address.pop(address, None) or Heard(address, at, basis)
        changed = replace(before, heard_at=at, basis=basis, host=host or before.host, mac=mac or before.mac)
        if version is not None:
            changed = replace(changed, version=version, version_at=at)
        self._by_address[address] = changed
        if len(self._by_address) > REMEMBERED_MAX:
            self._by_address.popitem(last=False)

    def learn_mac(self, address: str, mac: str) -> None:
        """Note the MAC address behind an address that was heard; that is no sign of life."""
        known = self._by_address.get(address)
        if known is not None:
            self._by_address[address] = replace(known, mac=mac)

    def at(self, address: str) -> Heard | None:
        """Return what was heard from an address or host name."""
        found = self._by_address.get(address)
        if found is None:
            name = address.lower().rstrip(".")
            found = next((one for one in self._by_address.values() if one.host == name), None)
        return found

    def with_mac(self, mac: str) -> Heard | None:
        """Return the latest that was heard of a MAC address."""
        found = [one for one in self._by_address.values() if one.mac == mac]
        return max(found, key=lambda one: one.heard_at, default=None)

    def __len__(self) -> int:
        """How many addresses were heard."""
        return len(self._by_address)
