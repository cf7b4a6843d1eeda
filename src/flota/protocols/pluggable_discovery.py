"""Arduino's pluggable discovery: the dialogue by which the IDE and arduino-cli ask a tool for boards. No IO.

One command a line comes in, JSON objects go out. Source: docs/reference/arduino-discovery.md;
arduino/arduino-cli:docs/pluggable-discovery-specification.md.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PROTOCOL_VERSION: Final = 1
LINE_MAX_CHARS: Final = 1024

_HELLO = re.compile(r'HELLO\s+(\d{1,9})\s+"([^"]*)"\s*\Z')

Message = dict[str, object]
Port = Mapping[str, object]


class _Mode(enum.Enum):
    NEW = "new"
    IDLE = "idle"
    STARTED = "started"
    SYNCING = "syncing"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class _Step:
    """What a command does in a mode: the mode after it, or what to complain about."""

    to: _Mode | None = None
    error: str | None = None


_STEPS: Final[Mapping[str, Mapping[_Mode, _Step]]] = {
    "START": {
        _Mode.IDLE: _Step(_Mode.STARTED),
        _Mode.STARTED: _Step(error="Discovery already STARTed"),
        _Mode.SYNCING: _Step(error="Discovery already START_SYNCed, cannot START"),
    },
    "LIST": {
        _Mode.IDLE: _Step(error="Discovery not STARTed"),
        _Mode.STARTED: _Step(_Mode.STARTED),
        _Mode.SYNCING: _Step(error="discovery already START_SYNCed, LIST not allowed"),
    },
    "START_SYNC": {
        _Mode.IDLE: _Step(_Mode.SYNCING),
        _Mode.STARTED: _Step(error="Discovery already STARTed, cannot START_SYNC"),
        _Mode.SYNCING: _Step(error="Discovery already START_SYNCed"),
    },
    "STOP": {
        _Mode.IDLE: _Step(error="Discovery already STOPped"),
        _Mode.STARTED: _Step(_Mode.IDLE),
        _Mode.SYNCING: _Step(_Mode.IDLE),
    },
}


class PluggableDiscovery:
    """The tool's side of one dialogue; `add` and `remove` keep it up to date about boards."""

    def __init__(self) -> None:
        self._mode = _Mode.NEW
        self._ports: dict[str, Port] = {}

    @property
    def listens(self) -> bool:
        """Whether boards are wanted now."""
        return self._mode in {_Mode.STARTED, _Mode.SYNCING}

    @property
    def ended(self) -> bool:
        """Whether the dialogue is over."""
        return self._mode is _Mode.ENDED

    def command(self, line: str) -> list[Message]:
        """Return the answers to one line; whatever the line is, there is an answer."""
        text = line.strip()[:LINE_MAX_CHARS]
        word = text.split(maxsplit=1)[0].upper() if text else ""
        if self.ended:
            return [_error("command_error", "the dialogue is over")]
        if word == "QUIT" and text.upper() == "QUIT":
            self._mode = _Mode.ENDED
            return [_ok("quit")]
        if word == "HELLO":
            return [self._hello(text)]
        if word not in _STEPS or text.upper() != word:
            return [_error("command_error", f"Command {word[:40] or '(empty)'} not supported")]
        if self._mode is _Mode.NEW:
            return [_error("command_error", f"First command must be HELLO, but got '{word}'")]
        step = _STEPS[word][self._mode]
        if step.error is not None or step.to is None:
            return [_error(word.lower(), step.error or "")]
        self._mode = step.to
        if word == "LIST":
            return [{"eventType": "list", "ports": [dict(port) for port in self._ports.values()]}]
        answers = [_ok(word.lower())]
        if word == "START_SYNC":
            answers += [{"eventType": "add", "port": dict(port)} for port in self._ports.values()]
        return answers

    def add(self, port: Port) -> list[Message]:
        """Note a board; returns what to tell now."""
        address = str(port["address"])
        known = self._ports.get(address)
        self._ports[address] = port
        if self._mode is not _Mode.SYNCING or known == port:
            return []
        return [{"eventType": "add", "port": dict(port)}]

    def remove(self, address: str) -> list[Message]:
        """Forget a board; returns what to tell now."""
        port = self._ports.pop(address, None)
        if port is None or self._mode is not _Mode.SYNCING:
            return []
        return [{"eventType": "remove", "port": {"address": address, "protocol": port["protocol"]}}]

    def _hello(self, text: str) -> Message:
        if self._mode is not _Mode.NEW:
            return _error("hello", "HELLO already called")
        if _HELLO.match(text) is None:
            return _error("hello", "Invalid HELLO command")
        self._mode = _Mode.IDLE
        return {"eventType": "hello", "message": "OK", "protocolVersion": PROTOCOL_VERSION}


def _ok(event: str) -> Message:
    return {"eventType": event, "message": "OK"}


def _error(event: str, message: str) -> Message:
    return {"eventType": event, "message": message, "error": True}
