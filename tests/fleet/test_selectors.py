from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import InvalidInput
from flota.fleet.devices import Device, DeviceState
from flota.fleet.selectors import Selector, parse_selector

PUMP = Device(1, "pump-1", "pump", DeviceState.ACCEPTED, labels={"site": "berlin", "hall": "north side"})


def test_conditions_are_parsed_into_fields() -> None:
    text = 'type=pump state=accepted name=a,b text=Pu label.site=berlin label.hall="north side"'
    assert parse_selector(text) == Selector(
        text=text,
        type_name="pump",
        state=DeviceState.ACCEPTED,
        names=("a", "b"),
        name_part="Pu",
        labels={"site": "berlin", "hall": "north side"},
    )


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("all", True),
        ("type=pump", True),
        ("type=Pump", False),
        ("type=pump state=pending", False),
        ("label.site=berlin", True),
        ("label.site=paris", False),
        ("label.absent=x", False),
        ("label.hall='north side' type=pump", True),
        ("name=pump-0,pump-1", True),
        ("name=pump", False),
        ("text=UMP", True),
        ("text=%", False),
    ],
)
def test_all_conditions_must_hold(text: str, matches: bool) -> None:
    assert parse_selector(text).matches(PUMP) is matches


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "pump", "type=", "=pump", "type=a type=b", "kind=pump", "state=happy", "label.=x", "label.a b=c",
        "label.a'=c", "name=,", "label.x=" + "y" * 257, "all type=pump", "x" * 70_000,
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_selector(text)


@given(st.text(max_size=80))
def test_any_text_is_a_selector_or_our_error(text: str) -> None:
    try:
        selector = parse_selector(text)
    except InvalidInput:
        return
    assert selector.text
    selector.device_filter()


@pytest.mark.parametrize("name", ["na\udc80me", "\u202ename", "x" * 5000])
def test_a_name_given_twice_is_shown_on_one_printable_line_however_it_is_written(name: str) -> None:
    with pytest.raises(InvalidInput, match="given twice") as refused:
        parse_selector(f"{name}=a {name}=b")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200
