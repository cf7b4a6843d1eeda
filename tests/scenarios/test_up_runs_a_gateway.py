"""`flota up` pushes to the boards of its own network: with a trust file that the operator put there, not before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from flota.client.management import ManagementClient
from flota.images.ameba import pack_ota_file
from flota.lab.local_server import LocalServer
from flota.trust.keys import PrivateKey
from flota.trust.trust_file import TrustedSigners, pack_trust_file
from tests.scenarios.ameba_site import SiteBoard, site
from tests.scenarios.releases import publish
from tests.virtual.ameba_devices import image_of

RELEASE = pack_ota_file(image_of("2.0.0"))


@pytest.mark.scenario
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("end", "net"), [(LocalServer.kill, 8), (LocalServer.stop, 10)], ids=["killed", "stopped"])
async def test_a_board_of_the_registry_is_updated_and_the_gateway_ends_with_its_server(
    server: LocalServer, key: PrivateKey, end: Callable[[LocalServer], object], net: int
) -> None:
    async with site(1, net=net, speed=20) as boards:
        with server.client() as client:
            rollout = await asyncio.to_thread(_prepare, client, key, boards[0])
            await asyncio.sleep(1)
            assert boards[0].accepted == 0, "pushed to without a trust file"
            directory = server.data / "gateway"
            directory.mkdir()
            (directory / "trust.json").write_bytes(pack_trust_file(TrustedSigners.of([key.public_pem])))
            await _final(client, rollout)
            execution = (await asyncio.to_thread(client.executions, rollout))[0]
        assert execution.state == "SUCCEEDED"
        assert execution.basis == "inferred", "an announcement does not tell what a board runs"
        assert boards[0].version == "2.0.0"
        assert boards[0].accepted == 1
    gateway = _gateway_of(server.pid)
    assert gateway is not None
    assert not _tcp_listeners(gateway), "it hears mDNS, and nothing else"
    await asyncio.to_thread(end, server)
    async with asyncio.timeout(20):
        while _is_there(gateway):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _prepare(client: ManagementClient, key: PrivateKey, board: SiteBoard) -> int:
    client.trust("amebad", [key.public_pem])
    client.add_device(board.name, "amebad", labels={"address": board.address})
    publish(client, key, "amebad", "2.0.0", RELEASE)
    return client.create_rollout("amebad@2.0.0", select="type=amebad", name="all").id


async def _final(client: ManagementClient, rollout: int) -> None:
    async with asyncio.timeout(60):
        while not (await asyncio.to_thread(client.rollout, rollout)).is_final:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


def _is_there(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def _gateway_of(server: int) -> int | None:
    """The child of the server that is a gateway."""
    for thread in Path(f"/proc/{server}/task").iterdir():
        for child in (thread / "children").read_text().split():
            if b"flota.gateway" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None


def _tcp_listeners(process: int) -> list[str]:
    """The local addresses at which a process takes TCP connections."""
    sockets = {_target(link) for link in Path(f"/proc/{process}/fd").iterdir()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in sockets:
                found.append(columns[1])
    return found


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
