"""Blynk's upload and shipment API under `/blynk/api`: others' JSON over our releases and rollouts.

Source: docs/reference/blynk.md, "Shipments".
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

import msgspec
import structlog
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from flota.errors import FlotaError, InvalidInput, NotFound, Refused, TooLarge
from flota.fleet.shipments import CompareField, ShipmentConditions, attempts_limit
from flota.protocols.blynk.shipments import (
    ANY_TIME,
    FIRMWARE_SUFFIXES,
    SHIPMENT_TIMES,
    UPLOAD_MAX_BYTES,
    UPLOAD_PATH_PREFIX,
    ShipmentOrder,
    UploadedFirmware,
    firmware_info,
    parse_shipment_order,
    refuse_other_info,
)
from flota.protocols.multipart import FormField, parse_boundary, parse_form
from flota.server import artifact_intake, shipment_desk
from flota.server.api.management.guard import JSON_BODY_MAX_BYTES, read_body
from flota.server.auth import Permission, authenticate, require
from flota.server.problems import problem_headers, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request

    from flota.fleet.releases import Artifact
    from flota.fleet.scope import Scope
    from flota.server.context import ServerContext

FORM_MAX_BYTES: Final = UPLOAD_MAX_BYTES + 64 * 1024
"""A file of the vendor's limit, and the form around it."""

_PREFIX: Final = "/blynk/api/v1/organization"
_P = Permission

_log = structlog.get_logger(__name__)

Endpoint = Callable[["ServerContext", "Request", "Scope"], Awaitable[object]]


def routes(context: ServerContext) -> list[BaseRoute]:
    """Return the routes of uploads and shipments; each states what it needs."""
    table: list[tuple[str, str, Endpoint, tuple[Permission, ...]]] = [
        ("POST", "/blynk/api/upload", _upload, (_P.ARTIFACTS_UPLOAD, _P.RELEASES_CREATE)),
        ("GET", f"{_PREFIX}/shipments", _list, (_P.ROLLOUTS_READ,)),
        ("GET", f"{_PREFIX}/shipment", _show, (_P.ROLLOUTS_READ,)),
        ("POST", f"{_PREFIX}/shipment/create", _create, (_P.ROLLOUTS_CREATE,)),
        ("PUT", f"{_PREFIX}/shipment/stop", _stop, (_P.ROLLOUTS_CONTROL,)),
        ("DELETE", f"{_PREFIX}/shipment", _delete, (_P.ROLLOUTS_CONTROL,)),
    ]
    return [
        Route(path, functools.partial(_answer, context, endpoint, needed), methods=[method])
        for method, path, endpoint, needed in table
    ]


async def _answer(
    context: ServerContext, endpoint: Endpoint, needed: tuple[Permission, ...], request: Request
) -> Response:
    """Settle who asks before a byte of the body is read; errors have the vendor's shape."""
    try:
        scope, role = await authenticate(context, request.headers.get("authorization"))
        for permission in needed:
            require(role, permission)
        _check_organisation(request.query_params.get("orgId"), scope)
        return _json(await endpoint(context, request, scope))
    except FlotaError as error:
        status = status_of(error)
        if status >= 500:
            _log.error("blynk.request_failed", path=request.url.path, code=error.code, error=str(error))
        return _json({"error": {"message": str(error)}}, status, problem_headers(error))


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    told = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), status_code=status, media_type="application/json", headers=told)


def _check_organisation(told: object, scope: Scope) -> None:
    """Refuse another organisation than the token's, whether there is one or not."""
    if told is not None and str(told) != str(scope.tenant_id):
        raise NotFound("no such organization", found=ascii(told)[:40])


# --- uploads ----------------------------------------------------------------------------------------------------------


async def _upload(context: ServerContext, request: Request, scope: Scope) -> object:
    boundary = parse_boundary(request.headers.get("content-type", ""))
    form = parse_form(await read_body(request, FORM_MAX_BYTES), boundary)
    name, data = _uploaded_file(form)
    stored, _ = await artifact_intake.store_artifact(
        context, scope, _pieces(data), filename=name, announced_size=len(data)
    )
    uploaded = _firmware(stored)
    info = firmware_info(uploaded)
    version = "" if info is None else str(info["version"])
    release, reason = await shipment_desk.draft_of_upload(
        context, scope, stored.digests.sha256, version=version, fw_type=uploaded.tag.get("fw-type", "")
    )
    told = None if release is None else {"id": release.id, "version": release.version, "state": str(release.state)}
    path = f"{UPLOAD_PATH_PREFIX}{stored.digests.sha256}/{name}"
    return {"path": path, "firmwareInfo": info, "release": told, "note": reason}


def _uploaded_file(form: Mapping[str, FormField]) -> tuple[str, bytes]:
    kind = form.get("type")
    if kind is None or kind.data.strip() != b"FIRMWARE":
        raise InvalidInput("only firmware can be uploaded here", expected="a field type=FIRMWARE")
    file = form.get("upfile")
    if file is None or file.filename is None:
        raise InvalidInput("the file is missing", expected="a field upfile with a file")
    name = artifact_intake.parse_filename(file.filename)
    if not name.lower().endswith(FIRMWARE_SUFFIXES):
        raise InvalidInput("the file's name says no firmware", expected=", ".join(FIRMWARE_SUFFIXES), found=ascii(name))
    if len(file.data) > UPLOAD_MAX_BYTES:
        raise TooLarge("the file is too large", expected=f"at most {UPLOAD_MAX_BYTES} bytes", found=len(file.data))
    return name, file.data


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _firmware(artifact: Artifact) -> UploadedFirmware:
    tag = artifact.inspection.get("firmware_tag")
    said = {str(key): str(value) for key, value in tag.items()} if isinstance(tag, dict) else {}
    return UploadedFirmware(artifact.digests.sha256, artifact.digests.md5, artifact.digests.size, said)


# --- shipments --------------------------------------------------------------------------------------------------------


async def _list(context: ServerContext, request: Request, scope: Scope) -> object:
    shown = await shipment_desk.list_shipments(context, scope)
    starters = await shipment_desk.starters(context, scope)
    return [_plain(one, scope, _base(context, request), starters) for one in shown]


async def _show(context: ServerContext, request: Request, scope: Scope) -> object:
    found = await shipment_desk.find_shipment(context, scope, _shipment_id(request))
    return await _shown(context, request, scope, found)


async def _shown(context: ServerContext, request: Request, scope: Scope, one: shipment_desk.Shipment) -> object:
    return _plain(one, scope, _base(context, request), await shipment_desk.starters(context, scope))


async def _create(context: ServerContext, request: Request, scope: Scope) -> object:
    order = parse_shipment_order(await read_body(request, JSON_BODY_MAX_BYTES))
    _check_organisation(order.organisation, scope)
    _check_address(context, request, order)
    if order.firmware_info is not None:
        async with context.storage.reading() as transaction:
            stored = await artifact_intake.recorded_artifact(transaction, scope, order.sha256)
        refuse_other_info(order.firmware_info, firmware_info(_firmware(stored)))
    wanted = shipment_desk.NewShipment(
        title=order.title,
        type_id=order.product_id,
        sha256=order.sha256,
        file_name=order.file_name,
        device_ids=order.device_ids,
        conditions=ShipmentConditions(
            CompareField(order.compare),
            order.skip_type_check,
            order.attempts,
            -(-order.attempt_period_ms // 1000) or None,
        ),
        maintenance=_window(context, order.time),
        is_critical=order.is_critical,
    )
    return await _shown(context, request, scope, await shipment_desk.create_shipment(context, scope, wanted))


async def _stop(context: ServerContext, request: Request, scope: Scope) -> object:
    stopped = await shipment_desk.stop_shipment(context, scope, _shipment_id(request))
    return await _shown(context, request, scope, stopped)


async def _delete(context: ServerContext, request: Request, scope: Scope) -> object:
    await shipment_desk.delete_shipment(context, scope, _shipment_id(request))
    return {}


def _shipment_id(request: Request) -> str:
    told = request.query_params.get("shipmentId", "")
    if not (told.isascii() and told.isdecimal() and len(told) <= 9):
        raise InvalidInput("the shipment is not named", expected="?shipmentId=NUMBER", found=ascii(told[:40]))
    return told


def _base(context: ServerContext, request: Request) -> SplitResult:
    """Return the address that devices are given."""
    return urlsplit(context.device_base_url() or context.public_base(request))


def _check_address(context: ServerContext, request: Request, order: ShipmentOrder) -> None:
    """Refuse an address that devices would not be given: they are told this server's own."""
    base = _base(context, request)
    if order.host and order.host not in (base.hostname, base.netloc):
        raise Refused("devices are told this server's own address", expected=base.netloc, found=ascii(order.host[:80]))
    if order.is_secure is not None and order.is_secure is not (base.scheme == "https"):
        hint = "It is that of --public-url of `flota up`."
        raise Refused("devices are told this server's own scheme", expected=base.scheme, hint=hint)


def _plain(
    shipment: shipment_desk.Shipment, scope: Scope, base: SplitResult, starters: Mapping[str, int]
) -> dict[str, Any]:
    """Return a shipment as the vendor's API has it. `starters` are the numbers of who may have started it."""
    rollout, release, conditions = shipment.rollout, shipment.release, shipment.conditions
    is_open = shipment.status in ("RUN", "PAUSE")
    uploaded = _firmware(release.artifact)
    name = shipment.record.file_name if shipment.record and shipment.record.file_name else release.filename
    ended_ms = 0 if is_open else _ms(rollout.changed_at)
    starter = shipment.record.started_by if shipment.record else ""
    return {
        "id": rollout.id,
        "orgId": scope.tenant_id,
        "productId": shipment.device_type.id,
        "productName": shipment.device_type.name,
        "title": rollout.name,
        "pathToFirmware": f"{UPLOAD_PATH_PREFIX}{release.artifact.digests.sha256}/{name}",
        "firmwareOriginalFileName": name,
        "firmwareInfo": firmware_info(uploaded),
        "deviceIds": [device.id for device in shipment.devices],
        "shipmentTime": _time_of(rollout.policy.maintenance),
        "compareField": str(conditions.compare),
        "skipFwTypeCheck": conditions.skip_type_check,
        "attemptsLimit": attempts_limit(conditions, rollout.policy.attempts),
        "attemptResetPeriodMs": (conditions.attempt_period_s or 0) * 1000,
        "host": base.netloc,
        "isSecure": base.scheme == "https",
        "isCritical": rollout.policy.confirm is False,
        "sendPush": False,
        "status": str(shipment.status),
        "startedBy": starter,
        "startedByUserId": starters.get(starter, 0),
        "startedAt": _ms(rollout.created_at),
        "finishedAt": ended_ms,
        "shipmentProgress": {**shipment.progress, "updatedAt": _ms(_changed_at(shipment))},
    }


def _window(context: ServerContext, time: str) -> str | None:
    """Return the maintenance window of a shipment's time of day; None at any time, or at that of the type."""
    if time == ANY_TIME:
        return None
    zone = context.settings.time_zone
    return SHIPMENT_TIMES[time] + (f"/{zone}" if zone else "")


def _time_of(maintenance: str | None) -> str:
    """Return the vendor's word for a window; ANY for one that it has no word for."""
    told = maintenance or ""
    return next((time for time, window in SHIPMENT_TIMES.items() if told.partition("/")[0] == window), ANY_TIME)


def _changed_at(shipment: shipment_desk.Shipment) -> datetime:
    moments = [device.execution.changed_at for device in shipment.devices if device.execution is not None]
    return max([shipment.rollout.changed_at, *moments])


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
