"""Notes, statement by statement, whom a transaction concerns, so that its commit can tell.

A statement that writes says so itself, by `concerning`. One that says nothing counts as concerning every device, unless
its table is known to decide nothing about any: a query that somebody forgot to mark costs time, never a stale answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from flota.fleet.changes import EVERYTHING, NO_CHANGES, Changes

_CONCERNS: Final = "flota_concerns"
_NOTES: Final = "flota_notes"

DECIDE_NOTHING: Final = frozenset(
    {
        "access_tokens",
        "artifacts",
        "audit",
        "execution_events",
        "provisioning_templates",
        "release_file_signatures",
        "release_sboms",
        "release_signatures",
        "rollout_devices",
        "rollout_waves",
        "shipments",  # written with their rollout, before it has executions
        "tenants",  # their names never change
    }
)
"""Tables from whose rows nothing follows for what a device is told when it asks whether there is something to do."""

NEW_ROWS_DECIDE_NOTHING: Final = frozenset(
    {
        "device_types",
        "devices",
        "gateway_token_devices",
        "gateway_tokens",
        "releases",
        "rollouts",
        "thing_certificates",
    }
)
"""A new row there concerns no device that was known before; changing one does."""


class ChangeNotes:
    """Of one transaction."""

    def __init__(self) -> None:
        self.changes = NO_CHANGES

    def add(self, statement: object, options: Mapping[str, Any]) -> None:
        """Note what executing `statement` with these execution options concerns."""
        if isinstance(statement, sa.SelectBase):
            return
        told: Changes | None = options.get(_CONCERNS)
        if told is not None:
            self.changes |= told
        elif not _decides_nothing(statement):
            self.changes |= EVERYTHING


def concerning(changes: Changes) -> dict[str, Any]:
    """Return the execution options by which a writing statement says whom it concerns."""
    return {_CONCERNS: changes}


def noting_in(notes: ChangeNotes) -> dict[str, Any]:
    """Return the execution options of a connection whose statements are to be noted."""
    return {_NOTES: notes}


def note_statements(engine: sa.Engine) -> None:
    """Have every statement on connections with `noting_in` noted."""

    @sa.event.listens_for(engine, "before_execute")
    def _before_execute(
        _connection: object, statement: object, _many: object, _params: object, options: Mapping[str, Any]
    ) -> None:
        notes: ChangeNotes | None = options.get(_NOTES)
        if notes is not None:
            notes.add(statement, options)


def _decides_nothing(statement: object) -> bool:
    table = getattr(getattr(statement, "table", None), "name", None)
    return table in DECIDE_NOTHING or (isinstance(statement, sa.Insert) and table in NEW_ROWS_DECIDE_NOTHING)
