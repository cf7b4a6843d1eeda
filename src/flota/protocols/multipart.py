"""Forms with files, `multipart/form-data`, as HTTP clients upload them. Pure; whole bodies of bounded size.

Source: RFC 7578 and RFC 2046, 5.1; docs/reference/blynk.md, "Shipments".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flota.protocols.malformed import MalformedMessage

FIELDS_MAX: Final = 32
PART_HEADERS_MAX_BYTES: Final = 4096
BOUNDARY_MAX_LEN: Final = 70
"""RFC 2046, 5.1.1."""

_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]\Z", flags=re.ASCII)
_PARAMETER: Final = re.compile(r';\s*([A-Za-z*]+)=(?:"((?:[^"\\]|\\.)*)"|([^;\s"]*))', flags=re.ASCII)
_CRLF: Final = b"\r\n"


@dataclass(frozen=True, slots=True)
class FormField:
    """One field: its bytes, and the file name where it is a file."""

    data: bytes
    filename: str | None = None


def parse_boundary(content_type: str) -> str:
    """Return the boundary in a `Content-Type` of `multipart/form-data`. Raises `MalformedMessage`."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise MalformedMessage("not a form", expected="multipart/form-data", found=ascii(media_type[:80]))
    boundary = _parameters(content_type).get("boundary", "")
    if not _BOUNDARY.match(boundary):
        raise MalformedMessage("the form has no boundary, or one that cannot be", found=ascii(boundary[:80]))
    return boundary


def parse_form(body: bytes, boundary: str) -> Mapping[str, FormField]:
    """Return the fields of a form by name. Raises `MalformedMessage`: cut off, a name twice, more than 32 fields."""
    delimiter = b"--" + boundary.encode("ascii", "replace")
    fields: dict[str, FormField] = {}
    position = _first_delimiter(body, delimiter)
    while not body.startswith(b"--", position):
        position = _line_end(body, position)
        end = body.find(_CRLF + delimiter, position - len(_CRLF))
        if end < 0:
            raise MalformedMessage("the form ends in the middle of a field", offset=position)
        name, field = _part(body, position, max(end, position))
        if name in fields:
            raise MalformedMessage("a field of the form is there twice", offset=position, found=ascii(name[:40]))
        fields[name] = field
        if len(fields) > FIELDS_MAX:
            raise MalformedMessage("the form has too many fields", expected=f"at most {FIELDS_MAX}")
        position = end + len(_CRLF) + len(delimiter)
    return fields


def _first_delimiter(body: bytes, delimiter: bytes) -> int:
    if body.startswith(delimiter):
        return len(delimiter)
    place = body.find(_CRLF + delimiter)
    if place < 0:
        raise MalformedMessage("the form's boundary is not in its body")
    return place + len(_CRLF) + len(delimiter)


def _line_end(body: bytes, position: int) -> int:
    """Return where the line behind a delimiter begins; white space may follow it."""
    end = body.find(_CRLF, position, position + 128)
    if end < 0 or body[position:end].strip(b" \t"):
        raise MalformedMessage("something other than a new line follows the form's boundary", offset=position)
    return end + len(_CRLF)


def _part(body: bytes, begin: int, end: int) -> tuple[str, FormField]:
    head_end = body.find(_CRLF * 2, begin, min(end, begin + PART_HEADERS_MAX_BYTES))
    if head_end < 0:
        raise MalformedMessage("a field of the form has no end of its headers", offset=begin)
    for line in body[begin:head_end].split(_CRLF):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            told = _parameters(value.decode("utf-8", "replace"))
            if told.get("name"):
                return told["name"], FormField(body[head_end + 2 * len(_CRLF) : end], told.get("filename"))
    raise MalformedMessage("a field of the form has no name", offset=begin)


def _parameters(header: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, quoted, plain in _PARAMETER.findall(header):
        found.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) if quoted else plain)
    return found
