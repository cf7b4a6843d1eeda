"""Streams: files in blocks over MQTT. What is in memory is answered at once, without waiting for anything.

A thing may read a stream as long as it has an open execution whose document names it: `ThingState.streams`.
Source: docs/reference/aws-iot.md, "Streams".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from flota.errors import FlotaError
from flota.protocols.aws_streams import (
    Block,
    BlockRequest,
    RejectionCode,
    StreamDescription,
    StreamFile,
    StreamFormat,
    StreamRejected,
    block_count,
    is_stream_id,
    pack_block,
    pack_description,
    pack_rejection,
    parse_block_request,
    parse_describe,
    token_of,
    wanted_blocks,
)
from flota.server.api.aws_iot.agent_limits import BlockPacing, without_holes
from flota.server.api.aws_iot.blocks import ArtifactPieces

if TYPE_CHECKING:
    from flota.boards.model import AgentLimits
    from flota.protocols.mqtt.dialect import MqttClient
    from flota.server.context import ServerContext

STREAM_VERSION: Final = 1
"""Streams of OTA updates never change: the file-stream library always asks for version 1."""

FILE_ID: Final = 0
"""An update has one file."""

_FORMATS: Final = {form.value: form for form in StreamFormat}
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A stream that a thing may read. `size` in bytes; `topic` is what its topics begin with, without a slash."""

    topic: str
    sha256: str
    size: int
    description: str
    limits: AgentLimits | None = None
    """What its reader has room for; None: what it asks for."""
    data_topics: dict[StreamFormat, bytes] = field(default_factory=dict)

    def data_topic(self, form: StreamFormat) -> bytes:
        """Return where its blocks go, in UTF-8."""
        topic = self.data_topics.get(form)
        if topic is None:
            topic = self.data_topics[form] = f"{self.topic}/data/{form.value}".encode()
        return topic

    @property
    def stream_id(self) -> str:
        """Its name."""
        return self.topic.rpartition("/")[2]


class StreamReader(Protocol):
    """A thing: `streams` by their names are those that it may read now, as far as is remembered."""

    streams: dict[str, OpenStream]


FindStream = Callable[[str], Awaitable[OpenStream | None]]
"""Looks again, in the database, which streams a thing may read."""


class StreamsApi:
    """Answers requests for blocks. One for the whole server."""

    def __init__(self, context: ServerContext) -> None:
        self._pieces = ArtifactPieces(context.artifacts.path)
        self._json_payload = context.settings.aws_iot_json_payload
        self.pacing = BlockPacing()

    def gone(self, client: MqttClient) -> None:
        """Forget a client whose connection has ended."""
        self.pacing.forget(client)

    def receive(
        self, client: MqttClient, base: str, rest: str, payload: bytes, reader: StreamReader, find: FindStream
    ) -> Awaitable[None] | None:
        """Answer what a thing published under its own `…/streams/` (`base`, with the slash) at `rest`.

        Returns None when that is done, else what has to be awaited: `reader` did not have the stream, or the memory
        not the blocks.
        """
        levels = rest.split("/")
        form = _FORMATS.get(levels[-1])
        if len(levels) != 3 or form is None or levels[1] not in ("get", "describe") or not is_stream_id(levels[0]):
            invalid = StreamRejected(RejectionCode.INVALID_TOPIC, "no operation of streams has this topic")
            client.answer(
                f"{base}{levels[0]}/rejected/{levels[-1]}", pack_rejection(invalid, form or StreamFormat.JSON)
            )
            return None
        stream = reader.streams.get(levels[0])
        if stream is None:
            return self._find_first(client, f"{base}{levels[0]}", levels, payload, form, reader, find)
        return self._answer(client, reader, stream, levels[1], payload, form)

    async def _find_first(
        self,
        client: MqttClient,
        topic: str,
        levels: list[str],
        payload: bytes,
        form: StreamFormat,
        reader: StreamReader,
        find: FindStream,
    ) -> None:
        try:
            stream = await find(levels[0])
        except Exception as error:  # noqa: BLE001 - whatever it is, the device asks again
            _log.error("aws_iot.stream_not_found_out", topic=topic, exc_info=error)
            text = "the server could not look this up now"
            _reject(client, topic, form, RejectionCode.INTERNAL_ERROR, text, token_of(payload, form))
            return
        if stream is None:
            text = "this thing has no job with this stream"
            _reject(client, topic, form, RejectionCode.RESOURCE_NOT_FOUND, text, token_of(payload, form))
            return
        waiting = self._answer(client, reader, stream, levels[1], payload, form)
        if waiting is not None:
            await waiting

    def _answer(
        self,
        client: MqttClient,
        reader: StreamReader,
        stream: OpenStream,
        operation: str,
        payload: bytes,
        form: StreamFormat,
    ) -> Awaitable[None] | None:
        try:
            if operation == "describe":
                self._describe(client, stream, payload, form)
                return None
            return self._get(client, reader, stream, parse_block_request(payload, form), form)
        except StreamRejected as rejected:
            client.answer(f"{stream.topic}/rejected/{form.value}", pack_rejection(rejected, form))
            return None

    def _describe(self, client: MqttClient, stream: OpenStream, payload: bytes, form: StreamFormat) -> None:
        token = parse_describe(payload, form).token
        files = (StreamFile(FILE_ID, stream.size),)
        described = StreamDescription(STREAM_VERSION, stream.description, files, token)
        client.answer(f"{stream.topic}/description/{form.value}", pack_description(described, form))

    def _get(
        self, client: MqttClient, reader: StreamReader, stream: OpenStream, request: BlockRequest, form: StreamFormat
    ) -> Awaitable[None] | None:
        _check(request, stream)
        payloads = self._payloads(stream, request, form)
        if payloads is None:
            return self._load_first(client, reader, stream, request, form)
        self._send(client, reader, stream, request, form, payloads)
        return None

    def _send(
        self,
        client: MqttClient,
        reader: StreamReader,
        stream: OpenStream,
        request: BlockRequest,
        form: StreamFormat,
        payloads: list[bytes],
    ) -> None:
        limits = stream.limits
        if limits is None:
            if payloads:
                client.answer_all(stream.data_topic(form), payloads)
            return
        if limits.in_order:
            payloads = without_holes(payloads, held=limits.blocks_held, asked=request.count)
        self.pacing.send(
            client,
            stream.data_topic(form),
            payloads,
            at_once=limits.blocks_held,
            is_wanted=lambda: stream.stream_id in reader.streams,
        )

    async def _load_first(
        self, client: MqttClient, reader: StreamReader, stream: OpenStream, request: BlockRequest, form: StreamFormat
    ) -> None:
        try:
            await self._pieces.load(
                stream.sha256,
                (_place(number, request, stream) for number in wanted_blocks(request, stream.size)),
            )
            payloads = self._payloads(stream, request, form)
        except FlotaError as error:
            _log.error("aws_iot.blocks_not_read", sha256=stream.sha256, error=str(error))
            payloads = None
        if payloads is None:
            text = "the file cannot be read now"
            _reject(client, stream.topic, form, RejectionCode.INTERNAL_ERROR, text, request.token)
            return
        self._send(client, reader, stream, request, form, payloads)

    def _payloads(self, stream: OpenStream, request: BlockRequest, form: StreamFormat) -> list[bytes] | None:
        payloads = []
        for number in wanted_blocks(request, stream.size):
            content = self._pieces.part(stream.sha256, *_place(number, request, stream))
            if content is None:
                return None
            block = Block(FILE_ID, number, content, request.token)
            payloads.append(pack_block(block, form, json_payload=self._json_payload))
        return payloads


def _place(number: int, request: BlockRequest, stream: OpenStream) -> tuple[int, int]:
    """Return offset and length in bytes of a block; the last one is short."""
    offset = number * request.block_size
    return offset, min(request.block_size, stream.size - offset)


def _check(request: BlockRequest, stream: OpenStream) -> None:
    if request.file_id != FILE_ID:
        raise StreamRejected(RejectionCode.RESOURCE_NOT_FOUND, "the stream has no such file", token=request.token)
    if request.version not in (None, STREAM_VERSION):
        text = f"the stream has version {STREAM_VERSION}"
        raise StreamRejected(RejectionCode.VERSION_MISMATCH, text, token=request.token)
    blocks = block_count(stream.size, request.block_size)
    if request.offset >= blocks:
        text = f"the file has {blocks} blocks of {request.block_size} bytes"
        raise StreamRejected(RejectionCode.OFFSET_OUT_OF_BOUNDS, text, token=request.token)


def _reject(
    client: MqttClient, topic: str, form: StreamFormat, code: RejectionCode, text: str, token: str | None
) -> None:
    client.answer(f"{topic}/rejected/{form.value}", pack_rejection(StreamRejected(code, text, token=token), form))
