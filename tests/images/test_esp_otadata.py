from __future__ import annotations

import pytest

from flota.images.esp_otadata import (
    OTADATA_SIZE,
    OtaEntry,
    OtaState,
    active_entry,
    blank_otadata,
    boot_app0,
    looks_like_otadata,
    next_choice,
    otadata_crc,
    otadata_for_slot,
    pack_entry,
    pack_otadata,
    parse_entry,
    parse_otadata,
    state_name,
    with_entry,
)
from flota.images.model import ImageError, TruncatedImage


@pytest.mark.parametrize(
    ("seq", "crc"),
    [
        (0, 0xFFFFFFFF),
        (1, 0x4743989A),
        (2, 0x55F63774),
        (3, 0xED4A5011),
        (4, 0x709D68A8),
        (5, 0xC8210FCD),
        (6, 0xDA94A023),
        (7, 0x6228C746),
        (0xFFFFFFFF, 0x2144DF1C),
    ],
)
def test_the_crc_covers_the_sequence_number_alone(seq: int, crc: int) -> None:
    assert otadata_crc(seq) == crc
    for state in (*OtaState, 77):
        assert OtaEntry.for_seq(seq, state).crc_ok


def test_an_entry_lies_as_the_format_says() -> None:
    packed = pack_entry(OtaEntry(1, OtaState.VALID, 0x4743989A))
    assert packed.hex() == "01000000" + "ff" * 20 + "02000000" + "9a984347"
    assert parse_entry(packed) == OtaEntry.for_seq(1, OtaState.VALID)


def test_rejected_and_blank_entries_are_invalid_and_unnamed_states_are_not() -> None:
    assert OtaEntry().blank
    assert OtaEntry().invalid
    for state, valid in (
        (OtaState.NEW, True),
        (OtaState.PENDING_VERIFY, True),
        (OtaState.VALID, True),
        (OtaState.INVALID, False),
        (OtaState.ABORTED, False),
        (OtaState.UNDEFINED, True),
        (0x1234, True),
    ):
        assert OtaEntry.for_seq(5, state).valid is valid
    assert not OtaEntry(5, OtaState.VALID, 0).valid


def test_the_higher_sequence_number_is_active_and_a_tie_goes_to_the_first() -> None:
    one, two, bad = OtaEntry.for_seq(1), OtaEntry.for_seq(2), OtaEntry(9, OtaState.VALID, 0)
    assert active_entry(one, two) == 1
    assert active_entry(two, one) == 0
    assert active_entry(two, two) == 0
    assert active_entry(one, bad) == 0
    assert active_entry(bad, OtaEntry()) is None


def test_the_slot_is_the_sequence_number_less_one_in_32_bits() -> None:
    assert [OtaEntry.for_seq(seq).slot_index(2) for seq in (1, 2, 3, 0)] == [0, 1, 0, 1]
    assert OtaEntry.for_seq(0).slot_index(3) == 0


def test_a_partition_of_otadata_packs_parses_and_is_recognised() -> None:
    entries = (OtaEntry.for_seq(3, OtaState.NEW), OtaEntry())
    packed = pack_otadata(*entries)
    assert len(packed) == OTADATA_SIZE
    assert parse_otadata(packed) == entries
    assert looks_like_otadata(packed)
    assert not looks_like_otadata(bytes(OTADATA_SIZE))
    assert not looks_like_otadata(packed + b"\xff")
    assert not looks_like_otadata(packed[:40] + b"x" + packed[41:])


def test_what_is_cut_off_or_does_not_fit_is_an_image_error() -> None:
    with pytest.raises(TruncatedImage):
        parse_entry(bytes(31))
    with pytest.raises(TruncatedImage):
        parse_otadata(bytes(OTADATA_SIZE - 1))
    with pytest.raises(ImageError):
        pack_entry(OtaEntry(1 << 32))
    with pytest.raises(ImageError):
        pack_entry(OtaEntry(1, label=b""))


def test_states_have_names_and_others_show_their_number() -> None:
    assert state_name(OtaState.PENDING_VERIFY) == "pending-verify"
    assert state_name(0x99) == "0x00000099"


# --- writing ---------------------------------------------------------------------------------------------------------


def test_the_first_otadata_of_the_arduino_core_has_two_entries_and_that_of_esp_idf_none() -> None:
    assert parse_otadata(boot_app0()) == (OtaEntry.for_seq(1), OtaEntry.for_seq(0))
    assert parse_otadata(blank_otadata()) == (OtaEntry(), OtaEntry())
    assert looks_like_otadata(boot_app0())
    assert looks_like_otadata(blank_otadata())


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_a_fresh_otadata_boots_the_slot_that_was_asked_for(count: int) -> None:
    for slot in range(count):
        first, second = parse_otadata(otadata_for_slot(slot, state=OtaState.VALID))
        assert active_entry(first, second) == 0
        assert (first.slot_index(count), first.state) == (slot, OtaState.VALID)


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_the_next_choice_boots_its_slot_and_leaves_the_entry_in_force_untouched(count: int) -> None:
    data = blank_otadata()
    for step in range(200):
        before = parse_otadata(data)
        active = active_entry(*before)
        slot = (step * 7 + step // 5) % count
        sector, entry = next_choice(before, slot, count, state=OtaState.NEW)
        data = with_entry(data, sector, entry)
        after = parse_otadata(data)
        now = active_entry(*after)
        assert now == sector
        assert (entry.slot_index(count), entry.state) == (slot, OtaState.NEW)
        if active is not None and before[active].slot_index(count) != slot:
            assert (sector, after[active]) == (1 - active, before[active])


def test_a_choice_replaces_a_rejected_entry_and_keeps_its_label_bytes() -> None:
    rejected = OtaEntry.for_seq(6, OtaState.INVALID, label=b"l" * 20)
    sector, entry = next_choice((OtaEntry.for_seq(5), rejected), 1, 2)
    assert (sector, entry) == (1, OtaEntry.for_seq(6, label=b"l" * 20))


@pytest.mark.parametrize(("slot", "count"), [(-1, 2), (2, 2), (16, 17), (0, 0)])
def test_slots_that_are_not_there_are_refused(slot: int, count: int) -> None:
    with pytest.raises(ImageError, match="no such ota slot"):
        next_choice((OtaEntry(), OtaEntry()), slot, count)


def test_a_fresh_otadata_for_a_slot_above_ota_15_is_refused() -> None:
    with pytest.raises(ImageError):
        otadata_for_slot(16)


def test_sequence_numbers_that_are_used_up_are_an_error_and_not_a_lost_choice() -> None:
    with pytest.raises(ImageError, match="used up"):
        next_choice((OtaEntry.for_seq(0xFFFF_FFFE), OtaEntry()), 0, 2)
