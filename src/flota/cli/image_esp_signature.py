"""What `flota image verify` does with an ESP image: check its Secure Boot v2 signatures against trusted public keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flota.cli.image_files import read_file
from flota.cli.output import echo, echo_json

ESP_IMAGE_MAGIC: Final = b"\xe9"


def verify_esp_image(file: Path, data: bytes, public_keys: Sequence[Path], *, as_json: bool) -> None:
    """Print by which key the image is signed.

    Raises `ImageError` when it is damaged, a `SecureBootError` when no signature holds or none is of a trusted key,
    `BadPublicKey` for a file that is no key of Secure Boot v2.
    """
    from flota.images.esp_app import check_checksum, check_hash, walk_image
    from flota.images.esp_secure_boot import public_key_digest, require_signed

    trusted = {public_key_digest(read_file(path)) for path in public_keys}
    layout = walk_image(data)
    check_checksum(data, layout)
    check_hash(data, layout)
    block = require_signed(data, layout.image_size, trusted=trusted)
    if as_json:
        echo_json({"scheme": block.scheme, "key_digest": block.key_digest, "block_offset": block.offset})
        return
    echo(f"{file.name}: {layout.image_size} bytes")
    echo(f"signed by the {block.scheme} key with the digest {block.key_digest}")
