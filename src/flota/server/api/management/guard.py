"""Default deny: a route of the management API states its permission, or the server does not start.

Who asks is settled before the first byte of a body is read, and bodies are bounded before anything parses them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, TypeVar

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Message

from flota.errors import InvalidInput, TooLarge
from flota.fleet.scope import Scope
from flota.server.auth import Permission, authenticate, require
from flota.server.context import ServerContext

JSON_BODY_MAX_BYTES: Final = 2 * 1024 * 1024
"""A rollout that names 50 000 devices fits; everything else is far smaller."""

STREAMED: Final = -1
"""Body limit of a route that reads its body itself, piece by piece, under a limit of its own."""

_PERMISSION: Final = "__flota_permission__"
_BODY_LIMIT: Final = "__flota_body_limit__"

_F = TypeVar("_F", bound=Callable[..., Any])


class UndeclaredPermissionError(RuntimeError):
    """A route has no declared permission: a mistake of ours, found at start-up."""


def needs(permission: Permission, *, body_max_bytes: int = JSON_BODY_MAX_BYTES) -> Callable[[_F], _F]:
    """Declare the permission that an operation needs and the size of its body (bytes, or `STREAMED`)."""

    def declare(endpoint: _F) -> _F:
        setattr(endpoint, _PERMISSION, permission)
        setattr(endpoint, _BODY_LIMIT, body_max_bytes)
        return endpoint

    return declare


class GuardedRoute(APIRoute):
    """A route that authenticates, authorizes and bounds the body before FastAPI looks at the request."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        permission = getattr(endpoint, _PERMISSION, None)
        if not isinstance(permission, Permission):
            raise UndeclaredPermissionError(f"route {path} ({endpoint.__name__}) declares no permission")
        self.permission = permission
        self.body_max_bytes: int = getattr(endpoint, _BODY_LIMIT)
        extra = dict(options.pop("openapi_extra", None) or {})
        options["openapi_extra"] = {"x-permission": str(permission), **extra}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, guarded."""
        answer = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            context = context_of(request)
            scope, role = await authenticate(context, request.headers.get("authorization"))
            require(role, self.permission)
            request.state.caller = scope
            request.state.role = role
            if self.body_max_bytes == STREAMED:
                return await answer(request)
            body = await read_body(request, self.body_max_bytes)
            return await answer(Request(request.scope, _replaying(body)))

        return guarded


def context_of(request: Request) -> ServerContext:
    """Return the server's parts (a FastAPI dependency)."""
    context: ServerContext = request.app.state.context
    return context


def caller_of(request: Request) -> Scope:
    """Return whose authority the request has (a FastAPI dependency)."""
    scope: Scope = request.state.caller
    return scope


def refuse_unguarded(routes: list[BaseRoute], *, public_paths: frozenset[str]) -> None:
    """Raise `UndeclaredPermissionError` for any route that is neither guarded nor one of `public_paths`."""
    for route in routes:
        path = getattr(route, "path", repr(route))
        if not isinstance(route, GuardedRoute) and path not in public_paths:
            raise UndeclaredPermissionError(f"route {path} is not guarded")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the whole body. Raises `TooLarge` as soon as it is known to be, and `InvalidInput` if it ends early."""
    announced = announced_size(request)
    if announced is not None and announced > max_bytes:
        raise _too_large(max_bytes, announced)
    body = bytearray()
    async for piece in body_pieces(request):
        body += piece
        if len(body) > max_bytes:
            raise _too_large(max_bytes, len(body))
    return bytes(body)


async def body_pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises `InvalidInput` when the peer goes away in the middle of it."""
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect as gone:
        raise InvalidInput("the body ended early", hint="Send it again.") from gone


def announced_size(request: Request) -> int | None:
    """Return what Content-Length says (bytes), None without one."""
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise InvalidInput("Content-Length is not a number", found=repr(text[:40]))
    return int(text)


def _too_large(max_bytes: int, found: int) -> TooLarge:
    return TooLarge("the body is too large", expected=f"at most {max_bytes} bytes", found=f"{found} bytes")


def _replaying(body: bytes) -> Callable[[], Coroutine[Any, Any, Message]]:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
