"""X.509 certificates for code signing: made self-signed, read, and checked with one error for each way to be wrong.

Pure: keys, serial numbers and the time come in. A certificate says whose key it is and until when; which certificates
are believed is still the device's own choice. Source: docs/reference/code-signing.md; RFC 5280 4.2.1, 6.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from flota.errors import InvalidInput, Refused
from flota.trust.certificates import BACKDATED, COMMON_NAME_MAX_LEN, parse_certificates
from flota.trust.keys import PrivateKey, load_private_key

CHAIN_MAX_LEN: Final = 4
"""Certificates from the signer's own to the trusted one, both counted: what small devices take."""

CERTIFICATE_FILE_MAX_BYTES: Final = 64 * 1024
DEFAULT_LIFETIME: Final = timedelta(days=3 * 365)
LIFETIME_MAX: Final = timedelta(days=30 * 365)
SERIAL_MAX: Final = 2**159 - 1
"""A positive integer of at most 20 bytes (RFC 5280 4.1.2.2)."""

RSA_BITS: Final = (2048, 3072)
"""Of the signer's key; an issuer may have any length from the first on."""

_T = TypeVar("_T", bound=x509.ExtensionType)

_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_UNDERSTOOD: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)


class BadCertificate(InvalidInput):
    """The bytes are no certificate, or one cannot be made of what was given."""

    code = "bad-certificate"


class CertificateRefused(Refused):
    """The certificate must not sign code here; each subclass is one reason."""

    code = "certificate-refused"


class CertificateExpired(CertificateRefused):
    """Its time is over."""

    code = "certificate-expired"


class CertificateNotYetValid(CertificateRefused):
    """Its time has not begun."""

    code = "certificate-not-yet-valid"


class WrongKeyUsage(CertificateRefused):
    """The signer's certificate is not for signatures (keyUsage lacks digitalSignature)."""

    code = "certificate-wrong-key-usage"


class NotForCode(CertificateRefused):
    """The signer's certificate is for something else than code (extendedKeyUsage lacks codeSigning)."""

    code = "certificate-not-for-code"


class NotAnAuthority(CertificateRefused):
    """A certificate in the chain must not issue the one before it."""

    code = "certificate-not-an-authority"


class WrongAlgorithm(CertificateRefused):
    """A key or a signature in the chain is of a kind that is not taken."""

    code = "certificate-wrong-algorithm"


class UnknownCriticalExtension(CertificateRefused):
    """A certificate has a critical extension that Flota does not understand (RFC 5280 4.2: refuse)."""

    code = "certificate-unknown-critical-extension"


class ChainTooLong(CertificateRefused):
    """More certificates than a device follows."""

    code = "certificate-chain-too-long"


class BrokenChain(CertificateRefused):
    """A certificate is not signed by the one after it."""

    code = "certificate-chain-broken"


class UntrustedCertificate(CertificateRefused):
    """The chain is sound, but ends at nobody who is trusted here."""

    code = "certificate-untrusted"


def make_code_signing_certificate(
    key: PrivateKey, *, subject: str, serial: int, now: datetime, lifetime: timedelta = DEFAULT_LIFETIME
) -> x509.Certificate:
    """Return a self-signed certificate for a P-256 key, with digitalSignature and codeSigning and nothing else.

    `subject` is the common name (1 to 64 characters), `serial` 1 to 2^159 - 1. It begins a day in the past and ends
    `lifetime` (at most 30 years) after `now`. Raises `BadCertificate`.
    """
    if not 1 <= len(subject) <= COMMON_NAME_MAX_LEN or not subject.isprintable() or subject != subject.strip():
        raise BadCertificate(
            "not a name for a certificate",
            expected=f"1 to {COMMON_NAME_MAX_LEN} printable characters",
            found=ascii(subject[:72]),
        )
    if not timedelta(0) < lifetime <= LIFETIME_MAX:
        raise BadCertificate(
            "the lifetime is out of range", expected=f"1 to {LIFETIME_MAX.days} days", found=f"{lifetime.days} days"
        )
    if not 1 <= serial <= SERIAL_MAX:
        raise BadCertificate("the serial number is out of range", expected="1 to 2^159 - 1", found=str(serial)[:56])
    secret = load_private_key(key.to_pem())
    if not isinstance(secret, ec.EllipticCurvePrivateKey):
        raise BadCertificate("code-signing certificates are made for P-256 keys", expected="p256", found=str(key.kind))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    public = secret.public_key()
    return (
        x509.CertificateBuilder()
        .issuer_name(name)
        .subject_name(name)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(_for_signatures_only(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(secret, hashes.SHA256())
    )


def parse_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a PEM file (at most 64 KiB), the signer's own first. Raises `BadCertificate`."""
    if len(pem) > CERTIFICATE_FILE_MAX_BYTES:
        raise BadCertificate(
            "the certificate file is too long",
            expected=f"at most {CERTIFICATE_FILE_MAX_BYTES} bytes",
            found=f"{len(pem)} bytes",
        )
    try:
        return tuple(parse_certificates(pem))
    except InvalidInput as error:
        raise BadCertificate("not a certificate in PEM", expected="-----BEGIN CERTIFICATE-----") from error


def check_chain(
    chain: Sequence[x509.Certificate], *, trusted: Sequence[x509.Certificate], now: datetime | None
) -> x509.Certificate:
    """Return the signer's own certificate (the first of `chain`) if it may sign code.

    Each certificate has to be issued by the next; the last has to be one of `trusted` (a self-signed signer's own
    certificate too) or be issued by one. `now` None: there is no trusted clock, so times are not judged. Raises a
    subclass of `CertificateRefused`, or `BadCertificate` for an empty chain or extensions that cannot be read.
    """
    if not chain:
        raise BadCertificate("there is no certificate", expected="at least one")
    _check_length(len(chain))
    for below, above in pairwise(chain):
        if not _is_issued_by(below, above):
            raise BrokenChain(
                "a certificate is not signed by the one after it", expected=_issuer_of(below), found=_named(above)
            )
    path = (*chain, *_anchor_above(chain[-1], trusted))
    _check_length(len(path))
    for depth, certificate in enumerate(path):
        _check_algorithms(certificate, is_signer=depth == 0)
        _check_extensions(certificate)
        _check_time(certificate, now)
    _check_purpose(path[0])
    for authorities_below, issuer in enumerate(path[1:]):
        _check_authority(issuer, authorities_below)
    return path[0]


def public_pem_of(certificate: x509.Certificate) -> str:
    """Return the certificate's key as SubjectPublicKeyInfo in PEM. Raises `WrongAlgorithm` for unknown kinds."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise WrongAlgorithm("the certificate's key cannot be read", found=_named(certificate)) from error
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, info).decode("ascii")


def _check_length(length: int) -> None:
    if length > CHAIN_MAX_LEN:
        raise ChainTooLong("the chain of certificates is too long", expected=f"at most {CHAIN_MAX_LEN}", found=length)


def _anchor_above(last: x509.Certificate, trusted: Sequence[x509.Certificate]) -> Iterator[x509.Certificate]:
    """Yield the trusted certificate that issued `last`; nothing if `last` is trusted itself."""
    if last in trusted:
        return
    issuer = next((anchor for anchor in trusted if _is_issued_by(last, anchor)), None)
    if issuer is None:
        raise UntrustedCertificate(
            "no trusted certificate stands at the end of the chain",
            expected=", ".join(_named(anchor) for anchor in trusted) or "a trusted certificate",
            found=_named(last),
        )
    yield issuer


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_time(certificate: x509.Certificate, now: datetime | None) -> None:
    if now is None:
        return
    if now < certificate.not_valid_before_utc:
        raise CertificateNotYetValid(
            f"the certificate {_named(certificate)} is not valid yet",
            expected=f"from {certificate.not_valid_before_utc.isoformat()} on",
            found=now.isoformat(timespec="seconds"),
        )
    if now > certificate.not_valid_after_utc:
        raise CertificateExpired(
            f"the certificate {_named(certificate)} has expired",
            expected=f"until {certificate.not_valid_after_utc.isoformat()}",
            found=now.isoformat(timespec="seconds"),
        )


def _check_algorithms(certificate: x509.Certificate, *, is_signer: bool) -> None:
    try:
        key, digest = certificate.public_key(), certificate.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm) as error:
        raise WrongAlgorithm("the certificate's algorithms are unknown", found=_named(certificate)) from error
    if not isinstance(digest, _HASHES):
        raise WrongAlgorithm(
            f"the certificate {_named(certificate)} is signed with a hash that is not taken",
            expected="SHA-256, SHA-384 or SHA-512",
            found=digest.name if digest else "none",
        )
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size in RSA_BITS or (not is_signer and key.key_size > RSA_BITS[0]):
            return
        found = f"RSA-{key.key_size}"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if isinstance(key.curve, ec.SECP256R1) or (not is_signer and isinstance(key.curve, ec.SECP384R1)):
            return
        found = key.curve.name
    else:
        found = type(key).__name__.lstrip("_")
    raise WrongAlgorithm(
        f"the key of {_named(certificate)} is of a kind that is not taken",
        expected="P-256, RSA-2048 or RSA-3072",
        found=found,
    )


def _check_extensions(certificate: x509.Certificate) -> None:
    for extension in _extensions(certificate):
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise UnknownCriticalExtension(
                f"the certificate {_named(certificate)} has a critical extension that is not understood",
                found=extension.oid.dotted_string,
            )


def _check_purpose(certificate: x509.Certificate) -> None:
    extensions = _extensions(certificate)
    usage = _extension(extensions, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise WrongKeyUsage(
            f"the certificate {_named(certificate)} is not for signatures",
            expected="keyUsage digitalSignature",
            found="no keyUsage" if usage is None else "keyUsage without it",
        )
    purposes = _extension(extensions, x509.ExtendedKeyUsage)
    if purposes is None or ExtendedKeyUsageOID.CODE_SIGNING not in purposes:
        raise NotForCode(
            f"the certificate {_named(certificate)} is not for code",
            expected="extendedKeyUsage codeSigning",
            found=", ".join(oid.dotted_string for oid in purposes) if purposes is not None else "no extendedKeyUsage",
        )


def _check_authority(certificate: x509.Certificate, authorities_below: int) -> None:
    extensions = _extensions(certificate)
    constraints = _extension(extensions, x509.BasicConstraints)
    usage = _extension(extensions, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise NotAnAuthority(
            "a certificate that is no authority issued another",
            expected="basicConstraints CA, keyUsage keyCertSign",
            found=_named(certificate),
        )
    if constraints.path_length is not None and authorities_below > constraints.path_length:
        raise ChainTooLong(
            f"the authority {_named(certificate)} allows fewer authorities below it",
            expected=f"at most {constraints.path_length}",
            found=authorities_below,
        )


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise BadCertificate("the extensions of a certificate cannot be read") from error


def _extension(extensions: x509.Extensions, kind: type[_T]) -> _T | None:
    return next((item.value for item in extensions if isinstance(item.value, kind)), None)


def _named(certificate: x509.Certificate) -> str:
    return _name(lambda: certificate.subject)


def _issuer_of(certificate: x509.Certificate) -> str:
    return _name(lambda: certificate.issuer)


def _name(read: Callable[[], x509.Name]) -> str:
    """Return the name that `read` gives; the library parses it only now, and it may not be one."""
    try:
        return ascii(read().rfc4514_string()[:128])
    except ValueError:  # no name, or an attribute that has no text form
        return "an unreadable name"


def _for_signatures_only() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
