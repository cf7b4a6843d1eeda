"""Boards on a real multicast socket (loopback): found, told again when they announce again, gone when they say so."""

from __future__ import annotations

import asyncio

import pytest

from flota.errors import InvalidInput
from flota.protocols.arduino_mdns import PushKind, ameba_txt, board_of
from flota.transports.mdns import BoardBrowser, BoardHeard, announced

LOOPBACK = ["127.0.0.1"]


class Heard:
    """Sightings as they come."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[BoardHeard] = asyncio.Queue()

    async def next(self, *, gone: bool = False) -> BoardHeard:
        async with asyncio.timeout(15):
            while True:
                heard = await self.queue.get()
                if (heard.announcement is None) is gone:
                    return heard


async def test_a_board_is_found_with_what_it_says_and_gone_when_it_says_so() -> None:
    heard = Heard()
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
    heard = Heard()
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
