"""A real server in a process of its own, and the command line against it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from flota.cli.app import main
from flota.client.management import ManagementClient
from flota.server.settings import DataDirectory
from tests.empty_database import make_empty_database

START_WITHIN_S = 30
STOP_WITHIN_S = 20


@dataclass(frozen=True)
class Server:
    """Where it listens, and its data directory."""

    url: str
    https: str
    data: Path
    pid: int

    @property
    def token(self) -> str:
        """The administrator's token."""
        return (self.data / "admin.token").read_text().strip()

    def client(self) -> ManagementClient:
        """Return a client with the administrator's token."""
        return ManagementClient(self.url, self.token)


@dataclass(frozen=True)
class Result:
    """What a command did."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """Return what the command printed with --json."""
        return json.loads(self.out)


Flota = Callable[..., Result]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("data")
    make_empty_database(DataDirectory(data).database)
    command = [
        sys.executable,
        "-m",
        "flota",
        "up",
        "--data",
        str(data),
        "--http",
        "127.0.0.1:0",
        "--https",
        "127.0.0.1:0",
        "--mqtt",
        "127.0.0.1:0",
        "--mqtts",
        "127.0.0.1:0",
        "--json",
    ]
    with (data / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    killer = threading.Timer(START_WITHIN_S, process.kill)
    killer.start()
    line = process.stdout.readline()
    killer.cancel()
    assert line, (data / "server.log").read_text()
    record = json.loads(line)
    yield Server(url=record["http"], https=record["https"], data=data, pid=process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_WITHIN_S) == 0
    process.stdout.close()


@pytest.fixture
def flota(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Flota:
    """Run a command in this process, as somebody on the server's machine would."""
    for name in [name for name in os.environ if name.startswith("FLOTA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FLOTA_DATA", str(server.data))
    monkeypatch.setenv("FLOTA_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


class DdiDevice:
    """A hawkBit client of few words: polls, takes what it is offered, reports what it was told to report."""

    def __init__(self, server: Server, name: str, token: str, *, result: str = "success") -> None:
        self.name = name
        self.result = result
        self.installed: list[str] = []
        self._url = f"{server.url}/DEFAULT/controller/v1/{name}"
        self._http = httpx.Client(headers={"authorization": f"TargetToken {token}"}, trust_env=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> DdiDevice:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._http.close()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            poll = self._http.get(self._url)
            link = poll.json().get("_links", {}).get("deploymentBase")
            if poll.status_code != 200 or link is None:
                continue
            deployment = self._http.get(link["href"]).json()
            (chunk,) = deployment["deployment"]["chunks"]
            (artifact,) = chunk["artifacts"]
            body = self._http.get((artifact["_links"].get("download") or artifact["_links"]["download-http"])["href"])
            assert len(body.content) == artifact["size"]
            status = {"execution": "closed", "result": {"finished": self.result}, "details": ["self-test says so"]}
            answer = self._http.post(
                f"{self._url}/deploymentBase/{deployment['id']}/feedback",
                json={"id": deployment["id"], "status": status},
            )
            assert answer.status_code == 200, answer.text
            self.installed.append(chunk["version"])
