"""A server process, a signing key and a fleet of virtual devices, over real sockets."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flota.client.management import ManagementClient
from flota.lab.local_server import LocalServer
from flota.server.settings import DataDirectory
from flota.trust.keys import PrivateKey
from tests.empty_database import make_empty_database


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    server = LocalServer(tmp_path / "server")
    make_empty_database(DataDirectory(server.data).database)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def client(server: LocalServer) -> Iterator[ManagementClient]:
    with server.client() as client:
        yield client


@pytest.fixture
def key() -> PrivateKey:
    return PrivateKey.generate("p256")


def wait_until(condition: Callable[[], object], *, within_s: float, what: str) -> None:
    """Look again and again; fails, saying `what` did not happen, after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.05)
