"""Errors as HTTP: one table from the error tree to status codes, one shape of body (RFC 9457, problem+json)."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Final

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from flota.errors import (
    Conflict,
    FlotaError,
    Forbidden,
    InvalidInput,
    NotFound,
    PeerError,
    Refused,
    StorageFull,
    TooLarge,
    TooManyRequests,
    Unauthenticated,
)

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"

STATUS_OF: Final[Mapping[type[FlotaError], int]] = {
    InvalidInput: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    Refused: 422,
    TooManyRequests: 429,
    PeerError: 502,
    StorageFull: 507,
}
"""A class not listed takes the status of its nearest parent; one without any is our fault: 500."""

UNEXPECTED: Final = "something went wrong in the server; its log has the details"

_log = structlog.get_logger(__name__)


def status_of(error: FlotaError) -> int:
    """Return the HTTP status for an error: 4xx for the caller's, 5xx for ours."""
    return next((STATUS_OF[kind] for kind in type(error).__mro__ if kind in STATUS_OF), 500)


def problem_headers(error: FlotaError) -> dict[str, str]:
    """Return the header fields that the status asks for: how to authenticate, when to come back."""
    if isinstance(error, Unauthenticated):
        return {"www-authenticate": 'Bearer realm="flota"'}
    if isinstance(error, TooManyRequests):
        return {"retry-after": str(error.retry_after_s)}
    return {}


def problem_response(error: FlotaError) -> Response:
    """Return the error as a problem document: `title`, `status`, `detail`, `code`, and the facts it carries."""
    status = status_of(error)
    facts = error.as_dict()
    facts.pop("message", None)
    return problem(status, str(error.message), facts=facts, headers=problem_headers(error))


def problem(
    status: int,
    detail: str,
    *,
    facts: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a problem document. `facts` become extra members; `code` is made from the status unless given."""
    title = http.HTTPStatus(status).phrase
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    document |= {"code": title.lower().replace(" ", "-"), **(facts or {})}
    return Response(
        msgspec.json.encode(document), status_code=status, media_type=PROBLEM_MEDIA_TYPE, headers=dict(headers or {})
    )


def on_flota_error(request: Request, error: Exception) -> Response:
    """Answer an error of ours (a Starlette exception handler)."""
    if not isinstance(error, FlotaError):
        return on_unexpected_error(request, error)
    if status_of(error) >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error("request.failed", path=request.url.path, code=error.code, error=str(error))
    return problem_response(error)


def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the router itself refuses, such as an unknown path or a wrong method."""
    if not isinstance(error, HTTPException):
        return on_unexpected_error(request, error)
    if error.status_code < http.HTTPStatus.BAD_REQUEST:
        return Response(status_code=error.status_code, headers=error.headers)
    return problem(error.status_code, error.detail, headers=error.headers)


def on_unexpected_error(request: Request, error: Exception) -> Response:
    """Answer a bug: the log gets the traceback, the peer nothing but the fact."""
    _log.error("request.crashed", path=request.url.path, method=request.method, exc_info=error)
    return problem(500, UNEXPECTED)


EXCEPTION_HANDLERS: Final[dict[int | type[Exception], ExceptionHandler]] = {
    FlotaError: on_flota_error,
    HTTPException: on_http_exception,
    Exception: on_unexpected_error,
}
"""For every Starlette and FastAPI application of this server."""
