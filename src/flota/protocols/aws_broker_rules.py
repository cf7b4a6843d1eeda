"""What another broker has to allow, so that things reach their own reserved topics there and our responder all of them.

A stock broker does not know who a thing is: its rules tie the topic to the user name (or client id) that it checked.
Source: docs/reference/mqtt.md, "Another broker"; mosquitto 2.0 `acl_file`; EMQX 5 `acl.conf`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from flota.errors import InvalidInput
from flota.protocols.aws_jobs import THING_PREFIX

REQUESTS: Final = (
    "jobs/get",
    "jobs/start-next",
    "jobs/+/get",
    "jobs/+/update",
    "streams/+/describe/+",
    "streams/+/get/+",
)
"""What a thing publishes to, after `$aws/things/NAME/`. What it is answered is deeper, or has another last level."""

ANSWERS: Final = ("jobs/#", "streams/#")
"""What it subscribes to."""

ThingIs = Literal["user", "client-id"]
_MOSQUITTO: Final[dict[ThingIs, str]] = {"user": "%u", "client-id": "%c"}
_EMQX: Final[dict[ThingIs, str]] = {"user": "${username}", "client-id": "${clientid}"}


def request_filters() -> list[str]:
    """Return what the responder subscribes to."""
    return [f"{THING_PREFIX}+/{request}" for request in REQUESTS]


def mosquitto_acl(responder: str, *, thing_is: ThingIs = "user", own_topics: bool = True) -> str:
    """Return an `acl_file`; `own_topics`: things may also use what begins with their name. Raises `InvalidInput`."""
    _check_user(responder)
    name = _MOSQUITTO[thing_is]
    lines = [
        "# Flota's responder: hears what things ask, answers, announces.",
        f"user {responder}",
        *(f"topic read {one}" for one in request_filters()),
        *(f"topic write {THING_PREFIX}+/{one}" for one in ANSWERS),
        "",
        f"# Things, by their {thing_is.replace('-', ' ')}: their own topics and nothing else.",
        *(f"pattern write {THING_PREFIX}{name}/{one}" for one in REQUESTS),
        *(f"pattern read {THING_PREFIX}{name}/{one}" for one in ANSWERS),
        *([f"pattern readwrite {name}/#"] if own_topics else []),
    ]
    return "\n".join(lines) + "\n"


def emqx_acl(responder: str, *, thing_is: ThingIs = "user", own_topics: bool = True) -> str:
    """Return an `acl.conf`; arguments and errors as `mosquitto_acl`."""
    _check_user(responder)
    name = _EMQX[thing_is]
    publish = [f"{THING_PREFIX}{name}/{one}" for one in REQUESTS]
    subscribe = [f"{THING_PREFIX}{name}/{one}" for one in ANSWERS]
    lines = [
        "%% Flota's responder: hears what things ask, answers, announces.",
        f'{{allow, {{username, "{responder}"}}, subscribe, {_terms(request_filters())}}}.',
        f'{{allow, {{username, "{responder}"}}, publish, {_terms(f"{THING_PREFIX}+/{one}" for one in ANSWERS)}}}.',
        "",
        f"%% Things, by their {thing_is.replace('-', ' ')}: their own topics and nothing else.",
        f"{{allow, all, publish, {_terms(publish)}}}.",
        f"{{allow, all, subscribe, {_terms(subscribe)}}}.",
        *([f"{{allow, all, all, {_terms([f'{name}/#'])}}}."] if own_topics else []),
        "{deny, all}.",
    ]
    return "\n".join(lines) + "\n"


def _terms(topics: Iterable[str]) -> str:
    return "[" + ", ".join(f'"{topic}"' for topic in topics) + "]"


def _check_user(name: str) -> None:
    if not name or not name.isprintable() or any(character in name for character in ' "\\#'):
        raise InvalidInput(
            "not a user name for a broker's rules", expected="no blanks, quotes or #", found=repr(name)[:60]
        )
