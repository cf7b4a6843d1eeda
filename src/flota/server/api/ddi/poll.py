"""The poll: GET of the controller base. It says when to come back, and links to what there is to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from starlette.requests import Request

from flota.errors import FlotaError, Unauthenticated
from flota.fleet.devices import Device
from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.poll_times import jittered
from flota.fleet.scope import Scope
from flota.fleet.storage import GatewayToken, KnownDevice, Transaction
from flota.protocols.ddi import GATEWAY_TOKEN, DdiAddresses, PollAnswer, pack_poll_answer, parse_authorization
from flota.server.api.ddi.answers import problem_answer, represented
from flota.server.api.ddi.authentication import DdiAuthentication, Seen
from flota.server.api.ddi.rendering import action_link, poll_sleep
from flota.server.auth import digest_of_secret
from flota.server.gathered import Gathered
from flota.server.poll_answers import POLL_MARK, ROUTE, Admitted, ReadyAnswer, rate_key
from flota.server.updates import (
    Assignment,
    current_assignments,
    device_scope,
    installed_executions,
    notice_address,
    open_assignment,
    sight,
)

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send
    from starlette.types import Scope as RequestScope

    from flota.server.context import ServerContext


@dataclass(frozen=True, slots=True)
class ToDo:
    """All that a poll answer is made of, as one moment had it."""

    known: KnownDevice
    interval_s: int
    assignment: Assignment | None
    installed: Execution | None

    @property
    def device(self) -> Device:
        """Whose it is."""
        return self.known.device


class _Asked(NamedTuple):
    """What a poll is answered from: the device's name, and the hex SHA-256 of its gateway's secret, if it shows one."""

    name: str
    gateway_sha256: str | None


class _Found(NamedTuple):
    to_do: ToDo | None
    gateway: GatewayToken | None

    @property
    def seen(self) -> Seen:
        return Seen(None if self.to_do is None else self.to_do.known, self.gateway)

    @property
    def admitted_until(self) -> datetime | None:
        """When what was shown to be let in may lose its force, by time alone."""
        previous = None if self.to_do is None else self.to_do.known.credentials.previous_until
        return _earliest(previous, None if self.gateway is None else self.gateway.expires_at)


class Polls:
    """Answers polls, and gives the answers to be kept. An ASGI application of its own.

    Who asks and what there is for it to do are read at once: one transaction for all polls that wait at the moment.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._authentication = DdiAuthentication(context)
        self._reads = Gathered(context.storage.read_at_once, self._read)
        context.poll_answers.ask_again = self.ask_again

    @staticmethod
    def serves(scope: RequestScope) -> bool:
        """Whether this request is a poll; if so its path is taken apart here, as routing would."""
        path: str = scope["path"]
        if POLL_MARK not in path or scope["method"] not in ("GET", "HEAD"):
            return False
        parts = path.split("/")
        if len(parts) != 5 or parts[2:4] != ["controller", "v1"] or not (parts[1] and parts[4]):
            return False
        scope["path_params"] = {"tenant": parts[1], "controller_id": parts[4]}
        return True

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """GET the controller base: links to what there is to do."""
        try:
            messages = await self._answer(Request(scope))
        except FlotaError as error:
            await problem_answer(error)(scope, receive, send)
            return
        for message in messages:
            await send(message)

    async def _answer(self, request: Request) -> tuple[Message, Message]:
        context, scope = self._context, request.scope
        context.poll_answers.rates.take(rate_key(scope), now=context.now())
        tenant, name = request.path_params["tenant"], request.path_params["controller_id"]
        shown = parse_authorization(request.headers.get("authorization"))
        is_gateway = shown is not None and shown.scheme == GATEWAY_TOKEN
        asked = _Asked(name, digest_of_secret(shown.token) if shown is not None and is_gateway else None)
        found = await self._find(await self._authentication.tenant(tenant), asked)
        identity = await self._authentication.identify(request, found.seen)
        device = identity.device
        if found.to_do is None:  # it has just been registered
            found = await self._find(identity.scope, asked)
        if found.to_do is None or found.to_do.device.id != device.id:
            raise Unauthenticated("the device has just been removed")
        await notice_address(context, identity.scope, device, identity.address)
        sight(context, identity.scope, device, route=ROUTE, address=identity.address)
        to_do = await self._without_expired(identity.scope, found.to_do)
        ready = self._ready(
            request, DdiAddresses(context.public_base(scope), tenant, name), to_do, found.admitted_until
        )
        context.poll_answers.remember(scope, identity.scope, device, ready, address=identity.address)
        return ready.messages(", ".join(request.headers.getlist("if-none-match")).encode("latin-1"))

    async def ask_again(self, scope: RequestScope, admitted: Admitted) -> tuple[Message, Message] | None:
        """Return the answer to a request that is known to be this device's; None: let the ordinary way see to it."""
        context = self._context
        _, tenant, _, _, name = scope["path"].split("/")
        try:
            found = await self._find(admitted.scope, _Asked(name, None))
            if found.to_do is None or found.to_do.device.id != admitted.device_id:
                return None
            own = device_scope(admitted.scope, found.to_do.device)
            to_do = await self._without_expired(own, found.to_do)
            addresses = DdiAddresses(context.public_base(scope), tenant, name)
            ready = self._ready(Request(scope), addresses, to_do, admitted.until)
        except Exception:  # noqa: BLE001 - the ordinary way will meet it again, and tell it
            return None
        sight(context, admitted.scope, to_do.device, route=ROUTE, address=admitted.address)
        context.poll_answers.remember(scope, admitted.scope, to_do.device, ready, address=admitted.address)
        return ready.messages(admitted.condition)

    async def _find(self, scope: Scope, asked: _Asked) -> _Found:
        return await self._reads.get(scope, asked) or _Found(None, None)

    async def _without_expired(self, scope: Scope, to_do: ToDo) -> ToDo:
        if to_do.assignment is None or not to_do.assignment.expired:
            return to_do
        return replace(to_do, assignment=await open_assignment(self._context, scope, to_do.device))

    def _ready(
        self, request: Request, addresses: DdiAddresses, to_do: ToDo, admitted_until: datetime | None
    ) -> ReadyAnswer:
        percent = self._context.settings.poll_jitter_percent
        answer, until = poll_answer_of(to_do, addresses, jitter_percent=percent, now=self._context.now())
        told = represented(request.headers.get("accept", ""), pack_poll_answer(answer))
        return ReadyAnswer(
            body=told.body,
            etag=told.etag.encode(),
            media_type=told.media_type.encode(),
            until=until,
            admitted_until=admitted_until,
            is_busy=to_do.assignment is not None,
        )

    async def _read(self, transaction: Transaction, scope: Scope, asked: Sequence[_Asked]) -> Mapping[_Asked, _Found]:
        now = self._context.now()
        digests = {one.gateway_sha256 for one in asked if one.gateway_sha256 is not None}
        gateways = {digest: await transaction.gateway_token_by_digest(scope, digest) for digest in digests}
        known = await transaction.known_devices(scope, list({one.name for one in asked}))
        devices = [one.device for one in known.values()]
        types = {name: await transaction.device_type(scope, name) for name in {one.type_name for one in devices}}
        assignments = await current_assignments(transaction, scope, devices, types=types, now=now)
        installed = await installed_executions(transaction, scope, [device.id for device in devices])
        to_do = {
            name: ToDo(
                one,
                types[one.device.type_name].poll_interval_s,
                assignments.get(one.device.id),
                installed.get(one.device.id),
            )
            for name, one in known.items()
        }
        return {one: _Found(to_do.get(one.name), gateways.get(one.gateway_sha256 or "")) for one in asked}


def poll_answer_of(
    to_do: ToDo, addresses: DdiAddresses, *, jitter_percent: int, now: datetime
) -> tuple[PollAnswer, datetime | None]:
    """Return what a device is told, and until when that stays so if nothing happens (None: for good)."""
    assignment, device = to_do.assignment, to_do.device
    link = None if assignment is None else action_link(assignment, addresses)
    sleep = poll_sleep(assignment, to_do.interval_s, now=now)
    until, seconds = sleep.valid_until, sleep.seconds
    if seconds == to_do.interval_s:  # it waits for no window that is near
        seconds, changes_at = jittered(seconds, device_id=device.id, percent=jitter_percent, now=now)
        until = _earliest(until, changes_at)
    if assignment is not None:
        until = _earliest(until, assignment.showing.valid_until)
        if assignment.execution.state is ExecutionState.QUEUED:
            until = _earliest(until, assignment.release.expires_at)
    answer = PollAnswer(
        sleep_s=seconds,
        **({} if link is None else {link.relation: link.href}),
        installed_base=None if to_do.installed is None else addresses.installed_base(to_do.installed.id),
        config_data=addresses.config_data if device.attributes_requested else None,
    )
    return answer, until


def _earliest(one: datetime | None, other: datetime | None) -> datetime | None:
    return other if one is None else one if other is None else min(one, other)
