"""`flota ncp run` on one end of a pseudo-terminal, an MCU of this process on the other, the server in a third.

What is killed, reset and rolled back is in `test_ncp_three_processes`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from flota.client.management import ManagementClient
from flota.gateway.ncp_journal import NcpJournal
from flota.gateway.ncp_settings import MODULE, VARIABLE, NcpRunSettings
from flota.lab.local_server import LocalServer
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners, pack_trust_file
from tests.gateway.small_mcu import SmallMcu, firmware
from tests.scenarios.releases import publish

RESIDENT_MAX_KIB = 60_000_000 // 1024


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


class LostFile:
    """A file that is somewhere else until it is restored."""

    def __init__(self, path: Path) -> None:
        self._path, self._elsewhere = path, path.with_suffix(".elsewhere")
        path.rename(self._elsewhere)

    def restore(self) -> None:
        self._elsewhere.rename(self._path)


class Site:
    """Server, NCP and MCU; of each test its own device of its own type."""

    def __init__(self, server: LocalServer, client: ManagementClient, directory: Path, name: str) -> None:
        self.server, self.client, self.directory, self.name = server, client, directory, name
        self.key = PrivateKey.generate("p256")
        self.trusted = self.key

    def prepare(self, mcu: SmallMcu, *, board: str = "dual-mcu-ab", boot_loader_after_s: float = 20.0) -> NcpProcess:
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
                settle_s=1.0,
                boot_loader_after_s=boot_loader_after_s,
            )
        )

    def roll_out(self, image: bytes, version: str = "2.0.0") -> int:
        release = publish(self.client, self.key, self.name, version, image)
        return self.client.create_rollout(release.id, devices=[self.name]).id

    def lose_file(self, image: bytes) -> LostFile:
        """Take a file out of the server's store."""
        digest = hashlib.sha256(image).hexdigest()
        return LostFile(next(path for path in (self.server.data / "artifacts").rglob(f"*{digest}*") if path.is_file()))

    def told(self, rollout: int) -> str:
        """All that the server was told of the device's update."""
        executions = self.client.executions(rollout)
        return "\n".join(event.message for one in executions for event in self.client.execution_events(one.id))

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


async def test_a_boot_loader_without_an_app_is_given_the_release_that_ends_its_trouble(its_site: Site) -> None:
    """Nothing is open, no app ever reports: the server has to be asked all the same."""
    mcu = SmallMcu(firmware("1.0.0"), has_app=False)
    ncp = its_site.prepare(mcu, board="dual-mcu-ncp", boot_loader_after_s=1.0)
    try:
        ncp.start()
        rollout = its_site.roll_out(firmware("2.0.0"))
        assert await its_site.ended(rollout, ncp) == "SUCCEEDED"
        assert mcu.image == firmware("2.0.0")
    finally:
        ncp.kill()
        await mcu.close()


async def test_r12_three_failing_downloads_reach_the_limit_and_after_the_period_it_is_tried_again(
    its_site: Site,
) -> None:
    mcu = SmallMcu(firmware("1.0.0"))
    ncp = its_site.prepare(mcu)
    image = firmware("2.0.0", 21_000)
    try:
        rollout = its_site.roll_out(image)
        missing = its_site.lose_file(image)
        ncp.start()
        await until(lambda: "download limit reached: 3" in its_site.told(rollout), within_s=20, log=ncp.log)
        missing.restore()
        await until(lambda: "ncp.download-limit" in ncp.log.read_text(), within_s=20, log=ncp.log)
        assert mcu.offers == []
        ncp.kill()
        journal = NcpJournal(ncp.directory)
        record = journal.load(its_site.name)
        assert record.failed_fetches is not None
        a_day_ago = replace(record.failed_fetches, first_at=record.failed_fetches.first_at - 86_400)
        journal.save(replace(record, failed_fetches=a_day_ago))
        ncp.start()
        assert await its_site.ended(rollout, ncp) == "SUCCEEDED"
        assert mcu.image == image
    finally:
        ncp.kill()
        await mcu.close()
