"""Signatures over a whole file: our own round trip, each wrong one, and `openssl dgst` on the other side."""

import hashlib
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from flota.trust.file_signatures import (
    BadDigest,
    FileAlgorithm,
    FileAlgorithmMismatch,
    FilePrivateKey,
    FilePublicKey,
    FileSignatureWrong,
)
from flota.trust.keys import BadKey, PasswordNeeded
from tests.trust.releases import key

CONTENT = b"firmware" * 1000
DIGEST = hashlib.sha256(CONTENT).digest()
KINDS = ["p256", "rsa-2048", "rsa-3072"]
PAIRS = [
    ("p256", FileAlgorithm.ECDSA_P256),
    *((kind, each) for kind in KINDS[1:] for each in (FileAlgorithm.RSA_PKCS1, FileAlgorithm.RSA_PSS)),
]
OPENSSL = shutil.which("openssl")
PSS_OPTIONS = [
    "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32", "-sigopt", "rsa_mgf1_md:sha256",
]  # fmt: skip


@cache
def pem(kind: str) -> bytes:
    if kind == "p256":
        return key(1).to_pem()
    return _pem_of(rsa.generate_private_key(65537, int(kind[4:])))


def _pem_of(made: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@cache
def private(kind: str) -> FilePrivateKey:
    return FilePrivateKey.from_pem(pem(kind))


@pytest.mark.parametrize(("kind", "algorithm"), PAIRS)
def test_a_signature_holds_for_its_file_and_key_and_for_nothing_else(kind: str, algorithm: FileAlgorithm) -> None:
    signature = private(kind).sign(DIGEST, algorithm)
    public = FilePublicKey.from_pem(private(kind).public.pem)
    public.check(DIGEST, signature, algorithm)
    with pytest.raises(FileSignatureWrong):
        public.check(hashlib.sha256(CONTENT + b"\0").digest(), signature, algorithm)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(len(signature)), signature[::-1]):
        with pytest.raises(FileSignatureWrong):
            public.check(DIGEST, wrong, algorithm)


def test_every_flipped_byte_of_a_signature_is_noticed() -> None:
    for kind, algorithm in PAIRS[:3]:
        signature = private(kind).sign(DIGEST, algorithm)
        for index in range(len(signature)):
            flipped = bytearray(signature)
            flipped[index] ^= 0x01
            with pytest.raises(FileSignatureWrong):
                private(kind).public.check(DIGEST, bytes(flipped), algorithm)


def test_pkcs1_and_pss_are_not_taken_for_each_other() -> None:
    signer = private("rsa-2048")
    for mine, other in ((FileAlgorithm.RSA_PKCS1, FileAlgorithm.RSA_PSS), (FileAlgorithm.RSA_PSS, None)):
        with pytest.raises(FileSignatureWrong):
            signer.public.check(DIGEST, signer.sign(DIGEST, mine), other)


def test_a_key_has_no_signatures_of_another_algorithm() -> None:
    with pytest.raises(FileAlgorithmMismatch):
        private("p256").sign(DIGEST, FileAlgorithm.RSA_PSS)
    with pytest.raises(FileAlgorithmMismatch):
        private("rsa-2048").public.check(DIGEST, b"x", FileAlgorithm.ECDSA_P256)


@pytest.mark.parametrize("digest", [b"", DIGEST[:-1], DIGEST + b"\0", DIGEST.hex().encode()])
def test_what_is_no_sha256_is_refused(digest: bytes) -> None:
    with pytest.raises(BadDigest):
        private("p256").sign(digest)
    with pytest.raises(BadDigest):
        private("p256").public.check(digest, b"x")


def test_other_keys_sign_no_files() -> None:
    for wrong in (
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ):
        with pytest.raises(BadKey):
            FilePrivateKey.from_pem(_pem_of(wrong))
    with pytest.raises(PasswordNeeded):
        FilePrivateKey.from_pem(key(1).to_pem("secret"))


def test_a_key_does_not_show_its_secret() -> None:
    assert repr(private("rsa-2048")) == "FilePrivateKey(rsa-pkcs1-sha256, rsa-pss-sha256)"


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
@pytest.mark.parametrize(("kind", "algorithm"), PAIRS)
def test_openssl_verifies_ours_and_we_verify_openssls(tmp_path: Path, kind: str, algorithm: FileAlgorithm) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    (tmp_path / "key.pem").write_bytes(pem(kind))
    (tmp_path / "key.pub").write_text(private(kind).public.pem)
    (tmp_path / "ours").write_bytes(private(kind).sign(DIGEST, algorithm))
    options = PSS_OPTIONS if algorithm is FileAlgorithm.RSA_PSS else []
    _openssl(tmp_path, "-verify", "key.pub", "-signature", "ours", *options, "file")
    _openssl(tmp_path, "-sign", "key.pem", "-out", "theirs", *options, "file")
    private(kind).public.check(DIGEST, (tmp_path / "theirs").read_bytes(), algorithm)


def _openssl(directory: Path, *arguments: str) -> None:
    command = [str(OPENSSL), "dgst", "-sha256", *arguments]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=30)
