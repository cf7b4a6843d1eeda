"""The values inside messages: eight types, little-endian, one after the other without any mark between them.

Source: docs/reference/blynk.md, "Types".
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final

from flota.errors import InvalidInput, TooLarge
from flota.protocols.malformed import MalformedMessage

Value = bool | int | float | str | bytes

BINARY_MAX_BYTES: Final = 0xFFFF


class Kind(enum.Enum):
    """A type of value. Numbers carry their `struct` format."""

    BOOL = "?"
    U8 = "<B"
    U16 = "<H"
    U32 = "<I"
    U64 = "<Q"
    I8 = "<b"
    I16 = "<h"
    I32 = "<i"
    I64 = "<q"
    FLOAT = "<f"
    STRING = "string"
    """Bytes and a NUL; UTF-8 in practice. What is not UTF-8 is read as U+FFFD."""
    BINARY = "binary"
    """A length in 16 bits, and so many bytes."""


_LAYOUTS: Final = {kind: struct.Struct(kind.value) for kind in Kind if kind not in (Kind.STRING, Kind.BINARY)}
_LENGTH: Final = struct.Struct("<H")
assert _LAYOUTS[Kind.BOOL].size == _LAYOUTS[Kind.U8].size == 1


class UnreadableValues(MalformedMessage):
    """A message is too short for its values, has an unterminated string, or bytes too many."""

    code = "unreadable-values"


def pack_values(kinds: Sequence[Kind], values: Sequence[Value]) -> bytes:
    """Return the values as bytes. Raises `InvalidInput` for a value that its type cannot carry."""
    if len(kinds) != len(values):
        raise InvalidInput("a wrong number of values", expected=len(kinds), found=len(values))
    return b"".join(_pack(kind, value) for kind, value in zip(kinds, values, strict=True))


def parse_values(kinds: Sequence[Kind], data: bytes, *, exactly: bool = True) -> tuple[Value, ...]:
    """Return the values in `data`. Raises `UnreadableValues`; for bytes too many only if `exactly`."""
    values: list[Value] = []
    position = 0
    for kind in kinds:
        value, position = _parse(kind, data, position)
        values.append(value)
    if exactly and position != len(data):
        raise UnreadableValues("bytes too many", offset=position, expected=position, found=len(data))
    return tuple(values)


def _pack(kind: Kind, value: Value) -> bytes:
    if kind is Kind.STRING:
        if not isinstance(value, str):
            raise InvalidInput("not a text", found=type(value).__name__)
        encoded = value.encode("utf-8", "replace")
        if b"\0" in encoded:
            raise InvalidInput("a NUL inside a text", offset=encoded.index(b"\0"))
        return encoded + b"\0"
    if kind is Kind.BINARY:
        if not isinstance(value, bytes):
            raise InvalidInput("not bytes", found=type(value).__name__)
        if len(value) > BINARY_MAX_BYTES:
            raise TooLarge("the bytes do not fit their length", expected=BINARY_MAX_BYTES, found=len(value))
        return _LENGTH.pack(len(value)) + value
    try:
        return _LAYOUTS[kind].pack(value)
    except (struct.error, OverflowError) as error:
        raise InvalidInput("a number does not fit its type", expected=kind.name, found=repr(value)[:40]) from error


def _parse(kind: Kind, data: bytes, position: int) -> tuple[Value, int]:
    if kind is Kind.STRING:
        end = data.find(0, position)
        if end < 0:
            raise UnreadableValues("a text without its NUL", offset=position, found=f"{len(data) - position} bytes")
        return data[position:end].decode("utf-8", "replace"), end + 1
    if kind is Kind.BINARY:
        length, position = _number(_LENGTH, data, position)
        end = position + int(length)
        if end > len(data):
            raise UnreadableValues("too short", offset=position, expected=end, found=len(data))
        return data[position:end], end
    return _number(_LAYOUTS[kind], data, position)


def _number(layout: struct.Struct, data: bytes, position: int) -> tuple[bool | int | float, int]:
    end = position + layout.size
    if end > len(data):
        raise UnreadableValues("too short", offset=position, expected=end, found=len(data))
    (value,) = layout.unpack_from(data, position)
    return value, end
