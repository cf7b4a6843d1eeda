"""Secure Boot v2: the signature blocks behind an ESP image, whether they hold, and the digests of their keys.

The image is padded with 0xFF to a multiple of 4096; then one sector holds up to three blocks of 1216 bytes. A block
carries its public key; a device trusts it when the digest of that key is burned into its efuses.

Source: docs/reference/esp-secure-boot.md; espressif/esptool:espsecure/__init__.py;
espressif/esp-idf:components/bootloader_support/src/secure_boot_v2/secure_boot_signatures_bootloader.c.
"""

from __future__ import annotations

import enum
import hashlib
import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from flota.errors import InvalidInput
from flota.images.model import ImageError, TruncatedImage

Buffer = bytes | memoryview

SIGNATURE_SECTOR_SIZE: Final = 4096
BLOCK_SIZE: Final = 1216
BLOCKS_MAX: Final = 3
BLOCK_MAGIC: Final = 0xE7
VERSION_RSA: Final = 2
VERSION_ECDSA: Final = 3
CRC_OFFSET: Final = 1196

RSA_BITS: Final = 3072
PSS_SALT_SIZE: Final = 32
_KEY_MAX_BYTES: Final = 64 * 1024
"""Longest PEM text that is looked at."""

_RSA_BLOCK: Final = struct.Struct("<BBH32s384sI384sI384sI16x")
_ECDSA_BLOCK: Final = struct.Struct("<BBBx32sB64s64s1031xI16x")
_P384_BLOCK: Final = struct.Struct("<BBBx48sB96s96s951xI16x")
assert _RSA_BLOCK.size == _ECDSA_BLOCK.size == _P384_BLOCK.size == BLOCK_SIZE

_RSA_KEY: Final = slice(36, 812)
_ECDSA_KEY: Final = slice(36, 101)
_P384_KEY: Final = slice(52, 149)
"""The bytes whose SHA-256 the efuses hold: modulus, exponent and precomputed values; or curve number and point."""


class SignatureScheme(enum.StrEnum):
    """What signed the image."""

    RSA_3072 = "RSA-3072"
    ECDSA_P192 = "ECDSA P-192"
    ECDSA_P256 = "ECDSA P-256"
    ECDSA_P384 = "ECDSA P-384"


_CURVE_NUMBERS: Final = MappingProxyType(
    {1: SignatureScheme.ECDSA_P192, 2: SignatureScheme.ECDSA_P256, 3: SignatureScheme.ECDSA_P384}
)
_CURVES: Final[MappingProxyType[SignatureScheme, ec.EllipticCurve]] = MappingProxyType(
    {
        SignatureScheme.ECDSA_P192: ec.SECP192R1(),
        SignatureScheme.ECDSA_P256: ec.SECP256R1(),
        SignatureScheme.ECDSA_P384: ec.SECP384R1(),
    }
)


class SecureBootError(ImageError):
    """A device with Secure Boot v2 would not start this image."""

    code = "secure-boot"


class NotSigned(SecureBootError):
    """There is no signature block behind the image."""

    code = "not-signed"


class BadSignatureBlock(SecureBootError):
    """A signature block is damaged or of an unknown kind."""

    code = "bad-signature-block"


class WrongContentDigest(SecureBootError):
    """The block is sound, but it was made for other content."""

    code = "wrong-content-digest"


class WrongSignature(SecureBootError):
    """The signature was not made with the key in its block."""

    code = "wrong-signature"


class UntrustedKey(SecureBootError):
    """The signatures hold, but none is of a key that was asked for."""

    code = "untrusted-key"


class SchemeUnavailable(SecureBootError):
    """The crypto library of this installation cannot check that curve."""

    code = "scheme-unavailable"


class BadPublicKey(InvalidInput):
    """Not a public key that Secure Boot v2 can use."""

    code = "bad-public-key"


@dataclass(frozen=True, slots=True)
class BlockContent:
    """What a block says, its CRC and layout found right. `key_digest` is the hex SHA-256 that efuses hold."""

    scheme: SignatureScheme
    content_digest: bytes
    key_digest: str
    public_key: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    """RSA: 384 bytes, most significant first. ECDSA: r and s, each least significant byte first."""


@dataclass(frozen=True, slots=True)
class SignatureBlock:
    """One block behind an image, checked. `fault` says in one line why it does not hold, None = it does.

    `verified` is None when nobody can say: the curve is one that this installation cannot compute. `fault_code` is the
    `code` of the error that `require_signed` would raise.
    """

    offset: int
    scheme: str
    key_digest: str | None
    verified: bool | None
    fault: str | None = None
    fault_code: str | None = None


def parse_block(raw: Buffer) -> BlockContent:
    """Return what the signature block in the first 1216 bytes of `raw` says; the signature is not checked.

    Raises `TruncatedImage` for fewer bytes; `BadSignatureBlock` for another magic, version, hash or curve, or a wrong
    CRC. Offsets in errors count from the block's start.
    """
    block = bytes(raw[:BLOCK_SIZE])
    if len(block) < BLOCK_SIZE:
        raise TruncatedImage("the signature block is cut off", expected=f"{BLOCK_SIZE} bytes", found=len(block))
    if block[0] != BLOCK_MAGIC:
        raise BadSignatureBlock("no signature block", offset=0, expected=f"{BLOCK_MAGIC:#x}", found=f"{block[0]:#x}")
    if block[1] not in (VERSION_RSA, VERSION_ECDSA):
        raise BadSignatureBlock("unknown signature block version", offset=1, expected="2 or 3", found=block[1])
    crc, stored = zlib.crc32(block[:CRC_OFFSET]), int.from_bytes(block[CRC_OFFSET : CRC_OFFSET + 4], "little")
    if crc != stored:
        raise BadSignatureBlock(
            "the CRC of the signature block is wrong",
            offset=CRC_OFFSET,
            expected=f"{crc:#010x}",
            found=f"{stored:#010x}",
        )
    return _rsa_content(block) if block[1] == VERSION_RSA else _ecdsa_content(block)


def check_block(content: BlockContent, *, sha256: bytes, sha384: bytes) -> None:
    """Check that `content` is a right signature over an image with these digests (32 and 48 bytes).

    Raises `WrongContentDigest`, `WrongSignature`, `BadSignatureBlock` (its key is no key), or `SchemeUnavailable`.
    """
    digest = sha384 if content.scheme is SignatureScheme.ECDSA_P384 else sha256
    if content.content_digest != digest:
        raise WrongContentDigest(
            "the signature is for other content", expected=digest.hex(), found=content.content_digest.hex()
        )
    try:
        if content.scheme is SignatureScheme.RSA_3072:
            _check_rsa(content)
        else:
            _check_ecdsa(content)
    except InvalidSignature:
        raise WrongSignature("the signature was not made with the key in its block") from None
    except UnsupportedAlgorithm:
        raise SchemeUnavailable(f"this installation cannot check {content.scheme}") from None


def find_signature_blocks(data: Buffer, image_size: int) -> tuple[SignatureBlock, ...]:
    """Return the blocks in the sector behind the image (whose `image_size` is in bytes), checked; empty = none."""
    view = memoryview(data)
    start = signature_offset(image_size)
    if len(view) <= start or view[start] != BLOCK_MAGIC:
        return ()
    digests = {"sha256": hashlib.sha256(view[:start]).digest(), "sha384": hashlib.sha384(view[:start]).digest()}
    blocks: list[SignatureBlock] = []
    for offset in range(start, start + BLOCKS_MAX * BLOCK_SIZE, BLOCK_SIZE):
        if len(view) <= offset or view[offset] != BLOCK_MAGIC:
            break
        blocks.append(_checked(view[offset : offset + BLOCK_SIZE], offset, digests))
    return tuple(blocks)


def require_signed(data: Buffer, image_size: int, *, trusted: Collection[str] | None = None) -> SignatureBlock:
    """Return the first block that holds and whose key digest (hex) is in `trusted`; None = any key will do.

    Raises `NotSigned`, the error of the first block when none holds, or `UntrustedKey`.
    """
    blocks = find_signature_blocks(data, image_size)
    if not blocks:
        raise NotSigned(
            "the image carries no Secure Boot v2 signature",
            offset=signature_offset(image_size),
            expected=f"{BLOCK_MAGIC:#x}",
            hint="Sign it with espsecure sign-data --version 2.",
        )
    sound = [block for block in blocks if block.verified]
    if not sound:
        raise _error_of(blocks[0])
    for block in sound:
        if trusted is None or block.key_digest in trusted:
            return block
    raise UntrustedKey(
        "no signature is of a trusted key",
        offset=sound[0].offset,
        expected=", ".join(sorted(trusted or ())) or "no key at all",
        found=", ".join(block.key_digest or "" for block in sound),
    )


def signature_offset(image_size: int) -> int:
    """Return where the signature sector of an image of that many bytes begins."""
    return -(-image_size // SIGNATURE_SECTOR_SIZE) * SIGNATURE_SECTOR_SIZE


def public_key_digest(pem: str | bytes) -> str:
    """Return the hex digest that efuses hold for a public key in PEM.

    Raises `BadPublicKey` unless it is RSA with 3072 bits, or ECDSA on P-192, P-256 or P-384.
    """
    text = pem.encode("utf-8", "replace") if isinstance(pem, str) else pem
    if len(text) > _KEY_MAX_BYTES:
        raise BadPublicKey("the key is too long", expected=f"at most {_KEY_MAX_BYTES} bytes", found=len(text))
    if b"PRIVATE KEY" in text:
        raise BadPublicKey(
            "this is a private key, a public one is needed",
            hint="`flota key show FILE --public` prints the public half.",
        )
    try:
        key = serialization.load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm, InternalError):
        raise BadPublicKey("not a public key in PEM form") from None
    return hashlib.sha256(_key_bytes(key)).hexdigest()


def _key_bytes(key: object) -> bytes:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size == RSA_BITS:
        numbers = key.public_numbers()
        return _rsa_key_bytes(numbers.n, numbers.e)
    if isinstance(key, ec.EllipticCurvePublicKey):
        for number, scheme in _CURVE_NUMBERS.items():
            if key.curve.name == _CURVES[scheme].name:
                return _point_bytes(number, key)
    found = getattr(getattr(key, "curve", None), "name", None) or f"{getattr(key, 'key_size', 'another kind of')} bits"
    raise BadPublicKey(
        "not a key that Secure Boot v2 can use", expected="RSA-3072, P-192, P-256 or P-384", found=str(found)
    )


def _point_bytes(number: int, key: ec.EllipticCurvePublicKey) -> bytes:
    point, size = key.public_numbers(), (key.curve.key_size + 7) // 8
    both = point.x.to_bytes(size, "little") + point.y.to_bytes(size, "little")
    return bytes([number]) + both.ljust(64, b"\0")


def _rsa_key_bytes(modulus: int, exponent: int) -> bytes:
    """Return the key as it stands in a block: n, e, R^2 mod n and -1/n mod 2^32, the last two for the chip's engine."""
    r_squared = (1 << 2 * RSA_BITS) % modulus
    m_prime = -pow(modulus, -1, 1 << 32) % (1 << 32)
    return struct.pack(
        "<384sI384sI", modulus.to_bytes(384, "little"), exponent, r_squared.to_bytes(384, "little"), m_prime
    )


def _rsa_content(block: bytes) -> BlockContent:
    fields = _RSA_BLOCK.unpack(block)
    digest = hashlib.sha256(block[_RSA_KEY]).hexdigest()
    return BlockContent(SignatureScheme.RSA_3072, fields[3], digest, block[_RSA_KEY], fields[8][::-1])


def _ecdsa_content(block: bytes) -> BlockContent:
    if block[2] > 1:
        raise BadSignatureBlock("unknown hash in the signature block", offset=2, expected="0 or 1", found=block[2])
    is_sha384 = block[2] == 1
    layout, place = (_P384_BLOCK, _P384_KEY) if is_sha384 else (_ECDSA_BLOCK, _ECDSA_KEY)
    _, _, _, content_digest, curve, _, signature, _ = layout.unpack(block)
    scheme = _CURVE_NUMBERS.get(curve)
    if scheme is None or (scheme is SignatureScheme.ECDSA_P384) != is_sha384:
        raise BadSignatureBlock(
            "the signature block names a curve that does not go with its hash",
            offset=place.start,
            expected="3" if is_sha384 else "1 or 2",
            found=curve,
        )
    key = block[place]
    return BlockContent(scheme, content_digest, hashlib.sha256(key).hexdigest(), key, signature)


def _check_rsa(content: BlockContent) -> None:
    modulus = int.from_bytes(content.public_key[:384], "little")
    exponent = int.from_bytes(content.public_key[384:388], "little")
    if modulus.bit_length() != RSA_BITS or modulus % 2 == 0:
        raise BadSignatureBlock(
            "the key in the signature block is no RSA-3072 key", found=f"{modulus.bit_length()} bits"
        )
    if content.public_key != _rsa_key_bytes(modulus, exponent):
        raise BadSignatureBlock("the precomputed values in the signature block do not belong to its key")
    try:
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise BadSignatureBlock("the key in the signature block is no RSA key", found=f"exponent {exponent}") from None
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), PSS_SALT_SIZE)
    key.verify(content.signature, content.content_digest, pss, utils.Prehashed(hashes.SHA256()))


def _check_ecdsa(content: BlockContent) -> None:
    curve = _CURVES[content.scheme]
    size = (curve.key_size + 7) // 8
    x, y = _two_numbers(content.public_key[1:], size)
    r, s = _two_numbers(content.signature, size)
    try:
        key = ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
    except ValueError:
        raise BadSignatureBlock(f"the key in the signature block is no point of {content.scheme}") from None
    algorithm = hashes.SHA384() if content.scheme is SignatureScheme.ECDSA_P384 else hashes.SHA256()
    signature = utils.encode_dss_signature(r, s)
    key.verify(signature, content.content_digest, ec.ECDSA(utils.Prehashed(algorithm)))


def _two_numbers(raw: bytes, size: int) -> tuple[int, int]:
    return int.from_bytes(raw[:size], "little"), int.from_bytes(raw[size : 2 * size], "little")


def _checked(raw: memoryview, offset: int, digests: dict[str, bytes]) -> SignatureBlock:
    try:
        content = parse_block(raw)
    except ImageError as error:
        return SignatureBlock(offset, "unknown", None, verified=False, fault=error.message, fault_code=error.code)
    try:
        check_block(content, **digests)
    except SecureBootError as error:
        verified = None if isinstance(error, SchemeUnavailable) else False
        return SignatureBlock(offset, content.scheme, content.key_digest, verified, error.message, error.code)
    return SignatureBlock(offset, content.scheme, content.key_digest, verified=True)


_ERRORS: Final = MappingProxyType(
    {
        kind.code: kind
        for kind in (BadSignatureBlock, TruncatedImage, WrongContentDigest, WrongSignature, SchemeUnavailable)
    }
)


def _error_of(block: SignatureBlock) -> ImageError:
    """Return the error behind a block's fault."""
    kind = _ERRORS.get(block.fault_code or "", SecureBootError)
    return kind(block.fault or "the signature block does not hold", offset=block.offset)
