"""What ties the connections of one MQTT endpoint together, sans-IO: sessions, takeover, fan-out, retained messages.

Who may do what is the dialect's business; nothing that a client publishes goes further unless `publish` is called.
Source: docs/reference/mqtt.md, "The endpoint"; MQTT 3.1.1, sections 3.1.2, 3.3.1.3 and 4.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Final

from flota.protocols.mqtt.dialect import Only
from flota.protocols.mqtt.packets import SUBACK_FAILURE, Connect, Publish, Subscribe, Unsubscribe
from flota.protocols.mqtt.server_connection import ServerConnection
from flota.protocols.mqtt.session import HELD_MAX_BYTES, QUEUED_MAX, MqttSession
from flota.protocols.mqtt.subscriptions import SubscriptionIndex
from flota.protocols.mqtt.topics import matches

SESSION_KEPT_S: Final = 3600.0
"""How long a session of a client with clean session 0 lives without a connection; AWS's default."""

KEPT_SESSIONS_MAX: Final = 10_000
RETAINED_MAX: Final = 1_000
RETAINED_MAX_BYTES: Final = 8 << 20
_RETAIN_FLAG: Final = 1

SessionKey = tuple[Hashable, str]
"""(whose, client id)."""


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """Bounds of one endpoint; bytes and seconds. Above `kept_sessions` the one that is gone longest is dropped."""

    session_kept_s: float = SESSION_KEPT_S
    kept_sessions: int = KEPT_SESSIONS_MAX
    retained: int = RETAINED_MAX
    retained_bytes: int = RETAINED_MAX_BYTES
    queued: int = QUEUED_MAX
    held_max: int = HELD_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Opened:
    """The outcome of a CONNECT: `present` goes into CONNACK; `replaced` has to be closed (3.1.4-2)."""

    session: MqttSession
    present: bool
    replaced: ServerConnection | None


class BrokerCore:
    """Sessions by owner and client id. After `publish`, `take_ready` names the connections with something to send."""

    def __init__(self, limits: BrokerLimits | None = None, *, parent_too: bool = False) -> None:
        self._limits = limits or BrokerLimits()
        self._parent_too = parent_too
        self._sessions: dict[SessionKey, MqttSession] = {}
        self._of_owner: dict[Hashable, dict[str, MqttSession]] = {}
        self._left: OrderedDict[SessionKey, float] = OrderedDict()
        self._index = SubscriptionIndex(parent_too=parent_too)
        self._retained: dict[str, tuple[bytes, int]] = {}
        self._retained_bytes = 0
        self._ready: dict[ServerConnection, None] = {}
        self.dropped = 0
        """Messages that somebody subscribed to and did not get: too slow, too many, or gone for too long."""

    @property
    def sessions(self) -> int:
        """Sessions, with a connection or without."""
        return len(self._sessions)

    @property
    def kept(self) -> int:
        """Sessions that wait for their client."""
        return len(self._left)

    # --- sessions -----------------------------------------------------------------------------------------------------

    def open_session(
        self, connection: ServerConnection, owner: Hashable, client_id: str, *, clean: bool, now: float
    ) -> Opened:
        """Give a connection its session and accept it: the one there is, unless a clean one is wanted (3.1.2.4)."""
        key = (owner, client_id)
        session = self._sessions.get(key)
        replaced = None
        if session is not None:
            replaced, session.connection = session.connection, None
            self._left.pop(key, None)
            if clean or (replaced is not None and _is_clean(replaced)):
                self._drop(session)
                session = None
        present = session is not None
        if session is None:
            session = MqttSession(client_id, owner)
            self._sessions[key] = session
            self._of_owner.setdefault(owner, {})[client_id] = session
        session.connection = connection
        connection.accept(session, present=present, now=now)
        return Opened(session, present, replaced)

    def close_session(self, connection: ServerConnection, *, now: float) -> Publish | None:
        """Note that a connection ended; returns the will that is due: none after a DISCONNECT.

        A session that was taken over stays with its new connection.
        """
        graceful = not connection.is_open
        connection.close()
        self._ready.pop(connection, None)
        session = connection.session
        if session.connection is connection:
            session.connection = None
            if _is_clean(connection):
                self._drop(session)
            else:
                self._left[(session.owner, session.client_id)] = now
                if len(self._left) > self._limits.kept_sessions:
                    self._drop(self._sessions[next(iter(self._left))])
        return None if graceful or connection.connect is None else will_of(connection.connect)

    def expire(self, *, now: float) -> int:
        """Drop the sessions that nobody came back for; returns how many."""
        gone = 0
        while self._left:
            key, since = next(iter(self._left.items()))
            if now - since < self._limits.session_kept_s:
                break
            self._drop(self._sessions[key])
            gone += 1
        return gone

    def sessions_of(self, owner: Hashable) -> list[MqttSession]:
        """Return the sessions of one identity."""
        return list(self._of_owner.get(owner, {}).values())

    def forget(self, owner: Hashable) -> list[ServerConnection]:
        """Drop every session of one identity; returns the connections that have to be closed."""
        connections = []
        for session in self.sessions_of(owner):
            if session.connection is not None:
                connections.append(session.connection)
            self._drop(session)
        return connections

    # --- subscriptions ------------------------------------------------------------------------------------------------

    def subscribe(self, connection: ServerConnection, subscribe: Subscribe, codes: list[int]) -> None:
        """Answer SUBSCRIBE with these codes and send what is retained under the granted filters (3.8.4, 3.3.1.3).

        Raises `ProtocolViolation` above the limit of subscriptions.
        """
        connection.grant(subscribe, codes)
        session = connection.session
        for (topic_filter, _), code in zip(subscribe.filters, codes, strict=True):
            if code == SUBACK_FAILURE:
                continue
            self._index.add(topic_filter, session, code)
            for topic, (payload, qos) in self._retained_under(topic_filter):
                connection.send_publish(topic.encode("utf-8"), payload, qos=min(qos, code), flags=_RETAIN_FLAG)

    def unsubscribe(self, connection: ServerConnection, unsubscribe: Unsubscribe) -> None:
        """Answer UNSUBSCRIBE."""
        for topic_filter in unsubscribe.filters:
            self._index.remove(topic_filter, connection.session)
        connection.confirm_unsubscribed(unsubscribe)

    # --- messages -----------------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False, only: Only | None = None) -> int:
        """Deliver to every session that subscribed, once each; returns for how many sessions it was.

        `retain` keeps it for later subscribers, an empty payload removes what was kept (3.3.1.3). What is above the
        limits of retained messages is delivered and not kept. `only` judges sessions by their owner.
        """
        if retain:
            self._retain(topic, payload, qos)
        takers = self._index.find(topic)
        if only is not None:
            takers = {session: granted for session, granted in takers.items() if only(session.owner)}
        name = topic.encode("utf-8")
        for session, granted in takers.items():
            self._deliver(session, name, payload, min(qos, granted))
        return len(takers)

    def is_wanted(self, topic: str) -> bool:
        """Return whether any session has a filter that covers `topic`."""
        return bool(self._index.find(topic))

    def take_ready(self) -> list[ServerConnection]:
        """Return the connections that `publish` gave something to send, and forget them."""
        ready = list(self._ready)
        self._ready.clear()
        return ready

    def _deliver(self, session: MqttSession, topic: bytes, payload: bytes, qos: int) -> None:
        connection, dropped = session.connection, session.dropped
        if connection is not None and (qos or not connection.is_congested):
            connection.send_publish(topic, payload, qos=qos)
            if connection.has_output:
                self._ready[connection] = None
        elif connection is None and qos:
            session.queue(topic, payload, queued_max=self._limits.queued, held_max=self._limits.held_max)
        else:
            self.dropped += 1
        self.dropped += session.dropped - dropped

    def _retain(self, topic: str, payload: bytes, qos: int) -> None:
        kept = self._retained.pop(topic, None)
        if kept is not None:
            self._retained_bytes -= len(kept[0])
        fits = (
            len(self._retained) < self._limits.retained
            and self._retained_bytes + len(payload) <= self._limits.retained_bytes
        )
        if payload and fits:
            self._retained[topic] = (payload, qos)
            self._retained_bytes += len(payload)
        elif payload:
            self.dropped += 1

    def _retained_under(self, topic_filter: str) -> Iterator[tuple[str, tuple[bytes, int]]]:
        wildcard = min((at for at in map(topic_filter.find, "+#") if at >= 0), default=-1)
        if wildcard < 0:
            if topic_filter in self._retained:
                yield topic_filter, self._retained[topic_filter]
            return
        # `a/#` may cover `a`: the separator is no part of what every name begins with
        prefix = topic_filter[:wildcard].removesuffix("/")
        for topic, message in self._retained.items():
            if topic.startswith(prefix) and matches(topic_filter, topic, parent_too=self._parent_too):
                yield topic, message

    def _drop(self, session: MqttSession) -> None:
        key = (session.owner, session.client_id)
        self._left.pop(key, None)
        self._sessions.pop(key, None)
        of_owner = self._of_owner.get(session.owner)
        if of_owner is not None and of_owner.get(session.client_id) is session:
            del of_owner[session.client_id]
            if not of_owner:
                del self._of_owner[session.owner]
        session.connection = None
        for topic_filter in session.subscriptions:
            self._index.remove(topic_filter, session)
        session.subscriptions.clear()


def _is_clean(connection: ServerConnection) -> bool:
    return connection.connect is None or connection.connect.clean_session


def will_of(connect: Connect) -> Publish | None:
    """Return what a CONNECT's will would publish, for a dialect to judge; None without one."""
    if connect.will is None:
        return None
    will = connect.will
    return Publish(will.topic, will.payload, min(will.qos, 1), will.retain, packet_id=1 if will.qos else None)
