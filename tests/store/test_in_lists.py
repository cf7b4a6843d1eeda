"""Lists of values for IN: of few different lengths, with the same values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flota.store.queries.base import VALUES_PER_QUERY, filled


@given(st.lists(st.integers(), max_size=600))
def test_a_filled_list_has_the_same_values_in_order_and_a_power_of_two_of_them(values: list[int]) -> None:
    found = list(filled(values))
    assert found[: len(values)] == values
    assert set(found) == set(values)
    assert not values or (len(found).bit_count() == 1 and len(found) < 2 * len(values))


def test_the_longest_is_within_what_both_databases_take() -> None:
    assert len(filled(range(VALUES_PER_QUERY))) + 100 < 32_766
