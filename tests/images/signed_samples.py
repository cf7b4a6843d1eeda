"""Images signed for Secure Boot v2 with fixed P-256 keys, without the vendor's tool."""

from __future__ import annotations

import hashlib
import struct
import zlib
from functools import cache

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from flota.images.esp_secure_boot import SIGNATURE_SECTOR_SIZE


@cache
def p256_key(number: int = 1) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(number * 0x1234567, ec.SECP256R1())


def pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, spki).decode()


def p256_block(content: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    digest = hashlib.sha256(content).digest()
    r, s = utils.decode_dss_signature(key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256()))))
    point = key.public_key().public_numbers()
    body = b"\xe7\x03\x00\x00" + digest + b"\x02"
    body += b"".join(number.to_bytes(32, "little") for number in (point.x, point.y, r, s)) + bytes(1031)
    return body + struct.pack("<I", zlib.crc32(body)) + bytes(16)


def padded(image: bytes) -> bytes:
    return image.ljust(-(-len(image) // SIGNATURE_SECTOR_SIZE) * SIGNATURE_SECTOR_SIZE, b"\xff")


def signed(image: bytes, *keys: ec.EllipticCurvePrivateKey) -> bytes:
    content = padded(image)
    return content + b"".join(p256_block(content, key) for key in keys).ljust(SIGNATURE_SECTOR_SIZE, b"\xff")
