"""How AmebaD firmware pulls an `OTA_All.bin` over HTTP, and the small API of the vendor's web page. Both roles, no IO.

The device's parser knows one spelling of one header: what answers it has to write `Content-Length` exactly so.
Source: docs/reference/ameba-push.md, "Pulling over HTTP"; ambiot/ambd_sdk: rtl8721d_ota.c (`http_update_ota`);
Ameba-AIoT/ameba-OTA-UI.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from flota.protocols.malformed import MalformedMessage
from flota.protocols.peer_text import clean_bytes, clean_text

UI_PORT: Final = 3000
TRIGGER_PORT: Final = 5000
TRIGGER: Final = b"start_ota"
UPLOAD_PATH: Final = "/api/uploadfile"
CLIENTS_PATH: Final = "/api/connectedclients"
CLIENT_SEEN_FOR_S: Final = 4.5
"""A device that has not posted its state for so long is no longer shown; it posts every 3.5 s or so."""

FIRST_READ_BYTES: Final = 512
"""The device wants the status line, and best all headers, in its first read."""

REQUEST_MAX_BYTES: Final = 8192
STATE_MAX_LEN: Final = 64
VERSION_MAX_LEN: Final = 64
OTA_HEADER_BYTES: Final = 32
"""What the device takes for the headers of the file, so there can be one sub-header only."""

LENGTH_NAMES: Final = (b"Content-Length", b"CONTENT-LENGTH")
"""The only spellings that the device finds; it compares bytes."""


class OtaState(enum.StrEnum):
    """What `OTA_Http` posts. `COMPLETED` comes after a failed download too."""

    IDLE = "OTA_STATE_IDLE"
    STARTED = "OTA_STATE_RECEIVED_START_SIGNAL"
    DOWNLOADING = "OTA_STATE_DOWNLOAD_FIRMWARE_IN_PROGRESS"
    COMPLETED = "OTA_STATE_DOWNLOAD_FIRMWARE_COMPLETED"
    REBOOT = "OTA_STATE_REBOOT"


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A request's line and its body's length in bytes; `path` without query."""

    method: str
    path: str
    body_length: int


def pack_pull_request(host: str, resource: str) -> bytes:
    """Return the request of `http_update_ota`, byte for byte; `resource` without its leading slash."""
    return f"GET /{resource} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("ascii")


def parse_pull_request(head: bytes) -> PullRequest:
    """Return what a request's head (up to its empty line) asks for. Raises `MalformedMessage`."""
    line, _, rest = head.partition(b"\r\n")
    words = line.split(b" ")
    if len(head) > REQUEST_MAX_BYTES or len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise MalformedMessage("not an HTTP request", expected="METHOD /path HTTP/1.1", found=clean_bytes(line))
    length = 0
    for header in rest.split(b"\r\n"):
        name, _, value = header.partition(b":")
        if name.strip().lower() == b"content-length":
            digits = value.strip()
            if not digits.isdigit() or len(digits) > 9:
                raise MalformedMessage("not a length", found=clean_bytes(value))
            length = int(digits)
    path = clean_bytes(words[1].partition(b"?")[0])
    return PullRequest(clean_bytes(words[0]).upper(), path, length)


def pack_pull_answer(size: int) -> bytes:
    """Return the head before a file of `size` bytes: short, with the one spelling that devices know."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n".encode(
        "ascii"
    )
    assert len(head) <= FIRST_READ_BYTES
    return head


def parse_pull_answer(first_read: bytes) -> tuple[int, int]:
    """Return (length of the body, where in `first_read` it begins), as the device reads an answer.

    Raises `MalformedMessage` for whatever makes it give up: another status than 200, a length that is spelled
    otherwise, a length of 0, headers that do not end within the first read.
    """
    window = first_read[:FIRST_READ_BYTES]
    words = window.split(b" ", 2)
    if len(words) < 3 or words[1] != b"200":
        found = clean_bytes(words[1]) if len(words) > 1 else clean_bytes(window)
        raise MalformedMessage("no answer that the device takes", expected="200", found=found)
    head, end, _ = window.partition(b"\r\n\r\n")
    if not end:
        raise MalformedMessage("the headers are too long", expected=f"at most {FIRST_READ_BYTES} bytes")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name in LENGTH_NAMES and value.strip().isdigit():
            size = int(value.strip()[:10])
            if size == 0:
                raise MalformedMessage("New firmware size = 0 !")
            return size, len(head) + len(end)
    raise MalformedMessage("No Content-Length in header", expected="Content-Length, spelled exactly so")


@dataclass(frozen=True, slots=True)
class StatePost:
    """What a device posts, cleaned. `version` is an addition of the app's own: the vendor's example has the state only.

    Source: docs/reference/ameba-push.md, "Pulling over HTTP".
    """

    state: str
    version: str | None = None

    def pack(self) -> bytes:
        """Return the body of the post."""
        more = {} if self.version is None else {"version": self.version}
        return json.dumps({"OTA_state": self.state, **more}, separators=(",", ":")).encode()


def pack_state_request(host: str, post: StatePost) -> bytes:
    """Return the request with which `OTA_Http` posts its state, byte for byte."""
    body = post.pack()
    head = (
        f"POST {CLIENTS_PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: keep-alive\r\n\r\n"
    )
    return head.encode("ascii") + body


def parse_state_post(body: bytes) -> StatePost:
    """Return a device's post; the first JSON object counts. Raises `MalformedMessage`.

    The device re-uses its buffer: something may follow the object. A version that is no text does not count.
    """
    text = body[:REQUEST_MAX_BYTES].decode("utf-8", "replace").lstrip()
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("not a device's state", found=clean_text(text)) from error
    state = found.get("OTA_state") if isinstance(found, Mapping) else None
    if not isinstance(state, str):
        raise MalformedMessage("not a device's state", expected='{"OTA_state": "…"}', found=clean_text(text))
    version = found.get("version")
    told = clean_text(version, max_len=VERSION_MAX_LEN) if isinstance(version, str) else ""
    return StatePost(clean_text(state, max_len=STATE_MAX_LEN), told or None)
