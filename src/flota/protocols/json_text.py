"""JSON from devices, strictly: UTF-8, no member twice, no NaN, bounded nesting. With our error, and no other."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from flota.protocols.malformed import MalformedMessage


def parse_json(payload: bytes) -> Any:
    """Return the value in `payload`. Raises `MalformedMessage`.

    Two readers may take different ones of two members of one name: such an object is refused (RFC 8259, 4).
    """
    try:
        return json.loads(payload.decode("utf-8"), object_pairs_hook=_members, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("not JSON in UTF-8", found=str(error)[:120]) from error


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
