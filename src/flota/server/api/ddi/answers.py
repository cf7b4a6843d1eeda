"""How DDI answers look: compact JSON with its length and an ETag, empty 200s, and hawkBit's error bodies.

Source: docs/reference/hawkbit-ddi.md, "Representation".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import msgspec
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
from flota.protocols.cbor import pack_cbor
from flota.protocols.ddi import DdiProblem, InvalidAttributes, TooManyEntries, pack_problem
from flota.protocols.http_range import none_match
from flota.server.problems import problem_headers, status_of
from flota.server.updates import ActionClosed

CBOR: Final = "application/cbor"
ACCEPT_MAX_PARTS: Final = 32
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
    return unless_known(request, whole_answer(request, body))


def whole_answer(request: Request, body: bytes) -> Response:
    """Return 200 with the body and a content ETag, whatever the client has; the media type is the asked one."""
    told = represented(request.headers.get("accept", ""), body)
    return Response(told.body, media_type=told.media_type, headers={"etag": told.etag})


@dataclass(frozen=True, slots=True)
class Represented:
    """A body in the form that was asked for, and its ETag, quoted."""

    body: bytes
    media_type: str
    etag: str


def represented(accept: str, body: bytes) -> Represented:
    """Return a JSON body as an Accept header asks for it."""
    kind = media_type(accept)
    if kind == CBOR:
        body = pack_cbor(msgspec.json.decode(body))
    digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
    return Represented(body, kind, f'"0{digest}"')


def unless_known(request: Request, response: Response) -> Response:
    """Return the response, or 304 when its ETag is one that the client has."""
    etag = response.headers["etag"]
    if none_match(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers={"etag": etag})
    return response


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


def is_cbor(request: Request) -> bool:
    """Whether the request's body is CBOR; whatever else it calls itself is read as JSON."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == CBOR


def media_type(accept: str) -> str:
    """Return the media type for an `Accept` header: the one wanted most of HAL, JSON and CBOR; HAL for all others.

    Among equals the first counts, as for hawkBit. What asks for something else altogether gets HAL: no client does.
    """
    best, best_weight = HAL_JSON, 0.0
    for part in accept.lower().split(",")[:ACCEPT_MAX_PARTS]:
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weight = _weight(parameters)
        if name in (HAL_JSON, JSON, CBOR) and weight > best_weight:
            best, best_weight = name, weight
    return best


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return max(0.0, min(1.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0
