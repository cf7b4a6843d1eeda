"""The HTTP/2 client of the micro-RDK agent: windows that open as data is taken, and nothing answered meanwhile."""

from __future__ import annotations

import hashlib

import pytest

from flota.protocols.viam import (
    HTTP2_CONNECTION_WINDOW_BYTES,
    HTTP2_STREAM_WINDOW_BYTES,
    Failure,
    parse_download_url,
)
from flota.transports.http import tls_context
from flota.virtual.agents.viam_link import DeviceHttp2, ExchangeFailed, NoConnection, device_tls
from tests.virtual.small_http2 import End, H2Answer, H2Request, small_http2
from tests.virtual.small_server import Answer, small_server

LARGE = hashlib.shake_256(b"image").digest(HTTP2_CONNECTION_WINDOW_BYTES + 1_500_000)


async def open_link(url: str) -> DeviceHttp2:
    return await DeviceHttp2.open(parse_download_url(url), device_tls(tls_context(None)))


async def test_a_body_larger_than_both_windows_arrives_whole_and_never_more_than_a_window_is_on_its_way() -> None:
    async with small_http2(lambda request: H2Answer(body=LARGE)) as server:
        link = await open_link(f"{server.url}/large.bin")
        try:
            head = await link.get()
            assert (head.status, dict(head.headers)["content-length"]) == (200, str(len(LARGE)))
            digest, sizes = hashlib.sha256(), set()
            while (data := await link.next_frame(10)) is not None:
                digest.update(data)
                sizes.add(len(data))
        finally:
            await link.close()
    assert digest.digest() == hashlib.sha256(LARGE).digest()
    assert max(sizes) == 16_384
    assert 16_384 < server.most_in_flight <= HTTP2_STREAM_WINDOW_BYTES


async def test_a_silent_body_is_told_as_such() -> None:

    async with small_http2(lambda request: H2Answer(body=LARGE, stop_after=100, end=End.SILENCE)) as server:
        link = await open_link(f"{server.url}/x")
        await link.get()
        assert await link.next_frame(5) == LARGE[:100]
        with pytest.raises(ExchangeFailed) as caught:
            await link.next_frame(0.02)
        await link.close()
    assert caught.value.failure is Failure.STALLED


async def test_a_peer_that_is_no_http2_server_is_an_error_of_ours() -> None:
    async with small_server(lambda request: Answer(200, b"x")) as server:
        link = await open_link(f"{server.url}/x")
        with pytest.raises(ExchangeFailed, match="could not be sent"):
            await link.get()
        await link.close()


@pytest.mark.parametrize("url", ["http://no-such-host.invalid:80/x", f"http://{'a' * 70}.example:80/x"])
async def test_a_host_that_has_no_address_is_no_connection(url: str) -> None:
    with pytest.raises(NoConnection):
        await open_link(url)


async def test_headers_of_a_hostile_size_are_an_error_of_ours() -> None:
    def handle(request: H2Request) -> H2Answer:
        return H2Answer(200, body=b"x" * 300, headers={f"x-{number}": "y" * 1000 for number in range(30)})

    async with small_http2(handle) as server:
        link = await open_link(f"{server.url}/x")
        with pytest.raises(ExchangeFailed):
            await link.get()
        await link.close()
