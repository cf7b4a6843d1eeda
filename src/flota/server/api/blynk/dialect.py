"""The MQTT dialect of Blynk devices: user name `device`, the device's token as password.

A device says on `info/mcu` what it runs and is told of a file on `downlink/ota/json`: then, or whenever there is one
for it later. Every device has the same topics, so nothing is ever published: all goes to the one connection. What a
device publishes besides (data streams, events) is dropped; a topic that is not a device's to publish to ends the
connection.
Source: docs/reference/blynk.md, "Cloud link".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Final, cast

import structlog

from flota.errors import FlotaError
from flota.fleet.devices import DeviceState
from flota.fleet.scope import Scope
from flota.protocols.blynk.cloud import (
    DOWNLINK_PREFIX,
    INFO_TOPIC,
    OTA_TOPIC,
    PING_TOPIC,
    REBOOT_TOPIC,
    REDIRECT_TOPIC,
    USER_NAME,
    pack_announcement,
    pack_redirect,
    parse_info,
)
from flota.protocols.mqtt.packets import Connect, ConnectReturn, Publish
from flota.server.auth import digest_of_secret
from flota.server.blynk_updates import BLYNK_ROUTE, BlynkUpdates, Report, firmware_of_info
from flota.server.device_admission import device_if_shown, token_shown
from flota.server.device_rates import DeviceRates
from flota.server.updates import device_scope, notice_address, sight
from flota.server.waiting import wait_for_any

if TYPE_CHECKING:
    from flota.fleet.changes import Changes
    from flota.fleet.devices import Device
    from flota.fleet.storage import KnownDevice
    from flota.protocols.mqtt.dialect import AskedClient, MqttBroker, MqttClient, Peer
    from flota.server.context import ServerContext
    from flota.server.settings import Address

PASSWORD_MAX_LEN: Final = 256
"""Bytes of a password that are looked at; device tokens have at most 128."""

RESERVED: Final = "$"
LOOK_EVERY_S: Final = 1.0
"""How late it may be noticed that by time alone a device may be told something."""

SHARED_LOOK_EVERY: Final = timedelta(seconds=5)
"""How often every device is looked at where other processes write the database too."""

READ_AT_ONCE: Final = 500
"""Devices in one transaction of such a look."""

RETRY_PAUSE_S: Final = 1.0

REPORT_BURST: Final = 10
REPORTS_PER_S: Final = 0.2
"""A device reports once a connection; one that does so all the time is not listened to."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BlynkIdentity:
    """A device, as it was when it connected; `scope` is its own. It showed a token with this hex SHA-256."""

    scope: Scope
    device: Device
    token_sha256: str

    @property
    def key(self) -> Hashable:
        """Its tenant and its number."""
        return ("blynk", self.scope.tenant_id, self.device.id)


@dataclass(slots=True, eq=False)
class _Connection:
    """A connected device, and what it said last."""

    client: AskedClient
    identity: BlynkIdentity
    report: Report | None = None
    look_at: datetime | None = None
    deciding: asyncio.Lock = field(default_factory=asyncio.Lock)

    # what an operator can tell it: implements `DeviceLine`

    def reboot(self) -> None:
        """Send that it is to restart."""
        self.client.answer(REBOOT_TOPIC, b"", qos=0)

    def redirect(self, address: Address) -> None:
        """Send where it is to connect."""
        self.client.answer(REDIRECT_TOPIC, pack_redirect(address.host, address.port), qos=0)

    async def ping(self, timeout_s: float) -> bool:
        """Return whether it acknowledged: MQTT clients do so by themselves."""
        return await self.client.ask(PING_TOPIC, b"", timeout_s=timeout_s)


class BlynkDialect:
    """The dialect, for one server process: implements `MqttDialect` for clients whose user name is `device`."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._updates = BlynkUpdates(context)
        self._connections: dict[MqttClient, _Connection] = {}
        self._latest: dict[int, _Connection] = {}
        """By device: who connected last is who is told."""
        self._changed: dict[int, None] = {}
        self._doubtful: set[int] = set()
        self._woken = asyncio.Event()
        self._rates = DeviceRates(refill_per_s=REPORTS_PER_S, burst=REPORT_BURST)
        self.dropped = 0
        """Messages that are nobody's business here."""
        context.storage.on_change(self.note)
        context.device_lines.offer(self._latest.get)

    # --- connections --------------------------------------------------------------------------------------------------

    def begin(self, broker: MqttBroker) -> None:
        """Take the endpoint's handle: nothing is published through it."""

    @staticmethod
    def is_for(connect: Connect, peer: Peer) -> bool:
        """Whether a client speaks this dialect: by its user name, unless it shows a certificate."""
        return connect.username == USER_NAME and peer.certificate is None

    async def admit(self, connect: Connect, peer: Peer) -> BlynkIdentity | ConnectReturn:
        """Return the device whose token this is, or the return code of a refusal.

        A token that two devices have names neither: it is refused for both.
        """
        password = connect.password
        if password is None or len(password) > PASSWORD_MAX_LEN:
            return ConnectReturn.BAD_CREDENTIALS  # what the vendor's clients take for a wrong token, in every case
        try:
            secret = password.decode("utf-8")
        except UnicodeDecodeError:
            return ConnectReturn.BAD_CREDENTIALS
        digest = digest_of_secret(secret)
        async with self._context.storage.reading() as transaction:
            holders = await transaction.token_holders(digest)
        if len(holders) != 1:
            if holders:
                _log.warning("blynk.token_of_several", devices=[one.known.device.name for one in holders])
            return ConnectReturn.BAD_CREDENTIALS
        holder = holders[0]
        scope = Scope(holder.tenant_id, BLYNK_ROUTE)
        device = await device_if_shown(self._context, scope, holder.known, secret)
        if device is None or device.state is DeviceState.REFUSED:
            return ConnectReturn.BAD_CREDENTIALS
        if connect.will is not None and not _may_publish(connect.will.topic):
            return ConnectReturn.NOT_AUTHORISED
        identity = BlynkIdentity(device_scope(scope, device), device, digest)
        await notice_address(self._context, identity.scope, device, peer.address)
        sight(self._context, identity.scope, device, route=BLYNK_ROUTE, address=peer.address)
        return identity

    def connected(self, client: MqttClient) -> None:
        """Follow the device as long as this connection lasts."""
        connection = _Connection(cast("AskedClient", client), cast("BlynkIdentity", client.identity))
        self._connections[client] = connection
        self._latest[connection.identity.device.id] = connection

    def gone(self, client: MqttClient) -> None:
        """Follow it no longer."""
        connection = self._connections.pop(client, None)
        if connection is not None and self._latest.get(connection.identity.device.id) is connection:
            del self._latest[connection.identity.device.id]

    def may_subscribe(self, client: MqttClient, topic_filter: str) -> bool:
        """Whether the filter covers nothing but what goes down to devices: that comes unasked anyhow."""
        return topic_filter.startswith(DOWNLINK_PREFIX)

    # --- messages -----------------------------------------------------------------------------------------------------

    def receive(self, client: MqttClient, publish: Publish) -> Awaitable[None] | None:
        """Work off what a device publishes."""
        connection = self._connections.get(client)
        if connection is None or not client.is_open:
            return None  # its will
        if not _may_publish(publish.topic):
            client.close("a publish to a reserved topic")
            return None
        if publish.topic != INFO_TOPIC or publish.retain:
            self.dropped += 1
            return None
        return self._hear(connection, publish.payload)

    async def _hear(self, connection: _Connection, payload: bytes) -> None:
        device = connection.identity.device
        try:
            self._rates.take(str(device.id), now=self._context.now())
            info = parse_info(payload)
        except FlotaError as error:
            _log.warning("blynk.report_refused", device=device.name, error=str(error))
            return
        report = Report(firmware_of_info(info), self._context.now(), info.receive_buffer)
        connection.report = report
        scope = connection.identity.scope
        self._updates.note_seen(scope, device, report, connection.client.peer.address)
        try:
            await self._updates.note_rollback(scope, device, report)
            await self._tell(connection)
        except FlotaError as error:
            _log.warning("blynk.report_not_judged", device=device.name, error=str(error))
            self._mark(device.id)

    async def _tell(self, connection: _Connection) -> None:
        """Decide on the device's latest report, and tell it what there is to tell."""
        async with connection.deciding:
            report, identity = connection.report, connection.identity
            if report is None or not connection.client.is_open:
                return
            decision = await self._updates.decide(identity.scope, identity.device, report)
            connection.look_at = decision.look_at
            if decision.announcement is not None:
                connection.client.answer(OTA_TOPIC, pack_announcement(decision.announcement), qos=0)

    # --- what others change -------------------------------------------------------------------------------------------

    def note(self, changes: Changes) -> None:
        """Mark whom a commit concerns. Called in the loop's thread."""
        if changes.everything:
            concerned = list(self._latest)
        elif changes.tenants:
            concerned = [key for key, one in self._latest.items() if one.identity.scope.tenant_id in changes.tenants]
        else:
            concerned = []
        self._doubtful.update(concerned, changes.identity & self._latest.keys())
        for device_id in (*concerned, *((changes.work | changes.identity) & self._latest.keys())):
            self._mark(device_id)

    async def run(self, stop: asyncio.Event) -> None:
        """Tell devices what has changed, until `stop` is set."""
        look_again_at, looks_at_all = self._context.now(), False
        while not stop.is_set():
            await wait_for_any(self._woken, stop, timeout_s=LOOK_EVERY_S)
            self._woken.clear()
            self.mark_due()
            now = self._context.now()
            if self._context.settings.is_database_shared and now >= look_again_at:
                look_again_at = now + SHARED_LOOK_EVERY
                looks_at_all = True
            try:
                if looks_at_all:
                    await self.look_at_all()
                    looks_at_all = False
                await self.tell_changes()
            except Exception as error:  # noqa: BLE001 - whatever the driver raises: devices must be told some time
                _log.warning("blynk.not_told", waiting=len(self._changed), error=repr(error))
                await wait_for_any(stop, timeout_s=RETRY_PAUSE_S)

    async def look_at_all(self) -> None:
        """Mark every device for which there is something to do, and close what would not be let in any more."""
        followed = sorted(self._latest.values(), key=lambda one: one.identity.scope.tenant_id)
        for _, group in groupby(followed, key=lambda one: one.identity.scope.tenant_id):
            of_tenant = list(group)
            for start in range(0, len(of_tenant), READ_AT_ONCE):
                await self._look_at(of_tenant[start : start + READ_AT_ONCE])

    async def _look_at(self, connections: Sequence[_Connection]) -> None:
        scope = connections[0].identity.scope
        devices = [one.identity.device for one in connections]
        async with self._context.storage.reading() as transaction:
            known = await transaction.known_devices(scope, [device.name for device in devices])
            waiting = await transaction.next_executions(scope, [device.id for device in devices])
        for connection in connections:
            device = connection.identity.device
            if not self._is_good(connection.identity, known.get(device.name)):
                self._close_all(device.id)
            elif device.id in waiting:
                self._changed[device.id] = None

    def mark_due(self) -> None:
        """Mark devices on which by time alone there may be something to decide."""
        now = self._context.now()
        for device_id, connection in self._latest.items():
            if connection.look_at is not None and now >= connection.look_at:
                connection.look_at = None
                self._changed[device_id] = None

    async def tell_changes(self) -> None:
        """Decide again on the devices that are marked. What fails stays marked."""
        while self._changed:
            device_id = next(iter(self._changed))
            del self._changed[device_id]
            connection = self._latest.get(device_id)
            if connection is None:
                continue
            try:
                if device_id in self._doubtful and not await self._is_still_good(connection.identity):
                    self._close_all(device_id)
                    continue
                self._doubtful.discard(device_id)
                await self._tell(connection)
            except BaseException:
                self._changed[device_id] = None
                raise

    async def _is_still_good(self, identity: BlynkIdentity) -> bool:
        async with self._context.storage.reading() as transaction:
            known = await transaction.known_devices(identity.scope, [identity.device.name])
        return self._is_good(identity, known.get(identity.device.name))

    def _is_good(self, identity: BlynkIdentity, known: KnownDevice | None) -> bool:
        if known is None or known.device.id != identity.device.id or known.device.state is DeviceState.REFUSED:
            return False
        return token_shown(known.credentials, identity.token_sha256, now=self._context.now()) is not None

    def _close_all(self, device_id: int) -> None:
        self._doubtful.discard(device_id)
        for connection in list(self._connections.values()):
            if connection.identity.device.id == device_id:
                connection.client.close("its credentials are good no more")

    def _mark(self, device_id: int) -> None:
        self._changed[device_id] = None
        self._woken.set()


def _may_publish(topic: str) -> bool:
    """Whether a device may publish there: not to reserved topics, and not what goes down to devices."""
    return not topic.startswith((RESERVED, DOWNLINK_PREFIX))
