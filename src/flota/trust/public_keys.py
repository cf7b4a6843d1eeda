"""Public keys: read, named by their digest, and used to verify. Nothing here can sign.

A key id is the lower-case hex SHA-256 of the key's SubjectPublicKeyInfo in DER, so that a key has exactly one name and
nobody can choose it. Source: docs/reference/manifest.md.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from flota.errors import InvalidInput

KEY_FILE_MAX_BYTES: Final = 16 * 1024
"""A PEM file above this is not one of our keys: the largest (an encrypted P-256 key) has under 500 bytes."""


class KeyKind(enum.StrEnum):
    """Kinds of keys, as `flota key create --kind` says them."""

    P256 = "p256"
    ED25519 = "ed25519"


class Algorithm(enum.StrEnum):
    """What a signature is, as its `algorithm` field says it. Each kind of key has exactly one."""

    ECDSA_P256_SHA256 = "ecdsa-p256-sha256"
    """ECDSA (FIPS 186-5) on P-256 over the SHA-256 of the message; the signature is the DER `SEQUENCE { r, s }`."""

    ED25519 = "ed25519"
    """Pure Ed25519 (RFC 8032) over the message itself; the signature has 64 bytes."""


ALGORITHM_OF: Final[Mapping[KeyKind, Algorithm]] = {
    KeyKind.P256: Algorithm.ECDSA_P256_SHA256,
    KeyKind.ED25519: Algorithm.ED25519,
}


class BadKey(InvalidInput):
    """The text is not a key that Flota signs or verifies with."""

    code = "bad-key"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A P-256 or Ed25519 public key. `pem` is its SubjectPublicKeyInfo, normalised; equal keys have equal values."""

    kind: KeyKind
    pem: str
    key_id: str

    @classmethod
    def from_pem(cls, pem: str | bytes) -> PublicKey:
        """Return the key in `pem` (`BEGIN PUBLIC KEY`, at most 16 KiB). Raises `BadKey`."""
        return cls.wrap(load_public_key(pem))

    @classmethod
    def wrap(cls, key: object) -> PublicKey:
        """Return the value for a key object of the cryptography library. Raises `BadKey` for other kinds and curves."""
        if isinstance(key, ed25519.Ed25519PublicKey):
            kind = KeyKind.ED25519
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            kind = KeyKind.P256
        else:
            raise unsuited_for_releases(key)
        info = serialization.PublicFormat.SubjectPublicKeyInfo
        return cls(
            kind=kind,
            pem=key.public_bytes(serialization.Encoding.PEM, info).decode("ascii"),
            key_id=hashlib.sha256(key.public_bytes(serialization.Encoding.DER, info)).hexdigest(),
        )

    @property
    def algorithm(self) -> Algorithm:
        """The one algorithm that this key's signatures have."""
        return ALGORITHM_OF[self.kind]

    def is_signature_of(self, message: bytes, signature: bytes) -> bool:
        """Say whether `signature` is this key's signature of exactly `message`."""
        key = serialization.load_pem_public_key(self.pem.encode("ascii"))
        try:
            if isinstance(key, ed25519.Ed25519PublicKey):
                key.verify(signature, message)
            else:
                assert isinstance(key, ec.EllipticCurvePublicKey)
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def load_public_key(pem: str | bytes) -> object:
    """Return the key in `pem`, of any kind, as an object of the cryptography library. Raises `BadKey`."""
    data = pem.encode("utf-8", "replace") if isinstance(pem, str) else pem
    if len(data) > KEY_FILE_MAX_BYTES:
        raise BadKey("the key is too long", expected=f"at most {KEY_FILE_MAX_BYTES} bytes", found=f"{len(data)} bytes")
    if b"PRIVATE KEY" in data:
        raise BadKey(
            "this is a private key, a public one is needed",
            hint="`flota key show FILE --public` prints the public half.",
        )
    try:
        return serialization.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        raise BadKey("not a public key in PEM", expected="-----BEGIN PUBLIC KEY-----") from error


def key_id_of(public_pem: str) -> str:
    """Return the key id (64 hex digits) of a public key in PEM. Raises `BadKey`."""
    return PublicKey.from_pem(public_pem).key_id


def unsuited_for_releases(key: object) -> BadKey:
    """Return the error for a key (of the cryptography library) of a kind that signs no releases."""
    is_rsa = isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey)
    return BadKey(
        "this kind of key signs no releases",
        expected="P-256 or Ed25519",
        found=kind_in_words(key),
        hint="RSA keys are for MCUboot images, Secure Boot and files (`flota key sign`). "
        "`flota key create NAME` makes a key for releases."
        if is_rsa
        else "`flota key create NAME` makes a key for releases.",
    )


def kind_in_words(key: object) -> str:
    """Return what kind of key (of the cryptography library) this is, for errors."""
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        return f"RSA-{key.key_size}"
    if isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey):
        return "Ed25519"
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return f"an elliptic-curve key on {key.curve.name}"
    return type(key).__name__.lstrip("_")
