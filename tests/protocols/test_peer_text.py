"""Whatever a peer sends becomes one short printable line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.peer_text import clean_bytes, clean_text


@given(st.text(), st.integers(1, 300))
def test_cleaned_text_is_one_printable_line_within_the_limit(text: str, limit: int) -> None:
    cleaned = clean_text(text, max_len=limit)
    assert len(cleaned) <= limit
    assert cleaned.isprintable()
    assert "\n" not in cleaned


@given(st.text(), st.integers(1, 300))
def test_cleaning_twice_changes_nothing(text: str, limit: int) -> None:
    once = clean_text(text, max_len=limit)
    assert clean_text(once, max_len=limit) == once


@given(st.binary())
def test_any_bytes_can_be_cleaned(raw: bytes) -> None:
    assert clean_bytes(raw).isprintable()


def test_terminal_escapes_and_direction_marks_lose_their_power() -> None:
    assert clean_text("\x1b[31mred\x1b[0m \u202eevil\u2066 \x00end\r\nFAKE LOG") == "[31mred[0m evil end FAKE LOG"


def test_a_long_text_is_cut_with_an_ellipsis() -> None:
    assert clean_text("a" * 1000, max_len=10) == "aaaaaaaaa…"


def test_a_flood_of_dropped_characters_costs_nothing_and_is_not_taken_for_the_whole_text() -> None:
    assert clean_text("\x00" * 10_000_000 + "end", max_len=10) == "…"
