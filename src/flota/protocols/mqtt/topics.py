"""Topic names and filters. Source: MQTT 3.1.1, section 4.7; what AWS adds stands in docs/reference/aws-iot.md."""

from __future__ import annotations

from typing import Final

TOPIC_MAX_BYTES: Final = 512
"""A longer name or filter is refused; AWS allows 256 characters behind its prefixes."""

LEVELS_MAX: Final = 32


def is_valid_filter(topic_filter: str) -> bool:
    """Return whether it is a filter: `+` and `#` stand alone in their levels, `#` last, within our limits."""
    if not topic_filter or len(topic_filter.encode("utf-8", "replace")) > TOPIC_MAX_BYTES:
        return False
    levels = topic_filter.split("/")
    if len(levels) > LEVELS_MAX:
        return False
    last = len(levels) - 1
    return all(
        ("+" not in level or level == "+") and ("#" not in level or (level == "#" and index == last))
        for index, level in enumerate(levels)
    )


def is_valid_topic(topic: str) -> bool:
    """Return whether it is a name to publish to: no wildcards, within our limits."""
    if not topic or "+" in topic or "#" in topic or topic.count("/") >= LEVELS_MAX:
        return False
    return len(topic) <= TOPIC_MAX_BYTES // 4 or len(topic.encode("utf-8", "replace")) <= TOPIC_MAX_BYTES


def matches(topic_filter: str, topic: str, *, parent_too: bool = True) -> bool:
    """Return whether the filter covers the name; one that begins with a wildcard covers no name that begins `$`.

    `parent_too`: `a/#` covers `a` as well, as the standard says (4.7.1.2); AWS's brokers do not do that.
    """
    if topic_filter == topic:
        return True
    if topic.startswith("$") and topic_filter[:1] in {"+", "#"}:
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return parent_too or index < len(levels)
        if index >= len(levels) or level not in {"+", levels[index]}:
            return False
    return len(wanted) == len(levels)
