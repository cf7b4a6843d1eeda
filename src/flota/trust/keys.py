"""Private signing keys: made, read, written and used. The running server never imports one; people and scripts do.

Keys are PKCS#8 in PEM, optionally encrypted with a password (PBES2 as the cryptography library's best available).
This module is the one place that uses randomness without being handed it: the crypto library's own.
"""

from __future__ import annotations

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from flota.trust.public_keys import (
    KEY_FILE_MAX_BYTES,
    BadKey,
    KeyKind,
    PublicKey,
    key_id_of,
    unsuited_for_releases,
)
from flota.trust.signatures import Signature

__all__ = ["BadKey", "KeyKind", "PasswordNeeded", "PrivateKey", "PublicKey", "WrongPassword", "key_id_of"]


class PasswordNeeded(BadKey):
    """The key is encrypted and no password was given."""

    code = "password-needed"


class WrongPassword(BadKey):
    """The password does not open the key."""

    code = "wrong-password"


class PrivateKey:
    """A P-256 or Ed25519 signing key. Its repr shows the key id and never the secret."""

    __slots__ = ("_key", "public")

    def __init__(self, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey.wrap(key.public_key())

    @classmethod
    def generate(cls, kind: KeyKind | str = KeyKind.P256) -> PrivateKey:
        """Return a new key. Raises `BadKey` for an unknown kind."""
        if kind == KeyKind.P256:
            return cls(ec.generate_private_key(ec.SECP256R1()))
        if kind == KeyKind.ED25519:
            return cls(ed25519.Ed25519PrivateKey.generate())
        raise BadKey("unknown kind of key", expected="p256 or ed25519", found=repr(str(kind)[:32]))

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | str | None = None) -> PrivateKey:
        """Return the key in `pem` (PKCS#8 or `EC PRIVATE KEY`, at most 16 KiB).

        A password given for a key without one is refused too: it would hide that the file is not protected.
        Raises `PasswordNeeded`, `WrongPassword` or `BadKey`.
        """
        key = load_private_key(pem, password)
        if isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            return cls(key)
        raise unsuited_for_releases(key)

    def to_pem(self, password: bytes | str | None = None) -> bytes:
        """Return the key as PKCS#8 in PEM, encrypted if a password is given. An empty password raises `BadKey`."""
        return pack_private_key(self._key, password)

    @property
    def kind(self) -> KeyKind:
        """P-256 or Ed25519."""
        return self.public.kind

    @property
    def public_pem(self) -> str:
        """The public half, SubjectPublicKeyInfo in PEM."""
        return self.public.pem

    @property
    def key_id(self) -> str:
        """Hex SHA-256 of the public half in DER."""
        return self.public.key_id

    def sign(self, message: bytes) -> Signature:
        """Return this key's signature of exactly `message`."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            signature = self._key.sign(message)
        else:
            signature = self._key.sign(message, ec.ECDSA(hashes.SHA256()))
        return Signature(key_id=self.key_id, algorithm=self.public.algorithm, signature=signature)

    def __repr__(self) -> str:
        return f"PrivateKey({self.kind}, {self.key_id[:16]}…)"


def pack_private_key(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, password: bytes | str | None
) -> bytes:
    """Return a key of any kind as `PrivateKey.to_pem` does."""
    secret = password.encode() if isinstance(password, str) else password
    if secret == b"":
        raise BadKey("the password is empty", hint="Give a password, or none at all.")
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption(),
    )


def load_private_key(pem: bytes, password: bytes | str | None = None) -> object:
    """Return the key of any kind in `pem` as an object of the cryptography library. Raises as `PrivateKey.from_pem`."""
    if len(pem) > KEY_FILE_MAX_BYTES:
        raise BadKey("the key is too long", expected=f"at most {KEY_FILE_MAX_BYTES} bytes", found=f"{len(pem)} bytes")
    if b"PRIVATE KEY" not in pem:
        raise BadKey("not a private key in PEM", expected="-----BEGIN PRIVATE KEY-----")
    secret = password.encode() if isinstance(password, str) else password
    try:
        return serialization.load_pem_private_key(pem, secret or None)
    except TypeError as error:
        if secret:
            raise BadKey(
                "the key is not encrypted, but a password was given", hint="Leave the password out."
            ) from error
        raise PasswordNeeded("the key is encrypted", hint="Give --password-prompt or --password-file.") from error
    except (ValueError, UnsupportedAlgorithm, InternalError) as error:
        if secret and b"ENCRYPTED" in pem:
            raise WrongPassword("the password does not open the key, or the key file is damaged") from error
        raise BadKey("the key file is damaged") from error
