"""Links to files for Blynk devices: whose they are, how long they are good, and what they look like.

The token is `<tenant>.<execution>.<device>.<expires>.<mac>`: numbers, Unix seconds, HMAC-SHA-256 under the key of the
download tokens. A link is good until it expires and as long as its execution is open; nothing is stored per link.
Source: docs/reference/blynk.md, "Cloud link".
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from flota.errors import NotFound

if TYPE_CHECKING:
    from flota.server.context import ServerContext

FILE_PREFIX: Final = "/blynk/ota/"
LINK_LIFETIME: Final = timedelta(hours=24)
"""Longer than the slowest download; a device that connects anew is given a fresh link."""

TOKEN_MAX_LEN: Final = 120
NAME_MAX_LEN: Final = 64
"""Characters of the file's name that stand in a link: a device keeps the whole of it in a small buffer."""

_PURPOSE: Final = b"flota blynk link v1"


class NoSuchLink(NotFound):
    """A token that is none of ours, or has expired; it tells nothing about what exists."""

    code = "no-such-link"


@dataclass(frozen=True, slots=True)
class FileGrant:
    """What a link's token stands for."""

    tenant_id: int
    execution_id: int
    device_id: int
    expires_at: int
    """Unix seconds."""


def make_link(context: ServerContext, base_url: str, grant: FileGrant, filename: str) -> str:
    """Return the URL of a file, its name last: the name that the MCU is told."""
    fields = _fields(grant)
    token = ".".join((*fields, context.download_tokens.mac(_PURPOSE, *fields)))
    return f"{base_url}{FILE_PREFIX}{quote(filename[-NAME_MAX_LEN:], safe='')}?token={token}"


def expiry(now: datetime) -> int:
    """Return when a link that is made `now` expires, in Unix seconds."""
    return int((now + LINK_LIFETIME).timestamp())


def read_link_token(context: ServerContext, token: str) -> FileGrant:
    """Return what a token stands for. Raises `NoSuchLink`."""
    *fields, mac = token.split(".") if len(token) <= TOKEN_MAX_LEN and token.isascii() else ("", "")
    good = hmac.compare_digest(mac, context.download_tokens.mac(_PURPOSE, *fields))
    if not good or len(fields) != 4:  # what we have signed is numbers
        raise NoSuchLink("no such link")
    grant = FileGrant(*(int(field) for field in fields))
    if context.now().timestamp() >= grant.expires_at:
        raise NoSuchLink("this link has expired", hint="A device that connects again is given a new one.")
    return grant


def _fields(grant: FileGrant) -> tuple[str, ...]:
    return tuple(map(str, (grant.tenant_id, grant.execution_id, grant.device_id, grant.expires_at)))
