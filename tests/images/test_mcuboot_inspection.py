"""What `inspect()` says about MCUboot images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flota.images.inspection import inspect, inspection_as_dict
from flota.images.mcuboot import (
    ImageFlag,
    McubootImage,
    SlotShape,
    Tlv,
    TlvType,
    build_image,
    fill_slot,
    pack_image,
    sign_image,
)
from flota.images.model import ImageFormat
from tests.images.mcuboot_samples import OPTIONS, image_key, sample, sample_bytes


def codes(data: bytes) -> set[str]:
    return {finding.code for finding in inspect(data).findings}


def resigned(image: McubootImage) -> bytes:
    return pack_image(sign_image(image, image_key().signer))


def test_a_sound_image_shows_its_facts_and_has_no_findings() -> None:
    found = inspect(sample_bytes())
    assert (found.format, found.version, found.secure_version) == (ImageFormat.MCUBOOT, "1.2.3+4", 7)
    assert (found.findings, found.image_size) == ((), len(sample_bytes()))
    assert found.validation_hash == sample().unprotected[0].value.hex()
    shown = {row.name: row.value for row in found.properties}
    assert shown["needs image 1"] == "at least 1.0.0+0"
    assert shown["TLV KEYHASH"] == image_key().public.key_hash.hex()
    assert shown["TLV ED25519"] == "Ed25519, 64 bytes"
    assert [region.name for region in found.regions] == [
        "header",
        "header padding",
        "firmware",
        "protected TLVs",
        "TLVs",
    ]


def test_regions_cover_the_file_without_a_gap() -> None:
    for data in (sample_bytes(), sample_bytes() + b"more", fill_slot(sample_bytes(), SlotShape(0x1000))):
        position = 0
        for region in inspect(data).regions:
            assert region.start == position
            position = region.end
        assert position == len(data)


def test_a_mapped_image_shows_the_address_of_its_firmware() -> None:
    image = build_image(b"firmware", replace(OPTIONS, load_address=0x2000_0000))
    assert inspect(resigned(image)).regions[2].address == 0x2000_0040


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (sample_bytes()[:-1], "truncated-image"),
        (sample_bytes()[:40], "truncated-image"),
        (sample_bytes()[:10], "truncated-image"),
        (sample_bytes().replace(b"firmware", b"Firmware"), "bad-hash"),
        (pack_image(replace(sample(), unprotected=())), "no-hash"),
        (pack_image(replace(sample(), unprotected=())), "not-signed"),
        (pack_image(sign_image(sample(), None)), "not-signed"),
        (pack_image(replace(sample(), unprotected=(sample().unprotected[0], sample().unprotected[2]))), "no-key"),
        (pack_image(replace(sample(), unprotected=(*sample().unprotected, Tlv(0x21, b"x")))), "weak-signature"),
        (pack_image(replace(sample(), unprotected=(*sample().unprotected, Tlv(0x50, bytes(4))))), "unprotected-field"),
        (pack_image(replace(sample(), flags=ImageFlag.ENCRYPTED_AES128)), "hash-not-checked"),
        (resigned(replace(sample(), flags=ImageFlag(0xC))), "contradictory-flags"),
        (resigned(replace(sample(), flags=ImageFlag.NON_BOOTABLE)), "non-bootable"),
        (resigned(replace(sample(), protected=(Tlv(TlvType.SEC_CNT, b"x"),))), "bad-tlv"),
        (resigned(build_image(b"", OPTIONS)), "no-firmware"),
        (sample_bytes() + b"\xff" * 9, "trailing-bytes"),
        (fill_slot(sample_bytes(), SlotShape(0x1000)), "filled-slot"),
    ],
)
def test_everything_that_is_wrong_is_named(data: bytes, code: str) -> None:
    assert inspect(data).format is ImageFormat.MCUBOOT
    assert code in codes(data)


def test_a_filled_slot_says_how_much_of_it_to_ship() -> None:
    found = inspect(fill_slot(sample_bytes(), SlotShape(0x1000), confirmed=True))
    assert f"first {len(sample_bytes())} bytes" in str(found.findings[0].hint)
    assert {row.name: row.value for row in found.properties}["trailer"].startswith("confirmed")


def test_repeated_tlvs_stay_apart_in_the_json() -> None:
    image = replace(sample(), unprotected=sample().unprotected + sample().unprotected[1:])
    rows = inspection_as_dict(inspect(pack_image(image)))["properties"]
    assert isinstance(rows, dict)
    assert {"TLV KEYHASH", "TLV KEYHASH (2)", "TLV ED25519 (2)"} <= rows.keys()


def test_thousands_of_tlvs_do_not_flood_the_table() -> None:
    image = replace(sample(), unprotected=(*sample().unprotected, *(Tlv(0xA0, b""),) * 9000))
    found = inspect(pack_image(image))
    assert len(found.properties) < 100
    assert len(found.findings) < 100
