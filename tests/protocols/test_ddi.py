"""DDI messages: what is packed is what is read, and nothing else gets through."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import TooLarge
from flota.protocols import ddi
from flota.protocols.ddi import (
    ActionHistory,
    AttributeMode,
    CancelAction,
    Chunk,
    ConfigData,
    Credentials,
    DdiAddresses,
    DdiArtifact,
    DdiProblem,
    Deployment,
    Feedback,
    FeedbackExecution,
    FeedbackFinished,
    Handling,
    InvalidAttributes,
    MaintenanceWindow,
    PollAnswer,
    Progress,
    TooManyEntries,
)
from flota.protocols.malformed import MalformedMessage

texts = st.text(st.characters(codec="utf-8"), max_size=40)
ids = st.integers(1, (1 << 31) - 1)
int32 = st.integers(-(1 << 31), (1 << 31) - 1)
links = st.none() | texts
artifacts = st.builds(
    DdiArtifact,
    filename=texts,
    size=st.integers(0, (1 << 63) - 1),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
    sha1=st.binary(min_size=20, max_size=20).map(bytes.hex),
    md5=st.binary(min_size=16, max_size=16).map(bytes.hex),
    download_http=links,
    md5sum_http=links,
    download=links,
    md5sum=links,
)
chunks = st.builds(
    Chunk,
    part=texts,
    name=texts,
    version=texts,
    artifacts=st.lists(artifacts, max_size=3).map(tuple),
    metadata=st.dictionaries(texts, texts, max_size=3),
)
deployments = st.builds(
    Deployment,
    action_id=ids,
    download=st.sampled_from(Handling),
    update=st.sampled_from(Handling),
    chunks=st.lists(chunks, max_size=3).map(tuple),
    maintenance_window=st.none() | st.sampled_from(MaintenanceWindow),
    history=st.none() | st.builds(ActionHistory, status=texts, messages=st.lists(texts, max_size=3).map(tuple)),
)
feedbacks = st.builds(
    Feedback,
    execution=st.sampled_from(FeedbackExecution),
    finished=st.sampled_from(FeedbackFinished),
    action_id=st.none() | ids,
    details=st.lists(texts, max_size=50).map(tuple),
    code=st.none() | int32,
    progress=st.none() | st.builds(Progress, done=st.integers(0, (1 << 31) - 1), of=st.integers(0, (1 << 31) - 1)),
    timestamp_ms=st.none() | st.integers(0, 1 << 53),
)
polls = st.builds(
    PollAnswer,
    sleep_s=st.integers(1, 86_399),
    deployment_base=links,
    cancel_action=links,
    confirmation_base=links,
    installed_base=links,
    config_data=links,
)
attribute_texts = st.text("ABCxyz019 _-!@#$%^&*()+=[]{}|;:'\",.<>/\\?", max_size=128)
configs = st.builds(
    ConfigData,
    data=st.dictionaries(
        attribute_texts.filter(lambda text: bool(text.strip())), st.none() | attribute_texts, min_size=1, max_size=5
    ),
    mode=st.sampled_from(AttributeMode),
)


@given(deployments)
def test_a_deployment_survives_the_wire(deployment: Deployment) -> None:
    assert ddi.parse_deployment(ddi.pack_deployment(deployment)) == deployment


@given(feedbacks)
def test_feedback_survives_the_wire(feedback: Feedback) -> None:
    assert ddi.parse_feedback(ddi.pack_feedback(feedback)) == feedback


@given(polls)
def test_a_poll_answer_survives_the_wire(poll: PollAnswer) -> None:
    assert ddi.parse_poll_answer(ddi.pack_poll_answer(poll)) == poll


@given(configs)
def test_config_data_survives_the_wire(config: ConfigData) -> None:
    assert ddi.parse_config_data(ddi.pack_config_data(config)) == config


@given(ids, ids)
def test_a_cancel_action_survives_the_wire(action: int, stop: int) -> None:
    assert ddi.parse_cancel_action(ddi.pack_cancel_action(CancelAction(action, stop))) == CancelAction(action, stop)


@given(
    texts.filter(bool), texts.filter(bool), st.none() | texts.filter(bool), st.dictionaries(texts, texts, max_size=3)
)
def test_a_problem_survives_the_wire(code: str, message: str, kind: str | None, info: dict[str, str]) -> None:
    problem = DdiProblem(code, message, kind, info)
    assert ddi.parse_problem(ddi.pack_problem(problem)) == problem


PARSERS = [
    ddi.parse_deployment,
    ddi.parse_feedback,
    ddi.parse_poll_answer,
    ddi.parse_config_data,
    ddi.parse_cancel_action,
    ddi.parse_problem,
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["id", "status", "execution", "result", "finished", "data", "mode", "deployment", "config"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
OURS = (MalformedMessage, TooLarge, InvalidAttributes, TooManyEntries)


@pytest.mark.parametrize("parse", PARSERS)
@given(body=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_value_or_our_error(parse: object, body: bytes) -> None:
    with contextlib.suppress(*OURS):
        parse(body)  # type: ignore[operator]


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"id":' * 20_000,
        b'{"a":"\\ud800"}',
        b'{"status":"\\ud800"}',
        b"{" + b" " * 300_000 + b"}",
        b"1" * 100_000,
    ],
)
def test_hostile_json_is_our_error_or_a_value(parse: object, body: bytes) -> None:
    with contextlib.suppress(*OURS):
        parse(body)  # type: ignore[operator]


@pytest.mark.parametrize("flip", range(0, 400, 7))
def test_a_truncated_deployment_is_our_error(flip: int) -> None:
    body = ddi.pack_deployment(
        Deployment(
            3,
            Handling.FORCED,
            Handling.FORCED,
            (Chunk("bApp", "n", "1", (DdiArtifact("f", 1, "a" * 64, "b" * 40, "c" * 32, "http://x", "http://y"),)),),
        )
    )
    with pytest.raises(MalformedMessage):
        ddi.parse_deployment(body[: min(flip, len(body) - 1)])


def test_unknown_members_are_ignored() -> None:
    body = b'{"new":1,"config":{"polling":{"sleep":"00:00:10","jitter":3},"x":[]},"_links":{"later":{"href":"x"}}}'
    assert ddi.parse_poll_answer(body) == PollAnswer(sleep_s=10)


def test_absent_and_empty_links_are_the_same() -> None:
    with_empty = b'{"config":{"polling":{"sleep":"00:00:10"}},"_links":{}}'
    assert ddi.parse_poll_answer(with_empty) == ddi.parse_poll_answer(with_empty.replace(b',"_links":{}', b""))


def test_the_members_stand_in_hawkbits_order() -> None:
    poll = PollAnswer(300, deployment_base="d", installed_base="i", config_data="c")
    assert ddi.pack_poll_answer(poll) == (
        b'{"config":{"polling":{"sleep":"00:05:00"}},"_links":{"deploymentBase":{"href":"d"},'
        b'"installedBase":{"href":"i"},"configData":{"href":"c"}}}'
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "00:00:01"), (0, "00:00:01"), (3661, "01:01:01"), (10**9, "23:59:59")]
)
def test_sleep_is_clamped_to_eight_characters(seconds: int, text: str) -> None:
    assert ddi.pack_sleep(seconds) == text


@pytest.mark.parametrize("text", ["PT5M", "5:00", "24:00:00", "00:60:00", "00:05:00 ", "00:05:0٣", "000:05:00"])
def test_another_form_of_sleep_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage):
        ddi.parse_sleep(text)


def test_numbers_may_come_as_strings() -> None:
    result = b'{"finished":"none","progress":{"cnt":"2","of":"5"}}'
    body = b'{"id":"7","status":{"execution":"proceeding","result":%b,"code":"-3"}}' % result
    feedback = ddi.parse_feedback(body)
    assert (feedback.action_id, feedback.progress, feedback.code) == (7, Progress(2, 5), -3)


@pytest.mark.parametrize("legacy", ['""', '"x"', "0", "-1", "true", "[]", "1.5", "99999999999", '"٣"'])
def test_a_legacy_id_that_is_none_counts_as_absent(legacy: str) -> None:
    body = f'{{"id":{legacy},"status":{{"execution":"closed","result":{{"finished":"success"}}}}}}'
    assert ddi.parse_feedback(body.encode()).action_id is None


def test_51_details_are_too_many() -> None:
    with pytest.raises(TooManyEntries):
        ddi.parse_feedback(
            ddi.pack_feedback(Feedback(FeedbackExecution.PROCEEDING, FeedbackFinished.NONE, details=("x",) * 51))
        )


# addresses

HOME = DdiAddresses("https://h:8443", "default", "dev 1/ü")


def test_links_of_actions_keep_the_tenant_and_downloads_have_it_upper_case() -> None:
    assert HOME.base == "https://h:8443/default/controller/v1/dev%201%2F%C3%BC"
    assert HOME.artifact(3, "a b.bin").startswith("https://h:8443/DEFAULT/controller/v1/")
    assert HOME.artifact(3, "a b/../ü.bin").endswith("/softwaremodules/3/artifacts/a%20b%2F..%2F%C3%BC.bin")
    assert HOME.artifact_md5sum(3, "f").endswith("/artifacts/f.MD5SUM")


@given(ids, int32)
def test_an_action_id_is_read_back_from_every_link(action: int, change: int) -> None:
    for link in (HOME.deployment_base(action, change), HOME.cancel_action(action, change), HOME.installed_base(action)):
        assert ddi.action_id_of(link) == action
    assert len(HOME.deployment_base(action, change).partition("/deploymentBase/")[2]) + len("deploymentBase/") <= 49


def test_a_message_that_is_not_utf8_says_where_in_our_own_words() -> None:
    body = b'{"id":"1","status":{"execution":"closed","details":["caf\xe9"],"result":{"finished":"success"}}}'
    with pytest.raises(MalformedMessage) as caught:
        ddi.parse_feedback(body)
    assert (caught.value.offset, caught.value.found) == (body.index(b"\xe9"), "byte 0xe9")
    assert "codec" not in str(caught.value)


@given(st.text())
def test_any_text_is_an_action_id_or_our_error(text: str) -> None:
    for parse in (ddi.parse_action_id, ddi.action_id_of):
        with contextlib.suppress(MalformedMessage):
            assert 1 <= parse(text) <= ddi.ACTION_ID_MAX


@pytest.mark.parametrize("text", ["0", "-1", "2147483648", "٣", "1 ", "0x1", ""])
def test_an_action_id_is_a_positive_int32(text: str) -> None:
    with pytest.raises(MalformedMessage):
        ddi.parse_action_id(text)


def test_the_scheme_is_case_sensitive_and_followed_by_one_blank() -> None:
    assert ddi.parse_authorization(ddi.pack_authorization("t")) == Credentials("TargetToken", "t")
    assert ddi.parse_authorization("GatewayToken t") == Credentials("GatewayToken", "t")
    for header in (None, "", "TargetToken", "TargetToken ", "TargetToken  t", "targettoken t", "Basic dDp0"):
        assert ddi.parse_authorization(header) is None


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Credentials("TargetToken", "secret"))


# attributes


def test_a_hundred_attributes_are_the_limit_and_nothing_changes_above_it() -> None:
    known = {str(number): "v" for number in range(100)}
    assert len(ddi.merged_attributes(known, ConfigData({"1": "w"}))) == 100
    with pytest.raises(TooManyEntries):
        ddi.merged_attributes(known, ConfigData({"new": "w"}))
    assert ddi.merged_attributes(known, ConfigData({"new": "w", "1": None}))["new"] == "w"


def test_null_removes_in_merge_and_in_replace() -> None:
    assert ddi.merged_attributes({"a": "1", "b": "2"}, ConfigData({"a": None})) == {"b": "2"}
    assert ddi.merged_attributes({"a": "1"}, ConfigData({"a": None, "b": "2"}, AttributeMode.REPLACE)) == {"b": "2"}
    assert ddi.merged_attributes({"a": "1", "b": "2"}, ConfigData({"a": "x"}, AttributeMode.REMOVE)) == {"b": "2"}
