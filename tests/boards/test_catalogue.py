from __future__ import annotations

import pytest

from flota.boards.catalogue import BOARDS, board
from flota.boards.fit import partition_table_of, slots_of
from flota.boards.model import Route, TypeProfile
from flota.errors import NotFound
from flota.images.esp_chips import CHIPS
from flota.images.esp_partitions import check_table

OTHERS = {"amebad", "amebad-4mb", "m487", "m2354", "dual-mcu-ab", "dual-mcu-ncp", "generic-linux", "aws-reference"}
STAGED_ELSEWHERE = {"m487", "m2354", "dual-mcu-ncp"}
"""Boards whose one slot is overwritten from another memory."""


def test_every_esp_chip_is_a_board_and_so_are_those_of_other_makers_and_machines_with_two_files() -> None:
    assert {chip.name for chip in CHIPS.values()} | OTHERS == set(BOARDS)


@pytest.mark.parametrize("name", list(BOARDS))
def test_a_board_s_own_table_is_sound_fits_its_flash_and_has_equal_slots(name: str) -> None:
    hardware = board(name)
    profile = TypeProfile(hardware)
    slots = slots_of(profile)
    assert len(slots) == (1 if name in STAGED_ELSEWHERE else 2)
    assert len({slot.size for slot in slots}) == 1
    table = partition_table_of(profile)
    if table is not None:
        assert check_table(table, flash_size=hardware.flash_size) == ()
        assert hardware.boot == "esp-otadata"
        assert {Route.HTTP_UPDATE, Route.ESP_HTTPS_OTA, Route.DDI} <= hardware.routes


def test_the_8_mb_board_has_the_slots_of_the_micro_rdk_guide() -> None:
    assert [(slot.name, slot.offset, slot.size) for slot in slots_of(TypeProfile(board("esp32")))] == [
        ("ota_0", 0x20000, 3_633_152),
        ("ota_1", 0x3A0000, 3_633_152),
    ]


def test_a_board_is_found_by_its_alias_and_an_unknown_one_lists_the_names() -> None:
    assert board("esp32c3") is board("ESP32-C3")
    with pytest.raises(NotFound) as caught:
        board("esp33")
    assert "esp32-c3" in str(caught.value.expected)
    assert "generic-linux" in str(caught.value.expected)
