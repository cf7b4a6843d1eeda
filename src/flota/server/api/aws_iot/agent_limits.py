"""Agents that have room for little: which a release is for, what their streams are called, how fast blocks go out.

An agent that is built for two messages at a time loses the third of a burst and waits ten seconds for it, though it
asked for four; a message that does not fit its buffer is read and thrown away. Its board says both.
Source: docs/reference/aws-iot.md, "Agents with little room"; docs/reference/nuvoton.md, "The agent's build".
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from flota.boards.catalogue import board
from flota.errors import FlotaError
from flota.protocols.aws_streams import data_topic_room
from flota.trust.manifest import parse_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from flota.boards.model import AgentLimits
    from flota.fleet.executions import Execution
    from flota.fleet.releases import Release
    from flota.protocols.mqtt.dialect import MqttClient

STREAM_PREFIX: Final = "AFR_OTA-"
STREAM_ID_LEN: Final = 44
"""AWS's: the prefix and a UUID. The C client has room for no more."""

STREAM_ID_MIN_LEN: Final = 3
"""The shortest that we make: what a name of 64 characters leaves on an agent with 128 bytes beside its block."""

BLOCK_EVERY_S: Final = 0.05
"""Between blocks to an agent whose room is full: twice what 2 KiB take in SPI flash at the slowest."""

REPEATED_MAX: Final = 64
"""As many blocks of 2 KiB as one request may bring."""

REMEMBERED_MAX: Final = 256


def limits_of(release: Release) -> AgentLimits | None:
    """Return what the agents of the release's board have room for; None: nothing that one has to mind."""
    return _limits_in(release.manifest)


@functools.lru_cache(maxsize=REMEMBERED_MAX)
def _limits_in(manifest: bytes) -> AgentLimits | None:
    try:
        return board(parse_manifest(manifest).board).agent_limits
    except FlotaError:  # a board of the user's own, or gone from the catalogue
        return None


def stream_id_of(execution: Execution, release: Release) -> str:
    """Return the stream that a device reads: the same each time, 44 characters as AWS makes them, or what fits.

    Topics carry the thing's name too, so a long name leaves a shorter id on an agent with little room. It is no
    secret: only things with an open execution that names the stream may read it.
    """
    limits = limits_of(release)
    length = STREAM_ID_LEN
    if limits is not None:
        fitting = data_topic_room(limits.packet_max_bytes, limits.block_size) - _TOPIC_LEN - len(execution.device_name)
        if STREAM_ID_MIN_LEN <= fitting < STREAM_ID_LEN:
            length = fitting
    return _stream_id(execution.rollout_id, execution.release_id, length)


_TOPIC_LEN: Final = len("$aws/things//streams//data/cbor")


@functools.lru_cache(maxsize=REMEMBERED_MAX)
def _stream_id(rollout_id: int, release_id: int, length: int) -> str:
    digest = hashlib.sha256(f"stream of rollout {rollout_id}, release {release_id}".encode()).digest()
    if length < STREAM_ID_LEN:
        return base64.urlsafe_b64encode(digest).decode("ascii")[:length]
    return f"{STREAM_PREFIX}{uuid.UUID(bytes=digest[:16], version=4)}"


def without_holes(payloads: list[bytes], *, held: int, asked: int | None) -> list[bytes]:
    """Return what to send to an agent that must not miss a block: the first `held`, then the last of these again.

    The agent counts what comes, known or not, until it has got what it asked for, and asks anew. So it gets no further
    in the file than it has room for, and a repetition that is lost leaves no hole.
    """
    if len(payloads) <= held:
        return payloads
    repeated = min(len(payloads) if asked is None else asked, REPEATED_MAX) - held
    return payloads[:held] + payloads[held - 1 : held] * max(0, repeated)


@dataclass(slots=True)
class _Rest:
    """What one request has still to bring. `is_wanted` says whether the thing may still read it."""

    topic: bytes
    payloads: deque[bytes]
    is_wanted: Callable[[], bool]
    timer: asyncio.TimerHandle | None = field(default=None)


class BlockPacing:
    """Sends blocks: as many as the agent holds at once, each further one `every_s` seconds after the one before.

    A new request of the same client says anew what is missing: what was left of the last one is forgotten then.
    """

    def __init__(self, every_s: float = BLOCK_EVERY_S) -> None:
        self._every_s = every_s
        self._rests: dict[MqttClient, _Rest] = {}

    def __len__(self) -> int:
        """How many clients have blocks to come."""
        return len(self._rests)

    def send(
        self,
        client: MqttClient,
        topic: bytes,
        payloads: list[bytes],
        *,
        at_once: int,
        is_wanted: Callable[[], bool],
    ) -> None:
        """Send data messages, the first `at_once` of them now; the others as long as `is_wanted` says yes."""
        self.forget(client)
        now = payloads[:at_once]
        if now:
            client.answer_all(topic, now)
        if len(now) < len(payloads):
            rest = self._rests[client] = _Rest(topic, deque(payloads[len(now) :]), is_wanted)
            self._wait(client, rest)

    def forget(self, client: MqttClient) -> None:
        """Send nothing more of what the client asked for."""
        rest = self._rests.pop(client, None)
        if rest is not None and rest.timer is not None:
            rest.timer.cancel()

    def _wait(self, client: MqttClient, rest: _Rest) -> None:
        rest.timer = asyncio.get_running_loop().call_later(self._every_s, self._send_one, client, rest)

    def _send_one(self, client: MqttClient, rest: _Rest) -> None:
        """Send the next block; one that the thing may not read any more would be a stray one in its next job."""
        if not client.is_open or not rest.is_wanted():
            self.forget(client)
            return
        client.answer_all(rest.topic, (rest.payloads.popleft(),))
        if rest.payloads:
            self._wait(client, rest)
        else:
            del self._rests[client]
