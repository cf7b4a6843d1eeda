"""A gateway with 20 devices, killed with -9 at 20 random moments of a rollout: every device ends on the release."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from flota.client.management import ManagementClient
from flota.gateway.journal import Journal
from flota.gateway.starting import MODULE, VARIABLE
from flota.gateway.update_states import IS_OVER
from flota.images.ameba import pack_ota_file
from flota.lab.local_server import LocalServer
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners, pack_trust_file
from tests.scenarios.ameba_site import SiteBoard, site
from tests.scenarios.releases import publish
from tests.virtual.ameba_devices import image_of

DEVICES = 20
KILLS = 20
SPEED = 8.0
"""A push of the image takes about 0.4 s, a reboot 0.2 s."""

LIFE_MAX_S = 1.0
"""How long a gateway lives at most after it has begun: long enough for about two pushes."""

PUSHES_WITHIN_S = 4.0

RELEASE = pack_ota_file(image_of("2.0.0", 160_000))
RESIDENT_MAX_KIB = 60 * 1024

CONFIG = """\
server = "{server}"
token_file = "token"
trust = "trust.json"
state = "state"
poll_s = 0.3
evidence_s = 30
pushes_at_once = 2
interfaces = ["127.0.0.1"]
"""
DEVICE = """
[[device]]
name = "{name}"
address = "{address}"
"""


class GatewayProcess:
    """`flota gateway run` as a process; its log is one file over all its lives."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "gateway.log"
        self._begun_at = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, inner: bool = False) -> None:
        """Start with the command, or (`inner`) what the command becomes, which is there in half the time."""
        config = str(self.directory / "gateway.toml")
        command = [sys.executable, "-m", "flota", "gateway", "run", "--config", config, "--log-json"]
        environment = None
        if inner:
            command = [sys.executable, "-m", MODULE]
            environment = {**os.environ, VARIABLE: json.dumps({"config": config, "log_json": True})}
        with self.log.open("ab") as log:
            self._begun_at = log.tell()
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    async def says(self, event: str, *, within_s: float) -> None:
        """Wait until this life has logged an event, or until the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while f'"{event}"'.encode() not in self.log.read_bytes()[self._begun_at :]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(30)

    @property
    def peak_resident_kib(self) -> int:
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])

    def events(self) -> list[dict[str, object]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.scenario
@pytest.mark.timeout(400)
async def test_every_device_ends_on_the_release_though_its_gateway_is_killed_20_times(
    tmp_path: Path, server: LocalServer, key: PrivateKey
) -> None:
    rng = random.Random(6)
    async with site(DEVICES, net=7, speed=SPEED) as boards:
        with server.client() as client:
            rollout = await asyncio.to_thread(_prepare, client, key, boards, tmp_path, server)
            gateway = GatewayProcess(tmp_path)
            for life in range(KILLS):
                gateway.start(inner=True)
                await gateway.says("gateway.running", within_s=20)
                if life % 2:  # every other time into the pushes, else anywhere from the start on
                    await gateway.says("gateway.pushing", within_s=PUSHES_WITHIN_S)
                await asyncio.sleep(rng.random() * LIFE_MAX_S)
                gateway.end(signal.SIGKILL)
            gateway.start()
            try:
                await _until_final(client, rollout, within_s=60)
                resident = gateway.peak_resident_kib
            finally:
                status = gateway.end(signal.SIGTERM)
            executions = await asyncio.to_thread(client.executions, rollout)
            assert {each.state for each in executions} == {"SUCCEEDED"}
            assert len(executions) == DEVICES
            await _all_run("2.0.0", boards)
    events = gateway.events()
    _no_push_after_a_verdict(events)
    _all_decided_well(tmp_path / "state")
    assert status == 0
    assert any(event["event"] == "gateway.interrupted" for event in events), "no kill hit a push"
    assert resident <= RESIDENT_MAX_KIB


def _prepare(
    client: ManagementClient, key: PrivateKey, boards: Sequence[SiteBoard], directory: Path, server: LocalServer
) -> int:
    client.trust("amebad", [key.public_pem])
    for board in boards:
        client.add_device(board.name, "amebad")
    publish(client, key, "amebad", "2.0.0", RELEASE)
    made = client.create_gateway_token("site", devices=[board.name for board in boards])
    assert made.secret is not None
    (directory / "token").write_text(made.secret)
    (directory / "trust.json").write_bytes(pack_trust_file(TrustedSigners.of([key.public_pem])))
    devices = "".join(DEVICE.format(name=board.name, address=board.address) for board in boards)
    (directory / "gateway.toml").write_text(CONFIG.format(server=server.address.http) + devices)
    return client.create_rollout("amebad@2.0.0", select="type=amebad", name="all").id


async def _until_final(client: ManagementClient, rollout: int, *, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not (await asyncio.to_thread(client.rollout, rollout)).is_final:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def _all_run(version: str, boards: Sequence[SiteBoard]) -> None:
    async with asyncio.timeout(30):
        while {board.version for board in boards} != {version}:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def _no_push_after_a_verdict(events: Sequence[dict[str, object]]) -> None:
    """A kill may fall between a verdict's record and its line in the log: telling the server shows it too."""
    verdicts: set[object] = set()
    decided: set[object] = set()
    for event in events:
        if event["event"] == "gateway.verdict":
            assert event["device"] not in verdicts, "two verdicts"
            verdicts.add(event["device"])
        if event["event"] in {"gateway.verdict", "gateway.verdict-told", "gateway.verdict-not-wanted"}:
            decided.add(event["device"])
        elif event["event"] == "gateway.pushing":
            assert event["device"] not in decided, f"{event['device']} was pushed to after its verdict"
    assert len(decided) == DEVICES


def _all_decided_well(state: Path) -> None:
    updates = [entry.update for entry in Journal(state, clean=False).all()]
    assert len(updates) == DEVICES
    assert all(update is not None and update.stage in IS_OVER and update.success for update in updates)
