"""Answers given in the thread in which granian calls Python, without the way through the event loop and back.

To hand a request over to the loop, and its answer back, costs two changes of thread, with the interpreter's lock each
time. For a small part of an image, of which a device fetches hundreds one after the other, that is a quarter of all the
work (docs/adr/0010-embedded-granian.md). What needs no waiting is answered before; whatever else goes the ordinary way.

granian has no hook for it. Its function that runs a server is given another maker of the scheduler that hands requests
over. A granian that does that otherwise lets every request go the ordinary way; tests/server/test_short_way.py tells.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import structlog

from flota.server.api.artifact_parts import ARTIFACTS_PREFIX

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextvars import Context

    from starlette.types import Message, Scope

AnswerAtOnce = Callable[["Scope"], "tuple[Message, Message] | None"]
"""Returns the start and the whole body of an answer (the start's headers are a list of its own), or None for the
ordinary way. Called in any thread; it must not wait: all other requests of its listener stand behind this one."""

_SCHEDULER_MAKER: Final = "_new_cbscheduler"
"""What granian makes a scheduler with, of a loop, of the function that answers and more (granian/_futures.py)."""

_log = structlog.get_logger(__name__)


def with_short_way(
    spawn: Callable[..., Awaitable[None]], answer: AnswerAtOnce | None
) -> Callable[..., Awaitable[None]]:
    """Return granian's function that runs a server, such that `answer` is asked before the loop gets a request.

    `spawn` is the function as granian wraps it: it puts the running loop behind the first four arguments.
    """
    inner = getattr(spawn, "__wrapped__", None)
    if answer is None or inner is None or _SCHEDULER_MAKER not in inner.__code__.co_names:
        return spawn
    asked, make_scheduler = answer, inner.__globals__[_SCHEDULER_MAKER]

    def make_with_short_way(loop: asyncio.AbstractEventLoop, *arguments: Any, **named: Any) -> Any:
        return make_scheduler(LoopBehindShortWay(loop, asked), *arguments, **named)

    names = {**inner.__globals__, _SCHEDULER_MAKER: make_with_short_way}
    spawn_in = FunctionType(inner.__code__, names, inner.__name__, inner.__defaults__, inner.__closure__)

    async def spawn_with_short_way(*arguments: Any) -> None:
        await spawn_in(*arguments[:4], asyncio.get_running_loop(), *arguments[4:])

    return spawn_with_short_way


class LoopBehindShortWay:
    """The loop as the scheduler sees it: a request that can be answered at once does not get there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: AnswerAtOnce) -> None:
        self._loop = loop
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        """Return what the loop itself has."""
        return getattr(self._loop, name)

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *arguments: Any, context: Context | None = None
    ) -> asyncio.Handle | None:
        """Do as the loop does, unless what is handed over (a coroutine, and its request) is answered here and now."""
        if len(arguments) == 2 and _may_be_short(arguments[1]) and self._is_answered(arguments[1]):
            arguments[0].close()
            return None
        return self._loop.call_soon_threadsafe(callback, *arguments, context=context)

    def _is_answered(self, request: Any) -> bool:
        """Answer, if that is possible. Raises nothing: granian's thread would end, and its listener with it."""
        try:
            answer = self._answer(request.scope)
        except Exception as error:  # noqa: BLE001 - a bug of ours; the ordinary way may do better
            with contextlib.suppress(Exception):
                _log.error("request.not_answered_at_once", exc_info=error)
            return False
        if answer is None:
            return False
        try:
            send = request.proto.send
            for message in answer:
                send(message)  # nothing to wait for: the whole body is there
        except Exception as error:  # noqa: BLE001 - half an answer is the ordinary way's end too
            request.err(error)
        else:
            request.done()
        return True


def _may_be_short(request: Any) -> bool:
    """Whether it is worth the question: polls, which come by the ten thousand, are spared it."""
    try:
        path: str = request.scope["path"]
    except (AttributeError, KeyError, TypeError):  # something else, of another granian's
        return False
    return path.startswith(ARTIFACTS_PREFIX)
