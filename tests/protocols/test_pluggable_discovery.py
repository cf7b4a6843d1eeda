"""Arduino's pluggable discovery: every command in every state has an answer, and boards are told as they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flota.protocols.pluggable_discovery import PluggableDiscovery

HELLO = 'HELLO 1 "arduino-cli 1.2"'
PORT = {"address": "10.0.0.7", "protocol": "network"}


def after(*commands: str) -> PluggableDiscovery:
    discovery = PluggableDiscovery()
    for command in commands:
        discovery.command(command)
    return discovery


def test_a_listing() -> None:
    discovery = PluggableDiscovery()
    assert discovery.command(HELLO) == [{"eventType": "hello", "message": "OK", "protocolVersion": 1}]
    assert discovery.command("START") == [{"eventType": "start", "message": "OK"}]
    assert discovery.listens
    assert discovery.add(PORT) == []
    assert discovery.command("LIST") == [{"eventType": "list", "ports": [PORT]}]
    assert discovery.command("STOP") == [{"eventType": "stop", "message": "OK"}]
    assert discovery.command("QUIT") == [{"eventType": "quit", "message": "OK"}]
    assert discovery.ended


def test_events_while_syncing() -> None:
    discovery = after(HELLO)
    discovery.add(PORT)
    assert discovery.command("START_SYNC") == [
        {"eventType": "start_sync", "message": "OK"},
        {"eventType": "add", "port": PORT},
    ]
    assert discovery.add(PORT) == []
    other = {"address": "10.0.0.8", "protocol": "network"}
    assert discovery.add(other) == [{"eventType": "add", "port": other}]
    assert discovery.remove("10.0.0.8") == [
        {"eventType": "remove", "port": {"address": "10.0.0.8", "protocol": "network"}}
    ]
    assert discovery.remove("10.0.0.8") == []


@pytest.mark.parametrize(
    ("before", "command"),
    [
        ((), "START"),
        ((), "LIST"),
        ((), "HELLO"),
        ((), "HELLO one"),
        ((HELLO,), HELLO),
        ((HELLO,), "LIST"),
        ((HELLO,), "STOP"),
        ((HELLO, "START"), "START"),
        ((HELLO, "START"), "START_SYNC"),
        ((HELLO, "START_SYNC"), "LIST"),
        ((HELLO, "START_SYNC"), "START"),
        ((HELLO, "START_SYNC"), "START_SYNC"),
        ((HELLO,), "DANCE"),
        ((HELLO,), ""),
        ((HELLO,), "LIST all"),
    ],
)
def test_a_command_out_of_turn_is_an_error(before: tuple[str, ...], command: str) -> None:
    answers = after(*before).command(command)
    assert len(answers) == 1
    assert answers[0]["error"] is True


@given(st.lists(st.sampled_from([HELLO, "START", "LIST", "STOP", "START_SYNC", "QUIT"]) | st.text(max_size=50)))
def test_whatever_is_said_there_is_an_answer(commands: list[str]) -> None:
    discovery = PluggableDiscovery()
    for command in commands:
        assert all("eventType" in answer for answer in discovery.command(command))
