"""espota: how Arduino's tools push to ESP boards. An invitation by UDP, an answer, then the device fetches by TCP.

Both roles, no IO. The two authentications are those of the devices; they prove who may push, not what is pushed.
Source: docs/reference/espota.md; espressif/arduino-esp32:tools/espota.py, libraries/ArduinoOTA; esp8266/Arduino.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from flota.protocols.malformed import MalformedMessage
from flota.protocols.peer_text import clean_bytes

ESP32_PORT: Final = 3232
ESP8266_PORT: Final = 8266

INVITATION_TRIES: Final = 10
ANSWER_LIMIT_S: Final = 10.0
CONNECT_LIMIT_S: Final = 10.0
RESULT_TRIES: Final = 10
RESULT_LIMIT_S: Final = 30.0
"""The device verifies the image after the last byte: the tool waits ten times so long for its OK."""

BLOCK_SIZE: Final = 1024
ANSWER_READ_SIZE: Final = 10
DEVICE_READ_SIZE: Final = 1460
DEVICE_SILENCE_S: Final = 1.0
DEVICE_REPEATS: Final = 3
"""After a second without data the device repeats its last count, so often; then it gives up."""

PBKDF2_ROUNDS: Final = 10_000
DATAGRAM_MAX_BYTES: Final = 256

OK: Final = b"OK"
AUTHENTICATION_FAILED: Final = b"Authentication Failed"

_HEX32 = re.compile(r"[0-9a-f]{32}\Z")
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")


class UpdateCommand(enum.IntEnum):
    """What the file is for."""

    FIRMWARE = 0
    FILE_SYSTEM = 100


class AuthProtocol(enum.StrEnum):
    """Which computation the length of the device's nonce asks for."""

    MD5 = "md5"
    PBKDF2 = "pbkdf2"


class PasswordHash(enum.StrEnum):
    """How the device keeps its password; with PBKDF2 the sender has to try."""

    SHA256 = "sha256"
    MD5 = "md5"


@dataclass(frozen=True, slots=True)
class Invitation:
    """What the sender says first: `tcp_port` is where it waits, `size` in bytes, `md5` lower-case hex of the file."""

    command: int
    tcp_port: int
    size: int
    md5: str


@dataclass(frozen=True, slots=True)
class AuthAnswer:
    """The sender's answer to a nonce; both in lower-case hex."""

    cnonce: str
    response: str


def pack_invitation(invitation: Invitation) -> bytes:
    """Return the datagram."""
    return f"{int(invitation.command)} {invitation.tcp_port} {invitation.size} {invitation.md5}\n".encode("ascii")


def parse_invitation(datagram: bytes) -> Invitation | None:
    """Return the invitation, None for what a device meets with silence: another command, an MD5 of another length."""
    words = datagram[:DATAGRAM_MAX_BYTES].split()
    if len(words) != 4:
        return None
    numbers = [int(word) if word.isdigit() and len(word) <= 10 else -1 for word in words[:3]]
    md5 = words[3].decode("ascii", "replace").lower()
    command, port, size = numbers
    known = command in {UpdateCommand.FIRMWARE, UpdateCommand.FILE_SYSTEM}
    if not known or not 0 < port <= 0xFFFF or size < 0 or not _HEX32.match(md5):
        return None
    return Invitation(command, port, size, md5)


def pack_nonce(nonce: str) -> bytes:
    """Return the device's demand to authenticate; it has no terminator."""
    return f"AUTH {nonce}".encode("ascii")


def parse_answer(datagram: bytes) -> str | None:
    """Return the nonce that the device demands an answer to, None when it accepts at once.

    Raises `MalformedMessage` for anything else, the device's refusal included.
    """
    text = datagram[:DATAGRAM_MAX_BYTES].strip()
    if text == OK:
        return None
    word, _, nonce = text.partition(b" ")
    spelled = nonce.decode("ascii", "replace").lower()
    if word == b"AUTH" and (_HEX32.match(spelled) or _HEX64.match(spelled)):
        return spelled
    if text.startswith(AUTHENTICATION_FAILED):
        raise MalformedMessage("the device refused the password", hint="Give the password of the sketch.")
    raise MalformedMessage(
        "no answer that a device gives to an invitation", expected="OK or AUTH with a nonce", found=clean_bytes(text)
    )


def auth_protocol_of(nonce: str) -> AuthProtocol:
    """Return which computation the nonce asks for. Raises `MalformedMessage` for another length."""
    if _HEX32.match(nonce):
        return AuthProtocol.MD5
    if _HEX64.match(nonce):
        return AuthProtocol.PBKDF2
    raise MalformedMessage("a nonce of another length", expected="32 or 64 hex digits", found=len(nonce))


def auth_response(password: str, nonce: str, cnonce: str, *, stored_as: PasswordHash = PasswordHash.SHA256) -> str:
    """Return the response in lower-case hex; `stored_as` matters only for nonces of 64 digits."""
    if auth_protocol_of(nonce) is AuthProtocol.MD5:
        return _md5(f"{_md5(password)}:{nonce}:{cnonce}")
    kept = _sha256(password) if stored_as is PasswordHash.SHA256 else _md5(password)
    salt = f"{nonce}:{cnonce}".encode()
    key = hashlib.pbkdf2_hmac("sha256", kept.encode(), salt, PBKDF2_ROUNDS, 32).hex()
    return _sha256(f"{key}:{nonce}:{cnonce}")


def make_cnonce(nonce: str, filename: str, invitation: Invitation, address: str) -> str:
    """Return the sender's own nonce as the tool makes it; its content is free to the device."""
    text = f"{filename}{invitation.size}{invitation.md5}{address}"
    return _md5(text) if auth_protocol_of(nonce) is AuthProtocol.MD5 else _sha256(text)


def pack_auth(answer: AuthAnswer) -> bytes:
    """Return the datagram with the sender's answer to a nonce."""
    return f"200 {answer.cnonce} {answer.response}\n".encode("ascii")


def parse_auth(datagram: bytes, nonce: str) -> AuthAnswer | None:
    """Return the sender's answer, None for what a device meets with silence: another word, or wrong lengths."""
    words = datagram[:DATAGRAM_MAX_BYTES].split()
    if len(words) != 3 or words[0] != b"200":
        return None
    wanted = _HEX32 if auth_protocol_of(nonce) is AuthProtocol.MD5 else _HEX64
    cnonce, response = (word.decode("ascii", "replace").lower() for word in words[1:])
    if not wanted.match(cnonce) or not wanted.match(response):
        return None
    return AuthAnswer(cnonce, response)


def auth_holds(password: str, nonce: str, answer: AuthAnswer, *, stored_as: PasswordHash) -> bool:
    """Return whether the answer is that of someone who knows the password."""
    expected = auth_response(password, nonce, answer.cnonce, stored_as=stored_as)
    return hmac.compare_digest(expected, answer.response)


def says_ok(answers: bytes) -> bool:
    """Return whether the device's answers so far hold its final OK; it may be glued to the last count."""
    return OK in answers


def refusal_in(answers: bytes) -> str | None:
    """Return what else than counts the device said, cleaned; None when there were only counts and OK."""
    text = answers.replace(OK, b"").strip(b"0123456789 \r\n")
    return clean_bytes(text) or None


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
