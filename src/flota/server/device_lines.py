"""Lines to devices that are connected to this process: what an operator can tell one of them beside its update.

A dialect that keeps connections offers lines; the management API finds them here. Nothing is kept for a device that is
not there: a reboot that comes a week later is not what was asked for.
Source: docs/reference/blynk.md, "Reboot, ping, redirect".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from flota.errors import Conflict, InvalidInput
from flota.server.settings import Address, parse_address

if TYPE_CHECKING:
    from flota.fleet.devices import Device
    from flota.fleet.scope import Scope
    from flota.server.context import ServerContext

PING_TIMEOUT_S: Final = 5.0
"""How long a device may take to acknowledge: a primary MCU that writes its flash answers within a second or two."""


class DeviceLine(Protocol):
    """One connected device, as a dialect that can tell it something offers it."""

    def reboot(self) -> None:
        """Send that it is to restart. It does not say whether it does."""
        ...

    def redirect(self, address: Address) -> None:
        """Send where it is to connect from now on."""
        ...

    async def ping(self, timeout_s: float) -> bool:
        """Return whether it acknowledged a message in time."""
        ...


@dataclass(slots=True)
class DeviceLines:
    """The lines of one process. `find` asks every dialect that has offered some."""

    _finders: list[Callable[[int], DeviceLine | None]]

    def __init__(self) -> None:
        self._finders = []

    def offer(self, finder: Callable[[int], DeviceLine | None]) -> None:
        """Take a dialect's way of finding a device by its number."""
        self._finders.append(finder)

    def find(self, device_id: int) -> DeviceLine | None:
        """Return the line to a device, None if it is not connected here."""
        return next((line for find in self._finders if (line := find(device_id)) is not None), None)


async def reboot_device(context: ServerContext, scope: Scope, name: str) -> Device:
    """Send a connected device that it is to restart, and return it; the audit trail says who did.

    Raises `NotFound` for the device, `Conflict` if it is not connected.
    """
    return await _tell(context, scope, name, "device.reboot-sent", {}, lambda line: line.reboot())


async def redirect_device(context: ServerContext, scope: Scope, name: str, to: str) -> Device:
    """Send a connected device to another MQTT endpoint, `HOST:PORT`, and return it.

    Raises `InvalidInput` for the endpoint, `NotFound` for the device, `Conflict` if it is not connected.
    """
    address = parse_endpoint(to)
    details = {"to": str(address)}
    return await _tell(context, scope, name, "device.redirected", details, lambda line: line.redirect(address))


async def ping_device(context: ServerContext, scope: Scope, name: str) -> tuple[Device, int | None]:
    """Return a connected device, and after how many milliseconds it answered; None if it did not.

    Raises `NotFound` for the device, `Conflict` if it is not connected.
    """
    async with context.storage.reading() as transaction:
        device = await transaction.device(scope, name)
    line = _line_to(context, device)
    began = time.monotonic()
    if not await line.ping(PING_TIMEOUT_S):
        return device, None
    return device, round((time.monotonic() - began) * 1000)


def parse_endpoint(text: str) -> Address:
    """Return the endpoint that a device is sent to. Raises `InvalidInput` unless host and port are there."""
    address = parse_address(text)
    host = text.strip().rpartition(":")[0]
    if not host or address.port == 0 or address.is_wildcard:
        raise InvalidInput("not an endpoint that a device could connect to", expected="HOST:PORT", found=repr(text))
    return address


async def _tell(
    context: ServerContext,
    scope: Scope,
    name: str,
    action: str,
    details: Mapping[str, object],
    tell: Callable[[DeviceLine], None],
) -> Device:
    async with context.storage.transaction() as transaction:
        device = await transaction.device(scope, name)
        _line_to(context, device)
        await transaction.append_audit(scope, action, f"device:{device.name}", details, now=context.now())
    tell(_line_to(context, device))  # who went meanwhile is told of, not passed over
    return device


def _line_to(context: ServerContext, device: Device) -> DeviceLine:
    line = context.device_lines.find(device.id)
    if line is None:
        seen = "never" if device.last_seen_at is None else device.last_seen_at.isoformat(timespec="seconds")
        raise Conflict(
            f"device {device.name} is not connected here",
            expected="a Blynk device with an open MQTT connection to this server process",
            found=f"last heard {seen}" + (f", over {device.last_route}" if device.last_route else ""),
        )
    return line
