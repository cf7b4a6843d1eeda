"""The two listeners: what is spoken where, how they stop, how a new certificate comes into use."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from starlette.types import Receive, Scope, Send

from flota.errors import InvalidInput
from flota.server import listeners
from flota.server.listeners import Listener, TlsFiles, bind, watch_certificates
from flota.server.settings import Address
from flota.trust.certificates import parse_key
from tests.server.programs import curl
from tests.server.serving import LOOPBACK, listening, make_tls_files, url_of

HELLO = b"hello"


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"%d" % len(HELLO)), (b"x-scheme", scope["scheme"].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": HELLO})


class Dripping:
    """An application whose answer goes on until the test says so."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.may_end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        self.started.set()
        await self.may_end.wait()
        await send({"type": "http.response.body", "body": b"half"})


@pytest.mark.program
async def test_the_plain_listener_speaks_http_1_0_1_1_and_2_by_prior_knowledge() -> None:
    async with listening(hello) as listener:
        url = url_of(listener, "/")
        for flag, version in (("--http1.0", "1.0"), ("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")):
            answer = await curl(flag, url)
            assert (answer.status, answer.body) == (200, HELLO), version
            assert answer.headers["x-scheme"] == "http"
            assert answer.headers["content-length"] == "5"
            assert answer.version == version or version == "1.0"


@pytest.mark.program
async def test_the_tls_listener_speaks_2_and_1_1_and_takes_tls_1_2(tmp_path: Path) -> None:
    async with listening(hello, make_tls_files(tmp_path)) as listener:
        root = tmp_path / "root.crt"
        for host in (str(listener.address), f"localhost:{listener.address.port}"):
            for flags, version in ((["--http2"], "2"), (["--http1.1"], "1.1"), (["--tls-max", "1.2"], "2")):
                answer = await curl(*flags, "--cacert", root, f"https://{host}/")
                assert (answer.status, answer.version, answer.body) == (200, version, HELLO)
                assert answer.headers["x-scheme"] == "https"
        assert (await curl(f"https://{listener.address}/")).exit_status != 0, "curl trusts it without our root"


@pytest.mark.parametrize(("offered", "chosen"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), ([], None)])
async def test_alpn_offers_both_and_a_client_without_alpn_is_served_http_1_1(
    tmp_path: Path, offered: list[str], chosen: str | None
) -> None:
    async with listening(hello, make_tls_files(tmp_path)) as listener:
        context = ssl.create_default_context(cafile=str(tmp_path / "root.crt"))
        if offered:
            context.set_alpn_protocols(offered)
        reader, writer = await asyncio.open_connection(*astuple(listener.address), ssl=context)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
        if chosen != "h2":
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_port_0_is_a_free_port_and_a_taken_one_is_refused_with_a_reason() -> None:
    async with listening(hello) as listener:
        assert listener.address.port != 0
        second = Listener(hello, listener.address)
        with pytest.raises(InvalidInput, match="cannot listen") as caught:
            await second.start()
        assert "in use" in str(caught.value.found)


async def test_nothing_is_logged_while_all_is_well(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    async with listening(hello) as listener:
        await request(listener.address)
    assert [record.getMessage() for record in caplog.records if "granian" in record.name] == []
    assert capfd.readouterr() == ("", "")


async def test_a_running_response_finishes_before_the_listener_stops() -> None:
    app = Dripping()
    async with listening(app) as listener:
        answering = asyncio.create_task(request(listener.address))
        await app.started.wait()
        address = listener.address
        stopping = asyncio.create_task(listener.stop(10))
        await refused(address)
        assert not stopping.done()
        app.may_end.set()
        assert (await answering).endswith(b"halfhalf")
        assert await stopping


async def test_stopping_waits_no_longer_than_the_grace_time() -> None:
    app = Dripping()
    async with listening(app) as listener:
        answering = asyncio.create_task(request(listener.address))
        await app.started.wait()
        assert not await listener.stop(0.2)
        app.may_end.set()
        await answering


async def test_a_changed_certificate_is_taken_into_use_while_open_responses_go_on(tmp_path: Path) -> None:
    app = Dripping()
    files = make_tls_files(tmp_path)
    async with listening(app, files) as listener:
        before = await certificate_at(listener.address)
        context = ssl.create_default_context(cafile=str(tmp_path / "root.crt"))
        answering = asyncio.create_task(request(listener.address, context))
        await app.started.wait()
        assert not await listener.reload_certificate(), "nothing changed yet"
        make_tls_files(tmp_path, names=("updates.example.net",))
        assert await listener.reload_certificate()
        while await certificate_at(listener.address) == before:  # noqa: ASYNC110 - another thread is at work
            await asyncio.sleep(0.01)
        app.may_end.set()
        assert (await answering).endswith(b"halfhalf")


async def test_unusable_new_files_leave_the_old_certificate_in_use(tmp_path: Path) -> None:
    files = make_tls_files(tmp_path)
    async with listening(hello, files) as listener:
        before = await certificate_at(listener.address)
        files.certificate.write_bytes(files.certificate.read_bytes()[:100])
        with pytest.raises(InvalidInput, match="cannot serve TLS"):
            await listener.reload_certificate()
        assert await certificate_at(listener.address) == before


async def test_the_watch_reloads_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "CERTIFICATE_LOOK_S", 0.02)
    files = make_tls_files(tmp_path)
    async with listening(hello, files) as listener:
        stop = asyncio.Event()
        watching = asyncio.create_task(watch_certificates([listener], stop))
        before = await certificate_at(listener.address)
        make_tls_files(tmp_path, now=datetime.now(UTC) + timedelta(days=390))
        while await certificate_at(listener.address) == before:  # noqa: ASYNC110 - another thread is at work
            await asyncio.sleep(0.01)
        stop.set()
        await watching


async def test_a_key_that_the_listener_cannot_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    files = make_tls_files(tmp_path)
    key = parse_key(files.key.read_bytes())
    formats = serialization.PrivateFormat
    old_form = tmp_path / "ec.key"
    old_form.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, formats.TraditionalOpenSSL, serialization.NoEncryption())
    )
    with pytest.raises(InvalidInput, match="openssl pkcs8"):
        TlsFiles(files.certificate, old_form).check()
    secret = tmp_path / "secret.key"
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, formats.PKCS8, serialization.BestAvailableEncryption(b"x"))
    )
    with pytest.raises(InvalidInput, match="unencrypted"):
        TlsFiles(files.certificate, secret).check()
    other = make_tls_files(tmp_path / "other")
    with pytest.raises(InvalidInput, match="cannot serve TLS"):
        TlsFiles(files.certificate, other.key).check()
    with pytest.raises(InvalidInput, match="cannot be read"):
        TlsFiles(files.certificate, tmp_path / "absent").fingerprint()


@pytest.mark.program
async def test_a_header_bomb_over_http_2_is_refused_and_others_are_served() -> None:
    async with listening(hello) as listener:
        url = url_of(listener, "/")
        bomb = [part for n in range(40) for part in ("-H", f"x-{n}: {'a' * 1000}")]
        answer = await curl("--http2-prior-knowledge", *bomb, url)
        assert answer.status in (0, 431)
        assert (await curl("--http2-prior-knowledge", url)).status == 200


async def test_connections_inherit_the_options_that_bound_dead_and_stalled_peers() -> None:
    with bind(LOOPBACK, plain=True) as listening_socket:
        address = listening_socket.getsockname()
        loop = asyncio.get_running_loop()
        accepting = asyncio.create_task(loop.sock_accept(listening_socket))
        with socket.create_connection(address):
            accepted, _ = await accepting
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                user_timeout_ms = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert user_timeout_ms == listeners.UNACKNOWLEDGED_MS >= 120_000
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_an_ipv6_address_works_where_there_is_ipv6() -> None:
    listener = Listener(hello, Address("::1", 0))
    try:
        await listener.start()
    except InvalidInput as error:
        pytest.skip(f"not run: no IPv6 here ({error.found})")
    assert str(listener.address).startswith("[::1]:")
    assert (await request(listener.address)).endswith(HELLO)
    assert await listener.stop(5)


async def test_a_crashing_application_gives_500_and_harms_nobody_else() -> None:
    async def crashing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/crash":
            raise RuntimeError("bug")
        await hello(scope, receive, send)

    async with listening(crashing) as listener:
        assert (await request(listener.address, path="/crash")).startswith(b"HTTP/1.1 500 ")
        assert (await request(listener.address)).endswith(HELLO)


def astuple(address: Address) -> tuple[str, int]:
    return address.host, address.port


async def request(address: Address, context: ssl.SSLContext | None = None, path: str = "/") -> bytes:
    reader, writer = await asyncio.open_connection(*astuple(address), ssl=context)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    try:
        return await reader.read()
    finally:
        writer.close()


async def refused(address: Address) -> None:
    """Return once nobody accepts at the address any more."""
    while True:
        try:
            _, writer = await asyncio.open_connection(*astuple(address))
        except OSError:
            return
        writer.close()
        await asyncio.sleep(0.01)


async def certificate_at(address: Address) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    while True:
        try:
            _, writer = await asyncio.open_connection(*astuple(address), ssl=context)
        except (ConnectionError, ssl.SSLError):  # accepted by the one that leaves
            continue
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        assert isinstance(certificate, bytes)
        return certificate
