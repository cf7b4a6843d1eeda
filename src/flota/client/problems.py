"""Problem documents (RFC 9457) back into the error tree: the caller of a client sees what the server raised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from flota import errors
from flota.errors import FlotaError

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"

_BY_CODE: Final[Mapping[str, type[FlotaError]]] = {
    kind.code: kind
    for kind in (
        errors.InvalidInput,
        errors.NotFound,
        errors.Conflict,
        errors.VersionMismatch,
        errors.Refused,
        errors.Unauthenticated,
        errors.Forbidden,
        errors.TooLarge,
        errors.StorageFull,
        errors.PeerError,
    )
}

_BY_STATUS: Final[Mapping[int, type[FlotaError]]] = {
    400: errors.InvalidInput,
    401: errors.Unauthenticated,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    422: errors.Refused,
    507: errors.StorageFull,
}

_HINTS: Final[Mapping[type[FlotaError], str]] = {
    errors.Unauthenticated: "Give the token with --token or FLOTA_TOKEN; `flota up` prints where the first one is.",
}
"""What to do next, where the server said nothing."""

DEFAULT_RETRY_AFTER_S: Final = 10


def error_from_answer(status: int, body: bytes, *, retry_after: str | None = None) -> FlotaError:
    """Return the error that an answer with `status` (>= 400) stands for, with offset, expected, found and hint.

    An answer that is no problem document (a proxy's page) gives an error that names the status.
    """
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = {}
    message = (
        _text(problem.get("message")) or _text(problem.get("detail")) or f"the server answered with status {status}"
    )
    if status == 429:
        seconds = int(retry_after) if retry_after and retry_after.isdecimal() else DEFAULT_RETRY_AFTER_S
        return errors.TooManyRequests(message, retry_after_s=seconds, hint=_text(problem.get("hint")))
    kind = _BY_CODE.get(str(problem.get("code"))) or _BY_STATUS.get(status, errors.PeerError)
    offset = problem.get("offset")
    return kind(
        message,
        offset=offset if isinstance(offset, int) else None,
        expected=problem.get("expected"),
        found=problem.get("found"),
        hint=_text(problem.get("hint")) or _HINTS.get(kind),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
