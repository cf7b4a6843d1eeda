"""Code-signing certificates: what is made, and each way in which a chain is refused."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import FlotaError
from flota.trust.certificates import pack_certificates
from flota.trust.code_signing import (
    CHAIN_MAX_LEN,
    BadCertificate,
    BrokenChain,
    CertificateExpired,
    CertificateNotYetValid,
    ChainTooLong,
    NotAnAuthority,
    NotForCode,
    UnknownCriticalExtension,
    UntrustedCertificate,
    WrongAlgorithm,
    WrongKeyUsage,
    check_chain,
    make_code_signing_certificate,
    parse_chain,
    public_pem_of,
)
from tests.trust.releases import key

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
YEAR = timedelta(days=365)
OURS = make_code_signing_certificate(key(1), subject="Pump firmware", serial=7, now=NOW, lifetime=YEAR)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

DIGITAL_SIGNATURE, CERT_SIGN, ENCIPHER = "digital_signature", "key_cert_sign", "key_encipherment"
_USAGES = (
    DIGITAL_SIGNATURE, "content_commitment", ENCIPHER, "data_encipherment", "key_agreement", CERT_SIGN, "crl_sign",
    "encipher_only", "decipher_only",
)  # fmt: skip
CODE = (ExtendedKeyUsageOID.CODE_SIGNING,)


class Party:
    """Somebody with a key and a certificate, made by `issuer` or by itself; wrong in whatever way a test wants."""

    def __init__(
        self,
        name: str,
        issuer: "Party | None" = None,
        *,
        usage: str | None = DIGITAL_SIGNATURE,
        purposes: Sequence[ObjectIdentifier] = CODE,
        authority: bool = False,
        path_length: int | None = None,
        key: Key | None = None,
        begins: datetime = NOW - YEAR,
        ends: datetime = NOW + YEAR,
        digest: hashes.HashAlgorithm | None = None,
        more: x509.ExtensionType | None = None,
    ) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        signer = issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer.name)
            .public_key(self.key.public_key())
            .serial_number(5)
            .not_valid_before(begins)
            .not_valid_after(ends)
        )
        if authority or path_length is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        if usage:
            builder = builder.add_extension(x509.KeyUsage(**{name: name == usage for name in _USAGES}), critical=True)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if more:
            builder = builder.add_extension(more, critical=True)
        chosen = None if isinstance(signer.key, ed25519.Ed25519PrivateKey) else digest or hashes.SHA256()
        self.certificate = builder.sign(signer.key, chosen)


def authority(name: str, issuer: Party | None = None, **changes: object) -> Party:
    fields: dict[str, object] = {"usage": CERT_SIGN, "purposes": (), "authority": True}
    return Party(name, issuer, **(fields | changes))  # type: ignore[arg-type]


ROOT = authority("root")


def check(*parties: Party, trusted: Party = ROOT, now: datetime | None = NOW) -> x509.Certificate:
    return check_chain([party.certificate for party in parties], trusted=[trusted.certificate], now=now)


def test_what_we_make_is_for_signing_code_and_nothing_else() -> None:
    usage = OURS.extensions.get_extension_for_class(x509.KeyUsage).value
    assert [name for name in _USAGES[:7] if getattr(usage, name)] == [DIGITAL_SIGNATURE]
    assert tuple(OURS.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == CODE
    assert OURS.subject == OURS.issuer
    assert public_pem_of(OURS) == key(1).public_pem
    OURS.verify_directly_issued_by(OURS)


def test_what_we_make_is_accepted_where_it_is_trusted_itself_until_it_ends() -> None:
    chain = parse_chain(pack_certificates(OURS))
    assert check_chain(chain, trusted=[OURS], now=NOW + YEAR) == OURS
    with pytest.raises(CertificateExpired):
        check_chain(chain, trusted=[OURS], now=NOW + YEAR + timedelta(seconds=1))
    with pytest.raises(UntrustedCertificate):
        check_chain(chain, trusted=[ROOT.certificate], now=NOW)


@pytest.mark.parametrize(
    ("subject", "serial", "lifetime", "number", "kind"),
    [
        ("", 1, YEAR, 1, "p256"),
        ("a" * 65, 1, YEAR, 1, "p256"),
        ("a\nb", 1, YEAR, 1, "p256"),
        ("a", 0, YEAR, 1, "p256"),
        ("a", 2**159, YEAR, 1, "p256"),
        ("a", 1, timedelta(0), 1, "p256"),
        ("a", 1, 31 * YEAR, 1, "p256"),
        ("a", 1, YEAR, 2, "ed25519"),
    ],
)
def test_a_certificate_that_no_device_would_take_is_not_made(
    subject: str, serial: int, lifetime: timedelta, number: int, kind: str
) -> None:
    with pytest.raises(BadCertificate):
        make_code_signing_certificate(key(number, kind), subject=subject, serial=serial, now=NOW, lifetime=lifetime)


def test_a_chain_to_a_trusted_root_is_accepted_with_and_without_the_root_in_it() -> None:
    middle = authority("middle", ROOT, path_length=0)
    leaf = Party("leaf", middle)
    assert check(leaf, middle) == leaf.certificate
    assert check(leaf, middle, ROOT) == leaf.certificate
    assert check(leaf, middle, trusted=middle) == leaf.certificate


@pytest.mark.parametrize("bits", [2048, 3072])
def test_rsa_signers_are_accepted(bits: int) -> None:
    check(Party("leaf", ROOT, key=rsa.generate_private_key(65537, bits)))


def test_an_expired_certificate_is_refused_and_so_is_an_expired_authority() -> None:
    ended = NOW - timedelta(seconds=1)
    with pytest.raises(CertificateExpired, match="leaf"):
        check(Party("leaf", ROOT, ends=ended))
    middle = authority("middle", ROOT, ends=ended)
    with pytest.raises(CertificateExpired, match="middle"):
        check(Party("leaf", middle), middle)


def test_a_certificate_that_is_not_valid_yet_is_refused() -> None:
    with pytest.raises(CertificateNotYetValid):
        check(Party("leaf", ROOT, begins=NOW + timedelta(seconds=1)))


def test_without_a_clock_times_are_not_judged_but_everything_else_is() -> None:
    check(Party("leaf", ROOT, ends=NOW - timedelta(days=1)), now=None)
    with pytest.raises(NotForCode):
        check(Party("leaf", ROOT, purposes=()), now=None)


@pytest.mark.parametrize("usage", [None, ENCIPHER, CERT_SIGN])
def test_a_certificate_with_the_wrong_key_usage_is_refused(usage: str | None) -> None:
    with pytest.raises(WrongKeyUsage):
        check(Party("leaf", ROOT, usage=usage))


@pytest.mark.parametrize(
    "purposes", [(), (ExtendedKeyUsageOID.SERVER_AUTH,), (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)]
)
def test_a_certificate_for_something_else_than_code_is_refused(purposes: Sequence[ObjectIdentifier]) -> None:
    with pytest.raises(NotForCode):
        check(Party("leaf", ROOT, purposes=purposes))


def test_wrong_kinds_of_keys_are_refused() -> None:
    for wrong in (
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 1024),
        ed25519.Ed25519PrivateKey.generate(),
    ):
        with pytest.raises(WrongAlgorithm):
            check(Party("leaf", ROOT, key=wrong))


def test_a_signature_with_a_short_hash_is_refused() -> None:
    with pytest.raises(WrongAlgorithm, match="SHA-256"):
        check(Party("leaf", ROOT, digest=hashes.SHA224()))


def test_a_chain_longer_than_devices_follow_is_refused() -> None:
    parties = [ROOT]
    for number in range(CHAIN_MAX_LEN - 2):
        parties.insert(0, authority(f"middle {number}", parties[0]))
    check(Party("leaf", parties[0]), *parties)
    parties.insert(0, authority("one more", parties[0]))
    leaf = Party("leaf", parties[0])
    with pytest.raises(ChainTooLong):
        check(leaf, *parties)
    with pytest.raises(ChainTooLong):  # leaving the trusted one out does not make it shorter
        check(leaf, *parties[:-1])


def test_an_authority_below_one_that_allows_none_is_refused() -> None:
    first = authority("first", ROOT, path_length=0)
    second = authority("second", first)
    with pytest.raises(ChainTooLong, match="first"):
        check(Party("leaf", second), second, first)


def test_a_signer_cannot_issue_certificates() -> None:
    signer = Party("signer", ROOT)
    with pytest.raises(NotAnAuthority):
        check(Party("leaf", signer), signer)
    no_signing = authority("authority", ROOT, usage=DIGITAL_SIGNATURE)
    with pytest.raises(NotAnAuthority):
        check(Party("leaf", no_signing), no_signing)


def test_a_chain_in_the_wrong_order_or_by_a_namesake_is_refused() -> None:
    middle = authority("middle", ROOT)
    leaf = Party("leaf", middle)
    with pytest.raises(BrokenChain):
        check(middle, leaf)
    with pytest.raises(BrokenChain):  # the same name, another key
        check(leaf, authority("middle", ROOT))
    with pytest.raises(UntrustedCertificate):
        check(leaf, middle, trusted=authority("root"))


def test_a_critical_extension_that_is_not_understood_is_refused() -> None:
    unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    with pytest.raises(UnknownCriticalExtension, match=r"1\.2\.3\.4"):
        check(Party("leaf", ROOT, more=unknown))


def test_no_certificate_is_refused() -> None:
    with pytest.raises(BadCertificate):
        check()
    with pytest.raises(BadCertificate):
        parse_chain(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(BadCertificate):
        parse_chain(bytes(64 * 1024 + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_certificates_or_our_error(data: bytes) -> None:
    with pytest.raises(BadCertificate):
        parse_chain(data)


def test_a_certificate_whose_name_is_no_name_is_refused_and_named_as_unreadable() -> None:
    """The library reads a subject only when it is asked for, and raises then."""
    whole = Party("stranger", usage=DIGITAL_SIGNATURE, purposes=CODE).certificate.public_bytes(Encoding.DER)
    text = b"\x0c\x08stranger"
    subject = whole.index(text, whole.index(text) + 1)
    damaged = x509.load_der_x509_certificate(whole[:subject] + b"\x4c" + whole[subject + 1 :])
    with pytest.raises(FlotaError, match="unreadable name") as caught:
        check_chain([damaged], trusted=[ROOT.certificate], now=NOW)
    assert "asn1" not in str(caught.value)
