"""What a gateway is told: the server, its token, whom it trusts, where it keeps its state, and its devices.

A TOML file, or flags for a few devices. Every mistake is named with the place where it stands.
Source: docs/reference/gateway.md, "Configuration".
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flota.boards.catalogue import board as board_named
from flota.boards.model import Board
from flota.errors import InvalidInput
from flota.gateway.driver import AdoptedDevice
from flota.images.esp_partitions import pack_table, parse_csv
from flota.protocols.ameba_push import profile_named
from flota.protocols.ddi import DEFAULT_TENANT, GATEWAY_TOKEN, TARGET_TOKEN
from flota.trust.trust_file import TRUST_FILE_MAX_BYTES, TrustedSigners, parse_trust_file

CONFIG_MAX_BYTES: Final = 4 * 1024 * 1024
TOKEN_FILE_MAX_BYTES: Final = 4096
PARTITIONS_MAX_BYTES: Final = 64 * 1024
DEVICES_MAX: Final = 5000
DEVICE_NAME_MAX_LEN: Final = 128
MEBIBYTE: Final = 1024 * 1024
DEFAULT_CACHE_BYTES: Final = 256 * MEBIBYTE

DRIVER_OF_BOOT: Final[Mapping[str, str]] = {"ameba-signature": "ameba", "esp-otadata": "espota"}
"""What carries the last hop unless a device names its driver, by its board's kind of boot."""

_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(?:[:-]?[0-9A-Fa-f]{2}){5}\Z")
_DEVICE_KEYS: Final = frozenset(
    {
        "name", "driver", "address", "port", "mac", "profile", "board", "type", "hardware_revision", "partitions",
        "password", "password_file", "token", "token_file",
    }
)  # fmt: skip
_GATEWAY_KEYS: Final = frozenset(
    {
        "server", "tenant", "token", "token_file", "cacert", "trust", "state", "cache_mib", "poll_s", "evidence_s",
        "patience_s", "attempts", "pushes_at_once", "mdns", "interfaces", "metrics", "check_ins", "device",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a gateway waits (seconds), and how often it tries.

    `evidence_s`: for a sign of life after a push; within `restart_s` the old app may still tell its version.
    `unreachable_s`: for a board that refuses connections, before the update has failed. `attempts`: pushes that broke
    off. `poll_s`: between polls, None = as the server says. `look_s`: between looks. `retry_s`: before the next try,
    doubled each time up to `retry_max_s`.
    """

    evidence_s: float = 180.0
    restart_s: float = 10.0
    unreachable_s: float = 3600.0
    attempts: int = 5
    poll_s: float | None = None
    look_s: float = 0.25
    retry_s: float = 2.0
    retry_max_s: float = 60.0


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """A whole configuration. `token` is the gateway's, None when every device has one of its own.

    `interfaces` None: all; `listens` False: no mDNS at all. `check_ins`: host and port where boards post their state,
    None = nowhere. `cache_bytes` bounds the directory of fetched files.
    """

    server: str
    state: Path
    trust: tuple[Path, ...]
    devices: tuple[AdoptedDevice, ...]
    token: str | None = field(default=None, repr=False)
    tenant: str = DEFAULT_TENANT
    cacert: Path | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES
    patience: Patience = field(default_factory=Patience)
    pushes_at_once: int = 64
    listens: bool = True
    interfaces: tuple[str, ...] | None = None
    metrics: tuple[str, int] | None = None
    check_ins: tuple[str, int] | None = None


def credentials_of(settings: GatewaySettings, device: AdoptedDevice) -> tuple[str, str] | None:
    """Return token and scheme for a device's requests: its own, else the gateway's; None when there is neither."""
    if device.token is not None:
        return device.token, TARGET_TOKEN
    return None if settings.token is None else (settings.token, GATEWAY_TOKEN)


def read_config(path: Path) -> dict[str, Any]:
    """Return the tables of a configuration file. Raises `InvalidInput` if it cannot be read or is no TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_MAX_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", found=error.strerror or str(error)) from error
    if len(data) > CONFIG_MAX_BYTES:
        raise InvalidInput(f"{path} is too large", expected=f"at most {CONFIG_MAX_BYTES} bytes")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{path} is no TOML", found=str(error)[:200]) from error


def settings_from(
    file: Mapping[str, Any], flags: Mapping[str, Any], devices: Sequence[AdoptedDevice] = (), *, base: Path
) -> GatewaySettings:
    """Return the settings of a file's tables and of flags, which win; relative paths in the file start at `base`.

    Raises `InvalidInput`.
    """
    unknown = sorted(set(file) - _GATEWAY_KEYS)
    if unknown:
        raise InvalidInput("unknown setting", expected=", ".join(sorted(_GATEWAY_KEYS)), found=", ".join(unknown)[:200])
    told = {**{name: value for name, value in file.items() if name != "device"}, **_given(flags)}
    reader = _Reader(told, base)
    listed = file.get("device", [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise InvalidInput("devices are written as [[device]] tables")
    adopted = [*(device_of_table(one, base) for one in listed), *devices]
    _refuse_doubles(adopted)
    patience = Patience(
        evidence_s=reader.number("evidence_s", 180.0, at_least=0.1),
        unreachable_s=reader.number("patience_s", 3600.0, at_least=0.0),
        attempts=int(reader.number("attempts", 5, at_least=1)),
        poll_s=reader.number("poll_s", 0.0, at_least=0.0) or None,
    )
    token_file = reader.path("token_file")
    return GatewaySettings(
        server=server_url(reader.text("server") or ""),
        state=reader.path("state") or Path("flota-gateway"),
        trust=reader.paths("trust"),
        devices=tuple(adopted),
        token=reader.text("token") or (None if token_file is None else read_token(token_file)),
        tenant=reader.text("tenant") or DEFAULT_TENANT,
        cacert=reader.path("cacert"),
        cache_bytes=int(reader.number("cache_mib", DEFAULT_CACHE_BYTES / MEBIBYTE, at_least=1) * MEBIBYTE),
        patience=patience,
        pushes_at_once=int(reader.number("pushes_at_once", 64, at_least=1)),
        listens=reader.switch("mdns", default=True),
        interfaces=reader.texts("interfaces"),
        metrics=listen_address(reader.text("metrics")),
        check_ins=listen_address(reader.text("check_ins")),
    )


def device_of_flag(text: str) -> AdoptedDevice:
    """Return the device in `NAME=HOST[:PORT][,mac=…][,profile=…][,board=…][,type=…][,hardware_revision=…]`.

    HOST may be left out when there is a `mac`. Raises `InvalidInput`.
    """
    name, equals, rest = text.partition("=")
    table: dict[str, Any] = {"name": name.strip()}
    for number, part in enumerate(rest.split(",")):
        key, sign, value = part.strip().partition("=")
        if sign:
            if key in table or key not in _DEVICE_KEYS - {"name"}:
                raise InvalidInput(
                    "not a setting of a device", expected=", ".join(sorted(_DEVICE_KEYS)), found=repr(key)
                )
            table[key] = value
        elif number == 0 and key:
            table |= _host_and_port(key)
        elif key or number:
            raise InvalidInput("not a device", expected="NAME=HOST[:PORT][,mac=…][,…]", found=repr(text[:200]))
    if not equals:
        raise InvalidInput("not a device", expected="NAME=HOST[:PORT][,mac=…][,…]", found=repr(text[:200]))
    if isinstance(table.get("port"), str):
        table |= _host_and_port(f"x:{table['port']}") | {"address": table.get("address")}
    return device_of_table({key: value for key, value in table.items() if value is not None}, Path())


def mac_address(text: str) -> str:
    """Return a MAC address as AA:BB:CC:DD:EE:FF. Raises `InvalidInput`."""
    if not _MAC.match(text):
        raise InvalidInput("not a MAC address", expected="such as 00:E0:4C:12:34:56", found=repr(text[:40]))
    plain = text.replace(":", "").replace("-", "").upper()
    return ":".join(plain[start : start + 2] for start in range(0, 12, 2))


def server_url(text: str) -> str:
    """Return a server's address without a final slash. Raises `InvalidInput` unless it is http(s)://HOST[:PORT]."""
    address = text.strip().rstrip("/")
    if not re.match(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?\Z", address):
        raise InvalidInput("no server to ask", expected="http(s)://HOST[:PORT]", found=repr(text[:200]))
    return address


def read_token(path: Path) -> str:
    """Return the token in a file. Raises `InvalidInput` if there is none."""
    try:
        with path.open("rb") as file:
            text = file.read(TOKEN_FILE_MAX_BYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", found=error.strerror or str(error)) from error
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise InvalidInput(f"{path} holds no token", expected="one line")
    return text


def read_partitions(path: Path, board: Board) -> bytes:
    """Return the binary partition table of a CSV file. Raises `InvalidInput`, or an `ImageError` for what it says."""
    try:
        with path.open("rb") as file:
            text = file.read(PARTITIONS_MAX_BYTES)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}", found=error.strerror or str(error)) from error
    return pack_table(parse_csv(text, bootloader_offset=board.bootloader_offset))  # boards are sold with any flash


def read_trust_files(paths: Sequence[Path]) -> tuple[TrustedSigners, ...]:
    """Return what the trust files say. Raises `InvalidInput` without any, or for one that cannot be read."""
    if not paths:
        raise InvalidInput(
            "a gateway needs to know whom it trusts",
            expected="--trust FILE",
            hint="The boards behind it check no signature. `flota key show KEY --trust > trust.json` makes the file.",
        )
    found = []
    for path in paths:
        try:
            with path.open("rb") as file:
                found.append(parse_trust_file(file.read(TRUST_FILE_MAX_BYTES + 1)))
        except OSError as error:
            raise InvalidInput(f"cannot read {path}", found=error.strerror or str(error)) from error
    return tuple(found)


def listen_address(text: str | None) -> tuple[str, int] | None:
    """Return host and port of `HOST:PORT` (or `PORT`, loopback); None for None. Raises `InvalidInput`."""
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise InvalidInput("not an address to listen at", expected="HOST:PORT", found=repr(text[:80]))
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None and value != []}


def _host_and_port(text: str) -> dict[str, Any]:
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or (port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536)):
        raise InvalidInput("not a device's address", expected="HOST, HOST:PORT or [IPV6]:PORT", found=repr(text[:80]))
    return {"address": host, "port": int(port) if port else None}


def device_of_table(table: Mapping[str, Any], base: Path) -> AdoptedDevice:
    """Return the device of a `[[device]]` table; relative paths start at `base`. Raises `InvalidInput`, `NotFound`."""
    name = table.get("name")
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= DEVICE_NAME_MAX_LEN:
        raise InvalidInput("a device without a name", found=repr(name)[:80])
    unknown = sorted(set(table) - _DEVICE_KEYS)
    if unknown:
        raise InvalidInput(f"{name}: unknown setting", expected=", ".join(sorted(_DEVICE_KEYS)), found=unknown[0][:80])
    reader = _Reader(table, base, f"{name}: ")
    port = table.get("port")
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536):
        raise InvalidInput(f"{name}: not a port", expected="1 to 65535", found=repr(port)[:40])
    mac, address, board = reader.text("mac"), reader.text("address"), reader.text("board") or "amebad"
    if mac is None and address is None:
        raise InvalidInput(
            f"{name}: neither address nor mac",
            hint="A board is adopted by where it is or by its MAC address; what it calls itself proves nothing.",
        )
    token_file, password_file = reader.path("token_file"), reader.path("password_file")
    hardware, partitions = board_named(board), reader.path("partitions")
    return AdoptedDevice(
        name=name,
        device_type=reader.text("type") or hardware.name,
        board=hardware.name,
        driver=reader.text("driver") or DRIVER_OF_BOOT.get(hardware.boot, "ameba"),
        address=None if address is None else address.lower().rstrip("."),
        port=port,
        mac=None if mac is None else mac_address(mac),
        profile=profile_named(reader.text("profile") or "arduino").name,
        hardware_revision=reader.text("hardware_revision"),
        partition_table=None if partitions is None else read_partitions(partitions, hardware),
        password=reader.text("password") or (None if password_file is None else read_token(password_file)),
        token=reader.text("token") or (None if token_file is None else read_token(token_file)),
    )


def _refuse_doubles(devices: Sequence[AdoptedDevice]) -> None:
    if len(devices) > DEVICES_MAX:
        raise InvalidInput("too many devices", expected=f"at most {DEVICES_MAX}", found=len(devices))
    seen: dict[tuple[str, object], str] = {}
    for device in devices:
        port = device.port or profile_named(device.profile).port
        place = None if device.address is None else (device.address, port)
        for kind, value in (("name", device.name), ("address", place), ("mac", device.mac)):
            if value is None:
                continue
            other = seen.setdefault((kind, value), device.name)
            if other != device.name or (kind == "name" and sum(one.name == value for one in devices) > 1):
                raise InvalidInput(f"two devices with the same {kind}", found=f"{other}, {device.name}")


class _Reader:
    """Takes typed values out of a table; says which one is of the wrong kind."""

    def __init__(self, table: Mapping[str, Any], base: Path, where: str = "") -> None:
        self._table = table
        self._base = base
        self._where = where

    def text(self, name: str) -> str | None:
        value = self._table.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise InvalidInput(f"{self._where}{name} is no text", found=repr(value)[:80])
        return value.strip()

    def texts(self, name: str) -> tuple[str, ...] | None:
        value = self._table.get(name)
        if value is None:
            return None
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(one, str) and one for one in values):
            raise InvalidInput(f"{self._where}{name} is no list of texts", found=repr(value)[:80])
        return tuple(values)

    def path(self, name: str) -> Path | None:
        value = self._table.get(name)
        if isinstance(value, Path):
            return value
        text = self.text(name)
        return None if text is None else self._base / text

    def paths(self, name: str) -> tuple[Path, ...]:
        value = self._table.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(one, str | Path) for one in values):
            raise InvalidInput(f"{self._where}{name} is no list of files", found=repr(value)[:80])
        return tuple(one if isinstance(one, Path) else self._base / one for one in values)

    def number(self, name: str, default: float, *, at_least: float) -> float:
        value = self._table.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not at_least <= value < float("inf"):
            raise InvalidInput(
                f"{self._where}{name} is out of range", expected=f"at least {at_least:g}", found=repr(value)
            )
        return float(value)

    def switch(self, name: str, *, default: bool) -> bool:
        value = self._table.get(name, default)
        if not isinstance(value, bool):
            raise InvalidInput(f"{self._where}{name} is neither true nor false", found=repr(value)[:40])
        return value
