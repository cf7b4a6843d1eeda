"""Who asks at a DDI address: by its own token, by its gateway's, or by a certificate that a trusted proxy has checked.

The three are tried independently; whichever says yes is enough. Whatever is wrong, the answer is the same empty 401.
Source: docs/reference/hawkbit-ddi.md, "Authentication".
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from flota.errors import FlotaError, NotFound, Unauthenticated
from flota.fleet.devices import Device, DeviceState
from flota.fleet.scope import Scope
from flota.fleet.selectors import parse_selector
from flota.fleet.storage import GatewayToken, KnownDevice
from flota.protocols.ddi import GATEWAY_TOKEN, TARGET_TOKEN, parse_authorization
from flota.server.auth import digest_of_secret
from flota.server.device_admission import device_if_shown
from flota.server.device_registry import parse_device_name
from flota.server.updates import device_scope, tenant_scope

if TYPE_CHECKING:
    from starlette.requests import Request

    from flota.server.context import ServerContext

ROUTE: Final = "ddi"
TENANTS_REMEMBERED: Final = 1000
CONTROLLER_HEADER: Final = "x-controller-id"
AUTHORITY_HEADER: Final = "x-authority"
AUTHORITIES_MAX: Final = 16
"""Numbered X-Authority-N headers that are looked at; a chain of certificates is shorter."""

_SEPARATORS: Final = re.compile(r"[;,]")


@dataclass(frozen=True, slots=True)
class Identity:
    """A device that has shown who it is; `scope` is its own. `by` names how: `token`, `gateway:NAME`, `certificate`.

    `address` is where it asks from, as far as a trusted proxy tells.
    """

    scope: Scope
    device: Device
    by: str
    address: str | None


@dataclass(frozen=True, slots=True)
class Seen:
    """What the database had under a device's name, and under the secret of the gateway that asks."""

    known: KnownDevice | None
    gateway: GatewayToken | None


class DdiAuthentication:
    """Finds out which device asks, and admits new ones that a gateway or a certificate vouches for."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._tenants: dict[str, Scope] = {}

    async def identify(self, request: Request, seen: Seen | None = None) -> Identity:
        """Return the device at whose address the request asks. Raises `Unauthenticated`, `Forbidden`.

        `seen` is what the database had since the request came in, if it was read already.
        Raises `TooManyRequests` while too many new devices wait to be accepted.
        """
        tenant, name = request.path_params["tenant"], request.path_params["controller_id"]
        scope = await self.tenant(tenant)
        found = await self._by_header(scope, name, request, seen)
        if found is None:
            found = await self._by_certificate(scope, tenant, name, request)
        if found is None or found[0].state is DeviceState.REFUSED:
            raise Unauthenticated("not a device of this server, or not its token")
        device, by = found
        return Identity(device_scope(scope, device), device, by, self._context.peer_address(request))

    async def tenant(self, name: str) -> Scope:
        """Return the scope of a tenant, its name in any case. Raises `Unauthenticated`."""
        known = self._tenants.get(name)
        if known is not None:
            return known
        try:
            scope = await tenant_scope(self._context, ROUTE, tenant=name)
        except NotFound as error:
            raise Unauthenticated("no such tenant") from error
        if len(self._tenants) < TENANTS_REMEMBERED:
            self._tenants[name] = scope
        return scope

    async def _by_header(
        self, scope: Scope, name: str, request: Request, seen: Seen | None
    ) -> tuple[Device, str] | None:
        credentials = parse_authorization(request.headers.get("authorization"))
        if credentials is None:
            return None
        if credentials.scheme == TARGET_TOKEN:
            known = seen.known if seen is not None else await self._context.known_devices.get(scope, name)
            device = await device_if_shown(self._context, scope, known, credentials.token)
            return None if device is None else (device, "token")
        if credentials.scheme == GATEWAY_TOKEN:
            if seen is None:
                gateway = await self._context.gateways.get(scope, digest_of_secret(credentials.token))
                seen = Seen(await self._context.known_devices.get(scope, name), gateway)
            return await self._by_gateway(scope, name, seen)
        return None

    async def _by_gateway(self, scope: Scope, name: str, seen: Seen) -> tuple[Device, str] | None:
        now = self._context.now()
        gateway, known = seen.gateway, seen.known
        if gateway is None or (gateway.expires_at is not None and gateway.expires_at <= now):
            return None
        device = None if known is None else known.device
        if not await self._covers(scope, gateway, name, device):
            return None
        if device is None and gateway.type_name is not None:
            device = await self._admit(scope, name, gateway.type_name, f"gateway:{gateway.name}")
        return None if device is None else (device, f"gateway:{gateway.name}")

    async def _covers(self, scope: Scope, gateway: GatewayToken, name: str, device: Device | None) -> bool:
        """Whether a gateway's token stands for a device: one that it lists, that its selector picks now, or any."""
        if gateway.all_devices:
            return True
        if gateway.selector is None:
            async with self._context.storage.reading() as transaction:
                return await transaction.gateway_token_lists(scope, gateway.id, name)
        if device is None:
            return False
        picked = parse_selector(gateway.selector).device_filter()
        if picked.names is not None and name not in picked.names:
            return False
        async with self._context.storage.reading() as transaction:
            return bool(await transaction.count_devices(scope, replace(picked, names=(name,))))

    async def _by_certificate(
        self, scope: Scope, tenant: str, name: str, request: Request
    ) -> tuple[Device, str] | None:
        settings = self._context.settings
        if not self._context.is_certificate_proxy(request) or request.headers.get(CONTROLLER_HEADER) != name:
            return None
        trusted = [one.authority for one in settings.proxy_authorities if one.tenant == tenant.upper()]
        if not any(_same_text(shown, one) for shown in _authorities(request) for one in trusted):
            return None
        async with self._context.storage.reading() as transaction:
            device = await transaction.find_device(scope, name)
        if device is None and settings.proxy_device_type is not None:
            device = await self._admit(scope, name, settings.proxy_device_type, "certificate")
        return None if device is None else (device, "certificate")

    async def _admit(self, scope: Scope, name: str, type_name: str, by: str) -> Device | None:
        """Register an unknown device as its type's policy says; None where it is turned away."""
        try:
            parse_device_name(name)
        except FlotaError:
            return None
        try:
            return await self._context.admissions.admit(Scope(scope.tenant_id, by), name, type_name)
        except NotFound:  # the type is gone
            return None


def _authorities(request: Request) -> Iterator[str]:
    """Yield what the proxy says who issued the certificate: X-Authority, else X-Authority-0 or -1 on, until a gap."""
    for value in request.headers.getlist(AUTHORITY_HEADER):
        yield from (part.strip() for part in _SEPARATORS.split(value) if part.strip())
    number = 0 if f"{AUTHORITY_HEADER}-0" in request.headers else 1
    for index in range(number, number + AUTHORITIES_MAX):
        numbered = request.headers.get(f"{AUTHORITY_HEADER}-{index}")
        if numbered is None:
            return
        yield numbered.strip()


def _same_text(one: str, other: str) -> bool:
    return hmac.compare_digest(one.lower().encode(), other.lower().encode())
