"""espota over real sockets: our sender against the virtual device, with every way that the exchange can end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import pytest

from flota.protocols.espota import AuthProtocol, PasswordHash, pack_nonce, parse_invitation
from flota.transports.espota import EspotaLimits, EspotaPush, EspotaRecord, EspotaStage
from flota.virtual.agents.espota import EspotaAgent, EspotaSettings
from flota.virtual.device import VirtualDevice
from flota.virtual.events import EventKind
from tests.virtual.benches import EspBench, until
from tests.virtual.images import app_image

OLD, NEW = app_image("1.0.0"), app_image("2.0.0", size=40_000)
LIMITS = EspotaLimits(tries=4, answer_s=1, connect_s=1, block_s=3, result_s=5)


@asynccontextmanager
async def device(bench: EspBench, **settings: object) -> AsyncIterator[tuple[VirtualDevice, int]]:
    """A living ESP board with ArduinoOTA; gives it and its UDP port."""
    ports: asyncio.Queue[int] = asyncio.Queue()
    chosen = replace(EspotaSettings(port=0, silence_s=0.3), **settings)  # type: ignore[arg-type]
    unit = bench.device(EspotaAgent(chosen, on_listening=lambda _, port: ports.put_nowait(port)))
    stop = asyncio.Event()
    life = asyncio.create_task(unit.run(stop))
    try:
        yield unit, await asyncio.wait_for(ports.get(), 5)
    finally:
        stop.set()
        await life


async def pushed(port: int, data: bytes = NEW, **options: object) -> EspotaRecord:
    limits = options.pop("limits", LIMITS)
    return await EspotaPush("127.0.0.1", port, data, limits=limits, **options).run()  # type: ignore[arg-type]


async def boots(bench: EspBench, version: str) -> None:
    await until(lambda: any(f"version {version}" in text for text in bench.texts(EventKind.BOOT)), told=bench.events)


async def test_an_open_device_takes_the_image_says_ok_and_boots_it() -> None:
    bench = EspBench(OLD)
    seen: list[int] = []
    async with device(bench) as (_, port):
        record = await pushed(port, on_progress=lambda done, _: seen.append(done))
        await boots(bench, "2.0.0")
    assert (record.stage, record.sent, record.total, record.auth) == (EspotaStage.CONFIRMED, len(NEW), len(NEW), None)
    assert record.taken
    assert seen == sorted(seen)
    assert seen[-1] == len(NEW)


@pytest.mark.parametrize(
    ("auth", "stored_as", "proved"),
    [
        (AuthProtocol.MD5, PasswordHash.MD5, "md5"),
        (AuthProtocol.PBKDF2, PasswordHash.SHA256, "pbkdf2 with sha256"),
        (AuthProtocol.PBKDF2, PasswordHash.MD5, "pbkdf2 with md5"),
    ],
)
async def test_every_version_of_the_authentication_works(
    auth: AuthProtocol, stored_as: PasswordHash, proved: str
) -> None:
    bench = EspBench(OLD)
    async with device(bench, password="admin", auth=auth, stored_as=stored_as) as (_, port):
        record = await pushed(port, password="admin")
        assert record.taken, record.reason
        assert record.auth == proved
        await boots(bench, "2.0.0")


@pytest.mark.parametrize("auth", AuthProtocol)
async def test_a_wrong_password_is_said_and_changes_nothing(auth: AuthProtocol) -> None:
    bench = EspBench(OLD)
    async with device(bench, password="admin", auth=auth) as (_, port):
        record = await pushed(port, password="root")
        assert record.reason == "the device refused the password"
        record = await pushed(port)
        assert "--password" in record.reason
        assert record.stage is EspotaStage.INVITED
    assert len(bench.texts(EventKind.BOOT)) == 1
    assert not bench.texts(EventKind.OFFER), "nothing was begun"


async def test_an_image_too_large_is_met_by_a_device_that_never_connects() -> None:
    bench = EspBench(OLD)
    async with device(bench) as (_, port):
        record = await pushed(port, app_image("2.0.0", size=80_000))
        assert record.stage is EspotaStage.ACCEPTED
        assert "larger than its free space" in record.reason
        assert (await pushed(port)).taken, "and the next one is taken"


async def test_silence_ends_after_all_tries_with_the_port_named() -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        record = await pushed(port, limits=EspotaLimits(tries=2, answer_s=0.1))
    assert record.reason == f"nothing answers at 127.0.0.1 UDP port {port} within 2 tries"
    record = await pushed(port, limits=EspotaLimits(tries=2, answer_s=0.1))
    assert "nothing answers" in record.reason, "a closed port is silence too"


class LossyLink:
    """Datagrams to `port` and back, of which the first `lost` in each direction get lost."""

    def __init__(self, port: int, lost: int) -> None:
        self._device = ("127.0.0.1", port)
        self._lost = {"there": lost, "back": lost}
        self.front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.front.bind(("127.0.0.1", 0))
        self.front.setblocking(False)
        self._tasks: list[asyncio.Task[None]] = []
        self._sockets: list[socket.socket] = [self.front]

    async def relay(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            datagram, sender = await loop.sock_recvfrom(self.front, 2048)
            if self._keeps("there"):
                link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                link.setblocking(False)
                self._sockets.append(link)
                await loop.sock_sendto(link, datagram, self._device)
                self._tasks.append(asyncio.create_task(self._back(link, sender)))

    async def _back(self, link: socket.socket, sender: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            datagram, _ = await loop.sock_recvfrom(link, 2048)
            if self._keeps("back"):
                await loop.sock_sendto(self.front, datagram, sender)

    def _keeps(self, way: str) -> bool:
        self._lost[way] -= 1
        return self._lost[way] < 0

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self._sockets:
            one.close()


@pytest.mark.parametrize("password", [None, "admin"])
async def test_lost_datagrams_cost_tries_and_nothing_else(password: str | None) -> None:
    bench = EspBench(OLD)
    async with device(bench, password=password) as (_, port):
        link = LossyLink(port, lost=1)
        relay = asyncio.create_task(link.relay())
        try:
            limits = replace(LIMITS, tries=10, answer_s=0.4)
            record = await pushed(link.front.getsockname()[1], password=password, limits=limits)
        finally:
            relay.cancel()
            await link.close()
    assert record.taken, record.reason


async def test_a_file_that_is_no_app_image_is_refused_by_the_device_in_its_own_words() -> None:
    bench = EspBench(OLD)
    async with device(bench) as (_, port):
        record = await pushed(port, b"\x00" * 20_000)
        assert not record.taken
        assert record.reason.startswith("the device says: ")
        assert (await pushed(port)).taken


async def scripted(answers: bytes, *, blocks: int = 1000, hold: bool = False) -> EspotaRecord:
    """A push to a peer that says OK, connects, and then answers each block with the next bytes of a script."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as link:
        link.bind(("127.0.0.1", 0))
        link.setblocking(False)
        loop = asyncio.get_running_loop()

        async def peer() -> None:
            datagram, sender = await loop.sock_recvfrom(link, 256)
            invitation = parse_invitation(datagram)
            assert invitation is not None
            await loop.sock_sendto(link, b"OK", sender)
            reader, writer = await asyncio.open_connection("127.0.0.1", invitation.tcp_port)
            with closing(writer):
                for _ in range(blocks):
                    if not await reader.read(1024):
                        break
                    writer.write(answers)
                    await writer.drain()
                if hold:
                    await asyncio.sleep(3)

        task = asyncio.create_task(peer())
        try:
            return await pushed(link.getsockname()[1], b"x" * 3000, limits=replace(LIMITS, block_s=0.4, result_s=0.4))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("answers", "blocks", "hold", "reason"),
    [
        (b"1024", 1, False, "closed in the middle"),
        (b"ERROR[4]: Not Enough Space\r\n", 1, True, "the device says: ERROR[4]: Not Enough Space"),
        (b"1024", 3, False, "closed without saying whether the image is good"),
        (b"1024", 3, True, "no result within"),
        (b"", 1, True, "did not answer for"),
    ],
)
async def test_a_device_that_stops_in_the_middle_is_told_as_what_it_did(
    answers: bytes, blocks: int, hold: bool, reason: str
) -> None:
    record = await scripted(answers, blocks=blocks, hold=hold)
    assert not record.taken
    assert reason in record.reason


async def test_an_ok_glued_to_the_last_count_counts() -> None:
    assert (await scripted(b"1024OK")).taken


async def test_a_device_that_talks_nonsense_is_quoted_cleaned() -> None:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as link:
        link.bind(("127.0.0.1", 0))
        link.setblocking(False)

        async def peer() -> None:
            loop = asyncio.get_running_loop()
            _, sender = await loop.sock_recvfrom(link, 256)
            await loop.sock_sendto(link, b"\x1b[31mHELLO\xff" + pack_nonce("zz"), sender)

        task = asyncio.create_task(peer())
        record = await pushed(link.getsockname()[1])
        await task
    assert "HELLO" in record.reason
    assert "\x1b" not in record.reason
