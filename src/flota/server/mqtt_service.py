"""MQTT as a part of the running server: our endpoint with its listeners, or a client of another broker."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from flota.server.mqtt_listeners import MqttListener, allow_descriptors, bind_unless_taken
from flota.transports.mqtt_server import MqttEndpoint, MqttServerLimits

if TYPE_CHECKING:
    from flota.protocols.mqtt.broker_url import BrokerUrl
    from flota.server.context import ServerContext
    from flota.server.listeners import TlsFiles
    from flota.server.mqtt_bridge import MqttBridge


class MqttService:
    """One endpoint, its listeners, the dialects on it (AWS IoT, Blynk), the bridge, and its counters.

    Started after the database is open, stopped before it closes. Without a listener it does nothing.
    """

    def __init__(self, context: ServerContext, tls_files: Callable[[], TlsFiles]) -> None:
        from flota.server.api.aws_iot import build_aws_iot
        from flota.server.api.blynk import BlynkDialect
        from flota.server.mqtt_dialects import MqttDialects

        settings = context.settings
        self._aws_iot = build_aws_iot(context)
        self._dialects = MqttDialects(self._aws_iot, BlynkDialect(context))
        limits = replace(MqttServerLimits(), connections=allow_descriptors())
        self.endpoint = MqttEndpoint(self._dialects, limits)
        self.listeners: list[MqttListener] = []
        if settings.mqtt is not None:
            self.listeners.append(MqttListener(self.endpoint, settings.mqtt))
        if settings.mqtts is not None:
            authorities = self._aws_iot.client_authorities
            self.listeners.append(MqttListener(self.endpoint, settings.mqtts, tls_files(), authorities=authorities))
        self._bridge: MqttBridge | None = None
        if settings.mqtt_bridge is not None:
            self._bridge = _make_bridge(context, settings.mqtt_bridge, self.endpoint)
            self._aws_iot.other_topics = self._bridge
        self._assumed = settings.assumed
        context.metrics.watch_mqtt(self.endpoint)

    async def start(self) -> None:
        """Listen. Raises `InvalidInput` for an address that somebody named and that cannot be had."""
        await self._aws_iot.prepare()
        self.listeners = [
            listener
            for listener in self.listeners
            if listener.scheme not in self._assumed or bind_unless_taken(listener)
        ]
        await self._aws_iot.prepare()
        for listener in self.listeners:
            await listener.start()

    async def run(self, stop: asyncio.Event) -> None:
        """Do the dialect's background work until `stop` is set."""
        if self._bridge is None:
            await self._dialects.run(stop)
        else:
            await asyncio.gather(self._dialects.run(stop), self._bridge.run(stop))

    async def stop(self, grace_s: float) -> bool:
        """Close every connection, what is being answered first; returns whether `grace_s` seconds were enough."""
        for listener in self.listeners:
            listener.close()
        return await self.endpoint.stop(grace_s)


class MqttBrokerService:
    """Broker mode: no listener of our own, one client of another broker. Has the same methods as `MqttService`."""

    def __init__(self, context: ServerContext, url: BrokerUrl) -> None:
        from flota.server.api.aws_iot import build_aws_iot
        from flota.server.mqtt_responder import MqttResponder

        self._aws_iot = build_aws_iot(context)
        self._responder = MqttResponder(context, url, self._aws_iot)
        self.listeners: list[MqttListener] = []

    async def start(self) -> None:
        """Read what has to be known before the first request."""
        await self._aws_iot.prepare()

    async def run(self, stop: asyncio.Event) -> None:
        """Answer requests until `stop` is set. Whether the broker is there or not: it is tried again and again."""
        await self._responder.run(stop)

    async def stop(self, grace_s: float) -> bool:
        """Do nothing more: `run` has said good-bye to the broker."""
        return True


def _make_bridge(context: ServerContext, url: BrokerUrl, endpoint: MqttEndpoint) -> MqttBridge:
    from flota.protocols.mqtt.bridge_rules import DEFAULT_RULES, BridgeRules
    from flota.server.mqtt_bridge import MqttBridge

    rules = BridgeRules(context.settings.mqtt_bridge_rules or DEFAULT_RULES)
    return MqttBridge(url, rules, endpoint, client_id=f"flota-bridge-{secrets.token_hex(4)}")
