"""The server, `flota ncp run` and a virtual primary MCU, three processes and a pseudo-terminal between two of them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flota.client.management import ManagementClient
from flota.gateway.ncp_journal import NcpJournal
from flota.lab.local_server import LocalServer
from flota.lab.programmer import read_slot
from flota.lab.sample_mcu import sample_mcu
from flota.lab.state_directory import StateDirectory
from flota.protocols.blynk.ncp_states import UpdateState
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners, pack_trust_file
from tests.scenarios.releases import publish

AB, NCP = "dual-mcu-ab", "dual-mcu-ncp"
LARGE = 96 * 1024
"""Some seconds of erasing and programming at the speed of real flash."""

both = pytest.mark.parametrize("board", [AB, NCP])
pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module")
def three_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    server = LocalServer(tmp_path_factory.mktemp("three") / "server", https=False, mqtt=False)
    server.start()
    yield server
    server.kill()


class NcpProcess:
    """`flota ncp run` as a process, which can be killed and started again; its log is one file over all its lives."""

    def __init__(self, directory: Path, signers: TrustedSigners) -> None:
        directory.mkdir()
        self.log, self._state = directory / "ncp.log", directory / "state"
        (directory / "trust.json").write_bytes(pack_trust_file(signers))
        self.command = [sys.executable, "-m", "flota", "ncp", "run", "--state", str(self._state)]
        self.command += ["--trust", str(directory / "trust.json")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def update_state(self) -> UpdateState | None:
        record = NcpJournal(self._state, clean=False).read()
        return None if record is None or record.job is None else record.job.state


@dataclass
class Three:
    """All three; `mcu` is the process of the device."""

    server: LocalServer
    client: ManagementClient
    name: str
    board: str
    state: Path
    serial: Path
    key: PrivateKey = field(default_factory=lambda: PrivateKey.generate("p256"))
    options: tuple[str, ...] = ()
    mcu: subprocess.Popen[bytes] | None = None
    ncp: NcpProcess | None = None

    @property
    def log(self) -> Path:
        return self.state.with_suffix(".log")

    def power_on(self, *options: str) -> None:
        self.options = options or self.options
        command = [sys.executable, "-m", "flota", "lab", "run", self.board, "--name", self.name]
        command += ["--state", str(self.state), "--serial", str(self.serial), *self.options]
        with self.log.open("ab") as log:
            self.mcu = subprocess.Popen(command, stdout=log, stderr=log)

    def cut_power(self) -> None:
        assert self.mcu is not None
        self.mcu.send_signal(signal.SIGKILL)
        self.mcu.wait()

    def press_reset(self) -> None:
        assert self.mcu is not None
        self.mcu.send_signal(signal.SIGHUP)

    def start_ncp(self, settle_s: float = 1.0) -> NcpProcess:
        self.client.add_type(self.name, self.board, signers=[self.key.public_pem])
        token = self.client.add_device(self.name, self.name).token
        assert token is not None
        self.ncp = NcpProcess(self.state.with_name("ncp"), TrustedSigners.of([self.key.public_pem]))
        self.ncp.command += ["--serial", str(self.serial), "--server", self.server.address.http, "--token", token]
        self.ncp.command += ["--device", self.name, "--type", self.name, "--board", self.board]
        self.ncp.command += ["--poll-s", "0.3", "--settle-s", str(settle_s)]
        self.ncp.start()
        return self.ncp

    async def update(self, image: bytes) -> int:
        """Roll version 2.0.0 out, once the MCU has come up: what is awaited then is the update alone."""
        await self.until(lambda: "mcu-initialized" in self.ncp_log())
        release = publish(self.client, self.key, self.name, "2.0.0", image)
        return self.client.create_rollout(release.id, devices=[self.name]).id

    async def ended(self, rollout: int, within_s: float = 45) -> str:
        def outcome() -> str:
            return "".join(str(execution.state) for execution in self.client.executions(rollout))

        await self.until(lambda: outcome() in ("SUCCEEDED", "FAILED", "REJECTED", "TIMED_OUT", "CANCELED"), within_s)
        return outcome()

    def ncp_log(self) -> str:
        return "" if self.ncp is None else self.ncp.log.read_text()

    def said(self, text: str) -> int:
        return self.log.read_text().count(text)

    def running(self) -> bytes:
        return read_slot(StateDirectory(self.state), "running")[1]

    async def until(self, condition: Callable[[], object], within_s: float = 30) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - it happens in other processes
                    await asyncio.sleep(0.02)
        except TimeoutError:
            said = f"{self.log.read_text()[-3000:]}\n{self.ncp_log()[-3000:]}"
            raise AssertionError(f"it did not happen; the logs:\n{said}") from None

    async def streams(self) -> None:
        """Wait until the MCU receives."""
        ncp = self.ncp
        assert ncp is not None
        await self.until(lambda: ncp.update_state() is UpdateState.STREAMING)
        await self.until(lambda: self.said("the stream begins"))

    def off(self) -> None:
        if self.ncp is not None:
            self.ncp.kill()
        if self.mcu is not None and self.mcu.poll() is None:
            self.cut_power()


@pytest.fixture
def all_three(
    three_server: LocalServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Three]]:
    made: list[Three] = []
    with three_server.client() as client:

        def make(board: str) -> Three:
            name = f"three-{abs(hash(request.node.name)) % 10_000_000}"
            made.append(Three(three_server, client, name, board, tmp_path / "mcu", tmp_path / "uart"))
            return made[-1]

        yield make
        for one in made:
            one.off()


async def test_a_release_that_never_confirms_is_rolled_back(all_three: Callable[[str], Three]) -> None:
    three = all_three(AB)
    three.power_on("--speed", "20", "--confirm-window", "2")
    three.start_ncp(settle_s=5.0)
    rollout = await three.update(sample_mcu("2.0.0", behaviour="never-confirm"))
    assert await three.ended(rollout) == "FAILED"
    assert three.said("version 2.0.0, to be confirmed") == 3
    assert three.running() == sample_mcu("1.0.0")


@both
async def test_an_ncp_killed_in_mid_stream_completes(all_three: Callable[[str], Three], board: str) -> None:
    three = all_three(board)
    three.power_on()
    ncp = three.start_ncp()
    new = sample_mcu("2.0.0", size=LARGE)
    rollout = await three.update(new)
    await three.streams()
    ncp.kill()
    assert ncp.update_state() is UpdateState.STREAMING
    ncp.start()
    assert await three.ended(rollout) == "SUCCEEDED"
    assert three.running() == new


@both
async def test_an_mcu_reset_in_mid_stream_completes(all_three: Callable[[str], Three], board: str) -> None:
    """With one bank the boot loader is reset, which has no app any more, and starts again."""
    three = all_three(board)
    three.power_on()
    three.start_ncp()
    new = sample_mcu("2.0.0", size=LARGE)
    rollout = await three.update(new)
    await three.streams()
    three.press_reset()
    assert await three.ended(rollout) == "SUCCEEDED"
    assert three.running() == new
    assert three.said("the reset button") == 1


async def test_an_mcu_that_loses_its_power_in_mid_stream_completes_without_an_app(
    all_three: Callable[[str], Three],
) -> None:
    three = all_three(NCP)
    three.power_on()
    three.start_ncp()
    new = sample_mcu("2.0.0", size=LARGE)
    rollout = await three.update(new)
    await three.streams()
    three.cut_power()
    await asyncio.sleep(0.5)
    three.power_on("--speed", "20")
    assert await three.ended(rollout) == "SUCCEEDED"
    assert three.running() == new
