"""A `flota up` of one's own on this machine: started, killed, started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from flota.client.management import ManagementClient
from flota.errors import FlotaError, PeerError

START_WITHIN_S: Final = 30.0
STOP_WITHIN_S: Final = 40.0
LOOK_EVERY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where the running server listens, as its data directory says."""

    http: str
    https: str | None
    token: str
    mqtt: str | None = None
    mqtts: str | None = None


class LocalServer:
    """Runs `flota up` as a process on free loopback ports. The data directory may be used before: that is a restart.

    Ports stay the same over a restart, so that devices find the server again. `options` are more flags of `flota up`.
    """

    def __init__(self, data: Path, *, options: Sequence[str] = (), https: bool = True, mqtt: bool = True) -> None:
        self.data = data
        self.log_path = data.parent / f"{data.name}.log"
        self._options = list(options)
        self._http = "127.0.0.1:0"
        self._https = "127.0.0.1:0" if https else None
        self._listens_mqtt = mqtt
        self._mqtt = self._mqtts = "127.0.0.1:0"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ServerAddress(http="", https=None, token="")

    @property
    def pid(self) -> int:
        """Process id of the running server; raises `PeerError` when there is none."""
        if self._process is None:
            raise PeerError("the server is not running")
        return self._process.pid

    def start(self) -> ServerAddress:
        """Start the server and wait until it answers; raises `PeerError` with the end of its log if it does not."""
        command = [sys.executable, "-m", "flota", "up", "--data", str(self.data), "--http", self._http, *self._options]
        command += ["--https", self._https] if self._https else ["--no-https"]
        if self._listens_mqtt:
            command += ["--mqtt", self._mqtt, "--mqtts", self._mqtts]
        command += ["--with-parent"]  # standard input ends when this process does, however that ends
        self._record.unlink(missing_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program with our own arguments
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise PeerError(
                    "the server did not start",
                    found=self._end_of_log(),
                    hint=f"Its whole log is {self.log_path}.",
                )
            time.sleep(LOOK_EVERY_S)
        self._http = self.address.http.removeprefix("http://")
        if self.address.https is not None:
            self._https = self.address.https.removeprefix("https://")
        if self.address.mqtt is not None:
            self._mqtt = self.address.mqtt.removeprefix("mqtt://")
        if self.address.mqtts is not None:
            self._mqtts = self.address.mqtts.removeprefix("mqtts://")
        return self.address

    def client(self) -> ManagementClient:
        """Return a client with the administrator's token."""
        return ManagementClient(self.address.http, self.address.token)

    def kill(self) -> None:
        """End the server as a power cut would: no clean-up of any kind. Does nothing when it is not running."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask the server to stop, wait, and return its exit status (0 when it was not running)."""
        return self._end(signal.SIGTERM)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _record(self) -> Path:
        return self.data / "server.json"

    def _answers(self) -> bool:
        try:
            record = json.loads(self._record.read_text())
            token = (self.data / "admin.token").read_text().strip()
            self.address = ServerAddress(
                http=record["http"],
                https=record.get("https"),
                token=token,
                mqtt=record.get("mqtt"),
                mqtts=record.get("mqtts"),
            )
            with self.client() as client:
                client.whoami()
        except (OSError, ValueError, KeyError, FlotaError):
            return False
        return True

    def _end(self, signal_number: signal.Signals) -> int:
        if self._process is None:
            return 0
        if self._process.poll() is None:
            os.kill(self._process.pid, signal_number)
        try:
            status = self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        return status

    def _end_of_log(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return " | ".join(lines[-5:]) or "an empty log"
