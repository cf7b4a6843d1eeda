"""Keys: PKCS#8 in, PKCS#8 out, an id that nobody can choose, and clear errors for everything else."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from flota.trust.keys import BadKey, KeyKind, PasswordNeeded, PrivateKey, PublicKey, WrongPassword, key_id_of
from flota.trust.signatures import check_signature
from tests.trust.releases import key

KINDS = [kind.value for kind in KeyKind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_survives_its_file_with_and_without_a_password(kind: str) -> None:
    made = key(1, kind)
    plain, locked = made.to_pem(), made.to_pem("open sesame")
    assert plain.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert locked.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    for again in (PrivateKey.from_pem(plain), PrivateKey.from_pem(locked, b"open sesame")):
        assert again.key_id == made.key_id
        check_signature(b"message", again.sign(b"message"), made.public_pem)


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_id_is_the_sha256_of_the_public_key_in_der(kind: str) -> None:
    public = serialization.load_pem_public_key(key(1, kind).public_pem.encode())
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert key(1, kind).key_id == hashlib.sha256(der).hexdigest() == key_id_of(key(1, kind).public_pem)


def test_a_compressed_point_gives_the_same_key_id_and_pem() -> None:
    public = serialization.load_pem_public_key(key(1).public_pem.encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    point = public.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    info = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    pem = b"-----BEGIN PUBLIC KEY-----\n" + __import__("base64").b64encode(info) + b"\n-----END PUBLIC KEY-----\n"
    assert PublicKey.from_pem(pem) == key(1).public


def test_the_repr_of_a_private_key_shows_no_secret() -> None:
    assert key(1).key_id[:16] in repr(key(1))
    assert len(repr(key(1))) < 60


def test_an_encrypted_key_without_password_says_that_one_is_needed() -> None:
    with pytest.raises(PasswordNeeded):
        PrivateKey.from_pem(key(1).to_pem("x"))


def test_a_wrong_password_says_so() -> None:
    with pytest.raises(WrongPassword):
        PrivateKey.from_pem(key(1).to_pem("right"), "wrong")


def test_a_password_for_a_key_without_one_is_refused() -> None:
    with pytest.raises(BadKey, match="not encrypted"):
        PrivateKey.from_pem(key(1).to_pem(), "x")


def test_an_empty_password_protects_nothing_and_is_refused() -> None:
    with pytest.raises(BadKey, match="empty"):
        key(1).to_pem("")


@pytest.mark.parametrize(
    "other",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "secp256k1", "RSA"],
)
def test_other_kinds_of_keys_are_refused_by_name(other: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    private = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(BadKey, match="P-256 or Ed25519"):
        PrivateKey.from_pem(private)
    with pytest.raises(BadKey, match="P-256 or Ed25519"):
        PublicKey.from_pem(public)


def test_a_private_key_where_a_public_one_belongs_is_told_apart() -> None:
    with pytest.raises(BadKey, match="private key"):
        PublicKey.from_pem(key(1).to_pem())
    with pytest.raises(BadKey, match="not a private key"):
        PrivateKey.from_pem(key(1).public_pem.encode())


def test_an_unknown_kind_cannot_be_made() -> None:
    with pytest.raises(BadKey, match="unknown kind"):
        PrivateKey.generate("rsa")


@given(
    st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"-----BEGIN PRIVATE KEY-----\n{text}".encode())
)
def test_any_bytes_are_a_key_or_our_error(data: bytes) -> None:
    for read in (PrivateKey.from_pem, PublicKey.from_pem):
        with pytest.raises(BadKey):
            read(data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_file_cut_off_at_every_byte_is_refused(kind: str) -> None:
    pem = key(1, kind).to_pem()
    for length in range(len(pem.rstrip()) - 1):
        with pytest.raises(BadKey):
            PrivateKey.from_pem(pem[:length])


def test_a_file_too_long_is_refused_unread() -> None:
    with pytest.raises(BadKey, match="too long"):
        PrivateKey.from_pem(b"-" * 20000)
    with pytest.raises(BadKey, match="too long"):
        PublicKey.from_pem("-" * 20000)


@pytest.mark.program
def test_openssl_reads_our_keys_and_verifies_our_signatures(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    signature = key(1).sign(b"a manifest")
    (tmp_path / "public.pem").write_text(key(1).public_pem)
    (tmp_path / "message").write_bytes(b"a manifest")
    (tmp_path / "signature").write_bytes(signature.signature)
    command = [openssl, "dgst", "-sha256", "-verify", "public.pem", "-signature", "signature", "message"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "Verified OK", result.stderr
