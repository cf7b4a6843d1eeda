"""The attacks on what a device installs, by the names that the field gives them: each is tried, each is refused.

The device here is the whole gate, without a network: signatures over the manifest, the manifest against the device, the
bytes against the manifest. Names are those of TUF, Uptane and RFC 9124. Keys under attack are in test_rotation.py.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flota.boards.catalogue import BOARDS, board
from flota.boards.fit import fit_check
from flota.boards.fit_nuvoton import NUVOTON_BOOTS
from flota.boards.model import TypeProfile
from flota.errors import FlotaError
from flota.images.inspection import inspect
from flota.images.mcuboot import ImageKeyKind
from flota.images.model import ImageFormat
from flota.lab.sample_firmware import sample_m2354
from flota.trust.canonical_json import BadJson, NotCanonical, UnknownMember, pack_canonical
from flota.trust.manifest import Manifest, ManifestComponent, pack_manifest, parse_manifest
from flota.trust.policy import ComponentFacts, RefusalCode, ReleaseRefused, refusals, refuse
from flota.trust.signatures import (
    BadSignature,
    BelowThreshold,
    Signature,
    SignatureRefused,
    UnknownKey,
    parse_signatures,
    signatures_as_json,
)
from flota.trust.trust_file import TrustedSigners
from tests.images.ameba_samples import image2
from tests.images.esp_samples import merged_image, sample_app
from tests.images.mcuboot_samples import image_key
from tests.images.nuvoton_samples import program
from tests.trust.releases import ISSUED, key, manifest

SIGNER = key(1)
APP = sample_app("esp32-c3")
CHIP_BOARDS = sorted(name for name, each in BOARDS.items() if each.chip is not None or each.boot in NUVOTON_BOOTS)


def image_for(name: str) -> bytes:
    """A file that fits the board; a new family of boards has to say here what it takes."""
    hardware = board(name)
    if ImageFormat.ESP_APP in hardware.formats:
        return sample_app(hardware.chip or "")
    if ImageFormat.AMEBA_IMAGE2 in hardware.formats:
        return image2()
    if ImageFormat.NUVOTON_APROM in hardware.formats:
        return program()
    if hardware.formats == {ImageFormat.MCUBOOT}:
        return sample_m2354("1.0.0", image_key(ImageKeyKind.RSA_3072).signer, size=4096)
    raise AssertionError(f"no sample image for board {name}")


def family(name: str) -> str:
    """Boards of one family run one another's images."""
    return board(name).chip or name


@dataclass
class Device:
    """What decides on a device: whom it believes, what it is, what it has confirmed and what it runs."""

    board: str = "esp32-c3"
    sequence: int = 0
    running: bytes = b"what came from the factory"
    signers: TrustedSigners = TrustedSigners.of([SIGNER.public_pem])  # noqa: RUF009  # a frozen value

    def install(self, packed: bytes, signatures: tuple[Signature, ...], image: bytes) -> None:
        """Verify, judge, then take the image. Any error leaves it as it was."""
        release = self.signers.verify(packed, signatures)
        facts = ComponentFacts("app", len(image), hashlib.sha256(image).hexdigest(), inspect(image).format.value)
        refuse(
            refusals(
                release,
                device_type="pump",
                board=self.board,
                hardware_revision="B",
                accepted_sequence=self.sequence,
                now=ISSUED + timedelta(minutes=1),
                components=[facts],
                running_sha256=hashlib.sha256(self.running).hexdigest(),
            )
        )
        self.running, self.sequence = image, release.sequence


def release_of(image: bytes, *, format_name: str = "esp-app", **changes: object) -> Manifest:
    part = ManifestComponent("app", format_name, len(image), hashlib.sha256(image).hexdigest())
    return manifest(**({"components": (part,)} | changes))


def signed(release: Manifest) -> tuple[bytes, tuple[Signature, ...]]:
    packed = pack_manifest(release)
    return packed, (SIGNER.sign(packed),)


def codes_of(device: Device, release: Manifest, image: bytes) -> set[RefusalCode]:
    """Why the device refuses a rightly signed release, after checking that it did not change."""
    before = replace(device)
    with pytest.raises(ReleaseRefused) as caught:
        device.install(*signed(release), image)
    assert device == before
    return {refusal.code for refusal in caught.value.refusals}


def flips(data: bytes, step: int = 1) -> list[bytes]:
    return [data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :] for i in range(0, len(data), step)]


def test_the_release_itself_is_installed() -> None:
    device = Device()
    device.install(*signed(release_of(APP)), APP)
    assert (device.running, device.sequence) == (APP, 7)


# Row 1: arbitrary install


def test_arbitrary_install_every_byte_of_the_manifest_counts() -> None:
    packed, signatures = signed(release_of(APP))
    device = Device()
    for flipped in flips(packed):
        with pytest.raises(BadSignature):
            device.install(flipped, signatures, APP)
    assert device == Device()


def test_arbitrary_install_every_byte_of_the_signature_counts() -> None:
    packed, (signature,) = signed(release_of(APP))
    device = Device()
    for flipped in flips(signature.signature):
        with pytest.raises(BadSignature):
            device.install(packed, (replace(signature, signature=flipped),), APP)
    for flipped in flips(signatures_as_json([signature]).encode()):
        try:
            read = parse_signatures(flipped)
        except FlotaError:
            continue
        if read != (signature,):  # the last digit of base64 has bits that mean nothing
            with pytest.raises(SignatureRefused):
                device.install(packed, read, APP)
    assert device == Device()


@pytest.mark.parametrize(
    ("image", "step"), [(APP[:2048], 1), (APP[-2048:], 1), (APP, 251)], ids=["beginning", "end", "whole app, stepped"]
)
def test_arbitrary_install_every_byte_of_the_image_counts(image: bytes, step: int) -> None:
    release = release_of(image)
    for flipped in flips(image, step):
        facts = ComponentFacts("app", len(flipped), hashlib.sha256(flipped).hexdigest())
        (found,) = refusals(
            release, device_type="pump", board="esp32-c3", hardware_revision="B", accepted_sequence=0, now=None,
            components=[facts],
        )  # fmt: skip
        assert found.code is RefusalCode.WRONG_DIGEST


def test_arbitrary_install_without_a_signature_or_with_a_strangers() -> None:
    packed, _ = signed(release_of(APP))
    with pytest.raises(BelowThreshold):
        Device().install(packed, (), APP)
    with pytest.raises(UnknownKey):
        Device().install(packed, (key(9).sign(packed),), APP)


# Row 2: wrong software


def test_wrong_software_of_all_boards_and_all_board_images_only_the_diagonal_is_accepted() -> None:
    images = {name: image_for(name) for name in CHIP_BOARDS}
    offers = {
        name: signed(release_of(image, board=name, format_name=inspect(image).format.value))
        for name, image in images.items()
    }
    for mine in CHIP_BOARDS:
        for other in CHIP_BOARDS:
            device = Device(board=mine)
            if mine == other:
                device.install(*offers[other], images[other])
                continue
            with pytest.raises(ReleaseRefused) as caught:
                device.install(*offers[other], images[other])
            assert {refusal.code for refusal in caught.value.refusals} == {RefusalCode.WRONG_BOARD}
            assert device == Device(board=mine)


def test_wrong_software_is_not_released_for_a_board_whose_chip_cannot_run_it() -> None:
    for name in CHIP_BOARDS:
        image = image_for(name)
        for other in CHIP_BOARDS:
            reasons = fit_check(TypeProfile(board(other)), inspect(image), file_size=len(image), version="1.2.3")
            blocked = any(reason.blocking for reason in reasons)
            assert blocked == (family(other) != family(name))


# Row 3: rollback


def test_rollback_every_earlier_release_replayed_in_every_order() -> None:
    offers = [signed(release_of(APP, sequence=number, version=f"{number}.0")) for number in range(1, 5)]
    for order in permutations(offers):
        assert accepted_sequences(list(order))[-1] == 4


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 2**53 - 1), min_size=1, max_size=12))
def test_rollback_the_accepted_sequence_never_falls(sequences: list[int]) -> None:
    assert accepted_sequences([signed(release_of(APP, sequence=number)) for number in sequences])[-1] == max(sequences)


def accepted_sequences(offers: list[tuple[bytes, tuple[Signature, ...]]]) -> list[int]:
    """Return the device's sequence after each offer, having checked that it never falls."""
    device, accepted = Device(), [0]
    for packed, signatures in offers:
        if parse_manifest(packed).sequence < device.sequence:
            assert codes_of(device, parse_manifest(packed), APP) == {RefusalCode.ROLLBACK}
        else:
            device.install(packed, signatures, APP)
        accepted.append(device.sequence)
    assert all(before <= after for before, after in pairwise(accepted))
    return accepted


# Row 13: the format is signed and recognised, and both agree


def test_a_merged_image_sent_as_an_app_is_refused_by_server_and_device() -> None:
    merged = merged_image("esp32-c3")
    assert codes_of(Device(), release_of(merged), merged) == {RefusalCode.WRONG_FORMAT}
    reasons = fit_check(TypeProfile(board("esp32-c3")), inspect(merged), file_size=len(merged), version="1.2.3")
    assert "merged-image" in {reason.code for reason in reasons if reason.blocking}


@pytest.mark.parametrize("image", [b"\x7fELF" + bytes(60), bytes(64), b"\x1f\x8b\x08" + bytes(61)])
def test_another_format_under_the_signed_name_of_an_app_is_refused(image: bytes) -> None:
    assert codes_of(Device(), release_of(image), image) == {RefusalCode.WRONG_FORMAT}


# Row 14: where an image goes is never in the message


@pytest.mark.parametrize("field", ["address", "offset", "slot", "url"])
def test_a_manifest_that_says_where_to_write_is_refused_although_signed(field: str) -> None:
    value = json.loads(pack_manifest(release_of(APP)))
    value["components"][0][field] = 0x1000
    packed = pack_canonical(value)
    with pytest.raises(UnknownMember):
        Device().install(packed, (SIGNER.sign(packed),), APP)


# Row 16: extra bytes


@pytest.mark.parametrize("extra", [b"\xff", b"\0", b"\xff" * 4096, APP])
def test_bytes_after_the_end_of_the_transfer_are_refused(extra: bytes) -> None:
    found = codes_of(Device(), release_of(APP), APP + extra)
    assert {RefusalCode.TRAILING_BYTES, RefusalCode.WRONG_DIGEST} <= found


def test_an_image_that_ends_early_is_refused_at_every_length() -> None:
    release = release_of(APP)
    for length in range(0, len(APP), 97):
        assert RefusalCode.WRONG_SIZE in codes_of(Device(), release, APP[:length])


def test_bytes_after_the_end_of_the_manifest_are_refused_although_signed() -> None:
    for extra in (b" ", b"\n", b"\0", b"{}"):
        packed = pack_manifest(release_of(APP)) + extra
        with pytest.raises(BadJson):
            Device().install(packed, (SIGNER.sign(packed),), APP)


def test_a_component_that_nobody_signed_is_refused_beside_the_signed_one() -> None:
    release = release_of(APP)
    facts = [ComponentFacts(name, len(APP), hashlib.sha256(APP).hexdigest()) for name in ("app", "extra")]
    (found,) = refusals(
        release, device_type="pump", board="esp32-c3", hardware_revision="B", accepted_sequence=0, now=None,
        components=facts,
    )  # fmt: skip
    assert found.code is RefusalCode.COMPONENT_UNSIGNED


# Row 15: what is of use only where a certain file runs

BASE = sample_app("esp32-c6")


def made_for(base: bytes) -> Manifest:
    """The release of a file that is of use only where `base` runs."""
    part = ManifestComponent(
        "app", "esp-app", len(APP), hashlib.sha256(APP).hexdigest(), hashlib.sha256(base).hexdigest()
    )
    return manifest(components=(part,))


def test_wrong_precursor_only_the_named_file_is_a_base() -> None:
    device = Device(running=BASE)
    device.install(*signed(made_for(BASE)), APP)
    assert device.running == APP
    for wrong in (b"", BASE[:-1], BASE + b"\0", APP):
        assert codes_of(Device(running=wrong), made_for(BASE), APP) == {RefusalCode.WRONG_PRECURSOR}


def test_wrong_precursor_every_byte_of_the_base_counts() -> None:
    """A base that was damaged since it was installed is another file: its digest is measured, not remembered."""
    for damaged in flips(BASE, 61):
        assert codes_of(Device(running=damaged), made_for(BASE), APP) == {RefusalCode.WRONG_PRECURSOR}


def test_wrong_precursor_a_device_that_did_not_measure_what_runs_takes_nothing_that_names_one() -> None:
    (found,) = refusals(
        made_for(BASE), device_type="pump", board="esp32-c3", hardware_revision="B", accepted_sequence=0, now=None
    )
    assert found.code is RefusalCode.WRONG_PRECURSOR


@pytest.mark.parametrize("magic", [b"\x10\xde\xcd\xfc"])
def test_wrong_precursor_a_patch_is_refused_where_an_image_is_signed(magic: bytes) -> None:
    """Nothing here applies patches: one that names no base is refused by its format, on server and device."""
    patch = magic + bytes(1000)
    assert fit_check(TypeProfile(board("esp32-c3")), inspect(patch), file_size=len(patch), version="1")[0].blocking
    assert RefusalCode.WRONG_FORMAT in codes_of(Device(), release_of(patch), patch)


# Row 17: what is not signed has no effect

OTHER_VALUES = {
    "kind": "flota-signers",
    "schema": 2,
    "device_type": "valve",
    "board": "esp32",
    "hardware_revision": None,
    "version": "99.0",
    "sequence": 2**53 - 1,
    "issued_at": "2000-01-01T00:00:00Z",
    "expires_at": None,
    "components": [],
}


def test_the_table_of_other_values_has_every_signed_field() -> None:
    assert OTHER_VALUES.keys() == json.loads(pack_manifest(manifest())).keys()


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_a_signed_field_repeated_beside_the_signature_has_no_effect(field: str) -> None:
    packed, signatures = signed(release_of(APP))
    beside = json.loads(signatures_as_json(signatures))
    beside[0][field] = OTHER_VALUES[field]
    with pytest.raises(BadJson):
        parse_signatures(json.dumps(beside))
    assert parse_manifest(packed) == release_of(APP)


@pytest.mark.parametrize("field", OTHER_VALUES)
@pytest.mark.parametrize("first", [True, False])
def test_a_signed_field_twice_in_one_manifest_is_refused_although_signed(field: str, first: bool) -> None:
    packed = pack_manifest(release_of(APP))
    double = json.dumps({field: OTHER_VALUES[field]}, separators=(",", ":")).encode()[1:-1]
    twice = b"{" + double + b"," + packed[1:] if first else packed[:-1] + b"," + double + b"}"
    with pytest.raises(BadJson):
        Device().install(twice, (SIGNER.sign(twice),), APP)


def test_another_spelling_of_a_signed_manifest_is_refused_although_signed() -> None:
    for spelling in (
        json.dumps(json.loads(pack_manifest(release_of(APP)))).encode(),
        pack_manifest(release_of(APP)).replace(b"pump", b"\\u0070ump"),
    ):
        with pytest.raises(NotCanonical):
            Device().install(spelling, (SIGNER.sign(spelling),), APP)


def test_what_an_image_says_of_itself_decides_nothing_that_is_signed() -> None:
    """The app's own descriptor says 1.2.3; the signed version is another, and sequence alone decides about age."""
    device = Device(sequence=7)
    assert codes_of(device, release_of(APP, version="99.0", sequence=6), APP) == {RefusalCode.ROLLBACK}
    device.install(*signed(release_of(APP, version="0.1", sequence=8)), APP)
    assert device.sequence == 8
