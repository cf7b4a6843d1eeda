"""What the loaders of the Nuvoton boards would take and should not have, the fit check refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flota.boards.catalogue import board
from flota.boards.fit import fit_check, slots_of
from flota.boards.model import CodeSignature, Route, TypeProfile, Unfit
from flota.images.ameba import pack_ota_file
from flota.images.inspection import inspect
from flota.images.markers import pack_marker
from flota.images.mcuboot import ImageKeyKind, ImageOptions, ImageVersion, SlotShape, build_image, fill_slot, pack_image
from flota.images.mcuboot import sign_image as sign
from flota.images.model import ImageFormat
from flota.images.nuvoton import Descriptor, Trailer, pad_to_page
from flota.images.nuvoton.update import SLOT_SHAPE
from tests.images.ameba_samples import image2
from tests.images.elf_samples import small_elf
from tests.images.esp_samples import sample_app
from tests.images.mcuboot_samples import image_key
from tests.images.nuvoton_samples import m2354_program, program

M487, M2354 = TypeProfile(board("m487")), TypeProfile(board("m2354"))
OPTIONS = ImageOptions(ImageVersion(1, 4, 0, 1), 0x400, add_header=True)
RSA = ImageKeyKind.RSA_3072
ROOM = 0x9_0000 - 32


def reasons(profile: TypeProfile, data: bytes, *, version: str = "1.0.1", filename: str = "") -> tuple[Unfit, ...]:
    return fit_check(profile, inspect(data), file_size=len(data), version=version, filename=filename)


def blocked(profile: TypeProfile, data: bytes) -> list[str]:
    return [reason.code for reason in reasons(profile, data) if reason.blocking]


def warned(profile: TypeProfile, data: bytes, **given: str) -> list[str]:
    return [reason.code for reason in reasons(profile, data, **given) if not reason.blocking]


def signed(firmware: bytes | None = None, *, kind: ImageKeyKind | None = RSA, options: ImageOptions = OPTIONS) -> bytes:
    image = build_image(m2354_program() if firmware is None else firmware, options)
    return pack_image(sign(image, None if kind is None else image_key(kind).signer, full_key=kind is not None))


# --- the boards -------------------------------------------------------------------------------------------------------


def test_each_board_has_one_slot_and_speaks_aws_iot() -> None:
    assert [(slot.name, slot.offset, slot.size) for slot in slots_of(M487)] == [("app", 0, 425_984)]
    assert [(slot.name, slot.offset, slot.size) for slot in slots_of(M2354)] == [("app", 0x7_0000, 589_824)]
    for profile in (M487, M2354):
        assert profile.board.routes == {Route.AWS_IOT}
        assert profile.board.code_signatures == (CodeSignature.SHA256_ECDSA,)
    assert (M487.board.rolls_back, M2354.board.rolls_back) == (True, False)


@pytest.mark.parametrize(
    ("alias", "name"), [("pfm-m487", "m487"), ("NuMaker-IoT-M487", "m487"), ("numaker-m2354", "m2354")]
)
def test_boards_are_known_by_their_makers_names(alias: str, name: str) -> None:
    assert board(alias).name == name


# --- m487 -------------------------------------------------------------------------------------------------------------


def test_the_application_area_is_the_limit_though_the_cloner_takes_more() -> None:
    assert blocked(M487, program(0x6_8000)) == []
    over = next(reason for reason in reasons(M487, program(0x6_8001)) if reason.blocking)
    assert (over.code, over.offset, over.found) == ("too-large", 0x6_8000, "425985 bytes")
    assert "key and certificates" in (over.hint or "")
    assert blocked(M487, program(0x7_0000)) == ["too-large"]


@pytest.mark.parametrize("pages", [1, 2, 0x67])
def test_one_byte_more_than_whole_pages_is_refused_until_it_is_padded(pages: int) -> None:
    data = program(pages * 4096 + 1)
    refusal = next(reason for reason in reasons(M487, data) if reason.blocking)
    assert (refusal.code, refusal.offset) == ("clone-drops-last-byte", pages * 4096)
    assert "image pack m487" in (refusal.hint or "")
    assert blocked(M487, program(pages * 4096)) == blocked(M487, program(pages * 4096 + 2)) == []
    assert blocked(M487, pad_to_page(data)) == []


@pytest.mark.parametrize(
    ("data", "codes", "hint"),
    [
        pytest.param(program(base=0x7_2000), ["wrong-format"], "programmer", id="the Cloner"),
        pytest.param(program(base=0x10_0000), ["wrong-format"], "programmer", id="the loader"),
        pytest.param(Descriptor(0xFC, 0).pack(), ["wrong-format"], "read back", id="a descriptor"),
        pytest.param(Trailer(bytes(70)).pack(), ["wrong-format"], "read back", id="a trailer"),
        pytest.param(bytes(8192), ["wrong-format"], "vector table", id="zeros"),
        pytest.param(sample_app("esp32-c3"), ["wrong-format"], "ESP32", id="an ESP app"),
        pytest.param(pack_ota_file(image2()), ["wrong-format"], "AmebaD", id="an OTA_All.bin"),
        pytest.param(small_elf([(0, b"text")]), ["wrong-format"], "flota image pack m487", id="an ELF file"),
        pytest.param(program(4096, changed={1: 0x1001}), ["nuvoton-entry"], "cut off", id="cut off"),
    ],
)
def test_files_of_other_kinds_are_refused_with_what_to_do(data: bytes, codes: list[str], hint: str) -> None:
    assert blocked(M487, data) == codes
    refusal = next(reason for reason in reasons(M487, data) if reason.blocking)
    assert hint in (refusal.hint or "")


def test_each_board_refuses_the_others_file() -> None:
    assert blocked(M487, signed()) == ["wrong-format"]
    assert "plain `<app>.bin`" in (reasons(M487, signed())[0].hint or "")
    assert blocked(M2354, program()) == ["wrong-format"]
    assert "_update.bin" in (reasons(M2354, program())[0].hint or "")
    for other in ("esp32-c3", "amebad"):
        assert blocked(TypeProfile(board(other)), program())[0] == "wrong-format"


def test_what_stock_devices_cannot_survive_is_said_with_every_release() -> None:
    assert warned(M487, program()) == ["power-cut-in-copy"]
    text = next(reason.text for reason in reasons(M487, program()))
    assert "does not survive a power cut" in text


def test_versions_in_name_and_marker_are_compared_with_the_releases() -> None:
    data = program(600).replace(b"\x42" * 64, pack_marker({"version": "1.0.1"}).ljust(64, b"\x42"), 1)
    limits = ["power-cut-in-copy"]
    assert warned(M487, data, version="1.0.1", filename="app_V1.0.1.bin") == limits
    assert warned(M487, data, version="v1.0.1", filename="app_V1.0.1.bin") == limits
    assert warned(M487, data, version="1.0.2", filename="app_V1.0.1.bin") == ["version", "version-in-name", *limits]
    assert warned(TypeProfile(board("esp32-c3")), sample_app("esp32-c3"), version="2", filename="a_V1.0.1.bin") == [
        "version"
    ]


# --- m2354 ------------------------------------------------------------------------------------------------------------


def test_a_signed_update_fits_and_no_rollback_is_said_with_every_release() -> None:
    assert blocked(M2354, signed()) == []
    assert warned(M2354, signed()) == ["no-rollback"]
    assert "no rollback" in reasons(M2354, signed())[0].text


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (None, "not-signed"),
        (ImageKeyKind.P256, "wrong-signature-scheme"),
        (ImageKeyKind.ED25519, "wrong-signature-scheme"),
    ],
)
def test_only_rsa_3072_is_what_the_boot_loader_checks(kind: ImageKeyKind | None, code: str) -> None:
    assert blocked(M2354, signed(kind=kind)) == [code]


def test_damage_is_refused_where_it_is() -> None:
    data = bytearray(signed())
    data[0x500] ^= 1
    assert blocked(M2354, bytes(data)) == ["bad-hash"]
    assert blocked(M2354, signed()[:-1])[0] in {"bad-tlv", "truncated-image"}
    assert blocked(M2354, signed()[:0x600]) == ["truncated-image"]


@pytest.mark.parametrize(
    ("options", "codes"),
    [
        pytest.param(replace(OPTIONS, load_address=0x2000_0000), ["image-flags"], id="to RAM"),
        pytest.param(replace(OPTIONS, non_bootable=True), ["image-flags"], id="not bootable"),
        pytest.param(replace(OPTIONS, header_size=0x1000), ["linked-elsewhere"], id="another header size"),
    ],
)
def test_what_the_boot_loader_would_not_start_in_place_is_refused(options: ImageOptions, codes: list[str]) -> None:
    assert blocked(M2354, signed(options=options)) == codes


def test_the_secure_image_is_not_for_the_applications_slot() -> None:
    secure = m2354_program().replace((0x1007_0501).to_bytes(4, "little"), (0x0002_0501).to_bytes(4, "little"))
    assert blocked(M2354, signed(secure)) == ["linked-elsewhere"]


def test_firmware_that_begins_with_no_vector_table_is_not_judged_by_one() -> None:
    assert blocked(M2354, signed(bytes(4096))) == []


def test_one_byte_over_the_slot_and_over_the_room_before_its_trailer() -> None:
    assert SLOT_SHAPE.trailer_size == 32
    overhead = len(signed()) - 4096
    assert blocked(M2354, signed(m2354_program(ROOM - overhead))) == []
    assert blocked(M2354, signed(m2354_program(ROOM - overhead + 1))) == ["no-room-for-trailer"]
    assert blocked(M2354, signed(m2354_program(0x9_0000 - overhead + 1))) == ["too-large"]
    padded = fill_slot(signed(), SlotShape(0x9_0000, overwrite_only=True))
    assert blocked(M2354, padded) == ["no-room-for-trailer"]


def test_the_headers_own_version_is_not_compared() -> None:
    assert inspect(signed()).version == "1.4.0+1"
    assert warned(M2354, signed(), version="1.0.1") == ["no-rollback"]
    assert warned(M2354, signed(), filename="x_update_V1.0.0.bin") == ["version-in-name", "no-rollback"]


def test_inspect_tells_what_a_boot_loader_decides_by() -> None:
    facts = inspect(signed()).mcuboot
    assert facts is not None
    assert (facts.header_size, facts.signature_schemes, facts.flags, facts.entry) == (
        0x400,
        ("RSA3072_PSS",),
        (),
        0x1007_0500,
    )
    assert inspect(signed()).format is ImageFormat.MCUBOOT
