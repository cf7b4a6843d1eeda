"""The poll answer (controller base): when to come back, and links to what there is to do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from flota.protocols.ddi.reading import decode
from flota.protocols.malformed import MalformedMessage

SLEEP_MAX_S: Final = 24 * 3600 - 1
"""23:59:59: clients read `HH:MM:SS`, old Zephyr insists on 8 characters."""

SLEEP_MIN_S: Final = 1
"""SWUpdate reads 00:00:00 as its own default of 45 s, Zephyr ignores it."""

_SLEEP = re.compile(r"([0-9]{2}):([0-5][0-9]):([0-5][0-9])\Z")


def pack_sleep(seconds: int) -> str:
    """Return `HH:MM:SS`, clamped to 1 s … 23:59:59."""
    clamped = min(max(seconds, SLEEP_MIN_S), SLEEP_MAX_S)
    return f"{clamped // 3600:02}:{clamped // 60 % 60:02}:{clamped % 60:02}"


def parse_sleep(text: str) -> int:
    """Return the seconds in `HH:MM:SS`. Raises `MalformedMessage`."""
    match = _SLEEP.match(text)
    if match is None or int(match.group(1)) > 23:
        raise MalformedMessage("not a polling time", expected="HH:MM:SS", found=repr(text[:40]))
    hours, minutes, seconds = (int(part) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


@dataclass(frozen=True, slots=True)
class PollAnswer:
    """When to poll again (seconds), and absolute links; at most one of deployment, cancel and confirmation is there."""

    sleep_s: int
    deployment_base: str | None = None
    cancel_action: str | None = None
    confirmation_base: str | None = None
    installed_base: str | None = None
    config_data: str | None = None


_RELATIONS: Final = (
    ("confirmationBase", "confirmation_base"),
    ("cancelAction", "cancel_action"),
    ("deploymentBase", "deployment_base"),
    ("installedBase", "installed_base"),
    ("configData", "config_data"),
)
"""Link relation and field, in the order in which the links stand."""


def pack_poll_answer(answer: PollAnswer) -> bytes:
    """Return the compact JSON of a poll answer; `_links` is absent when there is nothing to do."""
    links = {relation: {"href": href} for relation, field in _RELATIONS if (href := getattr(answer, field)) is not None}
    message: dict[str, object] = {"config": {"polling": {"sleep": pack_sleep(answer.sleep_s)}}}
    if links:
        message["_links"] = links
    return msgspec.json.encode(message)


class _Polling(msgspec.Struct):
    sleep: str


class _Config(msgspec.Struct):
    polling: _Polling


class _Link(msgspec.Struct):
    href: str


class _Links(msgspec.Struct):
    confirmation_base: _Link | None = msgspec.field(default=None, name="confirmationBase")
    cancel_action: _Link | None = msgspec.field(default=None, name="cancelAction")
    deployment_base: _Link | None = msgspec.field(default=None, name="deploymentBase")
    installed_base: _Link | None = msgspec.field(default=None, name="installedBase")
    config_data: _Link | None = msgspec.field(default=None, name="configData")


class _Message(msgspec.Struct):
    config: _Config
    links: _Links | None = msgspec.field(default=None, name="_links")


_DECODER = msgspec.json.Decoder(_Message)


def parse_poll_answer(body: bytes) -> PollAnswer:
    """Return what a server answered to a poll; absent and empty `_links` mean the same. Raises `MalformedMessage`."""
    message = decode(_DECODER, body, "poll answer")
    links = message.links or _Links()
    hrefs = {field: link.href for _, field in _RELATIONS if (link := getattr(links, field)) is not None}
    return PollAnswer(sleep_s=parse_sleep(message.config.polling.sleep), **hrefs)
