"""JSON with one spelling for each value, and a reader that takes no other and cannot be made to work hard.

The spelling is the one of RFC 8785 for what we use of JSON: no white space, members sorted by name, UTF-8 without
needless escapes, integers only. A signature covers bytes, so two spellings of one statement must not exist.
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar, Final, NoReturn, TypeVar

from flota.errors import InvalidInput

INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that every JSON reader keeps exactly (RFC 8259 section 6)."""

_INTEGER_MAX_DIGITS: Final = len(str(INTEGER_MAX)) + 1
_BRACKETS_OUTSIDE_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


class BadJson(InvalidInput):
    """The bytes are not the JSON that is expected; see the subclasses."""

    code = "bad-json"


class JsonTooLarge(BadJson):
    """The document is longer than its limit."""

    code = "json-too-large"


class JsonTooDeep(BadJson):
    """Arrays and objects are nested deeper than the limit."""

    code = "json-too-deep"


class DuplicateMember(BadJson):
    """An object has a member twice, which readers resolve differently."""

    code = "json-duplicate-member"


class NumberNotAllowed(BadJson):
    """NaN, infinity, a fraction, an exponent, or an integer beyond 2^53 - 1."""

    code = "json-number"


class NotCanonical(BadJson):
    """The value is fine, but not in its one spelling."""

    code = "json-not-canonical"


class UnknownMember(BadJson):
    """An object has a member that the format does not define."""

    code = "json-unknown-member"


class MissingMember(BadJson):
    """An object lacks a member that the format demands."""

    code = "json-missing-member"


class WrongJsonType(BadJson):
    """A member is there, but is not of its type."""

    code = "json-wrong-type"


def pack_canonical(value: object) -> bytes:
    """Return `value` (dict, list, str, int, bool, None) as canonical JSON.

    Raises `NotCanonical` for text that UTF-8 cannot carry. Floats are a bug of the caller.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotCanonical("text with a lone surrogate", found=ascii(text[error.start])) from error


def parse_strict(data: bytes, *, max_bytes: int, max_depth: int, what: str) -> Any:
    """Return the value of a JSON document in UTF-8.

    `max_bytes` limits the document, `max_depth` the nesting of arrays and objects (the outermost counts 1). `what`
    names the document in errors. Raises a subclass of `BadJson`, never anything else.
    """
    if len(data) > max_bytes:
        raise JsonTooLarge(f"{what} is too large", expected=f"at most {max_bytes} bytes", found=f"{len(data)} bytes")
    _check_depth(data, max_depth, what)
    try:
        text = data.decode("utf-8")
        return json.loads(
            text,
            object_pairs_hook=_object_without_duplicates,
            parse_int=_small_integer,
            parse_float=_no_fraction,
            parse_constant=_no_fraction,
        )
    except UnicodeDecodeError as error:
        raise BadJson(f"{what} is not UTF-8", offset=error.start, found=f"byte {data[error.start]:#04x}") from error
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode("utf-8", "replace"))
        raise BadJson(f"{what} is not JSON: {error.msg}", offset=offset) from error


class Members:
    """Takes the members of a JSON object one by one and by type; `finish` refuses what nobody asked for."""

    _KIND_NAMES: ClassVar[dict[type, str]] = {str: "text", int: "an integer", list: "an array", dict: "an object"}

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise WrongJsonType(f"{where} has the wrong type", expected="an object", found=_json_type(value))
        self._left = dict(value)
        self._where = where

    _T = TypeVar("_T", str, int, list[Any], dict[str, Any])

    def take(self, name: str, kind: type[_T]) -> _T:
        """Return the member `name`, which has to be of `kind`. Raises `MissingMember` or `WrongJsonType`."""
        if name not in self._left:
            raise MissingMember(f"{self._where} lacks the field `{name}`")
        value = self._left.pop(name)
        if type(value) is not kind:  # bool is an int for isinstance
            raise WrongJsonType(
                f"`{name}` of {self._where} has the wrong type",
                expected=self._KIND_NAMES.get(kind, "another type"),
                found=_json_type(value),
            )
        return value

    def take_optional(self, name: str, kind: type[_T]) -> _T | None:
        """Return the member `name`, or None if it is null. It has to be there."""
        if name in self._left and self._left[name] is None:
            del self._left[name]
            return None
        return self.take(name, kind)

    def take_absent(self, name: str, kind: type[_T]) -> _T | None:
        """Return the member `name`, or None if it is absent."""
        return self.take(name, kind) if name in self._left else None

    def finish(self) -> None:
        """Raise `UnknownMember` if anything was not taken."""
        if self._left:
            name = min(self._left)
            raise UnknownMember(f"{self._where} has an unknown field", found=ascii(name[:64]))


def _check_depth(data: bytes, max_depth: int, what: str) -> None:
    depth = 0
    for match in _BRACKETS_OUTSIDE_STRINGS.finditer(data):
        first = data[match.start()]
        if first in b"[{":
            depth += 1
            if depth > max_depth:
                raise JsonTooDeep(
                    f"{what} is nested too deeply", offset=match.start(), expected=f"at most {max_depth} levels"
                )
        elif first in b"]}":
            depth -= 1


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        # `add` gives None: the first name that was there already is the one that occurs twice.
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DuplicateMember("a field occurs twice in one object", found=ascii(twice[:64]))
    return members


def _small_integer(digits: str) -> int:
    if len(digits) > _INTEGER_MAX_DIGITS or abs(int(digits)) > INTEGER_MAX:
        raise NumberNotAllowed("a number is out of range", expected=f"at most {INTEGER_MAX}", found=digits[:24])
    return int(digits)


def _no_fraction(digits: str) -> NoReturn:
    raise NumberNotAllowed("only integers are allowed", found=digits[:24])


def _json_type(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case str():
            return "text"
        case int():
            return "an integer"
        case list():
            return "an array"
        case dict():
            return "an object"
    return type(value).__name__
