"""CBOR (RFC 8949) as far as data in JSON's shape needs it, around the library cbor2; bounded, and with our error.

Taken: integers up to 64 bits, finite floats, text, bytes, arrays, maps with text keys, true, false, null, undefined (as
null), indefinite lengths. Refused: tags but the one that says "this is CBOR", duplicate keys, deep nesting, anything
after the value.
Source: RFC 8949; docs/reference/hawkbit-ddi.md, docs/reference/aws-iot.md.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any, Final

import cbor2

from flota.protocols.malformed import MalformedMessage

DEPTH_MAX: Final = 32
"""Arrays and maps inside one another; messages of update clients nest six deep."""

INTEGER_MIN: Final = -(1 << 64)
INTEGER_MAX: Final = (1 << 64) - 1

SELF_DESCRIBED: Final = b"\xd9\xd9\xf7"
"""The tag that may stand before a value to say that it is CBOR (3.4.6)."""

_TAGS_WITH_A_MEANING: Final = (0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37, 100, 256, 258, 260, 261, 1004, 43000)
"""Tags that the library would turn into values of its own: dates, fractions, expressions to match, references."""


def pack_cbor(value: object) -> bytes:
    """Return `value` (None, bool, int, float, str, bytes, lists, mappings with text keys) with definite lengths.

    Members keep their order. Raises `MalformedMessage` for anything that `parse_cbor` would refuse.
    """
    _require_plain(value)
    return cbor2.dumps(value)


def parse_cbor(data: bytes) -> object:
    """Return the one value in `data`. Raises `MalformedMessage`, and nothing else."""
    stream = io.BytesIO(data)
    if data.startswith(SELF_DESCRIBED):
        stream.seek(len(SELF_DESCRIBED))
    decoder = cbor2.CBORDecoder(
        stream,
        tag_hook=_refuse_tag,
        semantic_decoders=_SEMANTIC_DECODERS,
        max_depth=DEPTH_MAX,
        allow_duplicate_keys=False,
    )
    try:
        value = _plain(decoder.decode())
    except cbor2.CBORDecodeEOF as error:
        raise MalformedMessage("the CBOR ends early", offset=len(data)) from error
    except (cbor2.CBORError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedMessage("not CBOR that is understood here", found=str(error)[:120]) from error
    if stream.tell() != len(data):
        raise MalformedMessage("there is something after the CBOR value", offset=stream.tell(), expected="the end")
    return value


def _refuse_tag(*_: object) -> object:
    raise ValueError("tags are not understood")


_SEMANTIC_DECODERS: Final[Mapping[int, Any]] = dict.fromkeys(_TAGS_WITH_A_MEANING, _refuse_tag)


def _plain(value: object) -> object:
    """Return `value` with undefined as None; raises `MalformedMessage` for what JSON and bytes cannot hold."""
    kind = type(value)
    if kind is str or kind is bytes or kind is int:  # without tags no integer has more than 64 bits
        return value
    if value is cbor2.undefined:
        return None
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items() if _is_key(key)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    _require_plain(value)
    return value


def _is_key(key: object) -> bool:
    if not isinstance(key, str):
        raise MalformedMessage("a CBOR key that is no text", found=repr(key)[:40])
    return True


def _require_plain(value: object) -> None:
    match value:
        case None | bool() | str() | bytes():
            return
        case int():
            if not INTEGER_MIN <= value <= INTEGER_MAX:
                raise MalformedMessage("an integer beyond 64 bits", expected=f"at most {INTEGER_MAX}", found=value)
        case float():
            if not math.isfinite(value):
                raise MalformedMessage("a number that JSON does not have", found=str(value))
        case list() | tuple():
            for item in value:
                _require_plain(item)
        case Mapping():
            for key, member in value.items():
                _is_key(key)
                _require_plain(member)
        case _:
            raise MalformedMessage("a CBOR value that is not understood here", found=type(value).__name__)
