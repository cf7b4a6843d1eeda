"""What a device type's devices boot with, as options name it: a version or a boot loader, a key or its digest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from flota.errors import InvalidInput, NotFound

NONE: Final = "none"
"""Clears a fact."""

DIGEST_FILE_BYTES: Final = 32
"""What espsecure writes as a key digest: the SHA-256 itself."""

_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}\Z")


def idf_version_of(text: str) -> str:
    """Return the ESP-IDF version that `text` means: itself, or that in the boot loader image of that name.

    Raises `InvalidInput` for a file that says none; what is no version is the server's to refuse.
    """
    path = Path(text)
    if not path.is_file():
        return text
    from flota.cli.image_files import read_file
    from flota.images.inspection import inspect
    from flota.images.model import ImageFormat

    found = inspect(read_file(path), name=path.name)
    if found.format is not ImageFormat.ESP_BOOTLOADER:
        raise InvalidInput(
            f"{path} is no boot loader",
            expected="a version such as 5.1, or a boot loader image",
            found=found.format.value,
        )
    if found.idf_version is None:
        raise InvalidInput(
            f"{path} does not say which ESP-IDF it was built with",
            hint="Older boot loaders do not: give the version instead, e.g. --bootloader-idf 4.4.",
        )
    return found.idf_version


def key_digest_of(reference: str) -> str:
    """Return the digest (64 hex digits) that efuses hold for a key.

    `reference` is the digest, a file with it (32 bytes, as espsecure writes them), or a public key as path or name.
    Raises `NotFound`, or `BadPublicKey` for a key that Secure Boot v2 cannot use.
    """
    if _DIGEST.match(reference):
        return reference.lower()
    from flota.cli.signers import read_key_text
    from flota.images.esp_secure_boot import public_key_digest

    path = Path(reference)
    if path.is_file() and path.stat().st_size == DIGEST_FILE_BYTES:
        return path.read_bytes().hex()
    try:
        text = read_key_text(reference)
    except NotFound as error:
        raise NotFound(
            "no such Secure Boot key",
            expected="64 hex digits, or a file or name of a public key",
            found=error.found,
            hint="`flota image inspect FILE` shows the digest of the key that signed an image.",
        ) from error
    return public_key_digest(text)
