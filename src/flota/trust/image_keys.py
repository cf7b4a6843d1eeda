"""Keys that sign MCUboot images: P-256 and Ed25519 as for releases, and RSA, which the boot loaders of TF-M use.

RSA-3072 is made and used, RSA-2048 only recognised and verified. RSA signatures are PSS with SHA-256, MGF1 with SHA-256
and a salt of 32 bytes, the only length that boot loaders accept.
Source: docs/reference/mcuboot.md; mcu-tools/mcuboot:scripts/imgtool/keys/, boot/bootutil/src/image_rsa.c.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from flota.images.mcuboot import ImageKeyKind, ImageSigner
from flota.trust.keys import load_private_key, pack_private_key
from flota.trust.public_keys import Algorithm, BadKey, kind_in_words, load_public_key

RSA_BITS: Final = {2048: ImageKeyKind.RSA_2048, 3072: ImageKeyKind.RSA_3072}
RSA_EXPONENT: Final = 65537
DIGEST_SIZE: Final = 32

_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
_PREHASHED = utils.Prehashed(hashes.SHA256())
_ALGORITHMS: Final = {
    ImageKeyKind.RSA_2048: "rsa-2048-pss-sha256",
    ImageKeyKind.RSA_3072: "rsa-3072-pss-sha256",
    ImageKeyKind.P256: Algorithm.ECDSA_P256_SHA256.value,
    ImageKeyKind.ED25519: Algorithm.ED25519.value,
}
_EXPECTED: Final = "RSA-3072, P-256 or Ed25519 (RSA-2048 to verify)"

_PublicObject = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_PrivateObject = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class ImagePublicKey:
    """The public half. `encoded` is what a boot loader has built in: DER of PKCS#1 (RSA) or SubjectPublicKeyInfo."""

    kind: ImageKeyKind
    encoded: bytes
    pem: str

    @classmethod
    def from_pem(cls, pem: str | bytes) -> ImagePublicKey:
        """Return the key in `pem` (`BEGIN PUBLIC KEY`, at most 16 KiB). Raises `BadKey`."""
        return cls._wrap(load_public_key(pem))

    @classmethod
    def _wrap(cls, key: object) -> ImagePublicKey:
        kind = _kind_of(key)
        assert isinstance(key, _PublicObject)
        form = (
            serialization.PublicFormat.PKCS1
            if isinstance(key, rsa.RSAPublicKey)
            else serialization.PublicFormat.SubjectPublicKeyInfo
        )
        info = serialization.PublicFormat.SubjectPublicKeyInfo
        return cls(
            kind=kind,
            encoded=key.public_bytes(serialization.Encoding.DER, form),
            pem=key.public_bytes(serialization.Encoding.PEM, info).decode("ascii"),
        )

    @property
    def algorithm(self) -> str:
        """What its signatures are, as a signing program is told."""
        return _ALGORITHMS[self.kind]

    @property
    def key_hash(self) -> bytes:
        """SHA-256 of `encoded` (32 bytes): what images name the key by. Not the key id of releases when it is RSA."""
        return hashlib.sha256(self.encoded).digest()

    @property
    def key_id(self) -> str:
        """Hex SHA-256 of the SubjectPublicKeyInfo in DER, as with keys of releases: one name for a key everywhere."""
        key = load_public_key(self.pem)
        assert isinstance(key, _PublicObject)
        info = serialization.PublicFormat.SubjectPublicKeyInfo
        return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, info)).hexdigest()

    def is_signature_of(self, digest: bytes, signature: bytes) -> bool:
        """Say whether `signature` is this key's signature of the image with the SHA-256 `digest` (32 bytes)."""
        key = load_public_key(self.pem)
        try:
            if isinstance(key, rsa.RSAPublicKey):
                key.verify(signature, digest, _PSS, _PREHASHED)
            elif isinstance(key, ec.EllipticCurvePublicKey):
                key.verify(_without_padding(signature), digest, ec.ECDSA(_PREHASHED))
            else:
                assert isinstance(key, ed25519.Ed25519PublicKey)
                key.verify(signature, digest)
        except InvalidSignature:
            return False
        except ValueError:  # a digest of another length
            return False
        return True


class ImagePrivateKey:
    """A key that signs images. Its repr shows kind and key hash, never the secret."""

    __slots__ = ("_key", "public")

    def __init__(self, key: _PrivateObject) -> None:
        self._key = key
        self.public = ImagePublicKey._wrap(key.public_key())

    @classmethod
    def generate(cls, kind: ImageKeyKind | str) -> ImagePrivateKey:
        """Return a new key of the kind. Raises `BadKey` for RSA-2048 and unknown kinds."""
        if kind == ImageKeyKind.RSA_3072:
            return cls(rsa.generate_private_key(public_exponent=RSA_EXPONENT, key_size=3072))
        if kind == ImageKeyKind.P256:
            return cls(ec.generate_private_key(ec.SECP256R1()))
        if kind == ImageKeyKind.ED25519:
            return cls(ed25519.Ed25519PrivateKey.generate())
        raise BadKey("no new key of this kind", expected="rsa-3072, p256 or ed25519", found=repr(str(kind)[:32]))

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | str | None = None) -> ImagePrivateKey:
        """Return the key in `pem` (PKCS#8, `RSA PRIVATE KEY` or `EC PRIVATE KEY`, at most 16 KiB).

        Raises `PasswordNeeded`, `WrongPassword` or `BadKey`, the last also for RSA-2048: nothing new is signed with it.
        """
        key = load_private_key(pem, password)
        if isinstance(key, rsa.RSAPrivateKey) and _kind_of(key.public_key()) is ImageKeyKind.RSA_2048:
            raise BadKey("RSA-2048 is too short to sign new images with", expected="RSA-3072", found="RSA-2048")
        if not isinstance(key, _PrivateObject):
            raise BadKey("this kind of key is not supported", expected=_EXPECTED, found=kind_in_words(key))
        return cls(key)

    def to_pem(self, password: bytes | str | None = None) -> bytes:
        """Return the key as PKCS#8 in PEM, encrypted if a password is given. An empty password raises `BadKey`."""
        return pack_private_key(self._key, password)

    def sign(self, digest: bytes) -> bytes:
        """Return the signature of the image whose SHA-256 is `digest` (32 bytes)."""
        assert len(digest) == DIGEST_SIZE
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(digest, _PSS, _PREHASHED)
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(digest, ec.ECDSA(_PREHASHED))
        return self._key.sign(digest)

    @property
    def signer(self) -> ImageSigner:
        """This key as `images.mcuboot` takes it."""
        return ImageSigner(self.public.kind, self.public.encoded, self.sign)

    def __repr__(self) -> str:
        return f"ImagePrivateKey({self.public.kind}, {self.public.key_hash.hex()[:16]}…)"


def _kind_of(key: object) -> ImageKeyKind:
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size in RSA_BITS and key.public_numbers().e == RSA_EXPONENT:
            return RSA_BITS[key.key_size]
        found = f"RSA-{key.key_size}, exponent {key.public_numbers().e}"
    elif isinstance(key, ed25519.Ed25519PublicKey):
        return ImageKeyKind.ED25519
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if isinstance(key.curve, ec.SECP256R1):
            return ImageKeyKind.P256
        found = f"an elliptic-curve key on {key.curve.name}"
    else:
        found = kind_in_words(key)
    raise BadKey("this kind of key is not supported", expected=_EXPECTED, found=found)


def _without_padding(signature: bytes) -> bytes:
    """Return a DER signature without the zeros that tools for MCUboot before 1.5 put behind it."""
    if len(signature) < 2 or any(signature[signature[1] + 2 :]):
        return signature
    return signature[: signature[1] + 2]
