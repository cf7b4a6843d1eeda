"""A file on its way: which blocks are missing, and how blocks are asked for over MQTT and over HTTP.

Source: docs/reference/aws-iot.md, "Streams" and "What the virtual agent mirrors";
aws/ota-for-aws-iot-embedded-sdk:source/{ota_mqtt,ota_http,ota_cbor}.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from flota.protocols.aws_jobs import THING_PREFIX
from flota.protocols.aws_streams import (
    AGENT_REQUEST_NAME,
    BlockRequest,
    StreamFormat,
    missing_bitmap,
    pack_block_request,
    parse_block,
)
from flota.protocols.malformed import MalformedMessage
from flota.virtual.agents.aws_ota.job_document import OtaJob
from flota.virtual.agents.aws_ota.ports import HttpRanges, Messages

DATA_QOS: Final = 0
HTTP_PARTIAL_CONTENT: Final = 206


class Transfer:
    """The blocks of one job's file; `job` changes only in its URL."""

    def __init__(self, job: OtaJob, block_size: int) -> None:
        self.job = job
        self.block_size = block_size
        self.blocks = -(-job.file.size // block_size)
        self.is_open = True
        self._received: set[int] = set()

    @property
    def received(self) -> int:
        """How many blocks are in."""
        return len(self._received)

    @property
    def remaining(self) -> int:
        """How many blocks are missing."""
        return self.blocks - len(self._received)

    def has(self, number: int) -> bool:
        """Return whether the block is in."""
        return number in self._received

    def fits(self, number: int, size: int) -> bool:
        """Return whether the file has such a block: the last one may be short, the others may not."""
        last = self.blocks - 1
        wanted = self.job.file.size - last * self.block_size if number == last else self.block_size
        return 0 <= number <= last and size == wanted

    def take(self, number: int) -> None:
        """Note that the block is in."""
        self._received.add(number)

    def missing(self) -> bytes:
        """Return the bitmap of the missing blocks, bit 0 of byte 0 first."""
        return missing_bitmap(self._received, self.blocks)


class DataPath(Protocol):
    """One way to fetch blocks."""

    async def begin(self, transfer: Transfer) -> bool:
        """Get ready; False if that failed."""

    async def request(self, transfer: Transfer, count: int) -> int:
        """Ask for at most `count` missing blocks; returns how many will come at most, 0 if nothing could be asked."""

    def decode(self, payload: bytes, transfer: Transfer) -> tuple[int, bytes]:
        """Return number and content of a block. Raises `MalformedMessage`."""

    async def cleanup(self) -> None:
        """Let go of what `begin` took."""


class MqttPath:
    """Blocks of a stream, in CBOR."""

    def __init__(self, thing: str, messages: Messages) -> None:
        self._thing = thing
        self._messages = messages
        self._data_topic: str | None = None

    async def begin(self, transfer: Transfer) -> bool:
        """Subscribe to the stream's data."""
        topic = f"{THING_PREFIX}{self._thing}/streams/{transfer.job.stream}/data/{StreamFormat.CBOR}"
        if not await self._messages.subscribe(topic, DATA_QOS):
            return False
        self._data_topic = topic
        return True

    async def request(self, transfer: Transfer, count: int) -> int:
        """Send GetStream with the bitmap of all that is missing."""
        request = BlockRequest(
            file_id=transfer.job.file.file_id,
            block_size=transfer.block_size,
            offset=0,
            count=count,
            bitmap=transfer.missing(),
            token=AGENT_REQUEST_NAME,
        )
        topic = f"{THING_PREFIX}{self._thing}/streams/{transfer.job.stream}/get/{StreamFormat.CBOR}"
        sent = await self._messages.publish(topic, pack_block_request(request, StreamFormat.CBOR), DATA_QOS)
        return count if sent else 0

    def decode(self, payload: bytes, transfer: Transfer) -> tuple[int, bytes]:
        """Return the block in a data message."""
        block = parse_block(payload, StreamFormat.CBOR)
        if len(block.payload) > transfer.block_size:
            raise MalformedMessage(
                "a block is longer than was asked for", expected=transfer.block_size, found=len(block.payload)
            )
        return block.number, block.payload

    async def cleanup(self) -> None:
        """Unsubscribe from the data."""
        topic, self._data_topic = self._data_topic, None
        if topic is not None:
            await self._messages.unsubscribe(topic)


class HttpPath:
    """Ranges of a presigned URL, one block a request, in order. What comes is handed to `deliver`.

    An answer other than 206 means that the URL has expired or is wrong: `renew` is called, for the job to be asked for
    again with a fresh one. If that does not help it is left to the request timer, and so ends some time.
    A range has no number, so nothing is asked for while one that came is not taken yet: the C agent would count a
    second copy as the next block if its timer ran out just then.
    """

    def __init__(self, http: HttpRanges, *, deliver: Callable[[bytes], bool], renew: Callable[[], object]) -> None:
        self._http = http
        self._deliver = deliver
        self._renew = renew
        self._next = 0
        self._renewed_at: int | None = None
        self._is_untaken = False

    async def begin(self, transfer: Transfer) -> bool:
        """Open the URL."""
        self._is_untaken = False
        return await self._http.open(transfer.job.file.url)

    async def request(self, transfer: Transfer, count: int) -> int:
        """Get the next block; one a request, whatever `count` is."""
        if self._is_untaken:
            return 1
        first = self._next * transfer.block_size
        last = transfer.job.file.size - 1 if transfer.remaining == 1 else first + transfer.block_size - 1
        answer = await self._http.get(first, last)
        if answer is None:
            return 0
        if answer.status != HTTP_PARTIAL_CONTENT:
            if self._renewed_at != self._next:
                self._renewed_at = self._next
                self._renew()
            return 1
        self._is_untaken = self._deliver(answer.body)
        return 1

    def decode(self, payload: bytes, transfer: Transfer) -> tuple[int, bytes]:
        """Return the block: what comes is always the one asked for last."""
        self._is_untaken = False
        if len(payload) > transfer.block_size:
            raise MalformedMessage(
                "a range is longer than was asked for", expected=transfer.block_size, found=len(payload)
            )
        number, self._next = self._next, self._next + 1
        return number, payload

    async def cleanup(self) -> None:
        """End the transfer; the next one begins at the file's start."""
        self._next = 0
        self._renewed_at = None
        self._is_untaken = False
        await self._http.close()
