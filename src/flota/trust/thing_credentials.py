"""What a thing is built with: the C arrays and macros of AWS IoT's examples, and a directory of files with the same.

Source: docs/reference/aws-iot.md, "What goes into a device"; the vendor's guide for the arrays' names and their form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from flota.errors import InvalidInput

SOURCE_MAX_BYTES: Final = 256 * 1024
THING_FILE_MAX_BYTES: Final = 16 * 1024

THING_FILE: Final = "thing.json"
ROOT_CA_FILE: Final = "root-ca.pem"
CERTIFICATE_FILE: Final = "certificate.pem"
PRIVATE_KEY_FILE: Final = "private.pem"
PUBLIC_KEY_FILE: Final = "public.pem"
CODE_CERTIFICATE_FILE: Final = "code-signing.pem"
SOURCE_FILE: Final = "aws_credentials.c"
HEADER_FILE: Final = "aws_config.h"
"""Names in a directory of credentials."""

ARRAYS: Final[Mapping[str, tuple[str, str]]] = {
    "aws_rootCACrt": ("root_ca", "Root certificate of the server's authority."),
    "aws_deviceCrt": ("certificate", "Certificate of the device."),
    "aws_devicePubKey": ("public_key", "Public key of the device."),
    "aws_devicePvtKey": ("private_key", "Private key of the device: show it to nobody."),
    "aws_codeVerCrt": ("code_certificate", "Certificate with which the device checks the signatures of new firmware."),
}
"""Array -> the field of `ThingCredentials` that it holds, and what it is."""

_MISSING: Final[Mapping[str, str]] = {
    "root_ca": "Put the root certificate here that your server's certificate comes from.",
    "private_key": "It never left the device, or wherever the request for the certificate was made.",
    "code_certificate": "The device type has none yet: flota type trust TYPE --code-certificate CERTIFICATE",
}

_IDENTIFIER: Final = "Made by Flota; the names and the form are those of AWS IoT's examples."
_STRING: Final = r'"(?:[^"\\\n]|\\[^\n])*"'
_STRING_OR_COMMENT: Final = re.compile(rf"({_STRING})|/\*.*?\*/|//[^\n]*", re.DOTALL)
_ARRAY: Final = re.compile(rf"\bchar\s+([A-Za-z_]\w*)\s*\[[^\]\n]{{0,40}}\]\s*=\s*((?:{_STRING}\s*)+);")
_LITERAL: Final = re.compile(_STRING)
_ESCAPE: Final = re.compile(r"\\(.)")
_ESCAPES: Final[Mapping[str, str]] = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "'": "'", "\\": "\\", "?": "?"}
_NEEDS_ESCAPE: Final = re.compile(r'["\\?]')
"""The question mark because of trigraphs."""


class BadCredentialsSource(InvalidInput):
    """The text has no arrays of credentials that can be read."""

    code = "bad-credentials-source"


class BadThingFile(InvalidInput):
    """The file does not say which thing it is for."""

    code = "bad-thing-file"


@dataclass(frozen=True, slots=True)
class ThingFile:
    """Which thing a directory of credentials is for, and where its server is."""

    thing_name: str
    client_id: str
    endpoint: str
    port: int


@dataclass(frozen=True, slots=True)
class ThingCredentials:
    """Everything in PEM; empty where there is nothing to give. Its repr shows no secret."""

    thing: ThingFile
    certificate: str
    root_ca: str = ""
    public_key: str = ""
    private_key: str = field(default="", repr=False)
    code_certificate: str = ""


def pack_credentials_source(credentials: ThingCredentials) -> str:
    """Return `aws_credentials.c`: every array, each line of a PEM file in quotes with its line end written out."""
    parts = [f'/* {_IDENTIFIER} */\n\n#include "aws_credentials.h"\n']
    for array, (name, what) in ARRAYS.items():
        text: str = getattr(credentials, name)
        comment = what if text else f"{what} {_MISSING.get(name, 'Not known.')}"
        parts.append(f"\n/* {comment} */\nconst char {array}[] =\n{_quoted(text)};\n")
    return "".join(parts)


def parse_credentials_source(text: str) -> dict[str, str]:
    """Return the text of every character array in a C source, by name. Raises `BadCredentialsSource`."""
    if len(text) > SOURCE_MAX_BYTES:
        raise BadCredentialsSource("the source is too long", expected=f"at most {SOURCE_MAX_BYTES} characters")
    plain = _STRING_OR_COMMENT.sub(lambda found: found[1] or " ", text)
    arrays = {found[1]: "".join(map(_unquoted, _LITERAL.findall(found[2]))) for found in _ARRAY.finditer(plain)}
    if not arrays:
        raise BadCredentialsSource("no character arrays in this source", expected='const char aws_deviceCrt[] = "…";')
    return arrays


def pack_config_header(thing: ThingFile) -> str:
    """Return `aws_config.h`: where the server is, and who the device is. Versions are the build's own affair."""
    return f"""\
/* {_IDENTIFIER} */

#ifndef AWS_CONFIG_H_
#define AWS_CONFIG_H_

#define AWS_IOT_ENDPOINT     "{thing.endpoint}"
#define AWS_MQTT_PORT        ( {thing.port} )

#ifndef CLIENT_IDENTIFIER
    #define CLIENT_IDENTIFIER    "{thing.client_id}"
#endif

#ifndef THING_NAME
    #define THING_NAME           "{thing.thing_name}"
#endif

/* Raise one of these with every build: a device refuses an image that is not newer than its own. */
#ifndef APP_VERSION_MAJOR
    #define APP_VERSION_MAJOR    1
    #define APP_VERSION_MINOR    0
    #define APP_VERSION_BUILD    0
#endif

#endif /* ifndef AWS_CONFIG_H_ */
"""


def pack_thing_file(thing: ThingFile) -> bytes:
    """Return `thing.json`."""
    members = {
        "thing_name": thing.thing_name,
        "client_id": thing.client_id,
        "endpoint": thing.endpoint,
        "port": thing.port,
    }
    return (json.dumps(members, indent=2) + "\n").encode("utf-8")


def parse_thing_file(data: bytes) -> ThingFile:
    """Return which thing the file names. Raises `BadThingFile`."""
    try:
        members = json.loads(data[: THING_FILE_MAX_BYTES + 1])
    except (ValueError, RecursionError) as error:
        raise BadThingFile("not JSON in UTF-8", found=str(error)[:120]) from error
    if not isinstance(members, dict):
        raise BadThingFile("not a JSON object")
    port = members.get("port")
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 1 << 16:
        raise BadThingFile("the port is missing or no port", found=repr(port)[:40])
    return ThingFile(_name(members, "thing_name"), _name(members, "client_id"), _name(members, "endpoint"), port)


def _name(members: Mapping[str, object], key: str) -> str:
    text = members.get(key)
    if not isinstance(text, str) or not text or not text.isprintable():
        raise BadThingFile(f"{key} is missing or no printable text")
    return text


def _quoted(text: str) -> str:
    lines = [_NEEDS_ESCAPE.sub(lambda found: "\\" + found[0], line) for line in text.splitlines()]
    return "\n".join(f'"{line}\\n"' for line in lines) or '""'


def _unquoted(literal: str) -> str:
    def one(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise BadCredentialsSource("an escape sequence that is not understood", found=ascii(found[0]))
        return _ESCAPES[found[1]]

    return _ESCAPE.sub(one, literal[1:-1])
