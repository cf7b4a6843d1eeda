"""What is heard after a push, and what it proves: every row of the table in the reference."""

from __future__ import annotations

import pytest

from flota.gateway.driver import Sighting, SightingBasis
from flota.gateway.sign_of_life import Wait

ANNOUNCED, POSTED, TOLD = SightingBasis.ANNOUNCEMENT, SightingBasis.STATE_POST, SightingBasis.CHECK_IN
WAIT = Wait("2.0.0", since=100.0, restart_s=10.0)


def heard(basis: SightingBasis, at: float | None, version: str | None = None, said_at: float | None = None) -> Sighting:
    return Sighting("10.0.0.1", 8082, basis, at, version, said_at)


@pytest.mark.parametrize(
    "sighting",
    [
        pytest.param(None, id="not to be seen"),
        pytest.param(heard(SightingBasis.FIXED_ADDRESS, None), id="only configured to be there"),
        pytest.param(heard(ANNOUNCED, 99.9), id="heard before the close"),
        pytest.param(heard(ANNOUNCED, 100.0), id="heard at the close"),
        pytest.param(heard(TOLD, 99.0, "2.0.0", 99.0), id="told the version before the close"),
        pytest.param(heard(TOLD, 105.0, "1.0.0", 105.0), id="the old app, not restarted yet"),
        pytest.param(heard(ANNOUNCED, 105.0, "1.0.0", 50.0), id="it tells versions, and has not yet"),
    ],
)
def test_what_proves_nothing_is_waited_on(sighting: Sighting | None) -> None:
    assert WAIT.judge(sighting) is None


@pytest.mark.parametrize(
    ("sighting", "is_last", "success", "basis", "says"),
    [
        (heard(ANNOUNCED, 108.3), False, True, "announcement", "announced itself 8.3 s after it closed"),
        (heard(POSTED, 103.0), False, True, "state-post", "posted its state 3.0 s after it closed"),
        (heard(TOLD, 101.0, "2.0.0", 101.0), False, True, "check-in", "reports version 2.0.0 after the push"),
        (heard(ANNOUNCED, 130.0, "2.0.0", 101.0), False, True, "check-in", "reports version 2.0.0"),
        (heard(TOLD, 111.0, "1.0.0", 111.0), False, False, "check-in", "reports version 1.0.0 after the push of 2.0.0"),
        (heard(TOLD, 105.0, "1.0.0", 105.0), True, False, "check-in", "reports version 1.0.0"),
        (heard(ANNOUNCED, 105.0, "1.0.0", 50.0), True, True, "announcement", "announced itself"),
    ],
)
def test_what_proves_something_says_what_and_how(
    sighting: Sighting, is_last: bool, success: bool, basis: str, says: str
) -> None:
    finding = WAIT.judge(sighting, is_last=is_last)
    assert finding is not None
    assert (finding.success, finding.basis) == (success, basis)
    assert says in finding.reason
    assert finding.reason.startswith("the board at 10.0.0.1 ")


@pytest.mark.parametrize("sighting", [None, heard(ANNOUNCED, 100.0), heard(TOLD, 99.0, "2.0.0", 99.0)])
def test_at_the_end_silence_is_still_silence(sighting: Sighting | None) -> None:
    assert WAIT.judge(sighting, is_last=True) is None


def test_after_a_restart_of_the_gateway_the_reason_says_so() -> None:
    finding = Wait("2.0.0", since=100.0, restart_s=10.0, after_restart=True).judge(heard(ANNOUNCED, 101.0))
    assert finding is not None
    assert finding.reason == "the board at 10.0.0.1 announced itself after the gateway's restart"
