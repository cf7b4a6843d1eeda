"""The bridge's rules, addresses of brokers, and the rules that a broker is given: what they say, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.errors import FlotaError, InvalidInput
from flota.protocols.aws_broker_rules import REQUESTS, emqx_acl, mosquitto_acl, request_filters
from flota.protocols.mqtt.bridge_rules import BridgeRules, parse_rule
from flota.protocols.mqtt.broker_url import BrokerUrl, parse_broker_url
from flota.protocols.mqtt.topics import matches

names = st.text(alphabet="abcXYZ019_-:", min_size=1, max_size=12)
rests = st.lists(st.text(alphabet="ab/", min_size=1, max_size=5), min_size=1, max_size=3).map("/".join)


def test_without_rules_a_thing_has_what_begins_with_its_name() -> None:
    rules = BridgeRules()
    assert rules.outgoing("meter-1", "meter-1/heat") == "meter-1/heat"
    assert rules.wanted("meter-1", "meter-1/#") == "meter-1/#"
    assert rules.incoming("meter-1/heat") == ["meter-1/heat"]
    for topic in ("meter-2/heat", "meter-10/heat", "meter-1", "meter-1/", "#", "+/heat"):
        assert rules.outgoing("meter-1", topic) is None
        assert rules.wanted("meter-1", topic) is None


def test_the_first_rule_that_fits_counts_and_directions_are_kept() -> None:
    rules = BridgeRules(
        [
            parse_rule("out:t/{thing}/=plant/{thing}/t/"),
            parse_rule("{thing}/=things/{thing}/"),
            parse_rule("in:news/"),
        ]
    )
    assert rules.outgoing("a", "t/a/x/y") == "plant/a/t/x/y"
    assert rules.wanted("a", "t/a/x") is None
    assert rules.wanted("a", "a/+/#") == "things/a/+/#"
    assert rules.outgoing("a", "news/x") is None
    assert rules.wanted("a", "news/#") == "news/#"
    assert rules.incoming("things/a/x") == ["a/x"]
    assert rules.incoming("plant/a/t/x") == []
    assert rules.incoming("news/x") == ["news/x"]


@given(names, rests)
def test_what_comes_back_has_the_name_that_it_went_out_with(thing: str, rest: str) -> None:
    rules = BridgeRules([parse_rule("dt/{thing}/=plant/{thing}/dt/")])
    there = rules.outgoing(thing, f"dt/{thing}/{rest}")
    assert there is not None
    assert rules.incoming(there) == [f"dt/{thing}/{rest}"]


@pytest.mark.parametrize(
    "text",
    ["", "{thing}", "a/#/", "$aws/{thing}/", "x{thing}/", "{thing}/{thing}/", "news/", "out:news/", "{thing}/=all/"],
)
def test_a_rule_that_lets_things_speak_for_others_or_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_rule(text)
    assert refused.value.hint


@given(st.text())
def test_any_text_is_a_rule_or_our_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except FlotaError:
        return
    assert rule.local.endswith("/")
    assert rule.goes_out or rule.comes_in


def test_a_brokers_address_says_who_connects_and_hides_the_password() -> None:
    url = parse_broker_url("mqtts://flota:p%40ss@broker.example?ca=/etc/ca.pem")
    assert url == BrokerUrl("mqtts", "broker.example", 8883, "flota", "p@ss", "/etc/ca.pem")
    assert "p@ss" not in f"{url} {url!r}"
    assert parse_broker_url("mqtt://[::1]:1884").port == 1884


@given(st.one_of(st.text(), st.text().map("mqtt://{}".format)))
def test_any_text_is_an_address_or_our_error(text: str) -> None:
    try:
        url = parse_broker_url(text)
    except FlotaError:
        return
    assert url.scheme in ("mqtt", "mqtts")
    assert url.host


def test_a_wrong_address_is_not_repeated_with_its_password() -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_broker_url("http://flota:secret@broker.example")
    assert "secret" not in f"{refused.value} {refused.value.found}"


@given(names, rests.filter(lambda rest: "/" not in rest))
def test_the_responder_hears_requests_and_never_what_it_answers(thing: str, job: str) -> None:
    base = f"$aws/things/{thing}/"

    def is_heard(topic: str) -> bool:
        return any(matches(one, base + topic) for one in request_filters())

    for request in REQUESTS:
        topic = request.replace("+", job)
        assert is_heard(topic)
        assert not is_heard(f"{topic}/accepted")
        assert not is_heard(f"{topic}/rejected")
    assert not any(is_heard(topic) for topic in ("jobs/notify", "jobs/notify-next", f"streams/{job}/data/cbor"))


def test_the_printed_rules_name_the_things_own_topics_only() -> None:
    for text, name in ((mosquitto_acl("flota"), "%u"), (emqx_acl("flota"), "${username}")):
        assert f"$aws/things/{name}/jobs/+/update" in text
        assert f"{name}/#" in text
        assert "readwrite $aws" not in text
    assert "%c/#" not in mosquitto_acl("flota", thing_is="client-id", own_topics=False)
    with pytest.raises(InvalidInput):
        mosquitto_acl("two words")
