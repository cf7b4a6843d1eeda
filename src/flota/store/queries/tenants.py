"""Tenants and management tokens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from flota.errors import Conflict, NotFound
from flota.fleet.audit import FIRST_DIGEST
from flota.fleet.scope import Role, Scope, Tenant, check_tenant_name
from flota.fleet.storage import AccessToken
from flota.store.queries.base import Queries
from flota.store.tables import access_tokens, tenants


class TenantQueries(Queries):
    """Who there is, and who may ask."""

    async def tenant_by_name(self, name: str) -> Tenant:
        """Return the tenant called exactly `name`; raises `NotFound`."""
        row = await self._row(sa.select(tenants.c.id, tenants.c.name).where(tenants.c.name == name))
        if row is None:
            raise NotFound("no such tenant", found=repr(name))
        return Tenant(row.id, row.name)

    async def all_tenants(self) -> Sequence[Tenant]:
        """Return every tenant in order of id: for the engine, never for a caller's request."""
        rows = await self._rows(sa.select(tenants.c.id, tenants.c.name).order_by(tenants.c.id))
        return tuple(Tenant(row.id, row.name) for row in rows)

    async def add_tenant(self, name: str, *, now: datetime) -> Tenant:
        """Return a new tenant, its trail begun by the actor `server`.

        Raises `Conflict` if the name is taken, `InvalidInput` for one that addresses could not carry.
        """
        check_tenant_name(name)
        tenant_id = await self._insert_unique(
            tenants,
            {"name": name, "created_at": now, "audit_sequence": 0, "audit_digest": FIRST_DIGEST},
            Conflict("there is a tenant of this name", found=name),
        )
        self._audit(Scope(tenant_id, "server"), "tenant.created", f"tenant:{name}", {"name": name}, now=now)
        return Tenant(tenant_id, name)

    async def add_access_token(
        self,
        scope: Scope,
        name: str,
        role: Role,
        secret_sha256: str,
        *,
        now: datetime,
        expires_at: datetime | None = None,
    ) -> AccessToken:
        """Return a new token, known by the hex SHA-256 of its secret; raises `Conflict` if a live one has this name."""
        token_id = await self._insert_unique(
            access_tokens,
            {
                "tenant_id": scope.tenant_id,
                "name": name,
                "role": role.value,
                "secret_sha256": secret_sha256,
                "created_at": now,
                "expires_at": expires_at,
            },
            Conflict("there is a token of this name", found=name, hint="Revoke it first, or take another name."),
        )
        details = {"name": name, "role": role.value}
        if expires_at is not None:
            details["expires_at"] = expires_at.isoformat()
        self._audit(scope, "token.created", f"token:{token_id}", details, now=now)
        return AccessToken(token_id, scope.tenant_id, name, role, now, expires_at=expires_at)

    async def access_token_by_digest(self, secret_sha256: str) -> AccessToken | None:
        """Return the live token whose secret has this hex SHA-256, or None; a revoked one is None too."""
        row = await self._row(
            sa.select(access_tokens).where(
                access_tokens.c.secret_sha256 == secret_sha256, access_tokens.c.revoked_at.is_(None)
            )
        )
        return None if row is None else _access_token(row)

    async def list_access_tokens(self, scope: Scope) -> Sequence[AccessToken]:
        """Return the tenant's tokens, revoked ones too, oldest first."""
        rows = await self._rows(
            sa.select(access_tokens).where(access_tokens.c.tenant_id == scope.tenant_id).order_by(access_tokens.c.id)
        )
        return tuple(_access_token(row) for row in rows)

    async def revoke_access_token(self, scope: Scope, token_id: int, *, now: datetime) -> None:
        """Make a token useless for ever; revoking it again changes nothing. Raises `NotFound`."""
        row = await self._row(
            sa.select(access_tokens)
            .where(access_tokens.c.id == token_id, access_tokens.c.tenant_id == scope.tenant_id)
            .with_for_update()
        )
        if row is None:
            raise NotFound("no such token", found=token_id)
        if row.revoked_at is not None:
            return
        await self._connection.execute(
            sa.update(access_tokens).where(access_tokens.c.id == token_id).values(revoked_at=now)
        )
        self._audit(scope, "token.revoked", f"token:{token_id}", {"name": row.name}, now=now)


def _access_token(row: sa.Row[Any]) -> AccessToken:
    return AccessToken(row.id, row.tenant_id, row.name, Role(row.role), row.created_at, row.revoked_at, row.expires_at)
