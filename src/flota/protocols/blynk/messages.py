"""The three kinds of messages: a call that wants an answer, the answer, and a call that wants none.

Source: docs/reference/blynk.md, "Messages".
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

from flota.protocols.malformed import MalformedMessage

MESSAGE_ID_MASK: Final = 0xFFFF

INVOKE: Final = 0x67BC
RESULT: Final = 0xA512
ONEWAY: Final = 0x1CF3

RESERVED_OPCODES: Final = frozenset({0xD674, 0x56E1, 0xD8AB, 0x3CAE, 0xED0B, 0x1FB5})
"""Never to be used."""
assert not RESERVED_OPCODES & {INVOKE, RESULT, ONEWAY}

_OPCODE: Final = struct.Struct("<H")
_INVOKE: Final = struct.Struct("<HHH")
_RESULT: Final = struct.Struct("<HHB")
_ONEWAY: Final = struct.Struct("<HH")
assert (_INVOKE.size, _RESULT.size, _ONEWAY.size) == (6, 5, 4)

INVOKE_HEADER_BYTES: Final = _INVOKE.size


class Status(enum.IntEnum):
    """How a call went. `TIMEOUT`, `ARGUMENTS_NOT_WRITTEN` and `RESULT_NOT_READ` never go over the wire."""

    OK = 0
    ERROR = 0x10
    TIMEOUT = 0x11
    MEMORY = 0x12
    UNKNOWN_UID = 0x13
    ARGUMENTS_NOT_WRITTEN = 0x14
    ARGUMENTS_NOT_READ = 0x15
    RESULT_NOT_WRITTEN = 0x16
    RESULT_NOT_READ = 0x17


@dataclass(frozen=True, slots=True)
class Invoke:
    """A call: which procedure (`uid`), the caller's number for it, its arguments as bytes."""

    uid: int
    msgid: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Result:
    """An answer to the call with this number. Without status 0 there is no body."""

    msgid: int
    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Oneway:
    """A call that nobody answers."""

    uid: int
    body: bytes = b""


Message = Invoke | Result | Oneway


def pack_message(message: Message) -> bytes:
    """Return the payload of a frame; numbers are taken modulo 2^16."""
    if isinstance(message, Invoke):
        return _INVOKE.pack(INVOKE, message.uid, message.msgid & MESSAGE_ID_MASK) + message.body
    if isinstance(message, Result):
        return _RESULT.pack(RESULT, message.msgid & MESSAGE_ID_MASK, message.status) + message.body
    return _ONEWAY.pack(ONEWAY, message.uid) + message.body


def parse_message(payload: bytes) -> Message:
    """Return the message in a frame. Raises `MalformedMessage`: too short, or of an unknown kind (to be ignored)."""
    if len(payload) < _OPCODE.size:
        raise MalformedMessage("too short for a message", expected="2 bytes or more", found=len(payload))
    (opcode,) = _OPCODE.unpack_from(payload)
    layout = {INVOKE: _INVOKE, RESULT: _RESULT, ONEWAY: _ONEWAY}.get(opcode)
    if layout is None:
        raise MalformedMessage("an unknown kind of message", offset=0, found=f"{opcode:04x}")
    if len(payload) < layout.size:
        raise MalformedMessage("too short for its kind", expected=f"{layout.size} bytes or more", found=len(payload))
    fields, body = layout.unpack_from(payload), payload[layout.size :]
    if opcode == INVOKE:
        return Invoke(fields[1], fields[2], body)
    return Result(fields[1], fields[2], body) if opcode == RESULT else Oneway(fields[1], body)
