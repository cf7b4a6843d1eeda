"""Our own certificate authority as values: a root that can be put away, an intermediate, a server's certificate.

Pure: keys, serial numbers and the time come in, certificates go out.
Source: RFC 5280 4.2 for the extensions; docs/adr/0011-own-certificate-authority.md for the choices.
"""

from __future__ import annotations

import ipaddress
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flota.errors import InvalidInput

ROOT_LIFETIME: Final = timedelta(days=20 * 365)
INTERMEDIATE_LIFETIME: Final = timedelta(days=10 * 365)
SERVER_LIFETIME: Final = timedelta(days=397)
"""The longest that browsers accept (CA/Browser Forum baseline requirements 6.3.2 as of 2020)."""

SERVER_RENEWAL_BEFORE: Final = timedelta(days=60)
INTERMEDIATE_RENEWAL_BEFORE: Final = timedelta(days=2 * 365)

BACKDATED: Final = timedelta(days=1)
"""Certificates begin in the past: a device's clock may be a little slow."""

COMMON_NAME_MAX_LEN: Final = 64
"""RFC 5280 appendix A, ub-common-name."""

ALWAYS_NAMED: Final = ("localhost", "127.0.0.1", "::1")

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Issuer:
    """A certificate that may sign others, and its key."""

    certificate: x509.Certificate
    key: Key


def new_key() -> Key:
    """Return a new P-256 key: what the TLS 1.2 stacks of microcontrollers verify in the least time and code."""
    return ec.generate_private_key(ec.SECP256R1())


def make_root(key: Key, *, serial: int, now: datetime) -> x509.Certificate:
    """Return a self-signed root that may have one level of authorities below it."""
    name = _authority_name("root", key)
    builder = _begin(name, name, key.public_key(), serial, now, ROOT_LIFETIME)
    return _as_authority(builder, key.public_key(), key.public_key(), path_length=1).sign(key, hashes.SHA256())


def make_intermediate(root: Issuer, key: Key, *, serial: int, now: datetime) -> x509.Certificate:
    """Return an authority that may sign servers and nothing else; it ends with the root at the latest."""
    subject = _authority_name("intermediate", key)
    builder = _begin(root.certificate.subject, subject, key.public_key(), serial, now, INTERMEDIATE_LIFETIME, root)
    return _as_authority(builder, key.public_key(), root.key.public_key(), path_length=0).sign(
        root.key, hashes.SHA256()
    )


def make_server_certificate(
    issuer: Issuer, key: Key, names: Sequence[str], *, serial: int, now: datetime
) -> x509.Certificate:
    """Return a TLS server certificate for `names` (host names and IP addresses) and this machine itself."""
    wanted = certificate_names(names)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted[0][:COMMON_NAME_MAX_LEN])])
    public = key.public_key()
    builder = _begin(issuer.certificate.subject, subject, public, serial, now, SERVER_LIFETIME, issuer)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in wanted]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


def certificate_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a server certificate carries: those given, then localhost and the loopback addresses."""
    return tuple(dict.fromkeys([*names, *ALWAYS_NAMED]))


def reason_to_renew_server(
    certificate: x509.Certificate, key: Key, issuer: x509.Certificate, names: Sequence[str], *, now: datetime
) -> str | None:
    """Return why a server's certificate must be made anew, or None while it is good."""
    if certificate.public_key() != key.public_key():
        return "its key is another one"
    if certificate.issuer != issuer.subject or not _is_signed_by(certificate, issuer):
        return "its issuer is another one"
    if set(_names_in(certificate)) != set(certificate_names(names)):
        return "the server's names changed"
    return _reason_of_time(certificate, SERVER_RENEWAL_BEFORE, now)


def reason_to_renew_intermediate(
    certificate: x509.Certificate, key: Key, root: x509.Certificate, *, now: datetime
) -> str | None:
    """Return why an intermediate must be made anew, or None while it is good."""
    if certificate.public_key() != key.public_key():
        return "its key is another one"
    if certificate.issuer != root.subject or not _is_signed_by(certificate, root):
        return "its root is another one"
    return _reason_of_time(certificate, INTERMEDIATE_RENEWAL_BEFORE, now)


def has_expired(certificate: x509.Certificate, *, now: datetime) -> bool:
    """Return whether the certificate is over."""
    return now >= certificate.not_valid_after_utc


def pack_certificates(*certificates: x509.Certificate) -> bytes:
    """Return the certificates as PEM, in the given order: a server's own first, then its issuers."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def pack_key(key: Key) -> bytes:
    """Return the key as unencrypted PKCS#8 PEM, the only form that the TLS listener reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def parse_certificates(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, at least one. Raises `InvalidInput`.

    Refused as well: another version than X.509 v1 or v3, and a serial number that is not positive (RFC 5280 4.1.2.2).
    """
    try:
        with warnings.catch_warnings():
            # The library still reads serial numbers below 1, and says on the error output that it soon will not.
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            return x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion, CryptographyDeprecationWarning) as error:
        reason = " ".join(str(error).split())
        raise InvalidInput("not a PEM certificate", found=ascii(reason[:200])) from error


def parse_key(pem: bytes) -> Key:
    """Return the P-256 key of a PEM file. Raises `InvalidInput`."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        reason = " ".join(str(error).split())
        raise InvalidInput("not an unencrypted PEM key", found=ascii(reason[:200])) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidInput("not a key of ours", expected="an elliptic-curve key", found=type(key).__name__)
    return key


def _begin(
    issuer: x509.Name,
    subject: x509.Name,
    public: ec.EllipticCurvePublicKey,
    serial: int,
    now: datetime,
    lifetime: timedelta,
    parent: Issuer | None = None,
) -> x509.CertificateBuilder:
    end = now + lifetime if parent is None else min(now + lifetime, parent.certificate.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
    )


def _as_authority(
    builder: x509.CertificateBuilder,
    public: ec.EllipticCurvePublicKey,
    issuer_public: ec.EllipticCurvePublicKey,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False)
    )


def _authority_name(role: str, key: Key) -> x509.Name:
    """Return a name that differs from installation to installation: two roots of one name confuse trust stores."""
    mark = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:8]
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Flota"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Flota {role} {mark}"),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_in(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in found]


def _is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - ValueError, TypeError, InvalidSignature and UnsupportedAlgorithm all say no
        return False
    return True


def _reason_of_time(certificate: x509.Certificate, before: timedelta, now: datetime) -> str | None:
    if now < certificate.not_valid_before_utc:
        return "it is not valid yet"
    left = certificate.not_valid_after_utc - now
    return f"it ends in {max(0, left.days)} days" if left < before else None
