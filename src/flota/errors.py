"""The root of Flota's error tree.

Every error that may reach a person or a peer derives from `FlotaError`. It carries what a reader needs to act on it:
where (`offset`, bytes), what was `expected`, what was `found`, and a `hint` that says what to do next.
The classes say whose fault it is, so that the HTTP layer and the command line translate them in one table each.
"""

from __future__ import annotations

from typing import ClassVar


class FlotaError(Exception):
    """Something asked of Flota could not be done.

    `code` is a stable, dotted-free slug for scripts; `message` is one line of text without a final full stop.
    """

    code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        offset: int | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.expected = expected
        self.found = found
        self.hint = hint

    def __str__(self) -> str:
        """Return the message with offset, expected, found and hint, on one line."""
        parts = [self.message]
        if self.offset is not None:
            parts.append(f"at offset {self.offset:#x}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.found is not None:
            parts.append(f"found {self.found}")
        text = ", ".join(parts)
        return f"{text}. {self.hint}" if self.hint else text

    def as_dict(self) -> dict[str, object]:
        """Return the error as plain data for `--json` and problem documents; absent facts are left out."""
        facts: dict[str, object] = {"code": self.code, "message": self.message}
        for name in ("offset", "expected", "found", "hint"):
            value = getattr(self, name)
            if value is not None:
                facts[name] = value if isinstance(value, int | str) else str(value)
        return facts


class InvalidInput(FlotaError):
    """The caller sent something that is not well formed or not allowed; sending it again cannot help."""

    code = "invalid-input"


class WrongUse(InvalidInput):
    """A command was given options that contradict each other or mean nothing; nothing was tried."""

    code = "wrong-use"


class NotFound(FlotaError):
    """No such thing in the caller's scope. A thing of another tenant gives the same answer."""

    code = "not-found"


class Conflict(FlotaError):
    """The request is well formed, but the present state does not allow it."""

    code = "conflict"


class VersionMismatch(Conflict):
    """A compare-and-set lost: the row has moved on since the caller read it."""

    code = "version-mismatch"


class Refused(FlotaError):
    """A rule of Flota (fit check, policy, signature) says no."""

    code = "refused"


class Unauthenticated(FlotaError):
    """No credentials, or wrong ones."""

    code = "unauthenticated"


class Forbidden(FlotaError):
    """Credentials are right, but their role or scope does not allow this."""

    code = "forbidden"


class TooLarge(FlotaError):
    """A body, file or count is above its named limit."""

    code = "too-large"


class TooManyRequests(FlotaError):
    """The peer is above a rate or quota limit; `retry_after_s` says when to come back."""

    code = "too-many-requests"

    def __init__(self, message: str, *, retry_after_s: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class StorageFull(FlotaError):
    """The disk (or the quota) cannot take the bytes; nothing was half-stored."""

    code = "storage-full"


class PeerError(FlotaError):
    """The other side of a link broke its protocol, closed early, or answered with a failure."""

    code = "peer-error"
