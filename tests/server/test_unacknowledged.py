"""What the kernel says of connections of this machine."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from flota.server.listeners import UNSENT_MAX_BYTES, UNSENT_UNTOLD_MAX_BYTES, bind
from flota.server.settings import Address
from flota.server.unacknowledged import Connection, kernel_tells

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sock_diag is Linux's")

SENT = bytes(3 << 20)


@contextmanager
def connected(listens: str, host: str) -> Iterator[tuple[socket.socket, socket.socket, dict[str, object]]]:
    """Give the server's and the client's end, and what an ASGI server says of the connection."""
    family = socket.AF_INET6 if ":" in listens else socket.AF_INET
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket(family))
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind((listens, 0))
        listening.listen()
        port = listening.getsockname()[1]
        client = stack.enter_context(socket.create_connection((host, port)))
        server, peer = listening.accept()
        stack.enter_context(server)
        server.setblocking(False)
        yield server, client, {"client": (peer[0], str(peer[1])), "server": (listens, str(port))}


@pytest.mark.parametrize(
    ("listens", "host"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("::1", "::1")]
)
def test_what_a_peer_has_not_taken_is_told_until_it_leaves(listens: str, host: str) -> None:
    with connected(listens, host) as (server, client, scope):
        connection = Connection.of(scope)
        assert connection is not None
        assert connection.unacknowledged() == 0
        sent = server.send(SENT)
        assert 0 < (connection.unacknowledged() or 0) <= sent
        client.close()
        assert connection.unacknowledged() is None


@pytest.mark.parametrize(("listens", "host"), [("0.0.0.0", "127.0.0.77"), ("::", "127.0.0.77")])
def test_a_peer_that_came_to_another_address_than_it_is_answered_from_by_default_is_found(
    listens: str, host: str
) -> None:
    with connected(listens, host) as (server, _, scope):
        connection = Connection.of(scope)
        assert connection is not None
        assert connection.local[0] == host
        sent = server.send(SENT)
        assert 0 < (connection.unacknowledged() or 0) <= sent


@pytest.mark.parametrize(
    "scope",
    [
        {},
        {"client": None, "server": ("127.0.0.1", 80)},
        {"client": ("192.0.2.1", "1"), "server": ("flota.test", 80)},
        {"client": ("127.0.0.1", "1"), "server": ("127.0.0.1", "1")},
        {"client": ("/run/peer", None), "server": ("/run/flota", None)},
        {"client": ("127.0.0.1", "70000"), "server": ("127.0.0.1", "80")},
    ],
)
def test_nothing_is_told_of_a_connection_that_is_not_there(scope: dict[str, object]) -> None:
    assert Connection.of(scope) is None


@pytest.mark.parametrize(("tells", "unsent"), [(True, UNSENT_MAX_BYTES), (False, UNSENT_UNTOLD_MAX_BYTES)])
def test_only_a_kernel_that_tells_may_take_much_ahead(
    monkeypatch: pytest.MonkeyPatch, tells: bool, unsent: int
) -> None:
    if not tells:
        monkeypatch.delattr(socket, "AF_NETLINK")
    kernel_tells.cache_clear()
    try:
        assert kernel_tells() is tells
        with bind(Address("127.0.0.1", 0), plain=True) as listening:
            assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == unsent
    finally:
        kernel_tells.cache_clear()
