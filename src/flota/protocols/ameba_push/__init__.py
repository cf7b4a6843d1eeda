"""The AmebaD push: 12 bytes of file information, then the file, and never a byte back. Both roles, no IO.

Source: docs/reference/ameba-push.md; Ameba-AIoT/ameba-arduino-d: OTA.cpp; ambiot/ambd_sdk: rtl8721d_ota.c.
"""

from __future__ import annotations

from flota.protocols.ameba_push.profile import (
    ANCHOROTA,
    ARDUINO,
    GUIDE,
    PROFILES,
    PushPayload,
    PushProfile,
    payload_for,
    profile_named,
)
from flota.protocols.ameba_push.receiver import (
    BodyBytes,
    EraseTarget,
    FileInfo,
    ImageComplete,
    PushReceiver,
    ReceiverEvent,
    ReceiverFailed,
    SerialLine,
    UndefinedBehaviour,
    parse_file_info,
)
from flota.protocols.ameba_push.sender import (
    CHUNK_SIZE,
    CLOSE_EXPECTED_WITHIN_S,
    STALL_LIMIT_S,
    PushOutcome,
    PushRecord,
    PushStage,
    PushVerdict,
    judge_push,
    push_stream_start,
)

__all__ = [
    "ANCHOROTA",
    "ARDUINO",
    "CHUNK_SIZE",
    "CLOSE_EXPECTED_WITHIN_S",
    "GUIDE",
    "PROFILES",
    "STALL_LIMIT_S",
    "BodyBytes",
    "EraseTarget",
    "FileInfo",
    "ImageComplete",
    "PushOutcome",
    "PushPayload",
    "PushProfile",
    "PushReceiver",
    "PushRecord",
    "PushStage",
    "PushVerdict",
    "ReceiverEvent",
    "ReceiverFailed",
    "SerialLine",
    "UndefinedBehaviour",
    "judge_push",
    "parse_file_info",
    "payload_for",
    "profile_named",
    "push_stream_start",
]
