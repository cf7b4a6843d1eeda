"""Broker mode: the reserved topics answered by a client of somebody else's broker, instead of an endpoint of our own.

The same dialect works; in place of connections it has things, each known by the name in the topics that it publishes
to. That this name is the truth is the broker's business: `flota mqtt acl` prints the rules. What a stock broker cannot
do is answer somebody who has not subscribed, so what `$next/get` is answered goes to `notify-next` as well, which every
agent subscribes to. Source: docs/reference/aws-iot.md, "With a broker of one's own"; docs/reference/mqtt.md.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from flota.boards.catalogue import board as board_named
from flota.boards.model import Route
from flota.errors import FlotaError, NotFound
from flota.fleet.devices import DeviceState
from flota.fleet.job_executions import AWS_IOT_ROUTE
from flota.fleet.storage import DeviceFilter
from flota.protocols.aws_broker_rules import request_filters
from flota.protocols.aws_jobs import THING_PREFIX, is_thing_name, notify_next_topic, pack_notify_next
from flota.protocols.mqtt.dialect import Peer
from flota.protocols.mqtt.packets import Publish
from flota.server.api.aws_iot.identity import ThingIdentity
from flota.server.updates import device_scope, tenant_scope
from flota.server.waiting import wait_for_any
from flota.transports.mqtt_upstream import Message, UpstreamLink

if TYPE_CHECKING:
    from flota.fleet.devices import Device
    from flota.fleet.scope import Scope
    from flota.protocols.mqtt.broker_url import BrokerUrl
    from flota.protocols.mqtt.dialect import MqttClient, Only
    from flota.server.api.aws_iot.dialect import AwsIot
    from flota.server.context import ServerContext

REQUEST_QOS: Final = 1
REQUESTS_WAITING_MAX: Final = 100
"""Per thing. A device that does not hear asks again."""

LOOKED_UP_MAX: Final = 10_000
"""Things that are looked up at a time: anybody whom the broker lets in may name one."""

LOOK_FOR_THINGS_EVERY_S: Final = 5.0
PAGE: Final = 1000
_FALLBACK: Final = "/jobs/$next/get/accepted"

_log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class RemoteThing:
    """A thing at the other broker, in the place of a connection: implements `MqttClient`."""

    identity: ThingIdentity
    responder: MqttResponder
    waiting: deque[Publish] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None
    is_open: bool = True
    answer_qos: int = 0

    @property
    def client_id(self) -> str:
        """Its name: the client id is the broker's secret."""
        return self.identity.name

    @property
    def peer(self) -> Peer:
        """Unknown: it came to the broker."""
        return Peer(address="")

    def answer(self, topic: str | bytes, payload: bytes, *, qos: int | None = None) -> None:
        """Publish an answer, and for `$next/get` the same where every agent listens."""
        name = topic.decode("utf-8") if isinstance(topic, bytes) else topic
        quality = self.answer_qos if qos is None else qos
        self.responder.link.publish(Message(name, payload, quality))
        if name.endswith(_FALLBACK):
            self.responder.link.publish(Message(notify_next_topic(self.identity.name), payload, quality))

    def answer_all(self, topic: str | bytes, payloads: Iterable[bytes], *, qos: int | None = None) -> None:
        """Publish several answers to one topic."""
        for payload in payloads:
            self.answer(topic, payload, qos=qos)

    async def drain(self) -> None:
        """Return at once: what waits is bounded by the link. Raises `ConnectionError` once the thing is gone."""
        if not self.is_open:
            raise ConnectionError("the thing is followed no more")

    def close(self, reason: str) -> None:
        """Follow it no more; its next request is looked at afresh."""
        _log.info("aws_iot.thing_dropped", thing=self.identity.name, reason=reason)
        self.responder.drop(self)


class MqttResponder:
    """One client of the broker for all things of the default tenant; implements `MqttBroker` for the dialect."""

    def __init__(self, context: ServerContext, url: BrokerUrl, dialect: AwsIot) -> None:
        self._context = context
        self._dialect = dialect
        self._things: dict[str, RemoteThing] = {}
        self._looking_up: dict[str, list[Publish]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.link = UpstreamLink(
            url,
            client_id=f"flota-responder-{secrets.token_hex(4)}",
            on_message=self._arrived,
            wanted=lambda: [(one, REQUEST_QOS) for one in request_filters()],
        )
        self.dropped = 0
        """Requests that nobody had time for."""
        dialect.begin(self)

    async def run(self, stop: asyncio.Event) -> None:
        """Answer requests and tell things what changes, until `stop` is set."""
        try:
            await asyncio.gather(self.link.run(stop), self._dialect.run(stop), self._look_for_things(stop))
        finally:
            self._stopping = True
            for thing in list(self._things.values()):
                if thing.task is not None:
                    thing.task.cancel()

    # --- MqttBroker ---------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> int:
        """Things that are followed."""
        return len(self._things)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, only: Only | None = None
    ) -> int:
        """Publish at the broker, which knows who subscribed; it serves one tenant, so nobody has to be left out."""
        return int(self.link.publish(Message(topic, payload, qos, retain)))

    def is_wanted(self, topic: str) -> bool:
        """Return True: who subscribed, only the broker knows."""
        return True

    def clients_of(self, key: Hashable) -> list[MqttClient]:
        """Return the thing with this key, if it is followed."""
        return [thing for thing in self._things.values() if thing.identity.key == key]

    def filters_of(self, key: Hashable) -> set[str]:
        """Return nothing: what is subscribed to, the broker keeps to itself."""
        return set()

    def forget(self, key: Hashable, reason: str) -> int:
        """Follow a thing no more."""
        found = [thing for thing in self._things.values() if thing.identity.key == key]
        for thing in found:
            thing.close(reason)
        return len(found)

    # --- requests -----------------------------------------------------------------------------------------------------

    def drop(self, thing: RemoteThing) -> None:
        """Take a thing out."""
        if thing.is_open:
            thing.is_open = False
            self._things.pop(thing.identity.name, None)
            self._dialect.gone(thing)

    def _arrived(self, message: Message) -> None:
        name, _, _rest = message.topic.removeprefix(THING_PREFIX).partition("/")
        if self._stopping or not message.topic.startswith(THING_PREFIX) or not is_thing_name(name):
            return
        publish = Publish(message.topic, message.payload, message.qos, retain=False, packet_id=message.qos or None)
        thing = self._things.get(name)
        if thing is None:
            self._begin_with(name, publish)
        else:
            self._take(thing, publish)

    def _take(self, thing: RemoteThing, publish: Publish) -> None:
        if len(thing.waiting) >= REQUESTS_WAITING_MAX:
            self.dropped += 1
            return
        thing.waiting.append(publish)
        if thing.task is None:
            thing.task = asyncio.create_task(self._work_off(thing))

    async def _work_off(self, thing: RemoteThing) -> None:
        while thing.waiting:
            publish = thing.waiting.popleft()
            thing.answer_qos = publish.qos
            try:
                doing = self._dialect.receive(thing, publish)
                if doing is not None:
                    await doing
            except Exception as error:  # noqa: BLE001 - one request must end neither the next ones nor the responder
                _log.error("aws_iot.request_failed", thing=thing.identity.name, exc_info=error)
        thing.task = None

    def _begin_with(self, name: str, publish: Publish) -> None:
        """Look up who this is; what it asks meanwhile waits, within the same bounds."""
        waiting = self._looking_up.get(name)
        if waiting is not None and len(waiting) < REQUESTS_WAITING_MAX:
            waiting.append(publish)
            return
        if waiting is not None or len(self._looking_up) >= LOOKED_UP_MAX:
            self.dropped += 1
            return
        self._looking_up[name] = [publish]
        task = asyncio.create_task(self._look_up(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, name: str) -> None:
        try:
            scope = await tenant_scope(self._context, AWS_IOT_ROUTE)
            async with self._context.storage.reading() as transaction:
                device = await transaction.device(scope, name)
            thing = await self._follow(scope, device)
        except NotFound:
            thing = None
        except Exception as error:  # noqa: BLE001 - whatever the driver raises: the thing asks again
            _log.warning("aws_iot.thing_not_looked_up", thing=name, error=repr(error))
            thing = None
        finally:
            waiting = self._looking_up.pop(name, [])
        for publish in waiting:
            if thing is None:
                self.dropped += 1
            else:
                self._take(thing, publish)

    async def _follow(self, scope: Scope, device: Device) -> RemoteThing | None:
        if device.state is DeviceState.REFUSED or not is_thing_name(device.name):
            return None
        known = self._things.get(device.name)
        if known is not None:
            return known
        identity = ThingIdentity(device_scope(scope, device), device, by_broker=True)
        await self._dialect.states.follow(identity, keeps_session=False)
        known = self._things.get(device.name)
        if known is None:
            known = self._things[device.name] = RemoteThing(identity, self)
            self._dialect.connected(known)
            await self._announce(identity)
        return known

    async def _announce(self, identity: ThingIdentity) -> None:
        """Tell a thing its next job though nothing has changed: it may have come while no server was there to say."""
        first = (await self._dialect.jobs.pending(identity)).next
        if first is not None:
            message = self._dialect.jobs.message(first, thing=identity.name)
            told = pack_notify_next(message, timestamp=int(self._context.now().timestamp()))
            self.publish(notify_next_topic(identity.name), told)

    async def _look_for_things(self, stop: asyncio.Event) -> None:
        """Follow every device whose board is updated this way: it is told of its job though it has never asked."""
        while not stop.is_set():
            try:
                await self._follow_all()
            except Exception as error:  # noqa: BLE001 - whatever the driver raises: it is tried again
                _log.warning("aws_iot.things_not_read", error=repr(error))
            await wait_for_any(stop, timeout_s=LOOK_FOR_THINGS_EVERY_S)

    async def _follow_all(self) -> None:
        scope = await tenant_scope(self._context, AWS_IOT_ROUTE)
        async with self._context.storage.reading() as transaction:
            kinds = [kind.name for kind in await transaction.list_device_types(scope) if _is_ours(kind.board)]
        for kind in kinds:
            after = 0
            while True:
                condition = DeviceFilter(type_name=kind, state=DeviceState.ACCEPTED)
                async with self._context.storage.reading() as transaction:
                    devices = await transaction.list_devices(scope, condition, after_id=after, limit=PAGE)
                for device in devices:
                    await self._follow(scope, device)
                if len(devices) < PAGE:
                    break
                after = devices[-1].id


def _is_ours(board: str) -> bool:
    try:
        return Route.AWS_IOT in board_named(board).routes
    except FlotaError:
        return False
