"""A small dialect for tests of the endpoint, and certificates for it. It is a real one: it just speaks of nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from flota.protocols.mqtt.dialect import Identity, MqttBroker, MqttClient, Peer
from flota.protocols.mqtt.packets import Connect, ConnectReturn, Publish
from flota.transports.mqtt_client import MqttLink, open_mqtt
from flota.transports.mqtt_server import MqttEndpoint, MqttServerLimits
from flota.transports.mqtt_tls import server_context
from flota.trust.certificates import Key, new_key, pack_certificates, pack_key


@dataclass(frozen=True)
class Name:
    key: str


@dataclass
class Desk:
    """User names are identities, or the common name of a certificate; `desk/NAME/...` is each one's own.

    desk/NAME/ask        answered on desk/NAME/told with the same payload
    desk/NAME/blocks     payload "COUNT,SIZE": so many messages of that size on desk/NAME/data
    desk/NAME/slow       the same, but each waits for `gate` first
    desk/NAME/careful    blocks, one by one, waiting until they are read
    desk/NAME/crash      a bug
    news/...             to everybody who subscribed
    anything else        ends the connection
    """

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    broker: MqttBroker | None = None
    here: list[MqttClient] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    heard: list[Publish] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    def begin(self, broker: MqttBroker) -> None:
        self.broker = broker

    async def admit(self, connect: Connect, peer: Peer) -> Identity | ConnectReturn:
        self.peers.append(peer)
        name = connect.username
        if peer.certificate is not None:
            subject = x509.load_der_x509_certificate(peer.certificate).subject
            name = str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        if connect.password == b"later":
            await self.gate.wait()
        if name is None or connect.password == b"wrong":
            return ConnectReturn.AWS_NOT_AUTHORISED
        return Name(name)

    def connected(self, client: MqttClient) -> None:
        self.here.append(client)

    def may_subscribe(self, client: MqttClient, topic_filter: str) -> bool:
        return topic_filter.startswith((f"desk/{client.identity.key}/", "news"))

    def receive(self, client: MqttClient, publish: Publish) -> Awaitable[None] | None:
        self.heard.append(publish)
        assert self.broker is not None
        own = f"desk/{client.identity.key}/"
        if publish.topic.startswith("news/"):
            self.broker.publish(publish.topic, publish.payload, qos=publish.qos, retain=publish.retain)
        elif publish.topic == own + "ask":
            client.answer(own + "told", publish.payload)
        elif publish.topic == own + "blocks":
            count, size = map(int, publish.payload.split(b","))
            client.answer_all((own + "data").encode(), [bytes(size)] * count)
        elif publish.topic == own + "slow":
            return self._slowly(client, publish)
        elif publish.topic == own + "careful":
            return self._carefully(client, publish)
        elif publish.topic == own + "crash":
            raise ZeroDivisionError("a bug")
        else:
            client.close("not its own topic")
        return None

    async def _slowly(self, client: MqttClient, publish: Publish) -> None:
        await self.gate.wait()
        client.answer(f"desk/{client.identity.key}/told", publish.payload)

    async def _carefully(self, client: MqttClient, publish: Publish) -> None:
        count, size = map(int, publish.payload.split(b","))
        try:
            for _ in range(count):
                client.answer(f"desk/{client.identity.key}/data", bytes(size))
                await client.drain()
        except ConnectionError as error:
            self.errors.append(error)
            raise

    def gone(self, client: MqttClient) -> None:
        self.left.append(client.client_id)


@dataclass
class Served:
    """A running endpoint; `tls` is what clients need to reach the TLS port."""

    desk: Desk
    endpoint: MqttEndpoint
    port: int
    tls_port: int = 0

    async def link(self, name: str = "ann", client_id: str | None = None, **more: object) -> MqttLink:
        connect = Connect(name if client_id is None else client_id, username=name, **more)  # type: ignore[arg-type]
        return await open_mqtt("127.0.0.1", self.port, connect)


def loopback_socket() -> socket.socket:
    listening = socket.create_server(("127.0.0.1", 0), backlog=200)
    listening.setblocking(False)
    return listening


@contextlib.asynccontextmanager
async def serving(
    limits: MqttServerLimits | None = None, *, tls: ssl.SSLContext | None = None, stop_s: float = 5
) -> AsyncIterator[Served]:
    """Serve the desk on free loopback ports, plain and, with a context, TLS."""
    desk = Desk()
    endpoint = MqttEndpoint(desk, limits)
    plain, secure = loopback_socket(), loopback_socket()
    served = Served(desk, endpoint, plain.getsockname()[1], secure.getsockname()[1])
    await endpoint.listen(plain)
    if tls is not None:
        await endpoint.listen(secure, tls=lambda: tls)
    else:
        secure.close()
    try:
        yield served
    finally:
        desk.gate.set()
        await endpoint.stop(stop_s)


# certificates


@dataclass(frozen=True)
class Certified:
    """A key and its certificate, and the files of both."""

    key: Key
    certificate: x509.Certificate
    key_file: Path
    certificate_file: Path

    @property
    def pem(self) -> bytes:
        return pack_certificates(self.certificate)


def certify(
    directory: Path,
    name: str,
    issuer: Certified | None = None,
    *,
    is_authority: bool = False,
    ended: bool = False,
) -> Certified:
    """Make a key and a certificate for `name`, signed by `issuer` or by itself."""
    key, now = new_key(), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now - timedelta(days=1) if ended else now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    certificate = builder.sign(signer, hashes.SHA256())
    slug = f"{name}-{os.urandom(3).hex()}"
    files = (directory / f"{slug}.key", directory / f"{slug}.crt")
    files[0].write_bytes(pack_key(key))
    files[1].write_bytes(pack_certificates(certificate))
    return Certified(key, certificate, *files)


@dataclass(frozen=True)
class Authorities:
    """Two worlds: the server's certificate, and who signs devices."""

    server: Certified
    devices: Certified

    def server_context(self, *, authorities: bytes | None = None) -> ssl.SSLContext:
        wanted = self.devices.pem if authorities is None else authorities
        return server_context(self.server.certificate_file, self.server.key_file, wanted)

    def client_context(self, certified: Certified | None = None, *, alpn: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.server.pem.decode())
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if certified is not None:
            context.load_cert_chain(certified.certificate_file, certified.key_file)
        if alpn is not None:
            context.set_alpn_protocols([alpn])
        return context


def make_authorities(directory: Path) -> Authorities:
    return Authorities(
        certify(directory, "localhost", is_authority=True), certify(directory, "device authority", is_authority=True)
    )
