from __future__ import annotations

import pytest

from flota.images.esp_otadata import (
    OTADATA_SIZE,
    OtaEntry,
    OtaState,
    active_entry,
    looks_like_otadata,
    otadata_crc,
    pack_entry,
    pack_otadata,
    parse_entry,
    parse_otadata,
    state_name,
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
