"""What an AmebaD board does not check, the fit check does."""

from __future__ import annotations

import pytest

from flota.boards.catalogue import board
from flota.boards.fit import AMEBA_SETTINGS_FROM, fit_check, slots_of
from flota.boards.model import TypeProfile
from flota.images.ameba import pack_ota_file
from flota.images.inspection import inspect
from tests.images.ameba_samples import image2, km0_image, km4_image
from tests.images.esp_samples import sample_app

SMALL, LARGE = TypeProfile(board("amebad")), TypeProfile(board("amebad-4mb"))


def reasons(profile: TypeProfile, data: bytes, *, blocking: bool = True) -> list[str]:
    found = fit_check(profile, inspect(data), file_size=len(data), version="1.0.0")
    return [reason.code for reason in found if reason.blocking is blocking]


def sized(total: int) -> bytes:
    """image2 of `total` bytes."""
    return image2(xip=b"\x22" * (total - 0x1000 - 4096))


def test_the_slots_are_those_of_the_flash_map() -> None:
    assert [(slot.name, slot.offset, slot.size) for slot in slots_of(SMALL)] == [
        ("ota1", 0x6000, 1_024_000),
        ("ota2", 0x10_6000, 1_024_000),
    ]
    assert slots_of(LARGE)[1].offset == 0x20_6000


@pytest.mark.parametrize("alias", ["bw16", "AMB23", "rtl8720dn", "aw-cu488"])
def test_modules_are_known_by_their_names(alias: str) -> None:
    assert board(alias).name == "amebad"


def test_the_slot_takes_the_image_without_its_header() -> None:
    full = sized(1_024_000)
    for data in (full, pack_ota_file(full)):
        assert reasons(SMALL, data) == []
    above = sized(1_024_000 + 4096)
    for data in (above, pack_ota_file(above)):
        assert reasons(SMALL, data) == ["too-large"]
        assert reasons(LARGE, data) == []


def test_an_image_in_the_settings_area_is_warned_of() -> None:
    assert reasons(SMALL, sized(AMEBA_SETTINGS_FROM), blocking=False) == []
    assert reasons(SMALL, sized(AMEBA_SETTINGS_FROM + 4096), blocking=False) == ["settings-overlap"]
    assert reasons(LARGE, sized(AMEBA_SETTINGS_FROM + 4096), blocking=False) == []


@pytest.mark.parametrize(
    ("data", "codes"),
    [
        pytest.param(km0_image(), ["wrong-format"], id="KM0 alone"),
        pytest.param(km4_image(), ["wrong-format"], id="KM4 alone"),
        pytest.param(sample_app("esp32-c3"), ["wrong-format"], id="an ESP app"),
        pytest.param(b"\0" * 8192, ["wrong-format"], id="zeros"),
        pytest.param(pack_ota_file(bytes(4096), opaque=True), ["ameba-signature"], id="no signature"),
        pytest.param(km0_image() + b"\xff" * 4096, ["ameba-km4-place"], id="KM4 missing"),
        pytest.param(pack_ota_file(image2())[:-1], ["ameba-ota-layout"], id="a byte short"),
        pytest.param(
            pack_ota_file(image2())[:100] + b"\0" + pack_ota_file(image2())[101:], ["ameba-checksum"], id="a wrong byte"
        ),
    ],
)
def test_what_would_not_start_is_refused(data: bytes, codes: list[str]) -> None:
    assert reasons(SMALL, data) == codes


def test_ameba_files_do_not_fit_other_boards() -> None:
    esp = TypeProfile(board("esp32-c3"))
    assert reasons(esp, pack_ota_file(image2()))[0] == "wrong-format"
