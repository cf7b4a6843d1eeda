"""Error bodies as hawkBit writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from flota.protocols.ddi.reading import decode


@dataclass(frozen=True, slots=True)
class DdiProblem:
    """What went wrong. `error_code` is one of hawkBit's, e.g. `hawkbit.server.error.repo.entityNotFound`."""

    error_code: str
    message: str
    exception_class: str | None = None
    info: Mapping[str, str] = field(default_factory=dict)


def pack_problem(problem: DdiProblem) -> bytes:
    """Return the compact JSON of an error; empty members are left out."""
    members = {
        "exceptionClass": problem.exception_class,
        "errorCode": problem.error_code,
        "message": problem.message,
        "info": dict(problem.info),
    }
    return msgspec.json.encode({name: value for name, value in members.items() if value})


class _Message(msgspec.Struct):
    error_code: str = msgspec.field(default="", name="errorCode")
    message: str = ""
    exception_class: str | None = msgspec.field(default=None, name="exceptionClass")
    info: dict[str, object] = {}


_DECODER = msgspec.json.Decoder(_Message)


def parse_problem(body: bytes) -> DdiProblem:
    """Return what a server said went wrong. Raises `MalformedMessage`."""
    message = decode(_DECODER, body, "problem")
    return DdiProblem(
        error_code=message.error_code,
        message=message.message,
        exception_class=message.exception_class,
        info={key: str(value) for key, value in message.info.items()},
    )
