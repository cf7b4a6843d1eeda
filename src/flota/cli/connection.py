"""How a command finds its server: the three options that every client command takes, and what becomes of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flota.errors import InvalidInput, WrongUse

if TYPE_CHECKING:
    from flota.client.management import ManagementClient

_PANEL = "Server"

Server = Annotated[
    str | None,
    typer.Option(
        "--server", metavar="URL", help="The server [FLOTA_SERVER, else a local `flota up`].", rich_help_panel=_PANEL
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="TOKEN", help="Access token [FLOTA_TOKEN, else the local one].", rich_help_panel=_PANEL
    ),
]
CaCert = Annotated[
    str | None,
    typer.Option(
        "--cacert", metavar="FILE", help="Certificate authorities to trust [FLOTA_CACERT].", rich_help_panel=_PANEL
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def connect(server: str | None, token: str | None, cacert: str | None) -> ManagementClient:
    """Return a client of the server that the options, the environment or a local `flota up` name.

    Raises `WrongUse` for a `server` option that is no address, else what finding the server and its files raises.
    """
    from flota.client.discovery import find_server, parse_server_url
    from flota.client.management import ManagementClient

    if server:
        check_option("--server", parse_server_url, server)
    found = find_server(server, token, cacert)
    return ManagementClient(found.url, found.token, verify=found.cacert if found.cacert is not None else True)


def check_option(name: str, check: Callable[[str], object], value: str) -> None:
    """Return if `check` takes an option's value; its `InvalidInput` becomes `WrongUse` that names the option."""
    try:
        check(value)
    except InvalidInput as error:
        raise WrongUse(
            f"{name}: {error.message}", expected=error.expected, found=error.found, hint=error.hint
        ) from error


def read_text_file(path: Path, *, max_bytes: int) -> str:
    """Return a file's text. Raises `InvalidInput` if it cannot be read, is too large or is not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", found=error.strerror or str(error)) from error
    if len(data) > max_bytes:
        raise InvalidInput(f"{path} is too large", expected=f"at most {max_bytes} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidInput(
            f"{path} is not UTF-8",
            offset=error.start,
            expected="text in UTF-8",
            found=f"byte 0x{data[error.start]:02x} in line {line}",
            hint="Save the file as UTF-8.",
        ) from error


def comma_list(text: str | None) -> list[str] | None:
    """Return the words between commas, surrounding spaces removed; None for None."""
    if text is None:
        return None
    return [word.strip() for word in text.split(",") if word.strip()]


def utc(moment: datetime | None) -> datetime | None:
    """Return a time of the command line as an aware one; without a zone it is UTC."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


_LIFETIME = re.compile(r"([1-9][0-9]{0,4})(h|d)\Z")


def parse_lifetime(text: str) -> timedelta:
    """Return the time in `12h` or `90d`. Raises `InvalidInput`."""
    found = _LIFETIME.match(text.strip().lower())
    if found is None:
        raise InvalidInput("not a length of time", expected="hours or days, for example 12h or 90d", found=repr(text))
    number = int(found.group(1))
    return timedelta(hours=number) if found.group(2) == "h" else timedelta(days=number)
