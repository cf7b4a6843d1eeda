"""`/healthz` for load balancers and scripts, `/metrics` for Prometheus."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from flota import __version__
from flota.server.auth import authenticate

if TYPE_CHECKING:
    from flota.server.context import ServerContext

CHECK_WITHIN_S: Final = 2.0
_log = structlog.get_logger(__name__)


def routes(context: ServerContext) -> list[BaseRoute]:
    """Return the two routes. Metrics need a management token once others than this machine can reach the server."""

    async def healthz(_request: Request) -> Response:
        failed = await _failed_checks(context)
        stopping = context.stopping.is_set()
        state = "stopping" if stopping else "failing" if failed else "ok"
        body = {"status": state, "version": __version__, "failed": failed}
        return JSONResponse(body, status_code=503 if failed or stopping else 200, headers={"cache-control": "no-store"})

    async def metrics(request: Request) -> Response:
        if not _only_loopback(context):
            await authenticate(context, request.headers.get("authorization"))
        text, media_type = context.metrics.exposition()
        return Response(text, headers={"content-type": media_type, "cache-control": "no-store"})

    return [Route("/healthz", healthz, methods=["GET"]), Route("/metrics", metrics, methods=["GET"])]


async def _failed_checks(context: ServerContext) -> list[str]:
    """Return the names of the parts that do not work."""
    failed = []
    try:
        async with asyncio.timeout(CHECK_WITHIN_S):
            await context.storage.list_tenants()
    except Exception as error:  # noqa: BLE001 - whatever the driver raises, the database is not well
        _log.error("health.database", error=str(error))
        failed.append("database")
    if not os.access(context.settings.data.artifacts, os.R_OK | os.W_OK | os.X_OK):
        failed.append("artifacts")
    return failed


def _only_loopback(context: ServerContext) -> bool:
    addresses = (context.settings.http, context.settings.https)
    return all(address is None or address.is_loopback for address in addresses)
