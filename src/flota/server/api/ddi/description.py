"""The OpenAPI document of DDI: kept by hand in `openapi.json`, compared with the routes by a test."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

OPENAPI_PATH: Final = "/api/ddi/openapi.json"
"""Anybody may read it: it is the same for everyone."""


def openapi_document() -> bytes:
    """Return the document as it is served."""
    return files("flota.server.api.ddi").joinpath("openapi.json").read_bytes()


def description_routes() -> list[BaseRoute]:
    """Return the route at which the document is served."""
    document = openapi_document()

    async def answer(_: Request) -> Response:
        return Response(document, media_type="application/json", headers={"cache-control": "no-cache"})

    return [Route(OPENAPI_PATH, answer, methods=["GET"])]
