"""Signed links to one artifact for one device until one moment: what stands in a URL instead of a secret.

A token is `<expires>.<device>.<mac>`: Unix seconds, the device's id, and base64url HMAC-SHA-256 (128 bits of it) over
purpose, artifact, device and expiry under a key that never leaves the data directory. Nothing is stored per token.
Source: docs/reference/server.md, "Download tokens".
"""

from __future__ import annotations

import base64
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from flota.durable_files import PRIVATE_FILE_MODE, write_durably
from flota.errors import InvalidInput, Unauthenticated

KEY_BYTES: Final = 32
MAC_BYTES: Final = 16
"""128 bits: forging takes 2^127 requests on average; half the text of a whole SHA-256."""

TOKEN_MAX_LEN: Final = 80
DEFAULT_LIFETIME: Final = timedelta(hours=24)
"""Longer than the slowest whole download on a link that is worth having; a poll gives a fresh one."""

_PURPOSE: Final = b"flota artifact download v1"


@dataclass(frozen=True, slots=True)
class DownloadGrant:
    """What a valid token allows: the artifact `sha256` (hex) to the device `device_id` until `expires_at`."""

    sha256: str
    device_id: int
    expires_at: datetime


class DownloadTokens:
    """Issues and checks tokens. Pure but for its key; time comes in."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise InvalidInput("the key of download links has a wrong length", expected=KEY_BYTES, found=len(key))
        self._key = key

    def __repr__(self) -> str:
        return "DownloadTokens(<key>)"

    def issue(self, sha256: str, *, device_id: int, now: datetime, lifetime: timedelta = DEFAULT_LIFETIME) -> str:
        """Return a token for the artifact `sha256` (hex), bound to the device, to be put into `?token=`."""
        expires = int((now + lifetime).timestamp())
        return f"{expires}.{device_id}.{self._mac(sha256, device_id, expires)}"

    def check(self, token: str, sha256: str, *, now: datetime) -> DownloadGrant:
        """Return what the token allows; raises `Unauthenticated` if malformed, expired, or for another artifact."""
        expires_text, _, rest = token.partition(".")
        device_text, _, mac = rest.partition(".")
        well_formed = len(token) <= TOKEN_MAX_LEN and token.isascii()
        if not (well_formed and expires_text.isdecimal() and device_text.isdecimal()):
            raise Unauthenticated("the download token is malformed")
        expires, device_id = int(expires_text), int(device_text)
        if not hmac.compare_digest(mac, self._mac(sha256, device_id, expires)):
            raise Unauthenticated("the download token is not valid for this artifact")
        if now.timestamp() >= expires:
            raise Unauthenticated(
                "the download token has expired", hint="Ask for the update again to get a fresh link."
            )
        return DownloadGrant(sha256, device_id, datetime.fromtimestamp(expires, UTC))

    def mac(self, purpose: bytes, *fields: str) -> str:
        """Return 128 bits over `fields` in base64url, for links of another `purpose` than these tokens'."""
        return self._digest(b"\0".join((purpose, *(field.encode() for field in fields))))

    def _mac(self, sha256: str, device_id: int, expires: int) -> str:
        return self.mac(_PURPOSE, sha256, str(device_id), str(expires))

    def _digest(self, message: bytes) -> str:
        mac = hmac.digest(self._key, message, "sha256")[:MAC_BYTES]
        return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def load_or_create_key(path: Path) -> bytes:
    """Return the key kept at `path`, made (mode 0600) by the first call. Raises `InvalidInput` for a damaged file."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = secrets.token_bytes(KEY_BYTES)
        write_durably(path, key, mode=PRIVATE_FILE_MODE)
    if len(key) != KEY_BYTES:
        raise InvalidInput(
            f"{path} is damaged",
            expected=f"{KEY_BYTES} bytes",
            found=f"{len(key)} bytes",
            hint="Remove the file: links handed out so far stop working, devices ask for new ones.",
        )
    return key
