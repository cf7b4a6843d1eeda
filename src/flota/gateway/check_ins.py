"""Where boards of the local network post their state, and their version if their app says it: an optional listener.

It is never on unless the configuration names an address. A post is evidence, as an announcement is: nobody proves who
it is, and nothing is ever done because of it but that a verdict is recorded.
Source: docs/reference/gateway.md, "What counts as a sign of life", "Check-ins".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog

from flota.errors import InvalidInput
from flota.gateway.driver import SightingBasis
from flota.gateway.network_watch import MacQuestions
from flota.gateway.sightings import SightingBook
from flota.protocols.ameba_http import OtaState, StatePost
from flota.transports.ameba_states import StateListener

SIGN_OF_LIFE: Final = OtaState.IDLE.value
"""The state of an app that has just begun. All others are posted by an app that is about to restart, or failed."""

_log = structlog.get_logger(__name__)


def note_post(book: SightingBook, address: str, post: StatePost, at: float) -> bool:
    """Write a post into the book, if it says anything; returns whether it did. `at` in seconds of `time.monotonic`."""
    if post.state != SIGN_OF_LIFE:
        return False
    basis = SightingBasis.STATE_POST if post.version is None else SightingBasis.CHECK_IN
    book.heard(address, at, basis, version=post.version)
    return True


@contextlib.asynccontextmanager
async def check_ins_heard(
    book: SightingBook, place: tuple[str, int], *, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[tuple[str, int]]:
    """Take posts at host and port as long as the context is open; gives both. Raises `InvalidInput` if it cannot."""
    questions = MacQuestions(book)

    def heard(address: str, post: StatePost) -> None:
        if note_post(book, address, post, clock()):
            _log.debug("gateway.posted", address=address, state=post.state, said=post.version)
            questions.ask(address)

    host, port = place
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(questions.close)
        try:
            where = await stack.enter_async_context(StateListener(heard).http(host, port))
        except OSError as error:
            raise InvalidInput(f"cannot listen at {host}:{port}", found=error.strerror or str(error)) from error
        yield where
