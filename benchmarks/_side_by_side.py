"""What the HTTP benchmarks share: a `flota up` and an nginx that serve the same file, and h2load to ask both."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLOCK_TICKS_S = os.sysconf("SC_CLK_TCK")
FILE_BYTES = 4 << 20

NGINX = """
daemon off; worker_processes 1; pid {root}/nginx.pid; error_log {root}/nginx.log; worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000; default_type application/octet-stream;
  client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
  uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
  server {{ listen 127.0.0.1:{h2c} http2; listen 127.0.0.1:{h1}; root {root}/www; }}
  server {{ listen 127.0.0.1:{tls} ssl http2; ssl_certificate {cert}; ssl_certificate_key {key}; root {root}/www; }}
}}
"""


def program(name: str) -> str:
    """Return the path of a program that the benchmark cannot do without."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if path is None:
        sys.exit(f"not run: {name} is not installed")
    return path


@dataclass(frozen=True)
class Rival:
    """One of the servers. `urls` by way: h2c, tls, h1."""

    name: str
    pids: tuple[int, ...]
    urls: dict[str, str]

    def cpu_s(self) -> float:
        """CPU seconds of all its processes and threads so far."""
        return sum(_cpu_s(pid) for pid in self.pids)

    def resident_mb(self) -> float:
        """Resident memory of all its processes, MB (10^6 bytes)."""
        return sum(resident_mb(pid) for pid in self.pids)


@dataclass(frozen=True)
class Load:
    """What one h2load run did."""

    requests_per_s: float
    bytes_per_s: float
    cpu_s_per_gb: float


@contextlib.contextmanager
def rivals() -> Iterator[tuple[Rival, Rival, Rival]]:
    """Give flota, nginx and bare granian, all serving the same 4 MiB file."""
    with tempfile.TemporaryDirectory(prefix="flota-bench-") as directory, contextlib.ExitStack() as stack:
        root = Path(directory)
        content = random.Random(1).randbytes(FILE_BYTES)
        flota = stack.enter_context(flota_up(root / "data", content))
        nginx = stack.enter_context(_nginx(root, content))
        bare = stack.enter_context(_bare_granian(root))
        yield flota, nginx, bare


@contextlib.contextmanager
def flota_up(data: Path, content: bytes) -> Iterator[Rival]:
    """Run `flota up` with `content` as its one artifact; the URLs carry a device's signed token."""
    import httpx

    command = [sys.executable, "-m", "flota", "up", "--data", str(data), "--http", ":0", "--https", ":0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        token = Path(ready["token_file"]).read_text().strip()
        answer = httpx.post(
            f"{ready['http']}/api/v1/artifacts",
            headers={"authorization": f"Bearer {token}", "x-filename": "bench.bin"},
            content=content,
            timeout=60,
        )
        answer.raise_for_status()
        path = _signed_path(data, content)
        urls = {"h2c": ready["http"] + path, "h1": ready["http"] + path, "tls": ready["https"] + path}
        yield Rival("flota", (process.pid,), urls)
    finally:
        process.terminate()
        process.wait(60)


def h2load(rival: Rival, way: str, *, requests: int, connections: int, headers: tuple[str, ...] = ()) -> Load:
    """Ask `requests` times over `connections`; raises if one answer was not 2xx."""
    options = [part for header in headers for part in ("-H", header)]
    options += ["--h1"] if way == "h1" else []
    before = rival.cpu_s()
    command = [program("h2load"), "-n", str(requests), "-c", str(connections), *options, rival.urls[way]]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cpu_s = rival.cpu_s() - before
    if f"{requests} 2xx" not in output:
        sys.exit(f"{rival.name} over {way} did not answer everything:\n{output}")
    rate = re.search(r"finished in .*?, ([\d.]+) req/s, ([\d.]+)(.B)/s", output)
    total = re.search(r"traffic: .*?\((\d+)\) total", output)
    assert rate is not None
    assert total is not None
    unit = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}[rate[3]]
    return Load(float(rate[1]), float(rate[2]) * unit, cpu_s / (int(total[1]) / 1e9))


def resident_mb(pid: int) -> float:
    """Resident memory of one process, MB (10^6 bytes)."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS_S


def _signed_path(data: Path, content: bytes) -> str:
    from datetime import UTC, datetime

    from flota.server.download_tokens import DownloadTokens

    sha256 = hashlib.sha256(content).hexdigest()
    tokens = DownloadTokens((data / "download.key").read_bytes())
    return f"/artifacts/{sha256}?token={tokens.issue(sha256, device_id=1, now=datetime.now(UTC))}"


@contextlib.contextmanager
def _nginx(root: Path, content: bytes) -> Iterator[Rival]:
    (root / "www").mkdir()
    digest = hashlib.sha256(content).hexdigest()
    stored = next((root / "data").rglob(digest))
    os.link(stored, root / "www" / "file.bin")  # the very same file: pages of another one may be cached in another way
    authority = root / "data" / "ca"
    ports = {"h2c": free_port(), "h1": free_port(), "tls": free_port()}
    text = NGINX.format(root=root, cert=authority / "server.crt", key=authority / "server.key", **ports)
    (root / "nginx.conf").write_text(text if os.getuid() else "user root;" + text)
    process = subprocess.Popen([program("nginx"), "-c", str(root / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        for port in ports.values():
            _wait_for(port)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        schemes = {"h2c": "http", "h1": "http", "tls": "https"}
        urls = {way: f"{schemes[way]}://127.0.0.1:{port}/file.bin" for way, port in ports.items()}
        yield Rival("nginx", (process.pid, *map(int, children)), urls)
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def _bare_granian(root: Path) -> Iterator[Rival]:
    authority = root / "data" / "ca"
    arguments = [root / "www" / "file.bin", authority / "server.crt", authority / "server.key"]
    command = [sys.executable, "-m", "benchmarks._bare_granian", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
    try:
        assert process.stdout is not None
        yield Rival("granian", (process.pid,), json.loads(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    sys.exit("nginx did not start")
