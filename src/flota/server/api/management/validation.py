"""Input that does not meet its declaration, told in our own words, field by field; what was sent is not repeated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_ANY_OTHER: Final = "not allowed"

_TEXTS: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "extra_forbidden": "there is no such field",
    "string_type": "not a text",
    "string_unicode": "not valid Unicode",
    "string_too_short": "too short, at least {min_length} characters",
    "string_too_long": "too long, at most {max_length} characters",
    "string_pattern_mismatch": "does not match {pattern}",
    "int_type": "not a whole number",
    "int_parsing": "not a whole number",
    "int_parsing_size": "too large a number",
    "int_from_float": "not a whole number",
    "bool_type": "not true or false",
    "bool_parsing": "not true or false",
    "list_type": "not a list",
    "dict_type": "not an object",
    "model_type": "not an object",
    "model_attributes_type": "not an object",
    "too_short": "too short, at least {min_length} entries",
    "too_long": "too long, at most {max_length} entries",
    "greater_than_equal": "too small, at least {ge}",
    "less_than_equal": "too large, at most {le}",
    "enum": "not one of {expected}",
    "literal_error": "not one of {expected}",
    "value_error": "{error}",
    "json_invalid": "not JSON",
    "datetime_type": "not a time",
    "datetime_parsing": "not a time in ISO 8601",
    "datetime_from_date_parsing": "not a time in ISO 8601",
    "timezone_aware": "a time without a time zone",
}
"""By the validator's name of the fault; in braces what its context says."""


def describe_fault(fault: Mapping[str, Any]) -> str:
    """Return `FIELD: what is wrong` for one of the faults that `RequestValidationError.errors()` lists."""
    try:
        text = _TEXTS.get(str(fault.get("type")), _ANY_OTHER).format_map(fault.get("ctx") or {})
    except KeyError:
        text = _ANY_OTHER
    return f"{_field(fault.get('loc', ()))}: {text}"


def _field(location: tuple[Any, ...]) -> str:
    names = [str(part)[:80] for part in location if part not in ("body", "query", "path", "header")]
    return ".".join(names) or "body"
