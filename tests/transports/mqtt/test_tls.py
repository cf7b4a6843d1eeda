"""TLS of the MQTT endpoint, on both event loops: who passes the handshake, and what the dialect hears of a client."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from flota.errors import InvalidInput
from flota.protocols.mqtt.packets import Connect
from flota.transports.mqtt_client import MqttLink, MqttLinkLost, open_mqtt
from flota.transports.mqtt_server import MqttServerLimits
from flota.transports.mqtt_tls import PIECE_MAX_BYTES, TlsShell, server_context
from tests.transports.mqtt.desk import Authorities, Certified, Served, certify, make_authorities, serving
from tests.transports.mqtt.test_server import until


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> Authorities:
    return make_authorities(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def device(authorities: Authorities, tmp_path_factory: pytest.TempPathFactory) -> Certified:
    return certify(tmp_path_factory.mktemp("device"), "ann", authorities.devices)


async def secure(served: Served, context: ssl.SSLContext, **more: object) -> MqttLink:
    connect = Connect("c", keep_alive=60, **more)  # type: ignore[arg-type]
    return await open_mqtt("127.0.0.1", served.tls_port, connect, tls=context, server_name="localhost")


async def test_a_client_certificate_says_who_it_is(authorities: Authorities, device: Certified) -> None:
    async with serving(tls=authorities.server_context()) as served:
        ann = await secure(served, authorities.client_context(device, alpn="x-amzn-mqtt-ca"), username="?SDK=x")
        await ann.publish("desk/ann/ask", b"hello", 1)
        assert (await ann.receive()).payload == b"hello"
        (peer,) = served.desk.peers
        assert (peer.address, peer.encrypted, peer.alpn) == ("127.0.0.1", True, "x-amzn-mqtt-ca")
        assert peer.certificate == device.certificate.public_bytes(serialization.Encoding.DER)
        await ann.close()


async def test_without_one_the_dialect_decides(authorities: Authorities) -> None:
    async with serving(tls=authorities.server_context()) as served:
        ann = await secure(served, authorities.client_context(alpn="mqtt"), username="ann")
        await ann.publish("desk/ann/ask", b"hello", 1)
        (peer,) = served.desk.peers
        assert (peer.certificate, peer.alpn) == (None, "mqtt")


async def test_a_listener_without_authorities_asks_for_no_certificate(
    authorities: Authorities, device: Certified
) -> None:
    async with serving(tls=authorities.server_context(authorities=b"")) as served:
        await secure(served, authorities.client_context(device), username="ann")
        assert served.desk.peers[0].certificate is None


async def test_foreign_expired_and_other_certificates_fail_the_handshake(
    authorities: Authorities, tmp_path: Path
) -> None:
    stranger = certify(tmp_path, "device authority", is_authority=True)
    wrong = {
        "foreign": certify(tmp_path, "ann", stranger),
        "expired": certify(tmp_path, "ann", authorities.devices, ended=True),
        "its own": certify(tmp_path, "ann"),
        "of the server's authority": certify(tmp_path, "ann", authorities.server),
    }
    async with serving(tls=authorities.server_context()) as served:
        for what, certified in wrong.items():
            with pytest.raises(MqttLinkLost):
                # with TLS 1.3 a client may think that it is connected before the server has looked
                await secure(served, authorities.client_context(certified), username="ann")
            assert not served.desk.peers, what
        assert served.endpoint.counters.failed_handshakes == len(wrong)
        await until(lambda: served.endpoint.connections == 0)


async def test_a_single_certificate_can_be_trusted_by_itself(authorities: Authorities, tmp_path: Path) -> None:
    own = certify(tmp_path, "ann")
    async with serving(tls=authorities.server_context(authorities=own.pem)) as served:
        await secure(served, authorities.client_context(own))
        with pytest.raises(MqttLinkLost):
            await secure(served, authorities.client_context(certify(tmp_path, "bob")))


async def test_tls_1_2_is_the_least(authorities: Authorities, device: Certified) -> None:
    async with serving(tls=authorities.server_context()) as served:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = authorities.client_context(device)
            context.minimum_version = context.maximum_version = version
            ann = await secure(served, context)
            await ann.publish("desk/ann/ask", b"x", 1)
            await ann.close()
    assert authorities.server_context().minimum_version is ssl.TLSVersion.TLSv1_2


async def test_what_is_no_tls_is_closed_and_others_go_on(authorities: Authorities, device: Certified) -> None:
    async with serving(tls=authorities.server_context()) as served:
        ann = await secure(served, authorities.client_context(device))
        for data in (
            b"\x10\x0d\x00\x04MQTT",
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(100),
            b"\x16\x03\x01\xff\xff" + bytes(70),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", served.tls_port)
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        await ann.publish("desk/ann/ask", b"x", 1)
        assert served.endpoint.counters.failed_handshakes == 4


async def test_a_handshake_that_does_not_end_is_cut_off(authorities: Authorities) -> None:
    limits = MqttServerLimits(tls_within_s=0.05, sweep_s=0.01)
    async with serving(limits, tls=authorities.server_context()) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.tls_port)
        writer.write(b"\x16\x03\x01")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await until(lambda: served.endpoint.connections == 0)
        assert served.endpoint.counters.timed_out == 1


async def test_large_answers_come_whole_and_in_order(authorities: Authorities, device: Certified) -> None:
    async with serving(tls=authorities.server_context()) as served:
        ann = await secure(served, authorities.client_context(device))
        await ann.subscribe("desk/ann/data", 1)
        for size in (1, 4096, 16_384, 16_385, 131_072):
            count = min(20, (1 << 20) // size)  # more than a session may hold is dropped
            await ann.publish("desk/ann/blocks", b"%d,%d" % (count, size))
            assert {len((await ann.receive()).payload) for _ in range(count)} == {size}


class Wire(asyncio.Transport):
    """A plain transport whose bytes wait to be handed to the other side."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def take(self) -> bytes:
        sent, self.sent = bytes(self.sent), bytearray()
        return sent


class Heard(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = bytearray()

    def data_received(self, data: bytes) -> None:
        self.data += data


def records(stream: bytes) -> list[int]:
    """Return the sizes of the TLS records in a stream (RFC 8446 5.1)."""
    found, at = [], 0
    while at < len(stream):
        found.append(int.from_bytes(stream[at + 3 : at + 5], "big"))
        at += 5 + found[-1]
    return found


class Pausing(Heard):
    """Reads nothing more after each piece, until it is told to."""

    shell: TlsShell

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.shell.pause_reading()


@pytest.mark.parametrize("pauses", [False, True])
async def test_openssl_is_given_little_at_a_time_because_its_buffers_never_shrink(
    authorities: Authorities, pauses: bool
) -> None:
    heard, ends = Pausing() if pauses else Heard(), list[Exception | None]()
    wires = Wire(), Wire()
    shells = (
        TlsShell(authorities.client_context(), Heard(), on_end=lambda _, e: ends.append(e), server_side=False,
                 server_name="localhost"),
        TlsShell(authorities.server_context(), heard, on_end=lambda _, e: ends.append(e), server_side=True),
    )  # fmt: skip
    if isinstance(heard, Pausing):
        heard.shell = shells[1]
    for shell, wire in zip(shells, wires, strict=True):
        shell.connection_made(wire)
    while len(ends) < 2:
        for wire, other in zip(wires, reversed(shells), strict=True):
            if sent := wire.take():
                other.data_received(sent)
    assert ends == [None, None]
    message = bytes(range(256)) * 512
    shells[0].writelines([message[:100], message[100:]])
    sent = wires[0].take()
    assert max(records(sent)) <= PIECE_MAX_BYTES + 64
    shells[1].data_received(sent[: 64 << 10])
    shells[1].data_received(sent[64 << 10 :])
    while pauses and len(heard.data) < len(message):
        assert shells[1]._incoming.pending <= PIECE_MAX_BYTES
        shells[1].resume_reading()
        await asyncio.sleep(0)
    assert heard.data == message


async def test_connections_that_fail_at_the_client_are_no_harm(authorities: Authorities, device: Certified) -> None:
    """A client that does not trust the server, one that goes in mid-handshake, one that goes without close_notify."""
    async with serving(tls=authorities.server_context()) as served:
        with pytest.raises(MqttLinkLost) as caught:
            await secure(served, ssl.create_default_context())
        assert "certificate" in str(caught.value)
        _, writer = await asyncio.open_connection("127.0.0.1", served.tls_port)
        writer.close()
        ann = await secure(served, authorities.client_context(device))
        ann.abort()
        await until(lambda: served.desk.left == ["c"])
        await until(lambda: served.endpoint.connections == 0)


async def test_stopping_says_good_bye(authorities: Authorities, device: Certified) -> None:
    async with serving(tls=authorities.server_context()) as served:
        context = authorities.client_context(device)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", served.tls_port, ssl=context, server_hostname="localhost"
        )
        writer.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c")
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        assert await served.endpoint.stop(5)
        assert await reader.read() == b"", "not cut off: a close_notify came before the end"
        writer.close()


def test_files_that_cannot_serve_tls_are_refused(authorities: Authorities, tmp_path: Path) -> None:
    server, device = authorities.server, certify(tmp_path, "x")
    with pytest.raises(InvalidInput):
        server_context(server.certificate_file, device.key_file)
    with pytest.raises(InvalidInput):
        server_context(tmp_path / "none", server.key_file)
    for text in (b"no certificate", b"\xff\xfe"):
        with pytest.raises(InvalidInput):
            server_context(server.certificate_file, server.key_file, text)
