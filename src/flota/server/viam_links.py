"""Links for Viam's micro-RDK: who may get one, and what is in it.

A link is an URL with a token in its query. The token of a device's link is `d.<tenant>.<execution>.<device>.<mac>` and
is good while that execution is open; that of a shared link is `s.<tenant>.<release>.<mac>`, good while the release is
published. The code is HMAC-SHA-256 under the key of the download tokens; nothing is stored per link.
Source: docs/reference/viam.md, "Links".
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from flota.boards.fit import slots_of
from flota.boards.model import Route
from flota.errors import InvalidInput, NotFound, Refused
from flota.fleet.executions import OPEN_STATES, Execution
from flota.fleet.releases import Release, ReleaseState
from flota.fleet.rollouts import RolloutState, WaveState
from flota.fleet.storage import DeviceFilter
from flota.images.model import ImageFormat
from flota.protocols.viam import (
    IMAGE_MIN_BYTES,
    ServiceConfig,
    check_version,
    pack_service_config,
)
from flota.server.catalogue import find_release
from flota.server.device_registry import profile_of
from flota.server.rollout_desk import find_rollout, list_all
from flota.server.updates import is_expired
from flota.server.viam_addresses import LINK_PATH, choose_base

if TYPE_CHECKING:
    from flota.fleet.devices import DeviceType
    from flota.fleet.rollouts import Rollout
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction
    from flota.server.context import ServerContext

TOKEN_MAX_LEN: Final = 96
LISTED_MAX: Final = 1_000_000

_PURPOSE: Final = b"flota viam link v1"
_DEVICE_LINK: Final = "d"
_SHARED_LINK: Final = "s"

WAVE_LOOKS: Final = 50
WAVE_LOOK_S: Final = 0.1
"""How often, and after which pause, is looked whether a rollout's first wave is open."""


class _NotYetOpen(Refused):
    """The rollout is active and none of its waves was opened yet."""


class NoSuchLink(NotFound):
    """A token that is none of ours; it tells nothing about what exists."""

    code = "no-such-link"


@dataclass(frozen=True, slots=True)
class DeviceGrant:
    """What the token of a device's link stands for."""

    tenant_id: int
    execution_id: int
    device_id: int


@dataclass(frozen=True, slots=True)
class SharedGrant:
    """What the token of a shared link stands for."""

    tenant_id: int
    release_id: int


Grant = DeviceGrant | SharedGrant


def issue_token(context: ServerContext, grant: Grant) -> str:
    """Return the token for a link."""
    fields = _fields(grant)
    return ".".join((*fields, context.download_tokens.mac(_PURPOSE, *fields)))


def read_token(context: ServerContext, token: str) -> Grant:
    """Return what a token stands for; raises `NoSuchLink`, at the same cost for whatever is wrong with it."""
    *fields, mac = token.split(".") if len(token) <= TOKEN_MAX_LEN and token.isascii() else ("", "")
    if not hmac.compare_digest(mac, context.download_tokens.mac(_PURPOSE, *fields)):
        raise NoSuchLink("no such link")
    kind, *numbers = fields
    if kind == _DEVICE_LINK:
        return DeviceGrant(*(int(number) for number in numbers))
    return SharedGrant(*(int(number) for number in numbers))


def _fields(grant: Grant) -> tuple[str, ...]:
    if isinstance(grant, DeviceGrant):
        return (_DEVICE_LINK, str(grant.tenant_id), str(grant.execution_id), str(grant.device_id))
    return (_SHARED_LINK, str(grant.tenant_id), str(grant.release_id))


@dataclass(frozen=True, slots=True)
class LinksWanted:
    """Which configurations an operator wants: a release (shared, or for `device`), or all devices of a `rollout`.

    `base_url` is the address that devices shall use, without a path; None lets the server choose.
    """

    release: str | None = None
    device: str | None = None
    rollout: str | None = None
    base_url: str | None = None
    asked_at: str = ""
    """`scheme://host[:port]` by which the operator reached the server: good enough without `--public-url`."""


@dataclass(frozen=True, slots=True)
class ServiceLink:
    """A configuration for one device, or a shared one (`device` None): then no device's progress can be told."""

    service: Mapping[str, object]
    url: str
    version: str
    device: str | None = None
    labels: Mapping[str, str] | None = None
    execution: int | None = None
    rollout: str | None = None


@dataclass(frozen=True, slots=True)
class ServiceLinks:
    """The configurations, and what an operator should know about them."""

    links: tuple[ServiceLink, ...]
    warnings: tuple[str, ...]


NO_STATUS: Final = "a shared link: no per-device status, and no outcome can be concluded"


async def make_links(context: ServerContext, scope: Scope, wanted: LinksWanted) -> ServiceLinks:
    """Return the configurations wanted; that they were made is noted in the audit trail.

    For a rollout that was made a moment ago it waits until the engine has opened its first wave.
    Raises `Refused` for a release that these devices cannot take, one that is not published, and a device without an
    open execution of it; `UnusableUrl` and `ConfigError` for what a device would not understand.
    """
    for _ in range(WAVE_LOOKS - 1):
        try:
            return await _make_links(context, scope, wanted)
        except _NotYetOpen:
            await asyncio.sleep(WAVE_LOOK_S)
    return await _make_links(context, scope, wanted)


async def _make_links(context: ServerContext, scope: Scope, wanted: LinksWanted) -> ServiceLinks:
    base, warnings = choose_base(context.settings, asked_at=wanted.asked_at, base_url=wanted.base_url)
    async with context.storage.transaction() as transaction:
        if wanted.rollout is not None:
            rollout = await find_rollout(transaction, scope, wanted.rollout)
            release = await _usable_release(context, transaction, scope, str(rollout.release_id))
            if wanted.release is not None:
                named = await find_release(transaction, scope, wanted.release)
                _refuse_other_release(named, release, rollout)
            links = await _links_of_rollout(context, transaction, scope, rollout, release, base, wanted.device)
            waiting = sum(wave.size for wave in rollout.waves) - sum(
                sum(wave.counts.values()) for wave in rollout.waves if wave.counts
            )
            if waiting > 0 and wanted.device is None:
                warnings = (*warnings, f"{waiting} devices are in waves that are not open yet: ask again for those")
        elif wanted.release is None:
            raise InvalidInput("nothing is wanted", expected="a release or a rollout")
        else:
            release = await _usable_release(context, transaction, scope, wanted.release)
            if wanted.device is None:
                links = [_shared(context, scope, release, base)]
                warnings = (*warnings, NO_STATUS)
            else:
                links = [await _link_of_device(context, transaction, scope, release, base, wanted.device)]
        facts = {
            "device": wanted.device,
            "rollout": wanted.rollout,
            "base": base,
            "links": len(links),
            "shared": any(link.device is None for link in links),
        }
        await transaction.append_audit(scope, "viam.links-made", f"release:{release.id}", facts, now=context.now())
    return ServiceLinks(tuple(links), warnings)


async def _usable_release(context: ServerContext, transaction: Transaction, scope: Scope, reference: str) -> Release:
    release = await find_release(transaction, scope, reference)
    check_offerable(release, await transaction.device_type(scope, release.type_name))
    name = f"release {release.type_name}@{release.version}"
    if release.state is not ReleaseState.PUBLISHED:
        raise Refused(f"{name} is not published", expected="published", found=str(release.state))
    if is_expired(release, context.now()):
        raise Refused(f"{name} has expired", hint="Create a new release.")
    return release


def check_offerable(release: Release, device_type: DeviceType) -> None:
    """Raise `Refused` or `ConfigError` unless a micro-RDK of the type can take the release.

    What a board's fit check lets through is not enough here: the type may be one that is updated on another route.
    """
    profile = profile_of(device_type)
    if Route.VIAM not in profile.board.routes:
        hint = "micro-RDK's update service is for ESP32: declare a type with --board esp32."
        raise Refused(
            f"type {device_type.name} has no micro-RDK", expected="board esp32", found=profile.board.name, hint=hint
        )
    artifact = release.artifact
    if artifact.format != ImageFormat.ESP_APP.value:
        hint = "Host the app image of the same build (make build-esp32-ota), never the merged one."
        raise Refused(
            "a micro-RDK takes an app image only", expected=ImageFormat.ESP_APP.value, found=artifact.format, hint=hint
        )
    size = artifact.digests.size
    smallest = min((slot.size for slot in slots_of(profile)), default=None)
    if size < IMAGE_MIN_BYTES or (smallest is not None and size > smallest):
        expected = f"{IMAGE_MIN_BYTES} to {smallest} bytes" if smallest is not None else f"from {IMAGE_MIN_BYTES} bytes"
        raise Refused("the image's size is none that a micro-RDK takes", expected=expected, found=f"{size} bytes")
    check_version(release.version)


def _refuse_other_release(named: Release, of_rollout: Release, rollout: Rollout) -> None:
    if named.id != of_rollout.id:
        raise Refused(
            f"rollout {rollout.name} is of another release",
            expected=f"{named.type_name}@{named.version}",
            found=f"{of_rollout.type_name}@{of_rollout.version}",
        )


async def _links_of_rollout(
    context: ServerContext,
    transaction: Transaction,
    scope: Scope,
    rollout: Rollout,
    release: Release,
    base: str,
    device: str | None,
) -> list[ServiceLink]:
    executions = await transaction.list_executions(scope, rollout_id=rollout.id, states=OPEN_STATES, limit=LISTED_MAX)
    chosen = [one for one in executions if device is None or one.device_name == device]
    if not chosen:
        who = f"device {device}" if device is not None else "no device"
        refusal = _NotYetOpen if _is_about_to_open(rollout) else Refused
        raise refusal(
            f"{who} has {'no ' if device is not None else 'an '}open execution in rollout {rollout.name}",
            found=f"rollout {rollout.state}",
            hint=f"See `flota rollout show {rollout.id}`; executions exist once their wave is open.",
        )
    names = DeviceFilter(names=tuple(one.device_name for one in chosen))
    labels = {one.name: one.labels for one in await list_all(transaction, scope, names)}
    return [
        _personal(context, scope, one, release, base, rollout.name, labels.get(one.device_name, {})) for one in chosen
    ]


async def _link_of_device(
    context: ServerContext, transaction: Transaction, scope: Scope, release: Release, base: str, name: str
) -> ServiceLink:
    device = await transaction.device(scope, name)
    executions = await transaction.list_executions(scope, device_id=device.id, states=OPEN_STATES)
    for execution in executions:
        if execution.release_id == release.id:
            rollout = await transaction.rollout(scope, execution.rollout_id)
            return _personal(context, scope, execution, release, base, rollout.name, device.labels)
    reference = f"{release.type_name}@{release.version}"
    of_release = [one for one in await transaction.list_rollouts(scope, open_only=True) if one.release_id == release.id]
    refusal = _NotYetOpen if any(_is_about_to_open(one) for one in of_release) else Refused
    raise refusal(
        f"device {name} has no open execution of {reference}",
        expected="one of a rollout",
        found="none",
        hint=f"Make one: flota rollout create --release {reference} --devices {name}",
    )


def _is_about_to_open(rollout: Rollout) -> bool:
    return rollout.state is RolloutState.ACTIVE and all(wave.state is WaveState.WAITING for wave in rollout.waves)


def _personal(
    context: ServerContext,
    scope: Scope,
    execution: Execution,
    release: Release,
    base: str,
    rollout: str,
    labels: Mapping[str, str],
) -> ServiceLink:
    token = issue_token(context, DeviceGrant(scope.tenant_id, execution.id, execution.device_id))
    url = f"{base}{LINK_PATH}?token={token}"
    return ServiceLink(
        service=pack_service_config(ServiceConfig(url=url, version=release.version)),
        url=url,
        version=release.version,
        device=execution.device_name,
        labels=labels,
        execution=execution.id,
        rollout=rollout,
    )


def _shared(context: ServerContext, scope: Scope, release: Release, base: str) -> ServiceLink:
    url = f"{base}{LINK_PATH}?token={issue_token(context, SharedGrant(scope.tenant_id, release.id))}"
    service = pack_service_config(ServiceConfig(url=url, version=release.version))
    return ServiceLink(service=service, url=url, version=release.version)
