"""AWS IoT Jobs: topics told apart, requests within their rules, answers as documentation and C agent have them."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.aws_jobs import (
    DeviceStatus,
    ExecutionMessage,
    ExecutionStateMessage,
    JobsOperation,
    JobsRejected,
    JobsRejection,
    JobsRequest,
    JobsTopic,
    notify_next_topic,
    notify_topic,
    pack_execution,
    pack_jobs_request,
    pack_notify,
    pack_notify_next,
    pack_pending,
    pack_rejected,
    pack_updated,
    parse_answer,
    parse_jobs_request,
    parse_jobs_topic,
)
from flota.protocols.malformed import MalformedMessage

BASE = "$aws/things/pump:1/jobs"
UPDATE = JobsOperation.UPDATE


@pytest.mark.parametrize(
    ("topic", "operation", "job_id"),
    [
        (f"{BASE}/get", JobsOperation.GET_PENDING, None),
        (f"{BASE}/start-next", JobsOperation.START_NEXT, None),
        (f"{BASE}/$next/get", JobsOperation.DESCRIBE, "$next"),
        (f"{BASE}/AFR_OTA-1/get", JobsOperation.DESCRIBE, "AFR_OTA-1"),
        (f"{BASE}/get/get", JobsOperation.DESCRIBE, "get"),
        (f"{BASE}/AFR_OTA-1/update", UPDATE, "AFR_OTA-1"),
    ],
)
def test_requests_are_told_apart_by_their_topics(topic: str, operation: JobsOperation, job_id: str | None) -> None:
    parsed = parse_jobs_topic(topic)
    assert parsed == JobsTopic("pump:1", operation, job_id)
    assert parsed is not None
    assert parsed.text == topic
    assert (parsed.accepted, parsed.rejected) == (f"{topic}/accepted", f"{topic}/rejected")


@pytest.mark.parametrize(
    "topic",
    [
        f"{BASE}",
        f"{BASE}/",
        f"{BASE}/notify",
        f"{BASE}/notify-next",
        f"{BASE}/get/accepted",
        f"{BASE}/a/get/accepted",
        f"{BASE}/$next/update",
        f"{BASE}/$other/get",
        f"{BASE}/{'x' * 65}/get",
        "$aws/things/a b/jobs/get",
        f"$aws/things/{'x' * 129}/jobs/get",
        "$aws/things//jobs/get",
        "$aws/things/x/shadow/get",
        "things/x/jobs/get",
        "",
    ],
)
def test_other_topics_are_no_requests(topic: str) -> None:
    assert parse_jobs_topic(topic) is None


details = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9:_-]{1,20}", fullmatch=True),
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=30),
    max_size=5,
)
tokens = st.none() | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=64)
updates = st.builds(
    JobsRequest,
    tokens,
    st.sampled_from(DeviceStatus),
    st.none() | details,
    st.none() | st.integers(0, 1 << 40),
    st.none() | st.integers(0, 1 << 40),
    st.none() | st.booleans(),
    st.booleans(),
    st.none() | st.just(-1) | st.integers(1, 10080),
)


@given(updates)
def test_an_update_is_read_as_it_was_written(request: JobsRequest) -> None:
    assert parse_jobs_request(pack_jobs_request(request), UPDATE) == request


def test_an_empty_payload_is_an_empty_request_and_unknown_members_are_ignored() -> None:
    assert parse_jobs_request(b"", JobsOperation.GET_PENDING) == JobsRequest()
    assert parse_jobs_request(b'{"clientToken":"0:t1","x":[1]}', JobsOperation.DESCRIBE) == JobsRequest("0:t1")
    assert parse_jobs_request(b'{"statusDetails":7}', JobsOperation.DESCRIBE) == JobsRequest()


def test_numbers_may_come_in_quotes() -> None:
    request = parse_jobs_request(b'{"status":"FAILED","expectedVersion":"3","executionNumber":"12"}', UPDATE)
    assert (request.expected_version, request.number) == (3, 12)


@pytest.mark.parametrize(
    ("members", "code"),
    [
        pytest.param({}, JobsRejection.INVALID_REQUEST, id="no status"),
        pytest.param({"status": "QUEUED"}, JobsRejection.INVALID_REQUEST, id="a status of the server"),
        pytest.param({"status": ["FAILED"]}, JobsRejection.INVALID_REQUEST, id="a status that is no text"),
        pytest.param({"status": "FAILED", "statusDetails": []}, JobsRejection.INVALID_REQUEST, id="details as list"),
        pytest.param({"status": "FAILED", "statusDetails": {"a": 1}}, JobsRejection.INVALID_REQUEST, id="a number"),
        pytest.param({"status": "FAILED", "statusDetails": {"a": ""}}, JobsRejection.INVALID_REQUEST, id="empty value"),
        pytest.param({"status": "FAILED", "statusDetails": {"a b": "x"}}, JobsRejection.INVALID_REQUEST, id="name"),
        pytest.param({"status": "FAILED", "statusDetails": {"a": "\n"}}, JobsRejection.INVALID_REQUEST, id="control"),
        pytest.param(
            {"status": "FAILED", "statusDetails": {str(n): "x" for n in range(21)}},
            JobsRejection.INVALID_REQUEST,
            id="21 details",
        ),
        pytest.param({"status": "FAILED", "expectedVersion": "x"}, JobsRejection.INVALID_REQUEST, id="version"),
        pytest.param({"status": "FAILED", "expectedVersion": -1}, JobsRejection.INVALID_REQUEST, id="version below 0"),
        pytest.param({"status": "FAILED", "stepTimeoutInMinutes": 0}, JobsRejection.INVALID_REQUEST, id="0 minutes"),
        pytest.param({"status": "FAILED", "stepTimeoutInMinutes": 10081}, JobsRejection.INVALID_REQUEST, id="10081"),
        pytest.param({"status": "FAILED", "stepTimeoutInMinutes": True}, JobsRejection.INVALID_REQUEST, id="true"),
        pytest.param({"status": "FAILED", "includeJobDocument": 1}, JobsRejection.INVALID_REQUEST, id="a flag as 1"),
        pytest.param({"status": "FAILED", "clientToken": "x" * 65}, JobsRejection.INVALID_REQUEST, id="token"),
    ],
)
def test_each_bad_update_is_rejected(members: dict[str, object], code: JobsRejection) -> None:
    with pytest.raises(JobsRejected) as caught:
        parse_jobs_request(json.dumps(members).encode(), UPDATE)
    assert caught.value.rejection is code


@pytest.mark.parametrize("payload", [b"{", b"[]", b"\xff", b"1", b"[" * 30_000])
def test_what_is_no_json_object_is_rejected_as_that(payload: bytes) -> None:
    with pytest.raises(JobsRejected) as caught:
        parse_jobs_request(payload, UPDATE)
    assert caught.value.rejection is JobsRejection.INVALID_JSON
    with pytest.raises(MalformedMessage):
        parse_answer(payload)


@given(st.binary(max_size=300), st.sampled_from(JobsOperation), st.text(max_size=80))
def test_any_bytes_are_a_request_or_a_rejection(payload: bytes, operation: JobsOperation, topic: str) -> None:
    with contextlib.suppress(JobsRejected):
        parse_jobs_request(payload, operation)
    parse_jobs_topic(topic)
    parse_jobs_topic("$aws/things/" + topic)


EXECUTION = ExecutionMessage(
    "AFR_OTA-1", "pump:1", "IN_PROGRESS", 100, 120, 2, 1, 110, {"self_test": "ready"}, {"afr_ota": {}}, 99
)
QUEUED = ExecutionMessage("b", "pump:1", "QUEUED", 105, 105, 1, 1)


def test_answers_have_the_documented_members() -> None:
    assert json.loads(pack_execution(EXECUTION, token="t", timestamp=130)) == {
        "clientToken": "t",
        "timestamp": 130,
        "execution": {
            "jobId": "AFR_OTA-1",
            "thingName": "pump:1",
            "status": "IN_PROGRESS",
            "statusDetails": {"self_test": "ready"},
            "queuedAt": 100,
            "startedAt": 110,
            "lastUpdatedAt": 120,
            "versionNumber": 2,
            "executionNumber": 1,
            "jobDocument": {"afr_ota": {}},
            "approximateSecondsBeforeTimedOut": 99,
        },
    }
    assert pack_execution(None, token="0:t1", timestamp=5) == b'{"clientToken":"0:t1","timestamp":5}'
    pending = json.loads(pack_pending([EXECUTION], [QUEUED], token=None, timestamp=5))
    assert [job["jobId"] for job in pending["inProgressJobs"]] == ["AFR_OTA-1"]
    assert pending["queuedJobs"][0] == {
        "jobId": "b",
        "queuedAt": 105,
        "lastUpdatedAt": 105,
        "versionNumber": 1,
        "executionNumber": 1,
    }
    assert "clientToken" not in pending


def test_empty_details_are_left_out() -> None:
    assert "statusDetails" not in QUEUED.members()
    assert ExecutionStateMessage("QUEUED", 1).members() == {"status": "QUEUED", "versionNumber": 1}


def test_updates_are_answered_with_what_was_asked_for() -> None:
    assert json.loads(pack_updated(token="t", timestamp=5)) == {"timestamp": 5, "clientToken": "t"}
    full = json.loads(pack_updated(token=None, timestamp=5, state=EXECUTION.state, document={"x": 1}))
    assert full["executionState"]["versionNumber"] == 2
    assert full["jobDocument"] == {"x": 1}


def test_a_rejection_carries_the_state_where_it_helps() -> None:
    rejected = JobsRejected(JobsRejection.VERSION_MISMATCH, "it has moved on", token="t", state=QUEUED.state)
    assert json.loads(pack_rejected(rejected, timestamp=9)) == {
        "code": "VersionMismatch",
        "message": "it has moved on",
        "clientToken": "t",
        "timestamp": 9,
        "executionState": {"status": "QUEUED", "versionNumber": 1},
    }


def test_notifications() -> None:
    assert pack_notify([], [], timestamp=5) == b'{"timestamp":5,"jobs":{}}'
    told = json.loads(pack_notify([EXECUTION], [QUEUED] * 20, timestamp=5))["jobs"]
    assert (len(told["IN_PROGRESS"]), len(told["QUEUED"])) == (1, 9)
    assert pack_notify_next(None, timestamp=5) == b'{"timestamp":5}'
    assert json.loads(pack_notify_next(EXECUTION, timestamp=5))["execution"]["jobId"] == "AFR_OTA-1"
    assert notify_topic("x") == "$aws/things/x/jobs/notify"
    assert notify_next_topic("x") == "$aws/things/x/jobs/notify-next"
