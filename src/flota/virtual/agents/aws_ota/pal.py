"""What the agent needs of its platform (the "PAL"): a place for the file, and image states that survive a reset.

Another board brings another `Pal`; the agent above stays the same.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors";
aws/ota-for-aws-iot-embedded-sdk:source/include/ota_platform_interface.h.
"""

from __future__ import annotations

import enum
from typing import NoReturn, Protocol

from flota.errors import FlotaError
from flota.virtual.agents.aws_ota.job_document import OtaFile


class PalCode(enum.IntEnum):
    """A PAL's main codes: the upper 8 bits of its status word. The lower 24 bits are the platform's own."""

    SUCCESS = 0x00
    UNINITIALIZED = 0xE0
    OUT_OF_MEMORY = 0xE1
    NULL_FILE_CONTEXT = 0xE2
    SIGNATURE_CHECK_FAILED = 0xE3
    FILE_CREATE_FAILED = 0xE4
    FILE_TOO_LARGE = 0xE5
    BOOT_INFO_CREATE_FAILED = 0xE6
    BAD_SIGNER_CERTIFICATE = 0xE7
    BAD_IMAGE_STATE = 0xE8
    ABORT_FAILED = 0xE9
    REJECT_FAILED = 0xEA
    COMMIT_FAILED = 0xEB
    ACTIVATE_FAILED = 0xEC
    FILE_ABORT = 0xED
    FILE_CLOSE = 0xEE


class ImageState(enum.IntEnum):
    """What the agent sets."""

    UNKNOWN = 0
    TESTING = 1
    ACCEPTED = 2
    REJECTED = 3
    ABORTED = 4


class PalImageState(enum.IntEnum):
    """What the platform says of the running image."""

    UNKNOWN = 0
    PENDING_COMMIT = 1
    VALID = 2
    INVALID = 3


class PalError(FlotaError):
    """The platform could not do it. `sub_code` (24 bits) is the platform's own."""

    code = "pal-error"

    def __init__(self, main: PalCode, message: str, *, sub_code: int = 0) -> None:
        super().__init__(message, found=f"PAL 0x{main:02x}, {sub_code}")
        self.main = main
        self.sub_code = sub_code & 0xFF_FFFF

    @property
    def status(self) -> int:
        """Both codes in one word, as in `aborted: 0xe5000000`."""
        return self.main << 24 | self.sub_code


class Pal(Protocol):
    """The platform. Everything may take device time; `activate` and `reset` end the app's life."""

    async def create_file(self, file: OtaFile) -> None:
        """Make room for a file. Raises `PalError`."""

    async def write_block(self, offset: int, data: bytes) -> None:
        """Write a block at a byte offset; blocks come in any order, none twice. Raises `PalError`."""

    async def close_file(self) -> None:
        """Check the signature over the whole file. Raises `PalError`."""

    async def abort(self) -> None:
        """Let go of a file that is not finished; nothing happens without one."""

    async def activate(self) -> NoReturn:
        """Make the new image the next boot's choice and restart. Raises `PalError`, or `Restart`."""

    async def reset(self, why: str) -> NoReturn:
        """Restart the device now: raises `Restart`."""

    async def set_image_state(self, state: ImageState) -> None:
        """Act on what the agent has decided about the running or the new image. Raises `PalError`."""

    def image_state(self) -> PalImageState:
        """Return the state of the running image."""
