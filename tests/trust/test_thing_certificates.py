"""Certificates of things: made for a request, believed for themselves, and every way in which they are refused."""

from __future__ import annotations

import base64
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import FlotaError, InvalidInput
from flota.trust.certificates import Issuer, new_key, pack_certificates
from flota.trust.thing_certificates import (
    LAST_DAY,
    REQUEST_MAX_BYTES,
    BadCertificateRequest,
    BadThingCertificate,
    PrivateKey,
    facts_of,
    fingerprint_of,
    make_request,
    make_thing_authority,
    make_thing_certificate,
    new_thing_key,
    pack_public_key,
    pack_thing_key,
    parse_foreign_certificate,
    parse_request,
)
from tests.server.programs import find_program

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
AUTHORITY_KEY = new_key()
AUTHORITY = Issuer(make_thing_authority(AUTHORITY_KEY, serial=1, now=NOW), AUTHORITY_KEY)


def issued(key: PrivateKey, name: str = "pump-1", lifetime: timedelta | None = None) -> x509.Certificate:
    return make_thing_certificate(AUTHORITY, key.public_key(), name, serial=2, now=NOW, lifetime=lifetime)


def self_signed(
    key: PrivateKey | dsa.DSAPrivateKey | ed25519.Ed25519PrivateKey,
    *,
    authority: bool = False,
    purpose: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.CLIENT_AUTH,
    until: datetime = NOW + timedelta(days=1),
) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "foreign")])
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), 5)
        .not_valid_before(NOW - timedelta(days=900))
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return pack_certificates(builder.sign(key, algorithm))


def request_of(key: PrivateKey | dsa.DSAPrivateKey | ed25519.Ed25519PrivateKey) -> x509.CertificateSigningRequest:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hostile.example.com")])
    )
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def pem_of(request: x509.CertificateSigningRequest) -> bytes:
    return request.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("kind", ["p256", "rsa-2048"])
def test_a_request_gives_a_certificate_for_tls_clients_and_nothing_else(kind: str) -> None:
    key = new_thing_key(kind)
    public = parse_request(make_request(key, "pump-1"))
    assert pack_public_key(public) == pack_public_key(key.public_key())
    made = issued(key)
    made.verify_directly_issued_by(AUTHORITY.certificate)
    usage = made.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    purposes = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert made.not_valid_after_utc == LAST_DAY


def test_what_a_request_says_of_itself_does_not_get_into_the_certificate() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "updates.example.com")])
    alternative = x509.SubjectAlternativeName([x509.DNSName("updates.example.com")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .sign(new_key(), hashes.SHA256())
    )
    made = make_thing_certificate(AUTHORITY, parse_request(pem_of(request)), "pump-1", serial=2, now=NOW)
    assert made.subject.rfc4514_string() == "CN=pump-1"
    with pytest.raises(x509.ExtensionNotFound):
        made.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_request_for_somebody_elses_key_is_refused() -> None:
    """The key in the request is not the one that signed it: whoever sends it cannot prove to have it."""
    der = bytearray(request_of(new_key()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(BadCertificateRequest):
        parse_request(pem_of(x509.load_der_x509_csr(bytes(der))))
    mine, theirs = new_key(), new_key()
    forged = request_of(mine).public_bytes(serialization.Encoding.DER)
    point = mine.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    other = theirs.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    assert point in forged
    with pytest.raises(BadCertificateRequest, match="not signed by its own key"):
        parse_request(pem_of(x509.load_der_x509_csr(forged.replace(point, other))))


@pytest.mark.parametrize(
    ("key", "found"),
    [
        pytest.param(ec.generate_private_key(ec.SECP521R1()), "secp521r1", id="P-521"),
        pytest.param(ec.generate_private_key(ec.SECP256K1()), "secp256k1", id="secp256k1"),
        pytest.param(rsa.generate_private_key(65537, 1024), "RSA-1024", id="RSA-1024"),
        pytest.param(rsa.generate_private_key(3, 2048), "exponent 3", id="RSA with e = 3"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), "Ed25519", id="Ed25519"),
        pytest.param(dsa.generate_private_key(2048), "DSA", id="DSA"),
    ],
)
def test_weak_and_odd_keys_are_refused_by_name(key: ec.EllipticCurvePrivateKey, found: str) -> None:
    with pytest.raises(BadCertificateRequest, match="kind that is not taken") as refused:
        parse_request(pem_of(request_of(key)))
    assert found in str(refused.value.found)
    with pytest.raises(BadThingCertificate, match="kind that is not taken"):
        parse_foreign_certificate(self_signed(key), now=NOW)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        pack_certificates(AUTHORITY.certificate),
        "\udcff".encode("utf-8", "surrogatepass"),
        b"x" * (REQUEST_MAX_BYTES + 1),
    ],
    ids=["nothing", "no DER inside", "a certificate", "not text", "too long"],
)
def test_what_is_no_request_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(BadCertificateRequest):
        parse_request(data)


@given(st.integers(0, 2000), st.integers(1, 255))
def test_a_request_with_one_changed_byte_never_gives_another_key(offset: int, flip: int) -> None:
    der = bytearray(_REQUEST_DER)
    der[offset % len(der)] ^= flip
    pem = (
        b"-----BEGIN CERTIFICATE REQUEST-----\n"
        + base64.encodebytes(bytes(der))
        + b"-----END CERTIFICATE REQUEST-----\n"
    )
    with pytest.raises(FlotaError):
        parse_request(pem)


_REQUEST_DER = request_of(new_key()).public_bytes(serialization.Encoding.DER)


def test_the_authority_stands_under_no_other_and_can_issue_no_authority() -> None:
    root = AUTHORITY.certificate
    assert root.issuer == root.subject
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


def test_a_lifetime_ends_with_the_authority_at_the_latest_and_lasts_a_day_at_least() -> None:
    key = new_thing_key("p256")
    assert issued(key, lifetime=timedelta(days=30)).not_valid_after_utc == NOW + timedelta(days=30)
    assert issued(key, lifetime=timedelta(days=36_500)).not_valid_after_utc == LAST_DAY
    with pytest.raises(BadThingCertificate, match="too short"):
        issued(key, lifetime=timedelta(hours=1))


def test_long_names_are_cut_where_certificates_end_them() -> None:
    made = issued(new_thing_key("p256"), name="n" * 128)
    assert made.subject.rfc4514_string() == "CN=" + "n" * 64


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        (lambda key: self_signed(key, authority=True), "an authority's certificate"),
        (lambda key: self_signed(key, purpose=ExtendedKeyUsageOID.SERVER_AUTH), "not for TLS clients"),
        (lambda key: self_signed(key, until=NOW), "expired"),
        (lambda key: self_signed(key) * 2, "more than one certificate"),
        (lambda _: b"-----BEGIN CERTIFICATE-----\n", "not a certificate"),
        (lambda key: self_signed(key) + b" " * 20_000, "too long"),
    ],
    ids=["authority", "for servers", "expired", "a chain", "nothing inside", "too long"],
)
def test_a_foreign_certificate_must_be_a_clients_own_and_in_its_time(pem, why: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadThingCertificate, match=why):
        parse_foreign_certificate(pem(new_key()), now=NOW)


def test_a_foreign_certificate_without_a_stated_purpose_is_taken() -> None:
    facts = parse_foreign_certificate(self_signed(new_key(), purpose=None), now=NOW)
    assert facts.subject == "CN=foreign"
    assert len(facts.fingerprint) == 64


def test_the_fingerprint_is_the_sha_256_that_openssl_prints(tmp_path: Path) -> None:
    openssl = find_program("openssl")
    made = issued(new_thing_key("p256"))
    path = tmp_path / "thing.pem"
    path.write_bytes(pack_certificates(made))
    printed = _run(openssl, "x509", "-in", path, "-noout", "-fingerprint", "-sha256")
    assert printed.strip().rpartition("=")[2].replace(":", "").lower() == facts_of(made).fingerprint
    assert facts_of(made).fingerprint == fingerprint_of(made.public_bytes(serialization.Encoding.DER))


@pytest.mark.parametrize("kind", ["p256", "rsa-2048"])
def test_openssl_verifies_the_certificate_for_clients_and_refuses_it_for_servers(kind: str, tmp_path: Path) -> None:
    openssl = find_program("openssl")
    (tmp_path / "ca.pem").write_bytes(pack_certificates(AUTHORITY.certificate))
    (tmp_path / "thing.pem").write_bytes(pack_certificates(issued(new_thing_key(kind))))
    at = str(int(NOW.timestamp()))
    base = ("verify", "-attime", at, "-CAfile", tmp_path / "ca.pem")
    assert "OK" in _run(openssl, *base, "-purpose", "sslclient", "-x509_strict", tmp_path / "thing.pem")
    with pytest.raises(subprocess.CalledProcessError):
        _run(openssl, *base, "-purpose", "sslserver", tmp_path / "thing.pem")


@pytest.mark.parametrize("kind", ["p256", "rsa-2048"])
def test_openssl_takes_our_request_and_our_key(kind: str, tmp_path: Path) -> None:
    openssl = find_program("openssl")
    key = new_thing_key(kind)
    (tmp_path / "key.pem").write_text(pack_thing_key(key))
    (tmp_path / "thing.csr").write_text(make_request(key, "pump-1"))
    assert _run(openssl, "pkey", "-in", tmp_path / "key.pem", "-pubout") == pack_public_key(key.public_key())
    assert "pump-1" in _run(openssl, "req", "-in", tmp_path / "thing.csr", "-noout", "-verify", "-subject")


@pytest.mark.parametrize(
    "options", [("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), ("rsa:3072",)], ids=["P-256", "RSA-3072"]
)
def test_requests_that_openssl_makes_are_taken(options: tuple[str, ...], tmp_path: Path) -> None:
    openssl = find_program("openssl")
    _run(
        openssl, "req", "-new", "-newkey", *options, "-nodes", "-subj", "/CN=meter 3/O=Example", "-text",
        "-keyout", tmp_path / "key.pem", "-out", tmp_path / "thing.csr",
    )  # fmt: skip
    public = parse_request((tmp_path / "thing.csr").read_bytes())
    assert pack_public_key(public) == _run(openssl, "pkey", "-in", tmp_path / "key.pem", "-pubout")


def test_keys_of_unknown_kinds_are_not_made() -> None:
    with pytest.raises(InvalidInput, match="not a kind of key"):
        new_thing_key("p521")


def _run(*command: object) -> str:
    return subprocess.run([str(one) for one in command], check=True, capture_output=True, text=True).stdout
