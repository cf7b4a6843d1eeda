"""The audit trail: the only code that writes to it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from flota.errors import NotFound
from flota.fleet.audit import AuditEntry, entry_digest
from flota.fleet.scope import Scope
from flota.store.queries.base import PendingAudit, Queries
from flota.store.tables import audit, tenants


class AuditQueries(Queries):
    """Appending to, and reading, a tenant's trail."""

    async def append_audit(
        self, scope: Scope, action: str, subject: str, details: Mapping[str, object], *, now: datetime
    ) -> AuditEntry:
        """Return the entry just added for something that no other method records."""
        self._audit(scope, action, subject, details, now=now)
        await self.flush_audit()
        last = await self.last_audit_sequence(scope)
        return (await self.list_audit(scope, after=last - 1, limit=1))[0]

    async def list_audit(self, scope: Scope, *, after: int = 0, limit: int = 1000) -> Sequence[AuditEntry]:
        """Return at most `limit` entries with a sequence above `after`, in order."""
        await self.flush_audit()
        rows = await self._rows(
            sa.select(audit)
            .where(audit.c.tenant_id == scope.tenant_id, audit.c.sequence > after)
            .order_by(audit.c.sequence)
            .limit(limit)
        )
        return tuple(
            AuditEntry(row.sequence, row.at, row.actor, row.action, row.subject, json.loads(row.details), row.digest)
            for row in rows
        )

    async def last_audit_sequence(self, scope: Scope) -> int:
        """Return the sequence of the newest entry, 0 for none."""
        await self.flush_audit()
        row = await self._row(sa.select(tenants.c.audit_sequence).where(tenants.c.id == scope.tenant_id))
        return 0 if row is None else int(row.audit_sequence)

    async def flush_audit(self) -> frozenset[int]:
        """Write the collected entries, tenant by tenant in rising order; return the tenants that got some."""
        pending, self._pending_audit = self._pending_audit, {}
        for tenant_id in sorted(pending):
            await self._extend_chain(tenant_id, pending[tenant_id])
        self._audited_tenants |= pending.keys()
        return frozenset(self._audited_tenants)

    async def _extend_chain(self, tenant_id: int, entries: Sequence[PendingAudit]) -> None:
        end = await self._row(
            sa.select(tenants.c.audit_sequence, tenants.c.audit_digest)
            .where(tenants.c.id == tenant_id)
            .with_for_update(key_share=True)  # rows of others that refer to the tenant need not wait for it
        )
        if end is None:
            raise NotFound("no such tenant")
        sequence, digest = int(end.audit_sequence), str(end.audit_digest)
        rows: list[dict[str, object]] = []
        for entry in entries:
            sequence += 1
            digest = entry_digest(
                digest,
                sequence=sequence,
                at=entry.at,
                actor=entry.actor,
                action=entry.action,
                subject=entry.subject,
                details=entry.details,
            )
            rows.append(
                {
                    "tenant_id": tenant_id,
                    "sequence": sequence,
                    "at": entry.at,
                    "actor": entry.actor,
                    "action": entry.action,
                    "subject": entry.subject,
                    "details": entry.details,
                    "digest": digest,
                }
            )
        await self._connection.execute(sa.insert(audit), rows)
        await self._connection.execute(
            sa.update(tenants).where(tenants.c.id == tenant_id).values(audit_sequence=sequence, audit_digest=digest)
        )
