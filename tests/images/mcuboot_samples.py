"""Small MCUboot images that the tests bend. Keys are made once: RSA takes a while."""

from __future__ import annotations

from functools import cache

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from flota.images.mcuboot import (
    Dependency,
    ImageKeyKind,
    ImageOptions,
    ImageVersion,
    McubootImage,
    Tlv,
    TlvType,
    build_image,
    pack_image,
    sign_image,
)
from flota.trust.image_keys import ImagePrivateKey

SIGNING_KINDS = (ImageKeyKind.RSA_3072, ImageKeyKind.P256, ImageKeyKind.ED25519)
VERSION = ImageVersion(1, 2, 3, 4)
OPTIONS = ImageOptions(VERSION, 64, add_header=True, security_counter=7, dependencies=(Dependency(1, ImageVersion(1)),))
RFC_8032_KEY = ImagePrivateKey(
    ed25519.Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
)


def image_key(kind: ImageKeyKind = ImageKeyKind.ED25519, number: int = 0) -> ImagePrivateKey:
    """Always the same key for the same kind and number."""
    return _made_key(kind, number)


@cache
def _made_key(kind: ImageKeyKind, number: int) -> ImagePrivateKey:
    if kind is ImageKeyKind.RSA_2048:
        return ImagePrivateKey(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    return ImagePrivateKey.generate(kind)


def sample(firmware: bytes = b"firmware", options: ImageOptions = OPTIONS) -> McubootImage:
    """A signed image, Ed25519."""
    return sign_image(build_image(firmware, options), image_key().signer)


def sample_bytes(firmware: bytes = b"firmware") -> bytes:
    return pack_image(sample(firmware))


def hash_tlv(image: McubootImage) -> Tlv:
    """The hash TLV that fits `image`."""
    return next(entry for entry in sign_image(image, None).unprotected if entry.kind == TlvType.SHA256)
