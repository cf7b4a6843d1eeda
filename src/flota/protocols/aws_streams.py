"""AWS IoT's file delivery over MQTT ("streams"): describe, get, data, rejected, in JSON and CBOR. Both roles, no IO.

The device asks for blocks by a bitmap and counts what comes; what is missing it asks for again.
Source: docs/reference/aws-iot.md, "Streams"; aws/aws-iot-core-mqtt-file-streams-embedded-c;
aws/ota-for-aws-iot-embedded-sdk.
"""

from __future__ import annotations

import base64
import binascii
import enum
import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from flota.errors import PeerError
from flota.protocols.cbor import pack_cbor, parse_cbor
from flota.protocols.json_text import parse_json
from flota.protocols.malformed import MalformedMessage

BLOCK_SIZE_MIN: Final = 256
BLOCK_SIZE_MAX: Final = 131_072
REQUEST_BYTES_MAX: Final = 131_072
"""All blocks of one request together."""

OFFSET_MAX: Final = 98_304
BLOCK_COUNT_MAX: Final = 98_304
BITMAP_BYTES_MAX: Final = 12_288
"""A bitmap is shorter than that."""

TOKEN_BYTES_MAX: Final = 64
FILE_ID_MAX: Final = 255
STREAM_VERSION_MAX: Final = 65_535
AGENT_BLOCKS_MAX: Final = 1024
"""Blocks of the largest file that the C agent takes: a bitmap of 128 bytes."""

AGENT_REQUEST_NAME: Final = "rdy"
"""The client token that the C agent sends with every request."""

_STREAM_ID = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")


class StreamFormat(enum.StrEnum):
    """How a payload is written; the last level of the topic."""

    JSON = "json"
    CBOR = "cbor"


class JsonPayload(enum.StrEnum):
    """How a block stands in JSON: AWS's library reads base64, its guide says hexadecimal."""

    BASE64 = "base64"
    HEX = "hex"


class RejectionCode(enum.StrEnum):
    """Why a request was rejected, in AWS's words."""

    INVALID_TOPIC = "InvalidTopic"
    INVALID_JSON = "InvalidJson"
    INVALID_CBOR = "InvalidCbor"
    INVALID_REQUEST = "InvalidRequest"
    UNAUTHORIZED = "Unauthorized"
    BLOCK_SIZE_OUT_OF_BOUNDS = "BlockSizeOutOfBounds"
    OFFSET_OUT_OF_BOUNDS = "OffsetOutOfBounds"
    BLOCK_COUNT_LIMIT_EXCEEDED = "BlockCountLimitExceeded"
    BLOCK_BITMAP_LIMIT_EXCEEDED = "BlockBitmapLimitExceeded"
    RESOURCE_NOT_FOUND = "ResourceNotFound"
    VERSION_MISMATCH = "VersionMismatch"
    INTERNAL_ERROR = "InternalError"


class StreamRejected(PeerError):
    """A request that is answered with a rejection; `rejection` is its code, `token` the request's, if it was read."""

    code = "stream-rejected"

    def __init__(self, rejection: RejectionCode, message: str, *, token: str | None = None) -> None:
        super().__init__(message, found=rejection.value)
        self.rejection = rejection
        self.token = token


@dataclass(frozen=True, slots=True)
class DescribeRequest:
    """DescribeStream."""

    token: str | None = None


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """GetStream. Sizes in bytes, `offset` and `count` in blocks; `bitmap` is relative to `offset`, lowest bit first."""

    file_id: int
    block_size: int
    offset: int = 0
    count: int | None = None
    bitmap: bytes | None = None
    version: int | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a file: `number` counts from the file's start."""

    file_id: int
    number: int
    payload: bytes
    token: str | None = None


@dataclass(frozen=True, slots=True)
class StreamFile:
    """A file of a stream; `size` in bytes."""

    file_id: int
    size: int


@dataclass(frozen=True, slots=True)
class StreamDescription:
    """What DescribeStream answers."""

    version: int
    description: str
    files: tuple[StreamFile, ...]
    token: str | None = None


def is_stream_id(text: str) -> bool:
    """Return whether `text` may name a stream."""
    return _STREAM_ID.match(text) is not None


# requests


def parse_describe(payload: bytes, form: StreamFormat) -> DescribeRequest:
    """Return a DescribeStream request; an empty payload is an empty one. Raises `StreamRejected`."""
    return DescribeRequest(_token(_members(payload, form)))


def token_of(payload: bytes, form: StreamFormat) -> str | None:
    """Return the client token of a request of any kind, None if it has none or cannot be read."""
    try:
        return _token(_members(payload, form))
    except StreamRejected:
        return None


def parse_block_request(payload: bytes, form: StreamFormat) -> BlockRequest:
    """Return a GetStream request within AWS's limits. Raises `StreamRejected` with the code that AWS documents."""
    members = _members(payload, form)
    token = _token(members)
    fields = _Fields(members, token)
    request = BlockRequest(
        file_id=fields.required("f", 0, FILE_ID_MAX, RejectionCode.INVALID_REQUEST),
        block_size=fields.required("l", BLOCK_SIZE_MIN, BLOCK_SIZE_MAX, RejectionCode.BLOCK_SIZE_OUT_OF_BOUNDS),
        offset=fields.optional("o", OFFSET_MAX, RejectionCode.OFFSET_OUT_OF_BOUNDS) or 0,
        count=fields.optional("n", BLOCK_COUNT_MAX, RejectionCode.BLOCK_COUNT_LIMIT_EXCEEDED),
        bitmap=_bitmap(members.get("b"), form, token),
        version=fields.optional("s", STREAM_VERSION_MAX, RejectionCode.INVALID_REQUEST),
        token=token,
    )
    if request.bitmap is not None and len(request.bitmap) >= BITMAP_BYTES_MAX:
        _reject(RejectionCode.BLOCK_BITMAP_LIMIT_EXCEEDED, "the bitmap is too long", token)
    return request


def block_count(file_size: int, block_size: int) -> int:
    """Return how many blocks of `block_size` bytes a file of `file_size` bytes has; the last may be short."""
    return -(-file_size // block_size)


def wanted_blocks(request: BlockRequest, file_size: int) -> Iterator[int]:
    """Yield the numbers of the blocks to send, ascending; those past the end of a file of `file_size` bytes are not.

    No more than the request counts, and together at most `REQUEST_BYTES_MAX` bytes.
    """
    last = block_count(file_size, request.block_size)
    limit = request.count if request.count is not None else max(1, REQUEST_BYTES_MAX // request.block_size)
    sent_bytes = 0
    for sent, number in enumerate(_candidates(request, last)):
        size = min(request.block_size, file_size - number * request.block_size)
        if sent >= limit or sent_bytes + size > REQUEST_BYTES_MAX:
            return
        yield number
        sent_bytes += size


def _candidates(request: BlockRequest, last: int) -> Iterator[int]:
    if request.bitmap is None:
        yield from range(request.offset, last)
        return
    for index, byte in enumerate(request.bitmap):
        if not byte:
            continue
        first = request.offset + 8 * index
        if first >= last:
            return
        for bit in range(8):
            if byte >> bit & 1 and first + bit < last:
                yield first + bit


def pack_block_request(request: BlockRequest, form: StreamFormat) -> bytes:
    """Return a GetStream request with its members in the C agent's order: c, s, f, l, o, b, n."""
    bitmap: object = request.bitmap
    if request.bitmap is not None and form is StreamFormat.JSON:
        bitmap = request.bitmap.hex()
    members = {
        "c": request.token,
        "s": request.version,
        "f": request.file_id,
        "l": request.block_size,
        "o": request.offset,
        "b": bitmap,
        "n": request.count,
    }
    return _packed({name: value for name, value in members.items() if value is not None}, form)


def missing_bitmap(received: Mapping[int, bool] | frozenset[int] | set[int], blocks: int) -> bytes:
    """Return the bitmap of the blocks out of `blocks` that are not in `received`; bits past the last one are 0."""
    bitmap = bytearray(-(-blocks // 8))
    for number in range(blocks):
        if number not in received:
            bitmap[number // 8] |= 1 << number % 8
    return bytes(bitmap)


# answers


def pack_block(block: Block, form: StreamFormat, *, json_payload: JsonPayload = JsonPayload.BASE64) -> bytes:
    """Return one data message; `l` is the number of bytes in it, so short in the last block."""
    if form is StreamFormat.CBOR:
        return _cbor_block(block)
    members: dict[str, object] = {} if block.token is None else {"c": block.token}
    members |= {"f": block.file_id, "l": len(block.payload), "i": block.number}
    is_base64 = json_payload is JsonPayload.BASE64
    members["p"] = base64.b64encode(block.payload).decode("ascii") if is_base64 else block.payload.hex()
    return _packed(members, form)


def _cbor_block(block: Block) -> bytes:
    """Return a data message as `pack_cbor` would: put together here, because they go out by the thousand a second."""
    size = len(block.payload)
    before, after = _around_number(block.token, block.file_id, size)
    return b"".join((before, _cbor_head(_UNSIGNED, block.number), after, block.payload))


@functools.lru_cache(maxsize=256)
def _around_number(token: str | None, file_id: int, size: int) -> tuple[bytes, bytes]:
    """Return what stands before and behind a block's number: the same for all full blocks of a request."""
    start = b"\xa4"
    if token is not None:
        text = token.encode("utf-8")
        start = b"\xa5\x61c" + _cbor_head(_TEXT, len(text)) + text
    f, length = _cbor_head(_UNSIGNED, file_id), _cbor_head(_UNSIGNED, size)
    return start + b"\x61f" + f + b"\x61l" + length + b"\x61i", b"\x61p" + _cbor_head(_BYTES, size)


_UNSIGNED: Final = 0x00
_BYTES: Final = 0x40
_TEXT: Final = 0x60
"""Major types of CBOR (RFC 8949 3.1), in their place in the first byte."""


def _cbor_head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes((major | value,))
    if value < 1 << 8:
        return bytes((major | 24, value))
    if value < 1 << 16:
        return bytes((major | 25,)) + value.to_bytes(2, "big")
    return bytes((major | 26,)) + value.to_bytes(4, "big")


def parse_block(payload: bytes, form: StreamFormat, *, json_payload: JsonPayload = JsonPayload.BASE64) -> Block:
    """Return the block in a data message. Raises `MalformedMessage`: the C agent fails its job then."""
    try:
        members = _members(payload, form)
        fields = _Fields(members, None)
        length = fields.required("l", 0, BLOCK_SIZE_MAX, RejectionCode.INVALID_REQUEST)
        number = fields.required("i", 0, 2**31 - 1, RejectionCode.INVALID_REQUEST)
        file_id = fields.required("f", 0, FILE_ID_MAX, RejectionCode.INVALID_REQUEST)
        content = _content(members.get("p"), form, json_payload)
    except StreamRejected as error:
        raise MalformedMessage("not a block of a file", found=error.message) from error
    if len(content) != length:
        raise MalformedMessage("a block's length is not what it says", expected=length, found=len(content))
    return Block(file_id, number, content, _token(members))


@functools.lru_cache(maxsize=64)
def data_topic_room(packet_max_bytes: int, block_size: int) -> int:
    """Return how long (bytes) a topic may be for the C agent's data messages to fit MQTT packets of so many bytes.

    Of QoS 0, in CBOR, with the agent's token and the highest block number that its bitmap has.
    """
    block = Block(0, AGENT_BLOCKS_MAX - 1, bytes(block_size), AGENT_REQUEST_NAME)
    payload = len(_cbor_block(block))
    topic_length = 2
    length_digits = next(n for n in range(1, 5) if packet_max_bytes <= 1 << 7 * n)
    return packet_max_bytes - 1 - length_digits - topic_length - payload


def pack_description(description: StreamDescription, form: StreamFormat) -> bytes:
    """Return the answer to DescribeStream."""
    members: dict[str, object] = {} if description.token is None else {"c": description.token}
    files = [{"f": file.file_id, "z": file.size} for file in description.files]
    return _packed(members | {"s": description.version, "d": description.description, "r": files}, form)


def pack_rejection(rejected: StreamRejected, form: StreamFormat) -> bytes:
    """Return the message for the topic `rejected`."""
    members: dict[str, object] = {"o": rejected.rejection.value, "m": rejected.message}
    if rejected.token is not None:
        members["c"] = rejected.token
    return _packed(members, form)


def _packed(members: Mapping[str, object], form: StreamFormat) -> bytes:
    if form is StreamFormat.CBOR:
        return pack_cbor(members)
    return json.dumps(members, separators=(",", ":")).encode("utf-8")


def _members(payload: bytes, form: StreamFormat) -> dict[str, Any]:
    """Return the message's members; raises `StreamRejected` for what is no object in its format."""
    if not payload:
        return {}
    invalid = RejectionCode.INVALID_CBOR if form is StreamFormat.CBOR else RejectionCode.INVALID_JSON
    try:
        value: Any = parse_cbor(payload) if form is StreamFormat.CBOR else parse_json(payload)
    except MalformedMessage:
        raise StreamRejected(invalid, f"the payload is not {form.value.upper()}") from None
    if not isinstance(value, dict):
        raise StreamRejected(invalid, "the payload is no object")
    return value


def _token(members: Mapping[str, Any]) -> str | None:
    token = members.get("c")
    if token is None:
        return None
    if not isinstance(token, str) or len(token.encode("utf-8", "replace")) > TOKEN_BYTES_MAX:
        raise StreamRejected(RejectionCode.INVALID_REQUEST, f"a client token has at most {TOKEN_BYTES_MAX} bytes")
    return token


def _bitmap(value: object, form: StreamFormat, token: str | None) -> bytes | None:
    if value is None:
        return None
    if form is StreamFormat.CBOR and isinstance(value, bytes):
        return value
    if form is StreamFormat.JSON and isinstance(value, str) and len(value) <= 2 * BITMAP_BYTES_MAX + 2:
        digits = value[2:] if value[:2] in {"0x", "0X"} else value
        try:
            return bytes.fromhex(digits) if digits.isalnum() or not digits else _reject_bitmap(token)
        except ValueError:
            return _reject_bitmap(token)
    if form is StreamFormat.JSON and isinstance(value, str):
        _reject(RejectionCode.BLOCK_BITMAP_LIMIT_EXCEEDED, "the bitmap is too long", token)
    return _reject_bitmap(token)


def _content(value: object, form: StreamFormat, json_payload: JsonPayload) -> bytes:
    if form is StreamFormat.CBOR and isinstance(value, bytes):
        return value
    if form is StreamFormat.JSON and isinstance(value, str):
        try:
            if json_payload is JsonPayload.HEX:
                return bytes.fromhex(value)
            return base64.b64decode(value, validate=True)
        except (ValueError, binascii.Error):
            pass
    return _reject(RejectionCode.INVALID_REQUEST, "a block without payload", None)


def _reject_bitmap(token: str | None) -> NoReturn:
    _reject(RejectionCode.INVALID_REQUEST, "the bitmap is neither bytes nor hexadecimal digits", token)


def _reject(code: RejectionCode, message: str, token: str | None) -> NoReturn:
    raise StreamRejected(code, message, token=token)


class _Fields:
    """Integer members of a message, each with its bounds and the code of its rejection."""

    def __init__(self, members: Mapping[str, Any], token: str | None) -> None:
        self._members = members
        self._token = token

    def required(self, name: str, low: int, high: int, code: RejectionCode) -> int:
        value = self._members.get(name)
        if value is None:
            _reject(RejectionCode.INVALID_REQUEST, f"{name} is missing", self._token)
        return self._bounded(name, value, low, high, code)

    def optional(self, name: str, high: int, code: RejectionCode) -> int | None:
        value = self._members.get(name)
        return None if value is None else self._bounded(name, value, 0, high, code)

    def _bounded(self, name: str, value: object, low: int, high: int, code: RejectionCode) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            _reject(RejectionCode.INVALID_REQUEST, f"{name} is no integer", self._token)
        if not low <= value <= high:
            _reject(code, f"{name} is not within {low} and {high}", self._token)
        return value
