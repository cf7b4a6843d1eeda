"""Who is asking, and what they may do: management tokens, roles, and one permission for every operation.

A management token is a random secret; only its SHA-256 is stored, and the look-up is by that digest, so that nothing
about a wrong token can be learned from how long the answer takes.
"""

from __future__ import annotations

import enum
import hashlib
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from flota.errors import Forbidden, Unauthenticated
from flota.fleet.scope import Role, Scope

if TYPE_CHECKING:
    from flota.server.context import ServerContext

SECRET_BYTES: Final = 32
"""256 random bits, so that a plain SHA-256 is a safe form to keep."""

SECRET_PREFIX: Final = "flota_"  # noqa: S105 - not a secret: it lets secret scanners know ours
AUTHORIZATION_MAX_LEN: Final = 512
"""Characters of an Authorization header that are looked at; ours are 56."""


class Permission(enum.StrEnum):
    """What an operation of the management API needs. `noun.verb`."""

    SELF_READ = "self.read"
    TYPES_READ = "types.read"
    TYPES_DECLARE = "types.declare"
    TYPES_TRUST = "types.trust"
    ARTIFACTS_READ = "artifacts.read"
    ARTIFACTS_UPLOAD = "artifacts.upload"
    RELEASES_READ = "releases.read"
    RELEASES_CREATE = "releases.create"
    RELEASES_SIGN = "releases.sign"
    RELEASES_PUBLISH = "releases.publish"
    RELEASES_WITHDRAW = "releases.withdraw"
    DEVICES_READ = "devices.read"
    DEVICES_REGISTER = "devices.register"
    DEVICES_DECIDE = "devices.decide"
    DEVICES_TOKEN = "devices.token"  # noqa: S105 - a permission's name
    DEVICES_LABEL = "devices.label"
    DEVICES_COMMAND = "devices.command"
    DEVICES_REMOVE = "devices.remove"
    ROLLOUTS_READ = "rollouts.read"
    ROLLOUTS_CREATE = "rollouts.create"
    ROLLOUTS_CONTROL = "rollouts.control"
    AUDIT_READ = "audit.read"
    TOKENS_MANAGE = "tokens.manage"


_P = Permission

_VIEWER: Final = frozenset(
    {
        _P.SELF_READ,
        _P.TYPES_READ,
        _P.ARTIFACTS_READ,
        _P.RELEASES_READ,
        _P.DEVICES_READ,
        _P.ROLLOUTS_READ,
        _P.AUDIT_READ,
    }
)
_OPERATOR: Final = _VIEWER | {
    _P.ARTIFACTS_UPLOAD,
    _P.RELEASES_CREATE,
    _P.RELEASES_SIGN,
    _P.RELEASES_PUBLISH,
    _P.RELEASES_WITHDRAW,
    _P.DEVICES_REGISTER,
    _P.DEVICES_DECIDE,
    _P.DEVICES_TOKEN,
    _P.DEVICES_LABEL,
    _P.DEVICES_COMMAND,
    _P.DEVICES_REMOVE,
    _P.ROLLOUTS_CREATE,
    _P.ROLLOUTS_CONTROL,
}

PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = {
    Role.VIEWER: _VIEWER,
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: frozenset(Permission),
}
"""What each role may do. Only an administrator says what a type is, whose signatures count, and who has a token."""


def digest_of_secret(secret: str) -> str:
    """Return the form in which a token (of a person or a device) is stored: hex SHA-256 of its UTF-8 bytes."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_secret() -> str:
    """Return a new random management token."""
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


async def authenticate(context: ServerContext, authorization: str | None) -> tuple[Scope, Role]:
    """Return the scope and the role of the token in an `Authorization: Bearer …` header.

    Raises `Unauthenticated`; a wrong, a revoked, an expired and a missing token get the same answer.
    """
    secret = _bearer_token(authorization)
    if secret is None:
        raise _not_recognised()
    async with context.storage.reading() as transaction:
        token = await transaction.access_token_by_digest(digest_of_secret(secret))
    expired = token is not None and token.expires_at is not None and token.expires_at <= context.now()
    if token is None or token.revoked_at is not None or expired:
        raise _not_recognised()
    return Scope(tenant_id=token.tenant_id, actor=f"token:{token.name}"), token.role


def require(role: Role, permission: Permission) -> None:
    """Return if `role` has `permission`; raises `Forbidden`."""
    if permission in PERMISSIONS[role]:
        return
    enough = next(candidate for candidate in Role if permission in PERMISSIONS[candidate])
    raise Forbidden(
        "the token's role does not allow this",
        expected=f"{enough} or above",
        found=str(role),
        hint=f"Ask an administrator for a token: flota token create NAME --role {enough}.",
    )


def _bearer_token(authorization: str | None) -> str | None:
    if authorization is None or len(authorization) > AUTHORIZATION_MAX_LEN:
        return None
    scheme, _, secret = authorization.strip().partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None


def _not_recognised() -> Unauthenticated:
    return Unauthenticated(
        "no valid access token",
        hint="Send `Authorization: Bearer TOKEN`; `flota up` prints where the first token is.",
    )
