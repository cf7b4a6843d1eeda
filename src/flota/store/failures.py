"""What a database error means to a caller: one table of SQLite messages and PostgreSQL codes."""

from __future__ import annotations

from typing import Final

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, IntegrityError

from flota.errors import Conflict, FlotaError, InvalidInput, StorageFull

_UNIQUE_CODES: Final = frozenset({"23505"})
_FULL_CODES: Final = frozenset({"53100", "53200"})
"""disk_full and out_of_memory (PostgreSQL documentation, appendix A)."""
_LOST_RACE_CODES: Final = frozenset({"40001", "40P01", "55P03"})
"""serialization_failure, deadlock_detected, lock_not_available."""

_SQLITE_UNIQUE: Final = "UNIQUE constraint failed"
_SQLITE_FULL: Final = "database or disk is full"
_SQLITE_LOCKED: Final = "database is locked"

_UNKNOWN_OPTION: Final = "unexpected keyword argument"
"""What a driver says of an option in the URL that it does not know."""


def is_unique_violation(error: IntegrityError) -> bool:
    """Whether a unique constraint or index refused the row."""
    return _code(error) in _UNIQUE_CODES or _SQLITE_UNIQUE in str(error.orig)


def as_flota_error(error: DBAPIError) -> FlotaError | None:
    """Return the error that callers can act on, or None if this one is a defect of ours."""
    code, text = _code(error), str(error.orig)
    if code in _FULL_CODES or _SQLITE_FULL in text:
        return StorageFull("the database cannot grow", found=text, hint="Free some space and try again.")
    if code in _LOST_RACE_CODES or _SQLITE_LOCKED in text:
        return Conflict("another writer held the database for too long", found=text, hint="Try again.")
    if isinstance(error, IntegrityError) and is_unique_violation(error):
        return Conflict("another writer stored the same thing first", hint="Read it again and decide again.")
    return None


def as_opening_error(error: BaseException, url: URL) -> FlotaError | None:
    """Return why the database at `url` cannot be opened, None if `error` says nothing about the database."""
    if isinstance(error, DBAPIError):
        meant = as_flota_error(error)
        if meant is not None:
            return meant
        text = str(error.orig)
    elif isinstance(error, OSError) or (isinstance(error, TypeError) and _UNKNOWN_OPTION in str(error)):
        text = str(error)
    else:
        return None
    return InvalidInput(
        "the database cannot be opened",
        expected=url.render_as_string(hide_password=True),
        found=text.rpartition(">: ")[2].splitlines()[0] if text else type(error).__name__,
        hint="Look at its URL, at whether it runs there, and at the rights of its user.",
    )


def _code(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")
