"""What the agent writes into `jobs/JOB/update`, byte for byte as the C agent builds it from pieces of text.

Source: docs/reference/aws-iot.md, "What the virtual agent mirrors";
aws/ota-for-aws-iot-embedded-sdk:source/ota_mqtt.c.
"""

from __future__ import annotations

import enum
import re
from typing import Final

STATUS_QOS: Final = 1
RECEIVING_QOS: Final = 0
WORD_MAX: Final = 0xFFFF_FFFF

_VERSION = re.compile(r"[vV]?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,5}))?")


class SelfTestPhase(enum.StrEnum):
    """The value of `self_test`."""

    READY = "ready"
    ACTIVE = "active"


class FailureWord(enum.StrEnum):
    """The word before the code when an image was not accepted."""

    REJECTED = "rejected"
    ABORTED = "aborted"


def version_word(version: str) -> int:
    """Return a version as the agent compares it: major << 24 | minor << 16 | build, 0 for what is no such version.

    Numbers above their field (8, 8 and 16 bits) make it 0 too: no firmware is built with one.
    """
    match = _VERSION.match(version)
    if match is None:
        return 0
    major, minor, build = (int(part or 0) for part in match.groups())
    return major << 24 | minor << 16 | build if max(major, minor) <= 0xFF and build <= 0xFFFF else 0


def dotted(word: int) -> str:
    """Return a version word as `major.minor.build`."""
    return f"{word >> 24 & 0xFF}.{word >> 16 & 0xFF}.{word & 0xFFFF}"


def receiving(received: int, blocks: int) -> bytes:
    """Return the status after so many of the file's blocks."""
    return f'{{"status":"IN_PROGRESS","statusDetails":{{"receive":"{received}/{blocks}"}}}}'.encode("ascii")


def self_test(phase: SelfTestPhase, running: int) -> bytes:
    """Return the status of an image that waits for its test, or has begun it; `running` is the running app's word."""
    details = f'"self_test":"{phase}","updatedBy":"0x{running:08x}"'
    return f'{{"status":"IN_PROGRESS","statusDetails":{{{details}}}}}'.encode("ascii")


def accepted(version: int, previous: int) -> bytes:
    """Return the final status of success: both words, or file type and 0 for a file that is no firmware."""
    details = f'"reason":"accepted  v{dotted(version)}","updatedBy":"  v{dotted(previous)}"'
    return f'{{"status":"SUCCEEDED","statusDetails":{{{details}}}}}'.encode("ascii")


def not_accepted(word: FailureWord, code: int) -> bytes:
    """Return the final status of an image that was rejected or aborted; `code` is an `AgentError` or a PAL status."""
    reason = f"{word}: 0x{code & WORD_MAX:08x}"
    return f'{{"status":"FAILED","statusDetails":{{"reason":"{reason}"}}}}'.encode("ascii")


def failed_with(code: int, value: int) -> bytes:
    """Return the final status of a failure with two numbers: a PAL's main and sub code, or the job parser's."""
    reason = f"0x{code & WORD_MAX:08x}: 0x{value & WORD_MAX:08x}"
    return f'{{"status":"FAILED","statusDetails":{{"reason":"{reason}"}}}}'.encode("ascii")
