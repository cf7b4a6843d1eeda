"""New signers for old: the right way, and one test for each attack on it."""

import base64
import json
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import InvalidInput
from flota.trust.canonical_json import BadJson, NotCanonical, pack_canonical
from flota.trust.keys import PrivateKey
from flota.trust.manifest import pack_manifest
from flota.trust.rotation import (
    BadSigners,
    NewThresholdNotMet,
    OldThresholdNotMet,
    RevocationForgotten,
    RevokedKey,
    Rotation,
    SignersForAnotherType,
    SignersRollback,
    SignersVersionSkipped,
    accept_rotation,
    accept_rotations,
    missing_signatures,
    next_signers,
    pack_rotation,
    pack_signers,
    parse_rotation,
    parse_signers,
)
from flota.trust.signatures import (
    BadSignature,
    DuplicateKeyId,
    KeyIdMismatch,
    SameKeyUnderTwoIds,
    SameSignatureTwice,
    UnknownAlgorithm,
    UnknownKey,
)
from flota.trust.trust_file import BadTrustFile, NotForThisType, TrustedSigners, pack_trust_file, parse_trust_file
from tests.trust.releases import key, manifest

A, B, C, D, STRANGER = (key(number) for number in range(1, 6))
OLD = replace(TrustedSigners.of([A.public_pem, B.public_pem, C.public_pem], threshold=2), device_type="pump", version=4)
NEW = next_signers(OLD, add=[D.public_pem], revoke=[A.key_id])


def rotation(signers: TrustedSigners = NEW, by: Iterable[PrivateKey] = (A, B, D)) -> Rotation:
    document = pack_signers(signers)
    return Rotation(document, tuple(item.sign(document) for item in by))


def rotation_of(changes: dict[str, object], by: Iterable[PrivateKey] = (A, B, D)) -> Rotation:
    document = pack_canonical(json.loads(pack_signers(NEW)) | changes)
    return Rotation(document, tuple(item.sign(document) for item in by))


def test_a_rotation_signed_by_old_and_new_thresholds_is_accepted() -> None:
    new = accept_rotation(OLD, rotation())
    assert new.keys.keys() == {B.key_id, C.key_id, D.key_id}
    assert (new.threshold, new.version, new.device_type, new.revoked) == (2, 5, "pump", {A.key_id})


def test_after_a_rotation_the_rotated_out_key_signs_no_release_and_the_new_one_does() -> None:
    new, packed = accept_rotation(OLD, rotation()), pack_manifest(manifest())
    assert new.verify(packed, [B.sign(packed), D.sign(packed)]) == manifest()
    with pytest.raises(UnknownKey):
        new.verify(packed, [A.sign(packed), B.sign(packed)])
    with pytest.raises(UnknownKey):
        OLD.verify(packed, [B.sign(packed), D.sign(packed)])


def test_keys_in_both_sets_count_for_both_thresholds() -> None:
    accept_rotation(OLD, rotation(by=[B, C]))


def test_one_of_two_old_signatures_is_not_enough_however_many_new_keys_sign() -> None:
    apart = next_signers(OLD, add=[D.public_pem, STRANGER.public_pem], remove=[A.key_id, B.key_id, C.key_id])
    accept_rotation(OLD, rotation(apart, [A, B, D, STRANGER]))
    with pytest.raises(OldThresholdNotMet):
        accept_rotation(OLD, rotation(apart, [A, D, STRANGER]))
    with pytest.raises(OldThresholdNotMet):
        accept_rotation(OLD, rotation(apart, []))


def test_one_of_two_new_signatures_is_not_enough_however_many_old_keys_sign() -> None:
    apart = next_signers(OLD, add=[D.public_pem, STRANGER.public_pem], remove=[A.key_id, B.key_id, C.key_id])
    with pytest.raises(NewThresholdNotMet):
        accept_rotation(OLD, rotation(apart, [A, B, C, D]))


def test_a_raised_threshold_has_to_be_met_by_the_new_keys_and_a_lowered_one_by_the_old() -> None:
    with pytest.raises(NewThresholdNotMet):
        accept_rotation(OLD, rotation(next_signers(OLD, threshold=3), [A, B]))
    accept_rotation(OLD, rotation(next_signers(OLD, threshold=3), [A, B, C]))
    with pytest.raises(OldThresholdNotMet):
        accept_rotation(OLD, rotation(next_signers(OLD, threshold=1), [A]))


@pytest.mark.parametrize("version", [1, 3, 4])
def test_version_rollback_and_repetition_are_refused(version: int) -> None:
    with pytest.raises(SignersRollback):
        accept_rotation(OLD, rotation(replace(NEW, version=version)))


@pytest.mark.parametrize("version", [6, 2**31 - 1])
def test_a_skipped_version_is_refused_so_that_nobody_can_fast_forward(version: int) -> None:
    with pytest.raises(SignersVersionSkipped):
        accept_rotation(OLD, rotation(replace(NEW, version=version)))


@pytest.mark.parametrize("device_type", ["valve", None])
def test_signers_of_another_device_type_are_refused(device_type: str | None) -> None:
    with pytest.raises(SignersForAnotherType):
        accept_rotation(OLD, rotation(replace(NEW, device_type=device_type)))


def test_one_key_under_two_ids_is_refused() -> None:
    keys = json.loads(pack_signers(NEW))["keys"]
    twice = [*keys, {"key_id": "0" * 64, "public_key": D.public_pem}]
    with pytest.raises(SameKeyUnderTwoIds):
        accept_rotation(OLD, rotation_of({"keys": twice}))
    with pytest.raises(SameKeyUnderTwoIds):
        accept_rotation(OLD, rotation_of({"keys": [*keys, keys[0]]}))


def test_a_key_under_an_id_that_is_not_its_digest_is_refused() -> None:
    keys = json.loads(pack_signers(NEW))["keys"]
    with pytest.raises(KeyIdMismatch):
        accept_rotation(OLD, rotation_of({"keys": [keys[0] | {"key_id": "0" * 64}, *keys[1:]]}))


def test_duplicate_signatures_are_refused_even_beside_enough_others() -> None:
    good = rotation()
    first = good.signatures[0]
    with pytest.raises(SameSignatureTwice):
        accept_rotation(OLD, replace(good, signatures=(*good.signatures, first)))
    with pytest.raises(SameSignatureTwice):
        accept_rotation(OLD, replace(good, signatures=(*good.signatures, replace(first, key_id="0" * 64))))
    with pytest.raises(DuplicateKeyId):
        accept_rotation(OLD, replace(good, signatures=(*good.signatures, A.sign(good.document))))


def test_signatures_of_strangers_do_not_count() -> None:
    accept_rotation(OLD, rotation(by=[A, B, D, STRANGER]))
    with pytest.raises(OldThresholdNotMet):
        accept_rotation(OLD, rotation(by=[A, D, STRANGER]))


def test_an_unknown_algorithm_is_refused() -> None:
    good = rotation()
    wrong = replace(good.signatures[0], algorithm="none")
    with pytest.raises(UnknownAlgorithm):
        accept_rotation(OLD, replace(good, signatures=(wrong, *good.signatures[1:])))


def test_a_rotation_whose_document_was_changed_is_refused() -> None:
    good = rotation()
    for index in range(0, len(good.document), 7):
        flipped = bytearray(good.document)
        flipped[index] ^= 0x01
        with pytest.raises(BadSignature):
            accept_rotation(OLD, replace(good, document=bytes(flipped)))


def test_a_signed_release_is_never_taken_for_signers() -> None:
    packed = pack_manifest(manifest())
    with pytest.raises(BadSigners):
        accept_rotation(OLD, Rotation(packed, (A.sign(packed), B.sign(packed))))


def test_a_revoked_key_never_comes_back() -> None:
    now = accept_rotation(OLD, rotation())
    with pytest.raises(RevokedKey):
        next_signers(now, add=[A.public_pem])
    again = TrustedSigners.of([A.public_pem, B.public_pem], threshold=1)
    again = replace(again, device_type="pump", version=6)
    with pytest.raises(RevokedKey):
        accept_rotation(now, rotation(again, [B, C]))
    with pytest.raises(RevocationForgotten):
        accept_rotation(now, rotation(replace(now, version=6, revoked=frozenset()), [B, C]))


def test_a_revoked_key_signs_no_rotation() -> None:
    now = accept_rotation(OLD, rotation())
    with pytest.raises(RevokedKey):
        accept_rotation(now, rotation(next_signers(now, threshold=1), [A, B, C]))


def test_a_key_that_is_trusted_and_revoked_at_once_is_refused() -> None:
    with pytest.raises(RevokedKey):
        accept_rotation(OLD, rotation_of({"revoked": sorted([A.key_id, D.key_id])}))
    with pytest.raises(BadTrustFile):
        parse_trust_file(pack_trust_file(replace(OLD, revoked=frozenset([A.key_id]))))


def test_a_device_long_offline_follows_every_step_and_one_wrong_step_changes_nothing() -> None:
    second = next_signers(NEW, add=[STRANGER.public_pem], remove=[B.key_id])
    steps = [rotation(), rotation(second, [B, D, STRANGER])]
    assert accept_rotations(OLD, steps) == parse_signers(pack_signers(second))
    with pytest.raises(SignersVersionSkipped):
        accept_rotations(OLD, [rotation(second, [B, C, D, STRANGER])])
    with pytest.raises(SignersRollback):
        accept_rotations(OLD, [rotation(by=[B, C])] * 2)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"threshold": 0}, BadTrustFile),
        ({"threshold": 4}, BadTrustFile),
        ({"keys": []}, BadTrustFile),
        ({"version": 0}, BadSigners),
        ({"version": True}, BadJson),
        ({"device_type": " pump"}, BadSigners),
        ({"revoked": ["x"]}, BadTrustFile),
        ({"revoked": ["0" * 64, "0" * 64]}, BadTrustFile),
        ({"schema": 2}, BadSigners),
        ({"server": "https://x"}, BadJson),
    ],
)
def test_signers_that_are_not_well_formed_are_refused_although_signed(
    changes: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        accept_rotation(OLD, rotation_of(changes))


def test_another_spelling_of_the_same_signers_is_refused() -> None:
    with pytest.raises(NotCanonical):
        parse_signers(json.dumps(json.loads(pack_signers(NEW))).encode())


def test_changes_that_make_no_sense_are_not_proposed() -> None:
    with pytest.raises(BadSigners):
        next_signers(OLD, remove=[D.key_id])
    with pytest.raises(BadSigners):
        next_signers(OLD, add=[A.public_pem])
    with pytest.raises(BadTrustFile):
        next_signers(OLD, remove=[A.key_id, B.key_id])
    with pytest.raises(BadTrustFile):
        next_signers(OLD, revoke=["x"])


def test_it_says_how_many_signatures_are_missing() -> None:
    unsigned = rotation(by=[])
    assert missing_signatures(OLD, unsigned) == (2, 2)
    assert missing_signatures(OLD, unsigned.signed(A.sign(unsigned.document))) == (1, 2)
    assert missing_signatures(OLD, rotation(by=[B, C])) == (0, 0)


def test_signing_again_with_one_key_replaces_its_signature() -> None:
    good = rotation()
    accept_rotation(OLD, good.signed(A.sign(good.document)))


def test_rotations_and_trust_files_survive_packing_and_parsing() -> None:
    signed = rotation()
    assert parse_rotation(pack_rotation(signed)) == signed
    now = accept_rotation(OLD, signed)
    assert parse_trust_file(pack_trust_file(now)) == now


def test_signers_of_one_type_are_not_believed_for_another() -> None:
    packed = pack_manifest(manifest(device_type="valve"))
    with pytest.raises(NotForThisType):
        OLD.verify(packed, [A.sign(packed), B.sign(packed)])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_rotation_or_our_error(data: bytes) -> None:
    wrapped = {"kind": "flota-rotation", "schema": 1, "document": base64.b64encode(data).decode(), "signatures": []}
    with pytest.raises(InvalidInput):
        parse_rotation(data)
    with pytest.raises(OldThresholdNotMet):
        accept_rotation(OLD, parse_rotation(json.dumps(wrapped).encode()))
    with pytest.raises(InvalidInput):
        parse_signers(data)
