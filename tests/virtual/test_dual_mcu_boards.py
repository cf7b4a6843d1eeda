"""Boot records and boards of primary MCUs: what a boot decides, what a stream leaves in the flash, what runs where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import InvalidInput
from flota.lab.mcu_agents import CONDITIONS_FILE, McuOptions, line_of, mcu_agent
from flota.lab.uart_ends import PseudoTerminal
from flota.virtual.agents.blynk_firmware import Conditions
from flota.virtual.boot import dual_bank, ncp_assisted
from flota.virtual.boot.dual_bank import BANKS, BankEntry, BankState, DualBankRecord
from flota.virtual.boot.ncp_assisted import AppEntry, BootWay, FetchRecord, FetchState, WantedImage
from flota.virtual.dual_bank_board import DualBankHardware
from flota.virtual.dual_mcu_flash import StreamWriter
from flota.virtual.flash import NorFlash
from flota.virtual.one_bank_board import OneBankHardware
from flota.virtual.slots import BadImage
from tests.virtual.dual_mcu_bench import AB, NCP, hardware, image

sizes = st.integers(0, 0xFFFF_FFFE)
digests = st.binary(min_size=32, max_size=32)
texts = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=64)
entries = st.builds(BankEntry, st.sampled_from(BankState), sizes, digests.map(bytes.hex))
bank_records = st.builds(
    DualBankRecord,
    st.sampled_from(BANKS),
    st.dictionaries(st.sampled_from(BANKS), entries),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
)
fetch_records = st.builds(
    FetchRecord,
    st.sampled_from(FetchState),
    st.none() | st.builds(AppEntry, sizes, digests),
    st.none() | st.builds(WantedImage, sizes, st.integers(0, 2**32 - 1), digests),
    st.integers(0, 2**32 - 1),
    texts,
    texts,
    st.integers(0, 2**32 - 1),
)


@given(bank_records)
def test_a_record_of_two_banks_comes_back_as_it_went(record: DualBankRecord) -> None:
    assert dual_bank.parse_record(dual_bank.pack_record(record)) == record


@given(fetch_records)
def test_a_record_of_a_fetching_boot_loader_comes_back_as_it_went(record: FetchRecord) -> None:
    assert ncp_assisted.parse_record(ncp_assisted.pack_record(record)) == record


@given(fetch_records, st.integers(0, ncp_assisted.RECORD_SIZE * 8 - 1))
def test_a_record_with_any_bit_changed_is_none(record: FetchRecord, bit: int) -> None:
    packed = bytearray(ncp_assisted.pack_record(record))
    packed[bit // 8] ^= 1 << bit % 8
    assert ncp_assisted.parse_record(bytes(packed)) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_none(data: bytes) -> None:
    assert dual_bank.parse_record(data) is None
    assert ncp_assisted.parse_record(data) is None


def test_a_text_that_the_record_has_no_room_for_is_refused() -> None:
    with pytest.raises(InvalidInput, match="64 bytes"):
        ncp_assisted.pack_record(FetchRecord(fw_type="T" * 65))


def test_an_image_on_trial_is_started_three_times_and_no_fourth() -> None:
    good = BankEntry(BankState.VALID, 10, "00" * 32)
    record = DualBankRecord("a", {"a": good}).trying("b", 20, "11" * 32, boots=dual_bank.TRIAL_BOOTS)
    orders = []
    for _ in range(5):
        decision = dual_bank.decide(record)
        record = decision.record
        orders.append(decision.order[0])
    assert orders == ["b", "b", "b", "a", "a"]
    assert record.banks["b"].state is BankState.FAILED
    assert dual_bank.decide(record).record is record


@pytest.mark.parametrize(
    ("record", "sound", "crashes", "way"),
    [
        (FetchRecord(app=AppEntry(1, b"")), True, 0, BootWay.APP),
        (FetchRecord(app=AppEntry(1, b"")), True, ncp_assisted.CRASHES_MAX, BootWay.LISTEN),
        (FetchRecord(), False, 0, BootWay.LISTEN),
        (FetchRecord(FetchState.PENDING, wanted=WantedImage(1, 2, b"")), True, 0, BootWay.FETCH),
        (FetchRecord(FetchState.WRITING, wanted=WantedImage(1, 2, b"")), False, 9, BootWay.FETCH),
    ],
)
def test_what_a_boot_with_one_bank_does(record: FetchRecord, sound: bool, crashes: int, way: BootWay) -> None:
    assert ncp_assisted.decide(record, app_is_sound=sound, crashes=crashes) is way


def test_a_second_offer_leaves_a_half_written_bank_half_written() -> None:
    record = FetchRecord(FetchState.WRITING, wanted=WantedImage(1, 2, b""))
    again = record.pending(WantedImage(3, 4, b""), baud=1, fw_type="", version="")
    assert (again.state, again.wanted) == (FetchState.WRITING, WantedImage(3, 4, b""))


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_a_stream_in_pieces_of_any_length_stands_in_the_flash(pieces: list[int], rng: object) -> None:
    flash = NorFlash.blank(64 * 1024, write_alignment=8)
    data = image("1.0.0", size=sum(pieces) + 1000)[: sum(pieces)]
    writer = StreamWriter(flash, 8192, len(data))
    begin = 0
    for length in pieces:
        writer.write(data[begin : begin + length])
        begin += length
    assert writer.content() == data
    assert flash.read(0, 8192) == b"\xff" * 8192
    with pytest.raises(InvalidInput):
        writer.write(b"x")


def test_an_app_of_one_bank_cannot_write_the_bank_that_it_runs_from() -> None:
    board = hardware(NCP, image("1.0.0"))
    assert isinstance(board, OneBankHardware)
    slots = board.boot().slots
    with pytest.raises(BadImage, match="running"):
        slots.open_stream(1000)  # type: ignore[union-attr]


def test_a_bank_that_is_written_is_not_bootable_meanwhile() -> None:
    board = hardware(AB, image("1.0.0"))
    assert isinstance(board, DualBankHardware)
    board.flash_app(image("2.0.0"), "b")
    slots = board.boot().slots
    slots.open_stream(1000)  # type: ignore[union-attr]
    assert set(board.record.banks) == {"b"}
    board.flash.erase_sector(0x10_0000)
    assert board.boot().app is None


def test_conditions_come_from_a_file_and_nonsense_changes_nothing(tmp_path: Path) -> None:
    terminal = line_of(McuOptions(tmp_path / "line"), tmp_path)
    assert terminal is not None
    try:
        agent = mcu_agent(McuOptions(tmp_path / "line"), terminal, tmp_path)
        now = Conditions()
        agent.look_around(now)
        assert now == Conditions()
        (tmp_path / CONDITIONS_FILE).write_text(json.dumps({"battery_percent": 7, "is_busy": True}))
        agent.look_around(now)
        assert now == Conditions(7, is_busy=True)
        for nonsense in ('{"battery_percent": 700}', "{", '{"other": 1}'):
            (tmp_path / CONDITIONS_FILE).write_text(nonsense)
            agent.look_around(now)
            assert now == Conditions(7, is_busy=True)
    finally:
        terminal.close()


def test_the_link_to_a_pseudo_terminal_goes_with_it_and_nothing_else_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "uart"
    terminal = PseudoTerminal(place)
    assert place.is_char_device()
    terminal.close()
    assert not place.is_symlink()
    place.symlink_to("/dev/pts/never")
    PseudoTerminal(place).close()
    place.write_text("mine")
    with pytest.raises(InvalidInput, match="in the way"):
        PseudoTerminal(place)
    assert place.read_text() == "mine"


def test_a_line_that_is_there_is_used_and_left_alone_also_behind_a_link(tmp_path: Path) -> None:
    real = PseudoTerminal(tmp_path / "real")
    try:
        (tmp_path / "serial0").symlink_to((tmp_path / "real").readlink())
        assert line_of(McuOptions(tmp_path / "serial0"), tmp_path) is None
        assert (tmp_path / "serial0").is_char_device()
    finally:
        real.close()


def test_the_link_of_a_device_that_was_killed_is_made_anew(tmp_path: Path) -> None:
    place = McuOptions(tmp_path / "line")
    killed, alive = line_of(place, tmp_path), None
    assert killed is not None
    try:
        alive = line_of(place, tmp_path)
        assert alive is not None
    finally:
        killed.close()
        if alive is not None:
            assert place.serial.is_char_device()
            alive.close()
