"""A rollout, followed to its end: what changed since the last look, and how it stands now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from flota.client.management import ManagementClient
from flota.client.schemas import AuditEntry, Rollout
from flota.errors import PeerError

LOOK_EVERY_S: Final = 0.5
AUDIT_PAGE: Final = 1000
SERVER_AWAY_MAX_S: Final = 120.0
"""How long a server may be away (a restart) before following it ends with its error."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a rollout. `changes` are the audit entries about it since the look before, in order."""

    rollout: Rollout
    changes: tuple[AuditEntry, ...]
    server_away: bool = False
    """The server did not answer; `rollout` is how it stood before."""


def follow_rollout(
    client: ManagementClient,
    rollout: Rollout,
    *,
    after: int = 0,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Look]:
    """Yield a look whenever something has changed, the last one with a rollout that has ended.

    `after` is the audit sequence from which on changes are told. Raises `PeerError` when the server stays away for
    longer than `SERVER_AWAY_MAX_S`.
    """
    known: Rollout | None = None
    away_since: float | None = None
    while True:
        try:
            entries = client.audit(after=after, limit=AUDIT_PAGE)
            now = client.rollout(rollout.id)
        except PeerError:
            at = clock()
            if away_since is None:
                away_since = at
                yield Look(rollout=known or rollout, changes=(), server_away=True)
            elif at - away_since > SERVER_AWAY_MAX_S:
                raise
            pause(LOOK_EVERY_S)
            continue
        away_since = None
        changes = tuple(entry for entry in entries if _is_about(entry, rollout.id))
        if entries:
            after = entries[-1].sequence
        ended = now.is_final and len(entries) < AUDIT_PAGE
        if changes or now != known or ended:
            yield Look(rollout=now, changes=changes)
        known = now
        if ended:
            return
        if len(entries) < AUDIT_PAGE:
            pause(LOOK_EVERY_S)


def _is_about(entry: AuditEntry, rollout_id: int) -> bool:
    return entry.subject == f"rollout:{rollout_id}" or (
        entry.action == "execution.changed" and entry.details.get("rollout") == rollout_id
    )


def describe_change(entry: AuditEntry) -> str | None:
    """Return one line of text for an audit entry about a rollout, None for one that tells a reader nothing."""
    details: dict[str, Any] = entry.details
    message = str(details.get("message") or details.get("reason") or "")
    tail = f": {message}" if message else ""
    if entry.action == "execution.changed":
        return f"{details.get('device')}  {details.get('state')}{tail}"
    noun, _, verb = entry.action.partition(".")
    if noun == "wave":
        return f"wave {details.get('wave')} {verb} ({details.get('size')} devices)"
    if noun == "rollout" and verb != "created":
        return f"rollout {verb}{tail}"
    return None
