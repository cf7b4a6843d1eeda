"""Certificate and key files that the crypto library reads with surprises: each is one of our errors."""

from __future__ import annotations

import base64
import warnings
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from flota.errors import InvalidInput
from flota.trust.certificates import make_root, new_key, parse_certificates, parse_key
from flota.trust.code_signing import BadCertificate, parse_chain
from flota.trust.keys import BadKey, load_private_key

NOW = datetime(2026, 6, 1, tzinfo=UTC)
VERSION_3 = bytes.fromhex("a003020102")
SERIAL_7 = bytes.fromhex("020107")


def root_with(old: bytes, new: bytes) -> bytes:
    """A root certificate in PEM with bytes exchanged; its signature is wrong then, which nobody looks at here."""
    der = make_root(new_key(), serial=7, now=NOW).public_bytes(serialization.Encoding.DER)
    assert der.count(old) >= 1
    body = base64.encodebytes(der.replace(old, new, 1))
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


def test_the_unchanged_certificate_is_read() -> None:
    (found,) = parse_certificates(root_with(SERIAL_7, SERIAL_7))
    assert (found.serial_number, found.version) == (7, x509.Version.v3)


@pytest.mark.parametrize("number", [1, 4, 0x42])
def test_a_certificate_of_an_unknown_version_is_refused(number: int) -> None:
    pem = root_with(VERSION_3, VERSION_3[:-1] + bytes([number]))
    with pytest.raises(InvalidInput, match="not a PEM certificate"):
        parse_certificates(pem)
    with pytest.raises(BadCertificate):
        parse_chain(pem)


@pytest.mark.parametrize("serial", ["020100", "0201ff"])
def test_a_serial_number_that_is_not_positive_is_refused_and_nothing_is_written_to_the_error_output(
    serial: str,
) -> None:
    pem = root_with(SERIAL_7, bytes.fromhex(serial))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(InvalidInput, match="not a PEM certificate") as refused:
            parse_certificates(pem)
        with pytest.raises(BadCertificate):
            parse_chain(pem)
    assert not warned
    assert str(refused.value).isprintable()


X448_OF_32_BYTES = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VvBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f
-----END PRIVATE KEY-----
"""


def test_a_key_at_which_the_crypto_library_has_an_internal_error_is_a_bad_key() -> None:
    for password in (None, "password"):
        with pytest.raises(BadKey, match="damaged"):
            load_private_key(X448_OF_32_BYTES, password)
    with pytest.raises(InvalidInput, match="not an unencrypted PEM key") as refused:
        parse_key(X448_OF_32_BYTES)
    assert str(refused.value).isprintable()
