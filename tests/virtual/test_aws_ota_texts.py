"""The OTA agent's small parts: its table, the texts that it sends, the jobs that it reads."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.aws_jobs import JobsOperation, parse_jobs_request
from flota.protocols.aws_ota import DataProtocol
from flota.virtual.agents.aws_ota import status
from flota.virtual.agents.aws_ota.ab_pal import version_of
from flota.virtual.agents.aws_ota.job_document import JobNotTaken, ParseFailure, parse_job, strtoul
from flota.virtual.agents.aws_ota.states import FROM_ANY_STATE, TRANSITIONS, AgentEvent, AgentState, transition
from tests.virtual.aws_ota_bench import JOB, NOTHING, STREAM, image, job, signed

NEW = image("1.0.1")
PASSED_THROUGH = {AgentState.INIT, AgentState.CLOSING_FILE, AgentState.SHUTTING_DOWN}
"""States that the C agent names and that no transition leads to."""


def test_every_state_but_the_passing_ones_is_reached_and_every_event_is_used() -> None:
    reached = {found.next_state for found in (*TRANSITIONS.values(), *FROM_ANY_STATE.values())}
    assert reached | PASSED_THROUGH | {AgentState.READY} == set(AgentState)
    assert {event for _, event in TRANSITIONS} | FROM_ANY_STATE.keys() == set(AgentEvent)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(AgentState, AgentEvent)))
def test_an_event_without_a_row_is_dropped_and_the_three_of_any_state_never_are(
    state: AgentState, event: AgentEvent
) -> None:
    found = transition(state, event)
    assert (found is None) == ((state, event) not in TRANSITIONS and event not in FROM_ANY_STATE)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535))
def test_versions_are_words_that_read_back(major: int, minor: int, build: int) -> None:
    word = status.version_word(f"{major}.{minor}.{build}")
    assert word == major << 24 | minor << 16 | build
    assert status.dotted(word) == f"{major}.{minor}.{build}"


@pytest.mark.parametrize(
    ("text", "word"),
    [("1.2", 0x01020000), ("v1.2.3-rc1", 0x01020003), ("unknown", 0), ("", 0), ("256.0.0", 0), ("1.0.65536", 0)],
)
def test_other_versions_count_as_their_beginning_or_as_nothing(text: str, word: int) -> None:
    assert status.version_word(text) == word


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_whatever_is_reported_is_a_request_that_the_server_reads(first: int, second: int) -> None:
    for payload in (
        status.receiving(first, second),
        status.self_test(status.SelfTestPhase.READY, first),
        status.accepted(first, second),
        status.not_accepted(status.FailureWord.ABORTED, first),
        status.failed_with(first, second),
    ):
        request = parse_jobs_request(payload, JobsOperation.UPDATE)
        assert request.details
        assert request.status is not None


@pytest.mark.parametrize(
    ("text", "number"),
    [("10", 10), ("0x10", 16), ("0X1f", 31), ("010", 8), ("0", 0), (" 7", 7), ("08", None), ("7x", None), ("", None)],
)
def test_numbers_in_quotes_are_read_as_c_reads_them(text: str, number: int | None) -> None:
    assert strtoul(text) == number


def test_a_job_is_read_with_everything_in_it() -> None:
    details = {"self_test": "whatever", "updatedBy": "0x01000000"}
    taken = parse_job(job(NEW, details=details, protocols=["HTTP", "MQTT", "SMOKE"], filesize="0x10", attr="3"))
    assert (taken.job_id, taken.stream, taken.protocols) == (JOB, STREAM, frozenset(DataProtocol))
    assert (taken.in_self_test, taken.updated_by, taken.file.size) == (True, 0x01000000, 16)
    assert taken.file.certificate_path == "Code_Verify_Key"
    assert 68 <= len(taken.file.signature) <= 72


@pytest.mark.parametrize(
    ("payload", "failure"),
    [
        (NOTHING, ParseFailure.NO_ACTIVE_JOBS),
        (b"\xff", ParseFailure.NO_ACTIVE_JOBS),
        (b'{"execution":{"jobId":"x"}}', ParseFailure.NO_ACTIVE_JOBS),
        (job(NEW, filesize=0), ParseFailure.ZERO_FILE_SIZE),
        (job(NEW, filesize=None), ParseFailure.NON_CONFORMING),
        (job(NEW, filesize=-1), ParseFailure.NON_CONFORMING),
        (job(NEW, fileid="five"), ParseFailure.NON_CONFORMING),
        (job(NEW, filepath="p" * 261), ParseFailure.NON_CONFORMING),
        (job(NEW, certfile="c" * 261), ParseFailure.NON_CONFORMING),
        (job(NEW, update_data_url="https://h/" + "u" * 1500), ParseFailure.NON_CONFORMING),
        (job(NEW, **{"sig-sha256-ecdsa": "?"}), ParseFailure.NON_CONFORMING),
        (job(NEW, **{"sig-sha256-ecdsa": "A" * 516}), ParseFailure.NON_CONFORMING),
        (job(NEW, job_id="j" * 73), ParseFailure.NON_CONFORMING),
        (job(NEW, details={"self_test": "ready", "updatedBy": "soon"}), ParseFailure.NON_CONFORMING),
    ],
)
def test_what_is_no_job_for_it_is_refused_with_the_c_agents_number(payload: bytes, failure: ParseFailure) -> None:
    with pytest.raises(JobNotTaken) as refused:
        parse_job(payload)
    assert refused.value.failure is failure


@given(st.binary(max_size=60) | st.recursive(st.none() | st.text(max_size=5), st.lists).map(json.dumps).map(str.encode))
def test_any_message_is_a_job_or_is_refused(payload: bytes) -> None:
    with pytest.raises(JobNotTaken):
        parse_job(payload)


@pytest.mark.parametrize(
    ("content", "path", "version"),
    [
        (image("1.2.3"), "other_V9.9.9.bin", "1.2.3"),
        (b"plain", "pump_V1.0.1.bin", "1.0.1"),
        (b"plain", "pump_v1.0.1", "1.0.1"),
        (b"plain", "pump.bin", ""),
        (b"", "", ""),
    ],
)
def test_an_images_version_is_its_own_or_that_of_the_path(content: bytes, path: str, version: str) -> None:
    assert version_of(content, path) == version


def test_signatures_differ_and_hold() -> None:
    assert signed(NEW) != signed(NEW)
