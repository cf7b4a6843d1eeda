"""Gateway tokens: one secret that stands for several devices, because a gateway asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from flota.errors import Conflict, InvalidInput, NotFound
from flota.fleet.changes import Changes
from flota.fleet.scope import Scope
from flota.fleet.selectors import parse_selector
from flota.fleet.storage import GatewayToken, NewGatewayToken
from flota.store.change_notes import concerning
from flota.store.queries.base import in_batches
from flota.store.queries.device_types import DeviceTypeQueries
from flota.store.tables import device_types, gateway_token_devices, gateway_tokens

LISTED_MAX: Final = 50_000
"""Devices that one token can list by name; a selector picks any number."""

_LISTED: Final = (
    sa.select(sa.func.count())
    .select_from(gateway_token_devices)
    .where(gateway_token_devices.c.token_id == gateway_tokens.c.id)
    .scalar_subquery()
)
_SELECT_TOKEN: Final = sa.select(
    gateway_tokens, device_types.c.name.label("type_name"), _LISTED.label("device_count")
).outerjoin(device_types, device_types.c.id == gateway_tokens.c.type_id)


class GatewayTokenQueries(DeviceTypeQueries):
    """Which devices a gateway may ask for."""

    async def add_gateway_token(self, scope: Scope, new: NewGatewayToken, *, now: datetime) -> GatewayToken:
        """Return a new token, known by the hex SHA-256 of its secret.

        Raises `Conflict` if a live one has this name, `NotFound` for its type, `InvalidInput` unless it covers names, a
        selector or everything: exactly one of them.
        """
        ways = (new.device_names is not None) + (new.selector is not None) + new.all_devices
        if ways != 1:
            raise InvalidInput("a gateway token covers named devices, a selector's, or all", expected="exactly one")
        names = tuple(dict.fromkeys(new.device_names or ()))
        if new.device_names is not None and not 0 < len(names) <= LISTED_MAX:
            raise InvalidInput("the list of devices", expected=f"1 to {LISTED_MAX} names", found=len(names))
        if new.selector is not None:
            parse_selector(new.selector)
        type_id = None if new.type_name is None else (await self.device_type(scope, new.type_name)).id
        token_id = await self._insert_unique(
            gateway_tokens,
            {
                "tenant_id": scope.tenant_id,
                "name": new.name,
                "secret_sha256": new.secret_sha256,
                "type_id": type_id,
                "all_devices": new.all_devices,
                "selector": new.selector,
                "created_at": now,
                "expires_at": new.expires_at,
            },
            Conflict("there is a gateway token of this name", found=new.name, hint="Revoke it first."),
        )
        for batch in in_batches(names):
            rows = [{"token_id": token_id, "device_name": name} for name in batch]
            await self._connection.execute(sa.insert(gateway_token_devices), rows)
        details: dict[str, object] = {"name": new.name, "all_devices": new.all_devices, "type": new.type_name}
        if names:
            details["devices"] = list(names)
        if new.selector is not None:
            details["selector"] = new.selector
        if new.expires_at is not None:
            details["expires_at"] = new.expires_at.isoformat()
        self._audit(scope, "gateway-token.created", f"gateway-token:{token_id}", details, now=now)
        return GatewayToken(
            token_id,
            scope.tenant_id,
            new.name,
            now,
            device_count=len(names),
            selector=new.selector,
            all_devices=new.all_devices,
            type_name=new.type_name,
            expires_at=new.expires_at,
        )

    async def gateway_token_by_digest(self, scope: Scope, secret_sha256: str) -> GatewayToken | None:
        """Return the tenant's token whose secret has this hex SHA-256, or None; revoked ones are None, expired not."""
        row = await self._row(
            _SELECT_TOKEN.where(
                gateway_tokens.c.secret_sha256 == secret_sha256,
                gateway_tokens.c.tenant_id == scope.tenant_id,
                gateway_tokens.c.revoked_at.is_(None),
            )
        )
        return None if row is None else _gateway_token(row)

    async def gateway_token_lists(self, scope: Scope, token_id: int, device_name: str) -> bool:
        """Whether the token names this device."""
        row = await self._row(
            sa.select(gateway_token_devices.c.token_id)
            .join(gateway_tokens, gateway_tokens.c.id == gateway_token_devices.c.token_id)
            .where(
                gateway_tokens.c.tenant_id == scope.tenant_id,
                gateway_token_devices.c.token_id == token_id,
                gateway_token_devices.c.device_name == device_name,
            )
        )
        return row is not None

    async def gateway_token_devices(self, scope: Scope, token_id: int) -> Sequence[str]:
        """Return the names that the token lists, in order; none if there is no such token."""
        rows = await self._rows(
            sa.select(gateway_token_devices.c.device_name)
            .join(gateway_tokens, gateway_tokens.c.id == gateway_token_devices.c.token_id)
            .where(gateway_tokens.c.tenant_id == scope.tenant_id, gateway_token_devices.c.token_id == token_id)
            .order_by(gateway_token_devices.c.device_name)
        )
        return tuple(row.device_name for row in rows)

    async def list_gateway_tokens(self, scope: Scope) -> Sequence[GatewayToken]:
        """Return the tenant's gateway tokens, revoked ones too, oldest first."""
        rows = await self._rows(
            _SELECT_TOKEN.where(gateway_tokens.c.tenant_id == scope.tenant_id).order_by(gateway_tokens.c.id)
        )
        return tuple(_gateway_token(row) for row in rows)

    async def revoke_gateway_token(self, scope: Scope, token_id: int, *, now: datetime) -> None:
        """Make a token useless for ever; revoking it again changes nothing. Raises `NotFound`."""
        row = await self._row(
            sa.select(gateway_tokens)
            .where(gateway_tokens.c.id == token_id, gateway_tokens.c.tenant_id == scope.tenant_id)
            .with_for_update()
        )
        if row is None:
            raise NotFound("no such gateway token", found=token_id)
        if row.revoked_at is not None:
            return
        await self._connection.execute(
            sa.update(gateway_tokens).where(gateway_tokens.c.id == token_id).values(revoked_at=now),
            execution_options=concerning(Changes(tenants=frozenset({scope.tenant_id}))),
        )
        self._audit(scope, "gateway-token.revoked", f"gateway-token:{token_id}", {"name": row.name}, now=now)


def _gateway_token(row: sa.Row[Any]) -> GatewayToken:
    return GatewayToken(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        created_at=row.created_at,
        device_count=row.device_count,
        selector=row.selector,
        all_devices=row.all_devices,
        type_name=row.type_name,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
