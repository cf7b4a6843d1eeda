"""What a data directory needs before its server can be used: a tenant and an administrator's token."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from flota.durable_files import PRIVATE_FILE_MODE, write_durably
from flota.errors import NotFound
from flota.fleet.scope import DEFAULT_TENANT, Role, Scope, Tenant
from flota.server.auth import digest_of_secret, new_secret

if TYPE_CHECKING:
    from flota.fleet.storage import Storage, Transaction

ADMIN_TOKEN_NAME: Final = "admin"  # noqa: S105 - a token's name
_log = structlog.get_logger(__name__)


async def ensure_tenant(storage: Storage, *, now: datetime) -> Tenant:
    """Return the default tenant; the first start makes it."""
    async with storage.transaction() as transaction:
        try:
            return await transaction.tenant_by_name(DEFAULT_TENANT)
        except NotFound:
            return await transaction.add_tenant(DEFAULT_TENANT, now=now)


async def ensure_admin_token(storage: Storage, tenant: Tenant, path: Path, *, now: datetime) -> bool:
    """Make an administrator's token unless there is one; returns whether the file at `path` (mode 0600) has one.

    The file is written before the database knows the token: a crash in between is made good by the next start. Who
    removes the file while an administrator's token exists gets no new one.
    """
    scope = Scope(tenant.id, "setup")
    secret = _read_secret(path)
    async with storage.reading() as transaction:
        tokens = await transaction.list_access_tokens(scope)
        works = secret is not None and await transaction.access_token_by_digest(digest_of_secret(secret)) is not None
    if works:
        return True
    if any(token.role is Role.ADMIN and token.revoked_at is None for token in tokens):
        return False  # the file is gone, or the token in it was revoked: who has another one makes new ones
    if secret is not None:
        async with storage.transaction() as transaction:
            await _register(transaction, scope, secret, now)
        return True
    secret = new_secret()
    write_durably(path, secret.encode() + b"\n", mode=PRIVATE_FILE_MODE)
    async with storage.transaction() as transaction:
        await _register(transaction, scope, secret, now)
    return True


def _read_secret(path: Path) -> str | None:
    try:
        return path.read_text("ascii", "replace").strip() or None
    except FileNotFoundError:
        return None


async def _register(transaction: Transaction, scope: Scope, secret: str, now: datetime) -> None:
    taken = {token.name for token in await transaction.list_access_tokens(scope)}
    name = next(
        name for n in range(1, len(taken) + 2) if (name := ADMIN_TOKEN_NAME + (f"-{n}" if n > 1 else "")) not in taken
    )
    await transaction.add_access_token(scope, name, Role.ADMIN, digest_of_secret(secret), now=now)
    _log.info("admin_token.registered", name=name)
