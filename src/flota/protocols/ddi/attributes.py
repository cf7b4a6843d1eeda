"""configData: what a device says about itself, and how it changes what is known."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from flota.errors import InvalidInput, TooManyRequests
from flota.protocols.ddi.reading import decode

ATTRIBUTE_MAX_LEN: Final = 128
"""Characters of a key, and of a value."""

ATTRIBUTES_MAX: Final = 100
"""Per device."""

QUOTA_RETRY_AFTER_S: Final = 3600
"""A quota does not pass by waiting; this keeps a client that insists from asking every second."""

_ATTRIBUTE_TEXT = re.compile(r"[A-Za-z0-9_\-!@#$%^&*()+=\[\]{}|;:'\",.<>/\\?\s]*\Z", re.ASCII)


class InvalidAttributes(InvalidInput):
    """A key or value is too long, empty, or has characters that attributes may not have."""

    code = "invalid-attributes"


class TooManyEntries(TooManyRequests):
    """A quota of the DDI is used up; `what`, `limit` and `found` say which."""

    code = "too-many-entries"

    def __init__(self, what: str, *, limit: int, found: int) -> None:
        super().__init__(f"too many {what}: at most {limit}, found {found}", retry_after_s=QUOTA_RETRY_AFTER_S)
        self.what = what
        self.limit = limit


class AttributeMode(enum.StrEnum):
    """What to do with the attributes known so far."""

    MERGE = "merge"
    REPLACE = "replace"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class ConfigData:
    """Attributes by key; None removes the key (in merge and replace)."""

    data: Mapping[str, str | None]
    mode: AttributeMode = AttributeMode.MERGE


class _Message(msgspec.Struct):
    data: dict[str, str | None]
    mode: AttributeMode | None = None


_DECODER = msgspec.json.Decoder(_Message)


def pack_config_data(config: ConfigData) -> bytes:
    """Return the compact JSON of configData."""
    return msgspec.json.encode({"mode": config.mode.value, "data": dict(config.data)})


def parse_config_data(body: bytes, *, cbor: bool = False) -> ConfigData:
    """Return what a device says about itself; no mode means merge, legacy members are ignored.

    Raises `MalformedMessage` when it is no configData, `InvalidAttributes` when an attribute breaks a rule.
    """
    message = decode(_DECODER, body, "configData", cbor=cbor)
    if not message.data:
        raise InvalidAttributes("there are no attributes", expected="at least one in data")
    for key, value in message.data.items():
        if not key.strip():
            raise InvalidAttributes("an attribute without a name")
        for text in (key, value or ""):
            if len(text) > ATTRIBUTE_MAX_LEN:
                raise InvalidAttributes(
                    "an attribute is too long",
                    expected=f"at most {ATTRIBUTE_MAX_LEN} characters",
                    found=f"{len(text)} characters",
                )
            if not _ATTRIBUTE_TEXT.match(text):
                raise InvalidAttributes(
                    "an attribute has characters that are not allowed",
                    expected="ASCII letters, digits, white space and usual signs",
                    found=ascii(text),
                )
    return ConfigData(message.data, message.mode or AttributeMode.MERGE)


def merged_attributes(known: Mapping[str, str], config: ConfigData) -> dict[str, str]:
    """Return the attributes after `config`. Raises `TooManyEntries` above 100, and then nothing is to be changed."""
    if config.mode is AttributeMode.REMOVE:
        return {key: value for key, value in known.items() if key not in config.data}
    merged: dict[str, str | None] = {} if config.mode is AttributeMode.REPLACE else dict(known)
    merged.update(config.data)
    result = {key: value for key, value in merged.items() if value is not None}
    if len(result) > ATTRIBUTES_MAX:
        raise TooManyEntries("attributes", limit=ATTRIBUTES_MAX, found=len(result))
    return result
