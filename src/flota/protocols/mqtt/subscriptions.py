"""Who subscribed to what: from a topic's name to the sessions that want it, without looking at every filter.

Filters without wildcards, which nearly all of devices are, stand in one dictionary; the others in a tree of levels.
Source: MQTT 3.1.1, 4.7; docs/reference/mqtt.md, "Topics".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from flota.protocols.mqtt.session import MqttSession

_NO_ONE: Final[Mapping[MqttSession, int]] = {}

Takers = dict[MqttSession, int]
"""Session -> QoS granted."""


@dataclass(slots=True)
class _Node:
    """One level of filters with wildcards: who ends here, and what goes on below."""

    takers: Takers = field(default_factory=dict)
    below: dict[str, _Node] = field(default_factory=dict)


class SubscriptionIndex:
    """The filters of all sessions. `parent_too`: whether `a/#` covers `a` (the standard's rule, not AWS's)."""

    def __init__(self, *, parent_too: bool = False) -> None:
        self._parent_too = parent_too
        self._exact: dict[str, Takers] = {}
        self._root = _Node()

    def add(self, topic_filter: str, session: MqttSession, qos: int) -> None:
        """Note a granted filter; one that the session has already gets the new QoS (3.8.4)."""
        if not _has_wildcards(topic_filter):
            self._exact.setdefault(topic_filter, {})[session] = qos
            return
        node = self._root
        for level in topic_filter.split("/"):
            node = node.below.setdefault(level, _Node())
        node.takers[session] = qos

    def remove(self, topic_filter: str, session: MqttSession) -> None:
        """Forget a filter of a session; one that it does not have is nothing."""
        if not _has_wildcards(topic_filter):
            takers = self._exact.get(topic_filter)
            if takers is not None and takers.pop(session, None) is not None and not takers:
                del self._exact[topic_filter]
            return
        path: list[tuple[_Node, str]] = []
        node = self._root
        for level in topic_filter.split("/"):
            below = node.below.get(level)
            if below is None:
                return
            path.append((node, level))
            node = below
        node.takers.pop(session, None)
        for parent, level in reversed(path):
            child = parent.below[level]
            if child.takers or child.below:
                return
            del parent.below[level]

    def find(self, topic: str) -> Mapping[MqttSession, int]:
        """Return every session with a filter that covers `topic`, once, with its highest QoS."""
        exact = self._exact.get(topic, _NO_ONE)
        if not self._root.below:
            return exact
        found: Takers = dict(exact)
        for takers in self._wild(topic):
            for session, qos in takers.items():
                found[session] = max(qos, found.get(session, 0))
        return found

    def _wild(self, topic: str) -> Iterator[Takers]:
        """Yield the takers of every filter with wildcards that covers the name; all nodes of one level at a time."""
        nodes = [self._root]
        levels = topic.split("/")
        for index, level in enumerate(levels):
            reserved = index == 0 and level.startswith("$")  # 4.7.2: a wildcard in front covers no `$` name
            following = []
            for node in nodes:
                if not reserved and (rest := node.below.get("#")) is not None:
                    yield rest.takers
                if (same := node.below.get(level)) is not None:
                    following.append(same)
                if not reserved and (any_one := node.below.get("+")) is not None:
                    following.append(any_one)
            nodes = following
        for node in nodes:
            yield node.takers
            if self._parent_too and (rest := node.below.get("#")) is not None:
                yield rest.takers


def _has_wildcards(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter
