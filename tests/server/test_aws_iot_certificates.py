"""Things that come in by certificate over TLS: who they are, what a claim may, what happens when one is revoked."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flota.errors import PeerError
from flota.fleet.devices import DeviceState, UnknownDevices
from flota.fleet.things import CertificateStatus
from flota.protocols.mqtt.packets import Connect, ConnectReturn
from flota.server.listeners import bind
from flota.server.things import keep_certificate
from flota.transports.mqtt_client import ConnectRefused, MqttLink, MqttLinkLost, open_mqtt
from flota.transports.mqtt_tls import server_context
from flota.trust.thing_certificates import make_request, new_thing_key, pack_thing_key
from tests.server.aws_iot_bench import Bench, Thing, a_bench, job_id
from tests.server.serving import LOOPBACK, make_tls_files

METRICS = "?SDK=Pubsub&Version=1.0&Platform=M487&OTALib=OTAv3.4.1"


class TlsSite:
    """A bench with a TLS listener beside the plain one."""

    def __init__(self, bench: Bench, directory: Path) -> None:
        self.bench = bench
        self.directory = directory
        self.files = make_tls_files(directory / "tls")
        self.port = 0

    async def start(self) -> None:
        def context() -> ssl.SSLContext:
            return server_context(self.files.certificate, self.files.key, self.bench.aws_iot.client_authorities())

        listening = bind(LOOPBACK, plain=False)
        self.port = listening.getsockname()[1]
        await self.bench.endpoint.listen(listening, tls=context)

    async def issue(self, device: str) -> ssl.SSLContext:
        """Return the TLS settings of a device that has a certificate of its own now."""
        key = new_thing_key("p256")
        fleet = self.bench.fleet
        new = await fleet.context.things.signed(device, make_request(key, device))
        async with fleet.database.transaction() as tx:
            self.fingerprint = (await keep_certificate(tx, fleet.scope, new, now=fleet.clock())).fingerprint
        return self.client(new.pem, pack_thing_key(key))

    def client(self, certificate: str, key: str | bytes) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.directory / "tls" / "root.crt"))
        pem, pem_key = self.directory / "client.crt", self.directory / "client.key"
        pem.write_text(certificate)
        pem_key.write_bytes(key if isinstance(key, bytes) else key.encode())
        context.load_cert_chain(pem, pem_key)
        return context

    async def connect(self, tls: ssl.SSLContext, *, username: str | None = METRICS, client_id: str = "x") -> MqttLink:
        link = await open_mqtt(
            "127.0.0.1", self.port, Connect(client_id, True, 60, username), tls=tls, server_name="localhost"
        )
        self.bench.links.append(link)
        return link


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[TlsSite]:
    async with a_bench(tmp_path) as bench:
        made = TlsSite(bench, tmp_path)
        await made.start()
        yield made


async def test_a_certificate_says_which_thing_it_is_whatever_client_id_and_user_name_say(site: TlsSite) -> None:
    pump = await site.bench.fleet.add_device("pump-1", token=None)
    await site.bench.roll_out(pump)
    tls = await site.issue("pump-1")
    for username in (METRICS, None, "pump-2"):
        thing = Thing("pump-1", await site.connect(tls, username=username, client_id="pump-2"))
        assert (await thing.accepted("$next/get"))["execution"]["jobId"] == job_id(site.bench)
        with pytest.raises(PeerError):
            await thing.link.subscribe("$aws/things/pump-2/jobs/#", 1)


async def test_over_tls_a_token_does_too(site: TlsSite) -> None:
    await site.bench.fleet.add_device("pump-1", token="a-device-token")
    context = ssl.create_default_context(cafile=str(site.directory / "tls" / "root.crt"))
    connect = Connect("c", True, 60, "pump-1", b"a-device-token")
    link = await open_mqtt("127.0.0.1", site.port, connect, tls=context, server_name="localhost")
    site.bench.links.append(link)
    await Thing("pump-1", link).accepted("get")
    with pytest.raises(ConnectRefused) as caught:
        await open_mqtt("127.0.0.1", site.port, Connect("c", True, 60, METRICS), tls=context, server_name="localhost")
    assert caught.value.code_returned == ConnectReturn.NOT_AUTHORISED


async def test_a_revoked_certificate_ends_its_connections_and_lets_nobody_in(site: TlsSite) -> None:
    await site.bench.fleet.add_device("pump-1", token="a-device-token")
    tls = await site.issue("pump-1")
    link = await site.connect(tls)
    by_token = await site.bench.connect("pump-1")
    async with site.bench.fleet.database.transaction() as tx:
        await tx.set_certificate_status(
            site.bench.fleet.scope, site.fingerprint, CertificateStatus.REVOKED, now=site.bench.fleet.clock()
        )
    await site.bench.settle()
    with pytest.raises(MqttLinkLost):
        await link.receive()
    with pytest.raises(ConnectRefused):
        await site.connect(tls)
    await by_token.accepted("get")


async def test_a_refused_devices_certificate_lets_nobody_in(site: TlsSite) -> None:
    await site.bench.fleet.add_device("pump-1", state=DeviceState.REFUSED)
    with pytest.raises(ConnectRefused) as caught:
        await site.connect(await site.issue("pump-1"))
    assert caught.value.code_returned == ConnectReturn.NOT_AUTHORISED


async def test_a_strangers_certificate_ends_the_handshake(
    site: TlsSite, tmp_path_factory: pytest.TempPathFactory
) -> None:
    await site.bench.fleet.add_device("pump-1")
    with_other = tmp_path_factory.mktemp("other")
    async with a_bench(with_other) as other:
        key = new_thing_key("p256")
        made = await other.fleet.context.things.signed("pump-1", make_request(key, "pump-1"))
    with pytest.raises(MqttLinkLost):
        await (await site.connect(site.client(made.pem, pack_thing_key(key)))).receive()


async def test_a_claim_gets_a_certificate_and_nothing_else(site: TlsSite) -> None:
    fleet = site.bench.fleet
    async with fleet.database.transaction() as tx:
        await tx.add_template(
            fleet.scope,
            "pumps",
            "pump",
            thing_name="pump-{SerialNumber}",
            unknown_devices=UnknownDevices.ACCEPT,
            now=fleet.clock(),
        )
    key = new_thing_key("p256")
    claim = await fleet.context.things.issue_claim(fleet.scope, "pumps", make_request(key, "claim"))
    link = await site.connect(site.client(claim.pem, pack_thing_key(key)))
    for refused in ("$aws/things/pump-7/jobs/#", "$aws/provisioning-templates/others/provision/json/accepted", "#"):
        with pytest.raises(PeerError):
            await link.subscribe(refused, 1)
    await link.subscribe("$aws/certificates/create-from-csr/json/accepted", 1)
    await link.subscribe("$aws/provisioning-templates/pumps/provision/json/accepted", 1)
    claimed = Thing("-", link)
    own = new_thing_key("p256")
    request = {"certificateSigningRequest": make_request(own, "pump-7")}
    made = await _asked(claimed, "$aws/certificates/create-from-csr/json", request)
    ownership = {"certificateOwnershipToken": made["certificateOwnershipToken"], "parameters": {"SerialNumber": "7"}}
    provisioned = await _asked(claimed, "$aws/provisioning-templates/pumps/provision/json", ownership)
    assert provisioned["thingName"] == "pump-7"
    thing = Thing("pump-7", await site.connect(site.client(made["certificatePem"], pack_thing_key(own))))
    await thing.accepted("get")
    await link.publish("$aws/things/pump-7/jobs/get", b"{}", 0)
    with pytest.raises(MqttLinkLost):
        await link.receive()


async def _asked(thing: Thing, topic: str, members: object) -> dict[str, str]:
    await thing.link.publish(topic, json.dumps(members).encode(), 1)
    message = await thing.next()
    assert message.topic == f"{topic}/accepted", message.payload
    answer: dict[str, str] = json.loads(message.payload)
    return answer
