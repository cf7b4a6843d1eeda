"""What the agent's core stands on beside its PAL: the message service, HTTP ranges, timers, and the app above it.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors"; aws/ota-for-aws-iot-embedded-sdk:source/include
(`OtaInterfaces_t`, `OtaAppCallback_t`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, Protocol

from flota.protocols.aws_ota import DataProtocol
from flota.virtual.agents.aws_ota.job_document import DEFAULT_SIGNATURE_KEY

BITMAP_BYTES_MAX: Final = 128
"""One bit a block: 1024 blocks, so 4 MiB with blocks of 4 KiB."""

REQUEST_MOMENTUM_MAX: Final = 32
EVENT_QUEUE_MAX: Final = 20
"""Events beyond are lost; a lost block is asked for again."""

JOB_MESSAGE_EXTRA_BYTES: Final = 1530
"""A message's buffer is that much longer than a block."""


class AppEvent(enum.StrEnum):
    """What the agent tells the app."""

    ACTIVATE = "activate"
    FAIL = "fail"
    START_TEST = "start-test"
    SELF_TEST_FAILED = "self-test-failed"
    UPDATE_COMPLETE = "update-complete"


class OtaTimer(enum.StrEnum):
    """The agent's two timers."""

    REQUEST = "request"
    SELF_TEST = "self-test"


@dataclass(frozen=True, slots=True)
class AgentBuild:
    """How the firmware was built: the settings of `ota_config.h`. Block size in bytes, a power of two from 256 up.

    `request_wait_s` is how long it waits for an answer before it asks again; `self_test_s` how long a new image may
    go without being accepted. `data_buffers` is how many messages it holds that are not worked off yet, None: as many
    as its queue has room for; `packet_max_bytes` the longest MQTT packet that its network buffer takes, None: any.
    """

    block_size: int = 4096
    blocks_per_request: int = 4
    status_every_blocks: int = 64
    primary: DataProtocol = DataProtocol.MQTT
    protocols: frozenset[DataProtocol] = field(default=frozenset(DataProtocol))
    signature_key: str = DEFAULT_SIGNATURE_KEY
    request_wait_s: float = 10.0
    self_test_s: float = 16.0
    bitmap_bytes: int = BITMAP_BYTES_MAX
    momentum: int = REQUEST_MOMENTUM_MAX
    data_buffers: int | None = None
    packet_max_bytes: int | None = None

    @property
    def file_max_bytes(self) -> int:
        """The largest file that it takes."""
        return 8 * self.bitmap_bytes * self.block_size

    @property
    def message_max_bytes(self) -> int:
        """The longest message that fits its event buffer."""
        return self.block_size + JOB_MESSAGE_EXTRA_BYTES


class Messages(Protocol):
    """The MQTT connection; each call says whether it was done in time."""

    async def subscribe(self, topic_filter: str, qos: int) -> bool:
        """Subscribe and wait for the answer."""

    async def unsubscribe(self, topic_filter: str) -> bool:
        """Unsubscribe."""

    async def publish(self, topic: str, payload: bytes, qos: int) -> bool:
        """Publish; at QoS 1 wait for the acknowledgement."""


@dataclass(frozen=True, slots=True)
class RangeAnswer:
    """An HTTP answer: 206 brings the range."""

    status: int
    body: bytes = field(default=b"", repr=False)


class HttpRanges(Protocol):
    """The HTTP client."""

    async def open(self, url: str) -> bool:
        """Begin a transfer from a URL; False if it is none that can be fetched."""

    async def get(self, first: int, last: int) -> RangeAnswer | None:
        """Return the answer for the bytes `first` to `last`, both counted; None if there was no answer."""

    async def close(self) -> None:
        """End the transfer."""


class Timers(Protocol):
    """Timers that run out once. The request timer signals `RequestTimer`; the self-test timer restarts the device."""

    def start(self, timer: OtaTimer, seconds: float) -> None:
        """Start a timer, or start it anew."""

    def stop(self, timer: OtaTimer) -> None:
        """Stop it."""


class OtaApp(Protocol):
    """The application that carries the agent."""

    async def ota_event(self, event: AppEvent) -> None:
        """Act on what the agent tells; it goes on when this returns."""

    def tell(self, text: str) -> None:
        """Hear what the agent logs."""

    def progress(self, received: int, blocks: int) -> None:
        """Hear how many blocks are in."""
