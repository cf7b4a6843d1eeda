"""Signatures: each test is named after what an attacker tries."""

import contextlib
import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import InvalidInput
from flota.trust.canonical_json import BadJson, DuplicateMember, JsonTooLarge, UnknownMember
from flota.trust.keys import BadKey, KeyKind
from flota.trust.manifest import BadManifest, pack_manifest
from flota.trust.signatures import (
    SIGNATURES_MAX,
    AlgorithmMismatch,
    BadSignature,
    BadSignatures,
    BadThreshold,
    BelowThreshold,
    DuplicateKeyId,
    KeyIdMismatch,
    SameKeyUnderTwoIds,
    SameSignatureTwice,
    Signature,
    SignatureRefused,
    UnknownAlgorithm,
    UnknownKey,
    check_signature,
    parse_signatures,
    signatures_as_json,
    verify_manifest,
)
from tests.trust.releases import key, manifest

KINDS = [kind.value for kind in KeyKind]
MANIFEST = pack_manifest(manifest())
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
TRUSTED = {key(n).key_id: key(n).public_pem for n in (1, 2)} | {key(3, "ed25519").key_id: key(3, "ed25519").public_pem}


@pytest.mark.parametrize("kind", KINDS)
def test_a_signed_manifest_is_believed(kind: str) -> None:
    signer = key(1, kind)
    assert verify_manifest(MANIFEST, [signer.sign(MANIFEST)], {signer.key_id: signer.public_pem}, 1) == manifest()


def test_two_of_three_keys_of_mixed_kinds_are_enough_in_any_order() -> None:
    signatures = [key(3, "ed25519").sign(MANIFEST), key(1).sign(MANIFEST)]
    assert verify_manifest(MANIFEST, signatures, TRUSTED, 2) == manifest()
    assert verify_manifest(MANIFEST, signatures[::-1], TRUSTED, 2) == manifest()


def test_one_signature_of_two_is_below_the_threshold() -> None:
    with pytest.raises(BelowThreshold):
        verify_manifest(MANIFEST, [key(1).sign(MANIFEST)], TRUSTED, 2)


def test_no_signature_at_all() -> None:
    with pytest.raises(BelowThreshold):
        verify_manifest(MANIFEST, [], TRUSTED, 1)


def test_a_key_that_is_not_trusted() -> None:
    with pytest.raises(UnknownKey) as caught:
        verify_manifest(MANIFEST, [key(9).sign(MANIFEST)], TRUSTED, 1)
    assert key(9).key_id in str(caught.value)


def test_an_untrusted_signature_beside_enough_trusted_ones_does_not_hurt_a_key_change() -> None:
    assert verify_manifest(MANIFEST, [key(9).sign(MANIFEST), key(1).sign(MANIFEST)], TRUSTED, 1) == manifest()


def test_an_untrusted_key_never_counts_toward_the_threshold() -> None:
    with pytest.raises(UnknownKey):
        verify_manifest(MANIFEST, [key(9).sign(MANIFEST), key(1).sign(MANIFEST)], TRUSTED, 2)


def test_duplicate_key_ids() -> None:
    with pytest.raises(DuplicateKeyId):  # two ECDSA signatures by one key differ in their bytes
        verify_manifest(MANIFEST, [key(1).sign(MANIFEST), key(1).sign(MANIFEST)], TRUSTED, 2)


def test_a_malleated_copy_of_a_signature_does_not_count_as_a_second_one() -> None:
    signature = key(1).sign(MANIFEST)
    r, s = decode_dss_signature(signature.signature)
    mirrored = dataclasses.replace(signature, signature=encode_dss_signature(r, P256_ORDER - s))
    check_signature(MANIFEST, mirrored, key(1).public_pem)  # valid ECDSA, which is the point
    with pytest.raises(DuplicateKeyId):
        verify_manifest(MANIFEST, [signature, mirrored], TRUSTED, 2)


def test_the_same_signature_twice() -> None:
    signature = key(1).sign(MANIFEST)
    with pytest.raises(SameSignatureTwice):
        verify_manifest(MANIFEST, [signature, signature], TRUSTED, 2)


def test_the_same_signature_twice_under_two_key_ids() -> None:
    signature = key(1).sign(MANIFEST)
    with pytest.raises(SameSignatureTwice):
        verify_manifest(MANIFEST, [signature, dataclasses.replace(signature, key_id=key(2).key_id)], TRUSTED, 2)


def test_the_same_key_under_two_ids() -> None:
    trusted = {key(1).key_id: key(1).public_pem, "0" * 64: key(1).public_pem}
    with pytest.raises(SameKeyUnderTwoIds):
        verify_manifest(MANIFEST, [key(1).sign(MANIFEST)], trusted, 1)


def test_a_trusted_key_under_an_id_that_is_not_its_digest() -> None:
    with pytest.raises(KeyIdMismatch):
        verify_manifest(MANIFEST, [key(1).sign(MANIFEST)], {key(2).key_id: key(1).public_pem}, 1)


def test_an_unknown_algorithm() -> None:
    forged = dataclasses.replace(key(1).sign(MANIFEST), algorithm="none")
    with pytest.raises(UnknownAlgorithm):
        verify_manifest(MANIFEST, [forged], TRUSTED, 1)


def test_an_algorithm_that_is_not_the_keys() -> None:
    forged = dataclasses.replace(key(1).sign(MANIFEST), algorithm="ed25519")
    with pytest.raises(AlgorithmMismatch):
        verify_manifest(MANIFEST, [forged], TRUSTED, 1)


def test_a_signature_claimed_for_another_trusted_key() -> None:
    forged = dataclasses.replace(key(9).sign(MANIFEST), key_id=key(1).key_id)
    with pytest.raises(BadSignature):
        verify_manifest(MANIFEST, [forged], TRUSTED, 1)


def test_a_wrong_signature_is_an_error_even_beside_enough_right_ones() -> None:
    wrong = key(2).sign(MANIFEST + b" ")
    with pytest.raises(BadSignature):
        verify_manifest(MANIFEST, [key(1).sign(MANIFEST), wrong], TRUSTED, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_byte_of_the_manifest_is_refused(kind: str) -> None:
    signer = key(1, kind)
    signature, trusted = signer.sign(MANIFEST), {signer.key_id: signer.public_pem}
    for position in range(len(MANIFEST)):
        forged = bytearray(MANIFEST)
        forged[position] ^= 1
        with pytest.raises(BadSignature):
            verify_manifest(bytes(forged), [signature], trusted, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_byte_of_the_signature_is_refused(kind: str) -> None:
    signer = key(1, kind)
    signature, trusted = signer.sign(MANIFEST), {signer.key_id: signer.public_pem}
    for position in range(len(signature.signature)):
        forged = bytearray(signature.signature)
        forged[position] ^= 1
        with pytest.raises(BadSignature):
            verify_manifest(MANIFEST, [dataclasses.replace(signature, signature=bytes(forged))], trusted, 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: s + b"\0", lambda s: b"", lambda s: bytes(len(s))])
def test_a_signature_cut_off_grown_empty_or_zero_is_refused(kind: str, change) -> None:  # type: ignore[no-untyped-def]
    signer = key(1, kind)
    signature = signer.sign(MANIFEST)
    with pytest.raises(BadSignature):
        check_signature(
            MANIFEST, dataclasses.replace(signature, signature=change(signature.signature)), signer.public_pem
        )


def test_a_manifest_with_bytes_appended() -> None:
    with pytest.raises(BadSignature):
        verify_manifest(MANIFEST + b"\n", [key(1).sign(MANIFEST)], TRUSTED, 1)


def test_a_trusted_signature_over_something_that_is_no_manifest() -> None:
    other = b'{"kind":"flota-trust","schema":1}'
    with pytest.raises(BadManifest):
        verify_manifest(other, [key(1).sign(other)], TRUSTED, 1)


def test_nothing_is_parsed_before_it_is_trusted() -> None:
    with pytest.raises(BadSignature):
        verify_manifest(b"[" * 100000, [key(1).sign(MANIFEST)], TRUSTED, 1)


@pytest.mark.parametrize("threshold", [0, -1])
def test_a_threshold_of_nobody(threshold: int) -> None:
    with pytest.raises(BadThreshold):
        verify_manifest(MANIFEST, [], TRUSTED, threshold)


def test_a_threshold_that_cannot_be_met_is_a_fault_of_the_trusted_keys() -> None:
    with pytest.raises(BadThreshold):
        verify_manifest(MANIFEST, [key(1).sign(MANIFEST)], TRUSTED, 4)


def test_an_empty_set_of_trusted_keys_trusts_nobody() -> None:
    with pytest.raises(BadThreshold):
        verify_manifest(MANIFEST, [key(1).sign(MANIFEST)], {}, 1)


def test_a_trusted_key_that_is_none() -> None:
    with pytest.raises(BadKey):
        verify_manifest(MANIFEST, [], {"0" * 64: "no key"}, 1)


def test_a_flood_of_signatures_is_refused_before_any_is_verified() -> None:
    flood = [Signature(f"{n:064x}", "ed25519", n.to_bytes(64, "big")) for n in range(SIGNATURES_MAX + 1)]
    with pytest.raises(BadSignatures):
        verify_manifest(MANIFEST, flood, TRUSTED, 1)


def test_a_rotated_out_key() -> None:
    after_rotation = {key(2).key_id: key(2).public_pem}
    with pytest.raises(UnknownKey):
        verify_manifest(MANIFEST, [key(1).sign(MANIFEST)], after_rotation, 1)


def test_every_refusal_has_a_code_of_its_own() -> None:
    kinds = _all_below(SignatureRefused)
    assert len({kind.code for kind in kinds}) == len(kinds)


def _all_below(kind: type[SignatureRefused]) -> list[type[SignatureRefused]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _all_below(child))]


signatures = st.builds(
    Signature,
    key_id=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    algorithm=st.sampled_from(["ecdsa-p256-sha256", "ed25519", "something-new"]),
    signature=st.binary(min_size=1, max_size=128),
)


@given(st.lists(signatures, max_size=SIGNATURES_MAX))
def test_signatures_survive_packing_and_parsing(values: list[Signature]) -> None:
    assert parse_signatures(signatures_as_json(values)) == tuple(values)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_signatures_or_our_error(data: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        parse_signatures(data)


ONE = json.loads(signatures_as_json([key(1).sign(MANIFEST)]))[0]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{}", BadSignatures),
        (json.dumps([ONE | {"trusted": True}]), UnknownMember),
        ('[{"key_id":"a","key_id":"b","algorithm":"x","signature":"AA=="}]', DuplicateMember),
        (json.dumps([ONE | {"signature": "!!!"}]), BadSignatures),
        (json.dumps([ONE | {"signature": "ä"}]), BadSignatures),
        (json.dumps([ONE | {"signature": ""}]), BadSignatures),
        (json.dumps([ONE | {"signature": "A" * 1000}]), BadSignatures),
        (json.dumps([ONE | {"key_id": "\n"}]), BadSignatures),
        (json.dumps([ONE | {"algorithm": "a" * 65}]), BadSignatures),
        (json.dumps([ONE] * (SIGNATURES_MAX + 1)), BadSignatures),
        (" " * 20000, JsonTooLarge),
        ("[" * 100, BadJson),
        ("\ud800", BadJson),
    ],
)
def test_signatures_that_are_not_well_formed_are_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_signatures(text)
