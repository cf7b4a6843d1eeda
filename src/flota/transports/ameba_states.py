"""A listener for the states that boards with `OTA_Http` post, and for versions that an app adds to them.

It serves no file and takes none: what boards say of themselves is all that it is for.
Source: docs/reference/ameba-push.md, "Pulling over HTTP"; Ameba-AIoT/ameba-OTA-UI.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from flota.protocols.ameba_http import CLIENT_SEEN_FOR_S, CLIENTS_PATH, PullRequest, StatePost, parse_state_post
from flota.protocols.malformed import MalformedMessage
from flota.transports.device_http import Places, listening, peer_of, plain, read_request, send

DEVICES_MAX: Final = 1000

Heard = Callable[[str, StatePost], None]
"""(address of the device, what it posted); must not block."""


class StateBook:
    """The last state of each device. `clock` in seconds, `wall_clock` in seconds since 1970."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._states: dict[str, tuple[float, float, str]] = {}

    def note(self, device: str, state: str) -> bool:
        """Remember a state; returns whether it is another one than before."""
        known = self._states.pop(device, None)
        self._states[device] = (self._clock(), self._wall_clock(), state)
        while len(self._states) > DEVICES_MAX:
            del self._states[next(iter(self._states))]
        return known is None or known[2] != state

    def recent(self) -> dict[str, str]:
        """Return the last state of each device that was heard of lately, by address."""
        return {device: state for device, _, state in self._recent()}

    def as_json(self) -> str:
        """Return what the vendor's web page asks for: the recent devices, times in milliseconds since 1970."""
        entries = [
            {"ip": device, "timestamp": round(1000 * at), "OTA_state": state} for device, at, state in self._recent()
        ]
        return json.dumps({"recentEntries": entries})

    def _recent(self) -> list[tuple[str, float, str]]:
        now = self._clock()
        return [
            (device, wall, state) for device, (at, wall, state) in self._states.items() if now - at < CLIENT_SEEN_FOR_S
        ]


class StateListener:
    """Tells `heard` of every post. Whoever asks for anything else gets 404."""

    def __init__(self, heard: Heard) -> None:
        self._heard = heard
        self._places = Places()
        self._states = StateBook()

    @contextlib.asynccontextmanager
    async def http(self, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
        """Listen as long as the context is open; gives the address. Raises `OSError`."""
        async with listening(self._serve, host, port) as address:
            yield address

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        device = peer_of(writer)
        async with self._places.take(writer) as free:
            if not free:
                return
            with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
                try:
                    request, body = await read_request(reader)
                    answer = self._answer(device, request, body)
                except MalformedMessage as error:
                    answer = plain(400, str(error))
                await send(writer, answer)

    def _answer(self, device: str, request: PullRequest, body: bytes) -> bytes:
        return answer_states(device, request, body, self._states, self._heard) or plain(404, "POST a state here")


def answer_states(device: str, request: PullRequest, body: bytes, states: StateBook, heard: Heard) -> bytes | None:
    """Return the answer to a post of a state, or to the question for all; None for anything else.

    Raises `MalformedMessage` for a post that is none.
    """
    if request.path != CLIENTS_PATH or request.method not in {"GET", "POST"}:
        return None
    if request.method == "GET":
        return plain(200, states.as_json(), kind="application/json")
    post = parse_state_post(body)
    states.note(device, post.state)
    heard(device, post)
    return plain(200, '{"success":true}', kind="application/json")
