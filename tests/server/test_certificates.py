"""Our own authority: what it issues, when it renews, and how it works while the root's key is elsewhere."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from flota.errors import InvalidInput
from flota.server.certificate_authority import CertificateAuthority
from flota.trust import certificates
from flota.trust.certificates import parse_certificates, parse_key

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
NAMES = ("updates.example.net", "192.0.2.7")


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path)


def served(authority: CertificateAuthority) -> list[x509.Certificate]:
    return parse_certificates(authority.server_files.certificate.read_bytes())


def root_of(authority: CertificateAuthority) -> x509.Certificate:
    return parse_certificates(authority.root_certificate.read_bytes())[0]


def verify(authority: CertificateAuthority, name: x509.DNSName | x509.IPAddress, at: datetime = NOW) -> None:
    """Verify what is served as a TLS client would, by an implementation that is not ours."""
    leaf, *others = served(authority)
    store = Store([root_of(authority)])
    PolicyBuilder().store(store).time(at).build_server_verifier(name).verify(leaf, others)


def test_the_chain_verifies_against_the_root_for_every_name_and_no_other(authority: CertificateAuthority) -> None:
    import ipaddress

    authority.ensure_server_certificate(NAMES, now=NOW)
    for name in ("updates.example.net", "localhost"):
        verify(authority, x509.DNSName(name))
    for address in ("192.0.2.7", "127.0.0.1", "::1"):
        verify(authority, x509.IPAddress(ipaddress.ip_address(address)))
    with pytest.raises(VerificationError):
        verify(authority, x509.DNSName("elsewhere.example.net"))


def test_private_keys_are_for_their_owner_only_and_in_the_form_that_the_listener_reads(
    authority: CertificateAuthority,
) -> None:
    files = authority.ensure_server_certificate(NAMES, now=NOW)
    keys = sorted(authority.directory.glob("*.key"))
    assert [key.name for key in keys] == ["intermediate.key", "root.key", "server.key"]
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    files.check()


def test_a_second_start_changes_nothing(authority: CertificateAuthority) -> None:
    authority.ensure_server_certificate(NAMES, now=NOW)
    before = contents(authority)
    authority.ensure_server_certificate(NAMES, now=NOW + timedelta(days=300))
    assert contents(authority) == before


@pytest.mark.parametrize("days", [340, 396, 500, 3000])
def test_the_server_certificate_is_renewed_near_and_after_its_end_without_the_root_key(
    authority: CertificateAuthority, days: int
) -> None:
    authority.ensure_server_certificate(NAMES, now=NOW)
    authority.root_key.rename(authority.directory.parent / "safe.key")
    before = served(authority)[0]
    later = NOW + timedelta(days=days)
    authority.ensure_server_certificate(NAMES, now=later)
    assert served(authority)[0] != before
    verify(authority, x509.DNSName("updates.example.net"), at=later)


def test_new_names_give_a_new_certificate(authority: CertificateAuthority) -> None:
    authority.ensure_server_certificate((), now=NOW)
    authority.ensure_server_certificate(NAMES, now=NOW)
    verify(authority, x509.DNSName("updates.example.net"))


def test_the_intermediate_is_renewed_while_the_root_key_is_there(authority: CertificateAuthority) -> None:
    authority.ensure_server_certificate(NAMES, now=NOW)
    later = NOW + timedelta(days=9 * 365)
    authority.ensure_server_certificate(NAMES, now=later)
    verify(authority, x509.DNSName("localhost"), at=later)
    assert served(authority)[1].not_valid_after_utc > later + timedelta(days=9 * 365)


def test_an_ending_intermediate_serves_on_without_the_root_key_and_then_says_what_it_needs(
    authority: CertificateAuthority,
) -> None:
    authority.ensure_server_certificate(NAMES, now=NOW)
    authority.root_key.unlink()
    authority.ensure_server_certificate(NAMES, now=NOW + timedelta(days=9 * 365))
    with pytest.raises(InvalidInput, match=r"root\.key back"):
        authority.ensure_server_certificate(NAMES, now=NOW + timedelta(days=11 * 365))


@pytest.mark.parametrize("name", ["server.crt", "server.key"])
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_lost_or_damaged_server_files_are_made_anew(
    authority: CertificateAuthority, name: str, content: bytes | None
) -> None:
    authority.ensure_server_certificate(NAMES, now=NOW)
    path = authority.directory / name
    path.unlink() if content is None else path.write_bytes(content)
    authority.ensure_server_certificate(NAMES, now=NOW).check()
    verify(authority, x509.DNSName("localhost"))


def test_a_key_and_a_certificate_of_different_makes_are_made_anew(authority: CertificateAuthority) -> None:
    authority.ensure_server_certificate(NAMES, now=NOW)
    key = authority.server_files.key
    key.write_bytes(certificates.pack_key(certificates.new_key()))  # as after a crash between the two writes
    authority.ensure_server_certificate(NAMES, now=NOW).check()


def test_a_lost_root_certificate_is_never_replaced_silently(authority: CertificateAuthority) -> None:
    authority.ensure_server_certificate(NAMES, now=NOW)
    authority.root_certificate.unlink()
    with pytest.raises(InvalidInput, match="missing"):
        authority.ensure_server_certificate(NAMES, now=NOW)


def test_a_foreign_root_key_is_refused(authority: CertificateAuthority) -> None:
    authority.ensure_server_certificate(NAMES, now=NOW)
    authority.root_key.write_bytes(certificates.pack_key(certificates.new_key()))
    (authority.directory / "intermediate.crt").unlink()
    with pytest.raises(InvalidInput, match="not the key of"):
        authority.ensure_server_certificate(NAMES, now=NOW)


def test_two_installations_have_roots_of_different_names(tmp_path: Path) -> None:
    one, two = CertificateAuthority(tmp_path / "1"), CertificateAuthority(tmp_path / "2")
    for authority in (one, two):
        authority.ensure_server_certificate((), now=NOW)
    assert root_of(one).subject != root_of(two).subject


def test_the_intermediate_may_sign_servers_only_and_ends_before_the_root(authority: CertificateAuthority) -> None:
    authority.ensure_server_certificate((), now=NOW)
    leaf, intermediate = served(authority)
    constraints = intermediate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert leaf.not_valid_after_utc <= intermediate.not_valid_after_utc <= root_of(authority).not_valid_after_utc
    assert leaf.not_valid_before_utc < NOW


def test_what_is_no_certificate_or_key_is_an_error_of_ours() -> None:
    for junk in (b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----"):
        with pytest.raises(InvalidInput):
            parse_certificates(junk)
        with pytest.raises(InvalidInput):
            parse_key(junk)


def contents(authority: CertificateAuthority) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in authority.directory.iterdir()}
