"""Registering strangers: devices that nobody has registered, for whom a gateway, a certificate or their type vouches.

After a delivery of a thousand devices they all come in the same minute. Those that come at the same time are registered
in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from flota.errors import Conflict, FlotaError, Forbidden, TooManyRequests
from flota.fleet.devices import Device, DeviceState, UnknownDevices
from flota.fleet.scope import Scope
from flota.fleet.storage import DeviceFilter, NewDevice, Transaction
from flota.server.device_registry import device_type_or_builtin
from flota.server.gathered import Gathered

if TYPE_CHECKING:
    from flota.fleet.storage import Storage

PENDING_MAX: Final = 10_000
"""Devices of one tenant that wait to be accepted; beyond them strangers are turned away until someone decides."""

RECOUNT_AFTER: Final = 500
"""Registrations after which those that wait are counted again, which means to look at every device of the tenant. Near
the limit they are counted each time; in between, what others register in other ways may exceed it by as many."""

FULL_RETRY_AFTER_S: Final = 3600


@dataclass(frozen=True, slots=True)
class _Stranger:
    """Who comes, and who vouches (`actor`, for the audit trail)."""

    name: str
    type_name: str
    actor: str


class Admissions:
    """Makes strangers devices, as their type's policy says."""

    def __init__(self, storage: Storage, *, now: Callable[[], datetime]) -> None:
        self._now = now
        self._waiting: dict[int, tuple[int, int]] = {}
        """By tenant: how many wait at most, and how many of them were registered since they were counted."""
        self._gathered = Gathered(storage.write_at_once, self._register)

    async def admit(self, scope: Scope, name: str, type_name: str) -> Device:
        """Return the new device; one of this name that has come into being meanwhile is returned as it is.

        Raises `NotFound` for the type, `Forbidden` if it refuses unknown devices, `TooManyRequests` while too many wait
        to be accepted.
        """
        found = await self._gathered.get(scope, _Stranger(name, type_name, scope.actor))
        if found is None:
            raise Conflict("the device was removed while it was being registered", found=name)
        if isinstance(found, FlotaError):
            raise found
        return found

    async def _register(
        self, transaction: Transaction, scope: Scope, strangers: Sequence[_Stranger]
    ) -> Mapping[_Stranger, Device | FlotaError]:
        waiting = before = await self._count_waiting(transaction, scope, len(strangers))
        results: dict[_Stranger, Device | FlotaError] = {}
        for type_name, actor in dict.fromkeys((one.type_name, one.actor) for one in strangers):
            group = [one for one in strangers if (one.type_name, one.actor) == (type_name, actor)]
            own = Scope(scope.tenant_id, actor)
            state = await self._state_of(transaction, own, type_name)
            if isinstance(state, FlotaError):
                results |= dict.fromkeys(group, state)
                continue
            known = await transaction.known_devices(own, [one.name for one in group])
            new = list({one.name: one for one in group if one.name not in known}.values())
            if state is DeviceState.PENDING:
                new = new[: max(0, PENDING_MAX - waiting)]
                waiting += len(new)
            await _add(transaction, own, [NewDevice(one.name, type_name, state) for one in new], now=self._now())
            known = await transaction.known_devices(own, [one.name for one in group])
            full = TooManyRequests("too many devices wait to be accepted", retry_after_s=FULL_RETRY_AFTER_S)
            results |= {one: known[one.name].device if one.name in known else full for one in group}
        counted, since = self._waiting[scope.tenant_id]
        self._waiting[scope.tenant_id] = (counted + waiting - before, since + waiting - before)
        return results

    async def _count_waiting(self, transaction: Transaction, scope: Scope, coming: int) -> int:
        waiting, since = self._waiting.get(scope.tenant_id, (0, RECOUNT_AFTER))
        if since >= RECOUNT_AFTER or waiting + coming > PENDING_MAX:
            waiting = await transaction.count_devices(scope, DeviceFilter(state=DeviceState.PENDING))
            self._waiting[scope.tenant_id] = (waiting, 0)
        return waiting

    async def _state_of(self, transaction: Transaction, scope: Scope, type_name: str) -> DeviceState | FlotaError:
        """Return the state in which a type's strangers begin, or why there are none."""
        try:
            device_type = await device_type_or_builtin(transaction, scope, type_name, self._now())
        except FlotaError as error:
            return error
        if device_type.unknown_devices is UnknownDevices.REFUSE:
            return Forbidden("unknown devices of this type are refused")
        accepted = device_type.unknown_devices is UnknownDevices.ACCEPT
        return DeviceState.ACCEPTED if accepted else DeviceState.PENDING


async def _add(transaction: Transaction, scope: Scope, new: Sequence[NewDevice], *, now: datetime) -> None:
    """Store the devices; those that another writer stored in the meantime are left as they are."""
    try:
        await transaction.add_devices(scope, new, now=now)
    except Conflict:
        for one in new:
            try:
                await transaction.add_device(scope, one, now=now)
            except Conflict:
                continue
