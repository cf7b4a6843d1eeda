"""Device lists as CSV: read whole, checked whole, with the line number of everything that is wrong."""

from __future__ import annotations

import csv
import dataclasses
import io
import shlex
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from flota.errors import Conflict, FlotaError, InvalidInput, NotFound
from flota.fleet.storage import DeviceFilter
from flota.server.device_registry import (
    Registration,
    device_type_or_builtin,
    new_device,
    new_device_token,
    parse_device_name,
    parse_device_token,
    parse_labels,
    parse_mac,
    register_as,
)
from flota.server.rollout_desk import list_all

if TYPE_CHECKING:
    from flota.fleet.devices import Device, DeviceType
    from flota.fleet.scope import Scope
    from flota.fleet.storage import Transaction

COLUMNS: Final = ("name", "type", "mac", "token", "labels")
REQUIRED_COLUMNS: Final = ("name", "type")
MAX_DEVICES: Final = 50_000
"""Rows of one import: it is one transaction, and other writers wait for it."""

MAX_BYTES: Final = 16 * 1024 * 1024
PROBLEMS_SHOWN: Final = 20
FIELD_MAX_LEN: Final = 8192


Problem = tuple[int, str]
"""What is wrong, with the number of its line."""


@dataclasses.dataclass(frozen=True, slots=True)
class DeviceList:
    """A device list as it was read: (line number, device) of each good line, and what is wrong with the others."""

    rows: tuple[tuple[int, Registration], ...]
    problems: tuple[Problem, ...] = ()


class BadDeviceList(InvalidInput):
    """A device list with faults; `problems` has one line of text for each, with its line number."""

    code = "bad-device-list"

    def __init__(self, problems: Iterable[Problem]) -> None:
        told = [f"line {line}: {text}" for line, text in sorted(problems, key=lambda problem: problem[0])]
        shown = "\n  ".join(told[:PROBLEMS_SHOWN])
        more = f"\n  and {len(told) - PROBLEMS_SHOWN} more" if len(told) > PROBLEMS_SHOWN else ""
        super().__init__(
            f"nothing was imported:\n  {shown}{more}", hint="Correct these lines and import the file again."
        )
        self.problems = tuple(told)

    def as_dict(self) -> dict[str, object]:
        """Return the error as plain data, with `errors` as a list."""
        return {**super().as_dict(), "errors": list(self.problems[:PROBLEMS_SHOWN])}


def parse_device_list(data: bytes) -> DeviceList:
    """Return the devices of a CSV file with a header line, and what is wrong with the lines that cannot be read.

    Columns: `name`, `type`, and perhaps `mac`, `token`, `labels` (`site=berlin line=2`). UTF-8, with or without a byte
    order mark; comma or semicolon. Raises `InvalidInput` for a file that cannot be read at all.
    """
    text = _decode(data)
    head = text.split("\n", 1)[0]
    delimiter = ";" if head.count(";") > head.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = _columns(next(reader, []))
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InvalidInput(f"line {reader.line_num} is not CSV", found=str(error)) from error
    if not rows:
        raise InvalidInput("the device list has no devices", expected="a header line and one line per device")
    if len(rows) > MAX_DEVICES:
        raise InvalidInput("the device list is too long", expected=f"at most {MAX_DEVICES} devices", found=len(rows))
    return _registrations(columns, rows)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(
            f"line {line} is not UTF-8",
            offset=error.start,
            expected="text in UTF-8",
            found=f"byte 0x{data[error.start]:02x}",
            hint="Save the file as UTF-8 and import it again.",
        ) from error


def _columns(head: list[str]) -> list[str]:
    columns = [cell.strip().lower() for cell in head]
    unknown = [column for column in columns if column not in COLUMNS]
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if unknown or missing or len(set(columns)) != len(columns):
        raise InvalidInput(
            "the header line does not name the columns", expected=",".join(COLUMNS), found=",".join(columns)[:200]
        )
    return columns


def _registrations(columns: list[str], rows: list[tuple[int, list[str]]]) -> DeviceList:
    found: list[tuple[int, Registration]] = []
    problems: list[Problem] = []
    lines_of: dict[tuple[str, str], int] = {}
    for line, row in rows:
        if len(row) != len(columns):
            problems.append((line, f"expected {len(columns)} columns, found {len(row)}"))
            continue
        cells = {column: cell.strip() for column, cell in zip(columns, row, strict=True)}
        try:
            registration = Registration(
                name=parse_device_name(cells["name"]),
                type_name=cells["type"],
                mac=_given(cells, "mac", parse_mac),
                token=_given(cells, "token", parse_device_token),
                labels=parse_labels(parse_label_words(cells.get("labels", ""))),
            )
        except FlotaError as error:
            problems.append((line, str(error)))
            continue
        for kind, value in (("name", registration.name), ("mac", registration.mac)):
            if value is None:
                continue
            earlier = lines_of.setdefault((kind, value), line)
            if earlier != line:
                problems.append((line, f"{kind} {value} stands in line {earlier} already"))
                break
        else:
            found.append((line, registration))
    return DeviceList(tuple(found), tuple(problems))


def _given(cells: dict[str, str], column: str, parse: Callable[[str], str]) -> str | None:
    text = cells.get(column, "")
    return parse(text) if text else None


def parse_label_words(text: str) -> dict[str, str]:
    """Return the labels in `site=berlin line=2`; raises `InvalidInput`."""
    labels: dict[str, str] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidInput("labels that cannot be read", found=str(error)) from error
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or key in labels:
            raise InvalidInput("labels that cannot be read", expected="KEY=VALUE KEY=VALUE …", found=repr(text[:140]))
        labels[key] = value
    return labels


async def register_all(
    transaction: Transaction, scope: Scope, devices: DeviceList, *, now: datetime
) -> list[tuple[str, str | None]]:
    """Register every device, in order; returns (name, token), the token only where the list did not give one.

    Raises `BadDeviceList` naming every line that cannot be read or that the fleet refuses; the caller's transaction
    then undoes the rest.
    """
    types, problems = await _types_of(transaction, scope, devices.rows, now=now)
    problems += devices.problems
    rows = [(line, one) for line, one in devices.rows if one.type_name in types]
    tokened = [(line, one if one.token else dataclasses.replace(one, token=new_device_token())) for line, one in rows]
    names = tuple(one.name for _, one in tokened)
    listed = await list_all(transaction, scope, DeviceFilter(names=names)) if names else []
    known = {device.name: device for device in listed}
    fresh = [new_device(one, types[one.type_name], one.token or "") for _, one in tokened if one.name not in known]
    try:
        await transaction.add_devices(scope, fresh, now=now)
    except Conflict:  # some MAC address is taken: one by one, to say which
        remaining = tokened
    else:
        remaining = [(line, one) for line, one in tokened if one.name in known]
    limit = max(PROBLEMS_SHOWN - len(problems), 1)
    problems += await _register_one_by_one(transaction, scope, remaining, types, known, limit=limit, now=now)
    if problems:
        raise BadDeviceList(problems)
    return [(one.name, None if given.token else one.token) for (_, given), (_, one) in zip(rows, tokened, strict=True)]


async def _types_of(
    transaction: Transaction, scope: Scope, rows: Sequence[tuple[int, Registration]], *, now: datetime
) -> tuple[dict[str, DeviceType], list[Problem]]:
    """Return the types that there are by name, and what is wrong with the lines that name others."""
    types: dict[str, DeviceType] = {}
    missing: dict[str, str] = {}
    problems: list[Problem] = []
    for line, one in rows:
        if one.type_name not in types and one.type_name not in missing:
            try:
                types[one.type_name] = await device_type_or_builtin(transaction, scope, one.type_name, now)
            except NotFound as error:
                missing[one.type_name] = str(error)
        if one.type_name in missing:
            problems.append((line, missing[one.type_name]))
    return types, problems


async def _register_one_by_one(
    transaction: Transaction,
    scope: Scope,
    rows: Sequence[tuple[int, Registration]],
    types: dict[str, DeviceType],
    known: dict[str, Device],
    *,
    limit: int,
    now: datetime,
) -> list[Problem]:
    """Register devices until `limit` have failed; returns what is wrong with those."""
    problems: list[Problem] = []
    for line, one in rows:
        try:
            await register_as(transaction, scope, one, types[one.type_name], known.get(one.name), now=now)
        except FlotaError as error:
            problems.append((line, str(error)))
            if len(problems) >= limit:
                break
    return problems
