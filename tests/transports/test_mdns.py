"""Boards on a real multicast socket (loopback): found, told again when they announce again, gone when they say so."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import struct

import pytest

from flota.errors import InvalidInput
from flota.protocols.arduino_mdns import PushKind, ameba_txt, board_of
from flota.transports.mdns import BoardBrowser, BoardHeard, announced

LOOPBACK = ["127.0.0.1"]


class Heard:
    """Sightings of one board as they come; others on this machine are not ours to judge."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self.queue: asyncio.Queue[BoardHeard] = asyncio.Queue()

    async def next(self, *, gone: bool = False) -> BoardHeard:
        async with asyncio.timeout(15):
            while True:
                heard = await self.queue.get()
                if heard.name.startswith(self._instance) and (heard.announcement is None) is gone:
                    return heard


async def test_a_board_is_found_with_what_it_says_and_gone_when_it_says_so() -> None:
    heard = Heard("MyAmeba-1.")
    async with BoardBrowser(heard.queue.put_nowait, interfaces=LOOPBACK) as browser:
        async with announced(
            "MyAmeba-1", 5000, ameba_txt(), host="ameba-1", addresses=["127.0.0.1"], interfaces=LOOPBACK
        ) as name:
            found = await heard.next()
            assert found.name == name
            assert found.announcement is not None
            board = board_of(found.announcement)
            assert board is not None
            assert (board.kind, board.address, board.upload_port) == (PushKind.AMEBA, "127.0.0.1", 8082)
            assert list(found.announcement.txt.items()) == list(ameba_txt())
            assert name in browser.boards
        gone = await heard.next(gone=True)
        assert gone.name == name
        assert name not in browser.boards


async def test_a_board_that_announces_itself_again_is_heard_again_later() -> None:
    heard = Heard("MyAmeba-2.")
    async with BoardBrowser(heard.queue.put_nowait, interfaces=LOOPBACK):
        times = []
        for _ in range(2):
            async with announced(
                "MyAmeba-2", 5000, ameba_txt(), host="ameba-2", addresses=["127.0.0.1"], interfaces=LOOPBACK
            ):
                times.append((await heard.next()).heard_at)
            await heard.next(gone=True)
    assert times[0] < times[1]


@pytest.mark.parametrize("interfaces", [["eth0"], ["300.1.1.1"], [""]])
async def test_an_interface_is_given_by_its_address(interfaces: list[str]) -> None:
    with pytest.raises(InvalidInput):
        BoardBrowser(interfaces=interfaces)


@pytest.mark.parametrize(("instance", "host"), [("", "a"), ("x" * 64, "a"), ("a", "a.b")])
async def test_names_that_no_record_can_hold_are_refused(instance: str, host: str) -> None:
    with pytest.raises(InvalidInput):
        async with announced(instance, 1, (), host=host, addresses=["127.0.0.1"], interfaces=LOOPBACK):
            pytest.fail("announced")


# --- what must not stop the browser ---------------------------------------------------------------------------------

MDNS_GROUP = ("224.0.0.251", 5353)
ONE_SERVICE = "_arduino._tcp.local"


def name_bytes(name: str | bytes) -> bytes:
    """A DNS name, without compression; bytes are one label before the service's type."""
    if isinstance(name, bytes):
        return bytes([len(name)]) + name + name_bytes(ONE_SERVICE)
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def record(name: str | bytes, kind: int, data: bytes) -> bytes:
    return name_bytes(name) + struct.pack(">HHIH", kind, 0x8001 if kind != 12 else 1, 120, len(data)) + data


def answers(*records: bytes) -> bytes:
    """An mDNS response with these records."""
    return struct.pack(">HHHHHH", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def announcement(instance: bytes, txt: bytes, port: int = 5000) -> bytes:
    """A board's announcement, made by hand so that it can be wrong."""
    host = "garbage-board.local"
    return answers(
        record(ONE_SERVICE, 12, name_bytes(instance)),
        record(instance, 33, struct.pack(">HHH", 0, 0, port) + name_bytes(host)),
        record(instance, 16, txt),
        record(host, 1, socket.inet_aton("127.0.0.1")),
    )


def on_the_air(*datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        for datagram in datagrams:
            sender.sendto(datagram, MDNS_GROUP)


def garbage() -> list[bytes]:
    rng = random.Random(1)
    good = announcement(b"half-a-board", b"\x0fboard=ameba_xyz")
    loop = (
        struct.pack(">HHHHHH", 0, 0x8400, 0, 1, 0, 0) + b"\xc0\x0c" + struct.pack(">HHIH", 12, 1, 120, 2) + b"\xc0\x0c"
    )
    return [
        b"",
        b"\0",
        *(rng.randbytes(rng.randrange(1, 900)) for _ in range(50)),
        struct.pack(">HHHHHH", 0, 0x8400, 65535, 65535, 65535, 65535),
        *(good[:cut] for cut in range(12, len(good), 7)),
        loop,
        b"\xff" * 1400,
        answers(record(ONE_SERVICE, 16, b"\xff" * 40), record(ONE_SERVICE, 33, b"\0")),
    ]


async def test_garbage_on_the_air_neither_stops_the_browser_nor_hides_a_board() -> None:
    async with BoardBrowser(interfaces=["127.0.0.1"]) as browser:
        on_the_air(*garbage())
        async with announced(
            "after-garbage", 4712, ameba_txt(), host="after-garbage", addresses=["127.0.0.1"], interfaces=["127.0.0.1"]
        ):
            async with asyncio.timeout(10):
                while not any(name.startswith("after-garbage") for name in browser.boards):
                    on_the_air(*garbage()[:10])
                    await asyncio.sleep(0.1)


async def test_text_that_is_not_utf8_and_lengths_that_lie_are_cleaned_and_the_board_is_still_shown() -> None:
    pairs = [b"board=ameba_\xff\xfe\x1b[31m", b"\xc3\x28=x", b"auth_upload=no", b"ssh_upload=no"]
    txt = b"".join(bytes([len(pair)]) + pair for pair in pairs) + b"\xf0lies"
    async with BoardBrowser(interfaces=["127.0.0.1"]) as browser:
        async with asyncio.timeout(10):
            while not any("garbage-board" in str(heard.announcement) for heard in browser.boards.values()):
                on_the_air(announcement(b"not-utf8", txt))
                await asyncio.sleep(0.1)
        heard = next(one for one in browser.boards.values() if "garbage-board" in str(one.announcement))
    assert heard.announcement is not None
    shown = board_of(heard.announcement)
    assert shown is not None
    assert shown.board is not None
    assert shown.board.startswith("ameba_")
    assert shown.board.isprintable()
    assert (shown.upload_port, shown.port_basis.value) == (8082, "profile")


def test_a_warning_of_the_library_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise OSError(101, "Network is unreachable")
    except OSError as error:
        logging.getLogger("zeroconf").warning("Error with socket: %s", error, exc_info=True)
    assert caplog.messages == ["Error with socket: [Errno 101] Network is unreachable"]
    assert "Traceback" not in caplog.text
