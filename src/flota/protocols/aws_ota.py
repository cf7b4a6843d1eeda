"""The job document of an OTA update, `afr_ota`: what AWS's update agents read. Both roles, no IO.

Source: docs/reference/aws-iot.md, "The OTA job document"; aws/ota-for-aws-iot-embedded-sdk (source/ota.c).
"""

from __future__ import annotations

import base64
import binascii
import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flota.protocols.malformed import MalformedMessage

URL_MAX_LEN: Final = 1_500
"""Characters of an address that agents have room for."""

AUTH_SCHEME: Final = "aws.s3.presigned"
"""The only scheme that agents know: the address itself is the secret."""

FIRMWARE_FILE_TYPE: Final = 0
"""Agents restart into a file of this type and test it; any other is stored and that is all."""

NUMBER_MAX: Final = 0xFFFF_FFFF

SIGNATURE_KEYS: Final = ("sig-sha256-ecdsa", "sig-sha256-rsa", "sig-sha1-rsa", "sig-sha1-ecdsa")
"""Members that may hold a signature; a device reads the one it was built for."""

_PLACEHOLDER: Final = re.compile(r"\$\{aws:iot:s3-presigned-url:https://([^{}\s]{1,2048})\}")
_S3_HOST: Final = r"s3(?:[.-][a-z0-9-]+)?\.amazonaws\.com(?:\.cn)?\Z"
_PATH_STYLE: Final = re.compile(_S3_HOST)
_BUCKET_STYLE: Final = re.compile(r"([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])\." + _S3_HOST)


class DataProtocol(enum.StrEnum):
    """How the file's bytes reach the device."""

    MQTT = "MQTT"
    HTTP = "HTTP"


@dataclass(frozen=True, slots=True)
class OtaFile:
    """A file of an update. `size` in bytes; `signatures` are base64 under the names that devices look for.

    `path` is the name on the device, `certfile` the name of the signer's certificate there; `url` is for HTTP.
    """

    path: str
    size: int
    file_id: int = 0
    certfile: str | None = None
    file_type: int = FIRMWARE_FILE_TYPE
    signatures: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None

    def members(self) -> dict[str, object]:
        """Return its JSON, as AWS orders it; what is not there is left out."""
        members: dict[str, object] = {"filepath": self.path, "filesize": self.size, "fileid": self.file_id}
        if self.certfile is not None:
            members["certfile"] = self.certfile
        members["fileType"] = self.file_type
        if self.url is not None:
            members |= {"update_data_url": self.url, "auth_scheme": AUTH_SCHEME}
        return members | dict(self.signatures)


@dataclass(frozen=True, slots=True)
class OtaUpdate:
    """What an `afr_ota` document says. `stream` is None where MQTT is not among the protocols."""

    protocols: tuple[DataProtocol, ...]
    file: OtaFile
    stream: str | None = None


def pack_ota_document(update: OtaUpdate) -> dict[str, object]:
    """Return the job document of an update, to be embedded as it is."""
    members: dict[str, object] = {"protocols": [protocol.value for protocol in update.protocols]}
    if update.stream is not None:
        members["streamname"] = update.stream
    return {"afr_ota": members | {"files": [update.file.members()]}}


def parse_ota_document(document: object) -> OtaUpdate:
    """Return what an agent reads in a job document. Raises `MalformedMessage` for what it would call non-conforming.

    Needed are protocols and files, and of the first file, the only one that agents look at, its size and its id.
    Protocols that are not known are left out.
    """
    ota = _object(_object(document, "the job document").get("afr_ota"), "afr_ota")
    listed = ota.get("protocols")
    files = ota.get("files")
    if not isinstance(listed, list) or not isinstance(files, list) or not files:
        raise MalformedMessage("an OTA job without protocols or files")
    known = set(DataProtocol)
    protocols = tuple(DataProtocol(name) for name in listed if isinstance(name, str) and name in known)
    members = _object(files[0], "a file")
    file = OtaFile(
        path=_text(members, "filepath") or "",
        size=_number(members, "filesize"),
        file_id=_number(members, "fileid"),
        certfile=_text(members, "certfile"),
        file_type=_number(members, "fileType", default=FIRMWARE_FILE_TYPE),
        signatures={name: _signature(members, name) for name in SIGNATURE_KEYS if name in members},
        url=_text(members, "update_data_url"),
    )
    return OtaUpdate(protocols, file, _text(ota, "streamname"))


def presigned_placeholder(bucket: str, key: str) -> str:
    """Return the text that stands in a stored document where the address is put in at each hand-out."""
    return "${aws:iot:s3-presigned-url:https://s3.amazonaws.com/" + f"{bucket}/{key}" + "}"


def substitute_presigned(document: object, address_of: Callable[[str, str], str | None]) -> Any:
    """Return a copy of `document` whose texts have addresses in the place of presigned placeholders.

    `address_of` is given bucket and key; where it returns None, and where a placeholder names no S3 address, the text
    stays as it is. Path-style and bucket-style hosts are known, with a region and without.
    """
    if isinstance(document, str):
        return _PLACEHOLDER.sub(lambda found: _address(found, address_of), document)
    if isinstance(document, Mapping):
        return {name: substitute_presigned(value, address_of) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [substitute_presigned(value, address_of) for value in document]
    return document


def _address(found: re.Match[str], address_of: Callable[[str, str], str | None]) -> str:
    host, _, path = found[1].partition("/")
    if _PATH_STYLE.match(host):
        bucket, _, key = path.partition("/")
    else:
        named = _BUCKET_STYLE.match(host)
        bucket, key = (named[1], path) if named else ("", "")
    address = address_of(bucket, key) if bucket and key else None
    return found[0] if address is None else address


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise MalformedMessage(f"{what} is no object", found=type(value).__name__)
    return value


def _text(members: Mapping[str, Any], name: str) -> str | None:
    value = members.get(name)
    if value is not None and not isinstance(value, str):
        raise MalformedMessage(f"{name} is no text", found=type(value).__name__)
    return value


def _number(members: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """Return a number of 32 bits; as text it may be decimal, hexadecimal or octal, as C's strtoul reads it."""
    value = members.get(name, default)
    if isinstance(value, str) and value.isascii() and len(value) <= 12:
        try:
            value = int(value, 8 if re.match(r"0[0-7]+\Z", value) else 0)
        except ValueError:
            value = None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= NUMBER_MAX:
        found = repr(members.get(name))[:40]
        raise MalformedMessage(f"{name} is no number", expected=f"0 to {NUMBER_MAX}", found=found)
    return value


def _signature(members: Mapping[str, Any], key: str) -> str:
    text = _text(members, key) or ""
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedMessage(f"{key} is not base64", found=text[:40]) from error
    return text
