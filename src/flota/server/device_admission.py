"""Who asks, and may it take part: devices that identify themselves by MAC address or by a token of their own.

Unknown MACs become devices as their type's policy says: accepted, held until someone accepts them, or refused.
"""

from __future__ import annotations

import enum
import hmac
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from flota.errors import Conflict, Forbidden, NotFound, TooManyRequests, Unauthenticated
from flota.fleet.devices import Device, DeviceState, DeviceType, IdentityConflict, UnknownDevices
from flota.fleet.scope import Scope
from flota.fleet.storage import DeviceCredentials, DeviceFilter, KnownDevice, NewDevice, Transaction
from flota.server.admissions import FULL_RETRY_AFTER_S, PENDING_MAX
from flota.server.auth import digest_of_secret
from flota.server.device_registry import builtin_type, device_type_or_builtin

if TYPE_CHECKING:
    from flota.server.context import ServerContext

CONFLICTS_REMEMBERED: Final = 1000
"""Pairs of device and foreign trait that this process has put into the audit trail already."""

_NO_DIGEST: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Newcomer:
    """What a device that only has a MAC says about itself; attributes are cleaned."""

    mac: str
    token: str | None
    attributes: dict[str, str]


class DeviceAdmission:
    """Finds, admits and turns away devices of one server process."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._conflicts: OrderedDict[tuple[int, str], None] = OrderedDict()

    async def device_type(self, scope: Scope, name: str) -> DeviceType:
        """Return a declared type, or the built-in type of that board's name. Raises `NotFound`."""
        async with self._context.storage.reading() as transaction:
            try:
                return await transaction.device_type(scope, name)
            except NotFound:
                if builtin_type(name) is None:
                    raise
        async with self._context.storage.transaction() as transaction:
            return await device_type_or_builtin(transaction, scope, name, self._context.now())

    async def by_token(self, scope: Scope, name: str, token: str | None, *, device_type: str | None = None) -> Device:
        """Return the device whose token this is. Unknown devices, wrong tokens and refused devices get one answer.

        Raises `Unauthenticated` when there is no token, `Forbidden` otherwise.
        """
        if token is None:
            raise Unauthenticated("this device's token is needed")
        device = await device_by_token(self._context, scope, name, token)
        if device is None or device.state is DeviceState.REFUSED or device_type not in (None, device.type_name):
            raise Forbidden("not a device of this server, or not its token")
        return device

    async def by_mac(self, scope: Scope, device_type: DeviceType, newcomer: Newcomer) -> Device:
        """Return the device with this MAC; an unknown one is admitted or turned away as the type's policy says.

        A token is optional here, but one that is given must be right. Raises `Forbidden`, and `TooManyRequests`
        while too many devices wait to be accepted.
        """
        async with self._context.storage.reading() as transaction:
            device = await _known(transaction, scope, newcomer.mac)
            stored = None if device is None else await transaction.device_credentials(scope, device.name)
        if device is None:
            device = await self._admit(scope, device_type, newcomer)
        elif (
            stored is not None
            and newcomer.token is not None
            and token_shown(stored, digest_of_secret(newcomer.token), now=self._context.now()) is None
        ):
            raise Forbidden("not this device's token")
        if device.state is DeviceState.REFUSED:
            raise Forbidden("this device was refused")
        if device.type_name != device_type.name:
            raise Forbidden("this device is of another type", expected=device.type_name, found=device_type.name)
        return device

    async def learn(self, scope: Scope, device: Device, mac: str | None, attributes: dict[str, str]) -> None:
        """Keep what the device says about itself, when it is new; notice two devices under one identity.

        A MAC other than the one registered is refused with `Forbidden`; other traits that change are put into the audit
        trail once.
        """
        if mac is not None and device.mac not in (None, mac):
            await self._note_conflict(scope, device, "mac", device.mac or "", mac)
            raise Forbidden("this device is known with another MAC address")
        for trait in ("chip", "ap-mac"):
            before, now = device.attributes.get(trait), attributes.get(trait)
            if before is not None and now is not None and before != now:
                await self._note_conflict(scope, device, trait, before, now)
                if trait == "chip":
                    raise Forbidden("this device is known with another chip")
                attributes = {**attributes, trait: before}
        merged = {**device.attributes, **attributes}
        if merged == dict(device.attributes):
            return
        async with self._context.storage.transaction() as transaction:
            await transaction.set_device_attributes(
                scope, device.id, merged, requested=device.attributes_requested, now=self._context.now()
            )

    async def _admit(self, scope: Scope, device_type: DeviceType, newcomer: Newcomer) -> Device:
        if device_type.unknown_devices is UnknownDevices.REFUSE:
            raise Forbidden("unknown devices of this type are refused")
        accepted = device_type.unknown_devices is UnknownDevices.ACCEPT
        state = DeviceState.ACCEPTED if accepted else DeviceState.PENDING
        new = NewDevice(
            name=newcomer.mac,
            type_name=device_type.name,
            state=state,
            token_sha256=None if newcomer.token is None else digest_of_secret(newcomer.token),
            mac=newcomer.mac,
        )
        try:
            async with self._context.storage.transaction() as transaction:
                if await transaction.count_devices(scope, DeviceFilter(state=DeviceState.PENDING)) >= PENDING_MAX:
                    raise TooManyRequests("too many devices wait to be accepted", retry_after_s=FULL_RETRY_AFTER_S)
                return await transaction.add_device(scope, new, now=self._context.now())
        except Conflict:  # its own second request was faster
            async with self._context.storage.reading() as transaction:
                device = await _known(transaction, scope, newcomer.mac)
            if device is None:
                raise
            return device

    async def _note_conflict(self, scope: Scope, device: Device, trait: str, before: str, now: str) -> None:
        key = (device.id, f"{trait}={now}")
        if key in self._conflicts:
            return
        self._conflicts[key] = None
        if len(self._conflicts) > CONFLICTS_REMEMBERED:
            self._conflicts.popitem(last=False)
        conflict = IdentityConflict(trait, (before, now), self._context.now())
        async with self._context.storage.transaction() as transaction:
            await transaction.note_identity_conflict(scope, device.id, conflict)


async def device_by_token(context: ServerContext, scope: Scope, name: str, token: str) -> Device | None:
    """Return the device of this name if the token is its own; None for a wrong one, and for what does not exist.

    While a token is rotated the one before is right too; using the new one ends that.
    """
    return await device_if_shown(context, scope, await context.known_devices.get(scope, name), token)


async def device_if_shown(context: ServerContext, scope: Scope, known: KnownDevice | None, token: str) -> Device | None:
    """Return the device if the token is its own, as `device_by_token` does; `known` is what was just read of it."""
    stored = DeviceCredentials(None) if known is None else known.credentials
    shown = token_shown(stored, digest_of_secret(token), now=context.now())
    device = None if known is None or shown is None else known.device
    if device is not None and shown is ShownToken.PRESENT and stored.previous_sha256 is not None:
        async with context.storage.transaction() as writing:
            own = Scope(scope.tenant_id, f"device:{device.name}")
            await writing.forget_previous_token(own, device.name, now=context.now())
    return device


class ShownToken(enum.Enum):
    """Which of its tokens a device showed."""

    PRESENT = "present"
    PREVIOUS = "previous"


def token_shown(stored: DeviceCredentials, digest: str, *, now: datetime) -> ShownToken | None:
    """Return which token has this hex SHA-256, None if neither has. Both are compared in any case, in constant time."""
    is_present = hmac.compare_digest(stored.token_sha256 or _NO_DIGEST, digest)
    is_previous = hmac.compare_digest(stored.previous_sha256 or _NO_DIGEST, digest)
    if is_present and stored.token_sha256 is not None:
        return ShownToken.PRESENT
    in_time = stored.previous_until is not None and now < stored.previous_until
    return ShownToken.PREVIOUS if is_previous and stored.previous_sha256 is not None and in_time else None


async def _known(transaction: Transaction, scope: Scope, mac: str) -> Device | None:
    """Return the device with this MAC, or the one that was registered under the MAC as its name."""
    device = await transaction.find_device_by_mac(scope, mac)
    if device is not None:
        return device
    named = await transaction.find_device(scope, mac)
    return named if named is not None and named.mac is None else None
