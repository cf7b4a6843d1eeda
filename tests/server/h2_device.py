"""An HTTP/2 client that downloads as a micro-RDK does: one connection, small frames, real windows, and silence.

Written on `h2` and a plain socket stream, so that nothing reads or answers a ping while the device erases.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import h2.settings

from flota.protocols.viam import (
    CHUNK_TIMEOUT_S,
    HTTP2_CONNECTION_WINDOW_BYTES,
    HTTP2_FRAME_MAX_BYTES,
    HTTP2_HEADER_LIST_MAX_BYTES,
    HTTP2_STREAM_WINDOW_BYTES,
)

RECEIVE_BYTES = 16 * 1024
DEFAULT_WINDOW_BYTES = 65_535
"""RFC 9113 6.9.2."""


@dataclass
class Download:
    """What came. `frames` are the sizes of the DATA frames, in order."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    frames: list[int] = field(default_factory=list)
    ended: bool = False
    alpn: str | None = None


async def download(
    url: str, *, silence_s: float = 0, tls: ssl.SSLContext | None = None, stop_after: int | None = None
) -> Download:
    """Return what a device gets that is silent for `silence_s` seconds after the answer's head.

    With `stop_after` it closes the connection in the middle, after so many bytes.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port, ssl=tls, limit=RECEIVE_BYTES, server_hostname=parts.hostname if tls else None
    )
    found = Download()
    if tls is not None:
        found.alpn = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.local_settings = h2.settings.Settings(
        client=True,
        initial_values={
            h2.settings.SettingCodes.ENABLE_PUSH: 0,
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: HTTP2_STREAM_WINDOW_BYTES,
            h2.settings.SettingCodes.MAX_FRAME_SIZE: HTTP2_FRAME_MAX_BYTES,
            h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: HTTP2_HEADER_LIST_MAX_BYTES,
        },
    )
    try:
        connection.initiate_connection()
        connection.increment_flow_control_window(HTTP2_CONNECTION_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
        connection.send_headers(1, _request(parts.scheme, parts.netloc, parts.path, parts.query), end_stream=True)
        await _flush(connection, writer)
        await _receive(connection, reader, writer, found, silence_s=silence_s, stop_after=stop_after)
    finally:
        writer.close()
    return found


def _request(scheme: str, authority: str, path: str, query: str) -> list[tuple[str, str]]:
    return [
        (":method", "GET"),
        (":scheme", scheme),
        (":authority", authority),
        (":path", f"{path}?{query}" if query else path),
    ]


async def _flush(connection: h2.connection.H2Connection, writer: asyncio.StreamWriter) -> None:
    writer.write(connection.data_to_send())
    await writer.drain()


async def _receive(
    connection: h2.connection.H2Connection,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    found: Download,
    *,
    silence_s: float,
    stop_after: int | None,
) -> None:
    while not found.ended:
        data = await asyncio.wait_for(reader.read(RECEIVE_BYTES), CHUNK_TIMEOUT_S)
        if not data:
            return
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                found.headers = [(str(name), str(value)) for name, value in event.headers]
                found.status = int(dict(found.headers)[":status"])
                if silence_s:
                    await _flush(connection, writer)  # its settings are acknowledged before the erasing begins
                    await asyncio.sleep(silence_s)
            elif isinstance(event, h2.events.DataReceived):
                found.body += event.data
                found.frames.append(len(event.data))
                connection.acknowledge_received_data(event.flow_controlled_length, 1)
            elif isinstance(event, h2.events.StreamEnded):
                found.ended = True
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                return
        if stop_after is not None and len(found.body) >= stop_after:
            return
        await _flush(connection, writer)
