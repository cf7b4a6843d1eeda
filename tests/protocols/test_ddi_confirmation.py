"""confirmationBase and installedBase on the wire: both ends agree, and nothing but errors of ours comes out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import InvalidInput
from flota.protocols.cbor import pack_cbor
from flota.protocols.ddi import (
    AutoConfirm,
    Confirmation,
    ConfirmationFeedback,
    DdiAddresses,
    Deployment,
    Handling,
    TooManyEntries,
    action_id_of,
    pack_auto_confirm,
    pack_confirmation,
    pack_confirmation_feedback,
    parse_auto_confirm,
    parse_auto_confirm_request,
    parse_confirmation,
    parse_confirmation_feedback,
    parse_deployment,
    parse_installed_version,
)
from flota.protocols.malformed import MalformedMessage

ADDRESSES = DdiAddresses("http://h:8080", "default", "dev 1")
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.sampled_from(Confirmation), st.none() | INT32, st.lists(TEXT, max_size=50))
def test_an_answer_is_read_as_it_was_written(confirmation: Confirmation, code: int | None, lines: list[str]) -> None:
    feedback = ConfirmationFeedback(confirmation, code, tuple(lines))
    body = pack_confirmation_feedback(feedback)
    assert parse_confirmation_feedback(body) == feedback
    assert parse_confirmation_feedback(pack_cbor(json.loads(body)), cbor=True) == feedback


@given(st.booleans(), st.none() | TEXT, st.none() | TEXT, st.none() | st.integers(0, 1 << 53))
def test_the_state_is_read_as_it_was_written(active: bool, who: str | None, why: str | None, at: int | None) -> None:
    state = AutoConfirm(active, who, why, at)
    assert parse_auto_confirm(pack_auto_confirm(state, ADDRESSES)) == state


def test_a_question_is_a_deployment_by_another_name() -> None:
    asked = Deployment(6, Handling.FORCED, Handling.ATTEMPT, ())
    body = pack_confirmation(asked)
    assert body == b'{"id":"6","confirmation":{"download":"forced","update":"attempt","chunks":[]}}'
    assert parse_confirmation(body) == asked
    with pytest.raises(MalformedMessage):
        parse_deployment(body)


def test_where_a_device_is_asked() -> None:
    base = "http://h:8080/default/controller/v1/dev%201/confirmationBase"
    assert ADDRESSES.confirmations == base
    assert ADDRESSES.confirmation_base(6, -5) == f"{base}/6?c=-5"
    assert ADDRESSES.confirmation_feedback(6) == f"{base}/6/feedback"
    assert ADDRESSES.activate_auto_confirm == f"{base}/activateAutoConfirm"
    assert ADDRESSES.deactivate_auto_confirm == f"{base}/deactivateAutoConfirm"
    assert action_id_of(ADDRESSES.confirmation_base(6, -5)) == 6


def test_links_with_the_largest_numbers_fit_49_characters() -> None:
    for link in (ADDRESSES.deployment_base(2**31 - 1, -(2**31)), ADDRESSES.cancel_action(2**31 - 1, -(2**31))):
        assert len(link.rpartition("/v1/")[2].partition("/")[2]) <= 49


def test_no_body_at_all_activates() -> None:
    assert parse_auto_confirm_request(b"").initiator is None
    with pytest.raises(InvalidInput):
        parse_auto_confirm_request(json.dumps({"initiator": "x" * 65}).encode())
    with pytest.raises(InvalidInput):
        parse_auto_confirm_request(json.dumps({"remark": "x" * 513}).encode())


def test_more_than_fifty_lines_are_too_many() -> None:
    with pytest.raises(TooManyEntries):
        parse_confirmation_feedback(json.dumps({"confirmation": "denied", "details": ["x"] * 51}).encode())


@pytest.mark.parametrize("body", ["{}", "[]", '{"name":"a"}', '{"name":1,"version":"1"}', '{"name":"","version":"1"}'])
def test_what_names_no_version_is_refused(body: str) -> None:
    with pytest.raises(InvalidInput):
        parse_installed_version(body.encode())
