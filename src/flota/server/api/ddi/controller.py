"""The DDI resources: routes, and what is told and reported about actions. What that means is in `server.updates`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from flota.errors import Conflict, FlotaError, NotFound
from flota.fleet.executions import Execution, ExecutionState
from flota.fleet.releases import Release
from flota.fleet.rollouts import RolloutPolicy
from flota.fleet.storage import Transaction
from flota.fleet.update_rules import Showing, Stage, Urgency
from flota.protocols.ddi import (
    CancelAction,
    DdiAddresses,
    Feedback,
    FeedbackExecution,
    FeedbackFinished,
    pack_cancel_action,
    pack_deployment,
    parse_feedback,
)
from flota.server.api.ddi.answers import NotCancelable, done, is_cbor, json_answer, problem_answer
from flota.server.api.ddi.authentication import ROUTE, DdiAuthentication
from flota.server.api.ddi.caller import Caller, Handler, read_body
from flota.server.api.ddi.confirmations import Confirmations
from flota.server.api.ddi.description import description_routes
from flota.server.api.ddi.files import Files
from flota.server.api.ddi.poll import Polls
from flota.server.api.ddi.rendering import deployment_of, history_wanted
from flota.server.api.ddi.reports import (
    CANCEL_FEEDBACK,
    DEPLOYMENT_FEEDBACK,
    DOWNLOAD_ONLY_FEEDBACK,
    RETRIEVED,
    SKIPPED_FEEDBACK,
    change_of,
    is_skip_notice,
)
from flota.server.api.ddi.self_description import SelfDescription
from flota.server.poll_answers import device_key
from flota.server.updates import (
    ONLY_DOWNLOADED_DETAIL,
    ActionClosed,
    has_its_turn,
    is_canceling,
    notice_address,
    open_assignment,
    own_execution,
    report,
    showing_of,
    sight,
    start_assignment,
    with_retries,
)

if TYPE_CHECKING:
    from flota.server.context import ServerContext

BASE: Final = "/{tenant}/controller/v1/{controller_id}"
_READ: Final = ["GET", "HEAD"]


def routes(context: ServerContext, polls: Polls | None = None) -> list[BaseRoute]:
    """Return the DDI routes. Their first path segment matches anything: they have to stand last.

    `polls` answers the first of them, if the server has one that is asked before any routing.
    """
    actions, files = _Actions(context), Files(context)
    confirmations, description = Confirmations(context), SelfDescription(context)
    endpoint = _Endpoint(context)
    handlers: list[tuple[str, list[str], Handler]] = [
        ("/configData", ["PUT"], description.put_config_data),
        ("/deploymentBase/{action_id}", _READ, actions.get_deployment),
        ("/deploymentBase/{action_id}/feedback", ["POST"], actions.post_feedback),
        ("/cancelAction/{action_id}", _READ, actions.get_cancel_action),
        ("/cancelAction/{action_id}/feedback", ["POST"], actions.post_cancel_feedback),
        ("/confirmationBase", _READ, confirmations.get_state),
        ("/confirmationBase/activateAutoConfirm", ["POST"], confirmations.activate),
        ("/confirmationBase/deactivateAutoConfirm", ["POST"], confirmations.deactivate),
        ("/confirmationBase/{action_id}", _READ, confirmations.get_question),
        ("/confirmationBase/{action_id}/feedback", ["POST"], confirmations.post_answer),
        ("/installedBase", ["PUT"], description.put_installed),
        ("/installedBase/{action_id}", _READ, actions.get_installed),
        ("/softwaremodules/{module_id}/artifacts", _READ, files.list_artifacts),
    ]
    made: list[BaseRoute] = [*description_routes(), Route(BASE, polls or Polls(context), methods=_READ)]
    made += [Route(BASE + path, endpoint.of(handler), methods=methods) for path, methods, handler in handlers]
    # parts come in bursts, and each is bounded by the file
    download = endpoint.of(files.download, limited=False)
    made.append(Route(BASE + "/softwaremodules/{module_id}/artifacts/{filename}", download, methods=_READ))
    return made


class _Endpoint:
    """Authenticates, counts, hands over to a handler, tells errors as hawkBit does."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._authentication = DdiAuthentication(context)
        self._rates = context.poll_answers.rates  # one bucket a device, whichever way its poll is answered

    def of(self, handler: Handler, *, limited: bool = True) -> Callable[[Request], Awaitable[Response]]:
        """Return a handler as a Starlette endpoint; `limited` = it counts against the device's rate."""

        async def answer(request: Request) -> Response:
            try:
                if limited:
                    self._rates.take(_rate_key(request), now=self._context.now())
                return await handler(await self._caller(request))
            except FlotaError as error:
                return problem_answer(error)

        return answer

    async def _caller(self, request: Request) -> Caller:
        identity = await self._authentication.identify(request)
        scope, device = identity.scope, identity.device
        await notice_address(self._context, scope, device, identity.address)
        sight(self._context, scope, device, route=ROUTE, address=identity.address)
        server = self._context.public_base(request)
        addresses = DdiAddresses(server, request.path_params["tenant"], request.path_params["controller_id"])
        return Caller(request, scope, device, addresses)


class _Actions:
    """What a device is told about actions, and what it reports."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    async def get_deployment(self, caller: Caller) -> Response:
        """GET the deployment; the first time moves the execution from QUEUED to IN_PROGRESS."""
        assignment = await open_assignment(self._context, caller.scope, caller.device)
        if assignment is None or assignment.execution.id != caller.action_id or assignment.cancel_requested:
            raise NotFound("no such action", found=caller.action_id)
        if assignment.showing.stage is not Stage.TELL:
            raise NotFound("the action waits", found=caller.action_id)
        if caller.request.method == "GET":
            try:
                assignment = await start_assignment(self._context, caller.scope, assignment, RETRIEVED)
            except Conflict as error:  # paused or canceled since it was read
                raise NotFound("no such action", found=caller.action_id) from error
        return await self._deployment(caller, assignment.execution, assignment.release, assignment.showing)

    async def get_installed(self, caller: Caller) -> Response:
        """GET an action that ended well, in the form of a deployment."""
        async with self._context.storage.reading() as transaction:
            execution = await own_execution(transaction, caller.scope, caller.device, caller.action_id)
            if execution.state is not ExecutionState.SUCCEEDED:
                raise NotFound("not an installed action", found=execution.id)
            release = await transaction.release(caller.scope, execution.release_id)
        return await self._deployment(caller, execution, release, None)

    async def _deployment(
        self, caller: Caller, execution: Execution, release: Release, showing: Showing | None
    ) -> Response:
        history = await history_wanted(self._context, caller, execution)
        deployment = deployment_of(execution, release, caller.addresses, showing=showing, history=history)
        return json_answer(caller.request, pack_deployment(deployment))

    async def get_cancel_action(self, caller: Caller) -> Response:
        """GET what to stop; 404 unless the action is being canceled."""
        async with self._context.storage.reading() as transaction:
            execution = await own_execution(transaction, caller.scope, caller.device, caller.action_id)
        if not is_canceling(execution):
            raise NotFound("the action is not being canceled", found=execution.id)
        return json_answer(caller.request, pack_cancel_action(CancelAction(execution.id, execution.id)))

    async def post_feedback(self, caller: Caller) -> Response:
        """POST feedback about a deployment."""
        action_id = caller.action_id
        feedback = parse_feedback(await read_body(caller.request), cbor=is_cbor(caller.request))

        async def write(transaction: Transaction) -> Execution:
            execution = await own_execution(transaction, caller.scope, caller.device, action_id)
            policy = await transaction.rollout_policy(caller.scope, execution.rollout_id)
            if not execution.is_open:
                return _late_end(execution, feedback)
            showing = await self._showing(transaction, caller, execution, policy)
            if execution.state is ExecutionState.QUEUED:
                is_turn = await has_its_turn(transaction, caller.scope, execution)
                if not is_turn or showing.stage is Stage.WAIT:
                    raise NotFound("it is not this action's turn", found=execution.id)
            if showing.stage is Stage.ASK and not is_canceling(execution):
                raise NotFound("the action waits for the device's agreement", found=execution.id)
            return await self._report(transaction, caller, execution, feedback, policy, showing)

        execution = await with_retries(self._context, write)
        is_installed = feedback.execution is FeedbackExecution.CLOSED and feedback.finished in _GOOD_ENDS
        if execution.state is ExecutionState.SUCCEEDED and is_installed:
            await self._note_installed(caller, execution)
        return done()

    async def _showing(
        self, transaction: Transaction, caller: Caller, execution: Execution, policy: RolloutPolicy
    ) -> Showing:
        device = await transaction.device_by_id(caller.scope, caller.device.id)
        device_type = await transaction.device_type(caller.scope, device.type_name)
        return showing_of(execution, policy, device_type, device, now=self._context.now())

    async def _report(
        self,
        transaction: Transaction,
        caller: Caller,
        execution: Execution,
        feedback: Feedback,
        policy: RolloutPolicy,
        showing: Showing,
    ) -> Execution:
        now = self._context.now()
        table = DEPLOYMENT_FEEDBACK
        if policy.urgency is Urgency.DOWNLOADONLY:
            table = DOWNLOAD_ONLY_FEEDBACK
        elif is_skip_notice(feedback, showing):
            table = SKIPPED_FEEDBACK
        after = await report(transaction, caller.scope, execution, change_of(execution, feedback, table), now=now)
        if after.state is ExecutionState.SUCCEEDED:
            device = await transaction.device_by_id(caller.scope, caller.device.id)
            await transaction.set_device_attributes(caller.scope, device.id, device.attributes, requested=True, now=now)
        return after

    async def _note_installed(self, caller: Caller, execution: Execution) -> None:
        """Show what the device runs now: the success it reported says so."""
        async with self._context.storage.reading() as transaction:
            release = await transaction.release(caller.scope, execution.release_id)
        sight(self._context, caller.scope, caller.device, route=ROUTE, address=None, running=release.as_running())

    async def post_cancel_feedback(self, caller: Caller) -> Response:
        """POST feedback about a cancellation."""
        action_id = caller.action_id
        feedback = parse_feedback(await read_body(caller.request), cbor=is_cbor(caller.request))

        async def write(transaction: Transaction) -> None:
            execution = await own_execution(transaction, caller.scope, caller.device, action_id)
            if not is_canceling(execution):
                raise NotCancelable("the action is not being canceled", found=execution.state)
            change = change_of(execution, feedback, CANCEL_FEEDBACK)
            await report(transaction, caller.scope, execution, change, now=self._context.now())

        await with_retries(self._context, write)
        return done()


_GOOD_ENDS: Final = frozenset({FeedbackFinished.SUCCESS, FeedbackFinished.NONE})


def _late_end(execution: Execution, feedback: Feedback) -> Execution:
    """Return an execution that only had to be downloaded, when its device now says that it closed it; it stays so.

    Raises `ActionClosed` for everything else that comes after the end.
    """
    only_downloaded = execution.details.get(ONLY_DOWNLOADED_DETAIL) is not None
    if only_downloaded and feedback.execution is FeedbackExecution.CLOSED:
        return execution
    raise ActionClosed(f"action {execution.id} is no longer active", found=execution.id)


def _rate_key(request: Request) -> str:
    return device_key(request.path_params["tenant"], request.path_params["controller_id"])
