"""Which server a command speaks to, and with which token: told, or found in a local `flota up`'s data directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from flota.errors import InvalidInput, NotFound, Unauthenticated

SERVER_VARIABLE: Final = "FLOTA_SERVER"
TOKEN_VARIABLE: Final = "FLOTA_TOKEN"  # noqa: S105 - a variable's name
CACERT_VARIABLE: Final = "FLOTA_CACERT"
DATA_VARIABLE: Final = "FLOTA_DATA"

LOCAL_DATA_DIRECTORY: Final = "flota-data"
"""Looked for below the working directory: what the examples use."""

SERVER_RECORD: Final = "server.json"
ADMIN_TOKEN: Final = "admin.token"  # noqa: S105 - a file's name
RECORD_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class FoundServer:
    """Where to ask and what to show. `cacert` is a PEM file of certificate authorities, None = the system's."""

    url: str
    token: str
    cacert: Path | None = None


@dataclass(frozen=True, slots=True)
class _LocalServer:
    directory: Path
    http: str | None
    https: str | None
    cacert: Path | None

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(address for address in (self.http, self.https) if address is not None)


def find_server(
    server: str | None = None,
    token: str | None = None,
    cacert: str | Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    working_directory: Path | None = None,
) -> FoundServer:
    """Return the server to speak to.

    The address is `server`, else FLOTA_SERVER, else that of a local `flota up`. The token is `token`, else FLOTA_TOKEN,
    else, for the local server's own addresses only, the administrator's token in its data directory.
    Raises `NotFound` without any address, `Unauthenticated` without any token, `InvalidInput` for a bad address.
    """
    given = os.environ if environment is None else environment
    address = server or given.get(SERVER_VARIABLE) or None
    secret = token or given.get(TOKEN_VARIABLE) or None
    authority = cacert or given.get(CACERT_VARIABLE) or None
    local = _find_local(given, working_directory or Path.cwd())
    if address is None:
        if local is None:
            raise NotFound(
                "no server to speak to",
                expected=f"--server URL or {SERVER_VARIABLE}, or a running `flota up`",
                hint=f"Start one with `flota up --data {LOCAL_DATA_DIRECTORY}`, or say where it is.",
            )
        address = local.addresses[0]
    url = parse_server_url(address)
    is_local = local is not None and url in local.addresses
    if secret is None and local is not None and is_local:
        secret = _read_text(local.directory / ADMIN_TOKEN)
    if secret is None:
        raise Unauthenticated(
            f"no access token for {url}",
            expected=f"--token TOKEN or {TOKEN_VARIABLE}",
            hint="Ask an administrator for one: flota token create NAME --role operator.",
        )
    if authority is None and local is not None and is_local:
        authority = local.cacert
    return FoundServer(url=url, token=secret, cacert=Path(authority) if authority is not None else None)


def parse_server_url(text: str) -> str:
    """Return a server's address as `http(s)://host[:port][/path]`; `host:port` means http. Raises `InvalidInput`."""
    address = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not address.isascii() or any(character.isspace() for character in address):
        raise InvalidInput("not a server's address", expected="http(s)://HOST[:PORT]", found=repr(text[:200]))
    return address.rstrip("/")


def _find_local(environment: Mapping[str, str], working_directory: Path) -> _LocalServer | None:
    for directory in data_directories(environment, working_directory):
        local = _read_record(directory)
        if local is not None:
            return local
    return None


def data_directories(environment: Mapping[str, str], working_directory: Path) -> list[Path]:
    """Return where a local server may keep its data: FLOTA_DATA alone if it is set, else the usual places, in order."""
    named = environment.get(DATA_VARIABLE)
    if named:
        return [Path(named).expanduser()]
    base = environment.get("XDG_DATA_HOME")
    home = environment.get("HOME")
    shared = Path(base) if base else Path(home, ".local", "share") if home else None
    return [working_directory / LOCAL_DATA_DIRECTORY, *([shared / "flota"] if shared is not None else [])]


def _read_record(directory: Path) -> _LocalServer | None:
    """Return the server that left its addresses in `directory`, None if none runs there (or not for us to read)."""
    text = _read_text(directory / SERVER_RECORD)
    if text is None:
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    http, https, authority = (_text(record.get(name)) for name in ("http", "https", "ca"))
    if http is None and https is None:
        return None
    return _LocalServer(directory, http, https, Path(authority) if authority is not None else None)


def _text(value: object) -> str | None:
    return value.rstrip("/") if isinstance(value, str) and value else None


def _read_text(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(RECORD_MAX_BYTES).strip() or None
    except (OSError, UnicodeDecodeError):
        return None
