"""Authority is an argument: every query that can return a tenant's row takes a `Scope`."""

from __future__ import annotations

import enum
from dataclasses import dataclass


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
