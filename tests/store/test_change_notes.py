"""Whom a commit concerns: no more devices than needed, everybody where nothing is said, and nobody by mistake."""

from __future__ import annotations

import sqlalchemy as sa

from flota.fleet.changes import EVERYTHING, NO_CHANGES, Changes
from flota.store.change_notes import DECIDE_NOTHING, NEW_ROWS_DECIDE_NOTHING, ChangeNotes, concerning
from flota.store.tables import access_tokens, devices, executions, metadata


def noted(statement: object, told: Changes | None = None) -> Changes:
    notes = ChangeNotes()
    notes.add(statement, {} if told is None else concerning(told))
    return notes.changes


def test_a_statement_says_whom_it_concerns() -> None:
    assert noted(sa.update(devices), Changes.of_work(3)) == Changes.of_work(3)


def test_one_that_says_nothing_concerns_everybody() -> None:
    for statement in (sa.update(executions), sa.insert(executions), sa.delete(devices), sa.text("DROP TABLE devices")):
        assert noted(statement) == EVERYTHING


def test_reading_and_tables_that_decide_nothing_concern_nobody() -> None:
    for statement in (sa.select(devices), sa.insert(devices), sa.update(access_tokens)):
        assert noted(statement) == NO_CHANGES


def test_the_listed_tables_exist() -> None:
    assert metadata.tables.keys() >= DECIDE_NOTHING | NEW_ROWS_DECIDE_NOTHING


def test_changes_add_up() -> None:
    both = Changes.of_work(1) | Changes(identity=frozenset({2}), tenants=frozenset({3}))
    assert both == Changes(frozenset({1}), frozenset({2}), frozenset({3}))
    assert both
    assert not NO_CHANGES
    assert (both | EVERYTHING).everything
