"""The gateway that `flota up` runs for the local network: a process of its own, fed with the registry's devices.

Adopted are accepted devices of a type whose board waits to be pushed to, and which have a MAC address or the label
`address`. Whom it trusts stands in a file that the operator puts there: never taken from the server, even from one on
the same machine. Source: docs/reference/gateway.md, "With flota up".
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from flota.boards.catalogue import board as board_named
from flota.boards.model import Route
from flota.durable_files import PRIVATE_FILE_MODE, write_durably
from flota.errors import FlotaError
from flota.gateway.configuration import device_of_table

if TYPE_CHECKING:
    from flota.client.management import ManagementClient
    from flota.client.schemas import Device

LOOK_EVERY_S: Final = 5.0
STOP_WITHIN_S: Final = 30.0
TOKEN_NAME: Final = "local-gateway"  # noqa: S105 - a token's name
DIRECTORY: Final = "gateway"
TRUST_PATTERN: Final = "*trust.json"
LABELS: Final = ("address", "port", "profile")
"""Labels of a device that its gateway heeds."""

_log = structlog.get_logger("flota.gateway")


class LocalGateway:
    """Looks at the registry now and then from a thread of its own, and keeps a `flota gateway run` going."""

    def __init__(self, data: Path, *, log_json: bool = False, log_level: str = "info") -> None:
        self.directory = data / DIRECTORY
        self._log_options = ["--log-level", log_level, *(["--log-json"] if log_json else [])]
        self._process: subprocess.Popen[bytes] | None = None
        self._trusted: list[Path] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._told: str | None = None

    def start(self, url: str, cacert: str | None, token_file: str) -> None:
        """Begin; returns at once. `url` is the server's address on this machine."""
        self._thread = threading.Thread(target=self._run, args=(url, cacert, token_file), daemon=True, name="gateway")
        self._thread.start()

    def stop(self) -> None:
        """End the gateway: it finishes a push that is under way, but not for longer than half a minute."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_WITHIN_S)
        self._end()

    def _run(self, url: str, cacert: str | None, token_file: str) -> None:
        while not self._stop.is_set():
            try:
                self._look(url, cacert, token_file)
            except (FlotaError, OSError) as error:
                self._tell(f"cannot run: {error}")
            self._stop.wait(LOOK_EVERY_S)

    def _look(self, url: str, cacert: str | None, token_file: str) -> None:
        trusted = sorted(self.directory.glob(TRUST_PATTERN))
        if not trusted:
            self._end()
            return
        from flota.client.management import ManagementClient  # httpx: memory that an idle server does not need

        token = Path(token_file).read_text("ascii").strip()
        with ManagementClient(url, token, verify=True if cacert is None else Path(cacert)) as client:
            devices = list(self._adopted(client))
            if devices:
                self._ensure_token(client)
        self._write_config(url, cacert, trusted, devices)
        if self._process is not None and self._process.poll() is not None:
            self._tell(f"ended with status {self._process.returncode}: starting it again")
            self._process = None
        if trusted != self._trusted:
            self._end()  # it reads its trust files when it starts
        if devices and self._process is None and not self._stop.is_set():
            self._begin(trusted)
        elif not devices:
            self._end()

    def _adopted(self, client: ManagementClient) -> Iterable[dict[str, Any]]:
        """Yield a configuration table for every device that may be pushed to."""
        for kind in client.list_types():
            try:
                routes = board_named(kind.board).routes
            except FlotaError:
                continue
            if Route.AMEBA_PUSH not in routes or (kind.builtin and kind.id is None):
                continue
            for device in client.list_devices(type_name=kind.name, state="accepted"):
                table = _table_of(device, kind.board, kind.hardware_revision)
                if table is not None:
                    yield table

    def _ensure_token(self, client: ManagementClient) -> None:
        path = self.directory / "token"
        if path.exists():
            return
        for old in client.list_gateway_tokens():
            if old.name == TOKEN_NAME and old.revoked_at is None:
                client.revoke_gateway_token(old.id)
        made = client.create_gateway_token(TOKEN_NAME, all_devices=True)
        write_durably(path, f"{made.secret}\n".encode(), mode=PRIVATE_FILE_MODE)

    def _write_config(self, url: str, cacert: str | None, trusted: list[Path], devices: list[dict[str, Any]]) -> None:
        top: dict[str, Any] = {
            "server": url,
            "token_file": "token",
            "trust": [path.name for path in trusted],
            "state": "state",
            **({} if cacert is None else {"cacert": str(cacert)}),
        }
        lines = ["# Written by `flota up` from its registry; changes are lost.", *_toml(top)]
        for table in devices:
            lines += ["", "[[device]]", *_toml(table)]
        packed = ("\n".join(lines) + "\n").encode()
        path = self.directory / "gateway.toml"
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == packed:
                return
        write_durably(path, packed, mode=PRIVATE_FILE_MODE)

    def _begin(self, trusted: list[Path]) -> None:
        config = str(self.directory / "gateway.toml")
        command = [sys.executable, "-m", "flota", "gateway", "run", "--config", config, "--with-parent"]
        self._process = subprocess.Popen(  # noqa: S603 - our own program with our own arguments
            [*command, *self._log_options], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        self._trusted = trusted

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            _log.error("gateway.local", text=text)


def _table_of(device: Device, board: str, hardware_revision: str | None) -> dict[str, Any] | None:
    """Return a device's configuration, None if nothing tells where it is or its labels make no sense."""
    labels = {name: device.labels[name] for name in LABELS if device.labels.get(name)}
    if device.mac is None and "address" not in labels:
        return None
    table: dict[str, Any] = {"name": device.name, "type": device.type, "board": board, **labels}
    if device.mac is not None:
        table["mac"] = device.mac
    if hardware_revision is not None:
        table["hardware_revision"] = hardware_revision
    if "port" in table and table["port"].isascii() and table["port"].isdecimal():
        table["port"] = int(table["port"])
    try:
        device_of_table(table, Path())
    except FlotaError as error:
        _log.warning("gateway.labels_refused", device=device.name, text=str(error))
        return None
    return table


def _toml(table: dict[str, Any]) -> list[str]:
    """Return a table's lines; JSON's texts, numbers and lists are TOML's, but for DEL."""
    packed = {name: json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") for name, value in table.items()}
    return [f"{name} = {value}" for name, value in packed.items()]
