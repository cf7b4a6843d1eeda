"""Which topics of a thing go to another broker and back, and what they are called there: prefix rules, no IO.

A rule is `LOCAL` or `LOCAL=REMOTE`, with `out:` or `in:` before it for one direction. Both sides are what topics begin
with and end in `/`; the level `{thing}` stands for the thing's name. Source: docs/reference/mqtt.md, "The bridge".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from flota.errors import InvalidInput
from flota.protocols.mqtt.topics import is_valid_topic

THING: Final = "{thing}"
_DIRECTIONS: Final = {"out": (True, False), "in": (False, True)}
_HINT: Final = "For example: {thing}/   or   out:telemetry/{thing}/=plant-7/telemetry/{thing}/"


@dataclass(frozen=True, slots=True)
class BridgeRule:
    """A prefix of things' topics and that of the other broker.

    `goes_out`: things publish under it; `comes_in`: they may subscribe under it.
    """

    local: str
    remote: str
    goes_out: bool = True
    comes_in: bool = True

    def local_prefix(self, thing: str) -> str:
        """Return what the thing's own topics begin with."""
        return self.local.replace(THING, thing)

    def remote_prefix(self, thing: str) -> str:
        """Return what they begin with at the other broker."""
        return self.remote.replace(THING, thing)


DEFAULT_RULES: Final = (BridgeRule(f"{THING}/", f"{THING}/"),)
"""A thing has what begins with its own name, under the same names at the other broker."""


def parse_rule(text: str) -> BridgeRule:
    """Return the rule that a text says. Raises `InvalidInput`."""
    direction, colon, rest = text.partition(":")
    goes_out, comes_in = True, True
    if colon and direction in _DIRECTIONS:
        goes_out, comes_in = _DIRECTIONS[direction]
    else:
        rest = text
    local, equals, remote = rest.partition("=")
    if not equals:
        remote = local
    for prefix in (local, remote):
        levels = prefix.split("/")
        is_whole = prefix.count(THING) == levels.count(THING) <= 1
        plain = prefix.replace(THING, "x")
        if not prefix.endswith("/") or not is_whole or not is_valid_topic(plain) or plain.startswith("$"):
            raise InvalidInput(
                "not a bridge rule",
                expected="[out:|in:]LOCAL/[=REMOTE/] without wildcards, {thing} as a level of its own",
                found=repr(text)[:80],
                hint=_HINT,
            )
    if goes_out and THING not in local:
        raise InvalidInput(
            "a bridge rule that lets every thing publish under the same topics",
            expected="{thing} as a level of what things publish to",
            found=repr(text)[:80],
            hint="With in: before it, things can only subscribe. " + _HINT,
        )
    if comes_in and THING in local and THING not in remote:
        raise InvalidInput(
            "a bridge rule that does not say which thing a message is for",
            expected="{thing} on both sides",
            found=repr(text)[:80],
            hint=_HINT,
        )
    return BridgeRule(local, remote, goes_out, comes_in)


@dataclass(frozen=True, slots=True)
class BridgeRules:
    """All rules of a bridge; of several that fit, the first counts."""

    rules: Sequence[BridgeRule] = DEFAULT_RULES

    def outgoing(self, thing: str, topic: str) -> str | None:
        """Return what a topic that the thing publishes to is called there; None: it may not."""
        for rule in self.rules:
            prefix = rule.local_prefix(thing)
            if rule.goes_out and topic.startswith(prefix) and len(topic) > len(prefix):
                return rule.remote_prefix(thing) + topic[len(prefix) :]
        return None

    def wanted(self, thing: str, topic_filter: str) -> str | None:
        """Return what a filter that the thing subscribes to is called there; None: it may not."""
        for rule in self.rules:
            prefix = rule.local_prefix(thing)
            if rule.comes_in and topic_filter.startswith(prefix) and len(topic_filter) > len(prefix):
                return rule.remote_prefix(thing) + topic_filter[len(prefix) :]
        return None

    def incoming(self, topic: str) -> list[str]:
        """Return what a topic of the other broker is called here; several rules may bring the same one in."""
        found = []
        for rule in self.rules:
            if not rule.comes_in:
                continue
            local = _translate(topic, rule.remote, rule.local)
            if local is not None and local not in found:
                found.append(local)
        return found


def _translate(topic: str, remote: str, local: str) -> str | None:
    """Return `topic`, which begins as `remote` says, as it begins with `local`; None if it begins otherwise."""
    wanted, levels = remote.split("/")[:-1], topic.split("/")
    if len(levels) <= len(wanted):
        return None
    thing = ""
    for want, level in zip(wanted, levels, strict=False):
        if want == THING:
            thing = level
        elif want != level:
            return None
    return local.replace(THING, thing) + "/".join(levels[len(wanted) :])
