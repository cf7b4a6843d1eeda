"""What `flota ncp run` holds: resident memory while it waits, and at most over updates. Goal: at most 60 MB.

Server, NCP and virtual MCU are processes of their own, a pseudo-terminal is the line. Linux only.

Run: python benchmarks/ncp_footprint.py [--updates 3] [--kib 512].
"""

from __future__ import annotations

import sys

if not __package__:
    sys.path[0] += "/.."  # not this directory: benchmarks/inspect.py is no replacement for the standard library's

import argparse
import base64
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.gateway_footprint import GOAL_MB, memory_mb

from flota.client.management import ManagementClient
from flota.lab.local_server import LocalServer
from flota.lab.sample_mcu import SAMPLE_FW_TYPE, sample_mcu
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners, pack_trust_file

BOARD = "dual-mcu-ab"
SETTLE_S = 8.0
UPDATE_LIMIT_S = 300.0


def main() -> int:
    """Print the figures; exit status 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--kib", type=int, default=512, help="size of the images")
    given = parser.parse_args()
    key = PrivateKey.generate("p256")
    with tempfile.TemporaryDirectory(prefix="flota-bench-") as directory:
        root = Path(directory)
        with LocalServer(root / "server", https=False, mqtt=False) as server, server.client() as client:
            client.add_type(SAMPLE_FW_TYPE, BOARD, signers=[key.public_pem])
            token = client.add_device("pump", SAMPLE_FW_TYPE).token
            assert token is not None
            (root / "token").write_text(token)
            (root / "trust.json").write_bytes(pack_trust_file(TrustedSigners.of([key.public_pem])))
            mcu = subprocess.Popen(mcu_command(root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while not (root / "uart").exists():
                time.sleep(0.1)
            ncp = subprocess.Popen(ncp_command(server.address.http, root), stderr=subprocess.DEVNULL)
            try:
                time.sleep(SETTLE_S)
                waiting = memory_mb(ncp.pid, "VmRSS")
                for number in range(given.updates):
                    update(client, key, f"2.{number}.0", given.kib * 1024)
                after, peak = memory_mb(ncp.pid, "VmRSS"), memory_mb(ncp.pid, "VmHWM")
            finally:
                for process in (ncp, mcu):
                    process.terminate()
                    process.wait(60)
    met = peak <= GOAL_MB
    verdict = "met" if met else "NOT MET"
    print(
        f"flota ncp run: {waiting:.0f} MB resident while it waits, {after:.0f} after {given.updates} updates of "
        f"{given.kib} KB, {peak:.0f} at most (goal {GOAL_MB}: {verdict})"
    )
    return int(not met)


def mcu_command(root: Path) -> list[str]:
    """Return what runs the MCU."""
    command = [sys.executable, "-m", "flota", "lab", "run", BOARD, "--name", "pump", "--state", str(root / "mcu")]
    return [*command, "--serial", str(root / "uart"), "--speed", "20"]


def ncp_command(server: str, root: Path) -> list[str]:
    """Return what runs the NCP."""
    command = [sys.executable, "-m", "flota", "ncp", "run", "--serial", str(root / "uart"), "--server", server]
    command += ["--device", "pump", "--type", SAMPLE_FW_TYPE, "--board", BOARD, "--state", str(root / "ncp")]
    command += ["--token-file", str(root / "token"), "--trust", str(root / "trust.json")]
    return [*command, "--poll-s", "0.5", "--settle-s", "1"]


def update(client: ManagementClient, key: PrivateKey, version: str, size: int) -> None:
    """Roll a release out and wait until it has succeeded."""
    artifact = client.upload_bytes(sample_mcu(version, size=size), f"pump-{version}.bin")
    release = client.create_release(SAMPLE_FW_TYPE, version, artifact.sha256)
    signature = key.sign(client.manifest(release.id))
    text = base64.b64encode(signature.signature).decode()
    client.add_signature(release.id, signature.key_id, signature.algorithm, text)
    client.publish(release.id)
    rollout = client.create_rollout(release.id, devices=["pump"]).id
    deadline = time.monotonic() + UPDATE_LIMIT_S
    while [one.state for one in client.executions(rollout)] != ["SUCCEEDED"]:
        if time.monotonic() > deadline:
            raise SystemExit(f"the update to {version} did not succeed")
        time.sleep(0.3)


if __name__ == "__main__":
    sys.exit(main())
