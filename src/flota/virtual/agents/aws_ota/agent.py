"""A device's app with the OTA agent in it: connection, timers, self-test; the shell around `OtaAgentCore`.

Wall clock: what waits for the service (acknowledgements, blocks, reconnecting). Device time: erase, program, reboot,
the app's own test, and the self-test timer, which never runs out in less than `SELF_TEST_FLOOR_S` of wall clock, since
a new image has to reach the service meanwhile.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors"; docs/reference/virtual-devices.md, "aws-reference".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from flota.errors import FlotaError
from flota.protocols.aws_jobs import NEXT, THING_PREFIX, JobsOperation, JobsTopic, notify_next_topic
from flota.protocols.mqtt.packets import Publish, pack_packet
from flota.virtual.agents.aws_ota.app import OtaDemoApp
from flota.virtual.agents.aws_ota.core import OtaAgentCore, Ports
from flota.virtual.agents.aws_ota.pal import Pal, PalImageState
from flota.virtual.agents.aws_ota.ports import AgentBuild, HttpRanges, OtaTimer
from flota.virtual.agents.aws_ota.states import AgentEvent
from flota.virtual.agents.aws_ota.status import version_word
from flota.virtual.device import AppContext, Behaviour, behaviour_of
from flota.virtual.events import EventKind
from flota.virtual.slots import ResetReason, Restart

ACKNOWLEDGEMENT_LIMIT_S: Final = 5.0
"""How long the agent waits for SUBACK and PUBACK."""

RECONNECT_FIRST_S: Final = 0.5
RECONNECT_LONGEST_S: Final = 5.0
"""Back-off of the agent's demo application, doubled from try to try and jittered."""

SELF_TEST_FLOOR_S: Final = 5.0
START_AGAIN_S: Final = 30.0
"""Device time after which the app starts an agent anew that has shut itself down; the vendor leaves that to the app."""


class DeviceLink(Protocol):
    """An MQTT connection. Its calls raise `FlotaError` when it is broken or refused."""

    async def subscribe(self, topic_filter: str, qos: int) -> object:
        """Subscribe; returns with the SUBACK. Raises `FlotaError` if it was refused."""

    async def unsubscribe(self, topic_filter: str) -> object:
        """Unsubscribe; returns with the UNSUBACK."""

    async def publish(self, topic: str, payload: bytes, qos: int) -> object:
        """Publish; at QoS 1 returns with the PUBACK."""

    async def receive(self) -> Publish:
        """Return the next message, subscribed to or not. Raises `FlotaError` when the connection has ended."""

    def abort(self) -> None:
        """Drop it without a word: what restarts or loses its power says no good-bye."""


@dataclass(frozen=True, slots=True)
class AwsOtaSettings:
    """How the app works. `connect` opens a connection as the thing `thing`, raising `FlotaError`; `pal` is the board's.

    `ranges` makes the HTTP client of the HTTP data path (None: built without).
    """

    thing: str
    connect: Callable[[], Awaitable[DeviceLink]]
    pal: Callable[[AppContext], Pal]
    ranges: Callable[[], HttpRanges] | None = None
    build: AgentBuild = field(default_factory=AgentBuild)
    self_test_floor_s: float = SELF_TEST_FLOOR_S


class AwsOtaAgent:
    """An app that connects, carries the OTA agent, and tests itself when it is new."""

    tests_the_app = True

    def __init__(self, settings: AwsOtaSettings) -> None:
        self._settings = settings

    async def run(self, context: AppContext) -> None:
        """Live until a restart. Ends by `Restart` only."""
        while True:
            await _Life(self._settings, context).live()
            context.tell(EventKind.TROUBLE, "the OTA agent has shut down")
            await context.pace.spend(START_AGAIN_S)


class _Life:
    """One run of the agent: its tasks and its timers."""

    def __init__(self, settings: AwsOtaSettings, context: AppContext) -> None:
        self._settings = settings
        self._context = context
        self._pal = settings.pal(context)
        self._behaviour = behaviour_of(context.slots.running)
        self._loop = asyncio.get_running_loop()
        self._messages = _LinkMessages()
        self._wake = asyncio.Event()
        self._reset: asyncio.Future[None] = self._loop.create_future()
        self._timers: dict[OtaTimer, asyncio.TimerHandle] = {}
        self._ranges = None if settings.ranges is None else settings.ranges()
        app = OtaDemoApp(context, self._pal)
        self._core = OtaAgentCore(
            settings.thing,
            version_word(context.slots.running.version),
            settings.build,
            Ports(self._pal, self._messages, self, app, self._ranges),
        )
        app.carry(self._core)

    async def live(self) -> None:
        """Live until the agent has stopped; raises `Restart`."""
        if self._pal.image_state() is PalImageState.PENDING_COMMIT:
            # The agent itself starts this timer when it is connected; an app that never connects must not live on.
            self.start(OtaTimer.SELF_TEST, self._settings.build.self_test_s)
        tasks = [asyncio.ensure_future(self._work()), asyncio.ensure_future(self._stay_connected()), self._reset]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for handle in self._timers.values():
                handle.cancel()
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError, Restart, FlotaError):
                    await task
            if self._ranges is not None:
                await self._ranges.close()

    async def _work(self) -> None:
        while not self._core.has_stopped:
            await self._core.work_off()
            await self._context.pace.pay()
            if not self._core.has_events and not self._core.has_stopped:
                self._wake.clear()
                await self._wake.wait()

    def _signal(self, event: AgentEvent, payload: bytes = b"") -> None:
        self._core.signal(event, payload)
        self._wake.set()

    # --- the connection -----------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        if self._behaviour is Behaviour.LOSE_NETWORK:
            self._context.tell(EventKind.NO_NETWORK, "the app cannot reach the network")
            await self._context.pace.wait_for_ever()
        event, tries = AgentEvent.START, 0
        while True:
            try:
                link = await self._settings.connect()
            except FlotaError as error:
                longest = min(RECONNECT_FIRST_S * 2**tries, RECONNECT_LONGEST_S)
                tries += 1
                wait_s = longest * (0.5 + 0.5 * self._context.rng.random())
                self._context.tell(EventKind.BREAK, f"{error}; again in {wait_s:.1f} s")
                await self._context.pace.wait_for_peer(wait_s)
                continue
            tries = 0
            self._context.tell(EventKind.POLL, "connected")
            try:
                await self._talk(link, event)
            except FlotaError as error:
                self._context.tell(EventKind.BREAK, str(error))
            event = AgentEvent.RESUME
            await self._context.pace.wait_for_peer(RECONNECT_FIRST_S * self._context.rng.random())

    async def _talk(self, link: DeviceLink, event: AgentEvent) -> None:
        self._messages.link = link
        self._signal(event)
        try:
            while True:
                self._hear(await link.receive())
                await asyncio.sleep(0)  # the agent has a thread of its own: what came does not wait for what comes
        finally:
            self._messages.link = None
            self._signal(AgentEvent.SUSPEND)
            link.abort()

    def _hear(self, message: Publish) -> None:
        """Put what concerns the agent into its queue; answers to status updates and rejections do not.

        A packet that the network buffer does not take is read and thrown away, whatever it is.
        """
        thing, room = self._settings.thing, self._settings.build.packet_max_bytes
        if room is not None and (length := len(pack_packet(message))) > room:
            text = f"Incoming packet will be dumped: Packet length={length}, network buffer size={room}."
            self._context.tell(EventKind.TROUBLE, text)
            return
        if message.topic in (
            JobsTopic(thing, JobsOperation.DESCRIBE, NEXT).accepted,
            notify_next_topic(thing),
        ):
            event = AgentEvent.RECEIVED_JOB_DOCUMENT
        elif message.topic.startswith(f"{THING_PREFIX}{thing}/streams/") and "/data/" in message.topic:
            event = AgentEvent.RECEIVED_FILE_BLOCK
        else:
            return
        limit = self._settings.build.message_max_bytes
        if len(message.payload) > limit:
            self._context.tell(
                EventKind.TROUBLE, f"a message of {len(message.payload)} bytes is above the buffer's {limit}: dropped"
            )
            return
        self._signal(event, message.payload)

    # --- timers -------------------------------------------------------------------------------------------------------

    def start(self, timer: OtaTimer, seconds: float) -> None:
        """Start a timer anew; the self-test timer, once it runs, only goes on."""
        if timer is OtaTimer.SELF_TEST:
            if timer in self._timers:
                return
            scaled = max(seconds / self._context.pace.speed, self._settings.self_test_floor_s)
            self._timers[timer] = self._loop.call_later(scaled, self._self_test_expired)
            return
        self.stop(timer)
        self._timers[timer] = self._loop.call_later(seconds, self._signal, AgentEvent.REQUEST_TIMER)

    def stop(self, timer: OtaTimer) -> None:
        """Stop a timer."""
        handle = self._timers.pop(timer, None)
        if handle is not None:
            handle.cancel()

    def _self_test_expired(self) -> None:
        if not self._reset.done():
            text = "the new image was neither accepted nor rejected in time"
            self._reset.set_exception(Restart(ResetReason.WATCHDOG, text))


class _LinkMessages:
    """The connection as the core sees it: there or not, and never slower than the agent waits."""

    def __init__(self) -> None:
        self.link: DeviceLink | None = None

    async def subscribe(self, topic_filter: str, qos: int) -> bool:
        """Subscribe."""
        return await self._done(lambda link: link.subscribe(topic_filter, qos))

    async def unsubscribe(self, topic_filter: str) -> bool:
        """Unsubscribe."""
        return await self._done(lambda link: link.unsubscribe(topic_filter))

    async def publish(self, topic: str, payload: bytes, qos: int) -> bool:
        """Publish."""
        return await self._done(lambda link: link.publish(topic, payload, qos))

    async def _done(self, call: Callable[[DeviceLink], Awaitable[object]]) -> bool:
        if self.link is None:
            return False
        try:
            async with asyncio.timeout(ACKNOWLEDGEMENT_LIMIT_S):
                await call(self.link)
        except (FlotaError, TimeoutError):
            return False
        return True
