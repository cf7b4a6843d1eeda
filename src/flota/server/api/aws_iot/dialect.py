"""The MQTT dialect of AWS IoT: who is let in, which topics mean what, and what things are told unasked.

A thing publishes to its own `$aws/things/NAME/…` only; any other reserved topic ends the connection. Topics outside
`$aws/` go to a bridge, where there is one. An answer goes to the connection that asked, whether or not it subscribed.
Source: docs/reference/aws-iot.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol, cast

import structlog

from flota.errors import FlotaError
from flota.fleet.devices import DeviceState
from flota.fleet.job_executions import AWS_IOT_ROUTE
from flota.fleet.scope import Scope
from flota.fleet.things import CertificatePurpose
from flota.protocols.aws_jobs import (
    JobsOperation,
    is_thing_name,
    notify_next_topic,
    notify_topic,
    pack_notify,
    pack_notify_next,
)
from flota.protocols.mqtt.packets import Connect, ConnectReturn, Publish
from flota.server.api.aws_iot.documents import JobDocuments
from flota.server.api.aws_iot.events import OperatorEvents
from flota.server.api.aws_iot.identity import ClaimIdentity, Identity, OperatorIdentity, ThingIdentity
from flota.server.api.aws_iot.jobs import JobsApi
from flota.server.api.aws_iot.provisioning import Provisioning
from flota.server.api.aws_iot.restart_watch import CONNECTIONS_MIN, RestartWatch
from flota.server.api.aws_iot.streams import StreamsApi
from flota.server.api.aws_iot.thing_states import News, ThingState, ThingStates
from flota.server.auth import Permission, authenticate, digest_of_secret, require
from flota.server.device_admission import device_by_token, token_shown
from flota.server.updates import device_scope, notice_address, sight, tenant_scope

if TYPE_CHECKING:
    from flota.fleet.storage import KnownDevice
    from flota.protocols.mqtt.dialect import MqttBroker, MqttClient, Peer
    from flota.server.context import ServerContext

RESERVED: Final = "$"
OPERATOR_NAME: Final = "$operator"
"""The user name of somebody who watches events; no thing can have it. The password is a management token."""

PASSWORD_MAX_LEN: Final = 256
"""Bytes of a password that are looked at; device tokens have at most 128."""

SEEN_EVERY: Final = timedelta(seconds=30)
"""How often a thing that asks for blocks is noted as seen: its silence is what a rollout judges."""

SHADOW_TOKEN_MAX_BYTES: Final = 4096
UPDATE_END: Final = f"/{JobsOperation.UPDATE}"
"""How the topic of a report ends."""

RESTARTS: Final = "device.restarts-again-and-again"
"""The audit trail's word for a thing that connects and never comes to work."""

_log = structlog.get_logger(__name__)


class OtherTopics(Protocol):
    """What becomes of a thing's topics outside `$aws/`: a bridge to another broker."""

    def may_subscribe(self, thing: ThingIdentity, topic_filter: str) -> bool:
        """Return whether the thing may subscribe to this."""
        ...

    def may_publish(self, thing: ThingIdentity, topic: str) -> bool:
        """Return whether the thing may publish to this."""
        ...

    def receive(self, thing: ThingIdentity, publish: Publish) -> None:
        """Take a message that it may publish."""
        ...


class AwsIot:
    """The dialect, for one server process: implements `MqttDialect`."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._documents = JobDocuments(context)
        self.jobs = JobsApi(context, self._documents)
        self._streams = StreamsApi(context)
        self.states = ThingStates(context, tell=self._tell, recheck=self._recheck)
        self.events = OperatorEvents(context)
        self._provisioning = Provisioning(context)
        self._clients: dict[MqttClient, ThingState] = {}
        self._restarts = RestartWatch()
        self._broker: MqttBroker | None = None
        self.other_topics: OtherTopics | None = None
        self.dropped = 0
        """Messages that nobody was there for."""

    @property
    def dialect(self) -> AwsIot:
        """The dialect itself, as the endpoint wants it."""
        return self

    def client_authorities(self) -> bytes:
        """Return, in PEM, what client certificates are checked with."""
        return self._context.things.client_authorities()

    async def prepare(self) -> None:
        """Read what `client_authorities` gives; to be called before anybody may connect."""
        await self._context.things.begin()

    async def run(self, stop: asyncio.Event) -> None:
        """Tell things and operators what changes, until `stop` is set."""
        await asyncio.gather(self.states.run(stop), self.events.run(stop, self._broker), self._context.things.run(stop))

    # --- connections --------------------------------------------------------------------------------------------------

    def begin(self, broker: MqttBroker) -> None:
        """Take the endpoint's handle."""
        self._broker = broker

    async def admit(self, connect: Connect, peer: Peer) -> Identity | ConnectReturn:
        """Return the thing (or operator) that connects, or the return code of a refusal."""
        identity = await self._identify(connect, peer)
        if isinstance(identity, ConnectReturn):
            return identity
        if connect.will is not None and not self._may_publish(identity, connect.will.topic):
            return ConnectReturn.NOT_AUTHORISED
        if isinstance(identity, ThingIdentity):
            await notice_address(self._context, identity.scope, identity.device, peer.address)
            sight(self._context, identity.scope, identity.device, route=AWS_IOT_ROUTE, address=peer.address)
            await self.states.follow(identity, keeps_session=not connect.clean_session)
            await self._watch_restarts(identity)
        return identity

    def connected(self, client: MqttClient) -> None:
        """Follow the thing as long as this connection lasts."""
        identity = _identity_of(client)
        if isinstance(identity, ThingIdentity):
            self._clients[client] = self.states.connected(identity)

    def gone(self, client: MqttClient) -> None:
        """Follow it no longer."""
        self._streams.gone(client)
        state = self._clients.pop(client, None)
        if state is not None:
            self.states.gone(state)

    def may_subscribe(self, client: MqttClient, topic_filter: str) -> bool:
        """Whether the client reaches nothing but its own by this filter."""
        identity = _identity_of(client)
        if topic_filter.startswith(RESERVED):
            return identity.may_subscribe(topic_filter)
        if self.other_topics is None or not isinstance(identity, ThingIdentity):
            return False
        return self.other_topics.may_subscribe(identity, topic_filter)

    # --- messages -----------------------------------------------------------------------------------------------------

    def receive(self, client: MqttClient, publish: Publish) -> Awaitable[None] | None:
        """Work off what a client publishes; blocks that are in memory go out before this returns."""
        state, topic = self._clients.get(client), publish.topic
        if state is None:
            return self._receive_of_stranger(client, publish)
        prefix = state.thing.prefix
        if not topic.startswith(prefix) or publish.retain:
            self._receive_other(client, state.thing, publish)
            return None
        family, _, rest = topic.removeprefix(prefix).partition("/")
        if family == "streams":
            self._restarts.at_work(state.thing.device.id)
            self._note_seen(state, client)
            return self._streams.receive(
                client,
                f"{prefix}streams/",
                rest,
                publish.payload,
                state,
                lambda stream_id: self.states.stream(state, stream_id),
            )
        if family == "jobs":
            if rest.endswith(UPDATE_END):
                self._restarts.at_work(state.thing.device.id)
            return self._answer_jobs(client, state.thing, publish)
        if family == "shadow":
            refusal = shadow_refusal(topic, publish.payload, int(self._context.now().timestamp()))
            client.answer(f"{topic}/rejected", refusal)
        else:
            client.close("a publish to a reserved topic")
        return None

    def _receive_of_stranger(self, client: MqttClient, publish: Publish) -> Awaitable[None] | None:
        """Work off what somebody publishes who is no thing: a claim asks for a certificate, others may do nothing."""
        identity = _identity_of(client)
        if isinstance(identity, ClaimIdentity) and not publish.retain:
            return self._answer_claim(client, identity, publish)
        client.close("a publish of a client that may publish nothing")
        return None

    async def _answer_claim(self, client: MqttClient, identity: ClaimIdentity, publish: Publish) -> None:
        answer = await self._provisioning.answer(identity.holder, publish.topic, publish.payload)
        if answer is None:
            client.close("a publish to a reserved topic")
        else:
            client.answer(answer.topic, answer.payload)

    async def _answer_jobs(self, client: MqttClient, thing: ThingIdentity, publish: Publish) -> None:
        reply = await self.jobs.answer(thing, publish.topic, publish.payload, address=client.peer.address)
        client.answer(reply.topic, reply.payload)

    def _receive_other(self, client: MqttClient, thing: ThingIdentity, publish: Publish) -> None:
        """Hand a message on that is no request to us; reserved topics of others, or retained, end the connection."""
        if publish.topic.startswith(RESERVED):
            client.close(
                "a retained publish to a reserved topic" if publish.retain else "a publish to a reserved topic"
            )
        elif self.other_topics is None or not self.other_topics.may_publish(thing, publish.topic):
            self.dropped += 1  # a device that reports something else besides must be able to update all the same
        else:
            self.other_topics.receive(thing, publish)

    def _may_publish(self, identity: Identity, topic: str) -> bool:
        """Whether a client's will may have this topic."""
        if not isinstance(identity, ThingIdentity):
            return False
        return topic.startswith(identity.prefix) or not topic.startswith(RESERVED)

    def _note_seen(self, state: ThingState, client: MqttClient) -> None:
        now = self._context.now()
        if state.seen_at is None or now - state.seen_at >= SEEN_EVERY:
            state.seen_at = now
            thing = state.thing
            sight(self._context, thing.scope, thing.device, route=AWS_IOT_ROUTE, address=client.peer.address)

    def _tell(self, state: ThingState, news: News) -> None:
        """Tell a thing what has changed, by the ordinary way of topics."""
        if self._broker is None:
            return
        timestamp, name, pending = int(self._context.now().timestamp()), state.thing.name, news.pending
        key = state.thing.key
        if news.list_changed and self._broker.is_wanted(notify_topic(name)):
            in_progress = [self.jobs.message(job, thing=name, with_document=False) for job in pending.in_progress]
            queued = [self.jobs.message(job, thing=name, with_document=False) for job in pending.queued]
            told = pack_notify(in_progress, queued, timestamp=timestamp)
            self._broker.publish(notify_topic(name), told, qos=1, only=key.__eq__)
        if news.next_changed and self._broker.is_wanted(notify_next_topic(name)):
            first = None if pending.next is None else self.jobs.message(pending.next, thing=name)
            told = pack_notify_next(first, timestamp=timestamp)
            self._broker.publish(notify_next_topic(name), told, qos=1, only=key.__eq__)

    async def _watch_restarts(self, thing: ThingIdentity) -> None:
        """Say of a thing that it connects again and again without coming to work, in the log and in the audit trail."""
        span = self._restarts.connected(thing.device.id, now=self._context.now())
        if span is None:
            return
        state = self.states.get(thing)
        facts: dict[str, object] = {
            "connections": CONNECTIONS_MIN,
            "within_s": int(span.total_seconds()),
            "open_jobs": len(state.told or ()) if state is not None else 0,
        }
        _log.warning("aws_iot.thing_restarts", thing=thing.name, **facts)
        try:
            async with self._context.storage.transaction() as transaction:
                await transaction.append_audit(
                    thing.scope, RESTARTS, f"device:{thing.name}", facts, now=self._context.now()
                )
        except FlotaError as error:
            _log.warning("aws_iot.restarts_not_noted", thing=thing.name, error=str(error))

    # --- who it is ----------------------------------------------------------------------------------------------------

    async def _identify(self, connect: Connect, peer: Peer) -> Identity | ConnectReturn:
        """Return who connects. With a certificate the user name is what AWS's libraries put there: metrics."""
        if peer.certificate is not None:
            return await self._by_certificate(peer.certificate)
        user, password = connect.username, connect.password
        if user is None or password is None or len(password) > PASSWORD_MAX_LEN:
            return ConnectReturn.NOT_AUTHORISED
        try:
            secret = password.decode("utf-8")
        except UnicodeDecodeError:
            return ConnectReturn.BAD_CREDENTIALS
        name = user.partition("?")[0]  # AWS's SDKs add there what they are
        if name == OPERATOR_NAME:
            return await self._operator(secret)
        if not is_thing_name(name):
            return ConnectReturn.BAD_CREDENTIALS
        scope = await tenant_scope(self._context, AWS_IOT_ROUTE)
        device = await device_by_token(self._context, scope, name, secret)
        if device is None or device.state is DeviceState.REFUSED:
            return ConnectReturn.BAD_CREDENTIALS
        return ThingIdentity(device_scope(scope, device), device, token_sha256=digest_of_secret(secret))

    async def _by_certificate(self, certificate: bytes) -> Identity | ConnectReturn:
        holder = await self._context.things.thing_of_certificate(certificate)
        if holder is not None and holder.certificate.purpose is CertificatePurpose.CLAIM:
            return ClaimIdentity(holder)
        device = None if holder is None else holder.device
        if holder is None or device is None:
            return ConnectReturn.NOT_AUTHORISED
        if device.state is DeviceState.REFUSED or not is_thing_name(device.name):
            return ConnectReturn.NOT_AUTHORISED
        scope = device_scope(Scope(holder.tenant_id, AWS_IOT_ROUTE), device)
        return ThingIdentity(scope, device, certificate_sha256=holder.certificate.fingerprint)

    async def _operator(self, secret: str) -> Identity | ConnectReturn:
        if not self._context.settings.aws_iot_events:
            return ConnectReturn.NOT_AUTHORISED
        try:
            scope, role = await authenticate(self._context, f"Bearer {secret}")
            require(role, Permission.AUDIT_READ)
        except FlotaError:
            return ConnectReturn.BAD_CREDENTIALS
        return OperatorIdentity(scope, digest_of_secret(secret))

    async def _recheck(self, state: ThingState, known: KnownDevice | None) -> None:
        """Close the connections of a thing that would not be let in any more."""
        if self._broker is None:
            return
        if known is None or known.device.state is DeviceState.REFUSED:
            self._broker.forget(state.thing.key, "the thing was removed or refused")
            return
        for client in self._broker.clients_of(state.thing.key):
            identity = _identity_of(client)
            if isinstance(identity, ThingIdentity) and not await self._is_still_good(identity, known):
                client.close("its credentials are good no more")

    async def _is_still_good(self, thing: ThingIdentity, known: KnownDevice) -> bool:
        if thing.by_broker:
            return thing.device.id == known.device.id
        if thing.token_sha256 is not None:
            return token_shown(known.credentials, thing.token_sha256, now=self._context.now()) is not None
        if thing.certificate_sha256 is None:
            return False
        holder = await self._context.things.thing_of_fingerprint(thing.certificate_sha256)
        return holder is not None and holder.device is not None and holder.device.id == thing.device.id


def _identity_of(client: MqttClient) -> Identity:
    """Return what `admit` returned."""
    return cast("Identity", client.identity)


def shadow_refusal(topic: str, payload: bytes, timestamp: int) -> bytes:
    """Return the answer to a request to the Device Shadow service, which is not here: to a get, that there is none."""
    is_get = topic.endswith("/get")
    text = "No shadow exists" if is_get else "shadows are not kept here"
    members: dict[str, object] = {"code": 404 if is_get else 403, "message": text, "timestamp": timestamp}
    try:
        asked = json.loads(payload) if 0 < len(payload) <= SHADOW_TOKEN_MAX_BYTES else None
    except (ValueError, RecursionError):
        asked = None
    token = asked.get("clientToken") if isinstance(asked, dict) else None
    if isinstance(token, str):
        members["clientToken"] = token
    return json.dumps(members, separators=(",", ":")).encode("utf-8")
