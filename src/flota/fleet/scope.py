"""Authority is an argument: every query that can return a tenant's row takes a `Scope`."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from flota.errors import InvalidInput


class Role(enum.StrEnum):
    """What a caller of the management API may do; each role includes those before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose rows a query may see or change, and who asks (`actor` goes into the audit trail).

    `actor` is e.g. `token:admin`, `device:AA:BB:CC:DD:EE:FF` or `engine`.
    """

    tenant_id: int
    actor: str


@dataclass(frozen=True, slots=True)
class Tenant:
    """An organisation whose devices and releases nobody else sees. `name` is upper-case, e.g. `DEFAULT`."""

    id: int
    name: str


DEFAULT_TENANT = "DEFAULT"

RESERVED_TENANT_NAMES: Final = frozenset(
    {
        *("API", "ARTIFACTS", "HEALTHZ", "METRICS", "UPDATE"),  # paths of this server
        *("ASSETS", "AUTH", "CONSOLE", "DOCS", "EVENTS", "FAVICON.ICO", "LOGIN", "LOGOUT", "ROBOTS.TXT", "STATIC"),
        *("AWS", "BLYNK", "JOBS", "STREAMS", "THINGS", "VIAM", "VIAM.APP.V1.ROBOTSERVICE"),
        *(".WELL-KNOWN", "MCP", "OPENAPI.JSON", "REST", "UI"),
    }
)
"""A tenant's name is the first segment of hawkBit addresses: none may shadow another path. A test walks the routes."""

TENANT_NAME_RULE: Final = "1 to 40 of A-Z 0-9 _ - beginning with a letter or digit"
_TENANT_NAME = re.compile(r"[A-Z0-9][A-Z0-9_-]{0,39}\Z")


def check_tenant_name(name: str) -> None:
    """Raise `InvalidInput` unless `name` (upper-case) can stand in an address and shadows nothing there."""
    if not _TENANT_NAME.match(name):
        raise InvalidInput("not a tenant's name", expected=TENANT_NAME_RULE, found=repr(name[:80]))
    if name in RESERVED_TENANT_NAMES:
        raise InvalidInput("a tenant cannot have this name: it is a path of the server", found=name)
