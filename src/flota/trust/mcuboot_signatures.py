"""Is this MCUboot image signed by a trusted key? In the order in which the boot loader looks.

Hash first; then the unprotected TLVs one by one: a key TLV says whose signature comes next, and a signature after the
name of a key that is not trusted is skipped. One good signature is enough, but a wrong one of a trusted key is never
passed over (a boot loader lets the last one decide).
Source: docs/reference/mcuboot.md; mcu-tools/mcuboot:boot/bootutil/src/image_validate.c (`bootutil_img_validate`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from flota.errors import Refused
from flota.images.mcuboot import (
    ImageVersion,
    SignedFacts,
    TlvType,
    check_hash,
    parse_image,
    signed_facts,
    walk_image,
)
from flota.images.mcuboot.image import McubootLayout, value_of
from flota.images.mcuboot.signing import SIGNATURE_TLV_OF
from flota.images.mcuboot.tlvs import SIGNATURE_TYPES, TlvSpan
from flota.trust.image_keys import ImagePublicKey

Buffer = bytes | memoryview

NAMES_MAX: Final = 4
NAME_MAX_CHARS: Final = 128
"""How much an error repeats of what the file says."""


class ImageNotTrusted(Refused):
    """The image is whole, but no trusted key vouches for it."""

    code = "image-not-trusted"


class ImageNotSigned(ImageNotTrusted):
    """The image carries no signature at all."""

    code = "image-not-signed"


class ImageSignedByOthers(ImageNotTrusted):
    """The image is signed, but not by a key that is trusted here."""

    code = "image-signed-by-others"


class BadImageSignature(ImageNotTrusted):
    """The image names a trusted key, but the signature is not that key's signature of this image."""

    code = "bad-image-signature"


class HashCannotBeChecked(ImageNotTrusted):
    """The image is encrypted, and its hash is that of the plain text."""

    code = "hash-cannot-be-checked"


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """What a trusted key vouches for. `facts` come from the signed part only; `digest` is the image's SHA-2."""

    key: ImagePublicKey
    digest: bytes
    facts: SignedFacts

    @property
    def version(self) -> ImageVersion:
        """The image's version."""
        return self.facts.version


def verify_image(data: Buffer, trusted: Iterable[ImagePublicKey]) -> VerifiedImage:
    """Return what one of the `trusted` keys has signed of the image at the start of `data`.

    Raises `ImageError` or one of its kinds for what is damaged (`HashMismatch` among them), `ImageNotSigned`,
    `ImageSignedByOthers`, `BadImageSignature` or `HashCannotBeChecked`.
    """
    keys = tuple(trusted)
    layout = walk_image(data)
    signatures = [span for span in layout.unprotected.entries if span.kind in SIGNATURE_TYPES]
    if not signatures:
        check_hash(data, layout)
        raise ImageNotSigned("the image is not signed", offset=layout.unprotected.offset)
    digest = check_hash(data, layout)
    message = _signed_message(data, layout, digest)
    key = _good_signer(data, layout, keys, message)
    if key is None:
        raise ImageSignedByOthers(
            "no trusted key signed the image",
            expected=", ".join(one.key_hash.hex() for one in keys) or "a trusted key",
            found=_key_names(data, layout),
        )
    return VerifiedImage(key, digest or hashlib.sha256(message).digest(), signed_facts(parse_image(data)))


def _signed_message(data: Buffer, layout: McubootLayout, digest: bytes | None) -> bytes:
    """Return what signatures of this image are over: its digest, or with `SIG_PURE` the whole signed part."""
    if any(span.kind == TlvType.SIG_PURE and value_of(data, span) == b"\1" for span in layout.unprotected.entries):
        return bytes(memoryview(data)[: layout.header.hashed_end])
    if digest is None:
        raise HashCannotBeChecked(
            "the image is encrypted; only the device that decrypts it can check hash and signature",
            hint="Verify the image before it is encrypted.",
        )
    return digest


def _good_signer(
    data: Buffer, layout: McubootLayout, keys: tuple[ImagePublicKey, ...], message: bytes
) -> ImagePublicKey | None:
    """Return the first trusted key with a good signature, None if there is none. Raises `BadImageSignature`."""
    named: ImagePublicKey | None = None
    good: ImagePublicKey | None = None
    for span in layout.unprotected.entries:
        if span.kind in (TlvType.KEYHASH, TlvType.PUBKEY):
            named = _trusted_key(data, span, keys)
        elif named is not None and span.kind == SIGNATURE_TLV_OF[named.kind]:
            if not named.is_signature_of(message, value_of(data, span)):
                raise BadImageSignature(
                    "the signature is not that of the key it names", offset=span.offset, expected=named.key_hash.hex()
                )
            good, named = good or named, None
    return good


def _trusted_key(data: Buffer, span: TlvSpan, keys: tuple[ImagePublicKey, ...]) -> ImagePublicKey | None:
    value = value_of(data, span)
    for key in keys:
        names = (key.encoded,) if span.kind == TlvType.PUBKEY else (key.key_hash, hashlib.sha512(key.encoded).digest())
        if value in names:
            return key
    return None


def _key_names(data: Buffer, layout: McubootLayout) -> str:
    spans = [span for span in layout.unprotected.entries if span.kind in (TlvType.KEYHASH, TlvType.PUBKEY)]
    names = [
        value_of(data, span).hex() if span.kind == TlvType.KEYHASH else hashlib.sha256(value_of(data, span)).hexdigest()
        for span in spans
    ]
    return ", ".join(name[:NAME_MAX_CHARS] for name in names[:NAMES_MAX]) or "no name of a key"
