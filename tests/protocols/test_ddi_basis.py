"""How a gateway's verdict is known travels as one line of the details, and only two kinds of it are conclusions."""

from __future__ import annotations

import pytest

from flota.gateway.driver import SightingBasis
from flota.protocols.ddi import basis_line, is_inferred


@pytest.mark.parametrize(
    ("basis", "inferred"),
    [
        (SightingBasis.ANNOUNCEMENT.value, True),
        (SightingBasis.STATE_POST.value, True),
        (SightingBasis.CHECK_IN.value, False),
        ("unknown", False),
        ("refused", False),
    ],
)
def test_a_device_that_only_came_back_was_not_heard_to_run_anything(basis: str, inferred: bool) -> None:
    assert is_inferred(["the board at 10.0.0.1 …", basis_line(basis)]) is inferred


@pytest.mark.parametrize("lines", [[], ["announcement"], ["the basis: announcement"], ["Basis: announcement"]])
def test_other_lines_of_a_device_say_nothing_of_the_kind(lines: list[str]) -> None:
    assert not is_inferred(lines)
