"""How DDI answers look: compact JSON with its length and an ETag, empty 200s, and hawkBit's error bodies.

Source: docs/reference/hawkbit-ddi.md, "Representation".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from flota.errors import (
    Conflict,
    FlotaError,
    Forbidden,
    InvalidInput,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
)
from flota.protocols.ddi import DdiProblem, InvalidAttributes, TooManyEntries, pack_problem
from flota.protocols.http_range import none_match
from flota.server.problems import problem_headers, status_of
from flota.server.updates import ActionClosed

HAL_JSON: Final = "application/hal+json"
JSON: Final = "application/json"


class NotCancelable(Conflict):
    """Feedback about a cancellation that nobody asked for."""

    code = "not-cancelable"


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one kind of error is told: status, hawkBit's code, hawkBit's exception class."""

    status: int
    error_code: str
    exception_class: str


_REPOSITORY: Final = "org.eclipse.hawkbit.repository.exception"
_REST: Final = "org.eclipse.hawkbit.rest.exception"

_SHAPES: Final = {
    NotFound: _Shape(404, "hawkbit.server.error.repo.entityNotFound", f"{_REPOSITORY}.EntityNotFoundException"),
    NotCancelable: _Shape(
        405, "hawkbit.server.error.action.notCancelable", f"{_REPOSITORY}.CancelActionNotAllowedException"
    ),
    Conflict: _Shape(
        409, "hawkbit.server.error.repo.concurrentModification", f"{_REPOSITORY}.ConcurrentModificationException"
    ),
    InvalidAttributes: _Shape(
        400,
        "hawkbit.server.error.repo.invalidTargetAttributes",
        f"{_REPOSITORY}.InvalidTargetAttributeException",
    ),
    InvalidInput: _Shape(400, "hawkbit.server.error.rest.body.notReadable", f"{_REST}.MessageNotReadableException"),
    TooLarge: _Shape(413, "hawkbit.server.error.rest.body.notReadable", f"{_REST}.MessageNotReadableException"),
    TooManyEntries: _Shape(
        429, "hawkbit.server.error.quota.tooManyEntries", f"{_REPOSITORY}.AssignmentQuotaExceededException"
    ),
    TooManyRequests: _Shape(
        429, "hawkbit.server.error.quota.tooManyEntries", f"{_REPOSITORY}.AssignmentQuotaExceededException"
    ),
}
"""A class not listed takes the shape of its nearest parent; one without any tells only its status."""


def json_answer(request: Request, body: bytes) -> Response:
    """Return 200 with the body and a content ETag, or 304 when the client has it; the media type is the asked one."""
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    etag = f'"0{digest}"'
    if none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers={"etag": etag})
    return Response(body, media_type=_media_type(request), headers={"etag": etag})


def done() -> Response:
    """Return the only success that hawkBit's clients accept for POST and PUT: 200 with an empty body."""
    return Response(status_code=200)


def problem_answer(error: FlotaError) -> Response:
    """Return the error as hawkBit tells it; 401 and 410 have no body."""
    if isinstance(error, Unauthenticated | Forbidden):
        return Response(status_code=401)
    if isinstance(error, ActionClosed):
        return Response(status_code=410)
    shape = next((_SHAPES[kind] for kind in type(error).__mro__ if kind in _SHAPES), None)
    if shape is None:
        return Response(status_code=status_of(error))
    body = pack_problem(DdiProblem(shape.error_code, str(error), shape.exception_class))
    headers = {name: value for name, value in problem_headers(error).items() if name == "retry-after"}
    return Response(body, status_code=shape.status, media_type=JSON, headers=headers)


def _media_type(request: Request) -> str:
    """Return `application/json` for clients that ask for it and not for HAL; all others get HAL, as from hawkBit."""
    accept = request.headers.get("accept", "").lower()
    return JSON if JSON in accept and HAL_JSON not in accept else HAL_JSON
