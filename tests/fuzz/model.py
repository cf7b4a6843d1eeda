"""What a fuzz target is: one function that reads bytes from outside, the errors it may raise, inputs to start from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from flota.errors import FlotaError

Reader = Callable[[bytes], object]
Starts = Sequence[bytes | str] | Callable[[], Sequence[bytes | str]]
Repair = Callable[[bytearray], None]

ERROR_TEXT_MAX_CHARS = 2000


class BrokenPromise(AssertionError):
    """A reader kept to its errors, but broke another rule: text that is not one printable line, or far too long."""


@dataclass(frozen=True)
class Target:
    """`name` is unique; `covers` are the dotted names of the functions that it runs; `repair` puts checksums right."""

    name: str
    covers: tuple[str, ...]
    read: Reader
    errors: tuple[type[FlotaError], ...]
    given: Starts
    repair: Repair | None = None
    longest: int = 1 << 20
    """Bytes that callers let through to the reader; inputs are cut there."""
    may_hold: int = 0
    """Bytes of memory beyond what the input's size allows, for readers that make something large of something small."""

    @cached_property
    def starts(self) -> tuple[bytes, ...]:
        """Small inputs that the reader knows; mutations begin here. Never empty."""
        given = self.given() if callable(self.given) else self.given
        return tuple(item.encode() if isinstance(item, str) else item for item in given) or (b"",)

    def run(self, data: bytes) -> bool:
        """Read `data`; whether it was taken. Raises whatever the reader raises that it must not, or `BrokenPromise`."""
        try:
            self.read(data)
        except self.errors as error:
            text = str(error)
            if not text.isprintable():
                raise BrokenPromise(f"the error is not one printable line: {text!a}") from error
            if len(text) > ERROR_TEXT_MAX_CHARS:
                raise BrokenPromise(f"the error has {len(text)} characters: {text[:200]!a}…") from error
            error.as_dict()
            return False
        return True


def target(
    function: Callable[..., Any],
    starts: Starts = (),
    *,
    read: Reader | None = None,
    errors: tuple[type[FlotaError], ...] = (FlotaError,),
    also: Iterable[Callable[..., Any]] = (),
    repair: Repair | None = None,
    variant: str = "",
    longest: int = 1 << 20,
    may_hold: int = 0,
    **arguments: object,
) -> Target:
    """Return the target of `function`, called with the input and `arguments`.

    A function whose first argument is text gets the input as text, lone surrogates included. `read` replaces the call
    for functions that take something else than bytes or text. `also` names functions that `read` calls too.
    """
    name = dotted_name(function)
    return Target(
        name=f"{name.removeprefix('flota.')}{f'[{variant}]' if variant else ''}",
        covers=(name, *map(dotted_name, also)),
        read=read or _reader(function, arguments),
        errors=errors,
        given=starts,
        repair=repair,
        longest=longest,
        may_hold=may_hold,
    )


def dotted_name(function: Callable[..., Any]) -> str:
    """`flota.trust.keys.PrivateKey.from_pem`, for functions and class methods."""
    return f"{function.__module__}.{function.__qualname__}"


def as_text(data: bytes) -> str:
    """The input as text; what is no UTF-8 becomes lone surrogates, as `json` lets them through."""
    return data.decode("utf-8", "surrogateescape")


def _reader(function: Callable[..., Any], arguments: Mapping[str, object]) -> Reader:
    first = next(iter(inspect.signature(function).parameters.values()))
    called = partial(function, **arguments)
    if "bytes" in str(first.annotation) or "Buffer" in str(first.annotation):
        return called
    return lambda data: called(as_text(data))
