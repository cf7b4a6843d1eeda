"""What a device refuses although the signatures are right: one promise a test."""

import dataclasses
import hashlib
from datetime import UTC, datetime, timedelta
from itertools import pairwise, permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.trust.manifest import Manifest, ManifestComponent, pack_manifest
from flota.trust.policy import ComponentFacts, Refusal, RefusalCode, ReleaseRefused, refusals, refuse
from tests.trust.releases import EXPIRES, ISSUED, SHA256, manifest

APP = ComponentFacts("app", 1048576, SHA256, "esp-app")


def judge(release: Manifest, **changes: object) -> tuple[Refusal, ...]:
    """What a pump on an ESP32-C3, revision B, with release 6 confirmed, says in the release's first minute."""
    facts: dict[str, object] = {
        "device_type": "pump", "board": "esp32-c3", "hardware_revision": "B", "accepted_sequence": 6,
        "now": ISSUED + timedelta(minutes=1), "components": (APP,),
    }  # fmt: skip
    return refusals(release, **(facts | changes))  # type: ignore[arg-type]


def codes(release: Manifest, **changes: object) -> set[RefusalCode]:
    return {refusal.code for refusal in judge(release, **changes)}


def test_the_right_release_is_not_refused() -> None:
    assert judge(manifest()) == ()
    refuse(judge(manifest()))


def test_wrong_software_only_the_diagonal_of_boards_and_types_is_accepted() -> None:
    pairs = list(product(["pump", "valve", "meter"], ["esp32-c3", "esp32", "generic-linux"]))
    for mine, other in product(pairs, pairs):
        release = manifest(device_type=other[0], board=other[1])
        assert (judge(release, device_type=mine[0], board=mine[1]) == ()) == (mine == other)


def test_wrong_software_for_another_hardware_revision() -> None:
    assert codes(manifest(hardware_revision="C")) == {RefusalCode.WRONG_HARDWARE_REVISION}
    assert codes(manifest(), hardware_revision=None) == {RefusalCode.WRONG_HARDWARE_REVISION}
    assert codes(manifest(hardware_revision=None), hardware_revision=None) == set()


def test_rollback_to_an_earlier_release() -> None:
    assert codes(manifest(sequence=5)) == {RefusalCode.ROLLBACK}


def test_the_version_text_does_not_decide_about_rollback() -> None:
    assert codes(manifest(version="0.0.1", sequence=7)) == set()
    assert codes(manifest(version="99.0", sequence=5)) == {RefusalCode.ROLLBACK}


def test_replaying_releases_in_every_order_never_lowers_the_accepted_sequence() -> None:
    for order in permutations(range(1, 6)):
        accepted = [0]
        for sequence in order:
            if not judge(manifest(sequence=sequence), accepted_sequence=accepted[-1]):
                accepted.append(sequence)
        assert all(before < after for before, after in pairwise(accepted))
        assert accepted[-1] == 5


@given(st.integers(1, 2**53 - 1), st.integers(0, 2**53 - 1))
def test_a_sequence_below_the_accepted_one_is_always_a_rollback(offered: int, accepted: int) -> None:
    assert (codes(manifest(sequence=offered), accepted_sequence=accepted) == {RefusalCode.ROLLBACK}) == (
        offered < accepted
    )


def test_the_confirmed_release_may_be_repeated_but_its_sequence_number_not_reused() -> None:
    confirmed = hashlib.sha256(pack_manifest(manifest())).hexdigest()
    again = {"accepted_sequence": 7, "accepted_manifest_sha256": confirmed}
    assert codes(manifest(), **again) == set()
    assert codes(manifest(version="2.0.1"), **again) == {RefusalCode.SEQUENCE_REUSED}
    assert codes(manifest(version="2.0.1", sequence=8), **again) == set()


@pytest.mark.parametrize(
    ("now", "expired"),
    [
        (EXPIRES - timedelta(seconds=1), False),
        (EXPIRES, True),
        (EXPIRES + timedelta(days=3650), True),
        (ISSUED - timedelta(days=3650), False),
        (None, False),
    ],
    ids=["just before", "at expiry", "ten years later", "a clock that went back", "no clock"],
)
def test_an_expired_release_for_a_device_long_offline(now: datetime | None, expired: bool) -> None:
    assert (codes(manifest(), now=now) == {RefusalCode.EXPIRED}) is expired


def test_a_release_without_expiry_never_expires() -> None:
    assert codes(manifest(expires_at=None), now=datetime(9000, 1, 1, tzinfo=UTC)) == set()


def test_endless_data_is_refused_by_the_signed_size() -> None:
    assert RefusalCode.TRAILING_BYTES in codes(manifest(), components=(dataclasses.replace(APP, size=1048577),))


def test_an_image_with_unsigned_bytes_appended_is_refused_even_if_the_digest_was_taken_without_them() -> None:
    longer = dataclasses.replace(APP, size=APP.size + 4096)
    assert codes(manifest(), components=(longer,)) == {RefusalCode.TRAILING_BYTES}


def test_a_truncated_image_is_refused() -> None:
    assert codes(manifest(), components=(dataclasses.replace(APP, size=1),)) == {RefusalCode.WRONG_SIZE}


def test_arbitrary_install_of_other_bytes_of_the_same_size() -> None:
    other = dataclasses.replace(APP, sha256=hashlib.sha256(b"evil").hexdigest())
    assert codes(manifest(), components=(other,)) == {RefusalCode.WRONG_DIGEST}


def test_a_merged_image_sent_as_an_app_image() -> None:
    assert codes(manifest(), components=(dataclasses.replace(APP, format="esp-merged"),)) == {RefusalCode.WRONG_FORMAT}


def test_who_does_not_tell_formats_apart_judges_size_and_digest() -> None:
    assert codes(manifest(), components=(dataclasses.replace(APP, format=None),)) == set()


def test_a_component_that_is_missing_unsigned_or_sent_twice() -> None:
    assert codes(manifest(), components=()) == {RefusalCode.COMPONENT_MISSING}
    extra = dataclasses.replace(APP, name="bootloader")
    assert codes(manifest(), components=(APP, extra)) == {RefusalCode.COMPONENT_UNSIGNED}
    assert codes(manifest(), components=(APP, APP)) == {RefusalCode.COMPONENT_UNSIGNED}


def test_mix_and_match_of_two_releases_components() -> None:
    parts = (ManifestComponent("km0", "raw", 10, "a" * 64), ManifestComponent("km4", "raw", 20, "b" * 64))
    release = manifest(components=parts)
    right = (ComponentFacts("km0", 10, "a" * 64), ComponentFacts("km4", 20, "b" * 64))
    assert codes(release, components=right) == set()
    for index in range(2):
        swapped = list(right)
        swapped[index] = dataclasses.replace(right[index], sha256="c" * 64)
        assert codes(release, components=tuple(swapped)) == {RefusalCode.WRONG_DIGEST}


def test_before_the_transfer_only_the_metadata_are_judged() -> None:
    assert codes(manifest(), components=None) == set()
    assert codes(manifest(board="esp32"), components=None) == {RefusalCode.WRONG_BOARD}


def test_all_reasons_come_at_once_and_the_error_carries_them() -> None:
    reasons = judge(manifest(board="esp32", sequence=1), now=EXPIRES, components=())
    assert [reason.code for reason in reasons] == [
        RefusalCode.WRONG_BOARD, RefusalCode.ROLLBACK, RefusalCode.EXPIRED, RefusalCode.COMPONENT_MISSING,
    ]  # fmt: skip
    with pytest.raises(ReleaseRefused) as caught:
        refuse(reasons)
    assert caught.value.refusals == reasons
    assert caught.value.expected == "esp32-c3"
