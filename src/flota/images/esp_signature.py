"""Secure Boot v2 signature blocks that follow an ESP image: read and digested, never verified here.

The image is padded with 0xFF to a multiple of 4096; then one sector holds up to three blocks of 1216 bytes.
Source: docs/reference/esp-image.md; espressif/esptool:espsecure/__init__.py.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import Final

Buffer = bytes | memoryview

SIGNATURE_SECTOR_SIZE: Final = 4096
BLOCK_SIZE: Final = 1216
BLOCKS_MAX: Final = 3
BLOCK_MAGIC: Final = 0xE7

_VERSION_RSA: Final = 2
_VERSION_ECDSA: Final = 3
_CURVES: Final = {1: "ECDSA P-192", 2: "ECDSA P-256", 3: "ECDSA P-384"}
_CURVE_P384: Final = 3
_CRC_OFFSET: Final = 1196


@dataclass(frozen=True, slots=True)
class SignatureBlock:
    """One block. `key_digest` (hex SHA-256) is what the efuses of a device hold; the two `_ok` say what was checked."""

    offset: int
    scheme: str
    key_digest: str
    digest_ok: bool
    crc_ok: bool


def find_signature_blocks(data: Buffer, image_size: int) -> tuple[SignatureBlock, ...]:
    """Return the blocks in the sector after the image (whose `image_size` is in bytes); empty if there are none."""
    view = memoryview(data)
    start = -(-image_size // SIGNATURE_SECTOR_SIZE) * SIGNATURE_SECTOR_SIZE
    blocks: list[SignatureBlock] = []
    for index in range(BLOCKS_MAX):
        offset = start + index * BLOCK_SIZE
        block = bytes(view[offset : offset + BLOCK_SIZE])
        if len(block) < BLOCK_SIZE or block[0] != BLOCK_MAGIC or block[1] not in (_VERSION_RSA, _VERSION_ECDSA):
            break
        blocks.append(_parse_block(block, offset, view[:start]))
    return tuple(blocks)


def _parse_block(block: bytes, offset: int, content: memoryview) -> SignatureBlock:
    (crc,) = struct.unpack_from("<I", block, _CRC_OFFSET)
    crc_ok = crc == zlib.crc32(block[:_CRC_OFFSET])
    if block[1] == _VERSION_RSA:
        digest, scheme, key = block[4:36], "RSA-3072", block[36:812]
        computed = hashlib.sha256(content).digest()
    elif block[2] == 1:
        digest, scheme, key = block[4:52], _CURVES[_CURVE_P384], block[52:149]
        computed = hashlib.sha384(content).digest()
    else:
        digest, scheme, key = block[4:36], _CURVES.get(block[36], f"ECDSA curve {block[36]}"), block[36:101]
        computed = hashlib.sha256(content).digest()
    return SignatureBlock(offset, scheme, hashlib.sha256(key).hexdigest(), digest == computed, crc_ok)
