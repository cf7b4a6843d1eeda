"""Selectors: how a person names a set of devices, e.g. `type=pump label.site=berlin state=accepted`.

Source: docs/reference/executions.md, "Selectors".
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from flota.errors import InvalidInput
from flota.fleet.devices import Device, DeviceState
from flota.fleet.storage import DeviceFilter

SELECTOR_MAX_CHARS: Final = 65_536
LABELS_MAX: Final = 64
"""Most labels of one device."""
LABEL_VALUE_MAX_CHARS: Final = 256

EVERYBODY: Final = "all"

_LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_HINT: Final = "Join conditions with spaces: type=NAME, state=accepted, name=A,B, text=PART, label.KEY=VALUE; or `all`."


@dataclass(frozen=True, slots=True)
class Selector:
    """All given conditions must hold; none at all is everybody. `text` is how it was written."""

    text: str
    type_name: str | None = None
    state: DeviceState | None = None
    names: tuple[str, ...] | None = None
    name_part: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, device: Device) -> bool:
        """Whether `device` is selected. The store's query for `device_filter()` gives the same answer."""
        return (
            (self.type_name is None or device.type_name == self.type_name)
            and (self.state is None or device.state is self.state)
            and (self.names is None or device.name in self.names)
            and (self.name_part is None or self.name_part.lower() in device.name.lower())
            and all(device.labels.get(name) == value for name, value in self.labels.items())
        )

    def fitting(self, type_name: str) -> DeviceFilter | None:
        """Return the condition for the accepted devices of a type among those selected; None if there can be none."""
        if self.type_name not in (None, type_name) or self.state not in (None, DeviceState.ACCEPTED):
            return None
        return replace(self.device_filter(), type_name=type_name, state=DeviceState.ACCEPTED)

    def device_filter(self) -> DeviceFilter:
        """Return the same conditions as the store's queries take them."""
        return DeviceFilter(
            type_name=self.type_name,
            state=self.state,
            names=self.names,
            labels=dict(self.labels) or None,
            text=self.name_part,
        )


def parse_selector(text: str) -> Selector:
    """Return the selector written as `text`: conditions joined by spaces, values in quotes if they hold spaces.

    Raises `InvalidInput` for an empty text (write `all` for everybody), an unknown or repeated condition, a bad value.
    """
    if len(text) > SELECTOR_MAX_CHARS:
        raise InvalidInput(
            "the selector is too long", expected=f"at most {SELECTOR_MAX_CHARS} characters", found=len(text)
        )
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidInput("the selector cannot be read", found=str(error), hint=_HINT) from error
    if not words:
        raise InvalidInput("the selector is empty", hint=_HINT)
    if words == [EVERYBODY]:
        return Selector(text=EVERYBODY)
    conditions: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise InvalidInput("a condition cannot be read", expected="KEY=VALUE", found=repr(word[:80]), hint=_HINT)
        if key in conditions:
            raise InvalidInput("a condition is given twice", found=repr(key[:80]))
        conditions[key] = value
    return _selector_of(text.strip(), conditions)


def _selector_of(text: str, conditions: Mapping[str, str]) -> Selector:
    type_name: str | None = None
    state: DeviceState | None = None
    names: tuple[str, ...] | None = None
    name_part: str | None = None
    labels: dict[str, str] = {}
    for key, value in conditions.items():
        match key.split(".", 1):
            case ["type"]:
                type_name = value
            case ["state"]:
                state = _device_state(value)
            case ["name"]:
                names = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
                if not names:
                    raise InvalidInput("the list of names is empty", hint=_HINT)
            case ["text"]:
                name_part = value
            case ["label", name]:
                labels[name] = value
            case _:
                raise InvalidInput("there is no such condition", found=repr(key[:80]), hint=_HINT)
    check_labels(labels)
    return Selector(text, type_name, state, names, name_part, labels)


def _device_state(value: str) -> DeviceState:
    try:
        return DeviceState(value)
    except ValueError:
        raise InvalidInput(
            "there is no such device state", expected=" or ".join(DeviceState), found=repr(value[:80])
        ) from None


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise `InvalidInput` for too many labels, a name that is not `[A-Za-z0-9][A-Za-z0-9._-]*`, a long value."""
    if len(labels) > LABELS_MAX:
        raise InvalidInput("too many labels", expected=f"at most {LABELS_MAX}", found=len(labels))
    for name, value in labels.items():
        if not _LABEL_NAME.match(name):
            raise InvalidInput(
                "a label has a bad name", expected="1 to 63 letters, digits, dots, dashes", found=repr(name[:80])
            )
        if len(value) > LABEL_VALUE_MAX_CHARS or not value.isprintable():
            raise InvalidInput(
                f"the label {name} has a bad value",
                expected=f"at most {LABEL_VALUE_MAX_CHARS} printable characters",
                found=f"{len(value)} characters",
            )
