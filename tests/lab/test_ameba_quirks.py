"""AmebaD boards of the lab with what may be special about them: the forced pin, an old core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from flota.errors import InvalidInput
from flota.images.ameba import pack_ota_file
from flota.lab.ameba_agents import AmebaQuirk, pull_source
from flota.lab.fleet import DeviceSpec, Dialect, open_device
from flota.transports.ameba_push import push
from flota.virtual.agents.ameba_push import PushSettings
from flota.virtual.events import DeviceEvent, EventKind
from tests.virtual.ameba_devices import image_of


def spec(directory: Path, **settings: object) -> DeviceSpec:
    given = {"speed": 5000, "firmware": image_of("1.0.0"), "push": PushSettings(port=0), "announce": False} | settings
    return DeviceSpec(name="lamp", board="amebad", state=directory / "lamp", **given)  # type: ignore[arg-type]


@asynccontextmanager
async def living(directory: Path, *quirks: AmebaQuirk) -> AsyncIterator[tuple[list[DeviceEvent], asyncio.Queue[int]]]:
    events: list[DeviceEvent] = []
    ports: asyncio.Queue[int] = asyncio.Queue()
    described = spec(directory, quirks=frozenset(quirks), on_listening=lambda _, port: ports.put_nowait(port))
    board = open_device(described, events.append)
    stop = asyncio.Event()
    life = asyncio.create_task(board.device.run(stop))
    try:
        yield events, ports
    finally:
        stop.set()
        await life
        await board.close()


async def seen(events: list[DeviceEvent], text: str) -> None:
    async with asyncio.timeout(20):
        while not any(text in event.text for event in events):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_pin_that_forces_ota1_makes_a_good_update_unbootable(tmp_path: Path) -> None:
    async with living(tmp_path, AmebaQuirk.FORCE_OTA1) as (events, ports):
        await push("127.0.0.1", await ports.get(), pack_ota_file(image_of("2.0.0")))
        await seen(events, "nothing boots")


async def test_an_old_core_writes_ota2_twice_and_prints_fewer_lines(tmp_path: Path) -> None:
    async with living(tmp_path, AmebaQuirk.LEGACY_TARGET, AmebaQuirk.OLD_LOG) as (events, ports):
        await push("127.0.0.1", await ports.get(), pack_ota_file(image_of("2.0.0")))
        await seen(events, "ota2, version 2.0.0")
        await push("127.0.0.1", await ports.get(), pack_ota_file(image_of("3.0.0")))
        await seen(events, "change_ota_signature")
    lines = [event.text for event in events if event.kind is EventKind.SERIAL]
    assert lines.count("[syncOTAAddr] OTA_INDEX_1 will be upgraded") == 2
    assert not any("Current index" in line or "Erasing OTA target" in line for line in lines)


@pytest.mark.parametrize(
    "settings",
    [
        {"dialect": Dialect.HTTP_UPDATE_OTA, "server": "https://127.0.0.1/ota.bin"},
        {"dialect": Dialect.HTTP_UPDATE_OTA, "server": "http://:80"},
        {"dialect": Dialect.OTA_HTTP, "server": "http://[::1"},
        {"dialect": Dialect.OTA_HTTP, "server": "http://127.0.0.1:3000", "token": "t"},
        {"dialect": Dialect.UPDATE_OTA_LOCAL, "server": "http://127.0.0.1:3000"},
        {"dialect": Dialect.DDI, "server": "http://127.0.0.1:3000"},
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        open_device(spec(tmp_path, **settings), lambda _: None)


def test_quirks_are_for_amebad_only(tmp_path: Path) -> None:
    described = DeviceSpec("a", "esp32-c3", tmp_path, quirks=frozenset({AmebaQuirk.OLD_LOG}))
    with pytest.raises(InvalidInput, match="none of these quirks"):
        open_device(described, lambda _: None)


def test_an_address_to_pull_from_is_taken_apart() -> None:
    found = pull_source("http://10.0.0.1:81/a/b.bin?x=1", default_port=80)
    assert (found.host, found.port, found.resource) == ("10.0.0.1", 81, "a/b.bin?x=1")
    assert pull_source("http://nas", default_port=3000).port == 3000
