"""The poll: GET of the controller base. It says when to come back, and links to what there is to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from flota.errors import Unauthenticated
from flota.fleet.devices import Device
from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.poll_times import jittered
from flota.fleet.scope import Scope
from flota.fleet.storage import Transaction
from flota.protocols.ddi import GATEWAY_TOKEN, DdiAddresses, PollAnswer, pack_poll_answer, parse_authorization
from flota.server.api.ddi.answers import unless_known, whole_answer
from flota.server.api.ddi.caller import Caller
from flota.server.api.ddi.rendering import action_link, poll_sleep
from flota.server.auth import digest_of_secret
from flota.server.gathered import Gathered
from flota.server.poll_answers import ROUTE, Admitted, ReadyAnswer
from flota.server.updates import Assignment, current_assignments, installed_executions, open_assignment, sight

if TYPE_CHECKING:
    from starlette.types import Message
    from starlette.types import Scope as RequestScope

    from flota.server.context import ServerContext


@dataclass(frozen=True, slots=True)
class ToDo:
    """All that a poll answer is made of, as one moment had it.

    `admitted_until`: what the device has shown to be let in may lose its force then, by time alone.
    """

    device: Device
    interval_s: int
    assignment: Assignment | None
    installed: Execution | None
    admitted_until: datetime | None


class Polls:
    """Answers polls of authenticated devices, and gives the answers to be kept."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._reads = Gathered(context.storage.reading, self._read)
        context.poll_answers.ask_again = self.ask_again

    async def answer(self, caller: Caller) -> Response:
        """GET the controller base: links to what there is to do."""
        to_do = await self._to_do(caller.scope, caller.device.name)
        if to_do is None or to_do.device.id != caller.device.id:
            raise Unauthenticated("the device has just been removed")
        admitted_until = _earliest(to_do.admitted_until, await self._gateway_until(caller))
        response, ready = self._ready(caller.request, caller.addresses, to_do, admitted_until)
        address = self._context.peer_address(caller.request)
        self._context.poll_answers.remember(caller.request.scope, caller.scope, to_do.device, ready, address=address)
        return unless_known(caller.request, response)

    async def ask_again(self, scope: RequestScope, admitted: Admitted) -> tuple[Message, Message] | None:
        """Return the answer to a request that is known to be this device's; None: let the ordinary way see to it."""
        context = self._context
        _, tenant, _, _, name = scope["path"].split("/")
        try:
            to_do = await self._to_do(admitted.scope, name)
            if to_do is None or to_do.device.id != admitted.device_id:
                return None
            request = Request(scope)
            addresses = DdiAddresses(context.public_base(scope), tenant, name)
            _, ready = self._ready(request, addresses, to_do, admitted.until)
        except Exception:  # noqa: BLE001 - the ordinary way will meet it again, and tell it
            return None
        sight(context, admitted.scope, to_do.device, route=ROUTE, address=admitted.address)
        context.poll_answers.remember(scope, admitted.scope, to_do.device, ready, address=admitted.address)
        return ready.messages(admitted.condition)

    async def _to_do(self, scope: Scope, name: str) -> ToDo | None:
        to_do = await self._reads.get(scope, name)
        if to_do is not None and to_do.assignment is not None and to_do.assignment.expired:
            return replace(to_do, assignment=await open_assignment(self._context, scope, to_do.device))
        return to_do

    def _ready(
        self, request: Request, addresses: DdiAddresses, to_do: ToDo, admitted_until: datetime | None
    ) -> tuple[Response, ReadyAnswer]:
        percent = self._context.settings.poll_jitter_percent
        answer, until = poll_answer_of(to_do, addresses, jitter_percent=percent, now=self._context.now())
        response = whole_answer(request, pack_poll_answer(answer))
        headers = dict(response.raw_headers)
        ready = ReadyAnswer(
            body=bytes(response.body),
            etag=headers[b"etag"],
            media_type=headers[b"content-type"],
            until=until,
            admitted_until=admitted_until,
            is_busy=to_do.assignment is not None,
        )
        return response, ready

    async def _read(self, transaction: Transaction, scope: Scope, names: Sequence[str]) -> Mapping[str, ToDo]:
        now = self._context.now()
        known = await transaction.known_devices(scope, names)
        devices = [one.device for one in known.values()]
        type_names = {device.type_name for device in devices}
        intervals = {name: (await transaction.device_type(scope, name)).poll_interval_s for name in type_names}
        assignments = await current_assignments(transaction, scope, devices, now=now)
        installed = await installed_executions(transaction, scope, [device.id for device in devices])
        return {
            name: ToDo(
                one.device,
                intervals[one.device.type_name],
                assignments.get(one.device.id),
                installed.get(one.device.id),
                one.credentials.previous_until,
            )
            for name, one in known.items()
        }

    async def _gateway_until(self, caller: Caller) -> datetime | None:
        """Return when the gateway's token ends that the request shows."""
        shown = parse_authorization(caller.request.headers.get("authorization"))
        if shown is None or shown.scheme != GATEWAY_TOKEN:
            return None
        gateway = await self._context.gateways.get(caller.scope, digest_of_secret(shown.token))
        return None if gateway is None else gateway.expires_at


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
