"""`flota ncp run` on one end of a pseudo-terminal, an MCU on the other, the server in a third process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from flota.client.management import ManagementClient
from flota.gateway.ncp_journal import NcpJournal
from flota.gateway.ncp_settings import MODULE, VARIABLE, NcpRunSettings
from flota.lab.local_server import LocalServer
from flota.protocols.blynk.ncp_states import UpdateState
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners, pack_trust_file
from tests.gateway.small_mcu import SmallMcu, firmware
from tests.scenarios.releases import publish

RESIDENT_MAX_KIB = 60 * 1024


class NcpProcess:
    """An NCP as a process; its log is one file over all its lives."""

    def __init__(self, settings: NcpRunSettings) -> None:
        self.settings = settings
        self.directory = Path(settings.state)
        self.log = self.directory.parent / "ncp.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, by_command: bool = False) -> None:
        """Start what `flota ncp run` becomes, which is there in half the time; or the command itself."""
        settings, environment = self.settings, dict(os.environ)
        command = [sys.executable, "-m", MODULE]
        if by_command:
            command = [sys.executable, "-m", "flota", "ncp", "run", "--serial", settings.serial]
            command += ["--server", settings.server, "--token", settings.token or "", "--device", settings.device]
            command += ["--state", settings.state, "--trust", settings.trust[0], "--board", settings.board]
            command += ["--type", settings.device_type or "", "--poll-s", str(settings.poll_s)]
            command += ["--settle-s", str(settings.settle_s)]
        else:
            environment[VARIABLE] = msgspec.json.encode(settings).decode()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(20)

    def resident_kib(self) -> int:
        assert self.process is not None
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])

    def record_state(self) -> UpdateState | None:
        record = NcpJournal(self.directory, clean=False).read()
        return None if record is None or record.job is None else record.job.state


class Site:
    """Server, NCP and MCU; of each test its own device of its own type."""

    def __init__(self, server: LocalServer, client: ManagementClient, directory: Path, name: str) -> None:
        self.server, self.client, self.directory, self.name = server, client, directory, name
        self.key = PrivateKey.generate("p256")
        self.trusted = self.key

    def prepare(self, mcu: SmallMcu, *, board: str = "dual-mcu-ab", settle_s: float = 1.0) -> NcpProcess:
        self.client.add_type(self.name, board, signers=[self.key.public_pem])
        token = self.client.add_device(self.name, self.name).token
        trust = self.directory / "trust.json"
        trust.write_bytes(pack_trust_file(TrustedSigners.of([self.trusted.public_pem])))
        return NcpProcess(
            NcpRunSettings(
                serial=mcu.path,
                server=self.server.address.http,
                device=self.name,
                state=str(self.directory / "state"),
                trust=[str(trust)],
                token=token,
                board=board,
                device_type=self.name,
                poll_s=0.3,
                settle_s=settle_s,
            )
        )

    def roll_out(self, image: bytes, version: str = "2.0.0") -> int:
        release = publish(self.client, self.key, self.name, version, image)
        return self.client.create_rollout(release.id, devices=[self.name]).id

    def outcome(self, rollout: int) -> str:
        return "".join(str(execution.state) for execution in self.client.executions(rollout))

    async def ended(self, rollout: int, ncp: NcpProcess, *, within_s: float = 30) -> str:
        ends = ("SUCCEEDED", "FAILED", "REJECTED", "TIMED_OUT", "CANCELED")
        await until(lambda: self.outcome(rollout) in ends, within_s=within_s, log=ncp.log)
        return self.outcome(rollout)


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    server = LocalServer(tmp_path_factory.mktemp("ncp") / "server", https=False, mqtt=False)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def its_site(one_server: LocalServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with one_server.client() as client:
        yield Site(one_server, client, tmp_path, f"pump-{abs(hash(request.node.name)) % 10_000_000}")


async def until(condition: Callable[[], object], *, within_s: float, log: Path) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110 - what is waited for is in other processes
                await asyncio.sleep(0.02)
    except TimeoutError:
        text = await asyncio.to_thread(log.read_text)
        raise AssertionError(f"it did not happen; the log:\n{text[-5000:]}") from None


async def test_an_mcu_is_updated_and_its_ncp_stays_small(its_site: Site) -> None:
    mcu = SmallMcu(firmware("1.0.0"))
    ncp = its_site.prepare(mcu)
    try:
        ncp.start(by_command=True)
        rollout = its_site.roll_out(firmware("2.0.0"))
        assert await its_site.ended(rollout, ncp) == "SUCCEEDED"
        assert mcu.image == firmware("2.0.0")
        assert mcu.offers == ["2.0.0"]
        assert ncp.resident_kib() < RESIDENT_MAX_KIB
        assert await asyncio.to_thread(ncp.stop) == 0
    finally:
        ncp.kill()
        await mcu.close()


async def test_a_release_that_never_confirms_is_a_failure_and_the_old_one_runs(its_site: Site) -> None:
    mcu = SmallMcu(firmware("1.0.0"), confirms=lambda version: False)
    ncp = its_site.prepare(mcu, settle_s=4.0)
    try:
        ncp.start()
        rollout = its_site.roll_out(firmware("2.0.0"))
        assert await its_site.ended(rollout, ncp) == "FAILED"
        await until(lambda: mcu.version == "1.0.0", within_s=10, log=ncp.log)
        assert mcu.versions == ["1.0.0", "2.0.0", "2.0.0", "2.0.0", "1.0.0"]
    finally:
        ncp.kill()
        await mcu.close()


async def test_an_ncp_killed_in_mid_stream_completes_the_update(its_site: Site) -> None:
    mcu = SmallMcu(firmware("1.0.0"))
    mcu.chunk_s = 0.05
    ncp = its_site.prepare(mcu)
    try:
        ncp.start()
        rollout = its_site.roll_out(firmware("2.0.0", 60_000))
        await until(lambda: len(mcu.flash) > 10_000, within_s=20, log=ncp.log)
        ncp.kill()
        assert ncp.record_state() is UpdateState.STREAMING
        ncp.start()
        assert await its_site.ended(rollout, ncp, within_s=40) == "SUCCEEDED"
        assert mcu.image == firmware("2.0.0", 60_000)
        assert mcu.offers == ["2.0.0", "2.0.0"]
    finally:
        ncp.kill()
        await mcu.close()


async def test_an_mcu_reset_in_mid_stream_is_updated(its_site: Site) -> None:
    mcu = SmallMcu(firmware("1.0.0"))
    mcu.chunk_s = 0.05
    ncp = its_site.prepare(mcu)
    try:
        ncp.start()
        rollout = its_site.roll_out(firmware("2.0.0", 60_000))
        await until(lambda: len(mcu.flash) > 10_000, within_s=20, log=ncp.log)
        await mcu.reset()
        assert await its_site.ended(rollout, ncp, within_s=40) == "SUCCEEDED"
        assert mcu.image == firmware("2.0.0", 60_000)
    finally:
        ncp.kill()
        await mcu.close()


async def test_a_release_by_a_key_that_the_ncp_does_not_trust_never_reaches_the_mcu(its_site: Site) -> None:
    its_site.trusted = PrivateKey.generate("p256")
    mcu = SmallMcu(firmware("1.0.0"))
    ncp = its_site.prepare(mcu)
    try:
        ncp.start()
        rollout = its_site.roll_out(firmware("2.0.0"))
        assert await its_site.ended(rollout, ncp) == "FAILED"
        assert mcu.offers == []
    finally:
        ncp.kill()
        await mcu.close()


async def test_a_release_whose_version_is_not_that_of_its_tag_is_refused_by_the_server(its_site: Site) -> None:
    from flota.errors import FlotaError

    its_site.client.add_type(its_site.name, "dual-mcu-ab", signers=[its_site.key.public_pem])
    with pytest.raises(FlotaError, match="firmware tag"):
        its_site.roll_out(firmware("2.0.0"), "2.0.1")
    with pytest.raises(FlotaError, match="no firmware tag"):
        its_site.roll_out(os.urandom(2000), "2.0.0")
