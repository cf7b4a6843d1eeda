"""The DDI resources. Each handler translates one request; what it means is decided in `server.updates`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from flota.errors import Conflict, FlotaError, NotFound, Unauthenticated
from flota.fleet.devices import Device
from flota.fleet.executions import Execution, ExecutionChange, ExecutionState
from flota.fleet.releases import Release
from flota.fleet.scope import Scope
from flota.fleet.storage import Transaction
from flota.protocols.ddi import (
    MD5SUM_SUFFIX,
    TARGET_TOKEN,
    CancelAction,
    DdiAddresses,
    Feedback,
    PollAnswer,
    merged_attributes,
    pack_cancel_action,
    pack_deployment,
    pack_poll_answer,
    parse_action_id,
    parse_authorization,
    parse_config_data,
    parse_feedback,
)
from flota.protocols.ddi.deployment import artifact_as_json
from flota.protocols.http_range import if_match
from flota.protocols.malformed import MalformedMessage
from flota.server.api.artifacts import ArtifactResponse
from flota.server.api.ddi.answers import NotCancelable, done, json_answer, problem_answer
from flota.server.api.ddi.rendering import artifact_of, change_number, deployment_of, history_of
from flota.server.api.ddi.reports import (
    CANCEL_FEEDBACK,
    DEPLOYMENT_FEEDBACK,
    OWN_MESSAGE,
    RETRIEVED,
    STATUS_ENTRIES_MAX,
    change_of,
)
from flota.server.device_admission import DeviceAdmission
from flota.server.device_rates import DeviceRates
from flota.server.updates import (
    ActionClosed,
    Assignment,
    close_expired,
    current_assignment,
    device_scope,
    is_canceling,
    own_execution,
    report,
    sight,
    start_assignment,
    tenant_scope,
    with_retries,
)

if TYPE_CHECKING:
    from flota.server.context import ServerContext

ROUTE: Final = "ddi"
BASE: Final = "/{tenant}/controller/v1/{controller_id}"
TENANTS_REMEMBERED: Final = 1000
REQUESTS_BURST: Final = 2000
REQUESTS_PER_S: Final = 20.0
"""Per device, downloads apart. A busy client polls every 5 s and posts its log line by line."""

DISPOSITION_NAME_MAX_LEN: Final = 78
"""hawkBit cuts the name in Content-Disposition here."""

_TSPECIALS: Final = frozenset('()<>@,;:\\"/[]?= \t')


@dataclass(frozen=True, slots=True)
class _Caller:
    """An authenticated device and where its resources are."""

    request: Request
    scope: Scope
    device: Device
    addresses: DdiAddresses

    @property
    def action_id(self) -> int:
        """The action id of the path; raises `NotFound` for what is none."""
        return _path_number(self.request, "action_id")


_Handler = Callable[[_Caller], Awaitable[Response]]


def routes(context: ServerContext) -> list[BaseRoute]:
    """Return the DDI routes. Their first path segment matches anything: they have to stand last."""
    api = _DdiApi(context)
    handlers: list[tuple[str, list[str], _Handler]] = [
        ("", ["GET", "HEAD"], api.poll),
        ("/configData", ["PUT"], api.put_config_data),
        ("/deploymentBase/{action_id}", ["GET", "HEAD"], api.get_deployment),
        ("/deploymentBase/{action_id}/feedback", ["POST"], api.post_feedback),
        ("/cancelAction/{action_id}", ["GET", "HEAD"], api.get_cancel_action),
        ("/cancelAction/{action_id}/feedback", ["POST"], api.post_cancel_feedback),
        ("/installedBase/{action_id}", ["GET", "HEAD"], api.get_installed),
        ("/softwaremodules/{module_id}/artifacts", ["GET", "HEAD"], api.list_artifacts),
        ("/softwaremodules/{module_id}/artifacts/{filename}", ["GET", "HEAD"], api.download),
    ]
    return [Route(BASE + path, api.endpoint(handler), methods=methods) for path, methods, handler in handlers]


class _DdiApi:
    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._admission = DeviceAdmission(context)
        self._rates = DeviceRates(burst=REQUESTS_BURST, refill_per_s=REQUESTS_PER_S)
        self._tenants: dict[str, Scope] = {}

    def endpoint(self, handler: _Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return a Starlette endpoint: authenticate, handle, tell errors as hawkBit does."""

        async def answer(request: Request) -> Response:
            try:
                if handler != self.download:  # parts come in bursts, and each is bounded by the file
                    self._rates.take(_rate_key(request), now=self._context.now())
                return await handler(await self._authenticate(request))
            except FlotaError as error:
                return problem_answer(error)

        return answer

    async def _authenticate(self, request: Request) -> _Caller:
        credentials = parse_authorization(request.headers.get("authorization"))
        if credentials is None or credentials.scheme != TARGET_TOKEN:
            raise Unauthenticated("a TargetToken is needed")
        tenant = request.path_params["tenant"]
        scope = await self._tenant(tenant)
        controller_id = request.path_params["controller_id"]
        device = await self._admission.by_token(scope, controller_id, credentials.token)
        scope = device_scope(scope, device)
        address = None if request.client is None else request.client.host
        sight(self._context, scope, device, route=ROUTE, address=address)
        addresses = DdiAddresses(self._context.public_base(request), tenant, controller_id)
        return _Caller(request, scope, device, addresses)

    async def _tenant(self, name: str) -> Scope:
        known = self._tenants.get(name)
        if known is not None:
            return known
        try:
            scope = await tenant_scope(self._context, ROUTE, tenant=name)
        except NotFound as error:
            raise Unauthenticated("no such tenant") from error
        if len(self._tenants) < TENANTS_REMEMBERED:
            self._tenants[name] = scope
        return scope

    # what there is to do

    async def poll(self, caller: _Caller) -> Response:
        """GET the controller base: links to what there is to do."""
        assignment = await self._assignment(caller)
        async with self._context.storage.reading() as transaction:
            device_type = await transaction.device_type(caller.scope, caller.device.type_name)
            installed = await _installed(transaction, caller.scope, caller.device)
        addresses = caller.addresses
        deployment = cancel = None
        if assignment is not None:
            execution = assignment.execution
            if assignment.cancel_requested:
                cancel = addresses.cancel_action(execution.id, change_number(execution))
            else:
                deployment = addresses.deployment_base(execution.id, change_number(execution))
        answer = PollAnswer(
            sleep_s=device_type.poll_interval_s,
            deployment_base=deployment,
            cancel_action=cancel,
            installed_base=None if installed is None else addresses.installed_base(installed.id),
            config_data=addresses.config_data if caller.device.attributes_requested else None,
        )
        return json_answer(caller.request, pack_poll_answer(answer))

    async def get_deployment(self, caller: _Caller) -> Response:
        """GET the deployment; the first time moves the execution from QUEUED to IN_PROGRESS."""
        assignment = await self._assignment(caller)
        if assignment is None or assignment.execution.id != caller.action_id or assignment.cancel_requested:
            raise NotFound("no such action", found=caller.action_id)
        if caller.request.method == "GET":
            try:
                assignment = await start_assignment(self._context, caller.scope, assignment, RETRIEVED)
            except Conflict as error:  # paused or canceled since it was read
                raise NotFound("no such action", found=caller.action_id) from error
        return await self._deployment_answer(caller, assignment.execution, assignment.release)

    async def get_installed(self, caller: _Caller) -> Response:
        """GET an action that ended well, in the form of a deployment."""
        async with self._context.storage.reading() as transaction:
            execution = await own_execution(transaction, caller.scope, caller.device, caller.action_id)
            if execution.state is not ExecutionState.SUCCEEDED:
                raise NotFound("not an installed action", found=execution.id)
            release = await transaction.release(caller.scope, execution.release_id)
        return await self._deployment_answer(caller, execution, release)

    async def _deployment_answer(self, caller: _Caller, execution: Execution, release: Release) -> Response:
        wanted = _history_count(caller.request)
        history = None
        if wanted:
            async with self._context.storage.reading() as transaction:
                events = await transaction.execution_events(caller.scope, execution.id)
            history = history_of(execution, events, wanted)
        deployment = deployment_of(execution, release, caller.addresses, history=history)
        return json_answer(caller.request, pack_deployment(deployment))

    async def get_cancel_action(self, caller: _Caller) -> Response:
        """GET what to stop; 404 unless the action is being canceled."""
        async with self._context.storage.reading() as transaction:
            execution = await own_execution(transaction, caller.scope, caller.device, caller.action_id)
        if not is_canceling(execution):
            raise NotFound("the action is not being canceled", found=execution.id)
        return json_answer(caller.request, pack_cancel_action(CancelAction(execution.id, execution.id)))

    # what the device says

    async def post_feedback(self, caller: _Caller) -> Response:
        """POST feedback about a deployment."""
        action_id = caller.action_id
        feedback = parse_feedback(await caller.request.body())

        async def write(transaction: Transaction) -> Execution:
            execution = await own_execution(transaction, caller.scope, caller.device, action_id)
            if execution.state is ExecutionState.QUEUED:
                turn = await transaction.next_execution(caller.scope, caller.device.id)
                if turn is None or turn.id != execution.id:
                    raise NotFound("it is not this action's turn", found=execution.id)
            return await self._report(transaction, caller, execution, feedback)

        execution = await with_retries(self._context, write)
        if execution.state is ExecutionState.SUCCEEDED:
            await self._note_installed(caller, execution)
        return done()

    async def _report(
        self, transaction: Transaction, caller: _Caller, execution: Execution, feedback: Feedback
    ) -> Execution:
        now = self._context.now()
        if not execution.is_open:
            raise ActionClosed(f"action {execution.id} is no longer active", found=execution.id)
        change = change_of(execution, feedback, DEPLOYMENT_FEEDBACK)
        after = await report(transaction, caller.scope, execution, change, now=now)
        if after.state is ExecutionState.SUCCEEDED:
            device = await transaction.device_by_id(caller.scope, caller.device.id)
            await transaction.set_device_attributes(caller.scope, device.id, device.attributes, requested=True, now=now)
        return after

    async def _note_installed(self, caller: _Caller, execution: Execution) -> None:
        """Show what the device runs now: the success it reported says so."""
        async with self._context.storage.reading() as transaction:
            release = await transaction.release(caller.scope, execution.release_id)
        artifact = release.artifact
        running = {
            "version": release.version,
            "hash": artifact.validation_hash or artifact.digests.sha256,
            "md5": artifact.digests.md5,
        }
        sight(self._context, caller.scope, caller.device, route=ROUTE, address=None, running=running)

    async def post_cancel_feedback(self, caller: _Caller) -> Response:
        """POST feedback about a cancellation."""
        action_id = caller.action_id
        feedback = parse_feedback(await caller.request.body())

        async def write(transaction: Transaction) -> None:
            execution = await own_execution(transaction, caller.scope, caller.device, action_id)
            if not is_canceling(execution):
                raise NotCancelable("the action is not being canceled", found=execution.state)
            change = change_of(execution, feedback, CANCEL_FEEDBACK)
            await report(transaction, caller.scope, execution, change, now=self._context.now())

        await with_retries(self._context, write)
        return done()

    async def put_config_data(self, caller: _Caller) -> Response:
        """PUT attributes: what the device says about itself."""
        config = parse_config_data(await caller.request.body())
        async with self._context.storage.transaction() as transaction:
            device = await transaction.device_by_id(caller.scope, caller.device.id)
            attributes = merged_attributes(device.attributes, config)
            await transaction.set_device_attributes(
                caller.scope, device.id, attributes, requested=False, now=self._context.now()
            )
        return done()

    # files

    async def list_artifacts(self, caller: _Caller) -> Response:
        """GET the files of a software module: of the open action, or of the installed one."""
        release = await self._module(caller, installed_too=True)
        files = [artifact_as_json(artifact_of(release, caller.addresses))]
        return json_answer(caller.request, msgspec.json.encode(files))

    async def download(self, caller: _Caller) -> Response:
        """GET a file, whole or in part, or its MD5SUM."""
        release = await self._module(caller, installed_too=False)
        artifact = release.artifact
        asked = caller.request.path_params["filename"]
        if asked in _spellings(release.filename + MD5SUM_SUFFIX):
            text = f"{artifact.digests.md5}  {release.filename}"
            disposition = {"content-disposition": _disposition(release.filename + MD5SUM_SUFFIX)}
            return PlainTextResponse(text, headers=disposition)
        if asked not in _spellings(release.filename):
            raise NotFound("no such artifact", found=repr(asked[:200]))
        condition = caller.request.headers.get("if-match")
        if not if_match(condition, artifact.digests.sha1) and not if_match(condition, artifact.digests.sha256):
            return Response(status_code=412)
        if caller.request.method == "GET" and "range" not in caller.request.headers:
            await self._note_download(caller)
        return ArtifactResponse(
            self._context.artifacts.path(artifact.digests.sha256),
            sha256=artifact.digests.sha256,
            extra_headers={
                "content-disposition": _disposition(release.filename),
                "last-modified": artifact.created_at.strftime("%a, %d %b %Y %H:%M:%S GMT"),
            },
        )

    async def _module(self, caller: _Caller, *, installed_too: bool) -> Release:
        """Return the release with the module's number, if the device has an open action of it. Raises `NotFound`."""
        module_id = _path_number(caller.request, "module_id")
        assignment = await self._assignment(caller)
        if assignment is not None and assignment.release.id == module_id and not assignment.cancel_requested:
            return assignment.release
        if installed_too:
            async with self._context.storage.reading() as transaction:
                installed = await _installed(transaction, caller.scope, caller.device)
                if installed is not None and installed.release_id == module_id:
                    return await transaction.release(caller.scope, module_id)
        raise NotFound("no such software module", found=module_id)

    async def _note_download(self, caller: _Caller) -> None:
        """Add a status entry for a whole download; parts add none, they are resumed ones."""

        async def write(transaction: Transaction) -> None:
            execution = await transaction.next_execution(caller.scope, caller.device.id)
            if execution is None or execution.version >= STATUS_ENTRIES_MAX:
                return
            change = ExecutionChange(
                ExecutionState.IN_PROGRESS,
                details={"ddi-status": "DOWNLOAD"},
                message=f"{OWN_MESSAGE}Target downloads {caller.request.url.path[:500]}",
            )
            await transaction.change_execution(
                caller.scope, execution.id, execution.version, change, now=self._context.now()
            )

        try:
            await with_retries(self._context, write)
        except Conflict:  # paused or canceled since it was read: the next poll tells the device
            return

    async def _assignment(self, caller: _Caller) -> Assignment | None:
        for _ in range(2):
            async with self._context.storage.reading() as transaction:
                assignment = await current_assignment(transaction, caller.scope, caller.device, now=self._context.now())
            if assignment is None or not assignment.expired:
                return assignment
            await close_expired(self._context, caller.scope, caller.device)
        return None


async def _installed(transaction: Transaction, scope: Scope, device: Device) -> Execution | None:
    """Return the device's latest execution that ended well."""
    ended_well = frozenset({ExecutionState.SUCCEEDED})
    executions = await transaction.list_executions(scope, device_id=device.id, states=ended_well)
    return max(executions, key=lambda execution: (execution.changed_at, execution.id), default=None)


def _rate_key(request: Request) -> str:
    return f"{request.path_params['tenant'].upper()}/{request.path_params['controller_id']}"


def _path_number(request: Request, name: str) -> int:
    try:
        return parse_action_id(request.path_params[name])
    except MalformedMessage as error:
        raise NotFound("no such number", found=repr(request.path_params[name][:40])) from error


def _history_count(request: Request) -> int:
    """Return `actionHistory`: 0 by default and for what is no number, negative means all."""
    text = request.query_params.get("actionHistory", "0")
    return int(text) if len(text) <= 10 and text.isascii() and text.removeprefix("-").isdecimal() else 0


def _spellings(filename: str) -> tuple[str, str]:
    """Return a file name as it is after one percent-decoding, and as it is when a blank was sent as `+`."""
    return filename, filename.replace(" ", "+")


def _disposition(filename: str) -> str:
    """Return Content-Disposition; names with RFC 2045 specials are quoted, what is not ASCII becomes `_`."""
    name = "".join(c if " " <= c <= "~" else "_" for c in filename)[:DISPOSITION_NAME_MAX_LEN]
    if not any(c in _TSPECIALS for c in name):
        return f"attachment;filename={name}"
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'attachment;filename="{escaped}"'
