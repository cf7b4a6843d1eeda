"""`flota up` as a process: what it prints and leaves behind, how it stops, what it refuses, and curl against it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flota import __version__
from tests.server.programs import curl, find_program

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(120)]

ANY_PORTS = ("--http", ":0", "--https", ":0", "--mqtt", ":0", "--mqtts", ":0")
IMAGE = random.Random(3).randbytes(3 << 20)
SHA256 = hashlib.sha256(IMAGE).hexdigest()


class Up:
    """A running `flota up`. `ready` is what it said in its JSON line."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready

    @property
    def token(self) -> str:
        return Path(self.ready["token_file"]).read_text().strip()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Return exit status and log."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        _, log = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, log.decode()


async def launch(data: Path, *options: str, environment: dict[str, str] | None = None) -> asyncio.subprocess.Process:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLOTA_")}
    arguments = ["-m", "flota", "up", "--data", str(data), "--json", *options]
    return await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**kept, **(environment or {})},
    )  # fmt: skip


@contextlib.asynccontextmanager
async def up(data: Path, *options: str, ports: Sequence[str] = ANY_PORTS, **more: Any) -> AsyncIterator[Up]:
    process = await launch(data, *ports, *options, **more)
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        _, log = await process.communicate()
        pytest.fail(f"flota up did not start: {log.decode()}")
    running = Up(process, json.loads(line))
    try:
        yield running
    finally:
        await running.stop(signal.SIGKILL)


async def upload(running: Up, content: bytes = IMAGE) -> None:
    url = f"{running.ready['http']}/api/v1/artifacts"
    authorization = f"authorization: Bearer {running.token}"
    process = await asyncio.create_subprocess_exec(
        find_program("curl"), "-s", "-f", "-H", authorization, "-H", "x-filename: a.bin", "--data-binary", "@-", url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate(content)
    assert process.returncode == 0, output


async def test_it_says_where_it_is_and_ends_cleanly_with_nothing_left_behind(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with up(data) as running:
        record = json.loads((data / "server.json").read_text())
        assert record == running.ready
        assert record["pid"] == running.process.pid
        assert record["version"] == __version__
        assert record["ca"] == str(data / "ca" / "root.crt")
        assert stat.S_IMODE((data / "admin.token").stat().st_mode) == 0o600
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        status, log = await running.stop()
    assert status == 0
    assert not (data / "server.json").exists()
    for noise in ("Traceback", "granian", "Granian", "warning", "error"):
        assert noise not in log


@pytest.mark.program
async def test_curl_by_every_protocol_gets_the_same_file_with_all_it_needs_to_resume(tmp_path: Path) -> None:
    async with up(tmp_path / "data") as running:
        await upload(running)
        authorization = ["-H", f"authorization: Bearer {running.token}"]
        plain, secure = (f"{running.ready[scheme]}/artifacts/{SHA256}" for scheme in ("http", "https"))
        for flags, url in (
            (["--http1.0"], plain),
            (["--http1.1"], plain),
            (["--http2-prior-knowledge"], plain),
            (["--http2", "--cacert", running.ready["ca"]], secure),
            (["--http1.1", "--cacert", running.ready["ca"]], secure),
        ):
            ask = [*flags, *authorization]
            whole, head = await curl(*ask, url), await curl("-I", *ask, url)
            assert (whole.status, whole.body, head.status, head.body) == (200, IMAGE, 200, b"")
            assert whole.headers["content-length"] == head.headers["content-length"] == str(len(IMAGE))
            assert whole.headers["etag"] == head.headers["etag"] == f'"{SHA256}"'
            part = await curl(*ask, "-r", "1000000-", url)
            assert (part.status, part.body) == (206, IMAGE[1_000_000:])
            assert (await curl(*ask, "-H", f'if-none-match: "{SHA256}"', url)).status == 304
            assert (await curl(*ask, "-r", f"{len(IMAGE)}-", url)).status == 416


@pytest.mark.program
async def test_health_metrics_and_the_unknown(tmp_path: Path) -> None:
    async with up(tmp_path / "data") as running:
        base = running.ready["http"]
        health = await curl(f"{base}/healthz")
        assert (health.status, json.loads(health.body)) == (200, {"status": "ok", "version": __version__, "failed": []})
        metrics = await curl(f"{base}/metrics")
        assert b'flota_http_requests_total{group="healthz",status="2xx"} 1.0' in metrics.body
        assert (await curl("-X", "POST", f"{base}/healthz")).status == 405
        unknown = await curl(f"{base}/no/such/thing/at/all")
        assert unknown.status == 404
        assert "content-length" in unknown.headers


async def test_a_restart_keeps_token_ports_and_certificate(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with up(data) as first:
        token, certificate = first.token, (data / "ca" / "server.crt").read_bytes()
        schemes = ("http", "https", "mqtt", "mqtts")
        ports = [flag for one in schemes for flag in (f"--{one}", first.ready[one].removeprefix(f"{one}://"))]
        await first.stop()
    async with up(data, ports=ports) as second:
        assert (second.token, (data / "ca" / "server.crt").read_bytes()) == (token, certificate)
        assert [second.ready[one] for one in schemes] == [first.ready[one] for one in schemes]


async def test_it_serves_with_the_root_key_put_away(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with up(data) as first:
        await first.stop()
    (data / "ca" / "root.key").rename(tmp_path / "in-the-safe.key")
    async with up(data, "--name", "updates.example.net") as second:
        answer = await curl("--cacert", second.ready["ca"], f"{second.ready['https']}/healthz")
        assert answer.status == 200


async def test_after_a_kill_it_starts_again_at_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with up(data) as first:
        await first.stop(signal.SIGKILL)
        assert (data / "server.json").exists()
    async with up(data) as second:
        assert second.ready["pid"] != first.ready["pid"]


async def test_two_servers_cannot_share_a_data_directory(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with up(data) as first:
        second = await launch(data, "--http", ":0", "--no-https")
        output, log = await second.communicate()
        assert (second.returncode, output) == (1, b"")
        assert f"process {first.process.pid}" in log.decode()
        assert (data / "server.json").exists(), "the refused one must not remove the record of the first"


async def test_listening_wider_without_a_public_url_is_wrong_use(tmp_path: Path) -> None:
    process = await launch(tmp_path / "data", "--http", ":0", "--https", "0.0.0.0:0")
    _, log = await process.communicate()
    assert process.returncode == 2
    assert "--public-url URL" in log.decode()
    assert "--name HOST|IP" in log.decode()
    assert not (tmp_path / "data").exists(), "nothing is made before the settings are right"


async def test_settings_come_from_the_file_and_the_environment_too(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "flota.toml").write_text('public_url = "https://updates.example.net"\nhttps = "off"\n')
    async with up(data, ports=(), environment={"FLOTA_HTTP": "0.0.0.0:0"}) as running:
        assert running.ready["public_url"] == "https://updates.example.net"
        assert running.ready["https"] is None
        assert running.ready["http"].startswith("http://127.0.0.1:"), "the address by which this machine reaches it"
        metrics = await curl(f"{running.ready['http']}/metrics")
        assert metrics.status == 401, "others can reach it: metrics want a token"


async def test_a_taken_port_is_a_clear_failure(tmp_path: Path) -> None:
    async with up(tmp_path / "one") as running:
        address = running.ready["http"].removeprefix("http://")
        process = await launch(tmp_path / "two", "--http", address, "--no-https")
        _, log = await process.communicate()
        assert process.returncode == 1
        assert f"cannot listen at {address}" in log.decode()


@pytest.mark.program
async def test_a_download_under_way_finishes_before_it_stops(tmp_path: Path) -> None:
    async with up(tmp_path / "data") as running:
        await upload(running)
        url = f"{running.ready['http']}/artifacts/{SHA256}"
        authorization = f"authorization: Bearer {running.token}"
        client = await asyncio.create_subprocess_exec(
            find_program("curl"), "-s", "-H", authorization, "--limit-rate", "2M", url, stdout=asyncio.subprocess.PIPE
        )
        assert client.stdout is not None
        begun = await client.stdout.readexactly(65536)
        stopping = asyncio.create_task(running.stop())
        rest = await client.stdout.read()
        assert await client.wait() == 0
        assert begun + rest == IMAGE
        assert (await stopping)[0] == 0


@pytest.mark.program
async def test_a_reader_that_stalls_cannot_keep_it_from_stopping(tmp_path: Path) -> None:
    large = random.Random(4).randbytes(16 << 20)  # the kernel alone would take 3 MiB
    async with up(tmp_path / "data", "--stop-grace-s", "1") as running:
        await upload(running, large)
        host, _, port = running.ready["http"].removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        target = f"/artifacts/{hashlib.sha256(large).hexdigest()}"
        head = f"GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {running.token}\r\n\r\n"
        writer.write(head.encode())
        await reader.readexactly(100)
        status, log = await running.stop()
        assert (status, "cut off" in log) == (1, True)
        writer.close()


@pytest.mark.program
async def test_event_streams_end_promptly_when_it_stops(tmp_path: Path) -> None:
    async with up(tmp_path / "data") as running:
        url = f"{running.ready['http']}/api/v1/events?after=0"
        client = await asyncio.create_subprocess_exec(
            find_program("curl"), "-s", "-N", "-H", f"authorization: Bearer {running.token}", url,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert client.stdout is not None
        assert await client.stdout.readline() == b": flota events\n"
        async with asyncio.timeout(20):  # less than the 30 s that responses get
            assert (await running.stop())[0] == 0
            assert b"tenant.created" in await client.stdout.read()
            assert await client.wait() == 0
