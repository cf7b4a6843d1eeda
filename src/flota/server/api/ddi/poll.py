"""The poll: GET of the controller base. It says when to come back, and links to what there is to do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from starlette.responses import Response

from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.poll_times import jittered
from flota.fleet.storage import Transaction
from flota.protocols.ddi import GATEWAY_TOKEN, DdiAddresses, PollAnswer, pack_poll_answer, parse_authorization
from flota.server.api.ddi.answers import unless_known, whole_answer
from flota.server.api.ddi.caller import Caller
from flota.server.api.ddi.rendering import action_link, poll_sleep
from flota.server.auth import digest_of_secret
from flota.server.poll_answers import ReadyAnswer
from flota.server.updates import Assignment, installed_execution, open_assignment

if TYPE_CHECKING:
    from flota.fleet.devices import Device
    from flota.server.context import ServerContext


@dataclass(frozen=True, slots=True)
class ToDo:
    """All that a poll answer is made of. `until`: from then on something may be otherwise by time alone."""

    assignment: Assignment | None
    installed: Execution | None
    interval_s: int
    until: datetime | None = None


class Polls:
    """Answers polls of authenticated devices."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def answer(self, caller: Caller) -> Response:
        """GET the controller base: links to what there is to do."""
        context, device = self._context, caller.device
        assignment = await open_assignment(context, caller.scope, device)
        async with context.storage.reading() as transaction:
            device_type = await transaction.device_type(caller.scope, device.type_name)
            installed = await installed_execution(transaction, caller.scope, device)
            admitted_until = await _admitted_until(transaction, caller)
        to_do = ToDo(assignment, installed, device_type.poll_interval_s, admitted_until)
        percent = context.settings.poll_jitter_percent
        answer, until = poll_answer_of(to_do, device, caller.addresses, jitter_percent=percent, now=context.now())
        response = whole_answer(caller.request, pack_poll_answer(answer))
        headers = dict(response.raw_headers)
        ready = ReadyAnswer(
            bytes(response.body), headers[b"etag"], headers[b"content-type"], until, is_busy=assignment is not None
        )
        address = context.peer_address(caller.request)
        context.poll_answers.remember(caller.request.scope, caller.scope, device, ready, address=address)
        return unless_known(caller.request, response)


def poll_answer_of(
    to_do: ToDo, device: Device, addresses: DdiAddresses, *, jitter_percent: int, now: datetime
) -> tuple[PollAnswer, datetime | None]:
    """Return what a device is told, and until when that stays so if nothing happens (None: for good)."""
    assignment = to_do.assignment
    link = None if assignment is None else action_link(assignment, addresses)
    sleep = poll_sleep(assignment, to_do.interval_s, now=now)
    moments = [to_do.until, sleep.valid_until]
    seconds = sleep.seconds
    if seconds == to_do.interval_s:  # it waits for no window that is near
        seconds, changes_at = jittered(seconds, device_id=device.id, percent=jitter_percent, now=now)
        moments.append(changes_at)
    if assignment is not None:
        moments.append(assignment.showing.valid_until)
        if assignment.execution.state is ExecutionState.QUEUED:
            moments.append(assignment.release.expires_at)
    answer = PollAnswer(
        sleep_s=seconds,
        **({} if link is None else {link.relation: link.href}),
        installed_base=None if to_do.installed is None else addresses.installed_base(to_do.installed.id),
        config_data=addresses.config_data if device.attributes_requested else None,
    )
    return answer, min((moment for moment in moments if moment is not None), default=None)


async def _admitted_until(transaction: Transaction, caller: Caller) -> datetime | None:
    """Return when what the device has shown may lose its force by time alone: an old token, a gateway's."""
    stored = await transaction.device_credentials(caller.scope, caller.device.name)
    moments = [stored.previous_until]
    shown = parse_authorization(caller.request.headers.get("authorization"))
    if shown is not None and shown.scheme == GATEWAY_TOKEN:
        gateway = await transaction.gateway_token_by_digest(caller.scope, digest_of_secret(shown.token))
        moments.append(None if gateway is None else gateway.expires_at)
    return min((moment for moment in moments if moment is not None), default=None)
