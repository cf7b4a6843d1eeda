"""Signatures over a whole file, as other tools make and check them: ECDSA on P-256, RSA with PKCS#1 v1.5 or PSS.

Everything works on the file's SHA-256, so that a file of any size is read once and by somebody else. For devices that
check a file with the vendor's own code; Flota's own releases are signed by their manifest.
Source: docs/reference/code-signing.md; FIPS 186-5; RFC 8017 8.1, 8.2.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from flota.errors import InvalidInput, Refused
from flota.trust.keys import load_private_key
from flota.trust.public_keys import Algorithm, BadKey, kind_in_words, load_public_key

RSA_BITS: Final = (2048, 3072)
RSA_EXPONENT: Final = 65537
DIGEST_SIZE: Final = 32
PSS_SALT_LEN: Final = 32
"""Bytes; as long as the digest, which is what verifiers on devices expect."""

RAW_P256_SIZE: Final = 64
"""Bytes of r and s, 32 each (RFC 7518 3.4)."""

_PREHASHED: Final = utils.Prehashed(hashes.SHA256())
_PSS: Final = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=PSS_SALT_LEN)
_EXPECTED_KEYS: Final = "P-256, RSA-2048 or RSA-3072"


class FileAlgorithm(enum.StrEnum):
    """What a file's signature is; all are over its SHA-256."""

    ECDSA_P256 = Algorithm.ECDSA_P256_SHA256.value
    """The DER `SEQUENCE { r, s }`."""

    RSA_PKCS1 = "rsa-pkcs1-sha256"
    RSA_PSS = "rsa-pss-sha256"
    """MGF1 with SHA-256, 32 bytes of salt."""


class BadDigest(InvalidInput):
    """What should be a file's SHA-256 has another length."""

    code = "bad-digest"


class FileAlgorithmMismatch(Refused):
    """The key has no signatures of this algorithm."""

    code = "file-signature-algorithm-mismatch"


class FileSignatureWrong(Refused):
    """The signature does not belong to this file and this key."""

    code = "file-signature-wrong"


class FileSignatureRaw(FileSignatureWrong):
    """It is r and s one after the other (JWS, PKCS#11, WebCrypto), where devices read a DER sequence of both."""

    code = "file-signature-raw"


@dataclass(frozen=True, slots=True)
class FilePublicKey:
    """A P-256 or RSA public key (SubjectPublicKeyInfo in PEM) and the algorithms that it may be used with."""

    pem: str
    algorithms: tuple[FileAlgorithm, ...]
    """The first is the usual one."""

    @classmethod
    def from_pem(cls, pem: str | bytes) -> FilePublicKey:
        """Return the key in `pem` (`BEGIN PUBLIC KEY`, at most 16 KiB). Raises `BadKey`."""
        return cls._wrap(load_public_key(pem))

    @classmethod
    def _wrap(cls, key: object) -> FilePublicKey:
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            return cls(_pem_of(key), (FileAlgorithm.ECDSA_P256,))
        if isinstance(key, rsa.RSAPublicKey) and key.key_size in RSA_BITS and key.public_numbers().e == RSA_EXPONENT:
            return cls(_pem_of(key), (FileAlgorithm.RSA_PKCS1, FileAlgorithm.RSA_PSS))
        raise _unsuited(key)

    def check(self, digest: bytes, signature: bytes, algorithm: FileAlgorithm | None = None) -> None:
        """Return if `signature` is this key's over the file whose SHA-256 is `digest` (32 bytes).

        `algorithm` None: the key's usual one. Raises `BadDigest`, `FileAlgorithmMismatch` or `FileSignatureWrong`.
        """
        _check_digest(digest)
        chosen = _chosen(self.algorithms, algorithm)
        key = load_public_key(self.pem)
        try:
            if isinstance(key, ec.EllipticCurvePublicKey):
                _refuse_raw(signature)
                key.verify(signature, digest, ec.ECDSA(_PREHASHED))
            else:
                assert isinstance(key, rsa.RSAPublicKey)
                key.verify(signature, digest, _padding_of(chosen), _PREHASHED)
        except InvalidSignature as error:
            others = [other.value for other in self.algorithms if other is not chosen]
            raise FileSignatureWrong(
                "the signature is wrong for this file and key",
                expected=f"{chosen} of {digest.hex()}",
                hint=f"Nothing in it says how it was made: if it is {others[0]}, say so (--algorithm)."
                if others
                else None,
            ) from error


class FilePrivateKey:
    """A key that signs files. Its repr shows the algorithms, never the secret."""

    __slots__ = ("_key", "public")

    def __init__(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        self._key = key
        self.public = FilePublicKey._wrap(key.public_key())

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | str | None = None) -> FilePrivateKey:
        """Return the key in `pem` (at most 16 KiB). Raises `PasswordNeeded`, `WrongPassword` or `BadKey`."""
        key = load_private_key(pem, password)
        if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            return cls(key)
        raise _unsuited(key)

    def sign(self, digest: bytes, algorithm: FileAlgorithm | None = None) -> bytes:
        """Return the signature of the file whose SHA-256 is `digest` (32 bytes).

        `algorithm` None: the key's usual one. Raises `BadDigest` or `FileAlgorithmMismatch`.
        """
        _check_digest(digest)
        chosen = _chosen(self.public.algorithms, algorithm)
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(digest, ec.ECDSA(_PREHASHED))
        return self._key.sign(digest, _padding_of(chosen), _PREHASHED)

    def __repr__(self) -> str:
        return f"FilePrivateKey({', '.join(self.public.algorithms)})"


def _refuse_raw(signature: bytes) -> None:
    if len(signature) != RAW_P256_SIZE:
        return
    try:
        utils.decode_dss_signature(signature)
    except ValueError as error:
        raise FileSignatureRaw(
            "the signature is in raw form (r and s one after the other)",
            expected="DER: SEQUENCE { INTEGER r, INTEGER s }, 70 to 72 bytes as a rule",
            found=f"{len(signature)} bytes that are no DER",
            hint="Let the signing tool write DER (or ASN.1): openssl dgst -sha256 -sign does.",
        ) from error


def _unsuited(key: object) -> BadKey:
    return BadKey(
        "this kind of key signs no files",
        expected=_EXPECTED_KEYS,
        found=kind_in_words(key),
        hint="`flota key create NAME --kind rsa-3072` or `--kind p256` makes one that does.",
    )


def _padding_of(algorithm: FileAlgorithm) -> padding.AsymmetricPadding:
    return _PSS if algorithm is FileAlgorithm.RSA_PSS else padding.PKCS1v15()


def _chosen(possible: tuple[FileAlgorithm, ...], wanted: FileAlgorithm | None) -> FileAlgorithm:
    if wanted is None:
        return possible[0]
    if wanted not in possible:
        raise FileAlgorithmMismatch(
            "the key has no signatures of this algorithm", expected=" or ".join(possible), found=str(wanted)
        )
    return wanted


def _check_digest(digest: bytes) -> None:
    if len(digest) != DIGEST_SIZE:
        raise BadDigest("not a SHA-256", expected=f"{DIGEST_SIZE} bytes", found=f"{len(digest)} bytes")


def _pem_of(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> str:
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, info).decode("ascii")
