"""Client certificates of things as values: their own authority, requests for them (CSR), those of other authorities.

The authority stands beside the one that makes servers' certificates, under no common root: what a device is given can
never be taken for a server. Who somebody is follows from a certificate's fingerprint alone, never from a name in it.
Pure: keys, serial numbers and the time come in.
Source: docs/reference/aws-iot.md, "Things and certificates"; RFC 5280 4.2; RFC 2986.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flota.errors import InvalidInput
from flota.trust.certificates import BACKDATED, COMMON_NAME_MAX_LEN, Issuer, Key, parse_certificates

LAST_DAY: Final = datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)
"""How long certificates last unless told otherwise, as AWS IoT's own do: later years are written in another form, which
small TLS stacks cannot all read (RFC 5280 4.1.2.5). Many things have no clock, and nobody who could renew theirs."""

LIFETIME_MIN: Final = timedelta(days=1)
REQUEST_MAX_BYTES: Final = 8 * 1024
CERTIFICATE_MAX_BYTES: Final = 16 * 1024
RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 4096
RSA_EXPONENT: Final = 65537

_KEYS_IN_WORDS: Final = f"P-256, P-384 or RSA-{RSA_BITS_MIN} to {RSA_BITS_MAX} with exponent {RSA_EXPONENT}"

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class BadCertificateRequest(InvalidInput):
    """The bytes are no certificate signing request that a certificate can be made for."""

    code = "bad-certificate-request"


class BadThingCertificate(InvalidInput):
    """The certificate cannot be a thing's."""

    code = "bad-thing-certificate"


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What is kept of a certificate. `fingerprint`: hex SHA-256 of its DER form, which AWS IoT calls its id."""

    fingerprint: str
    subject: str
    pem: str
    not_before: datetime
    not_after: datetime


def fingerprint_of(der: bytes) -> str:
    """Return the hex SHA-256 of a certificate's DER form."""
    return hashlib.sha256(der).hexdigest()


def make_thing_authority(key: Key, *, serial: int, now: datetime) -> x509.Certificate:
    """Return a self-signed authority that may sign things' certificates, until the last day of 2049."""
    public = key.public_key()
    mark = x509.SubjectKeyIdentifier.from_public_key(public)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Flota"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Flota devices {mark.digest.hex()[:8]}"),
        ]
    )
    return (
        x509.CertificateBuilder()
        .issuer_name(name)
        .subject_name(name)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(max(LAST_DAY, now + LIFETIME_MIN))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(mark, critical=False)
        .sign(key, hashes.SHA256())
    )


def parse_request(pem: str | bytes) -> PublicKey:
    """Return the key that a certificate signing request (PKCS#10, PEM) asks a certificate for.

    Its signature was made with that key, which proves that whoever asks has it. Nothing else in it counts: subject and
    extensions are ours to choose. Raises `BadCertificateRequest`.
    """
    data = pem.encode("utf-8", "surrogatepass") if isinstance(pem, str) else pem
    if len(data) > REQUEST_MAX_BYTES:
        raise BadCertificateRequest(
            "the certificate request is too long", expected=f"at most {REQUEST_MAX_BYTES} bytes", found=len(data)
        )
    try:
        request = x509.load_pem_x509_csr(data)
        key = request.public_key()
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise BadCertificateRequest(
            "not a certificate request",
            expected="PEM, -----BEGIN CERTIFICATE REQUEST-----",
            found=ascii(" ".join(str(error).split())[:120]),
        ) from error
    if (reason := _unfit_key(key)) is not None:
        raise BadCertificateRequest(
            "the request's key is of a kind that is not taken", expected=_KEYS_IN_WORDS, found=reason
        )
    try:
        valid = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        valid = False
    if not valid:
        raise BadCertificateRequest(
            "the request is not signed by its own key", hint="Make it again with the private key that it is for."
        )
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return key


def make_request(key: PrivateKey, common_name: str) -> str:
    """Return a certificate signing request (PEM) for this key. Raises `BadCertificateRequest` for an empty name."""
    if not common_name:
        raise BadCertificateRequest("the name in a certificate request is empty")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:COMMON_NAME_MAX_LEN])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def make_thing_certificate(
    issuer: Issuer, key: PublicKey, common_name: str, *, serial: int, now: datetime, lifetime: timedelta | None = None
) -> x509.Certificate:
    """Return a TLS client certificate that can do nothing else; it ends with its issuer at the latest.

    `common_name` is for people; the first 64 characters of it are taken. `lifetime` None: to the last day of 2049.
    Raises `BadThingCertificate` for a lifetime of less than a day.
    """
    if lifetime is not None and lifetime < LIFETIME_MIN:
        raise BadThingCertificate(
            "the lifetime is too short", expected=f"at least {LIFETIME_MIN.days} day", found=str(lifetime)
        )
    last = issuer.certificate.not_valid_after_utc
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:COMMON_NAME_MAX_LEN])])
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer.certificate.subject)
        .subject_name(subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(last if lifetime is None or lifetime > last - now else now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


def parse_foreign_certificate(pem: str | bytes, *, now: datetime) -> CertificateFacts:
    """Return the facts of a certificate that another authority issued and that is to be believed for itself.

    It must be a leaf for TLS clients, its time must not be over. Raises `BadThingCertificate`.
    """
    data = pem.encode("utf-8", "surrogatepass") if isinstance(pem, str) else pem
    if len(data) > CERTIFICATE_MAX_BYTES:
        raise BadThingCertificate(
            "the certificate is too long", expected=f"at most {CERTIFICATE_MAX_BYTES} bytes", found=len(data)
        )
    try:
        found = parse_certificates(data)
    except InvalidInput as error:
        raise BadThingCertificate("not a certificate", expected="PEM, -----BEGIN CERTIFICATE-----") from error
    if len(found) != 1:
        raise BadThingCertificate("more than one certificate", expected="the device's own", found=len(found))
    certificate = found[0]
    try:
        reason = _unfit_key(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        reason = "one that cannot be read"
    if reason is not None:
        raise BadThingCertificate(
            "the certificate's key is of a kind that is not taken", expected=_KEYS_IN_WORDS, found=reason
        )
    _check_leaf(certificate)
    facts = facts_of(certificate)
    if now >= facts.not_after:
        raise BadThingCertificate("the certificate has expired", found=facts.not_after.isoformat())
    return facts


def facts_of(certificate: x509.Certificate) -> CertificateFacts:
    """Return what is kept of a certificate; a subject that cannot be read is called so."""
    try:
        subject = certificate.subject.rfc4514_string()
    except ValueError:
        subject = "an unreadable name"
    printable = subject if subject.isprintable() else ascii(subject)
    return CertificateFacts(
        fingerprint=fingerprint_of(certificate.public_bytes(serialization.Encoding.DER)),
        subject=printable[:256],
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def new_thing_key(kind: str) -> PrivateKey:
    """Return a new key of the kind `p256` or `rsa-2048`. Raises `InvalidInput` for another one."""
    if kind == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "rsa-2048":
        return rsa.generate_private_key(RSA_EXPONENT, RSA_BITS_MIN)
    raise InvalidInput("not a kind of key for things", expected="p256 or rsa-2048", found=repr(kind[:40]))


def pack_thing_key(key: PrivateKey) -> str:
    """Return the key in PEM as devices' libraries have always read it: `EC PRIVATE KEY` or `RSA PRIVATE KEY`."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode("ascii")


def pack_public_key(key: PublicKey) -> str:
    """Return the key as SubjectPublicKeyInfo in PEM."""
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, info).decode("ascii")


def _check_leaf(certificate: x509.Certificate) -> None:
    try:
        extensions = certificate.extensions
        purposes = [item.value for item in extensions if isinstance(item.value, x509.ExtendedKeyUsage)]
        constraints = [item.value for item in extensions if isinstance(item.value, x509.BasicConstraints)]
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise BadThingCertificate("the certificate's extensions cannot be read") from error
    if any(one.ca for one in constraints):
        raise BadThingCertificate("an authority's certificate", expected="the device's own")
    if purposes and not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(
        purposes[0]
    ):
        raise BadThingCertificate(
            "the certificate is not for TLS clients",
            expected="extendedKeyUsage clientAuth, or none",
            found=", ".join(oid.dotted_string for oid in purposes[0])[:120],
        )


def _unfit_key(key: object) -> str | None:
    """Return what is wrong with a key in words, None if it is taken."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None if isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1) else key.curve.name
    if isinstance(key, rsa.RSAPublicKey):
        exponent = key.public_numbers().e
        if RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX and exponent == RSA_EXPONENT:
            return None
        return f"RSA-{key.key_size}" + (f" with exponent {exponent}"[:40] if exponent != RSA_EXPONENT else "")
    return type(key).__name__.lstrip("_")


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
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
