"""The file that says whom a device believes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import InvalidInput
from flota.trust.canonical_json import DuplicateMember, MissingMember, UnknownMember
from flota.trust.keys import BadKey
from flota.trust.manifest import pack_manifest
from flota.trust.signatures import BelowThreshold
from flota.trust.trust_file import BadTrustFile, TrustedSigners, pack_trust_file, parse_trust_file
from tests.trust.releases import key, manifest

SIGNERS = TrustedSigners.of([key(1).public_pem, key(2, "ed25519").public_pem], threshold=2)


def changed(**changes: object) -> bytes:
    return json.dumps(json.loads(pack_trust_file(SIGNERS)) | changes).encode()


def test_a_trust_file_survives_packing_and_parsing() -> None:
    assert parse_trust_file(pack_trust_file(SIGNERS)) == SIGNERS


def test_its_signers_verify_a_manifest_at_its_threshold() -> None:
    packed = pack_manifest(manifest())
    both = [key(1).sign(packed), key(2, "ed25519").sign(packed)]
    assert SIGNERS.verify(packed, both) == manifest()
    with pytest.raises(BelowThreshold):
        SIGNERS.verify(packed, both[:1])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (changed(threshold=0), BadTrustFile),
        (changed(threshold=3), BadTrustFile),
        (changed(keys=[]), BadTrustFile),
        (changed(keys=json.loads(pack_trust_file(SIGNERS))["keys"] * 2), BadTrustFile),
        (changed(keys=[{"key_id": "0" * 64, "public_key": key(1).public_pem}], threshold=1), BadTrustFile),
        (changed(keys=[{"key_id": "0" * 64, "public_key": "none"}]), BadKey),
        (changed(keys=[{"key_id": "0" * 64}]), MissingMember),
        (changed(server="https://x"), UnknownMember),
        (changed(kind="flota-release"), BadTrustFile),
        (changed(schema=2), BadTrustFile),
        (changed(version=-1), BadTrustFile),
        (changed(device_type=" pump"), BadTrustFile),
        (changed(revoked=["0" * 63]), BadTrustFile),
        (changed(revoked=[f"{number:064x}" for number in range(257)]), BadTrustFile),
        (b'{"threshold":1,' + pack_trust_file(SIGNERS)[1:], DuplicateMember),
    ],
)
def test_a_trust_file_that_is_not_right_is_refused(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_trust_file(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_trust_file_or_our_error(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_trust_file(data)
