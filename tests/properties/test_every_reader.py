"""Any bytes, given to any reader: a value, or one of our errors on one printable line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutated_input
from tests.fuzz.table import BY_NAME


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_any_bytes_give_a_value_or_one_of_our_errors(name: str) -> None:
    target = BY_NAME[name]
    near_the_format = st.builds(mutated_input, st.just(target), st.just(0), st.integers(0, 300))
    begun = st.builds(lambda start, rest: start[: len(rest)] + rest, st.sampled_from(target.starts), st.binary())

    @given(st.binary(max_size=400) | begun | near_the_format)
    @settings(max_examples=25, deadline=None)
    def check(data: bytes) -> None:
        target.run(data)

    check()
