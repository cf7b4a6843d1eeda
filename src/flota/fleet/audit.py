"""The audit trail, which is also the journal that clients follow live: append-only, without a gap.

Source: docs/reference/executions.md, "The audit trail".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from flota.errors import Conflict

FIRST_DIGEST: Final = "0" * 64
"""What stands in for "the previous entry's digest" in a tenant's first entry."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what to which subject, when.

    `sequence` rises by exactly one per tenant; `digest` chains the entries: SHA-256 over the previous entry's digest
    and this entry's canonical JSON, so that a removed or changed row shows.
    `action` is `noun.verb`, e.g. `release.published`, `execution.changed`; `subject` e.g. `release:3`, `execution:17`.
    """

    sequence: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: Mapping[str, object]
    digest: str


def canonical_json(details: Mapping[str, object]) -> str:
    """Return `details` as JSON that is the same for equal values: keys sorted, no spaces, ASCII, no NaN.

    Raises TypeError or ValueError for what JSON cannot hold: a mistake of the calling code.
    """
    return json.dumps(details, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def entry_digest(
    previous_digest: str, *, sequence: int, at: datetime, actor: str, action: str, subject: str, details: str
) -> str:
    """Return the hex SHA-256 that chains an entry to the one before it; `details` is canonical JSON text.

    Hashed are the previous digest (64 hex characters), a line feed and the canonical JSON of the other fields;
    `at` is in UTC with six digits of a second.
    """
    text = canonical_json(
        {
            "sequence": sequence,
            "at": at.astimezone(UTC).isoformat(timespec="microseconds"),
            "actor": actor,
            "action": action,
            "subject": subject,
            "details": details,
        }
    )
    return hashlib.sha256(f"{previous_digest}\n{text}".encode("ascii")).hexdigest()


def check_chain(
    entries: Iterable[AuditEntry], *, after: int = 0, previous_digest: str = FIRST_DIGEST
) -> tuple[int, str]:
    """Return sequence and digest of the last of `entries`, which must follow sequence `after` without a gap.

    Raises `Conflict` at the first entry that is missing, out of order or changed, with its sequence as `expected`.
    """
    for entry in entries:
        if entry.sequence != after + 1:
            raise Conflict("the audit trail has a gap", expected=f"entry {after + 1}", found=f"entry {entry.sequence}")
        digest = entry_digest(
            previous_digest,
            sequence=entry.sequence,
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            subject=entry.subject,
            details=canonical_json(entry.details),
        )
        if digest != entry.digest:
            raise Conflict(f"audit entry {entry.sequence} was changed", expected=digest, found=entry.digest)
        after, previous_digest = entry.sequence, digest
    return after, previous_digest
