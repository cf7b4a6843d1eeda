"""Decoding JSON or CBOR of a DDI peer: typed by msgspec, every failure one `MalformedMessage`, never anything else."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from flota.errors import TooLarge
from flota.protocols.malformed import MalformedMessage

MESSAGE_MAX_BYTES: Final = 256 * 1024
"""Of one JSON body, both ways: one feedback may have 50 log lines, configData 100 attributes."""

_T = TypeVar("_T")


def decode(decoder: msgspec.json.Decoder[_T], body: bytes, what: str, *, cbor: bool = False) -> _T:
    """Return the body as the decoder's type; with `cbor` it is read as CBOR instead of JSON.

    Raises `TooLarge` above 256 KiB, else `MalformedMessage`.
    """
    if len(body) > MESSAGE_MAX_BYTES:
        raise TooLarge(f"the {what} is too long", expected=f"at most {MESSAGE_MAX_BYTES} bytes", found=len(body))
    if cbor:
        from flota.protocols.cbor import parse_cbor  # 1 MB that a gateway, which speaks JSON, need not carry

        value = parse_cbor(body)
        try:
            return msgspec.convert(value, decoder.type)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise MalformedMessage(f"not a {what}: {str(error)[:200]}") from error
    try:
        body.decode("utf-8")  # msgspec names the offset within a string, which helps nobody
    except UnicodeDecodeError as error:
        raise MalformedMessage(
            f"the {what} is not UTF-8",
            offset=error.start,
            expected="JSON in UTF-8",
            found=f"byte 0x{body[error.start]:02x}",
        ) from error
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise MalformedMessage(f"not a {what}: {reason[:200]}") from error


def as_integer(value: object, *, minimum: int, maximum: int) -> int | None:
    """Return a number that a client may send as JSON number or as string (rauc-hawkbit does); None if it is none."""
    if isinstance(value, str) and value.isascii() and len(value) <= 20 and value.removeprefix("-").isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if minimum <= value <= maximum else None
