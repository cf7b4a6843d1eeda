"""Rollouts as people ask for them: who is selected, in which waves, under which limits; and how one is ended by hand.

The engine opens the waves and judges; here is only what an operator decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final

from flota.boards.catalogue import board
from flota.boards.model import Route
from flota.errors import Conflict, InvalidInput, NotFound, Refused
from flota.fleet.devices import Device, DeviceState
from flota.fleet.releases import Release, ReleaseState
from flota.fleet.rollouts import Rollout, RolloutPolicy, RolloutState, split_waves
from flota.fleet.selectors import parse_selector
from flota.fleet.shipments import ShipmentRecord
from flota.fleet.storage import DeviceFilter, NewRollout
from flota.fleet.things import parse_job_name
from flota.server.catalogue import find_release

if TYPE_CHECKING:
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext

PAGE_DEVICES: Final = 1000
MAX_DEVICES: Final = 1_000_000
"""Devices in one rollout."""

NAMES_SHOWN: Final = 10
ROLLOUT_NAME_MAX_LEN: Final = 128

OPERATOR_TRANSITIONS: Final[Mapping[RolloutState, frozenset[RolloutState]]] = {
    RolloutState.ACTIVE: frozenset({RolloutState.PAUSED, RolloutState.CANCELED}),
    RolloutState.PAUSED: frozenset({RolloutState.ACTIVE, RolloutState.CANCELED}),
}
"""What an operator may do. The other moves are the engine's."""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """What an operator wants. Exactly one of `devices` (names) and `select` (a selector) is given.

    `waves` lists rising totals as counts or percentages, e.g. `2,50%,100%`.
    """

    release: str
    devices: tuple[str, ...] | None = None
    select: str | None = None
    name: str | None = None
    waves: str = "100%"
    policy: RolloutPolicy = field(default_factory=RolloutPolicy)
    shipment: ShipmentRecord | None = None
    """What is remembered of it as a shipment, if it is one; its rollout's number is put in."""


async def create_rollout(context: ServerContext, scope: Scope, wanted: RolloutRequest) -> Rollout:
    """Take the snapshot of devices and record the rollout; the engine opens the first wave.

    Raises `Refused` for a release that is not published or has expired, for devices of another type or not accepted,
    and for a selection of nobody; `Conflict` for a name that is taken.
    """
    now = context.now()
    async with context.storage.transaction() as transaction:
        release = await find_release(transaction, scope, wanted.release)
        _refuse_unpublished(release, now)
        if (wanted.devices is None) == (wanted.select is None):
            raise InvalidInput(
                "a rollout needs its devices",
                expected="either devices or a selector",
                hint="Give --devices A,B or --select EXPR.",
            )
        if wanted.devices is not None:
            named = await _named(transaction, scope, wanted.devices, release.type_name)
            chosen: Sequence[int] = [device.id for device in named]
            selector = _shortened(wanted.devices)
        else:
            selector = wanted.select or ""
            chosen = await _selected(transaction, scope, selector, release.type_name)
        if wanted.policy.continuous and wanted.select is None:
            raise InvalidInput(
                "a continuous rollout needs a selector", hint="Give --select EXPR: a list picks nobody later."
            )
        device_type = await transaction.device_type(scope, release.type_name)
        if wanted.name is not None and Route.AWS_IOT in board(device_type.board).routes:
            parse_job_name(wanted.name)
        name = await _free_name(transaction, scope, wanted.name, release)
        new = NewRollout(
            name=name,
            release_id=release.id,
            policy=wanted.policy,
            waves=split_waves(chosen, wanted.waves),
            selector=selector,
        )
        made = await transaction.add_rollout(scope, new, now=now)
        if wanted.shipment is not None:
            await transaction.add_shipment(scope, replace(wanted.shipment, rollout_id=made.id))
        return made


def _refuse_unpublished(release: Release, now: datetime) -> None:
    name = f"release {release.type_name}@{release.version}"
    if release.state is not ReleaseState.PUBLISHED:
        hints = {
            ReleaseState.DRAFT: f"Sign it, then publish it: flota release sign {release.id} --key KEY.pem",
            ReleaseState.SIGNED: f"Publish it: flota release publish {release.id}",
        }
        raise Refused(
            f"{name} is not published",
            expected="published",
            found=str(release.state),
            hint=hints.get(release.state, "Create a new release."),
        )
    if release.expires_at is not None and release.expires_at <= now:
        raise Refused(f"{name} has expired", found=release.expires_at.isoformat(), hint="Create a new release.")


async def _named(transaction: Transaction, scope: Scope, names: Sequence[str], type_name: str) -> list[Device]:
    if not names:
        raise InvalidInput("the list of devices is empty")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InvalidInput("a device is named twice", found=_shortened(twice))
    found = {device.name: device for device in await list_all(transaction, scope, DeviceFilter(names=tuple(names)))}
    missing = [name for name in names if name not in found]
    if missing:
        raise NotFound("there is no such device", found=_shortened(missing), hint="See them with `flota device list`.")
    devices = [found[name] for name in names]
    other_type = [f"{device.name} ({device.type_name})" for device in devices if device.type_name != type_name]
    if other_type:
        raise Refused("devices of another type than the release", expected=type_name, found=_shortened(other_type))
    outside = [f"{device.name} ({device.state})" for device in devices if device.state is not DeviceState.ACCEPTED]
    if outside:
        raise Refused(
            "devices that are not accepted",
            expected="accepted",
            found=_shortened(outside),
            hint="Accept them first: flota device accept NAME.",
        )
    return devices


async def _selected(transaction: Transaction, scope: Scope, expression: str, type_name: str) -> Sequence[int]:
    """Return the ids of the accepted devices of the release's type that a selector picks now."""
    selector = parse_selector(expression)
    chosen: Sequence[int] = ()
    fitting = selector.fitting(type_name)
    if fitting is not None:
        chosen = await transaction.device_ids(scope, fitting, limit=MAX_DEVICES + 1)
    if len(chosen) > MAX_DEVICES:
        raise InvalidInput("too many devices for one rollout", expected=f"at most {MAX_DEVICES}")
    if not chosen:
        matching = await list_all(transaction, scope, selector.device_filter())
        others = sum(device.type_name != type_name for device in matching)
        raise Refused(
            f"the selection has no accepted device of type {type_name}",
            expected="at least one",
            found=f"{len(matching)} matching: {others} of another type, {len(matching) - others} not accepted",
            hint=f"Look with `flota device list --select '{expression}'`.",
        )
    return chosen


async def list_all(transaction: Transaction, scope: Scope, condition: DeviceFilter) -> list[Device]:
    """Return every device that meets a condition, in order of registration."""
    devices: list[Device] = []
    after_id = 0
    while True:
        page = await transaction.list_devices(scope, condition, after_id=after_id, limit=PAGE_DEVICES)
        devices.extend(page)
        if len(page) < PAGE_DEVICES:
            return devices
        if len(devices) > MAX_DEVICES:
            raise InvalidInput("too many devices for one rollout", expected=f"at most {MAX_DEVICES}")
        after_id = page[-1].id


async def _free_name(transaction: Transaction, scope: Scope, wanted: str | None, release: Release) -> str:
    if wanted is not None:
        if wanted.isdecimal():
            raise InvalidInput(
                "a rollout's name cannot be a number", found=wanted, hint="Numbers stand for the rollouts themselves."
            )
        if await transaction.find_rollout(scope, wanted) is not None:
            raise Conflict(f"there is a rollout {wanted!r} already", hint="Choose another --name.")
        return wanted
    base = f"{release.type_name}-{release.version}"[: ROLLOUT_NAME_MAX_LEN - 10]
    base = base if not base.isdecimal() else f"rollout-{base}"
    number, name = 1, base
    while await transaction.find_rollout(scope, name) is not None:
        number += 1
        name = f"{base}-{number}"
    return name


async def find_rollout(transaction: Transaction, scope: Scope, reference: str) -> Rollout:
    """Return the rollout with this number or name. Raises `NotFound`."""
    if reference.isascii() and reference.isdecimal() and len(reference) <= 9:
        return await transaction.rollout(scope, int(reference))
    found = await transaction.find_rollout(scope, reference)
    if found is None:
        raise NotFound(
            "there is no such rollout",
            expected="a number or a name",
            found=repr(reference[:200]),
            hint="See them with `flota rollout list`.",
        )
    return found


async def control_rollout(
    context: ServerContext, scope: Scope, reference: str, state: RolloutState, reason: str
) -> Rollout:
    """Pause, resume or cancel a rollout (`OPERATOR_TRANSITIONS`). Asking for the state it is in changes nothing."""
    async with context.storage.transaction() as transaction:
        rollout = await find_rollout(transaction, scope, reference)
        if rollout.state is state:
            return rollout
        if state not in OPERATOR_TRANSITIONS.get(rollout.state, frozenset()):
            raise Conflict(f"rollout {rollout.name} has ended", expected="active or paused", found=str(rollout.state))
        return await transaction.set_rollout_state(scope, rollout.id, state, now=context.now(), reason=reason)


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{shown} and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown
