"""Several dialects on one MQTT endpoint: the CONNECT says which one a client speaks. Implements `MqttDialect`.

Source: docs/reference/mqtt.md, "The endpoint".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from flota.server.api.blynk.dialect import BlynkDialect, BlynkIdentity

if TYPE_CHECKING:
    from flota.protocols.mqtt.dialect import Identity, MqttBroker, MqttClient, MqttDialect, Peer
    from flota.protocols.mqtt.packets import Connect, ConnectReturn, Publish
    from flota.server.api.aws_iot import AwsIot


class MqttDialects:
    """AWS IoT's things, and Blynk's devices: those whose user name is `device` and that show no certificate."""

    def __init__(self, aws_iot: AwsIot, blynk: BlynkDialect) -> None:
        self._aws_iot = aws_iot
        self._blynk = blynk

    def begin(self, broker: MqttBroker) -> None:
        """Hand the endpoint's handle on."""
        self._aws_iot.begin(broker)
        self._blynk.begin(broker)

    async def admit(self, connect: Connect, peer: Peer) -> Identity | ConnectReturn:
        """Ask the dialect that the client speaks."""
        if self._blynk.is_for(connect, peer):
            return await self._blynk.admit(connect, peer)
        return await self._aws_iot.admit(connect, peer)

    def connected(self, client: MqttClient) -> None:
        """Tell the client's dialect."""
        self._dialect_of(client).connected(client)

    def may_subscribe(self, client: MqttClient, topic_filter: str) -> bool:
        """Ask the client's dialect."""
        return self._dialect_of(client).may_subscribe(client, topic_filter)

    def receive(self, client: MqttClient, publish: Publish) -> Awaitable[None] | None:
        """Hand a message to the client's dialect."""
        return self._dialect_of(client).receive(client, publish)

    def gone(self, client: MqttClient) -> None:
        """Tell the client's dialect."""
        self._dialect_of(client).gone(client)

    async def run(self, stop: asyncio.Event) -> None:
        """Do both dialects' background work until `stop` is set."""
        await asyncio.gather(self._aws_iot.run(stop), self._blynk.run(stop))

    def _dialect_of(self, client: MqttClient) -> MqttDialect:
        return self._blynk if isinstance(client.identity, BlynkIdentity) else self._aws_iot
