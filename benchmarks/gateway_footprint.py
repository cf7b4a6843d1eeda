"""What a gateway holds while it polls for 50 devices and listens to mDNS. Goal: at most 60 MB resident.

The peak with 50 pushes at once is in gateway_fifty.py.

Run: python benchmarks/gateway_footprint.py [--devices 50].
"""

from __future__ import annotations

import sys

if not __package__:
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import argparse
import re
import subprocess
import tempfile
import time
from pathlib import Path

from flota.client.management import ManagementClient
from flota.lab.local_server import LocalServer
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners, pack_trust_file

GOAL_MB = 60
SETTLE_S = 12.0


def main() -> int:
    """Print the figure; exit status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=50)
    devices = parser.parse_args().devices
    with tempfile.TemporaryDirectory(prefix="flota-bench-") as directory:
        root = Path(directory)
        with LocalServer(root / "server", https=False) as server, server.client() as client:
            names = prepare(client, devices, root)
            process = subprocess.Popen(gateway_command(server.address.http, names, root), stderr=subprocess.DEVNULL)
            try:
                time.sleep(SETTLE_S)
                now, peak = memory_mb(process.pid, "VmRSS"), memory_mb(process.pid, "VmHWM")
            finally:
                process.terminate()
                process.wait(60)
    met = peak <= GOAL_MB
    verdict = "met" if met else "NOT MET"
    print(f"gateway, {devices} devices: {now:.0f} MB resident, {peak:.0f} at most (goal {GOAL_MB}: {verdict})")
    return int(not met)


def prepare(client: ManagementClient, devices: int, root: Path) -> list[str]:
    """Make type, devices and token; returns the devices' names."""
    key = PrivateKey.generate("p256")
    names = [f"lamp-{number}" for number in range(devices)]
    client.add_type("lamp", "amebad", signers=[key.public_pem])
    for name in names:
        client.add_device(name, "lamp")
    token = client.create_gateway_token("bench", devices=names).secret
    assert token is not None
    (root / "token").write_text(token)
    (root / "trust.json").write_bytes(pack_trust_file(TrustedSigners.of([key.public_pem])))
    return names


def gateway_command(server: str, names: list[str], root: Path) -> list[str]:
    """Return what runs the gateway: addresses at which nobody is, and all interfaces."""
    command = [sys.executable, "-m", "flota", "gateway", "run", "--server", server, "--poll-s", "1"]
    command += ["--token-file", str(root / "token"), "--trust", str(root / "trust.json"), "--state", str(root / "gw")]
    for number, name in enumerate(names):
        command += ["--device", f"{name}=127.0.31.{number + 1},type=lamp"]
    return command


def memory_mb(process: int, field: str) -> float:
    """Return a field of the process's status in MB (10^6 bytes)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main())
