"""Telemetry goes on: things' topics outside `$aws/` to another broker and back, over the session that they have.

What a thing publishes is acknowledged to it when it is taken here, and waits here while the other broker is away, in
bounded memory. What it subscribes to is subscribed to there under the name that the rules give, for as long as any
session here has the filter. Source: docs/reference/mqtt.md, "The bridge".
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Final

from flota.protocols.mqtt.bridge_rules import BridgeRules
from flota.server.waiting import wait_for_any
from flota.transports.mqtt_upstream import Message, UpstreamLink

if TYPE_CHECKING:
    from flota.protocols.mqtt.broker_url import BrokerUrl
    from flota.protocols.mqtt.dialect import MqttBroker
    from flota.protocols.mqtt.packets import Publish
    from flota.server.api.aws_iot.identity import ThingIdentity

QOS: Final = 1
"""What everything is subscribed to with: what a thing gets is lowered to what it asked for."""

FORGET_EVERY_S: Final = 60.0
"""How often it is looked which filters nobody has any more."""

FILTERS_MAX: Final = 50_000
"""Filters at the other broker; one more is refused to the thing. A thousand things with all that a session may have."""


class MqttBridge:
    """Implements `OtherTopics` for the AWS IoT dialect."""

    def __init__(self, url: BrokerUrl, rules: BridgeRules, broker: MqttBroker, *, client_id: str) -> None:
        self._rules = rules
        self._broker = broker
        self._filters: dict[str, set[tuple[Hashable, str]]] = {}
        """By the name there: who has which filter here."""
        self.link = UpstreamLink(url, client_id=client_id, on_message=self._arrived, wanted=self._wanted)

    def may_subscribe(self, thing: ThingIdentity, topic_filter: str) -> bool:
        """Whether the rules bring this in; it is subscribed to there before the answer is sent."""
        remote = self._rules.wanted(thing.name, topic_filter)
        if remote is None or (remote not in self._filters and len(self._filters) >= FILTERS_MAX):
            return False
        self._filters.setdefault(remote, set()).add((thing.key, topic_filter))
        self.link.subscribe(remote, QOS)  # again, even if it is there: what is retained comes once more
        return True

    def may_publish(self, thing: ThingIdentity, topic: str) -> bool:
        """Whether the rules let this out."""
        return self._rules.outgoing(thing.name, topic) is not None

    def receive(self, thing: ThingIdentity, publish: Publish) -> None:
        """Hand on what the thing published."""
        remote = self._rules.outgoing(thing.name, publish.topic)
        if remote is not None:
            self.link.publish(Message(remote, publish.payload, publish.qos, publish.retain))

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the connection up and the filters tidy until `stop` is set."""
        tidying = asyncio.create_task(self._tidy(stop))
        try:
            await self.link.run(stop)
        finally:
            tidying.cancel()

    async def _tidy(self, stop: asyncio.Event) -> None:
        while not await wait_for_any(stop, timeout_s=FORGET_EVERY_S):
            self.forget_unused()

    def forget_unused(self) -> None:
        """Unsubscribe from what no session here has any more."""
        for remote, holders in list(self._filters.items()):
            holders -= {one for one in holders if one[1] not in self._broker.filters_of(one[0])}
            if not holders:
                del self._filters[remote]
                self.link.unsubscribe(remote)

    def _wanted(self) -> Iterable[tuple[str, int]]:
        return [(remote, QOS) for remote in self._filters]

    def _arrived(self, message: Message) -> None:
        for topic in self._rules.incoming(message.topic):
            self._broker.publish(topic, message.payload, qos=message.qos)
