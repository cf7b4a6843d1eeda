"""MQTT as a part of the running server: one endpoint, its listeners, the AWS IoT dialect on it, and its counters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from flota.server.mqtt_listeners import MqttListener, allow_descriptors, bind_unless_taken
from flota.transports.mqtt_server import MqttEndpoint, MqttServerLimits

if TYPE_CHECKING:
    from flota.server.context import ServerContext
    from flota.server.listeners import TlsFiles


class MqttService:
    """Started after the database is open, stopped before it closes. Without a listener it does nothing."""

    def __init__(self, context: ServerContext, tls_files: Callable[[], TlsFiles]) -> None:
        from flota.server.api.aws_iot import build_aws_iot

        settings = context.settings
        self._aws_iot = build_aws_iot(context)
        limits = replace(MqttServerLimits(), connections=allow_descriptors())
        self.endpoint = MqttEndpoint(self._aws_iot, limits)
        self.listeners: list[MqttListener] = []
        if settings.mqtt is not None:
            self.listeners.append(MqttListener(self.endpoint, settings.mqtt))
        if settings.mqtts is not None:
            authorities = self._aws_iot.client_authorities
            self.listeners.append(MqttListener(self.endpoint, settings.mqtts, tls_files(), authorities=authorities))
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
        await self._aws_iot.run(stop)

    async def stop(self, grace_s: float) -> bool:
        """Close every connection, what is being answered first; returns whether `grace_s` seconds were enough."""
        for listener in self.listeners:
            listener.close()
        return await self.endpoint.stop(grace_s)
