"""The index of subscriptions finds what looking at every filter would find."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.mqtt.session import MqttSession
from flota.protocols.mqtt.subscriptions import SubscriptionIndex
from flota.protocols.mqtt.topics import matches

LEVELS = st.sampled_from(["a", "b", "", "$x"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join)
WILD = st.lists(st.sampled_from(["a", "b", "", "$x", "+"]), min_size=1, max_size=4)
FILTERS = st.one_of(WILD.map("/".join), WILD.map(lambda levels: "/".join([*levels, "#"])), st.just("#"))
GRANTS = st.lists(st.tuples(st.integers(0, 3), FILTERS, st.integers(0, 1)), max_size=12)


@given(GRANTS, st.lists(st.integers(0, 11), max_size=6), TOPICS, st.booleans())
def test_it_finds_every_session_once_with_its_highest_qos(
    grants: list[tuple[int, str, int]], removed: list[int], topic: str, parent_too: bool
) -> None:
    sessions = [MqttSession(str(number)) for number in range(4)]
    index = SubscriptionIndex(parent_too=parent_too)
    for number, topic_filter, qos in grants:
        index.add(topic_filter, sessions[number], qos)
        sessions[number].subscriptions[topic_filter] = qos
    for position in removed:
        if position < len(grants):
            number, topic_filter, _ = grants[position]
            index.remove(topic_filter, sessions[number])
            sessions[number].subscriptions.pop(topic_filter, None)
    expected = {}
    for session in sessions:
        found = [qos for text, qos in session.subscriptions.items() if matches(text, topic, parent_too=parent_too)]
        if found:
            expected[session] = max(found)
    assert dict(index.find(topic)) == expected


@given(GRANTS)
def test_nothing_is_left_of_removed_filters(grants: list[tuple[int, str, int]]) -> None:
    session = MqttSession("one")
    index = SubscriptionIndex()
    for _, topic_filter, qos in grants:
        index.add(topic_filter, session, qos)
    for _, topic_filter, _ in grants:
        index.remove(topic_filter, session)
        index.remove(topic_filter, session)
    assert not index._exact
    assert not index._root.below


def test_aws_and_the_standard_differ_about_the_parent() -> None:
    session = MqttSession("one")
    for parent_too in (False, True):
        index = SubscriptionIndex(parent_too=parent_too)
        index.add("sensor/#", session, 0)
        assert (session in index.find("sensor")) is parent_too
        assert session in index.find("sensor/1")


def test_wildcards_in_front_reach_no_reserved_topic() -> None:
    session = MqttSession("one")
    index = SubscriptionIndex()
    for topic_filter in ("#", "+/things/#"):
        index.add(topic_filter, session, 0)
    assert not index.find("$aws/things/a/jobs/notify")
    assert index.find("x/things/a")
