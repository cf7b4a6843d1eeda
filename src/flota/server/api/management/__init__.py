"""The management API, `/api/v1`: JSON for people and scripts, described by `/api/v1/openapi.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import Response

from flota import __version__
from flota.server.api.management import (
    administration,
    certificates,
    device_commands,
    device_types,
    devices,
    gateway_tokens,
    releases,
    rollouts,
    viam,
)
from flota.server.api.management.answers import schema_components
from flota.server.api.management.guard import GuardedRoute, refuse_unguarded
from flota.server.api.management.validation import describe_fault
from flota.server.problems import EXCEPTION_HANDLERS, PROBLEM_MEDIA_TYPE, problem

if TYPE_CHECKING:
    from flota.server.context import ServerContext

API_PREFIX: Final = "/api/v1"
OPENAPI_PATH: Final = "/openapi.json"
PUBLIC_PATHS: Final = frozenset({OPENAPI_PATH})
"""What anybody may read: the description of the API itself, which is the same for everyone."""

VALIDATION_ERRORS_SHOWN: Final = 20
_PROBLEM_SCHEMA: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong."},
        "code": {"type": "string", "description": "A stable word for scripts."},
        "offset": {"type": "integer", "description": "Where in the file, in bytes."},
        "expected": {},
        "found": {},
        "hint": {"type": "string", "description": "What to do next."},
        "errors": {"type": "array", "items": {}},
    },
}


def build_management_api(context: ServerContext) -> FastAPI:
    """Return the application to be mounted at `/api/v1`.

    Raises `UndeclaredPermissionError` if any of its routes does not say what it needs.
    """
    api = FastAPI(
        title="Flota management API",
        version=__version__,
        openapi_url=OPENAPI_PATH,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    api.state.context = context
    for module in (
        *(administration, gateway_tokens, device_types, releases),
        *(devices, device_commands, certificates, rollouts, viam),
    ):
        api.router.routes.extend(module.router.routes)  # as they are: an included router's routes could not be checked
    for kind, handler in EXCEPTION_HANDLERS.items():
        api.add_exception_handler(kind, handler)
    api.add_exception_handler(RequestValidationError, on_validation_error)
    refuse_unguarded(list(api.routes), public_paths=PUBLIC_PATHS)
    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign]
    return api


def on_validation_error(_: Request, error: Exception) -> Response:
    """Answer input that does not meet its declaration, naming each field; what was sent is not repeated."""
    found = error.errors() if isinstance(error, RequestValidationError) else []
    shown = [describe_fault(one) for one in found[:VALIDATION_ERRORS_SHOWN]]
    return problem(
        400,
        "; ".join(shown) or "the request is not what this operation takes",
        facts={"code": "invalid-input", "errors": shown},
    )


def _openapi(api: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document: FastAPI's, with our answers' shapes, problem documents and the bearer token."""
    if api.openapi_schema is None:
        document = get_openapi(title=api.title, version=api.version, routes=api.routes)
        components = document.setdefault("components", {})
        components.setdefault("schemas", {}).update(schema_components())
        components["schemas"]["Problem"] = _PROBLEM_SCHEMA
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        document["servers"] = [{"url": API_PREFIX}]
        for operations in document["paths"].values():
            for operation in operations.values():
                _describe_problems(operation)
        for unused in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(unused, None)
        api.openapi_schema = document
    return api.openapi_schema


def _describe_problems(operation: dict[str, Any]) -> None:
    answers: dict[str, Any] = operation["responses"]
    answers.pop("422", None)
    answers["default"] = {
        "description": "What is wrong, and what to do next.",
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


__all__ = ["GuardedRoute", "build_management_api", "on_validation_error"]
