"""Parts of the Nuvoton boards: SPI flash, SD card, key store, boot programs in flash, what a programmer does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.boards.catalogue import board as board_named
from flota.errors import FlotaError, InvalidInput
from flota.images.nuvoton import Descriptor, ImageFlag, Place
from flota.images.nuvoton.flash_map import (
    APP_SIZE,
    APROM_SIZE,
    CLONER_ADDR,
    DESCRIPTOR_ADDR,
    KVSTORE_ADDR,
    LDROM_ADDR,
    LDROM_SIZE,
    MIB,
    PAGE_SIZE,
)
from flota.lab.at_once import TimelessPace
from flota.lab.nuvoton_programmer import flash_nuvoton, note_nuvoton, provision
from flota.lab.nuvoton_sweep_device import m487_image, m2354_image, sweep_boot_key
from flota.virtual.boot.mcuboot_overwrite import ask_for_copy
from flota.virtual.boot.nuvoton_journal import Record, parse_record, present_record, read_journal, write_descriptor
from flota.virtual.boot.nuvoton_parts import ResetKind, start_spi
from flota.virtual.boot.nuvoton_rollback import run_cloner, run_ldrom
from flota.virtual.flash import FlashOperation, FlashOperationKind, FlashViolation, NorFlash, Power, PowerCut
from flota.virtual.m2354_board import M2354Chips, M2354Hardware
from flota.virtual.nuvoton_board import CONFIG_SIZE, M487Chips, M487Hardware
from flota.virtual.nuvoton_kvstore import CODE_VERIFY_KEY, read_entries, write_entries
from flota.virtual.nuvoton_programs import BootProfile, BootProgram, program_in, stand_in
from flota.virtual.nvs import NonVolatileStore
from flota.virtual.sd_card import BLOCK_SIZE, SdCard, SdCardError
from flota.virtual.spi_nor import SpiDriver, SpiFlashMissing, SpiGeometry, SpiNor, pack_sfdp, parse_sfdp

OLD, NEW = m487_image("1.0.0", 3 * PAGE_SIZE), m487_image("1.0.1", 2 * PAGE_SIZE)


def spi_chip(size: int = MIB, jedec: str = "ef4014", sector: int = PAGE_SIZE) -> SpiNor:
    flash = NorFlash.blank(size, sector_size=sector, write_alignment=1)
    return SpiNor(flash, jedec_id=bytes.fromhex(jedec))


def a_board(profile: BootProfile = BootProfile.ROLLBACK, spi: SpiNor | None = None) -> M487Hardware:
    chips = M487Chips(
        NorFlash.blank(APROM_SIZE), NorFlash.blank(LDROM_SIZE), NorFlash.blank(CONFIG_SIZE), spi or spi_chip()
    )
    return M487Hardware(board_named("m487"), chips, nvs=NonVolatileStore(), pace=TimelessPace(), usual_profile=profile)


def programmed(profile: BootProfile = BootProfile.ROLLBACK, **other: SpiNor) -> M487Hardware:
    board = a_board(profile, **other)
    flash_nuvoton(board, OLD, address=None, erase=False)
    return board


def version(board: M487Hardware) -> str | None:
    app = board.boot().app
    return None if app is None else app.version


# --- SPI flash --------------------------------------------------------------------------------------------------------


@given(st.integers(12, 26), st.sampled_from([4096, 65536]))
def test_what_a_chip_says_of_itself_is_what_the_driver_reads(bits: int, erase_size: int) -> None:
    geometry = SpiGeometry(max(1 << bits, erase_size), erase_size)
    assert parse_sfdp(pack_sfdp(geometry)) == geometry


@given(st.binary(max_size=64))
def test_any_bytes_are_a_description_or_a_missing_chip(data: bytes) -> None:
    try:
        geometry = parse_sfdp(data)
    except SpiFlashMissing:
        return
    assert geometry.erase_size > 0


def test_a_larger_part_with_larger_blocks_is_known_by_what_it_says_and_the_backup_begins_a_block_later() -> None:
    chip = spi_chip(16 * MIB, "ef4018", 65536)
    assert SpiDriver(chip).geometry == SpiGeometry(16 * MIB, 65536)
    assert start_spi(chip).size == 16 * MIB


def test_a_chip_that_is_not_fitted_or_says_nothing_of_itself_is_missing() -> None:
    absent, mute = spi_chip(), spi_chip()
    absent.fitted, mute.has_sfdp = False, False
    for chip in (absent, mute):
        with pytest.raises(SpiFlashMissing):
            _ = SpiDriver(chip).geometry
    with pytest.raises(SpiFlashMissing):
        SpiDriver(absent).program(0, b"\0")
    with pytest.raises(SpiFlashMissing):
        SpiDriver(spi_chip()).erase(MIB, PAGE_SIZE)


def test_programming_twice_only_clears_bits_and_pages_are_programmed_apart() -> None:
    chip = spi_chip()
    driver = SpiDriver(chip)
    driver.program(250, b"\x0f" * 12)
    driver.program(250, b"\xf3" * 12)
    assert driver.read(250, 12) == b"\x03" * 12
    assert chip.flash.counters.programs == 4


# --- SD card ----------------------------------------------------------------------------------------------------------


def test_blocks_of_a_card_are_written_again_without_erasing_and_in_whole() -> None:
    card = SdCard(bytearray(64 * 1024))
    card.write(BLOCK_SIZE, b"\1" * BLOCK_SIZE)
    card.write(BLOCK_SIZE, b"\xfe" * BLOCK_SIZE)
    assert card.read(BLOCK_SIZE, 4) == b"\xfe" * 4
    with pytest.raises(FlashViolation):
        card.write(3, b"\0" * BLOCK_SIZE)


def test_a_card_that_is_full_or_gone_is_an_error_that_says_so() -> None:
    card = SdCard(bytearray(4 * BLOCK_SIZE))
    with pytest.raises(SdCardError, match="end"):
        card.write(3 * BLOCK_SIZE, b"\0" * 2 * BLOCK_SIZE)
    card.fitted = False
    with pytest.raises(SdCardError, match="no SD card"):
        card.read(0, 1)


def test_a_cut_write_leaves_blocks_of_before() -> None:
    power = Power()
    card = SdCard(bytearray(64 * 1024), power=power)
    power.on = False
    with pytest.raises(PowerCut):
        card.write(0, b"\1" * BLOCK_SIZE)


# --- key store, boot programs -----------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=200), max_size=5))
def test_entries_of_the_key_store_are_read_as_written(entries: dict[str, str]) -> None:
    aprom = NorFlash.blank(APROM_SIZE)
    write_entries(aprom, entries)
    assert read_entries(aprom) == entries


def test_a_key_store_that_is_blank_or_overwritten_has_no_entries_and_too_many_are_refused() -> None:
    aprom = NorFlash.blank(APROM_SIZE)
    assert read_entries(aprom) is None
    write_entries(aprom, {CODE_VERIFY_KEY: "x"})
    aprom.program(KVSTORE_ADDR + 16, b"\0" * 4)
    assert read_entries(aprom) is None
    with pytest.raises(InvalidInput):
        write_entries(aprom, {"a": "x" * 40_000})


@pytest.mark.parametrize("place", [Place.LOADER, Place.CLONER])
@pytest.mark.parametrize("profile", list(BootProfile))
def test_a_stand_in_is_known_in_its_own_place_only(place: Place, profile: BootProfile) -> None:
    program = BootProgram(place, profile)
    flash = stand_in(program).ljust(8192, b"\xff")
    assert program_in(flash, place) == program
    other = Place.CLONER if place is Place.LOADER else Place.LOADER
    assert program_in(flash, other) is None


# --- resets and the programmer ----------------------------------------------------------------------------------------


def test_the_programmer_writes_loader_app_and_cloner_and_the_profile_sets_config0() -> None:
    board = a_board()
    assert board.blank
    told = flash_nuvoton(board, OLD, address=None, erase=False)
    assert told == f"loader (rollback) to LDROM, app, {len(OLD)} bytes to 0x0, Cloner (rollback) to 0x72000"
    assert board.profile is BootProfile.ROLLBACK
    assert (board.first_vector, version(board)) == (LDROM_ADDR, "1.0.0")
    stock = programmed(BootProfile.STOCK)
    assert (stock.config0, stock.first_vector, version(stock)) == (0xFFFF_FFFF, 0, "1.0.0")


def test_programming_an_app_at_0_erases_the_cloner_behind_it() -> None:
    board = programmed(BootProfile.STOCK)
    flash_nuvoton(board, NEW, address=0, erase=False)
    assert board.chips.aprom.read(CLONER_ADDR, 64) == b"\xff" * 64
    assert version(board) == "1.0.1"
    loader = stand_in(BootProgram(Place.CLONER, BootProfile.STOCK))
    assert "0x72000" in flash_nuvoton(board, loader, address=None, erase=False)


@pytest.mark.parametrize("address", [1, APROM_SIZE, LDROM_ADDR + 0x1000, -4096])
def test_a_programmer_is_told_what_fits_nowhere(address: int) -> None:
    board = a_board()
    with pytest.raises(InvalidInput, match="cannot flash there"):
        board.write_flash(address, b"\0" * 8)


def test_iap_is_allowed_once_and_a_part_without_it_is_reset() -> None:
    board = programmed(BootProfile.STOCK)
    assert board.allow_programming()
    assert board.config0 == 0xFFFF_FFBF
    assert not board.allow_programming()
    assert board.first_vector == 0, "bit 7 is never touched"


def test_a_cpu_reset_keeps_the_vector_map_and_a_power_cut_forgets_it() -> None:
    board = programmed(BootProfile.STOCK)
    board.reset.cpu_reset_to = LDROM_ADDR
    assert board.boot().console[0] == "Boot from LDROM successful"
    assert board.boot().console == ()
    board.reset.cpu_reset_to = LDROM_ADDR
    board.power_off()
    board.power_on()
    assert board.boot().console == ()


def test_ldrom_first_cannot_work_with_the_shipped_programs() -> None:
    board = programmed(BootProfile.STOCK)
    board.write_config0(0xFFFF_FF3F)
    report = board.boot()
    assert report.app is None
    assert "for ever" in report.refused[0]


def test_an_unknown_boot_program_or_none_starts_nothing() -> None:
    board = programmed()
    board.chips.ldrom.erase(0, LDROM_SIZE)
    assert "no LDROM loader that is known" in board.boot().refused[0]


def test_a_slot_gives_exactly_the_file_that_was_installed() -> None:
    board = programmed()
    assert board.image_in("app") == OLD
    with pytest.raises(FlotaError, match="no image"):
        board.image_in("staging")
    with pytest.raises(InvalidInput, match="no such slot"):
        board.image_in("ota_0")


# --- journal and rollback Cloner --------------------------------------------------------------------------------------


@given(st.integers(0, 0xFFFF_FFFF), st.booleans(), st.integers(0, 0xFFFF_FFFF))
def test_a_record_is_read_as_written(crc: int, save_first: bool, end: int) -> None:
    record = Record(Descriptor(ImageFlag.NEW, end), crc, save_first)
    assert parse_record(record.pack()) == record


@given(st.binary(min_size=48, max_size=48))
def test_any_48_bytes_are_a_record_or_none(data: bytes) -> None:
    record = parse_record(data)
    assert record is None or record.pack()[:44] == data[:44]


@pytest.mark.parametrize("offset", range(47))
def test_a_record_with_one_wrong_byte_is_none(offset: int) -> None:
    data = bytearray(Record(Descriptor(ImageFlag.NEW, 4095), 7).pack())
    data[offset] ^= 0x10
    assert parse_record(bytes(data)) is None
    assert parse_record(bytes(data[:offset])) is None


def test_a_descriptor_of_a_stock_application_counts_though_an_old_copy_lies_beside_it() -> None:
    board = programmed()
    write_descriptor(board.controller, Record(Descriptor(ImageFlag.VALID, 4095), 7))
    journal = read_journal(board.controller)
    assert journal is not None
    assert journal.done
    board.chips.aprom.erase_sector(DESCRIPTOR_ADDR)
    board.chips.aprom.program(DESCRIPTOR_ADDR, Descriptor(ImageFlag.INVALID, 4095).pack())
    present = present_record(board.controller)
    assert present is not None
    assert (present.descriptor.flag, present.save_first) == (ImageFlag.INVALID, True)


def staged(board: M487Hardware, data: bytes = NEW, **fields: int) -> None:
    board.chips.spi.flash.program(0, data)
    note_nuvoton(board, data)
    values = {"flag": ImageFlag.NEW, "end": len(data) - 1} | fields
    write_descriptor(board.controller, Record(Descriptor(**values)))


def test_the_restoring_cloner_copies_even_the_last_byte_of_a_file_of_k_pages_and_one() -> None:
    board = programmed()
    odd = m487_image("1.0.1", PAGE_SIZE + 1)
    staged(board, odd)
    assert version(board) == "1.0.1"
    assert board.image_in("app") == odd


def test_an_app_without_a_backup_is_saved_by_the_cloner_before_it_is_overwritten() -> None:
    board = programmed()
    staged(board)
    assert version(board) == "1.0.1"
    assert board.image_in("backup") == OLD
    assert version(board) == "1.0.0", "the second start finds the trial used"


@pytest.mark.parametrize(
    "fields",
    [{"start": 4096}, {"end": APP_SIZE}, {"end": 0xFFFF_FFFF}, {"execute": 0x3000}],
    ids=["start", "end", "end of all", "execute"],
)
def test_a_descriptor_with_wrong_addresses_costs_the_update_and_not_the_app(fields: dict[str, int]) -> None:
    board = programmed()
    staged(board, **fields)
    report = board.boot()
    assert "Wrong addresses!!" in report.console
    assert report.app is not None
    assert report.app.version == "1.0.0"


def test_a_backup_whose_sum_does_not_hold_is_not_restored() -> None:
    board = programmed()
    staged(board)
    assert version(board) == "1.0.1"
    board.chips.spi.flash.program(0x81000 + 100, b"\0" * 8)
    report = board.boot()
    assert "No backup to restore" in report.console
    assert report.app is not None
    assert report.app.version == "1.0.1"


@pytest.mark.parametrize("place", [0x200011D8, 0x10, MIB - 8, 0xFFFF_FFFF])
def test_garbage_in_the_reserved_field_is_no_backup(place: int) -> None:
    board = programmed()
    write_descriptor(board.controller, Record(Descriptor(ImageFlag.INVALID, len(OLD) - 1, reserved=place)))
    assert version(board) == "1.0.0"


def test_hand_overs_of_the_rollback_profile_are_cpu_resets() -> None:
    board = programmed()
    assert run_ldrom(board.controller).reset is ResetKind.CPU
    handover = run_cloner(board.controller, board.chips.spi)
    assert (handover.vector_map, handover.reset) == (0, ResetKind.CPU)


def test_a_boot_that_changes_nothing_writes_nothing() -> None:
    board = programmed()
    write_descriptor(board.controller, Record(Descriptor(ImageFlag.VALID, len(OLD) - 1)))
    operations: list[FlashOperationKind] = []
    board.chips.aprom.plan = lambda operation: operations.append(operation.kind)  # type: ignore[func-returns-value]
    assert version(board) == "1.0.0"
    assert operations == []


# --- M2354 ------------------------------------------------------------------------------------------------------------


def m2354() -> M2354Hardware:
    flash = NorFlash.blank(MIB, sector_size=2048)
    chips = M2354Chips(flash, SdCard(bytearray(4 * MIB), power=flash.power))
    return M2354Hardware(board_named("m2354"), chips, nvs=NonVolatileStore(), pace=TimelessPace())


def test_an_m2354_needs_a_boot_key_and_starts_only_what_it_signed() -> None:
    board = m2354()
    with pytest.raises(InvalidInput, match="boot loader needs the key"):
        provision(board, "thing", None)
    assert "no boot loader" in board.boot().refused[0]
    provision(board, "thing", None, (sweep_boot_key().public,))
    image = m2354_image("1.0.0", 8192)
    flash_nuvoton(board, image, address=None, erase=False)
    report = board.boot()
    assert report.app is not None
    assert (report.app.version, board.image_in("app")) == ("1.0.0", image)
    flash_nuvoton(board, image[:-1] + bytes([image[-1] ^ 1]), address=None, erase=False)
    assert board.boot().app is None


def test_an_image_that_leaves_no_room_for_the_mark_is_not_flashed() -> None:
    with pytest.raises(FlotaError):
        m2354().flash_app(m2354_image("1.0.0", 0x90000 - 0x400))


def test_the_file_in_a_state_directory_is_the_card_whatever_its_size_and_an_empty_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "sd.bin"
    SdCard.open(path, 4 * BLOCK_SIZE).close()
    other = SdCard.open(path, 8 * BLOCK_SIZE)
    assert (other.size, other.fitted) == (4 * BLOCK_SIZE, True)
    other.close()
    path.write_bytes(b"")
    empty = SdCard.open(path, 8 * BLOCK_SIZE)
    with pytest.raises(SdCardError, match="no SD card"):
        empty.read(0, 1)
    empty.close()
    path.write_bytes(b"x" * 700)
    with pytest.raises(SdCardError, match="is no SD card"):
        SdCard.open(path, 8 * BLOCK_SIZE)


def staged_m2354() -> tuple[M2354Hardware, bytes]:
    """Return a board that runs 1.0.0 and has 1.0.1 on its card, marked for the boot loader."""
    board, new = m2354(), m2354_image("1.0.1", 8192)
    provision(board, "thing", None, (sweep_boot_key().public,))
    flash_nuvoton(board, m2354_image("1.0.0", 8192), address=None, erase=False)
    board.secondary.erase(0, board.secondary.size)
    board.secondary.write(0, new + b"\xff" * (-len(new) % BLOCK_SIZE))
    ask_for_copy(board.secondary)
    return board, new


def test_a_card_that_is_out_at_the_start_asks_for_nothing_and_asks_again_when_it_is_back() -> None:
    board, new = staged_m2354()
    board.chips.card.fitted = False
    report = board.boot()
    assert report.app is not None
    assert (report.app.version, report.console[1]) == ("1.0.0", "[INF] Swap type: none")
    board.chips.card.fitted = True
    assert board.boot().writes == ("copied the staged image over the app",)
    assert board.image_in("app") == new


@pytest.mark.parametrize("programs", [1, 5])
def test_a_card_that_is_pulled_while_it_is_copied_leaves_no_app_until_it_is_back(programs: int) -> None:
    board, new = staged_m2354()
    left = [programs]

    def pull(operation: FlashOperation) -> None:
        if operation.kind is FlashOperationKind.PROGRAM:
            left[0] -= 1
            board.chips.card.fitted = left[0] > 0

    board.chips.flash.listener = pull
    report = board.boot()
    assert report.app is None
    assert report.console[-3:] == (
        "[ERR] there is no SD card",
        "[ERR] Image in the primary slot is not valid!",
        "[ERR] Unable to find bootable image",
    )
    board.chips.flash.listener = None
    assert board.boot().app is None, "without the card nothing starts"
    board.chips.card.fitted = True
    again = board.boot()
    assert again.app is not None
    assert (again.app.version, board.image_in("app")) == ("1.0.1", new)


def test_a_card_that_is_pulled_when_all_is_copied_is_copied_once_more_when_it_is_back() -> None:
    board, new = staged_m2354()
    programs = -(-len(new) // 1024)

    def pull(operation: FlashOperation) -> None:
        nonlocal programs
        programs -= operation.kind is FlashOperationKind.PROGRAM
        board.chips.card.fitted = programs > 0

    board.chips.flash.listener = pull
    report = board.boot()
    assert report.app is not None
    assert (report.app.version, "[ERR] there is no SD card" in report.console) == ("1.0.1", True)
    board.chips.flash.listener, board.chips.card.fitted = None, True
    assert board.boot().writes == ("copied the staged image over the app",)
    assert board.boot().writes == ()


def test_another_card_brings_no_image_of_its_own_and_has_the_boards_power() -> None:
    board, _ = staged_m2354()
    board.insert_card(SdCard(bytearray(2 * MIB), power=board.chips.flash.power))
    report = board.boot()
    assert report.app is not None
    assert (report.app.version, report.writes) == ("1.0.0", ())
    with pytest.raises(ValueError, match="power supply"):
        board.insert_card(SdCard(bytearray(2 * MIB)))
